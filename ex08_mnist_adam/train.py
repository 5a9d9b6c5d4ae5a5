"""Exercise 8: "Use the optax library & the Adam optimizer."

Changes from ex07:
- optax is a JAX library, so the same network is now written in JAX: the parameters are a list of dicts, the model is a
  function of parameters and images, and jax.jit compiles it.
- Adam instead of plain SGD: each weight has a step size of its own.
- The learning rate falls to 0 along a half cosine, so that the last steps settle instead of jumping about.

    python ex08_mnist_adam/train.py

98.5 % of the test digits right, in twelve seconds on two CPU cores.
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
import numpy as np
import optax
import tyro


@dataclass
class Config:
    layers: int = 3  # number of linear layers
    hidden: int = 256  # width of each hidden layer, C
    batch_size: int = 128  # batch size: images per step, B
    steps: int = 9_360  # training steps (468 are an epoch: 20 epochs)
    optimizer: Literal["adam", "momentum", "sgd"] = "adam"  # which optimizer to use
    learning_rate: float = 0.002  # learning rate at the first step; it decays to 0 along a half cosine
    eval_every: int = 100  # steps between two evaluations on the test set
    seed: int = 0  # random seed
    device: Literal["auto", "cpu", "cuda"] = "auto"  # device to compute on; auto is a GPU where there is one
    out: Path = Path(__file__).parent / "out"  # folder for the files that the run writes
    dry_run: bool = False  # only three steps, to check that everything works

    def __post_init__(self):
        check_config(self)


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


def init_params(key, config):
    """Return a weight (fan_in, fan_out) and a bias (fan_out,) for each layer, drawn as nn.Linear draws them."""
    widths = [784] + [config.hidden] * (config.layers - 1) + [10]
    params = []
    for fan_in, fan_out in pairwise(widths):
        key, w_key, b_key = jax.random.split(key, 3)  # a key gives the same numbers every time: each is used once
        bound = fan_in**-0.5
        w = jax.random.uniform(w_key, (fan_in, fan_out), minval=-bound, maxval=bound)  # (fan_in, fan_out)
        b = jax.random.uniform(b_key, (fan_out,), minval=-bound, maxval=bound)  # (fan_out,)
        params.append({"w": w, "b": b})
    return params


@jax.jit
def forward(params, images):
    """Return the logits (B, K) for images (B, H, W)."""
    x = images.reshape(len(images), -1)  # (B, D)
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])  # (B, C)
    return x @ params[-1]["w"] + params[-1]["b"]  # (B, K)


def loss_fn(logits, y):
    """Return the mean negative log likelihood () of the classes y (B,) under the softmax of the logits (B, K)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()  # ()


def make_optimizer(config):
    """Return the optax optimizer of a --optimizer flag, with its schedule."""
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizers = {"adam": optax.adam, "momentum": partial(optax.sgd, momentum=0.9), "sgd": optax.sgd}
    return optimizers[config.optimizer](schedule)


@partial(jax.jit, static_argnames="optimizer")
def train_step(params, opt_state, x, y, optimizer):
    """Return the parameters and the optimizer's state after one update, and the loss () before it."""
    loss, grads = jax.value_and_grad(lambda params: loss_fn(forward(params, x), y))(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


def evaluate(params, x, y):
    """Return the metrics of the model on the samples x, y, by name."""
    logits = forward(params, x)  # (N, K)
    assert logits.shape[:-1] == y.shape  # y of shape (N, 1) would broadcast in the accuracy, without an error
    return {"loss": loss_fn(logits, y).item(), "accuracy": (logits.argmax(1) == y).sum().item() / len(y)}


def main(config: Config) -> dict[str, float]:
    rng = np.random.default_rng(config.seed)
    device = jax_device(config.device)
    jax.config.update("jax_default_device", device)
    x, y, x_test, y_test = make_data(config)
    if config.batch_size > len(x):
        raise UserError(f"--batch-size {config.batch_size} is larger than the training set ({len(x)} images)")
    print(f"data: training {tuple(x.shape)}, test {tuple(x_test.shape)}; images of each class {np.bincount(y)}")

    minibatches = ((x[index], y[index]) for index in batches(rng, len(x), config.batch_size))
    params = init_params(jax.random.key(config.seed), config)
    optimizer = make_optimizer(config)
    opt_state = optimizer.init(params)
    with Run(config, {"ln 10": np.log(10)}, device.device_kind) as run:
        for step, (x_batch, y_batch) in zip(run.steps(config.steps), minibatches):  # (B, H, W), (B,)
            if step % config.eval_every == 0:
                run.record(step, "test", **evaluate(params, x_test, y_test))
            params, opt_state, loss = train_step(params, opt_state, x_batch, y_batch, optimizer)
            run.record(step, "train", loss=loss.item())
        test = evaluate(params, x_test, y_test)
        run.record(step + 1, "test", **test)
        metrics = run.finish(test_loss=test["loss"], test_accuracy=test["accuracy"])
    plot_loss(run.out, "nats per image", log="y")
    return metrics


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
