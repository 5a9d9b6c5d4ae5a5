"""Each exercise twice gives the same rows, byte for byte; and its first ten losses are those that were committed.

The second guards every later change: one that moves a loss by more than 1e-4 was meant to, or is an error.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.faults import tiny
from tests.faults.programs import Case, end, exercise, import_all, kill, run, start, wait_for, wrong_end

LOSSES, COUNT, TOLERANCE = Path(__file__).parent / "losses.json", 10, 1e-4
SHORT = (1, 2, 3, 4, 5, 6, 7, 8, 11, 16)  # the quick ones
JAX = (8, 9, 10, 14, 15)


def cases(full: bool, rng: Random, folder: Path) -> Iterator[Case]:
    """Yield two cases for each exercise."""
    import_all()
    committed = json.loads(LOSSES.read_text())
    for number in range(1, 18) if full else SHORT:
        what = f"exercise {number}"
        if not all(path.exists() for path in samples(number)):
            print(f"{what} is left out: there is no {samples(number)[0]}")
            continue
        first, second = (begin(number, folder / f"{number}{name}") for name in "ab")
        same = first and rows(first) == rows(second)
        yield Case("twice", what, "" if same else "not the same rows")
        differences = [abs(ours - theirs) for ours, theirs in zip(losses(first), committed[str(number)])]
        near = len(differences) == COUNT and max(differences) < TOLERANCE
        yield Case("the first ten losses", what, "" if near else f"differ from those committed: {losses(first)}")
        if full:  # to the end, which is a matter of few steps
            outs = [folder / f"{number}{name}" for name in "cd"]
            flags = [*defaults(number), "--steps", 20, "--eval-every", 10]
            lost = [wrong_end(run(exercise(number, *flags, "--out", out), 300), (0,)) for out in outs]
            same = (outs[0] / "metrics.csv").read_bytes() == (outs[1] / "metrics.csv").read_bytes()
            yield Case("twice, to the end", what, lost[0] or lost[1] or ("" if same else "not the same rows"))


def samples(number: int) -> list[Path]:
    """Return the files that an exercise needs and nobody can download for it."""
    names = {15: ["imagenet_sample"], 17: ["openwebtext_sample"]}.get(number, [])
    return [Path(os.environ["RAMPUP_DATA"]) / name for name in names]


def defaults(number: int) -> list[object]:
    """Return the flags of a run with the exercise's own defaults, but on a CPU and on the samples."""
    flags = ["--device", "cpu"] if number >= 7 else []
    flags += ["--data", *samples(number)] if samples(number) else []
    return flags + {15: ["--workers", 0], 17: ["--no-compile", "--precision", "float32"]}.get(number, [])


def begin(number: int, out: Path) -> Path:
    """Run an exercise until its first ten losses are there."""
    import torch

    def program():
        torch.cpu.get_capabilities = dict  # a CPU that multiplies bfloat16 would do so in exercise 16
        exercise(number, *defaults(number), "--out", out)()

    process = start(program)
    wait_for(lambda: tiny.rows(out) >= COUNT, process, 300)
    kill([process.pid])
    end(process)
    return out


def rows(out: Path) -> list[bytes]:
    """Return the rows of a run up to the tenth loss."""
    lines = tiny.content(out / "metrics.csv").split(b"\n")
    found = [i for i, line in enumerate(lines) if b",train,loss," in line][:COUNT]
    return lines[: found[-1] + 1] if len(found) == COUNT else []


def losses(out: Path) -> list[float]:
    """Return the first ten losses of a run."""
    return [float(row.split(b",")[3]) for row in rows(out) if b",train,loss," in row]


def write_losses(folder: Path) -> None:
    """Write losses.json anew."""
    import_all()
    found = {str(number): losses(begin(number, folder / str(number))) for number in range(1, 18)}
    text = ",\n".join(f' "{number}": {json.dumps([round(loss, 6) for loss in ten])}' for number, ten in found.items())
    LOSSES.write_text(f"{{\n{text}\n}}\n")
