"""Exercise 10: "Change architecture to be a resnet."

Changes from ex09:
- Residual blocks: two convolutions compute a correction, which is added to what came in. A block need only learn the
  correction, and the gradient has a way around it (He et al. 2015, 2016; --no-shortcuts takes it away).
- Batch norm behind every convolution. Its running statistics, batch_stats, are no parameters: no gradient moves them.
- Every block starts as its shortcut alone: the scale of its last batch norm is 0 at first (Goyal et al. 2017).
- Global average pooling: the mean of each feature map goes to the logits, with no dense layer between.
- Weights, but no scales and biases, also decay (AdamW). train(config, seed, ...) is a function of its own: exercise 14
  will call it for many seeds.

    python ex10_mnist_resnet/train.py

99.5 % of the test digits right, in under four minutes on two CPU cores.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from common import UserError, data
from common.plotting import plot_loss
from common.program import check_config, clean_exit, jax_device
from common.record import Run

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro


@dataclass
class Config:
    stages: int = 2  # groups of residual blocks; all but the first halve height and width and double the channels
    blocks: int = 1  # residual blocks per stage
    channels: int = 32  # output channels of the first convolution, C
    shortcuts: bool = True  # add the input of each block to its output
    dropout: float = 0.1  # dropout probability of the convolutions' features
    batch_size: int = 128  # batch size: images per step, B
    steps: int = 5_616  # training steps (468 are an epoch: 12 epochs)
    optimizer: Literal["adamw", "momentum", "sgd"] = "adamw"  # which optimizer to use
    learning_rate: float = 0.008  # learning rate at the first step; it decays to 0 along a half cosine
    weight_decay: float = 0.1  # weight decay of AdamW, on weights alone
    eval_every: int = 468  # steps between two evaluations on the test set
    seed: int = 0  # random seed
    device: Literal["auto", "cpu", "cuda"] = "auto"  # device to compute on; auto is a GPU where there is one
    out: Path = Path(__file__).parent / "out"  # folder for the files that the run writes
    dry_run: bool = False  # only three steps, to check that everything works

    def __post_init__(self):
        check_config(self, dropout=(0, 0.99), weight_decay=0)


def make_data(config):
    """Return images (N, H, W) and classes (N,) of the training set, then those of the test set."""
    arrays = []
    for images, labels in data.mnist(config.dry_run):  # (N, H, W), (N,) of uint8
        x = (images / np.float32(255) - 0.1307) / 0.3081  # (N, H, W): the training pixels' mean 0 and variance 1
        arrays += [x, labels.astype(np.int32)]  # (N, H, W), (N,)
    return arrays


def batches(rng, n, batch_size):
    """Yield the indices (B,) of one minibatch after another, for ever; every epoch is a new shuffle of 0, …, n - 1."""
    while True:
        order = rng.permutation(n)  # (n,)
        for start in range(0, n - batch_size + 1, batch_size):
            yield order[start : start + batch_size]  # (B,)


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
    return jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def batch_norm(x, layer, stats, training):
    """Return x (B, H, W, C), normalised in each channel, scaled and shifted, and stats (Ioffe and Szegedy 2015).

    In training by the mean and variance of this batch, towards which those in stats move; otherwise by those in stats.
    """
    mean, var = stats["mean"], stats["var"]  # (C,), (C,)
    if training:
        mean = x.mean((0, 1, 2))  # (C,)
        square = jnp.square(x).mean((0, 1, 2))  # (C,)
        var = jnp.maximum(square - mean**2, 0)  # (C,): so x is read once, for both means; rounding may make it negative
        n = x[..., 0].size  # B · H · W
        unbiased = var * n / max(n - 1, 1)  # (C,), as torch keeps it
        stats = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * unbiased}
    scale = layer["scale"] * jax.lax.rsqrt(var + 1e-5)  # (C,)
    return x * scale + (layer["bias"] - mean * scale), stats  # (B, H, W, C)


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
    x = x.mean((1, 2))  # (B, D): global average pooling, the mean of each feature map
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


def evaluate(params, batch_stats, x, y):
    """Return the metrics of the model on the samples x, y, by name."""
    logits, _ = forward(params, batch_stats, x)  # (N, K)
    assert logits.shape[:-1] == y.shape  # y of shape (N, 1) would broadcast in the accuracy, without an error
    return {"loss": loss_fn(logits, y).item(), "accuracy": (logits.argmax(1) == y).sum().item() / len(y)}


def train(config, seed, run, x, y, x_test, y_test):
    """Train a new model; return its parameters and running statistics, and its metrics on the test set at the end."""
    rng = np.random.default_rng(seed)
    minibatches = ((x[index], y[index]) for index in batches(rng, len(x), config.batch_size))
    params_key, dropout_key = jax.random.split(jax.random.key(seed))
    params = init_params(params_key, config)
    batch_stats = init_batch_stats(params)
    optimizer = make_optimizer(config)
    state = params, batch_stats, optimizer.init(params)
    for step, (x_batch, y_batch) in zip(run.steps(config.steps), minibatches):  # (B, H, W), (B,)
        if step % config.eval_every == 0:
            run.record(step, "test", **evaluate(*state[:2], x_test, y_test))
        key = jax.random.fold_in(dropout_key, step)  # other features are dropped at every step
        *state, loss = train_step(*state, x_batch, y_batch, optimizer, key, config.dropout)
        run.record(step, "train", loss=loss.item())
    test = evaluate(*state[:2], x_test, y_test)
    run.record(step + 1, "test", **test)
    return state[:2], test


def main(config: Config) -> dict[str, float]:
    device = jax_device(config.device)
    jax.config.update("jax_default_device", device)
    x, y, x_test, y_test = make_data(config)
    if config.batch_size > len(x):
        raise UserError(f"--batch-size {config.batch_size} is larger than the training set ({len(x)} images)")
    print(f"data: training {tuple(x.shape)}, test {tuple(x_test.shape)}; images of each class {np.bincount(y)}")

    with Run(config, {"ln 10": np.log(10)}, device.device_kind) as run:
        _, test = train(config, config.seed, run, x, y, x_test, y_test)
        metrics = run.finish(test_loss=test["loss"], test_accuracy=test["accuracy"])
    plot_loss(run.out, "nats per image", log="y")
    return metrics


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
