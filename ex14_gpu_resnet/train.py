"""Exercise 14: "Go back to your resnet classification-on-MNIST example, and make it run fast on a GPU. (This will
mostly mean doing as much as possible as conv/matmuls, and making sure data loading is not a bottleneck.)"

Changes from ex10:
- The images stay on the device as bytes. Drawing a batch, augmenting it, normalising it and updating the parameters
  are one compiled program; during training only image indices are sent to the device.
- One call of that program makes many steps (--steps-per-call): on a GPU an epoch, in which it never waits for the host.
- Convolutions in bfloat16 on a GPU, parameters and statistics in float32 (--precision).
- Data augmentation: each image is randomly rotated, scaled, sheared and shifted, anew in each epoch.
- The clock: compiling apart from training, and --seeds 20 for a mean of 20 runs of the one compiled program.

    python ex14_gpu_resnet/train.py

99.55 % of the test digits right, in four minutes on two CPU cores; made for a GPU, but not yet timed on one.
"""

import time
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from common import UserError, data, speed
from common.plotting import plot_loss
from common.program import check_config, clean_exit, is_older, jax_device
from common.record import DRY_RUN_STEPS, Run

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.scipy.ndimage import map_coordinates


@dataclass
class Config:
    stages: int = 2  # groups of residual blocks; all but the first halve height and width and double the channels
    blocks: int = 1  # residual blocks per stage
    channels: int = 32  # output channels of the first convolution, C
    shortcuts: bool = True  # add the input of each block to its output
    dropout: float = 0.0  # dropout probability of the convolutions' features
    rotate: float = 7.0  # largest random rotation of a training image, in degrees
    scale: float = 0.07  # largest random scaling of a training image, as a share of its size
    shear: float = 0.07  # largest random shear of a training image, in pixels per row
    shift: float = 1.0  # largest random shift of a training image, in pixels, vertical and horizontal
    precision: Literal["float32", "bfloat16"] = "float32"  # number format of the convolutions
    batch_size: int = 128  # batch size: images per step, B
    steps: int = 5_148  # training steps (468 are an epoch: 11 epochs)
    optimizer: Literal["adamw", "momentum", "sgd"] = "adamw"  # which optimizer to use
    learning_rate: float = 0.008  # learning rate at the first step; it decays to 0 along a half cosine
    weight_decay: float = 0.1  # weight decay of AdamW, on weights alone
    eval_every: int = 468  # steps between two evaluations on the test set
    steps_per_call: int = 1  # training steps per call of the compiled program
    seeds: int = 1  # number of runs, with seeds --seed, --seed + 1, …; metrics.csv has the first run's history
    profile: int = 0  # calls to write a trace of (trace.json.gz, for ui.perfetto.dev), from the third on; 0: none
    seed: int = 0  # random seed
    device: Literal["auto", "cpu", "cuda"] = "auto"  # device to compute on; auto is a GPU where there is one
    out: Path = Path(__file__).parent / "out"  # folder for the files that the run writes
    dry_run: bool = False  # only three steps, to check that everything works

    def __post_init__(self):
        ranges = {"rotate": (0, 180), "scale": (0, 0.9), "shear": (0, 1), "shift": (0, 28)}
        check_config(self, dropout=(0, 0.99), weight_decay=0, **ranges)
        if self.dry_run:
            self.steps = min(self.steps, DRY_RUN_STEPS)
            self.steps_per_call = min(self.steps_per_call, self.steps)


def preset(flags):
    """Return the defaults of all flags: those above, or on a GPU larger batches, and one call per epoch."""
    device = jax_device(flags.device)
    if device.platform == "cpu":
        return Config()
    sizes = {"channels": 64, "batch_size": 500, "steps": 1440, "eval_every": 1440, "steps_per_call": 120}  # 12 epochs
    precision = "float32" if is_older(device, 8.0) else "bfloat16"  # before Ampere there is no bfloat16
    return Config(learning_rate=0.01, precision=precision, **sizes)


