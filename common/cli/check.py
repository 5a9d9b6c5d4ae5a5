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
    dry = ["--dry-run"]
    if re.search(r"^    device: ", folder.source, re.M):
        dry += ["--device", "cpu"]  # a GPU need not give the same numbers twice
    start = time.perf_counter()
    first = run(folder, temporary / "a", *dry)
    seconds = time.perf_counter() - start
    if first.returncode != 0:
        yield Finding("short", f"--dry-run ends with exit code {first.returncode}", last_line(first.stderr))
        return
    mark = "ok" if seconds < PROMISED else "note"  # the machine may be busy
    yield Finding(mark, f"--dry-run ran in {seconds:.1f} s, and may take {PROMISED}")
    lines = first.stdout.splitlines() or [""]
    baseline = any(line.startswith("baselines: ") for line in lines)
    yield verdict(baseline, "it prints the baseline that it has to beat", "it prints no baseline", "Run(…) does so")
    result = re.fullmatch(r"result: (\S+=\S+ )+seconds=\S+", lines[-1])
    yield verdict(result, "its last line is the result", "its last line is not the result", "run.finish(…) prints it")

    ran = Folder(folder.path, folder.source)
    read_run(ran, temporary / "a")
    yield from (Finding("short", problem) for problem in ran.problems)
    reference = train_py(exercise).read_text(encoding="utf-8")
    there = {"metrics.csv": ran.series, "result.json": ran.result}
    if "plot_loss(" in reference:
        there["loss.png"] = any(name == "loss.png" for name, _, _ in ran.pictures)
    if re.search(r"run\.(write_)?sample\(", reference):
        there["samples.txt"] = ran.samples
    missing = ", ".join(name for name, found in there.items() if not found)
    yield verdict(not missing, f"it writes {', '.join(there)}", f"it does not write {missing} into --out")

    run(folder, temporary / "b", *dry)
    run(folder, temporary / "c", *dry, "--seed", "1")
    files = [temporary / name / "metrics.csv" for name in "abc"]
    first, again, other = (file.read_bytes() if file.is_file() else b"" for file in files)
    hint = "draw every random number from a generator seeded with config.seed; let no order depend on time or on a set"
    yield verdict(first and first == again, "the same seed gives the same metrics.csv", "the same seed does not", hint)
    hint = "config.seed has to reach the data, the weights and the order of the batches"
    yield verdict(first != other, "another seed gives another one", "another seed gives the same metrics.csv", hint)
    refused = run(folder, temporary / "d", "--no-such-flag", "1")
    clean = refused.returncode != 0 and "Traceback" not in refused.stderr
    yield verdict(clean, "an unknown flag is refused", "an unknown flag is not refused with one sentence")
    if dry_run:
        return

    console.print(Text("the run in full:", "dim"))
    full = run(folder, temporary / "full", screen=True)
    if full.returncode != 0:
        yield Finding("short", f"the run ends with exit code {full.returncode}", "its last line says why")
        return
    ran = Folder(folder.path, folder.source)
    read_run(ran, temporary / "full")
    yield from (Finding("short", problem) for problem in ran.problems)
    yield from judge(exercise, ran)


def verdict(right: object, text: str, wrong: str, hint: str = "") -> Finding:
    """Return one of the two texts."""
    return Finding("ok", text) if right else Finding("short", wrong, hint)


def run(folder: Folder, out: Path, *flags: str, screen: bool = False) -> subprocess.CompletedProcess:
    """Run the program from another working directory; `screen` lets it write to ours, and take its time."""
    command = [sys.executable, str(folder.path / "train.py"), "--out", str(out), *flags]
    environment = os.environ if screen else os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    options = {} if screen else {"capture_output": True, "timeout": LIMIT, "stdin": subprocess.DEVNULL}
    try:
        return subprocess.run(command, cwd=out.parent, env=environment, text=True, errors="replace", **options)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"it was stopped after {LIMIT} seconds")


def last_line(text: str) -> str:
    """Return the last line that says something."""
    lines = [line for line in visible(text).splitlines() if line.strip(" ╰─╯│")]
    return lines[-1].strip("│ ")[:300] if lines else "and it says nothing"
