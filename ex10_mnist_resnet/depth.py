"""What do shortcuts do: to the gradient, to training, or to the surface?

    python ex10_mnist_resnet/depth.py

Predicted: without shortcuts the first gradient grows towards the image with batch norm, and shrinks without; from 10 to
34 layers the training loss rises, where with them it falls (He et al. 2015, figure 1); with neither, 34 layers learn
nothing; and the surface is twice as uneven (Li et al. 2018, figure 1). Measured: small networks, MNIST. 95 CPU seconds.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.plotting import SAFE, panels
from common.program import check_config, clean_exit
from common.record import answer

import jax
import jax.numpy as jnp
import numpy as np
import train as ex10
import tyro

KINDS = {"residual": (True, True), "plain": (False, True)}  # with shortcuts or not, with batch norm or not
KINDS |= {"residual_no_norm": (True, False), "plain_no_norm": (False, False)}
BLOCKS = (4, 8, 16)  # residual blocks of each depth: 10, 18 and 34 layers
STILL = {"mean": 0.0, "var": 1.0}  # with these batch norm outside training changes nothing
ANGLES, RADII = np.linspace(0, 2 * np.pi, 21), np.linspace(0, 1, 13)  # a disc; at 1 the weights move by their length
POINTS = (RADII * np.stack([np.cos(ANGLES), np.sin(ANGLES)])[..., None]).astype(np.float32)  # (2, rays, radii)


@dataclass
class Config:
    steps: int = 300  # training steps
    batch_size: int = 16  # images per step, B
    seed: int = 0  # random seed
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self)


def new(seed, blocks, shortcuts):
    """Return a new network's parameters; those of its equal blocks are in one array (blocks, …) for each name."""
    params = ex10.init_params(jax.random.key(seed), ex10.Config(1, blocks, 8, shortcuts))  # one stage, 8 channels
    return params | {"blocks": jax.tree.map(lambda *arrays: jnp.stack(arrays), *params.pop("stages")[0])}


def loss_of(params, images, y, normed):
    """Return the loss () on images (B, H, W) of classes y (B,), with batch norm or without."""
    x, _ = ex10.conv_norm(images[..., None], params["stem"], STILL, 2, normed)  # (B, H', W', C)
    x, stats = jax.nn.relu(x), {"conv1": STILL, "conv2": STILL}  # a scan, so that 16 blocks compile as fast as one
    x, _ = jax.lax.scan(lambda x, w: (ex10.residual_block(x, w, stats, 1, normed)[0], None), x, params["blocks"])
    return ex10.loss_fn(x.mean((1, 2)) @ params["head"]["w"] + params["head"]["b"], y)  # ()


@partial(jax.jit, static_argnames=("normed", "optimizer"))
def fit(params, x, y, normed, optimizer):
    """Return params, trained on x (steps, B, H, W), the losses (steps,), and the first gradient's norms (blocks,)."""

    def step(state, batch):
        loss, grads = jax.value_and_grad(loss_of)(state[0], *batch, normed)
        updates, opt_state = optimizer.update(grads, state[1], state[0])
        norms = jnp.linalg.norm(grads["blocks"]["conv2"]["bias"], axis=1)  # (blocks,), at each block's end
        return (jax.tree.map(jnp.add, state[0], updates), opt_state), (loss, norms)

    (params, _), (losses, norms) = jax.lax.scan(step, (params, optimizer.init(params)), (x, y))
    return params, losses, norms[0]


def direction(rng, params):
    """Return a random direction in which each filter is as long as the network's own, and all else 0 (Li et al.)."""

    def move(path, leaf):
        drawn = rng.normal(size=leaf.shape).astype(np.float32) if path[-1].key == "w" else 0 * leaf
        axes = tuple(range(-min(leaf.ndim, 4), -1))  # a filter is (k, k, C) of (k, k, C, C'), a column of (C, K)
        own, random = ((array**2).sum(axes, keepdims=True) for array in (leaf, drawn))
        return drawn * jnp.sqrt(own / jnp.maximum(random, 1e-12))

    return jax.tree.map_with_path(move, params)