def make_data(config):
    """Return images (N, H, W) and classes (N,) of the training set, then those of the test set, all on the device."""
    arrays = []
    for images, labels in data.mnist(config.dry_run):  # (N, H, W), (N,) of uint8
        arrays += [jnp.asarray(images), jnp.asarray(labels, jnp.int32)]  # (N, H, W), (N,)
    return arrays


def batches(rng, n, batch_size):
    """Yield the indices (B,) of one minibatch after another, for ever; every epoch is a new shuffle of 0, …, n - 1."""
    while True:
        order = rng.permutation(n)  # (n,)
        for start in range(0, n - batch_size + 1, batch_size):
            yield order[start : start + batch_size]  # (B,)


def affine(images, matrix, shift):
    """Return images (B, H, W) under affine maps, matrix (B, 2, 2) and shift (B, 2), rows first, around the centre.

    Pixel p of a result is the image at matrix · (p - centre) + centre + shift, interpolated between the four pixels
    around that place. Beyond the edge all is 0.
    """
    height, width = images.shape[1:]
    centre = np.array([height - 1, width - 1]) / 2  # (2,)
    grid = np.mgrid[:height, :width] - centre[:, None, None]  # (2, H, W)
    places = jnp.einsum("bij,jhw->bihw", matrix, grid) + (centre + shift)[..., None, None]  # (B, 2, H, W)
    return jax.vmap(partial(map_coordinates, order=1))(images.astype(jnp.float32), places)  # (B, H, W)


def augment(key, images, config):
    """Return images (B, H, W), each rotated, scaled, sheared and shifted by its own random amounts."""
    most = np.array([np.radians(config.rotate), config.scale, config.shear, config.shift, config.shift])  # (5,)
    draws = most[:, None] * jax.random.uniform(key, (5, len(images)), minval=-1)  # (5, B)
    turn, scale, shear, down, right = draws  # (B,) each
    sin, cos = jnp.sin(turn), jnp.cos(turn)  # (B,), (B,)
    matrix = (1 + scale) * jnp.array([[cos - shear * sin, -sin], [sin + shear * cos, cos]])  # (2, 2, B)
    return affine(images, matrix.transpose(2, 0, 1), jnp.stack([down, right], axis=1))  # (B, H, W)


def normalise(images, dtype=jnp.float32):
    """Return images (B, H, W) as numbers of this type: the training pixels' mean 0 and variance 1."""
    return ((images / 255 - 0.1307) / 0.3081).astype(dtype)  # (B, H, W)


def init_layer(key, shape, scale=1.0):
    """Return a convolution's weight of this shape (k, k, C, C'), and its batch norm's scale and bias (C',)."""
    w = jax.random.normal(key, shape) * np.sqrt(2 / np.prod(shape[:-1]))  # (k, k, C, C'), by He's rule (exercise 5)
    return {"w": w, "scale": scale * jnp.ones(shape[-1]), "bias": jnp.zeros(shape[-1])}


def init_params(key, config):
    """Return the parameters of the stem, of the residual blocks of every stage, and of the head."""
    keys = iter(jax.random.split(key, 3 * config.stages * config.blocks + 2))  # each is used once
    widths = [config.channels * 2**stage for stage in range(config.stages)]
    head = {"w": 0.01 * jax.random.normal(next(keys), (widths[-1], 10)), "b": jnp.zeros(10)}  # (C, K), (K,)
    params = {"stem": init_layer(next(keys), (5, 5, 1, config.channels)), "stages": [], "head": head}
    c_in = config.channels
    for c_out in widths:
        blocks = []
        for _ in range(config.blocks):
            block = {"conv1": init_layer(next(keys), (3, 3, c_in, c_out))}
            block["conv2"] = init_layer(next(keys), (3, 3, c_out, c_out), scale=0.0 if config.shortcuts else 1.0)
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
    return jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


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
    """Return relu(x + f(x)) (B, H', W', C') of x (B, H, W, C), where f is two convolutions, and stats."""
    stats = dict(stats)
    h, stats["conv1"] = conv_norm(x, block["conv1"], stats["conv1"], stride, training)  # (B, H', W', C')
    h, stats["conv2"] = conv_norm(jax.nn.relu(h), block["conv2"], stats["conv2"], 1, training)  # (B, H', W', C')
    if "shortcut" not in block:
        return jax.nn.relu(h), stats
    if block["shortcut"] is not None:
        x, stats["shortcut"] = conv_norm(x, block["shortcut"], stats["shortcut"], stride, training)  # (B, H', W', C')
    return jax.nn.relu(x + h), stats


