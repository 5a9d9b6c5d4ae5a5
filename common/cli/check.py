"""Is this program right? Runs a train.py dry and in full, and says line by line what falls short."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from common.cli.course import train_py
from common.cli.folder import Folder, read_folder, read_run, visible
from common.cli.judge import Finding, judge
from common.curriculum import Exercise

LIMIT = 120  # seconds after which a dry run is stopped
PROMISED = 20  # seconds that it may take
STYLES = {"ok": "green", "short": "bold red", "note": "yellow"}


def check(console: Console, exercise: Exercise, path: Path | None, dry_run: bool) -> bool:
    """Check the program in an exercise's folder, or in a learner's own at `path`, and return whether it is right.

    Raises UserError where there is no train.py to run.
    """
    folder = read_folder(exercise, path)
    right = True
    with tempfile.TemporaryDirectory() as temporary:
        for finding in findings(exercise, folder, Path(temporary), dry_run, console):
            right = right and finding.mark != "short"
            console.print(Text.assemble((f"{finding.mark:6}", STYLES[finding.mark]), finding.text))
            if finding.hint:
                console.print(Text(f"      {finding.hint}", "dim"))
    return right


def findings(exercise: Exercise, folder: Folder, temporary: Path, dry_run: bool, console: Console) -> Iterator[Finding]:
    """Yield what is found, as soon as it is; what an earlier failure makes pointless is left out."""
    reference = train_py(exercise).read_text(encoding="utf-8")
    device = ["--device", "cpu"] if re.search(r"^    device: ", folder.source, re.M) else []
    dry = ["--dry-run", *device]
    start = time.perf_counter()
    first = run(folder, temporary, "a", *dry)
    seconds = time.perf_counter() - start
    if first.returncode != 0:
        yield Finding("short", f"--dry-run ends with exit code {first.returncode}", last_line(first.stderr))
        return
    yield Finding("ok" if seconds < PROMISED else "short", f"--dry-run ran in {seconds:.1f} s; it may take {PROMISED}")
    yield from printed(first.stdout)
    yield from files(folder, temporary / "a", reference)
    again, other = run(folder, temporary, "b", *dry), run(folder, temporary, "c", *dry, "--seed", "1")
    texts = [read(temporary / name / "metrics.csv") for name in "abc"]
    if again.returncode or other.returncode or not texts[0] or texts[0] != texts[1]:
        hint = (
            "draw every random number from generators seeded with config.seed; let no order depend on time or on a set"
        )
        yield Finding("short", "the same seed does not give the same metrics.csv", hint)
    elif texts[0] == texts[2]:
        yield Finding(
            "short", "--seed 1 gives the numbers of seed 0", "config.seed has to reach data, weights and batches"
        )
    else:
        yield Finding("ok", "the same seed gives the same metrics.csv, another seed another one")
    refused = run(folder, temporary, "d", "--no-such-flag", "1")
    clean = refused.returncode != 0 and "Traceback" not in refused.stderr
    yield Finding(
        "ok" if clean else "short", f"an unknown flag is {'refused' if clean else 'not refused with one sentence'}"
    )
    if dry_run:
        return
    console.print(Text("the run in full:", "dim"))
    full = run(folder, temporary, "full", screen=True)
    if full.returncode != 0:
        yield Finding("short", f"the run ends with exit code {full.returncode}", "its last line says why")
        return
    ran = Folder(folder.path, folder.source)
    read_run(ran, temporary / "full")
    for problem in ran.problems:
        yield Finding("short", problem)
    yield from judge(exercise, ran)


def run(folder: Folder, temporary: Path, out: str, *flags: str, screen: bool = False) -> subprocess.CompletedProcess:
    """Run the program from another working directory; `screen` lets it write to ours, and take its time."""
    command = [sys.executable, str(folder.path / "train.py"), "--out", str(temporary / out), *flags]
    environment = os.environ if screen else os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    options = {} if screen else {"capture_output": True, "timeout": LIMIT, "stdin": subprocess.DEVNULL}
    try:
        result = subprocess.run(command, cwd=temporary, env=environment, text=True, errors="replace", **options)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"stopped after {LIMIT} seconds")
    return result


def printed(output: str) -> Iterator[Finding]:
    """Yield whether a run said its baselines, and its result in the last line."""
    lines = output.splitlines() or [""]
    if any(line.startswith("baselines: ") for line in lines):
        yield Finding("ok", "it prints the baseline that it has to beat")
    else:
        yield Finding("short", "it prints no baseline", "what would a program score that has learnt nothing?")
    if re.fullmatch(r"result: (\S+=\S+ )+seconds=\S+", lines[-1]):
        yield Finding("ok", "its last line is the result")
    else:
        yield Finding("short", 'its last line is not "result: name=value … seconds=…"', "run.finish(…) prints it")


def files(folder: Folder, out: Path, reference: str) -> Iterator[Finding]:
    """Yield whether a dry run left the files that the reference solution leaves, and whether they can be read."""
    ran = Folder(folder.path, folder.source)
    read_run(ran, out)
    for problem in ran.problems:
        yield Finding("short", problem)
    wanted = {"metrics.csv": bool(ran.series), "result.json": bool(ran.result)}
    if "plot_loss(" in reference:
        wanted["loss.png"] = any(name == "loss.png" for name, _, _ in ran.pictures)
    if "run.sample(" in reference:
        wanted["samples.txt"] = bool(ran.samples)
    missing = [name for name, there in wanted.items() if not there]
    if missing:
        yield Finding("short", f"it does not write {', '.join(missing)} into --out", "see Run and the plots in common/")
    else:
        yield Finding("ok", f"it writes {', '.join(wanted)}")


def read(path: Path) -> bytes:
    """Return a file's bytes, none where there is no such file."""
    return path.read_bytes() if path.is_file() else b""


def last_line(text: str) -> str:
    """Return the last line that says something."""
    lines = [line for line in visible(text).splitlines() if line.strip(" ╰─╯│")]
    return lines[-1].strip("│ ")[:300] if lines else "and it says nothing"
