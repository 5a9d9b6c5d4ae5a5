"""Draw the norm of the loss's gradient by depth, in new networks with and without shortcuts.

    python ex10_mnist_resnet/gradients.py

Writes gradients.png into out/, in half a minute on two CPU cores.
"""

from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from common.plotting import CLASSES, save
from common.program import check_config, clean_exit

import jax
import jax.numpy as jnp
import numpy as np
import train as ex10
import tyro
from matplotlib.figure import Figure

KINDS = {
    "with shortcuts, and 0 as the last scale of a block": (True, 0.0),
    "with shortcuts": (True, 1.0),
    "without shortcuts": (False, 1.0),
}


@dataclass
class Config:
    blocks: int = 16  # residual blocks of each of the two stages, with two convolutions each
    batch_size: int = 128  # images that the loss is the mean over, B
    seeds: int = 3  # networks of each kind, with seeds 0, 1, …
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


def draw(path, norms):
    """Draw the norms, an array (seeds, blocks) for each kind of network, over the number of the block."""
    figure = Figure(figsize=(7, 5), dpi=120, layout="constrained")
    ax = figure.subplots()
    for color, (name, values) in zip(CLASSES, norms.items()):
        ax.plot(np.arange(1, values.shape[1] + 1), values.T, color=color, linewidth=1.2)
        ax.plot([], [], color=color, label=name)
    ax.set(
        yscale="log",
        xlabel="residual block, counted from the image",
        ylabel="norm of the gradient with respect to its input",
        title=f"new networks of {values.shape[1]} blocks, {len(values)} seeds each",
    )
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    save(figure, path)


def main(config: Config) -> dict[str, np.ndarray]:
    x, y, _, _ = ex10.make_data(config)
    x, y = x[: config.batch_size], y[: config.batch_size]  # (B, H, W), (B,)
    norms = {}
    for name, (shortcuts, scale) in KINDS.items():
        rows = []
        for seed in range(config.seeds):
            params = ex10.init_params(jax.random.key(seed), ex10.Config(blocks=config.blocks, shortcuts=shortcuts))
            for block in chain.from_iterable(params["stages"]):
                block["conv2"]["scale"] = jnp.full_like(block["conv2"]["scale"], scale)
            rows.append(gradient_norms(params, x, y))
        norms[name] = np.array(rows)  # (seeds, blocks)
        ratio = norms[name][:, 0] / norms[name][:, -1]  # (seeds,)
        print(f"{name}: the first block's over the last block's, by seed: {', '.join(f'{r:.3g}' for r in ratio)}")
    draw(config.out / "gradients.png", norms)
    print(f"picture: {config.out / 'gradients.png'}")
    return norms


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