@partial(jax.jit, static_argnames="training")
def forward(params, batch_stats, images, training=False, key=None, dropout=0.0):
    """Return the logits (B, K) for images (B, H, W), and batch_stats, which training moves on."""
    x = images[..., None]  # (B, H, W, 1)
    x, stem = conv_norm(x, params["stem"], batch_stats["stem"], 2, training)  # (B, H, W, C)
    x, stages = jax.nn.relu(x), []
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
    """Return the mean negative log likelihood () of the classes y (B,) under the softmax of the logits (B, K)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()  # ()


def make_optimizer(config):
    """Return the optax optimizer of a --optimizer flag, with its schedule; weight decay on the weights w only."""
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)

    def weights(params):
        return jax.tree.map_with_path(lambda path, _: path[-1].key == "w", params)

    adamw = partial(optax.adamw, weight_decay=config.weight_decay, mask=weights)
    optimizers = {"adamw": adamw, "momentum": partial(optax.sgd, momentum=0.9), "sgd": optax.sgd}
    return optimizers[config.optimizer](schedule)


@partial(jax.jit, static_argnames="optimizer")
def train_step(params, batch_stats, opt_state, x, y, optimizer, key, dropout):
    """Return params, batch_stats and the optimizer's state after one update, and the loss () before it."""

    def loss_and_stats(params):
        logits, stats = forward(params, batch_stats, x, True, key, dropout)  # (B, K)
        return loss_fn(logits, y), stats

    (loss, stats), grads = jax.value_and_grad(loss_and_stats, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), stats, opt_state, loss


def train_steps(config, optimizer, params, batch_stats, opt_state, x, y, index, first, key):
    """Return params, batch_stats and the optimizer's state after n updates, and the losses (n,) before each.

    Step first + i takes the images index[i] (B,) from the training set x (N, H, W), y (N,); its noise comes from `key`.
    """

    def one_step(state, step_and_index):
        step, index = step_and_index  # (), (B,)
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, step))  # other noise at every step
        images = normalise(augment(augment_key, x[index], config), config.precision)  # (B, H, W)
        *state, loss = train_step(*state, images, y[index], optimizer, dropout_key, config.dropout)
        return tuple(state), loss

    state = params, batch_stats, opt_state
    if len(index) == 1:  # without a loop, in which the gradients of convolutions are 20 times slower on a CPU
        state, loss = one_step(state, (first, index[0]))
        return *state, loss[None]
    steps = first + jnp.arange(len(index))  # (n,)
    state, losses = jax.lax.scan(one_step, state, (steps, index))
    return *state, losses


def compile_steps(config, x, y):
    """Return train_steps as a compiled program, which writes the new state over the one that it is given."""
    optimizer = make_optimizer(config)
    params = init_params(jax.random.key(0), config)
    state = params, init_batch_stats(params), optimizer.init(params)
    index = np.zeros((config.steps_per_call, config.batch_size), int)  # (n, B)
    program = jax.jit(partial(train_steps, config, optimizer), donate_argnums=(0, 1, 2))
    return program.lower(*state, x, y, index, 0, jax.random.key(0)).compile()


