"""What a run leaves behind: metrics.csv, result.json, the progress on the screen. The training loop is not in here."""

import ast
import dataclasses
import hashlib
import inspect
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from common import UserError
from common.checkpoint import CHECKPOINTS, whole_file
from common.curriculum import ROOT
from common.plotting import save
from common.program import Terminated
from common.text import as_characters, copied_share, join_words

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

DRY_RUN_STEPS = 3
BAR = "{percentage:3.0f} % of {total_fmt} steps, {remaining} left{postfix}"
PROGRESS_LINES = 20  # of a run whose output is not a terminal; a long run prints more, one per minute
PICTURES = ("regions.png", "features.png", "attention.png", "loss.png")
HISTORY = ("samples.txt", "metrics.csv")  # a resumed run keeps the part that is older than its checkpoint
RUN_FILES = (*PICTURES, "trace.json.gz", "result.json", "run.json", *CHECKPOINTS, *HISTORY)  # a run starts these anew
DEAR = 600  # a checkpoint that took more seconds is replaced only with --overwrite
LIBRARIES = ("numpy", "torch", "jax", "optax", "datasets", "tiktoken")


class Run:
    """One training run: `with Run(config, baselines) as run:` opens `run.out` and saves what is recorded.

    `config` is the exercise's dataclass, with the fields `seed`, `out` and `dry_run`. `run.out` is `config.out`, or its
    folder dry_run for a dry run, so that a real run is not touched. `baselines` are losses that need no training, by
    name; the first is the one that the run must beat. `device` goes into result.json. `resume` is what `state` returned
    in an earlier run: its files are cut back to what they were then, and the run continues from there.

    Raises UserError if a baseline is not finite, if `run.out` cannot be written to, if another run is using it, and
    if files would be lost: another exercise's, or a checkpoint that took more than ten minutes.
    """

    def __init__(self, config, baselines: dict[str, float], device="cpu", resume: dict | None = None):
        self.config = config
        self.out = config.out / "dry_run" if config.dry_run else config.out
        self.baselines = {name: float(value) for name, value in baselines.items()}
        for name, value in self.baselines.items():
            if not math.isfinite(value):
                raise UserError(f"the baseline {name} is {value}, not finite: check the data, or use more of it")
        self.device = str(device)
        self.program = _file_of(config)
        self.exercise = self.program.parent
        self.resume = resume
        self.latest: dict[str, float] = {}  # the newest value of each metric, for the progress line
        self.least: dict[str, float] = {}  # the least value of each metric
        if resume:
            self.latest, self.least = dict(resume["latest"]), dict(resume["least"])
        self._waiting: list[tuple[int, str, dict]] = []  # rows whose values may still lie on a device
        self.quiet = False  # True for further seeds, which show no progress and leave no history

    def __enter__(self) -> "Run":
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.out / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            where = f"another run is writing to {self.out}"
            raise UserError(f"{where}: wait for it, or choose another folder with --out DIR") from None
        except OSError as error:
            raise self._cannot_write(self.out, error) from None
        try:
            self._begin()
        except OSError as error:
            self._lock.release()
            raise self._cannot_write(self.out, error) from None
        except UserError:
            self._lock.release()
            raise
        self._bar = None
        self._numpy_errors = np.seterr(over="ignore", invalid="ignore")  # record() says it, once and more clearly
        print("baselines: " + ", ".join(f"{name} {value:.4g}" for name, value in self.baselines.items()), flush=True)
        self._start = time.perf_counter() - (self.resume["seconds"] if self.resume else 0.0)
        return self

    def _begin(self) -> None:
        """Prepare the folder: delete the files of an earlier run, or cut them back to the checkpoint."""
        sizes = self.resume["sizes"] if self.resume else {}
        if self.resume:
            for name in HISTORY:
                path = self.out / name
                if (path.stat().st_size if path.exists() else 0) < sizes.get(name, 0):
                    reason = f"{path} is shorter than it was at the checkpoint"
                    raise UserError(f"{reason}: restore the whole file, or start a new run in another --out")
        else:
            self._refuse_to_lose()
        self._about = _about(self.config, self.program, self.device) | {"baselines": self.baselines}
        seconds = {"seconds": self.resume["seconds"]} if self.resume else {}
        self._write_json("run.json", self._about | seconds)  # first: it says whose files the others are
        for name in RUN_FILES:
            path = self.out / name
            path.with_name(f"{name}.tmp").unlink(missing_ok=True)  # left by a killed run
            if name == "run.json" or (self.resume and name in CHECKPOINTS):
                continue
            if self.resume and name in HISTORY and path.exists():
                os.truncate(path, sizes.get(name, 0))
            else:
                path.unlink(missing_ok=True)
        # Unbuffered: a row is on its way to the disk as soon as it is recorded, and a full disk is noticed at once.
        self._csv = open(self.out / "metrics.csv", "ab", buffering=0)  # noqa: SIM115, __exit__ closes it
        self._csv_bytes = sizes.get("metrics.csv", 0)  # length of the whole rows in the file
        if not self._csv_bytes:
            self._write_csv("step,split,metric,value\n")

    def _refuse_to_lose(self) -> None:
        """Raise UserError if the folder holds another exercise's files, or a checkpoint that took long."""
        there = [name for name in RUN_FILES if (self.out / name).exists()]
        earlier = _read_json(self.out / "run.json") or _read_json(self.out / "result.json")
        at_home = self.out.resolve().is_relative_to(self.exercise / "out") and (earlier or "metrics.csv" in there)
        if there and not at_home and earlier.get("exercise") != self.exercise.name:
            whose = earlier.get("exercise", "another program")
            raise UserError(f"{self.out / there[0]} belongs to {whose}, and would be lost: choose another --out DIR")
        dear = [name for name in there if name in CHECKPOINTS]
        seconds = earlier.get("seconds", math.inf)
        if dear and seconds > DEAR and not getattr(self.config, "overwrite", False):
            took = f"took {seconds / 60:,.0f} minutes" if seconds < math.inf else "may have taken long"
            advice = "continue it with --resume, choose another --out DIR, or replace it with --overwrite"
            raise UserError(f"{self.out / dear[0]} {took}, and a new run would replace it: {advice}")

    def __exit__(self, kind, error, traceback) -> None:
        with suppress(Exception):  # which would hide `error`
            self._record_waiting()
        np.seterr(**self._numpy_errors)
        self._csv.close()
        self._lock.release()
        if self._bar is not None:
            self._bar.close()
        if kind in (KeyboardInterrupt, Terminated):
            how = "interrupted" if kind is KeyboardInterrupt else "ended by SIGTERM"
            print(f"{how}: {self._kept()}", file=sys.stderr)

    def state(self) -> dict:
        """Return what a checkpoint needs for `resume`: lengths of the files, latest and least metrics, the seconds."""
        self._record_waiting()
        sizes = {}
        try:
            for name in HISTORY:
                if (self.out / name).exists():
                    with open(self.out / name, "rb+") as file:
                        os.fsync(file.fileno())  # so that no checkpoint is newer than these files
                        sizes[name] = os.fstat(file.fileno()).st_size
        except OSError as error:  # somebody has just deleted it
            raise self._cannot_write(self.out, error) from None
        seconds = time.perf_counter() - self._start
        self._write_json("run.json", self._about | {"seconds": round(seconds, 3)})
        return {"sizes": sizes, "latest": dict(self.latest), "least": dict(self.least), "seconds": seconds}

    def steps(self, total: int, first: int = 0) -> Iterator[int]:
        """Yield the steps first, …, total - 1 (updates made before), and show the progress; a dry run stops at 3."""
        total = min(total, DRY_RUN_STEPS) if self.config.dry_run else total
        on_terminal = sys.stdout is not None and sys.stdout.isatty()
        hidden = self.quiet or not on_terminal
        style = {"file": sys.stdout, "dynamic_ncols": True, "bar_format": BAR, "disable": hidden}
        self._bar = tqdm(range(first, total), initial=first, total=total, **style)
        shown = time.perf_counter()
        for step in self._bar:
            yield step
            if self.quiet:
                continue
            if on_terminal and time.perf_counter() - shown > 0.2:
                shown = time.perf_counter()
                self._bar.set_postfix_str(self._progress(), refresh=False)
            due = (step + 1) * PROGRESS_LINES // total > step * PROGRESS_LINES // total
            if not on_terminal and (due or time.perf_counter() - shown > 60):
                shown = time.perf_counter()
                print(f"step {step + 1:{len(str(total))}d}/{total}  {self._progress()}", flush=True)

    def record(self, step: int, split: str, **metrics) -> None:
        """Append one row per metric to metrics.csv: `step` is the number of updates made before it was measured.

        A metric may have n values (n,), of the steps `step`, …, `step` + n - 1. Values that a device may still have to
        compute, JAX's or those of torch on a GPU, are read when ten others have followed, so that the loop need not
        wait. Raises UserError if a value is not finite (that row is not written) or if the disk is full.
        """
        self._waiting.append((step, split, metrics))
        if not any(map(_on_device, metrics.values())):
            self._record_waiting()
        elif sum(math.prod(row[0].shape) for row in (list(row.values()) for *_, row in self._waiting[:-1])) >= 10:
            self._record_waiting(newest=False)

    def _record_waiting(self, newest: bool = True) -> None:
        """Record the rows that wait, all or all but the newest."""
        rows, self._waiting = self._waiting, []  # which stays empty if a row is refused: what follows it is lost, too
        last = [] if newest else [rows.pop()]
        for step, split, metrics in rows:
            columns = [np.ravel(value.tolist() if hasattr(value, "tolist") else value) for value in metrics.values()]
            for i, row in enumerate(zip(*columns, strict=True)):  # of one step each
                self._record(step + i, split, dict(zip(metrics, map(float, row))))
        self._waiting = last

    def _record(self, step: int, split: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                rate = getattr(self.config, "learning_rate", None)
                advice = "lower --learning-rate" if step else "that is before any update, so check the data"
                advice = "look at the sign of the loss" if value == -math.inf else advice
                raise UserError(f"{split} {name} is {value} at step {step} with learning rate {rate}: {advice}")
            self.latest[f"{split} {name}"] = value
            self.least[f"{split} {name}"] = min(value, self.least.get(f"{split} {name}", value))
        if not self.quiet:
            self._write_csv("".join(f"{step},{split},{name},{value!r}\n" for name, value in values.items()))

    def sample(self, step: int, tokens: Iterable[int], vocab: list[str], training: Iterable[int], length=4) -> None:
        """Append a text that a model generated, given as token ids, to samples.txt, and print it.

        Its title says which share of its n-grams (n = `length`) also occurs in the training tokens: how much the model
        copies. N-grams of the prompt alone do not count: the new tokens are the last `config.max_new_tokens`. In a
        vocabulary that begins with "<unk>" the tokens are words, and "<unk>" is left out of the text; else they are
        characters. Raises UserError if the disk is full.
        """
        words = vocab[0] == "<unk>"
        if not hasattr(self, "_training"):
            self._training = as_characters(training)
        tokens = [int(token) for token in tokens]
        copied = copied_share(tokens, self._training, length, len(tokens) - self.config.max_new_tokens, words)
        text = join_words([vocab[i] for i in tokens if i]) if words else "".join(vocab[i] for i in tokens)
        self.write_sample(f"step {step}, {copied:.0%} of its {length}-grams stand in the training text", text)

    def write_sample(self, title: str, text: str) -> None:
        """Append a text under its title to samples.txt, and print it; UserError if the disk is full."""
        entry = f"--- {title}\n{text}\n\n"
        path = self.out / "samples.txt"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(entry)
        except OSError as error:
            raise self._cannot_write(path, error) from None
        tqdm.write(entry, file=sys.stdout, end="")

    def finish(self, **metrics: float | list[float]) -> dict[str, float]:
        """Write result.json with the final metrics, print the result line, return the metrics.

        If a metric is a list, one number per seed, its mean is reported; result.json also has the list, under "finals".
        """
        seconds = time.perf_counter() - self._start
        finals = {name: values for name, values in metrics.items() if np.size(values) > 1}
        metrics = {name: float(np.mean(value)) for name, value in metrics.items()}
        measured = {"metrics": metrics, **({"finals": finals} if finals else {}), "seconds": round(seconds, 3)}
        self._write_json("result.json", self._about | measured)
        (self.out / "run.json").unlink(missing_ok=True)
        if self._bar is not None:
            self._bar.close()
        shown = {name: f"{value:.4g}" for name, value in metrics.items()}
        shown |= {name: f"{shown[name]}±{np.std(values, ddof=1):.2g}" for name, values in finals.items()}
        shown = " ".join(f"{name}={value}" for name, value in shown.items())
        print(f"result: {shown} seconds={seconds:.1f}", flush=True)
        return metrics

    def _progress(self) -> str:
        return "  ".join(f"{name} {value:.4g}" for name, value in self.latest.items())

    def _write_csv(self, rows: str) -> None:
        data = rows.encode()
        try:
            if self._csv.write(data) < len(data):
                raise OSError("the disk is full")
        except OSError as error:
            with suppress(OSError):
                self._csv.truncate(self._csv_bytes)  # half a row would make the file unreadable
            raise self._cannot_write(self.out / "metrics.csv", error) from None
        self._csv_bytes += len(data)

    def _write_json(self, name: str, content: dict) -> None:
        try:
            with whole_file(self.out / name) as file:
                file.write((json.dumps(content, indent=2) + "\n").encode())
        except OSError as error:
            raise self._cannot_write(self.out / name, error) from None

    def _cannot_write(self, path: Path, error: OSError) -> UserError:
        what = f"cannot write to {'the folder ' if path == self.out else ''}{path} ({error.strerror or error})"
        kept = f"; {self._kept()}" if hasattr(self, "_csv") else ""
        return UserError(f"{what}: free some space there, or choose another folder with --out DIR{kept}")

    def _kept(self) -> str:
        path = self.out / "metrics.csv"
        return f"what was recorded so far is in {path}" if path.exists() else f"{path} is gone, nothing was kept"


def answer(config, figure, **numbers: float | tuple[float, float | None, float | None]) -> dict[str, float]:
    """Print what a question's program has measured and whether its predictions held; return the numbers.

    A number comes as (value, least, most), the range that was predicted for it, with None where that has no end, or
    alone. They and the figure go into `config.out`, as <program's name>.json and .png; a dry run's into its dry_run,
    without a verdict. Raises UserError if a value is not finite, or if the files cannot be written.
    """
    program, entries = _file_of(config), {}
    for name, number in numbers.items():
        value, *ends = number if isinstance(number, tuple) else (number, None, None)
        if not math.isfinite(value):
            raise UserError(f"{name} is {value}, not finite: with these flags there is no answer, so change them")
        predicted = "" if config.dry_run else in_words(*ends)
        held = all(end is None or sign * (value - end) >= 0 for end, sign in zip(ends, (1, -1))) if predicted else None
        entries[name] = {"value": float(value), "predicted": ends, "held": held}
        verdict = f" (predicted {predicted}: {'yes' if held else 'no'})" if predicted else ""
        print(f"{name}={value:.4g}{verdict}", flush=True)
    path = (config.out / "dry_run" if config.dry_run else config.out) / f"{program.stem}.png"
    save(figure, path)
    question = ast.get_docstring(ast.parse(program.read_text(encoding="utf-8"))).partition("\n")[0]
    measured = {"numbers": entries, "cpu_seconds": round(time.process_time(), 3)}  # of the whole process
    content = json.dumps({"question": question} | _about(config, program, "cpu") | measured, indent=2)
    try:
        with whole_file(path.with_suffix(".json")) as file:
            file.write(f"{content}\n".encode())
    except OSError as error:
        raise UserError(f"cannot write into {path.parent} ({error.strerror}): choose another --out DIR") from None
    print(f"picture: {path}", flush=True)
    return {name: entry["value"] for name, entry in entries.items()}


def in_words(least: float | None, most: float | None) -> str:
    """Return a range as "0.98 to 1.02", "at least 1", "at most 1"; "" where it has no ends."""
    if least is None or most is None:
        return f"at least {least:g}" if least is not None else f"at most {most:g}" if most is not None else ""
    return f"{least:g} to {most:g}"


def _about(config, program: Path, device: str) -> dict:
    """Return what made the figures of a run: exercise, flags, machine, versions, code."""
    return {
        "exercise": program.parent.name,
        "seed": config.seed,
        "config": {name: _portable(value) for name, value in dataclasses.asdict(config).items()},
        "device": _describe(device),
        "versions": _versions(),
        "commit": _commit(program.parent),  # now, since the code may change while it runs
        "program": _sha256(program),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _on_device(value) -> bool:
    """Return whether reading a value may have to wait for a device: a JAX array, or a torch tensor on a GPU."""
    return hasattr(value, "is_ready") or getattr(getattr(value, "device", None), "type", "cpu") != "cpu"


def _file_of(config) -> Path:
    """Return the file of the program that defines a config, also if another one runs it (python -m cProfile)."""
    init = getattr(type(config), "__post_init__", None)
    return Path(init.__code__.co_filename if init else inspect.getfile(type(config))).resolve()


def _sha256(path: Path) -> str | None:
    """Return the sha256 of a file, by which a review sees that it was changed; None if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _read_json(path: Path) -> dict:
    """Return the contents of a JSON file; {} if it is missing or not complete."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _portable(value):
    """Return a config value that is the same on every machine: paths relative to the checkout, or the name alone."""
    if not isinstance(value, Path):
        return value
    path = value.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _describe(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return f"cuda, {torch.cuda.get_device_name()}"
    if device not in ("cpu", "mps"):  # JAX names a GPU by its model
        return f"cuda, {device}"
    return f"{device}, {os.cpu_count()} cores, {platform.machine()}"


def _versions() -> dict[str, str]:
    loaded = [name for name in LIBRARIES if name in sys.modules]
    versions = {name: str(getattr(sys.modules[name], "__version__", "unknown")) for name in loaded}
    return {"python": platform.python_version()} | versions


def _commit(folder: Path) -> str | None:
    """Return the git commit of `folder`, followed by "-dirty" if tracked files were changed; None outside git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
