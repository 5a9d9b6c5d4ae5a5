"""SIGKILL, SIGTERM and SIGINT at random times in 15, 16, 17; then they go on, and nobody can tell it from the files."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from signal import SIGINT, SIGKILL, SIGTERM

from tests.faults import tiny
from tests.faults.programs import (
    Case,
    end,
    exercise,
    family,
    file_operations,
    import_all,
    kill,
    new_python,
    start,
    wait_for,
    wrong_end,
)
from tests.helpers import train_py

SIGNALS = (SIGKILL, SIGTERM, SIGINT)
CODES = {SIGKILL: -9, SIGTERM: 143, SIGINT: 130}  # with which a program has to end
MOMENTS = ("at a file operation", "at a file operation", "at a row", "at the end", "at the start")


def cases(full: bool, rng: Random, folder: Path) -> Iterator[Case]:
    """Yield a case for each program that was killed."""
    import_all()
    flags, note = tiny.inputs(folder), folder / "operations"
    counts = {16: (36, 12), 17: (24, 6), 15: (24, 6)} if full else {16: (5, 1), 17: (1, 0), 15: (1, 0)}
    for number, (count, new) in counts.items():
        whole = folder / f"{number}"
        yield tiny.unbroken(number, flags[number], whole, file_operations(whole, lambda n, *_: note.write_text(str(n))))
        operations = int(note.read_text())
        for i in range(count):
            out, moment = folder / f"{number}-{i}", MOMENTS[rng.randrange(5) if full else i % 5]
            yield forked(number, SIGNALS[i % 3], moment, operations, flags[number], rng, out, whole)
        for i in range(new):
            out, moment = folder / f"{number}-new-{i}", ("in the imports", "at a row")[i % 2]
            yield in_a_new_python(number, SIGNALS[2 - i % 3], moment, flags[number], rng, out, whole)
    if not full:  # tests/test_ddp.py kills processes of torchrun, too
        return
    yield torchrun(0, "", flags[17], rng, folder / "two", folder / "two")
    several = [(SIGTERM, "torchrun"), (SIGKILL, "a worker"), (SIGINT, "all"), (SIGKILL, "all"), (SIGTERM, "a worker")]
    for i, (signal, who) in enumerate(several * 4):
        yield torchrun(signal, who, flags[17], rng, folder / f"two-{i}", folder / "two")


def forked(number, signal, moment, operations, flags, rng, out, whole) -> Case:
    """Kill a run at one of its so many file operations, or soon after, or when it has recorded some row."""
    first, last = {"at the end": (operations - 9, operations), "at the start": (1, 9)}.get(moment, (1, operations))
    at, row, delay = rng.randint(first, last), rng.randint(1, tiny.STEPS), rng.choice([0, rng.uniform(0, 0.005)])

    def act(count, name, writes):
        if count == at and delay:
            threading.Timer(delay, os.kill, (os.getpid(), signal)).start()
        elif count == at:
            os.kill(os.getpid(), signal)

    hook = file_operations(out, act) if moment != "at a row" else None
    process = start(exercise(number, *flags, "--out", out, hook=hook))
    if moment == "at a row":
        wait_for(lambda: tiny.rows(out) >= row, process)
        kill([process.pid], signal)
    return Case(f"{signal.name} {moment}", f"exercise {number}", after(process, number, signal, flags, out, whole))


def in_a_new_python(number, signal, moment, flags, rng, out, whole) -> Case:
    """Kill a run that was started as a user does it."""
    process = start(new_python(train_py(number), *flags, "--out", out))
    if moment == "at a row":
        row = rng.randint(1, tiny.STEPS)
        wait_for(lambda: tiny.rows(out) >= row, process)
    else:
        proc = Path(f"/proc/{process.pid}")
        wait_for(lambda: b"train.py" in (proc / "cmdline").read_bytes(), process)  # else it is still a fork of this one
        wait_for(lambda: "numpy" in (proc / "maps").read_text(), process)  # which all import first
        time.sleep(rng.uniform(0, 0.7))
    kill([process.pid], signal)
    what = f"exercise {number}, new process"
    return Case(f"{signal.name} {moment}", what, after(process, number, signal, flags, out, whole))


def after(process, number, signal, flags, out, whole) -> str:
    """Return what a killed run has lost, when it has ended and when it has gone on."""
    ended = end(process)
    codes = [CODES[signal]]
    codes += [0] if (out / "result.json").exists() else []  # it was done
    codes += [-SIGTERM] if not ended.text else []  # it had not begun
    lost = wrong_end(ended, tuple(codes)) or tiny.not_the_same(out, whole, finished=False)
    if not lost and signal == SIGTERM and tiny.rows(out):
        lost = not_saved(out)
    return lost or tiny.finish(number, flags, out, whole)


def not_saved(out: Path) -> str:
    """Return what is wrong with the checkpoint that a run has to write before it gives way to SIGTERM."""
    step = tiny.checkpoint_step(out) if tiny.has_checkpoint(out) else "no"
    return "" if step == tiny.rows(out) else f"a checkpoint of {step} steps, but {tiny.rows(out)} were made"


def torchrun(signal, who, flags, rng, out, whole) -> Case:
    """Kill one or all of two processes and torchrun; with 0 for the signal nobody is killed."""
    what, fault = "exercise 17, torchrun and two processes", f"{signal.name} to {who}" if signal else "none"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    command += ["--monitor-interval=0.1", train_py(17), *flags, "--out", out]
    process, row = start(new_python(*command)), rng.randint(1, tiny.STEPS)
    if not signal:
        ended = end(process, 180)
        return Case(fault, what, wrong_end(ended, (0,)) or tiny.not_the_same(out, whole))
    wait_for(lambda: tiny.rows(out) >= row, process, 180)
    members = family(process.pid)
    kill({"all": members, "a worker": [rng.choice(members[1:])], "torchrun": members[:1]}[who], signal)
    ended = end(process, 180)
    deadline = time.monotonic() + 10
    while (left := [pid for pid in members[1:] if family(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    kill(left)
    if ended.code is None or left:
        return Case(fault, what, "hung" if ended.code is None else f"{len(left)} processes were left")
    if who == "a worker":  # torchrun starts all of them again, from the last checkpoint
        lost = f"exit code {ended.code}" if ended.code else tiny.not_the_same(out, whole)
        return Case(fault, what, lost)
    lost = tiny.not_the_same(out, whole, finished=False)
    if not lost and signal == SIGTERM and tiny.rows(out):
        lost = not_saved(out)
    again = end(start(new_python(*command, *(["--resume"] if tiny.has_checkpoint(out) else []))), 180)
    return Case(fault, what, lost or wrong_end(again, (0,)) or tiny.not_the_same(out, whole))
