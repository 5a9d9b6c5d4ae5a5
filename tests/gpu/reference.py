"""Measure the exercises that are made for a GPU, on a machine that has one, and print the tables of their READMEs.

    python tests/gpu/reference.py 14 15

Nothing else should run on the machine. `--dry-run` makes a few steps of everything on a small network, also on a CPU,
to see that it works. On a CPU, `--tables changes --steps-per-call 2` measures 14's second table alone. How fast 15's
loader is by itself, tests/bench/loader.py says; here it decodes the 40 photographs of original size in
data/imagenet_sample/fullres, packed as ImageNet is, over and over, unless --data names others.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
from common.data import data_dir
from common.program import clean_exit, jax_device

from helpers import load, train_py

TARGETS = {  # of exercise 14: each target, and the flags for it
    "99.0 % in 0.2 s": "--steps 360 --eval-every 360 --rotate 0 --scale 0 --shear 0",
    "99.5 % in 1 s (the preset)": "",
    "99.65 % in 6 s": "--steps 6000 --eval-every 6000 --rotate 10 --scale 0.1 --shear 0.1 --shift 2",
}
SPEEDS = {  # of exercise 15, at its GPU preset: what is measured, and the flags for it
    "the device alone": "--dummy-data",
    "with photographs": "",
    "the device alone, at 160 pixels": "--dummy-data --train-size 160",
    "with photographs, at 160 pixels": "--train-size 160",
}
IMAGENET = 1_281_167  # training images
TABLES = {14: ("targets", "changes"), 15: ("speed",)}


@dataclass
class Config:
    exercises: tyro.conf.Positional[tuple[int, ...]]  # numbers of the exercises: 14, 15
    tables: tuple[Literal["targets", "changes", "speed"], ...] = ("targets", "changes", "speed")  # tables to make
    data: str = ""  # the photographs of "speed", as exercise 15's --data; without it, the sample's
    steps: int = 1000  # steps of each run of "speed": so many that batches prefetched at the start do not matter
    seeds: int = 20  # runs of each target
    seconds: float = 3.0  # shortest time, in seconds, that each change is measured in a round
    rounds: int = 3  # rounds of all changes in turn; the best of each counts
    steps_per_call: int = 468  # most steps per call; 468 are an epoch
    dry_run: bool = False  # a few steps of a small network


def targets(config):
    """Print for each target of exercise 14 the accuracy and the seconds, mean ± standard deviation over seeds."""
    print("| target | test accuracy | seconds of training | seconds of compiling |\n|---|---|---|---|")
    for name, flags in TARGETS.items():
        if config.dry_run:
            flags += " --dry-run --channels 2 --batch-size 100"
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, train_py(14), "--seeds", str(config.seeds), "--out", out, *flags.split()]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            result = json.loads((Path(out) / ("dry_run" if config.dry_run else "") / "result.json").read_text())
        accuracy, seconds = (np.array(result["finals"][key]) for key in ("test_accuracy", "train_seconds"))
        print(
            f"| {name} | {100 * accuracy.mean():.3f} ± {100 * accuracy.std(ddof=1):.3f} % "
            f"| {seconds.mean():.3f} ± {seconds.std(ddof=1):.3f} | {result['metrics']['compile_seconds']:.1f} |",
            flush=True,
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    print(f"\nseeds 0 to {config.seeds - 1}; {result['device']}; {versions}; commit {result['commit']}\n")


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


def loop_of_14(sizes, augment):
    """Return exercise 14's loop as a function of the call's number, with or without its augmentation."""
    ex = load(14)
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


def changes(config):
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


def link_photographs(folder):
    """Fill an image folder with links to the sample's photographs of original size, thirty to each."""
    photographs = sorted((data_dir() / "imagenet_sample" / "fullres").resolve().glob("*/*"))
    for split in ("train", "val"):
        (folder / split / "all").mkdir(parents=True)
        for i in range(30 * len(photographs)):
            path = photographs[i % len(photographs)]
            (folder / split / "all" / f"{i}{path.suffix}").symlink_to(path)


def speed(config):
    """Print the images per second of exercise 15, their share of those of the device alone, and hours."""
    print("| | images per second | of the device alone | 16 epochs of ImageNet | 90 epochs |\n|---|---|---|---|---|")
    alone = None
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        link_photographs(folder / "photographs")
        for name, flags in SPEEDS.items():
            flags = f"{flags} --data {config.data or folder / 'photographs'} --steps {config.steps}"
            flags += f" --eval-every {config.steps} --out {folder / 'out'}"
            if config.dry_run:
                flags += " --dry-run --depth 18 --channels 2 --batch-size 8 --size 32 --train-size 32 --workers 0"
            environment = os.environ | ({} if config.data else {"RAMPUP_DATA": str(folder)})
            command = [sys.executable, train_py(15), *flags.split()]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            result = json.loads((folder / "out" / ("dry_run" if config.dry_run else "") / "result.json").read_text())
            rate = result["metrics"]["images_per_second"]
            alone = rate if "--dummy-data" in flags else alone
            hours = [f"{epochs * IMAGENET / rate / 3600:.1f} h" for epochs in (16, 90)]
            print(f"| {name} | {rate:,.0f} | {rate / alone:.0%} | {' | '.join(hours)} |", flush=True)
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    print(f"\n{config.steps} steps; {result['device']}; {versions}; commit {result['commit']}\n")


def main(config: Config) -> None:
    if config.dry_run:
        config.seeds = 2
    for number in config.exercises:
        for table in TABLES[number]:
            if table in config.tables:
                {"targets": targets, "changes": changes, "speed": speed}[table](config)


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
