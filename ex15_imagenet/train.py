"""Exercise 15: "Switch from MNIST to ImageNet. Adjust your resnet setup by copying the literature. Do a multi-day run
on ImageNet and see how you score, and compare to what other people have reported."

Changes from ex14:
- The photographs do not fit on the device. They are packed once, and worker processes decode random resized crops and
  horizontal flips of them while the device is busy; the time per batch is shown beside the time per step.
- ResNet-18, -34 and -50 with a 7 × 7 stem, max pooling, and the literature's recipe: SGD with Nesterov's momentum,
  warm-up, label smoothing, weight decay on weights only; optionally an exponential moving average of the parameters.
- Data parallelism: every batch is sharded over all devices of this machine, and the parameters are replicated.
- A checkpoint at every evaluation: --resume continues as if the run had not been interrupted.
- Top-5 accuracy beside top-1.

    python ex15_imagenet/train.py

A slim ResNet-18 on a CPU, with 1,000 photographs of ten classes: 66 % of new ones right (chance: 10 %) in four minutes.
Imagenette, which it downloads by default, has ten times as many; neither that nor a ResNet-50 on a GPU has been run.
"""

import os
import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from common import UserError, checkpoint, imagenet, speed
from common.plotting import plot_loss
from common.program import Resume, Terminated, check_config, clean_exit, is_older, jax_device, terminated
from common.record import DRY_RUN_STEPS, Run

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro


@dataclass
class Config:
    data: Path = Path("imagenette")  # imagenette, an image folder (train/CLASS, val/CLASS), or ILSVRC/imagenet-1k
    on_error: Literal["stop", "skip"] = "stop"  # what to do when images cannot be read
    dummy_data: bool = False  # train on one random batch that stays on the device, to measure the device alone
    workers: int = 2  # worker processes that decode photographs; 0: the main process does it
    depth: Literal[18, 34, 50] = 18  # depth of the ResNet; 50 has bottleneck blocks
    channels: int = 16  # output channels of the first convolution, C
    shortcuts: bool = True  # add the input of each block to its output
    size: int = 128  # evaluation resolution, in pixels (centre crop)
    train_size: int = 96  # training resolution, in pixels (random resized crop)
    area: float = 0.35  # smallest random crop, as a share of the photograph's area
    dropout: float = 0.0  # dropout probability of the convolutions' features
    smoothing: float = 0.0  # label smoothing: probability spread evenly over all classes
    weight_decay: float = 0.0005  # weight decay (L2): half of this times each squared weight is added to the loss
    ema: float = 0.0  # decay of an exponential moving average (EMA) of the parameters, used in evaluation; 0: none
    precision: Literal["float32", "bfloat16"] = "float32"  # number format of the convolutions
    batch_size: int = 128  # batch size: images per step, B
    epochs: float | None = None  # epochs to train, a fraction allowed: with them the other flags fit any batch size
    steps: int | None = None  # training steps, instead of --epochs
    learning_rate: float = 0.1  # peak learning rate, after a linear warm-up; it decays to 0 along a half cosine
    eval_every: int | None = None  # steps between validations, each with a checkpoint; None: an epoch, at most 20
    resume: Resume = "auto"  # continue from the checkpoint in --out, with its flags; auto: if of one --rdzv-id
    profile: int = 0  # steps to write a trace of (trace.json.gz, for ui.perfetto.dev), from the third on; 0: none
    overwrite: bool = False  # replace the checkpoints in --out even if they took more than ten minutes
    seed: int = 0  # random seed
    device: Literal["auto", "cpu", "cuda"] = "auto"  # device to compute on; auto is a GPU where there is one
    out: Path = Path(__file__).parent / "out"  # folder for the files that the run writes
    dry_run: bool = False  # only three steps, to check that everything works

    def __post_init__(self):
        check_config(self, area=(0.01, 1), dropout=(0, 0.99), smoothing=(0, 1), weight_decay=0, ema=(0, 1), workers=0)
        if self.dry_run:
            self.steps = min(self.steps or DRY_RUN_STEPS, DRY_RUN_STEPS)


