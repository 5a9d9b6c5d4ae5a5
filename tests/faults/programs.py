"""Programs in processes of their own: starting them, breaking them, ending them, and what is left of them."""

import contextlib
import fcntl
import os
import resource
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import train_py

MORE_MEMORY = 500 * 10**6  # bytes that a program may need beside what it was started with


@dataclass(frozen=True)
class Case:
    """One thing that was tried; `lost` says what was lost, hung or silently wrong, and is empty where nothing was."""

    fault: str
    what: str
    lost: str = ""


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int | None  # its exit code; minus the number of the signal that killed it; None where it had to be stopped
    text: str  # all that it printed
    memory: int  # bytes that it used at most


@dataclass(frozen=True)
class Process:
    """A program that was started."""

    pid: int
    output: int  # the end of a pipe where what it prints can be read


def import_all() -> None:
    """Import what takes long, for the programs that are forked from here: torch._dynamo is what AdamW imports.

    One formula is drawn as well, since matplotlib makes the parser of formulas with the first.
    """
    import common.imagenet
    import common.openwebtext
    import common.plotting
    import common.speed  # noqa: F401

    import datasets  # noqa: F401
    import jax  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import optax  # noqa: F401
    import torch._dynamo  # noqa: F401
    from matplotlib.mathtext import MathTextParser

    MathTextParser("agg").parse("$10^0$")


def start(program: Callable[[], object]) -> Process:
    """Call program() in a process forked from this one, in a session of its own.

    The child has all that was imported here, which makes a run of torch or JAX ten times as fast as a new Python, and
    ends as `python` does. Its output goes into a pipe, which no limit on files concerns.
    """
    output, there = os.pipe()
    fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, 2**20)  # which is enough for all that a program says
    os.set_blocking(output, False)
    if pid := os.fork():
        os.close(there)
        return Process(pid, output)
    code: object = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for file, number in ((os.open(os.devnull, os.O_RDONLY), 0), (there, 1), (there, 2)):
            os.dup2(file, number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        program()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # it has done what it had to
            signal.signal(number, signal.SIG_IGN)
        if isinstance(code, str):
            print(code, file=sys.stderr)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(1 if isinstance(code, str) else code or 0)


def python(*argv: object, hook: Callable | None = None) -> Callable[[], None]:
    """Return what `start` is to call for `python argv…`; `hook` hears of every file that it opens or renames."""

    def program():
        sys.argv = [str(part) for part in argv]
        if hook:
            sys.addaudithook(hook)
        if argv[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")

    return program


def new_python(*argv: object) -> Callable[[], None]:
    """Return the same for a Python that has imported nothing yet."""
    return lambda: os.execv(sys.executable, [sys.executable, *map(str, argv)])


def exercise(number: int, *flags: object, **options) -> Callable[[], None]:
    """Return the same for an exercise."""
    return python(train_py(number), *flags, **options)


def has_ended(process: Process) -> bool:
    """Return whether a program has ended; `end` can still ask how."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_for(condition: Callable[[], object], process: Process, limit: float = 60) -> None:
    """Wait until something is true, or a program has ended, or so many seconds are over."""
    deadline = time.monotonic() + limit
    while not condition() and not has_ended(process) and time.monotonic() < deadline:
        time.sleep(0.002)


def end(process: Process, limit: float = 60) -> Ended:
    """Wait until a program ends and return how; after so many seconds stop it and all that it has started."""
    wait_for(lambda: False, process, limit)
    hung = not has_ended(process)
    if hung:
        kill(family(process.pid))
    _, status, usage = os.wait4(process.pid, 0)
    with open(process.output, "rb", buffering=0) as pipe:  # which others may still hold, so it is not read to its end
        text = (pipe.read(2**20) or b"").decode(errors="replace")
    return Ended(None if hung else os.waitstatus_to_exitcode(status), text, usage.ru_maxrss * 1024)


def run(program: Callable[[], object], limit: float = 60) -> Ended:
    """Start a program and return how it ended."""
    return end(start(program), limit)


def kill(pids: list[int], number: int = signal.SIGKILL) -> None:
    """Send a signal to those processes that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def family(pid: int) -> list[int]:
    """Return a process and all that it has started, and those have, which still live."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def own_memory() -> int:
    """Return how many bytes of memory this process has, with which a forked one begins."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def wrong_end(ended: Ended, codes: tuple[int, ...]) -> str:
    """Return what is wrong with how a program ended, if anything: these exit codes are right, a traceback never is."""
    last = (ended.text.strip().splitlines() or ["it says nothing"])[-1][-160:]
    if ended.code is None:
        return f"hung ({last})"
    if "Exception ignored" in ended.text:
        return f"an exception was ignored ({last})"
    if "Traceback" in ended.text:
        return f"traceback ({last})"
    if ended.code not in codes:
        return f"exit code {ended.code} ({last})"
    return ""


def too_much_memory(ended: Ended) -> str:
    """Return what to say of a program that needed much more memory than it began with."""
    return f"{ended.memory / 1e9:.1f} GB of memory" if ended.memory > own_memory() + MORE_MEMORY else ""


def file_operations(folder: Path, act: Callable[[int, str, bool], None]) -> Callable:
    """Return a hook that calls act(count, name, writes) when a program opens, renames or deletes a file in a folder."""
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event not in ("open", "os.rename", "os.remove", "os.truncate"):
            return
        path = arguments[0]
        if isinstance(path, bytes | str | os.PathLike) and os.fsdecode(path).startswith(f"{folder}/"):
            count += 1
            writes = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
            act(count, os.path.basename(os.fsdecode(path)), writes)

    return hook