def surface(params, rng, x, y):
    """Return the losses (rays, radii) on x (B, H, W), y (B,) in a disc of the plane of two random directions."""
    one, other = direction(rng, params), direction(rng, params)

    def at(point):
        return loss_of(jax.tree.map(lambda w, a, b: w + point[0] * a + point[1] * b, params, one, other), x, y, True)

    return np.reshape(jax.lax.map(at, POINTS.reshape(2, -1).T), POINTS.shape[1:])


def uneven(losses):
    """Return the share of points from which the straight way to the middle rises somewhere: losses (rays, radii)."""
    return (np.minimum.accumulate(np.diff(losses[:-1]), axis=1) < 0).mean()  # the last ray is the first again


def draw(norms, losses, surfaces):
    """Return the picture: gradient over blocks, training loss over layers, the surfaces of the two deepest networks."""
    titles = "First gradient, 34 layers", "Training loss", "Surface: residual, 34", "Surface: plain, 34"
    figure, axes = panels(*titles, widths=(4.6, 4.6, 4, 5))
    layers = 2 + 2 * np.array(BLOCKS[: len(losses["plain"])])
    for color, kind in zip(SAFE, KINDS):
        axes[0].plot(np.arange(1, len(norms[kind]) + 1), norms[kind], "o-", color=color, markersize=3)
        axes[1].plot(layers, losses[kind], "o-", color=color, label=kind.replace("_", " "))
    axes[0].set(yscale="log", xlabel="residual block, from the image on", ylabel="norm at the block's end")
    axes[1].set(xlabel="layers", ylabel="mean loss of the last 50 steps", xticks=layers)
    axes[1].legend(frameon=False)
    for ax, values in zip(axes[2:], surfaces.values()):
        filled = ax.contourf(*POINTS, values, np.arange(0.6, 3.7, 0.2), extend="both")
        ax.set(aspect="equal", xlabel="one random direction", ylabel="another", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    figure.colorbar(filled, ax=axes[3], label="loss", format="%.1f")
    return figure


def main(config: Config) -> dict[str, float]:
    x, y, _, _ = ex10.make_data(config)
    x = x.reshape(len(x), 14, 2, 14, 2).mean((2, 4))  # (N, H, W): a quarter of the pixels
    steps, depths = (3, BLOCKS[:1]) if config.dry_run else (config.steps, BLOCKS)
    rng = np.random.default_rng(config.seed)
    index = rng.integers(len(x), size=(steps, config.batch_size))  # (steps, B)
    optimizer = ex10.make_optimizer(ex10.Config(steps=steps, learning_rate=0.01, weight_decay=0.0))
    losses, norms, surfaces = {kind: [] for kind in KINDS}, {}, {}
    for kind, (shortcuts, normed) in KINDS.items():
        for blocks in depths:
            params = new(config.seed, blocks, shortcuts)
            params, values, norms[kind] = fit(params, x[index], y[index], normed, optimizer)
            losses[kind].append(values[-50:].mean().item())
        if normed:
            surfaces[kind] = surface(params, rng, x[:128], y[:128])
    return answer(
        config,
        draw(norms, losses, surfaces),
        gradient_plain=(norms["plain"][0] / norms["plain"][-1], 5, None),
        gradient_plain_no_norm=(norms["plain_no_norm"][0] / norms["plain_no_norm"][-1], None, 0.5),
        **{f"loss_{kind}": values[-1] for kind, values in losses.items() if kind != "plain_no_norm"},
        loss_plain_no_norm=(losses["plain_no_norm"][-1], 2.29, None),
        deeper_residual=(losses["residual"][-1] - losses["residual"][0], None, 0),
        deeper_plain=(losses["plain"][-1] - losses["plain"][0], 0, None),
        residual_over_plain=(losses["residual"][-1] / losses["plain"][-1], None, 0.85),
        uneven_residual=uneven(surfaces["residual"]),
        uneven_plain=uneven(surfaces["plain"]),
        uneven_residual_over_plain=(uneven(surfaces["residual"]) / max(uneven(surfaces["plain"]), 0.001), None, 0.5),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
