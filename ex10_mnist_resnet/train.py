"""Exercise 10: "Change architecture to be a resnet."

Changes from ex09:
- Residual blocks: two convolutions compute a correction, which is added to what came in. A block need only learn the
  correction, and the gradient has a way around it (He et al. 2015, 2016; --no-shortcuts takes it away).
- Batch norm behind every convolution. Its running statistics travel in params, but no gradient reaches them.
- Every block starts as its shortcut alone: the scale of its last batch norm is 0 at first (Goyal et al. 2017).
- Global average pooling: the mean of each feature map goes to the logits, with no dense layer between.
- train(config, seed, ...) is a function of its own: exercise 14 will call it for many seeds.

    python ex10_mnist_resnet/train.py

99.4 % of the test digits right, in under four minutes on two CPU cores.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
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
    dropout: float = 0.3  # dropout probability of the convolutions' features
    batch_size: int = 128  # batch size: images per step, B
    steps: int = 5_616  # training steps (468 are an epoch: 12 epochs)
    optimizer: Literal["adam", "momentum", "sgd"] = "adam"  # which optimizer to use
    learning_rate: float = 0.004  # learning rate at the first step; it decays to 0 along a half cosine
    eval_every: int = 468  # steps between two evaluations on the test set
    seed: int = 0  # random seed
    device: Literal["auto", "cpu", "cuda"] = "auto"  # device to compute on; auto is a GPU where there is one
    out: Path = Path(__file__).parent / "out"  # folder for the files that the run writes
    dry_run: bool = False  # only three steps, to check that everything works

    def __post_init__(self):
        check_config(self, dropout=(0, 0.99))


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
    """Return a convolution's weight of this shape (k, k, C, C') and what its batch norm needs, each (C',)."""
    w = jax.random.normal(key, shape) * np.sqrt(2 / np.prod(shape[:-1]))  # (k, k, C, C'), by He's rule (exercise 5)
    zeros, ones = jnp.zeros(shape[-1]), jnp.ones(shape[-1])  # (C',), (C',)
    return {"w": w, "scale": scale * ones, "bias": zeros, "mean": zeros, "var": ones}


def init_params(key, config):
    """Return the parameters of the stem, of every residual block, and of the head."""
    widths = [config.channels * 2**stage for stage in range(config.stages) for _ in range(config.blocks)]
    keys = iter(jax.random.split(key, 3 * len(widths) + 2))  # each is used once
    head = {"w": 0.01 * jax.random.normal(next(keys), (widths[-1], 10)), "b": jnp.zeros(10)}  # (C, K), (K,)
    params = {"stem": init_layer(next(keys), (5, 5, 1, config.channels)), "blocks": [], "head": head}
    for c_in, c_out in pairwise([config.channels, *widths]):
        block = {"conv1": init_layer(next(keys), (3, 3, c_in, c_out))}
        block["conv2"] = init_layer(next(keys), (3, 3, c_out, c_out), scale=0.0 if config.shortcuts else 1.0)
        if config.shortcuts:  # {} is the identity, which needs the same channels on both sides
            block["shortcut"] = init_layer(next(keys), (1, 1, c_in, c_out)) if c_in != c_out else {}
        params["blocks"].append(block)
    return params


def conv(x, w, stride):
    """Return the feature maps (B, H / stride, W / stride, C') of x (B, H, W, C) under the kernels w (k, k, C, C')."""
    return jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def batch_norm(x, layer, training):
    """Return x (B, H, W, C), normalised in each channel, scaled and shifted, and the layer (Ioffe and Szegedy 2015).

    In training by the mean and variance of this batch, towards which the layer's running ones move; otherwise by those.
    """
    mean, var = layer["mean"], layer["var"]  # (C,), (C,)
    if training:
        mean, var, n = x.mean((0, 1, 2)), x.var((0, 1, 2)), max(x[..., 0].size, 2)  # (C,), (C,), B · H · W
        moved = {"mean": 0.9 * layer["mean"] + 0.1 * mean, "var": 0.9 * layer["var"] + 0.1 * var * n / (n - 1)}
        layer = layer | moved
    return (x - mean) * (layer["scale"] * jax.lax.rsqrt(var + 1e-5)) + layer["bias"], layer  # (B, H, W, C)


def residual_block(x, block, training):
    """Return relu(x + f(x)) (B, H', W', C') of x (B, H, W, C), where f is two convolutions, and the block."""
    block = dict(block)
    stride = block["conv1"]["w"].shape[3] // x.shape[3]  # where the channels double, height and width are halved
    h, block["conv1"] = batch_norm(conv(x, block["conv1"]["w"], stride), block["conv1"], training)  # (B, H', W', C')
    h, block["conv2"] = batch_norm(conv(jax.nn.relu(h), block["conv2"]["w"], stride=1), block["conv2"], training)
    if block.get("shortcut"):
        x, block["shortcut"] = batch_norm(conv(x, block["shortcut"]["w"], stride), block["shortcut"], training)
    return jax.nn.relu((x + h) if "shortcut" in block else h), block  # a shortcut of {} adds x as it is


@jax.jit
def forward(params, images, key=None, dropout=0.0):
    """Return the logits (B, K) for images (B, H, W), and the parameters, whose running statistics training moves on."""
    x = images[..., None]  # (B, H, W, 1)
    x, stem = batch_norm(conv(x, params["stem"]["w"], stride=2), params["stem"], key is not None)  # (B, H, W, C)
    x, blocks = jax.nn.relu(x), []
    for block in params["blocks"]:
        x, block = residual_block(x, block, key is not None)  # (B, H, W, C)
        blocks.append(block)
    x = x.mean((1, 2))  # (B, D): global average pooling, the mean of each feature map
    if key is not None:  # in training
        x = x * jax.random.bernoulli(key, 1 - dropout, x.shape) / (1 - dropout)  # (B, D), of the same mean
    return x @ params["head"]["w"] + params["head"]["b"], params | {"stem": stem, "blocks": blocks}


def loss_fn(logits, y):
    """Return the mean negative log likelihood () of the classes y (B,) under the softmax of the logits (B, K)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()  # ()


def make_optimizer(config):
    """Return the optax optimizer of a --optimizer flag, with its schedule."""
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    momentum = partial(optax.sgd, momentum=0.9)
    return {"adam": optax.adam, "momentum": momentum, "sgd": optax.sgd}[config.optimizer](schedule)


@partial(jax.jit, static_argnames="optimizer")
def train_step(params, opt_state, x, y, optimizer, key, dropout):
    """Return the parameters and the optimizer's state after one update, and the loss () before it."""

    def loss_and_params(params):
        logits, params = forward(params, x, key, dropout)  # (B, K)
        return loss_fn(logits, y), params

    (loss, moved), grads = jax.value_and_grad(loss_and_params, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(moved, updates), opt_state, loss


def evaluate(params, x, y):
    """Return the metrics of the model on the samples x, y, by name."""
    logits, _ = forward(params, x)  # (N, K)
    assert logits.shape[:-1] == y.shape  # y of shape (N, 1) would broadcast in the accuracy, without an error
    return {"loss": loss_fn(logits, y).item(), "accuracy": (logits.argmax(1) == y).sum().item() / len(y)}


def train(config, seed, run, x, y, x_test, y_test):
    """Train a new model; return its parameters and what was measured of it on the test set at the end."""
    rng = np.random.default_rng(seed)
    minibatches = ((x[index], y[index]) for index in batches(rng, len(x), config.batch_size))
    params_key, dropout_key = jax.random.split(jax.random.key(seed))
    params = init_params(params_key, config)
    optimizer = make_optimizer(config)
    opt_state = optimizer.init(params)
    for step, (x_batch, y_batch) in zip(run.steps(config.steps), minibatches):  # (B, H, W), (B,)
        if step % config.eval_every == 0:
            run.record(step, "test", **evaluate(params, x_test, y_test))
        key = jax.random.fold_in(dropout_key, step)  # other features are dropped at every step
        params, opt_state, loss = train_step(params, opt_state, x_batch, y_batch, optimizer, key, config.dropout)
        run.record(step, "train", loss=loss.item())
    test = evaluate(params, x_test, y_test)
    run.record(step + 1, "test", **test)
    return params, test


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