def preset(flags):
    """Return the defaults of all flags: those of the checkpoint to resume, or those above, or on a GPU ResNet-50's."""
    if flags.epochs and flags.steps and not flags.dry_run:
        raise UserError("--epochs and --steps both say how long to train: give one of them")
    if checkpoint.should_resume(flags.resume, flags.out / "checkpoint.npz"):
        config = checkpoint.load_flags(Config, flags.out / "checkpoint.npz")
        return replace(config, steps=None, eval_every=None) if flags.epochs else config
    device = jax_device(flags.device)
    if device.platform == "cpu":
        return Config(epochs=11)
    sizes = {"size": 224, "train_size": 224, "area": 0.08, "epochs": 16}
    if flags.data == Config.data and not flags.dummy_data:  # Imagenette's short sides have 160 pixels
        sizes = {"size": 160, "train_size": 128, "epochs": 80}
    precision = "float32" if is_older(device, 8.0) else "bfloat16"  # before Ampere there is no bfloat16
    image = 850 * sizes["train_size"] ** 2 * (2 if precision == "float32" else 1)  # bytes that a ResNet-50 keeps of it
    fitting = [size for size in (256, 128, 64, 32) if size * image + 1e9 < speed.free_bytes(device)]
    recipe = {"batch_size": [*fitting, 16][0], "smoothing": 0.1, "weight_decay": 1e-4, "precision": precision}
    recipe["learning_rate"] = 0.1 * recipe["batch_size"] / 256
    return Config(flags.data, workers=min(16, os.cpu_count()), depth=50, channels=64, **sizes, **recipe)


def make_data(config):
    """Return the training set and the validation set: photographs as JPEGs, their labels (N,), the classes' names."""
    if config.dry_run or config.dummy_data:
        return imagenet.made_up(10 if config.dry_run else 1000)
    return imagenet.prepare(str(config.data), workers=config.workers, on_error=config.on_error)


def batches(rng, n, batch_size):
    """Yield the indices (B,) of one minibatch after another, for ever; every epoch is a new shuffle of 0, …, n - 1."""
    while True:
        order = rng.permutation(n)  # (n,)
        for start in range(0, n - batch_size + 1, batch_size):
            yield order[start : start + batch_size]  # (B,)


