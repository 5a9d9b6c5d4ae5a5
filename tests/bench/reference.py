"""Run exercises in full, as a user does, and print the tables in their READMEs.

    python tests/bench/reference.py 1 2 3 --seeds 3 --pictures
    python tests/bench/reference.py 8 --seeds 10 --first-seed 10
    python tests/bench/reference.py 5 --questions by_hand

One process per run, and nothing else at the same time. Each run is shown when it ends, then the mean ± standard
deviation of all. `seconds` is the whole process, imports and pictures included; a question has CPU seconds. Seeds that
settings were chosen with should not be among those that are reported: `--first-seed`. `--pictures` puts those of the
first seed into the exercise's folder, where its README shows them, and its curves where `rampup review` finds them.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common.cli import chart
from common.cli.folder import read_metrics
from common.cli.questions import questions
from common.record import in_words

import numpy as np
import tyro
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from helpers import train_py


@dataclass
class Config:
    exercises: tyro.conf.Positional[tuple[int, ...]]  # numbers of the exercises
    seeds: int = 3  # runs of each
    first_seed: int = 0  # seed of the first; the others have the next ones
    questions: tuple[str, ...] = ()  # run these questions of the exercises instead: "by_hand", or "all"
    flags: str = ""  # more flags for every run, as "flag=value flag=value"
    pictures: bool = False  # keep the pictures of the first seed, and its curves

    @property
    def said(self) -> str:
        """Which runs a table is of."""
        return f"seeds {self.first_seed} to {self.first_seed + self.seeds - 1} ({self.seeds} runs)"


def main(config: Config) -> None:
    flags = ["--" + flag for flag in config.flags.split()]
    for number in config.exercises:
        for path in questions(train_py(number).parent) if config.questions else ():
            if {path.stem, "all"} & set(config.questions):
                ask(path, config, flags)
        if config.questions:
            continue
        runs = []
        for seed in range(config.first_seed, config.first_seed + config.seeds):
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
                print(f"seed {seed}:", ", ".join(f"{name} {value:.6g}" for name, value in runs[-1].items()), flush=True)
                if config.pictures and seed == config.first_seed:
                    for picture in out.glob("*.png"):
                        shutil.copy(picture, train_py(number).parent)
                    curves = chart.as_csv(chart.thinned(read_metrics(out / "metrics.csv")))
                    (chart.CURVES / f"{number:02}.csv").write_text(curves, encoding="utf-8")
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        print(f"\n{' '.join([result['exercise'], *flags])}, {config.said}; {result['device']}; {versions}")
        for name in runs[0]:
            values = np.array([run[name] for run in runs])
            print(f"| {name} | {values.mean():.6g} ± {values.std(ddof=config.seeds > 1):.2g} |", flush=True)


def ask(path: Path, config: Config, flags: list[str]) -> None:
    """Run a question with each seed, and print the table in its README."""
    answers = []
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, path, "--seed", str(seed), "--out", folder, *flags]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            answers.append(json.loads((Path(folder) / f"{path.stem}.json").read_text()))
            values = {name: entry["value"] for name, entry in answers[-1]["numbers"].items()}
            print(f"seed {seed}:", ", ".join(f"{name} {value:.4g}" for name, value in values.items()), flush=True)
            if config.pictures and seed == config.first_seed:
                picture = (
                    Image.open(Path(folder) / f"{path.stem}.png").convert("RGB").quantize(96)
                )  # a third of the bytes
                picture.save(path.with_suffix(".png"), optimize=True)
    print(f"\n{path.parent.name}/{path.name}, {config.said}: {answers[0]['question']}")
    for name, entry in answers[0]["numbers"].items():
        values = np.array([answer["numbers"][name]["value"] for answer in answers])
        held = {answer["numbers"][name]["held"] for answer in answers}
        shown = "yes" if held == {True} else "no" if held == {False} else "" if held == {None} else "not always"
        predicted = in_words(*entry["predicted"])
        spread = float(f"{values.std(ddof=config.seeds > 1):.1g}")  # 12.3 is 10, not 1e+01
        print(f"| `{name}` | {predicted} | **{values.mean():.4g} ± {spread:g}** | {shown} |", flush=True)
    print("CPU seconds", [round(answer["cpu_seconds"], 1) for answer in answers], flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
