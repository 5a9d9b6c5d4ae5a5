"""Where in the network does a digit become readable?

    python ex09_mnist_cnn/layers.py

Predicted: with ten labels a class, the nearest neighbour is right for 94 % or more by the dense layer's features; the
first convolution's are no better than pixels; and in a network that was not trained all are within 5 points of pixels.
Measured: on 2,000 test digits, by what comes out of each layer of exercise 9's network with half its channels. 30 CPU
seconds.
"""

from dataclasses import dataclass
from pathlib import Path

from common.plotting import CLASSES, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import jax
import jax.numpy as jnp
import numpy as np
import train as ex09
import tyro

LAYERS = ("pixels", "conv 1", "conv 2", "dense")


@dataclass
class Config:
    channels: int = 16  # output channels of the first convolution, C: half of the exercise's, to save time
    steps: int = 936  # training steps (468 are an epoch)
    labels: int = 10  # labelled digits of each class
    draws: int = 5  # how often these are drawn, for a mean
    seed: int = 0  # random seed
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # three steps, to check that everything works

    def __post_init__(self):
        check_config(self)


def features(params, images):
    """Return what comes out of each layer but the last, for images (n, H, W): arrays (n, D) by the layer's name."""
    x, found = images[..., None], [images]
    for layer in params[:-2]:
        x = jax.nn.relu(ex09.conv(x, layer["w"], stride=2) + layer["b"])  # (n, H, W, C)
        found.append(x)
    found.append(jax.nn.relu(x.reshape(len(x), -1) @ params[-2]["w"] + params[-2]["b"]))  # (n, hidden)
    return {name: np.asarray(x).reshape(len(x), -1) for name, x in zip(LAYERS, found)}


def train(params, key, x, y, config):
    """Return the parameters after exercise 9's loop."""
    steps = 3 if config.dry_run else config.steps
    optimizer = ex09.make_optimizer(ex09.Config(steps=steps))
    opt_state = optimizer.init(params)
    for step, index in zip(range(steps), ex09.batches(np.random.default_rng(config.seed), len(x), 128)):
        key_of_step = jax.random.fold_in(key, step)
        params, opt_state, _ = ex09.train_step(params, opt_state, x[index], y[index], optimizer, key_of_step, 0.5)
    return params


def nearest(known, y, new):
    """Return the classes (n,) of the known (m, D), with classes y (m,), that are nearest to each new (n, D)."""
    return y[((known**2).sum(1) - 2 * new @ known.T).argmin(1)]


def readable(found, found_test, y, y_test, config):
    """Return the accuracies (draws, 2) of the nearest labelled digit and the nearest class mean, in per cent."""
    rng, rows = np.random.default_rng(config.seed), []
    for _ in range(config.draws):
        index = np.concatenate([rng.choice(np.flatnonzero(y == k), config.labels) for k in range(10)])  # (10 · labels,)
        means = found[index].reshape(10, config.labels, -1).mean(1)  # (10, D)
        answers = nearest(found[index], y[index], found_test), nearest(means, np.arange(10), found_test)
        rows.append([100 * (said == y_test).mean() for said in answers])
    return np.array(rows)


def axes_of(found):
    """Return the places (n, 2) of features (n, D) along the two directions in which they vary most."""
    centred = found - found.mean(0)
    _, _, directions = np.linalg.svd(centred[:300], full_matrices=False)
    return centred @ directions[:2].T


def draw(found, y, accuracy):
    """Return the picture: the digits along each layer's two main axes."""
    figure, axes = panels(*(f"{name}: {accuracy[name]:.1f} %" for name in LAYERS), widths=(3.4,) * 4, height=3.7)
    for ax, name in zip(axes, LAYERS):
        places = axes_of(found[name])
        ax.scatter(*places.T, s=3, c=[CLASSES[k] for k in y])
        ax.set(xticks=[], yticks=[])
        for k in set(y.tolist()):
            middle = np.median(places[y == k], 0)
            label(
                ax,
                *middle,
                str(k),
                CLASSES[k],
                (0, 0),
                weight="bold",
                bbox={"facecolor": "white", "pad": 1, "alpha": 0.7},
            )
    return figure


def main(config: Config) -> dict[str, float]:
    x, y, x_test, y_test = ex09.make_data(config)
    x_test, y_test = x_test[:2000], y_test[:2000]
    params_key, key = jax.random.split(jax.random.key(config.seed))
    new = ex09.init_params(params_key, ex09.Config(channels=config.channels))
    accuracy, away, means = {}, {}, {}
    for params in (new, train(jax.tree.map(jnp.copy, new), key, x, y, config)):
        found, found_test = features(params, x[:2000]), features(params, x_test)
        rows = {name: readable(found[name], found_test[name], y[:2000], y_test, config) for name in LAYERS}
        if params is new:
            away = {name: (rows[name] - rows["pixels"]).mean(0)[0] for name in LAYERS[1:]}
        accuracy, means = ({name: rows[name].mean(0)[i] for name in LAYERS} for i in (0, 1))
    return answer(
        config,
        draw({name: values[:1000] for name, values in found_test.items()}, y_test[:1000], accuracy),
        pixels=accuracy["pixels"],
        conv_1=accuracy["conv 1"],
        conv_2=accuracy["conv 2"],
        dense=(accuracy["dense"], 94, None),
        conv_1_minus_pixels=(accuracy["conv 1"] - accuracy["pixels"], None, 0),
        untrained_away_from_pixels=(max(map(abs, away.values())), None, 5),
        untrained_conv_1_minus_pixels=away["conv 1"],
        untrained_conv_2_minus_pixels=away["conv 2"],
        untrained_dense_minus_pixels=away["dense"],
        mean_of_pixels=means["pixels"],
        mean_of_dense=means["dense"],
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