def normalise(images, dtype=jnp.float32):
    """Return images (B, H, W, 3) as numbers of this type: of ImageNet's mean 0 and variance 1 in each channel."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # (3,), (3,)
    return ((images / 255 - mean) / std).astype(dtype)  # (B, H, W, 3)


def init_layer(key, shape, scale=1.0):
    """Return a convolution's weight of this shape (k, k, C, C'), and its batch norm's scale and bias (C',)."""
    w = jax.random.normal(key, shape) * np.sqrt(2 / np.prod(shape[:-1]))  # (k, k, C, C'), by He's rule (exercise 5)
    return {"w": w, "scale": scale * jnp.ones(shape[-1]), "bias": jnp.zeros(shape[-1])}


def init_params(key, config, classes):
    """Return the parameters of the stem, of the residual blocks of every stage, and of the head."""
    expansion = 4 if config.depth == 50 else 1  # in a bottleneck the 3 × 3 filters see a quarter of the channels
    k = 1 if config.depth == 50 else 3  # side of the last filters of a block
    numbers = (2, 2, 2, 2) if config.depth == 18 else (3, 4, 6, 3)  # blocks of each stage (He et al. 2015, table 1)
    keys = iter(jax.random.split(key, 4 * sum(numbers) + 2))  # each is used once
    widths = [expansion * config.channels * 2**stage for stage in range(4)]
    head = {"w": 0.01 * jax.random.normal(next(keys), (widths[-1], classes)), "b": jnp.zeros(classes)}  # (C, K), (K,)
    params = {"stem": init_layer(next(keys), (7, 7, 3, config.channels)), "stages": [], "head": head}
    c_in = config.channels
    for c_out, number in zip(widths, numbers):
        c = c_out // expansion
        blocks = []
        for _ in range(number):
            block = {"conv0": init_layer(next(keys), (1, 1, c_in, c))} if expansion > 1 else {}
            block["conv1"] = init_layer(next(keys), (3, 3, c_in if expansion == 1 else c, c))
            block["conv2"] = init_layer(next(keys), (k, k, c, c_out), scale=0.0 if config.shortcuts else 1.0)
            if config.shortcuts:  # None is the identity, which needs the same channels on both sides
                block["shortcut"] = init_layer(next(keys), (1, 1, c_in, c_out)) if c_in != c_out else None
            blocks.append(block)
            c_in = c_out
        params["stages"].append(blocks)
    return params


def init_batch_stats(params):
    """Return the running mean (C',), 0 at first, and variance (C',), 1 at first, of every batch norm."""

    def init_stats(layer):
        return {"mean": jnp.zeros_like(layer["bias"]), "var": jnp.ones_like(layer["bias"])}

    stages = []
    for blocks in params["stages"]:
        stages.append([{name: init_stats(layer) for name, layer in block.items() if layer} for block in blocks])
    return {"stem": init_stats(params["stem"]), "stages": stages}


def conv(x, w, stride):
    """Return the feature maps (B, H / stride, W / stride, C') of x (B, H, W, C) under the kernels w (k, k, C, C')."""
    w = w.astype(x.dtype)  # that of the images decides
    pads = [(len(w) // 2, len(w) // 2)] * 2  # as many zeros on either side
    return jax.lax.conv_general_dilated(x, w, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def batch_norm(x, layer, stats, training):
    """Return x (B, H, W, C), normalised in each channel, scaled and shifted, and stats (Ioffe and Szegedy 2015).

    In training by the mean and variance of this batch, towards which those in stats move; otherwise by those in stats.
    """
    mean, var = stats["mean"], stats["var"]  # (C,), (C,)
    if training:
        mean = x.mean((0, 1, 2), jnp.float32)  # (C,)
        square = jnp.square(x.astype(jnp.float32)).mean((0, 1, 2))  # (C,)
        var = jnp.maximum(square - mean**2, 0)  # (C,): so x is read once, for both means; rounding may make it negative
        n = x[..., 0].size  # B · H · W
        unbiased = var * n / max(n - 1, 1)  # (C,), as torch keeps it
        stats = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * unbiased}
    scale = layer["scale"] * jax.lax.rsqrt(var + 1e-5)  # (C,)
    return (x * scale + (layer["bias"] - mean * scale)).astype(x.dtype), stats  # (B, H, W, C)


def conv_norm(x, layer, stats, stride, training):
    """Return what a convolution and its batch norm make of x (B, H, W, C), (B, H', W', C'), and stats."""
    return batch_norm(conv(x, layer["w"], stride), layer, stats, training)


def residual_block(x, block, stats, stride, training):
    """Return relu(x + f(x)) (B, H', W', C') of x (B, H, W, C), where f is two or three convolutions, and stats."""
    stats = dict(stats)
    h = x
    if "conv0" in block:  # a bottleneck
        h, stats["conv0"] = conv_norm(x, block["conv0"], stats["conv0"], 1, training)  # (B, H, W, C' / 4)
        h = jax.nn.relu(h)
    h, stats["conv1"] = conv_norm(h, block["conv1"], stats["conv1"], stride, training)  # (B, H', W', C')
    h, stats["conv2"] = conv_norm(jax.nn.relu(h), block["conv2"], stats["conv2"], 1, training)  # (B, H', W', C')
    if "shortcut" not in block:
        return jax.nn.relu(h), stats
    if block["shortcut"] is not None:
        x, stats["shortcut"] = conv_norm(x, block["shortcut"], stats["shortcut"], stride, training)  # (B, H', W', C')
    return jax.nn.relu(x + h), stats


@partial(jax.jit, static_argnames="training")
def forward(params, batch_stats, images, training=False, key=None, dropout=0.0):
    """Return the logits (B, K) for images (B, H, W, 3), and batch_stats, which training moves on."""
    x = images  # (B, H, W, 3)
    x, stem = conv_norm(x, params["stem"], batch_stats["stem"], 2, training)  # (B, H, W, C)
    x, stages = jax.nn.relu(x), []
    # 3 × 3 max pooling with stride 2: (B, H, W, C), H and W halved
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, blocks in enumerate(params["stages"]):
        stages.append([])
        for j, block in enumerate(blocks):
            stride = 2 if i > 0 and j == 0 else 1  # every stage but the first begins by halving height and width
            x, stats = residual_block(x, block, batch_stats["stages"][i][j], stride, training)  # (B, H, W, C)
            stages[i].append(stats)
    x = x.mean((1, 2), jnp.float32)  # (B, D): global average pooling, the mean of each feature map
    if training:
        x = x * jax.random.bernoulli(key, 1 - dropout, x.shape) / (1 - dropout)  # (B, D), of the same mean
    return x @ params["head"]["w"] + params["head"]["b"], {"stem": stem, "stages": stages}


def loss_fn(logits, y):
    """Return the mean cross-entropy () of the classes' probabilities y (B, K) and the softmax of the logits (B, K)."""
    return optax.softmax_cross_entropy(logits, y).mean()  # ()


def make_optimizer(config):
    """Return SGD with Nesterov's momentum and a schedule; weight decay on the weights w only."""
    schedule = optax.warmup_cosine_decay_schedule(0.001, config.learning_rate, config.steps // 18, config.steps)

    def weights(params):
        return jax.tree.map_with_path(lambda path, _: path[-1].key == "w", params)

    decay = optax.add_decayed_weights(config.weight_decay, weights)
    return optax.chain(decay, optax.sgd(schedule, 0.9, nesterov=True))


@partial(jax.jit, static_argnames="optimizer")
def train_step(params, batch_stats, opt_state, x, y, optimizer, key, dropout):
    """Return params, batch_stats and the optimizer's state after one update, and the loss () before it."""

    def loss_and_stats(params):
        logits, stats = forward(params, batch_stats, x, True, key, dropout)  # (B, K)
        return loss_fn(logits, y), stats

    (loss, stats), grads = jax.value_and_grad(loss_and_stats, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), stats, opt_state, loss


def update(config, optimizer, params, batch_stats, opt_state, mean, images, labels, step, key):
    """Return params, batch_stats, opt_state, the moving average of the first two, and the loss () before."""
    y = optax.smooth_labels(jax.nn.one_hot(labels, len(params["head"]["b"])), config.smoothing)  # (B, K)
    images = normalise(images, config.precision)  # (B, S, S, 3)
    state = params, batch_stats, opt_state
    *state, loss = train_step(*state, images, y, optimizer, key, config.dropout)
    keep = jnp.minimum(config.ema, (1 + step) / (10 + step))  # a shorter average at first
    mean = optax.incremental_update(tuple(state[:2]), mean, 1 - keep)
    return *state, mean, loss


def evaluate(config, params, batch_stats, packed, rows):
    """Return the metrics of the model on the images of a packed set, each of which counts once, by name."""
    sums = np.zeros(4)
    numbers = imagenet.in_order(len(packed), config.batch_size)
    for batch in imagenet.load(packed, numbers, config.size, workers=config.workers):
        images, labels = jax.device_put(batch, rows)  # (B, S, S, 3), (B,)
        logits, _ = forward(params, batch_stats, normalise(images, config.precision))  # (B, K)
        y = jax.nn.one_hot(labels, logits.shape[1])  # (B, K): for label -1, which fills up the last batch, zeros
        hits = jax.lax.top_k(logits, min(5, logits.shape[1]))[1] == labels[:, None]  # (B, 5)
        sums += np.array([loss_fn(logits, y) * len(y), hits[:, 0].sum(), hits.sum(), y.sum()])
    return dict(zip(("loss", "accuracy", "top5"), (sums / sums[3]).tolist()))


def train(config, seed, x, x_val, device, rows, whole):
    """Train from the start or from a checkpoint; return the last losses and accuracies, and the speed."""
    rng = np.random.default_rng(seed)
    minibatches = batches(rng, len(x), config.batch_size)  # yields index arrays (B,)
    params_key, step_key = jax.random.split(jax.random.key(seed))
    params = init_params(params_key, config, len(x.classes))
    batch_stats = init_batch_stats(params)
    optimizer = make_optimizer(config)
    mean = jax.tree.map(jnp.copy, (params, batch_stats))  # the moving average of both
    state = params, batch_stats, optimizer.init(params), mean
    first, resumed = 0, None
    if checkpoint.should_resume(config.resume, config.out / "checkpoint.npz"):
        state, first, resumed = checkpoint.resume_jax(config, state)
    state = jax.device_put(state, whole)
    indices = islice(enumerate(minibatches), first, max(config.steps, first + 1))  # yields (step, (B,))
    loaded = imagenet.load(x, indices, config.train_size, seed, (config.area, 1), config.workers)
    batch = jax.device_put(next(loaded), rows)  # (B, S, S, 3) and (B,)
    program = jax.jit(partial(update, config, optimizer), donate_argnums=(0, 1, 2, 3), out_shardings=whole)
    program = program.lower(*state, *batch, 0, step_key).compile()
    print(f"compiled: convolutions in {speed.convolutions(program)}")
    with Run(config, {"ln K": np.log(len(x.classes))}, device.device_kind, resumed) as run:
        waited, since = 0.0, first  # milliseconds are shown as means since the last evaluation
        seconds = 0.0
        start = time.perf_counter()
        for step in speed.profiled(run, run.steps(config.steps, first)):
            stop = terminated()
            if step % config.eval_every == 0 or stop:
                jax.block_until_ready(state)
                seconds += time.perf_counter() - start
                checkpoint.save_jax(run, step, state)
                if stop:
                    raise Terminated
                run.record(step, "validation", **evaluate(config, *state[3], x_val, rows))
                waited, since = 0.0, step
                start = time.perf_counter()
            *state, loss = program(*state, *batch, step, jax.random.fold_in(step_key, step))  # returns at once
            called = time.perf_counter()
            batch = batch if config.dummy_data else jax.device_put(next(loaded, None), rows)
            waited += time.perf_counter() - called
            run.record(step, "train", loss=loss)  # read while the device works on a later step
            spent = np.array([time.perf_counter() - start, waited]) * 1000 / (step + 1 - since)
            run.latest["step ms"], run.latest["data ms"] = spent
        jax.block_until_ready(state)
        seconds += time.perf_counter() - start
        checkpoint.save_jax(run, config.steps, state)
        run.record(config.steps, "validation", **evaluate(config, *state[3], x_val, rows))
        measured = {name.replace(" ", "_"): value for name, value in run.latest.items()}
        if config.steps > first:
            measured["images_per_second"] = config.batch_size * (config.steps - first) / seconds
        metrics = run.finish(**measured)
    plot_loss(run.out, "nats per image", log="y")
    return metrics


def main(config: Config) -> dict[str, float]:
    device = jax_device(config.device)
    jax.config.update("jax_default_device", device)
    mesh = jax.sharding.Mesh(jax.devices(device.platform), ("devices",))
    rows, whole = jax.NamedSharding(mesh, jax.P("devices")), jax.NamedSharding(mesh, jax.P())
    x, x_val = make_data(config)
    if config.batch_size > len(x):
        raise UserError(f"--batch-size {config.batch_size} is larger than the training set ({len(x)} images)")
    if config.batch_size % mesh.size:
        raise UserError(f"--batch-size {config.batch_size} must be a multiple of the number of devices ({mesh.size})")
    epoch = len(x) // config.batch_size  # steps
    config.steps = config.steps or max(1, round(config.epochs * epoch))
    config.epochs = config.steps / epoch
    config.eval_every = config.eval_every or max(epoch, config.steps // 20)
    print(f"data: {len(x)} photographs for training, {len(x_val)} for validation, {len(x.classes)} classes")
    size = f"ResNet-{config.depth}, {config.batch_size} images per step, {config.precision}, {config.workers} workers"
    size += f", {config.epochs:.4g} epochs, devices: {mesh.size}"
    print(f"{device.platform} preset, and your flags ({device.device_kind}): {size}")

    return train(config, config.seed, x, x_val, device, rows, whole)


if __name__ == "__main__":
    with clean_exit():
        flags, _ = tyro.cli(Config, add_help=False, return_unknown_args=True)  # what the preset depends on
        main(tyro.cli(Config, default=preset(flags), description=__doc__))
