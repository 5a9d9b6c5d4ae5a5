"""Is this program right? Runs a train.py with --dry-run and in full, and says line by line what falls short."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from common.cli.course import framework, train_py
from common.cli.folder import MAX_CSV, Folder, read_bytes, read_folder, read_run, size, visible
from common.cli.judge import MEASURED, Finding, judge, judge_printed
from common.cli.start import marked
from common.curriculum import ROOT, Exercise
from common.data import data_dir

from rich.console import Console
from rich.text import Text

LONG_LIMIT = 600  # seconds after which a program without our flags is stopped
LIMIT = 120  # seconds after which a dry run is stopped
PROMISED = 20  # seconds that it may take
MOST = 10**7  # bytes that a dry run may print
LONGEST = 10_000  # characters that are read, at the end of what it printed
STYLES = {"ok": "green", "short": "bold red", "note": "yellow"}


@dataclass(frozen=True)
class Ran:
    """A program that was run: its exit code, what it printed, and why it was stopped, if it was."""

    code: int  # negative: the signal that ended it
    stdout: str
    stderr: str
    stopped: str


def check(console: Console, exercise: Exercise, path: Path | None, dry_run: bool) -> bool:
    """Check the program in an exercise's folder, or in a learner's own at `path`, and return whether it is right.

    Raises UserError where there is no train.py to run.
    """
    for name in ("SIGTERM", "SIGHUP"):  # so that whatever ends us ends the program, too; Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    folder = read_folder(exercise, path)
    own = not folder.path.samefile(ROOT / exercise.folder)
    what = "" if own else ", the reference solution (--folder PATH: your own)"
    console.print(f"checking {visible(str(folder.path / 'train.py'))} as exercise {exercise.number}{what}")
    if marked(folder.path) not in ("", exercise.folder):
        console.print(Text(f"this folder was begun for {marked(folder.path)}", "yellow"))
    right, out = True, folder.path / "out"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        for finding in findings(exercise, folder, Path(temporary), dry_run, console):
            right = right and finding.mark != "short"
            console.print(Text.assemble((f"{finding.mark:6}", STYLES[finding.mark]), finding.text))
            if finding.hint:
                console.print(Text(f"      {finding.hint}", "dim"))
        if own and not dry_run and (Path(temporary) / "full").is_dir():
            keep(console, Path(temporary) / "full", out)
    return right


def keep(console: Console, run: Path, out: Path) -> None:
    """Copy the run of a check to the folder's own out/, unless there is a whole run in it."""
    if os.path.lexists(out / "result.json") or out.is_symlink():
        console.print(Text(f"{visible(str(out))} holds an earlier run, which stays: train.py itself renews it", "dim"))
        return
    with suppress(OSError, shutil.Error):  # of a folder that cannot be written to
        shutil.copytree(run, out, dirs_exist_ok=True)
        (out / "run.json").unlink(missing_ok=True)
        console.print(Text(f"the run is kept in {visible(str(out))}, where `rampup review` finds it", "dim"))


