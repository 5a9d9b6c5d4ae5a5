"""Run the campaign, print its table in Markdown, and end with exit code 1 where anything was lost."""

import dataclasses
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Literal

from common import data
from tests.faults.programs import Case

import tyro
from filelock import FileLock

FOLDER = Path(tempfile.mkdtemp(prefix="faults-"))  # of all that the campaign writes
if tests := os.environ.get("JAX_COMPILATION_CACHE_DIR"):  # what they have compiled, a copy, for programs will be killed
    with FileLock(f"{tests}/.lockfile"):
        shutil.copytree(tests, FOLDER / "compiled")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(FOLDER / "compiled")  # what one process has compiled, the next need not
os.environ.pop("JAX_COMPILATION_CACHE_MAX_SIZE", None)  # with which JAX writes where it only reads
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

Part = Literal["kill", "disk", "network", "files", "hostile", "together", "repeat"]


@dataclasses.dataclass
class Flags:
    parts: tyro.conf.Positional[tuple[Part, ...]] = ()  # which to run; none: all
    full: bool = False  # everything, which takes up to an hour; else what fits in CI
    seed: int = 0  # of the random moments and mutations
    losses: bool = False  # write losses.json anew instead


def main(flags: Flags) -> int:
    """Run what the flags say and return the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in a shell's background would be deaf
    use_data_of_its_own(FOLDER / "data")
    if flags.losses:
        importlib.import_module("tests.faults.repeat").write_losses(FOLDER)
        return 0
    rows, lost, start = defaultdict(list), 0, time.monotonic()
    try:
        for part in [part for part in Part.__args__ if part in (flags.parts or Part.__args__)]:
            folder, since = FOLDER / part, time.monotonic()
            compile_quickly(part != "repeat")  # whose losses are those of the programs that users run
            os.environ["RAMPUP_DATA"] = str(FOLDER / "data")  # a part may have had a folder of its own
            folder.mkdir()
            cases = importlib.import_module(f"tests.faults.{part}").cases
            for case in cases(flags.full, random.Random(f"{part} {flags.seed}"), folder):
                rows[part, case.what, case.fault].append(case)
                lost += bool(case.lost)
                if case.lost:
                    print(f"LOST {part}, {case.what}, {case.fault}: {case.lost}", file=sys.stderr, flush=True)
            print(f"{part}: {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)
            shutil.rmtree(folder)
    finally:
        print(table(rows, time.monotonic() - start))
    return int(lost > 0)


def compile_quickly(yes: bool) -> None:
    """Let JAX compile in half the time what then runs slower, here and in a new Python, or no longer."""
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(yes))
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_disable_most_optimizations", yes)


def use_data_of_its_own(folder: Path) -> None:
    """Let the programs find the downloaded data in a folder of the campaign, where what they prepare goes, too."""
    data.mnist(), data.shakespeare()  # downloads what is missing
    real = data.data_dir().resolve()
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(real / "tiktoken_cache"))
    os.environ["RAMPUP_DATA"] = str(folder)
    folder.mkdir()
    for path in real.iterdir():
        if path.name in ("mnist", "shakespeare", "imagenet_sample", "openwebtext_sample"):
            (folder / path.name).symlink_to(path)


def table(rows: dict[tuple[str, str, str], list[Case]], seconds: float) -> str:
    """Return the cases as a table in Markdown, one row for each fault, with the commit and the date."""
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "no commit"
    lines = ["| part | what | fault | tried | survived | lost |", "|---|---|---|---|---|---|"]
    for (part, what, fault), cases in rows.items():
        reasons = sorted({case.lost for case in cases if case.lost})
        lost = "; ".join(reasons[:3]) + f"; and {len(reasons) - 3} more" * (len(reasons) > 3)
        survived = sum(not case.lost for case in cases)
        lines.append(f"| {part} | {what} | {fault} | {len(cases):,} | {survived:,} | {lost.replace('|', '/')} |")
    total = sum(map(len, rows.values()))
    count = sum(bool(case.lost) for cases in rows.values() for case in cases)
    return "\n".join(lines) + f"\n\n{total:,} tried, {count:,} lost, {seconds:.0f} s; commit {commit}, {date.today()}"


if __name__ == "__main__":
    try:
        code = main(tyro.cli(Flags, description="The fault campaign: see tests/faults/__init__.py."))
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    sys.exit(code)
