"""The course as this checkout has it: which exercises are there, how they are called, what they should give."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from common import UserError
from common.curriculum import EXERCISES, ROOT, Exercise, find_exercise

FRAMEWORKS = {"torch": "PyTorch", "jax": "JAX", "optax": "optax"}
SEEDS = re.compile(r"seeds (\d+) to (\d+)")  # where a table is of more than 0, 1, 2
# 95 % of further runs lie within so many deviations of the mean of so many seeds: Student's t, times √(1 + 1 / seeds)
DEVIATIONS = {3: 5, 5: 3.1, 10: 2.4}
TABLE = re.compile(r"(?:^\|.*\n)+", re.M)
ROW = re.compile(r"\| \*\*([^*|]+)\*\*[^|]*\| \*\*([\d.]+)(?: ± ([\d.]+))?( %)?\*\* \|")


@dataclass(frozen=True)
class Expected:
    """A final metric's figure in an exercise's README, which is set in bold there."""

    metric: str  # its name in result.json
    text: str  # as it stands there: "98.50 ± 0.07 %"
    mean: float
    margin: float  # a run that is worse by more falls short
    decimals: int
    percent: bool

    def shown(self, value: float) -> str:
        """Return a value of the metric in the README's unit, with as many decimals."""
        if abs(value) >= 1e4:  # of a run that diverged
            return f"{value:.4g}"
        return f"{100 * value:.{self.decimals}f} %" if self.percent else f"{value:.{self.decimals}f}"

    def excess(self, value: float) -> float:
        """Return by how much a value is better than the mean; negative where it is worse."""
        return value - self.mean if "accuracy" in self.metric else self.mean - value


def built() -> list[Exercise]:
    """Return the exercises whose program is in this checkout. Raises UserError where there is none."""
    there = [exercise for exercise in EXERCISES if train_py(exercise).exists()]
    if not there:
        raise UserError(f"there are no exercises in {ROOT}: run `pip install -e .` in a checkout of the course")
    return there


def train_py(exercise: Exercise) -> Path:
    """Return the path of the reference solution."""
    return ROOT / exercise.folder / "train.py"


def find(name: str) -> Exercise:
    """Return the exercise that is called "9", "ex09", "ex09_mnist_cnn" or a path that ends so.

    Raises UserError, with the nearest names, if there is none, or if this checkout does not have it yet.
    """
    word = name.strip().replace("\\", "/").rstrip("/").rpartition("/")[2]
    number = re.fullmatch(r"(?:ex)?0*(\d{1,3})", word)
    exercise = find_exercise(int(number[1]) if number else word)
    if exercise in built():
        return exercise
    if exercise:
        raise UserError(f"exercise {exercise.number}, {exercise.folder}, is not in this checkout: see `rampup list`")
    near = []
    if not number:
        names = {name: e for e in built() for name in (e.folder, e.folder[5:])}
        near = [names[name] for name in difflib.get_close_matches(word.lower(), names, n=3, cutoff=0.5)]
    folders = " or ".join(dict.fromkeys(e.folder for e in near))
    raise UserError(
        f"there is no exercise {name!r}: "
        + (f"did you mean {folders}?" if near else f"they are 1 to {len(EXERCISES)}, see `rampup list`")
    )


def framework(source: str) -> str:
    """Return what a train.py is written in, by its imports: "numpy", "PyTorch", "JAX, optax"."""
    names = re.findall(r"^(?:import|from) (\w+)", source, re.M)
    return ", ".join(shown for name, shown in FRAMEWORKS.items() if name in names) or "numpy"


def expected(exercise: Exercise) -> list[Expected]:
    """Return the figures in bold of the exercise's README, those of the first table that has any."""
    text = (ROOT / exercise.folder / "README.md").read_text(encoding="utf-8")
    table = next(filter(ROW.search, TABLE.findall(text)), "")
    seeds = SEEDS.search(table)
    deviations = DEVIATIONS[1 + int(seeds[2]) - int(seeds[1]) if seeds else 3]
    figures = []
    for label, mean, deviation, percent in ROW.findall(table):
        decimals = len(mean.partition(".")[2])
        unit = 0.01 if percent else 1.0
        spread = max(float(deviation), 0.03 if percent else 0.0) if deviation else 0.0  # few seeds may agree by chance
        margin = max(deviations * spread, 0.5 * 10**-decimals)  # rounding alone is no shortfall
        metric = label.removeprefix("final ").replace(" ", "_")
        text = mean + (f" ± {deviation}" if deviation else "") + percent
        figures.append(Expected(metric, text, float(mean) * unit, margin * unit, decimals, bool(percent)))
    return figures


def walk(number: int = 1, indent: str = "", branch: str = "") -> list[tuple[Exercise, str, str]]:
    """Return the tree from an exercise on, each with the lines to draw before it and before what hangs below it.

    What has one child goes straight on; where the course goes back, it branches.
    """
    exercise = find_exercise(number)
    below = indent + {"├─ ": "│  ", "└─ ": "   ", "": ""}[branch]
    children = [child.number for child in EXERCISES if child.parent == number]
    drawn = [(exercise, indent + branch, below)]
    for child in children:
        branch = "" if len(children) == 1 else "└─ " if child == children[-1] else "├─ "
        drawn += walk(child, below, branch)
    return drawn
