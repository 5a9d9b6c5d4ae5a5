"""Does the gradient reach the first layer?

    python ex10_mnist_resnet/gradients.py

Predicted: past 32 blocks almost unchanged, if they have shortcuts and start as those alone; without shortcuts a hundred
times larger or smaller. Measured: in new networks. 35 CPU seconds.
"""

from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import jax
import jax.numpy as jnp
import numpy as np
import train as ex10
import tyro

KINDS = {
    "with shortcuts, and 0 as the last scale of a block": (True, 0.0),
    "with shortcuts": (True, 1.0),
    "without shortcuts": (False, 1.0),
}


@dataclass
class Config:
    blocks: int = 16  # residual blocks of each of the two stages, with two convolutions each
    batch_size: int = 128  # images that the loss is the mean over, B
    seed: int = 0  # random seed of the weights
    out: Path = Path(__file__).parent / "out"  # folder for the picture
    dry_run: bool = False  # on made-up images, to see that everything works

    def __post_init__(self):
        check_config(self)


def gradient_norms(params, images, y):
    """Return the norms of the loss's gradient with respect to what enters each block, from the first block to the last.

    `images` (B, H, W) and their classes `y` (B,) go through the network of `params` in training mode. Then the gradient
    goes back through one block at a time: jax.vjp returns what a block makes of x, and the function that takes the
    gradient with respect to that to the gradient with respect to x.
    """
    batch_stats = ex10.init_batch_stats(params)
    x, _ = ex10.conv_norm(images[..., None], params["stem"], batch_stats["stem"], stride=2, training=True)
    x, pullbacks = jax.nn.relu(x), []  # (B, H, W, C)
    for i, blocks in enumerate(params["stages"]):
        for j, block in enumerate(blocks):
            stats, stride = batch_stats["stages"][i][j], 2 if i > 0 and j == 0 else 1  # as in ex10.forward
            apply = partial(ex10.residual_block, block=block, stats=stats, stride=stride, training=True)
            x, pullback, _ = jax.vjp(apply, x, has_aux=True)
            pullbacks.append(pullback)
    head = params["head"]
    grad = jax.grad(lambda x: ex10.loss_fn(x.mean((1, 2)) @ head["w"] + head["b"], y))(x)  # (B, H, W, C)
    norms = []
    for pullback in reversed(pullbacks):
        (grad,) = pullback(grad)  # (B, H, W, C)
        norms.append(jnp.linalg.norm(grad).item())
    return norms[::-1]


def draw(norms):
    """Return the picture: the norms (blocks,) of each kind of network over the number of the block."""
    figure, (ax,) = panels(
        "Norm of the loss's gradient by what enters a block, in new networks", widths=(7.5,), height=5
    )
    for color, (name, values) in zip(SAFE, norms.items()):
        ax.plot(np.arange(1, len(values) + 1), values, "o-", color=color, markersize=3)
        label(ax, 1 + len(values) // 5, values[len(values) // 5], name, color, (4, 10))
    last = norms[next(iter(norms))][-1]
    ax.axhline(last, color="0.5", linestyle=":")
    label(ax, 1, last, "predicted with zero scales: the last block's norm, all along", "0.3", (0, -9))
    ax.set(yscale="log", xlabel="residual block, counted from the image", ylabel="norm of the gradient")
    return figure


def main(config: Config) -> dict[str, float]:
    x, y, _, _ = ex10.make_data(config)
    x, y = x[: config.batch_size], y[: config.batch_size]  # (B, H, W), (B,)
    norms, ratios = {}, []
    for name, (shortcuts, scale) in KINDS.items():
        blocks = min(config.blocks, 2) if config.dry_run else config.blocks
        params = ex10.init_params(jax.random.key(config.seed), ex10.Config(blocks=blocks, shortcuts=shortcuts))
        for block in chain.from_iterable(params["stages"]):
            block["conv2"]["scale"] = jnp.full_like(block["conv2"]["scale"], scale)
        norms[name] = np.array(gradient_norms(params, x, y))  # (blocks,)
        ratios.append(norms[name][0] / norms[name][-1])  # the first block's over the last block's
    plain = max(ratios[2], 1 / ratios[2])
    return answer(
        config,
        draw(norms),
        first_over_last_with_zero_scales=(ratios[0], 0.5, 2),
        first_over_last_with_scales_of_1=ratios[1],
        first_over_last_without_shortcuts_or_inverse=(plain, 100, None),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
