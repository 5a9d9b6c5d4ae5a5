"""What a training step of exercise 15 costs on a CPU, with max pooling as one function and as larger ones of slices.

    python tests/bench/pooling.py

The gradient of JAX's own pooling looks for the largest pixel of each window and scatters into it. The maximum of
shifted slices needs neither. Both are the exercise's own train_step, timed in turn, in CPU seconds.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
from common.program import clean_exit

from convolution import cpu_seconds
from helpers import load


@dataclass
class Config:
    steps: int = 5  # training steps of a round
    rounds: int = 3  # rounds, of which the best counts


def slices(x, *_):
    """Return 3 × 3 max pooling with stride 2: of x (B, H, W, C), with H and W halved."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    x = jnp.maximum(jnp.maximum(x[:, :-2:2], x[:, 1:-1:2]), x[:, 2::2])  # (B, H / 2, W + 2, C)
    return jnp.maximum(jnp.maximum(x[:, :, :-2:2], x[:, :, 1:-1:2]), x[:, :, 2::2])


def training(pool):
    """Return a function that makes n training steps of exercise 15 with this pooling and returns the last loss."""
    ex = load(15)
    config = ex.Config(steps=100)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(config.batch_size, config.train_size, config.train_size, 3)), jnp.float32)
    y = jax.nn.one_hot(rng.integers(10, size=config.batch_size), 10)
    optimizer = ex.make_optimizer(config)
    params = ex.init_params(jax.random.key(0), config, 10)
    key = jax.random.key(0)
    state = [params, ex.init_batch_stats(params), optimizer.init(params)]
    own, jax.lax.reduce_window = jax.lax.reduce_window, pool
    step = ex.train_step.lower(*state, x, y, optimizer, key, 0.0).compile()
    jax.lax.reduce_window = own

    def steps(n):
        for _ in range(n):
            *state[:], loss = step(*state, x, y, key, 0.0)
        return loss.item()

    return steps


def main(config: Config) -> None:
    programs = {"reduce_window": training(jax.lax.reduce_window), "the larger of slices": training(slices)}
    np.testing.assert_allclose(*(steps(2) for steps in programs.values()), atol=1e-3)
    best = cpu_seconds(programs, config.steps, config.rounds)
    print("| max pooling | CPU ms per step | ratio |\n|---|---|---|")
    for name, seconds in best.items():
        print(f"| {name} | {1000 * seconds:.0f} | {seconds / best['reduce_window']:.2f} |")


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