def findings(exercise: Exercise, folder: Folder, temporary: Path, dry_run: bool, console: Console) -> Iterator[Finding]:
    """Yield each finding as soon as it is known; checks that an earlier failure makes pointless are left out."""
    if wrong := other_framework(exercise, folder.source):
        yield wrong
    if not re.search(r"dry.run", folder.source):
        yield from free_form(exercise, folder, temporary, console)
        return
    dry = ["--dry-run"]
    if re.search(r"^    device: ", folder.source, re.M):
        dry += ["--device", "cpu"]  # a GPU need not give the same numbers twice
    start = time.perf_counter()
    first = run(folder, temporary / "a", *dry)
    seconds = time.perf_counter() - start
    if wrong := failure("--dry-run", first):
        yield wrong
        return
    mark = "ok" if seconds < PROMISED else "note"  # the machine may be busy
    yield Finding(mark, f"--dry-run took {seconds:.1f} s, and should take {PROMISED} s at most")
    baseline = "\nbaselines: " in f"\n{first.stdout}"
    yield verdict(baseline, "it prints the baseline that it must beat", "it prints no baseline", "Run(…) does so")
    last = (first.stdout[-LONGEST:].splitlines() or [""])[-1]
    name, *values = last.split(" ")
    result = name == "result:" and len(values) > 1 and values[-1].startswith("seconds=")
    result = result and all(re.fullmatch(r"[^\s=]+=\S+", value) for value in values)
    yield verdict(result, "its last line is the result", "its last line is not the result", "run.finish(…) prints it")

    ran = Folder(folder.path, folder.source)
    read_run(ran, written(temporary / "a"))
    yield from (Finding("short", problem) for problem in ran.problems)
    reference = train_py(exercise).read_text(encoding="utf-8")
    there = {"metrics.csv": ran.series, "result.json": ran.result and not ran.interrupted}
    if "plot_loss(" in reference:
        there["loss.png"] = any(name == "out/loss.png" for name, _, _ in ran.pictures)
    if re.search(r"run\.(write_)?sample\(", reference):
        there["samples.txt"] = ran.samples
    missing = ", ".join(name for name, found in there.items() if not found)
    yield verdict(not missing, f"it writes {', '.join(there)}", f"it does not write {missing} into --out")

    if ran.series:
        again, other = run(folder, temporary / "b", *dry), run(folder, temporary / "c", *dry, "--seed", "1")
        wrong = failure("a second --dry-run", again) or failure("--dry-run --seed 1", other)
        if wrong:
            yield wrong
            return
        first, again, other = (metrics(temporary / name) for name in "abc")
        hint = "draw all random numbers from a generator seeded with config.seed; no order may depend on time or a set"
        wrong = "the same seed gives another metrics.csv"
        yield verdict(first == again, "the same seed gives the same metrics.csv", wrong, hint)
        hint = "config.seed has to reach the data, the weights and the order of the batches"
        wrong = "another seed gives the same metrics.csv"
        yield verdict(first != other, "another seed gives another metrics.csv", wrong, hint)
    refused = run(folder, temporary / "d", "--no-such-flag", "1")
    clean = refused.code > 0 and "Traceback" not in refused.stderr
    yield verdict(clean, "an unknown flag is refused", "an unknown flag is not refused with one sentence")
    if dry_run:
        return

    flags = figure_flags(exercise, folder)
    console.print(Text(" ".join(["the run in full:", *flags]), "dim"))
    if wrong := failure("the run", run(folder, temporary / "full", *flags, screen=True)):
        yield wrong
        return
    ran = Folder(folder.path, folder.source)
    read_run(ran, temporary / "full")
    yield from (Finding("short", problem) for problem in ran.problems)
    yield from judge(exercise, ran)


def other_framework(exercise: Exercise, source: str) -> Finding | None:
    """Return that a program is not written in what its exercise is about; None if it is."""
    theirs = framework(source)
    wanted = framework(train_py(exercise).read_text(encoding="utf-8"))
    if theirs == wanted or (exercise.number > 1 and set(wanted.split(", ")) <= set(theirs.split(", "))):
        return None
    return Finding("short" if exercise.number < 3 else "note", f"it is in {theirs}; this exercise is in {wanted}")


def free_form(exercise: Exercise, folder: Folder, temporary: Path, console: Console) -> Iterator[Finding]:
    """Yield what the output of a program without our flags says: it is run as it is, in its own folder."""
    console.print(Text(f"running it as it is, in its own folder, for at most {LONG_LIMIT // 60} minutes", "dim"))
    ran = run(folder, temporary / "free", free=True)
    wrong = failure("the program", ran)
    if wrong:
        yield wrong
    shown = [line for line in visible(ran.stdout[-LONGEST:]).splitlines() if line.strip()][-3:]
    console.print(Text("\n".join(f"      {line[:100]}" for line in shown), "dim"))
    found = Folder(folder.path, folder.source)
    losses = printed(ran.stdout, r"loss|nll|cost|mse")
    accuracies = [value / 100 if value > 1 else value for value in printed(ran.stdout, r"acc\w*")]
    bad = next((i for i, value in enumerate(losses) if not math.isfinite(value)), None)
    if bad is not None:
        hint = "lower the rate; is the gradient a sum and not a mean, or is there a logarithm of 0, or a missing minus?"
        yield Finding("short", f"loss number {bad + 1} of those that it prints is {losses[bad]}", hint)
    elif losses:
        found.series["all", "loss"] = list(enumerate(losses))
        found.result = {"metrics": dict(zip(("loss", "accuracy"), losses[-1:] + accuracies[-1:]))}
        yield from judge_printed(exercise, found)
    elif not wrong:
        yield Finding("short", "it prints no loss that can be read", "print lines such as `step 100 loss 0.0123`")
    hint = "rampup can say more of a program that uses Run: five lines, on the page What `rampup check` reads"
    yield Finding("note", "it leaves no metrics.csv and no result.json, and reads no --dry-run", hint)


