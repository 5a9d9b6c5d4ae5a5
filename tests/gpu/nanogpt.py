"""Exercise 16 on a GPU: beside nanoGPT's own train.py in turn, preset best on five seeds, and candidates for best.

    python tests/gpu/nanogpt.py --checkout path/to/nanoGPT

Prints the tables of the exercise's README. Nothing else should run on the machine; of packages it needs those of
pyproject.toml without JAX, and torch may be another version. `--tables peer` is the first table alone. `--dry-run`
makes three steps of everything, also on a CPU and without nanoGPT, to see that it works.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from common.program import clean_exit

from helpers import machine
from peer_nanogpt import HEAD, least_statistic, ours, prepare, row, their_loss, theirs

CANDIDATES = (  # flags beside --preset best, which has dropout 0.4 and 3,000 steps
    "",
    "--dropout 0.2",
    "--dropout 0.3",
    "--dropout 0.5",
    "--dropout 0.5 --steps 4500",
    "--steps 2000",
    "--steps 4500",
    "--learning-rate 0.002",
    "--learning-rate 0.0005",
    "--weight-decay 1",
    "--dropout 0.3 --weight-decay 1",
    "--layers 4",
    "--channels 288",
)


@dataclass
class Config:
    checkout: Path | None = None  # folder of a nanoGPT checkout
    tables: tuple[Literal["peer", "best", "candidates"], ...] = ("peer", "best", "candidates")  # tables to make
    rounds: int = 3  # runs of each of the two programs
    seeds: int = 5  # runs of preset best
    candidate_seeds: int = 1  # runs of each candidate
    dry_run: bool = False  # only three steps of everything


def peer(config, dry):
    """Print a row for each run of preset nanogpt and of nanoGPT, in turn, and nanoGPT's statistic of ours."""
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        copy = prepare(config.checkout, Path(folder)) if config.checkout else None
        for seed in range(config.rounds):
            seen = ours(["--preset", "nanogpt", "--seed", str(seed), *dry])
            print(f"{row('exercise 16, nanogpt', seen)}\n{seen['speed']}", flush=True)
            if copy:
                print(row("nanoGPT", theirs(copy, [], 0.0, seed)), flush=True)
                print(f"loss of its checkpoint on the whole validation set: {their_loss(copy):.4f}", flush=True)
    statistic = least_statistic(["--preset", "nanogpt", *dry], 2 if dry else 200)
    print(f"nanoGPT's statistic of preset nanogpt, seed 0, not timed: {statistic:.4f}\n")


def many(name, flags, seeds):
    """Print the last and the least loss and the seconds, mean ± standard deviation over seeds."""
    runs = [ours([*flags, "--seed", str(seed)]) for seed in range(seeds)]
    columns = (
        [run["losses"][-1] for run in runs],
        [min(run["losses"]) for run in runs],
        [run["seconds"] for run in runs],
    )
    means = [f"{np.mean(values):.4f} ± {np.std(values, ddof=seeds > 1):.4f}" for values in columns]
    print(f"| {name} | {' | '.join(means)} |", flush=True)


def main(config: Config) -> None:
    dry = ["--dry-run", "--channels", "24", "--layers", "1", "--batch-size", "4"] if config.dry_run else []
    print(machine())
    if "peer" in config.tables:
        peer(config, dry)
    head = "| | last loss | least loss, chosen by validation | seconds in total |\n|---|---|---|---|"
    if "best" in config.tables:
        print(head)
        many("best", ["--preset", "best", *dry], config.seeds)
    if "candidates" in config.tables:
        print(head)
        for flags in CANDIDATES[: 2 if dry else None]:
            many(flags or "best", ["--preset", "best", *flags.split(), *dry], config.candidate_seeds)


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