def evaluate(params, batch_stats, x, y):
    """Return the metrics of the model on the samples x, y, by name."""
    logits, _ = forward(params, batch_stats, normalise(x))  # (N, K)
    assert logits.shape[:-1] == y.shape  # y of shape (N, 1) would broadcast in the accuracy, without an error
    return {"loss": loss_fn(logits, y).item(), "accuracy": (logits.argmax(1) == y).sum().item() / len(y)}


def train(config, seed, run, program, x, y, x_test, y_test):
    """Train a new model; return its parameters and running statistics, its metrics at the end, and the seconds."""
    rng = np.random.default_rng(seed)
    minibatches = batches(rng, len(x), config.batch_size)  # yields index arrays (B,)
    params_key, step_key = jax.random.split(jax.random.key(seed))
    params = init_params(params_key, config)
    batch_stats = init_batch_stats(params)
    optimizer = make_optimizer(config)
    state = params, batch_stats, optimizer.init(params)
    seconds = 0.0
    start = time.perf_counter()
    for step in speed.profiled(run, islice(run.steps(config.steps), 0, None, config.steps_per_call)):
        if step % config.eval_every < config.steps_per_call:  # evaluation time is not counted
            jax.block_until_ready(state)
            seconds += time.perf_counter() - start
            run.record(step, "test", **evaluate(*state[:2], x_test, y_test))
            start = time.perf_counter()
        index = np.stack(list(islice(minibatches, config.steps_per_call)))  # (n, B)
        *state, losses = program(*state, x, y, index, step, step_key)  # returns at once
        run.record(step, "train", loss=losses)  # (n,), read while the device works on a later call
    jax.block_until_ready(state)
    seconds += time.perf_counter() - start
    test = evaluate(*state[:2], x_test, y_test)
    run.record(config.steps, "test", **test)
    return state[:2], test, seconds


def main(config: Config) -> dict[str, float]:
    device = jax_device(config.device)
    jax.config.update("jax_default_device", device)
    x, y, x_test, y_test = make_data(config)
    if config.batch_size > len(x):
        raise UserError(f"--batch-size {config.batch_size} is larger than the training set ({len(x)} images)")
    if config.steps % config.steps_per_call:
        raise UserError(f"--steps {config.steps} must be a multiple of --steps-per-call {config.steps_per_call}")
    print(f"data: training {tuple(x.shape)}, test {tuple(x_test.shape)}; images of each class {np.bincount(y)}")
    size = f"{config.batch_size} images per step, {config.steps_per_call} steps per call, {config.precision}"
    print(f"{device.platform} preset, and your flags ({device.device_kind}): {size}")

    with Run(config, {"ln 10": np.log(10)}, device.device_kind) as run:
        start = time.perf_counter()
        program = compile_steps(config, x, y)
        compile_seconds = time.perf_counter() - start
        print(f"compiled: convolutions in {speed.convolutions(program)}")
        finals = []
        for seed in range(config.seed, config.seed + config.seeds):
            _, test, seconds = train(config, seed, run, program, x, y, x_test, y_test)
            finals.append((test["loss"], test["accuracy"], seconds))
            print(f"seed {seed}: test accuracy {100 * test['accuracy']:.2f} %, {seconds:.3g} s of training", flush=True)
            run.quiet = True  # metrics.csv has the history of the first
        losses, accuracies, train_seconds = zip(*finals)  # each of the length of seeds
        times = {"compile_seconds": compile_seconds, "train_seconds": train_seconds}
        metrics = run.finish(test_loss=losses, test_accuracy=accuracies, **times)
    plot_loss(run.out, "nats per image", log="y")
    return metrics


if __name__ == "__main__":
    with clean_exit():
        flags, _ = tyro.cli(Config, add_help=False, return_unknown_args=True)  # what the preset depends on
        main(tyro.cli(Config, default=preset(flags), description=__doc__))
