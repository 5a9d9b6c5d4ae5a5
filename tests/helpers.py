"""What the tests and the benches share."""

import contextlib
import csv
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import ModuleType

from common.curriculum import EXERCISES, ROOT, find_exercise
from common.record import Run

import pytest
import torch

BUILT = [exercise for exercise in EXERCISES if (ROOT / exercise.folder / "train.py").exists()]

numbers = pytest.mark.parametrize("number", [exercise.number for exercise in BUILT])


def one_sentence(result: subprocess.CompletedProcess, *words: str) -> None:
    """Check that a run was refused with a message that has these words, and without a traceback."""
    assert result.returncode != 0
    assert "Traceback" not in result.stdout + result.stderr
    for word in words:
        assert word in " ".join((result.stdout + result.stderr).replace("│", " ").split())


def train_py(number: int) -> Path:
    """Return the path of an exercise's train.py."""
    return ROOT / find_exercise(number).folder / "train.py"


def load_beside(number: int, name: str) -> ModuleType:
    """Return a program that lies beside an exercise's train.py, and imports it, as a module; both are loaded anew."""
    folder = train_py(number).parent
    beside = [path.stem for path in folder.glob("*.py")]  # it may import another one, too
    for module in beside:
        sys.modules.pop(module, None)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        for module in beside:
            sys.modules.pop(module, None)


def load(number: int) -> ModuleType:
    """Return the train.py of an exercise as a module of its own, loaded anew."""
    name = find_exercise(number).folder
    spec = importlib.util.spec_from_file_location(name, train_py(number))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def run(number: int, *flags: object, **options) -> subprocess.CompletedProcess:
    """Run an exercise in a process of its own, and return what it printed and its exit code."""
    import warm  # here, since tests.faults reads this file from another folder

    return warm.run(train_py(number), *flags, **options)


def run_anew(number: int, *flags: object, **options) -> subprocess.CompletedProcess:
    """Do the same in a new Python, as a user does, which takes seconds longer."""
    command = [sys.executable, train_py(number), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def read_metrics(out: Path) -> dict[tuple[str, str], dict[int, float]]:
    """Return the values of a run's metrics.csv by step, by (split, metric); fails where a line is not whole."""
    text = (out / "metrics.csv").read_text(encoding="utf-8")
    assert text.endswith("\n")
    series: dict[tuple[str, str], dict[int, float]] = {}
    for row in csv.DictReader(text.splitlines(), strict=True):
        assert None not in row
        assert None not in row.values()
        series.setdefault((row["split"], row["metric"]), {})[int(row["step"])] = float(row["value"])
    return series


@contextlib.contextmanager
def cut_off(step: int):
    """End the training inside as Ctrl-C does, when it records what was measured at a step."""
    record = Run.record

    def stop(self, at, split, **metrics):
        if at == step:
            raise KeyboardInterrupt
        record(self, at, split, **metrics)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "record", stop)
        yield


def check_causality(model, words: torch.Tensor) -> None:
    """Check that each word (B, T) of 50 changes the logits of its own place and of all later ones, and no others."""
    logits = model(words)
    for t in range(words.shape[1]):
        changed = words.clone()
        changed[:, t] = (changed[:, t] + 1) % 50
        other = model(changed)
        assert torch.equal(other[:, :t], logits[:, :t])
        assert (other[:, t:] != logits[:, t:]).any(-1).all()


def watch(command: list, seconds: float | None = None, **options) -> tuple[list[tuple[float, str]], str]:
    """Run a program; return its lines, each with the seconds after the start at which it came, and its stderr.

    Raises RuntimeError, with the last lines of stderr, if it fails or takes more than so many seconds.
    """
    start = time.perf_counter()
    options["env"] = (options.get("env") or os.environ) | {"PYTHONUNBUFFERED": "1"}  # so that lines come at once
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        command = list(map(str, command))
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, **options
        )

        def end():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the workers of a program, too

        timer = threading.Timer(seconds or 10**6, end)
        timer.daemon = True
        timer.start()
        try:
            lines = [(time.perf_counter() - start, line.rstrip("\n")) for line in process.stdout]
            code = process.wait()
        finally:
            late = not timer.is_alive()
            timer.cancel()
            end()
        errors.seek(0)
        stderr = errors.read()
    if code:
        why = f"was stopped after {seconds:.0f} seconds" if late else f"ended with code {code}"
        last = [line.strip("│╭╮╰╯─ ") for line in stderr.splitlines()]  # without the frame of tyro's messages
        last = " / ".join(list(filter(None, last))[-4:]) or "no message"
        raise RuntimeError(f"{Path(command[1]).parent.name}/{Path(command[1]).name} {why}: {last}")
    return lines, stderr
