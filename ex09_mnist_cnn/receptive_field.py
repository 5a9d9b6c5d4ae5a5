"""How much of the image does a unit see, and does pooling help?

    python ex09_mnist_cnn/receptive_field.py

Predicted: 5 and 13 pixels, as computed, and 90 % of the gradient lies within less than half of them; a digit that is
moved by 4 pixels costs a network that ends in a global mean 3 points at most, and one that ends in a dense layer 15 or
more, whether it has strides or pools. Measured: in exercise 9's network with half its channels, and in three others.
40 CPU seconds.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import jax
import jax.numpy as jnp
import numpy as np
import optax
import train as ex09
import tyro

KINDS = ("stride", "max pool", "mean pool", "global mean")
SHIFTS = (0, 1, 2, 4)  # how far to the right a digit is moved, in pixels


@dataclass
class Config:
    channels: int = 16  # output channels of the first convolution, C: half of the exercise's, to save time
    steps: int = 234  # training steps of each network, of 64 images; 4 times as many for the global mean
    seed: int = 0  # random seed
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # three steps, to check that everything works

    def __post_init__(self):
        check_config(self)


def computed(layers):
    """Return how many pixels a unit of the last of so many layers sees: each adds a kernel, in steps of those below."""
    field, jump = 1, 1
    for _ in range(layers):
        field, jump = field + (5 - 1) * jump, 2 * jump
    return field


def convolve(params, images, kind="stride"):
    """Return the feature maps (B, H, W, C) of the convolutions in params for images (B, H, W)."""
    x = images[..., None]  # (B, H, W, 1)
    for layer in params:
        x = jax.nn.relu(ex09.conv(x, layer["w"], stride=1 if "pool" in kind else 2) + layer["b"])  # (B, H, W, C)
        if "pool" in kind:
            start, join = (-jnp.inf, jax.lax.max) if kind == "max pool" else (0.0, jax.lax.add)
            x = jax.lax.reduce_window(x, start, join, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
            x = x if kind == "max pool" else x / 4
    return x


@partial(jax.jit, static_argnames="kind")
def forward(params, images, kind):
    """Return the logits (B, K) of a network of a kind; "stride" is exercise 9's, without dropout."""
    x = convolve(params[:-2], images, kind)  # (B, H, W, C)
    x = x.mean((1, 2)) if kind == "global mean" else x.reshape(len(x), -1)  # (B, D)
    x = jax.nn.relu(x @ params[-2]["w"] + params[-2]["b"])  # (B, hidden)
    return x @ params[-1]["w"] + params[-1]["b"]


def train(kind, x, y, config):
    """Return the parameters of a network of a kind after exercise 9's loop."""
    params = ex09.init_params(jax.random.key(config.seed), ex09.Config(channels=config.channels))
    steps = 3 if config.dry_run else config.steps * (4 if kind == "global mean" else 1)  # it learns more slowly
    if kind == "global mean":  # its dense layer has 49 times fewer inputs, one for each channel
        params[-2] = {"w": 7 * params[-2]["w"][: 2 * config.channels], "b": 7 * params[-2]["b"]}
    optimizer = ex09.make_optimizer(ex09.Config(steps=steps))
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state, x, y):
        grads = jax.grad(lambda params: ex09.loss_fn(forward(params, x, kind), y))(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    for _, index in zip(range(steps), ex09.batches(np.random.default_rng(config.seed), len(x), 64)):
        params, opt_state = step(params, opt_state, x[index], y[index])
    return params


def field(params, layers, images):
    """Return the mean size (H, W) of the gradient of a unit in the middle of a layer, over its channels and images."""
    middle = -(-28 // 2**layers) // 2
    gradient = jax.jacrev(lambda image: convolve(params[:layers], image[None])[0, middle, middle])  # (C, H, W)
    return np.asarray(abs(jax.vmap(gradient)(images)).mean((0, 1)))


def share_of_90(seen):
    """Return the share of a field's pixels that is enough for 90 % of it, the strongest first."""
    strongest = np.sort(seen[seen > 0])[::-1].cumsum()
    return (np.searchsorted(strongest, 0.9 * strongest[-1]) + 1) / len(strongest)


def draw(image, fields, accuracy):
    """Return the picture: both fields over a digit, and the accuracy over how far the digits are moved."""
    figure, (left, middle, right) = panels("What a unit sees", "How much of it counts", "Digits that are moved")
    left.imshow(image, cmap="gray_r")
    middle.imshow(fields[1], cmap="Oranges")
    for ax in (left, middle):
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    for color, seen, name in zip(SAFE, fields, ("layer 1", "layer 2")):
        rows, columns = (np.flatnonzero(seen.max(axis) > 0) for axis in (1, 0))
        (x1, x2), (y1, y2) = ((n[0] - 0.5, n[-1] + 0.5) for n in (columns, rows))
        left.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=color, linewidth=2)
        style = {"weight": "bold", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1}}
        label(left, x1, y1 - 1, f"{name}: {len(rows)} × {len(columns)}", color, (0, 0), **style)
    for color, (kind, values) in zip(SAFE, accuracy.items()):
        right.plot(SHIFTS, values, "o-", color=color, label=kind)
    right.legend(frameon=False)
    right.set(xlabel="moved to the right by (pixels)", ylabel="test accuracy (%)", xticks=SHIFTS)
    return figure


def main(config: Config) -> dict[str, float]:
    x, y, x_test, y_test = ex09.make_data(config)
    nets = {kind: train(kind, x, y, config) for kind in KINDS}
    x_test, y_test, accuracy = x_test[:2000], y_test[:2000], {}
    for kind, params in nets.items():
        said = [forward(params, np.roll(x_test, shift, 2), kind).argmax(1) for shift in SHIFTS]
        accuracy[kind] = [100 * (answers == y_test).mean().item() for answers in said]
    fields = [field(nets["stride"], layers, x_test[:20]) for layers in (1, 2)]
    lost = {kind: values[0] - values[-1] for kind, values in accuracy.items()}
    return answer(
        config,
        draw(x_test[0], fields, accuracy),
        pixels_layer_1=((fields[0].max(1) > 0).sum(), 5, 5),
        pixels_layer_2=((fields[1].max(1) > 0).sum(), 13, 13),
        share_for_90_percent=(share_of_90(fields[1]), None, 0.5),
        **{f"accuracy_{kind.replace(' ', '_')}": values[0] for kind, values in accuracy.items()},
        lost_stride=(lost["stride"], 15, None),
        lost_max_pool=(lost["max pool"], 15, None),
        lost_mean_pool=(lost["mean pool"], 15, None),
        lost_global_mean=(lost["global mean"], None, 3),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
