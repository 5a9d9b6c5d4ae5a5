"""Run exercises in full, as a user does, and print the tables in their READMEs.

    python tests/bench/reference.py 1 2 3 --seeds 3 --pictures

One process per run, and nothing else at the same time. `seconds` is the whole process, imports and pictures included.
`--pictures` puts those of seed 0 into the exercise's folder, where its README shows them.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
from helpers import train_py


@dataclass
class Config:
    exercises: tyro.conf.Positional[tuple[int, ...]]  # numbers of the exercises
    seeds: int = 3  # runs of each, with seeds 0, 1, …
    flags: str = ""  # more flags for every run, as "flag=value flag=value"
    pictures: bool = False  # copy the pictures of seed 0 into the folders


def main(config: Config) -> None:
    flags = ["--" + flag for flag in config.flags.split()]
    for number in config.exercises:
        runs = []
        for seed in range(config.seeds):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out"
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, train_py(number), "--seed", str(seed), "--out", out, *flags],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                seconds = time.perf_counter() - start
                result = json.loads((out / "result.json").read_text())
                runs.append(result["baselines"] | result["metrics"] | {"seconds": seconds})
                if config.pictures and seed == 0:
                    for picture in out.glob("*.png"):
                        shutil.copy(picture, train_py(number).parent)
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        print(
            f"\n{' '.join([result['exercise'], *flags])}, seeds 0 to {config.seeds - 1}; {result['device']}; {versions}"
        )
        for name in runs[0]:
            values = np.array([run[name] for run in runs])
            print(f"| {name} | {values.mean():.6g} ± {values.std(ddof=config.seeds > 1):.2g} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
