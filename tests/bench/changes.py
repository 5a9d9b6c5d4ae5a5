"""What each change of exercise 14 buys, one after the other, in images per second of training.

    python tests/bench/changes.py --steps-per-call 2 --rounds 2

is for a CPU, where a scan is slow; on a GPU leave the flags away. Nothing else should run on the machine. All rows are
timed in turn, and the best of the rounds counts. `--dry-run` makes a few steps of a small network.
"""

import sys
import time
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
from common.program import clean_exit, jax_device

from convolution import patches
from helpers import load


@dataclass
class Config:
    seconds: float = 3.0  # shortest time, in seconds, that each change is measured in a round
    rounds: int = 3  # rounds of all changes in turn; the best of each counts
    steps_per_call: int = 468  # most steps per call; 468 are an epoch
    dry_run: bool = False  # a few steps of a small network


def images_per_second(step_of, calls, images, seconds):
    """Return how many images per second a loop trains on, timed for at least so many seconds.

    `step_of(number)` makes call `number`, of so many `images`, and returns its losses, maybe before they are computed;
    they are read after the next call has started. `calls` yields the numbers, none of them twice.
    """
    start, made, losses = time.perf_counter(), 1, step_of(next(calls))
    while time.perf_counter() - start < seconds:
        made, losses, before = made + 1, step_of(next(calls)), losses
        np.asarray(before)
    np.asarray(losses)
    return made * images / (time.perf_counter() - start)


def loop_of_10(config, sizes, on_device):
    """Return exercise 10's loop as a function of the step's number: a batch, a step, and the wait for its loss."""
    ten = load(10)
    x, y, _, _ = ten.make_data(ten.Config(dry_run=config.dry_run))
    if on_device:
        x, y = jnp.asarray(x), jnp.asarray(y)
    optimizer = ten.make_optimizer(sizes)
    params = ten.init_params(jax.random.key(0), sizes)
    state = [params, ten.init_batch_stats(params), optimizer.init(params)]
    indices = ten.batches(np.random.default_rng(0), len(x), sizes.batch_size)

    def step_of(call):
        index = next(indices)
        key = jax.random.fold_in(jax.random.key(0), call)
        *state[:], loss = ten.train_step(*state, x[index], y[index], optimizer, key, sizes.dropout)
        return loss.item()

    return step_of


def loop_of_14(sizes, augment, stem_as_patches=False):
    """Return exercise 14's loop as a function of the call's number, with or without its augmentation.

    The stem's convolution reads one channel, which tensor cores cannot share out; as patches that is 25.
    """
    ex = load(14)
    if stem_as_patches:
        conv = ex.conv
        ex.conv = lambda x, w, stride: (patches if x.shape[-1] == 1 else conv)(x, w.astype(x.dtype), stride)
    if not augment:
        ex.augment = lambda key, images, config: images
    x, y, _, _ = ex.make_data(sizes)
    program = ex.compile_steps(sizes, x, y)
    params = ex.init_params(jax.random.key(0), sizes)
    state = [params, ex.init_batch_stats(params), ex.make_optimizer(sizes).init(params)]
    indices = ex.batches(np.random.default_rng(0), len(x), sizes.batch_size)

    def step_of(call):
        index = np.stack(list(islice(indices, sizes.steps_per_call)))
        *state[:], losses = program(*state, x, y, index, call * sizes.steps_per_call, jax.random.key(0))
        return losses

    return step_of


def main(config: Config) -> None:
    """Print what each change of exercise 14 bought, in images per second of training."""
    device = jax_device("auto")
    one = load(14).Config()
    if config.dry_run:
        one = replace(one, channels=2, batch_size=100, dry_run=True)
        config = replace(config, seconds=0.01, rounds=1, steps_per_call=2)
    epoch = replace(one, steps_per_call=config.steps_per_call)
    rough = replace(epoch, precision="bfloat16")
    large = replace(rough, batch_size=500, steps_per_call=min(120, config.steps_per_call))
    rows = {
        "exercise 10: batches from the host, each loss awaited": (one, loop_of_10(config, one, on_device=False)),
        "data on the device": (one, loop_of_10(config, one, on_device=True)),
        "one program per step, losses read late": (one, loop_of_14(one, augment=False)),
        "augmentation": (one, loop_of_14(one, augment=True)),
        "one call per epoch": (epoch, loop_of_14(epoch, augment=True)),
        "bfloat16": (rough, loop_of_14(rough, augment=True)),
        "batches of 500": (large, loop_of_14(large, augment=True)),
        "the stem as patches and a matrix product": (large, loop_of_14(large, augment=True, stem_as_patches=True)),
    }
    rates, calls = {name: [] for name in rows}, count()
    for turn in range(1 + config.rounds):
        for name, (sizes, step_of) in rows.items():
            images = sizes.steps_per_call * sizes.batch_size
            rates[name].append(images_per_second(step_of, calls, images, config.seconds if turn else 0))
    print("| one change after the other | images per second | ratio |\n|---|---|---|")
    before = None
    for name, (_, *rest) in rates.items():  # the first call compiles
        print(f"| {name} | {max(rest):,.0f} | {'' if before is None else f'{max(rest) / before:.2f}'} |", flush=True)
        before = max(rest)
    limit = f"{config.steps_per_call} steps per call at most"
    print(f"\nbest of {config.rounds} rounds in turn; {limit}; {device.device_kind}; jax {jax.__version__}\n")


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
