"""When is it worth starting from another task?

    python ex10_mnist_resnet/transfer.py

Predicted: where the task is the same and other people write, a network that has learnt MNIST is 8 points or more ahead
of a new one at five labels a class; where the classes are others (first 0 to 4, then 5 to 9) it is within 3 points of
one at ten labels a class, and its features alone, which no step changes, do worse. Measured: with UCI's digits, and
with MNIST's. 60 CPU seconds.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common import data
from common.plotting import SAFE, panels
from common.program import check_config, clean_exit
from common.record import answer

import jax
import jax.numpy as jnp
import numpy as np
import optax
import train as ex10
import tyro


@dataclass
class Config:
    channels: int = 16  # output channels of the first convolution, C
    steps_before: int = 300  # training steps on the first task
    steps: int = 150  # training steps on the second
    batch_size: int = 32  # images per step, B, drawn from those that have a label
    learning_rate: float = 0.01  # learning rate at the first step, of all of them
    seed: int = 0  # random seed
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self)


def make_people(config):
    """Return UCI's digits as MNIST has its own, images (N, H, W), and their classes (N,)."""
    images, labels = data.uci_digits(config.dry_run)  # (N, 8, 8) of 0 to 16, (N,)
    images = jax.image.resize(images / np.float32(16), (len(images), 20, 20), "linear")
    images = np.pad(np.asarray(images), ((0, 0), (4, 4), (4, 4)))  # (N, H, W)
    return (images - np.float32(0.1307)) / np.float32(0.3081), labels.astype(np.int32)


@cache  # one optimizer, and one compiled step, for all that take as many steps
def make_optimizer(steps, learning_rate):
    """Return exercise 10's optimizer for so many steps."""
    return ex10.make_optimizer(ex10.Config(steps=steps, learning_rate=learning_rate, weight_decay=0.0))


def new(config, seed):
    """Return the parameters and running statistics of a new network."""
    params = ex10.init_params(jax.random.key(seed), ex10.Config(channels=config.channels))
    return params, ex10.init_batch_stats(params)


def fit(params, batch_stats, x, y, steps, config):
    """Return params and batch_stats after exercise 10's loop on x (n, H, W) and y (n,), however few these are."""
    steps = 3 if config.dry_run else steps
    rng, key = np.random.default_rng(config.seed), jax.random.key(config.seed + 1000)
    optimizer = make_optimizer(steps, config.learning_rate)
    state = params, batch_stats, optimizer.init(params)
    for step in range(steps):
        index = rng.integers(len(x), size=config.batch_size)  # (B,)
        *state, _ = ex10.train_step(*state, x[index], y[index], optimizer, jax.random.fold_in(key, step), 0.3)
    return state[:2]


def features(params, batch_stats, x):
    """Return what goes into the head (n, D), for images x (n, H, W): the logits of a head that is the identity."""
    c = len(params["head"]["w"])
    return ex10.forward(params | {"head": {"w": jnp.eye(c), "b": jnp.zeros(c)}}, batch_stats, x)[0]


@jax.jit
def fit_head(head, found, y):
    """Return a head that has learnt the classes y (n,) from features (n, D): 200 steps of Adam on all of them."""
    optimizer = optax.adam(0.02)

    def step(state, _):
        head, opt_state = state
        grads = jax.grad(lambda head: ex10.loss_fn(found @ head["w"] + head["b"], y))(head)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(head, updates), opt_state), None

    return jax.lax.scan(step, (head, optimizer.init(head)), length=200)[0][0]


def compare(before, x, y, x_test, y_test, config, labels=(1, 2, 5, 10, 20)):
    """Return the test accuracies in per cent, from scratch, of frozen features and tuned, with k labels a class."""
    order = np.random.default_rng(config.seed).permutation(len(x))
    rows = np.stack([np.resize(order[y[order] == c], max(labels)) for c in np.unique(y)])  # (classes, most labels)
    found = features(*before, x[rows.ravel()]).reshape(*rows.shape, -1)
    kinds = {"scratch": {}, "frozen": {}, "tuned": {}}
    for k in labels:
        known, classes = x[rows[:, :k].ravel()], y[rows[:, :k].ravel()]
        head = fit_head(before[0]["head"], found[:, :k].reshape(len(known), -1), classes)
        nets = [
            fit(*new(config, config.seed + 1), known, classes, config.steps, config),
            (before[0] | {"head": head}, before[1]),
            fit(*before, known, classes, config.steps, config),
        ]
        for kind, net in zip(kinds, nets):
            kinds[kind][k] = 100 * ex10.evaluate(*net, x_test, y_test)["accuracy"]
    return kinds


def draw(moves):
    """Return the picture: accuracy over the labels a class, of each kind, one panel for each move."""
    figure, axes = panels("To other people", "To other classes: 0–4, then 5–9")
    for ax, kinds in zip(axes, moves):
        for color, (kind, values) in zip(SAFE, kinds.items()):
            ax.plot(values.keys(), values.values(), "o-", color=color, label=kind)
        ax.set(xlabel="labelled digits of each class", ylabel="test accuracy (%)", xticks=list(values))
        ax.legend(frameon=False)
    return figure


def main(config: Config) -> dict[str, float]:
    x, y, x_test, y_test = ex10.make_data(config)
    people, theirs = make_people(config)
    half, rest = np.random.default_rng(config.seed).permutation(len(people) // 2 * 2).reshape(2, -1)  # learnt, tested
    whole = fit(*new(config, config.seed), x, y, config.steps_before, config)
    no_labels = 100 * ex10.evaluate(*whole, people[rest], theirs[rest])["accuracy"]
    others = compare(whole, people[half], theirs[half], people[rest], theirs[rest], config)

    params, batch_stats = fit(*new(config, config.seed), x[y < 5], y[y < 5], config.steps_before, config)
    small = params | {"head": new(config, config.seed + 1)[0]["head"]}, batch_stats
    classes = compare(small, x[y >= 5], y[y >= 5], x_test[y_test >= 5][:2000], y_test[y_test >= 5][:2000], config)
    return answer(
        config,
        draw((others, classes)),
        people_no_labels=no_labels,
        **{f"people_{kind}_5": values[5] for kind, values in others.items()},
        people_gain_5=(others["tuned"][5] - others["scratch"][5], 8, None),
        **{f"classes_{kind}_10": values[10] for kind, values in classes.items()},
        classes_gain_10=(classes["tuned"][10] - classes["scratch"][10], -3, 3),
        classes_frozen_minus_scratch_10=(classes["frozen"][10] - classes["scratch"][10], None, 0),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