def printed(output: str, name: str) -> list[float]:
    """Return the numbers that stand behind a name, which is a regular expression, in what a program printed."""
    number = r"[-+]?(?:\d*\.?\d+(?:e[+-]?\d+)?|nan\b|inf\b)"
    found = re.findall(rf"(?:{name})(?: is)?[ \t:=]+(?:tensor)?[(\[]*({number})", output, re.I)
    return [float(value) for value in found]


def figure_flags(exercise: Exercise, folder: Folder) -> list[str]:
    """Return the flags of the run that the README's figure is of, as far as the program has them and the data exist."""
    flags = []
    for name, value in MEASURED.get(exercise.number, {}).items():
        path = data_dir().resolve() / str(value)
        if re.search(f"^    {name}: ", folder.source, re.M) and (name != "data" or path.is_dir()):
            flags += [f"--{name.replace('_', '-')}", str(path if name == "data" else value)]
    return flags


def written(out: Path) -> Path:
    """Return where a dry run wrote: `Run` makes a folder of its own in --out, other programs may not."""
    return out / "dry_run" if (out / "dry_run").is_dir() else out


def metrics(out: Path) -> bytes:
    """Return the metrics.csv of a dry run; nothing where it cannot be read."""
    try:
        return read_bytes(written(out) / "metrics.csv", MAX_CSV)
    except (OSError, ValueError):
        return b""


def failure(name: str, ran: Ran) -> Finding | None:
    """Return that a run was stopped or failed, with its last line; None if it went well."""
    if ran.stopped:
        return Finding("short", f"{name} {ran.stopped}", (last_line(ran.stderr) or last_line(ran.stdout))[:100])
    if ran.code == 0:
        return None
    ended = f"ends with exit code {ran.code}" if ran.code > 0 else f"was ended by signal {-ran.code}"
    hint = last_line(ran.stderr)
    if re.search("out of memory|allocate", hint):
        hint += "; or do (N,) and (N, 1) broadcast to (N, N) somewhere?"
    return Finding("short", f"{name} {ended}", hint)


def verdict(right: object, text: str, wrong: str, hint: str = "") -> Finding:
    """Return one of the two texts."""
    return Finding("ok", text) if right else Finding("short", wrong, hint)


def run(folder: Folder, out: Path, *flags: str, screen: bool = False, free: bool = False) -> Ran:
    """Run the program from another working directory; `screen` lets it write to ours, and take its time.

    Otherwise it is stopped after LIMIT seconds, or once it has printed MOST bytes. In every case, no process
    that it started lives on, unless that one has left its process group. With `free` it gets no flags, runs in its own
    folder, where its relative paths lead somewhere, without windows, and for at most LONG_LIMIT seconds.
    """
    command = [sys.executable, str(folder.path / "train.py"), *([] if free else ["--out", str(out), *flags])]
    environment = os.environ if screen else os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    if free:
        environment = environment | {"MPLBACKEND": "agg", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    place, limit = (folder.path, LONG_LIMIT) if free else (out.parent, LIMIT)
    options = {"cwd": place, "env": environment, "stdin": subprocess.DEVNULL, "start_new_session": True}
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        options |= {"stderr": stderr} if screen else {"stdout": stdout, "stderr": stderr}
        start = time.perf_counter()
        process = subprocess.Popen(command, **options)
        stopped = ""
        try:
            while not stopped:
                ended = process.poll() is not None
                if max(length(stdout), length(stderr)) > MOST:
                    stopped = f"was stopped: it had printed more than {size(MOST)}"
                elif ended:
                    break
                elif not screen and time.perf_counter() - start > limit:
                    stopped = f"was stopped after {limit} seconds"
                else:
                    time.sleep(0.02)
        finally:
            if hasattr(os, "killpg"):
                with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # on Windows, which has no such groups
            process.wait()
        return Ran(process.returncode, read_end(stdout), read_end(stderr), stopped)


def length(file: BinaryIO) -> int:
    """Return how many bytes a file has."""
    return os.fstat(file.fileno()).st_size


def read_end(file: BinaryIO) -> str:
    """Return the last MOST bytes of a file as text."""
    file.seek(max(0, length(file) - MOST))
    return file.read(MOST).decode("utf-8", errors="replace")


def last_line(text: str) -> str:
    """Return the last line that says something, or nothing."""
    lines = [line for line in visible(text[-LONGEST:]).splitlines() if line.strip(" ╰─╯│")]
    return lines[-1].strip("│ ")[:300] if lines else ""
