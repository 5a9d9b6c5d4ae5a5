"""Tiny runs of the exercises that write checkpoints, and what there must be when they are done."""

import json
import os
from pathlib import Path

from common import data, openwebtext
from tests.faults.programs import Case, exercise, run, wrong_end

import numpy as np
from PIL import Image

NET = ["--block-size", 16, "--layers", 1, "--heads", 2, "--channels", 8, "--batch-size", 4, "--max-new-tokens", 3]
OPENWEBTEXT = ["--precision", "float32", "--no-compile", "--micro-batch", 2]
STEPS, EVERY = 20, 5


def inputs(folder: Path) -> dict[int, list[object]]:
    """Make a text, documents and photographs in a folder; return the flags of exercises 15, 16, 17 for a tiny run."""
    openwebtext.encoding()  # which tiktoken reads once, for all programs that are forked from here
    text = data.shakespeare()
    (folder / "text.txt").write_text("ROMEO:\n" + text[:4_000])
    (folder / "docs.txt").write_text(text[:60_000])
    pictures = np.random.default_rng(0)
    for split, n in (("train", 8), ("val", 4)):
        for name in ("ape", "bee", "cat"):
            (folder / "photographs" / split / name).mkdir(parents=True)
            for i in range(n):
                picture = Image.fromarray(pictures.integers(0, 256, (4, 5, 3), np.uint8)).resize((50, 40))
                picture.save(folder / "photographs" / split / name / f"{i}.JPEG")
    resnet = ["--channels", 2, "--size", 32, "--train-size", 32, "--workers", 0, "--batch-size", 8]
    common = ["--steps", STEPS, "--eval-every", EVERY, "--device", "cpu"]
    return {
        15: [*common, *resnet, "--data", folder / "photographs"],
        16: [*common, *NET, "--text", folder / "text.txt"],
        17: [*common, *NET, *OPENWEBTEXT, "--data", folder / "docs.txt"],
    }


def has_checkpoint(out: Path) -> bool:
    """Return whether there is a checkpoint to go on from."""
    return (out / "checkpoint.pt").exists() or (out / "checkpoint.npz").exists()


def checkpoint_step(out: Path) -> int:
    """Return the number of updates that the checkpoint has seen."""
    if (out / "checkpoint.npz").exists():
        with np.load(out / "checkpoint.npz") as file:
            return json.loads(str(file["notes"]))["step"]
    import torch

    return torch.load(out / "checkpoint.pt", weights_only=True)["step"]


def rows(out: Path) -> int:
    """Return how many steps a run has recorded."""
    return content(out / "metrics.csv").count(b",train,loss,")


def content(path: Path) -> bytes:
    """Return what is in a file, nothing where there is none."""
    return path.read_bytes() if path.exists() else b""


def not_the_same(out: Path, whole: Path, finished: bool = True) -> str:
    """Return in what a run's files differ from those of the unbroken one; till it has finished, they may be shorter."""
    for name in ("metrics.csv", "samples.txt"):
        ours, theirs = content(out / name), content(whole / name)
        if ours != theirs and (finished or not theirs.startswith(ours)):
            return f"{name} is not that of an unbroken run"
    if not finished:
        return ""
    missing = [name for name in ("result.json", "loss.png") if not (out / name).exists()]
    left = [name for name in os.listdir(out) if ".tmp" in name]
    return f"no {missing[0]}" if missing else f"{left[0]} was left" if left else ""


def finish(number: int, flags: list[object], out: Path, whole: Path) -> str:
    """Go on with a broken run, or begin anew where it has no checkpoint; return what was lost."""
    more = ["--resume"] if has_checkpoint(out) else []
    ended = run(exercise(number, *flags, "--out", out, *more))
    lost = wrong_end(ended, (0,)) or not_the_same(out, whole)
    return lost and f"{more[0] if more else 'begun anew'}: {lost}"


def unbroken(number: int, flags: list[object], whole: Path, hook=None) -> Case:
    """Make the run that broken ones are compared with; a Case, since it may fail, too."""
    ended = run(exercise(number, *flags, "--out", whole, hook=hook), 120)
    return Case("none", f"exercise {number}", wrong_end(ended, (0,)) or not_the_same(whole, whole))
