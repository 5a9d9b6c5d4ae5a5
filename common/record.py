"""What a run leaves behind: metrics.csv, result.json, the progress on the screen. The training loop is not in here."""

import dataclasses
import inspect
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from common import UserError
from common.curriculum import ROOT
from common.data import join_words

DRY_RUN_STEPS = 3
BAR = "{percentage:3.0f} % of {total_fmt} steps, {remaining} left{postfix}"
PROGRESS_LINES = 20  # printed by a whole run when the output is not a terminal; of a long one, one a minute
PICTURES = ("regions.png", "features.png", "attention.png", "loss.png")
HISTORY = ("samples.txt", "best.pt", "checkpoint.pt", "checkpoint.npz", "metrics.csv")  # a resumed run goes on with it
RUN_FILES = (*PICTURES, "result.json", *HISTORY)  # a run starts these anew
LARGEST = float(np.finfo(np.float32).max)  # 3.4e38
LARGEST_INT = 2**53  # every library takes it
OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory", "size calculation overflowed")
LIBRARIES = ("numpy", "torch", "jax", "optax", "datasets", "tiktoken")


class Run:
    """One training run: `with Run(config, baselines) as run:` opens `config.out` and keeps what `record` is told.

    `config` is the exercise's dataclass, with the fields `seed`, `out` and `dry_run`. `baselines` are losses that
    need no training, by name; the first is the one that the run must beat. `device` goes into result.json. `resume`,
    what `state` returned to an earlier run, cuts its files back to what they were then, to go on from there. Raises
    UserError where a baseline is not finite, where `config.out` cannot be written to, or where another run is using it.
    """

    def __init__(self, config, baselines: dict[str, float], device="cpu", resume: dict | None = None):
        self.config = config
        self.baselines = {name: float(value) for name, value in baselines.items()}
        for name, value in self.baselines.items():
            if not math.isfinite(value):
                raise UserError(f"the baseline {name} is {value}: look at the data, or take more of them")
        self.device = str(device)
        self.exercise = Path(inspect.getfile(type(config))).resolve().parent
        self.latest: dict[str, float] = {}  # the newest value of each metric, for the progress line
        self.resume = resume or {"sizes": {}, "least": {}, "seconds": 0.0}
        self.least: dict[str, float] = dict(self.resume["least"])  # the least value of each metric
        self._waiting: list[tuple[int, str, dict]] = []  # rows of which a GPU has not told yet
        self.quiet = False  # True for further seeds, which show no progress and leave no history

    def __enter__(self) -> "Run":
        out = self.config.out
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(out / ".lock")
            self._lock.acquire(timeout=0)
            sizes = self.resume["sizes"]
            for name in [name for name in RUN_FILES if not sizes or name not in HISTORY]:
                (out / name).unlink(missing_ok=True)  # what cannot be drawn again comes last
            for name, size in sizes.items():
                if (out / name).stat().st_size < size:
                    raise UserError(f"{out / name} is not the one of the checkpoint: run without --resume")
                os.truncate(out / name, size)
            # Unbuffered: a row is on its way to the disk as soon as it is recorded, and a full disk is noticed at once.
            self._csv = open(out / "metrics.csv", "ab", buffering=0)
        except Timeout:
            raise UserError(f"another run is writing to {out}: wait for it, or choose another with --out DIR") from None
        except OSError as error:
            raise UserError(
                f"cannot write to the folder {out} ({_reason(error)}): choose another with --out DIR"
            ) from None
        self._commit = _commit(self.exercise)  # now, since the code may change while it runs
        self._csv_bytes = sizes.get("metrics.csv", 0)  # length of the whole rows in the file
        self._write_csv("" if sizes else "step,split,metric,value\n")
        self._bar = None
        self._numpy_errors = np.seterr(over="ignore", invalid="ignore")  # record() says it, once and more clearly
        print("baselines: " + ", ".join(f"{name} {value:.4g}" for name, value in self.baselines.items()), flush=True)
        self._start = time.perf_counter() - self.resume["seconds"]
        return self

    def __exit__(self, kind, error, traceback) -> None:
        with suppress(Exception):  # which would hide `error`
            self._record_waiting()
        np.seterr(**self._numpy_errors)
        self._csv.close()
        self._lock.release()
        if self._bar is not None:
            self._bar.close()
        if kind is KeyboardInterrupt:
            print(f"interrupted: what was recorded so far is in {self.config.out / 'metrics.csv'}", file=sys.stderr)

    def state(self) -> dict:
        """Return what a checkpoint needs for `resume`: the files' lengths, the least metrics, the seconds so far."""
        files = [path for path in (self.config.out / "metrics.csv", self.config.out / "samples.txt") if path.exists()]
        for path in files:
            with open(path, "rb+") as file:
                os.fsync(file.fileno())  # so that no checkpoint is newer than what it tells of
        sizes = {path.name: path.stat().st_size for path in files}
        return {"sizes": sizes, "least": dict(self.least), "seconds": time.perf_counter() - self._start}

    def steps(self, total: int, first: int = 0) -> Iterator[int]:
        """Yield first, …, total - 1, the number of updates made before, and show the progress; a dry run stops at 3."""
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

    def record(self, step: int, split: str, **metrics: float) -> None:
        """Append one row a metric to metrics.csv: `step` is the number of updates made before it was measured.

        Values that a GPU is still busy with are read ten calls later, or with the next that are not. Raises UserError
        where a value is not finite (that row is not written) or where the disk takes no more.
        """
        self._waiting.append((step, split, metrics))
        if len(self._waiting) >= 10 or not all(getattr(value, "is_cuda", False) for value in metrics.values()):
            self._record_waiting()

    def _record_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for row in waiting:
            self._record(*row)

    def _record(self, step: int, split: str, metrics: dict[str, float]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                rate = getattr(self.config, "learning_rate", None)
                advice = "lower --learning-rate" if step else "that is before any update, so look at the data"
                raise UserError(f"{split} {name} is {value} at step {step} with learning rate {rate}: {advice}")
            self.latest[f"{split} {name}"] = value
            self.least[f"{split} {name}"] = min(value, self.least.get(f"{split} {name}", value))
        if not self.quiet:
            self._write_csv("".join(f"{step},{split},{name},{value!r}\n" for name, value in values.items()))

    def sample(self, step: int, words: Iterable[int], vocab: list[str], training: Iterable[int], length=4) -> None:
        """Append a text that a model wrote, its words given as numbers, to samples.txt, and print it.

        Over it stands the share of its runs of `length` words that the training words have too: a model that copies is
        seen. Runs of the prompt alone do not count: the drawn words are the last `config.sample_words`. A vocabulary
        that begins with "<unk>" is one of words, which is left out of the text; others are of characters. Raises
        UserError where the disk takes no more.
        """
        unknown = vocab[0] == "<unk>"
        if not hasattr(self, "_training"):
            self._training = "".join(map(chr, np.asarray(training)))  # where a run of words is found fast
        words = [int(word) for word in words]
        first = max(length, len(words) - self.config.sample_words + 1)  # of these runs ends before this word
        grams = [words[end - length : end] for end in range(first, len(words) + 1)]
        grams = ["".join(map(chr, gram)) for gram in grams if not (unknown and 0 in gram)]
        copied = sum(gram in self._training for gram in grams) / max(1, len(grams))
        text = join_words([vocab[word] for word in words if word]) if unknown else "".join(vocab[i] for i in words)
        self.write_sample(f"step {step}, {copied:.0%} of its {length}-grams stand in the training text", text)

    def write_sample(self, title: str, text: str) -> None:
        """Append a text under its title to samples.txt, and print it; UserError where the disk takes no more."""
        entry = f"--- {title}\n{text}\n\n"
        path = self.config.out / "samples.txt"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(entry)
        except OSError as error:
            raise UserError(f"cannot write to {path} ({_reason(error)}): every row of metrics.csv is kept") from None
        tqdm.write(entry, file=sys.stdout, end="")

    def finish(self, **metrics: float | list[float]) -> dict[str, float]:
        """Write result.json with the final metrics, print the result line, return the metrics.

        Of a list, one number for each seed, the metric is the mean; result.json has the list, too, under "finals".
        """
        seconds = time.perf_counter() - self._start
        finals = {name: values for name, values in metrics.items() if np.size(values) > 1}
        metrics = {name: float(np.mean(value)) for name, value in metrics.items()}
        result = {
            "exercise": self.exercise.name,
            "seed": self.config.seed,
            "config": {name: _portable(value) for name, value in dataclasses.asdict(self.config).items()},
            "metrics": metrics,
            **({"finals": finals} if finals else {}),
            "baselines": self.baselines,
            "seconds": round(seconds, 3),
            "device": _describe(self.device),
            "versions": _versions(),
            "commit": self._commit,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        path = self.config.out / "result.json"
        try:
            path.with_suffix(".tmp").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            os.replace(path.with_suffix(".tmp"), path)
        except OSError as error:
            raise UserError(
                f"cannot write {path} ({_reason(error)}): metrics.csv beside it is whole; make room"
            ) from None
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
                self._csv.truncate(self._csv_bytes)  # half a row would spoil the file for whoever reads it
            path = self.config.out / "metrics.csv"
            raise UserError(
                f"cannot write to {path} ({_reason(error)}): every row up to here is kept; make room, or choose "
                "another folder with --out DIR"
            ) from None
        self._csv_bytes += len(data)


@contextmanager
def clean_exit() -> Iterator[None]:
    """End the program with one sentence and exit code 1 where the user can mend it, with exit code 130 on Ctrl-C."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without "±" is no reason to stop
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except (MemoryError, RuntimeError) as error:  # torch's and JAX's own are RuntimeErrors
        if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in OUT_OF_MEMORY):
            raise
        reason = (str(error).splitlines() or ["no more is known"])[0]
        sys.exit(f"error: out of memory ({reason}): lower the sizes, --batch-size first (or --micro-batch)")
    except BrokenPipeError:  # whoever read our output, `| head` for instance, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def check_config(config, **ranges: float | tuple[float, float]) -> None:
    """Raise ValueError, which the command line shows as one sentence, unless every number in the config is in range.

    A number must be above 0 and fit into float32, a whole one below 2**53; a seed must not be negative. `ranges` gives
    by name the least that another number may be, or the least and the most.
    """
    for name, value in vars(config).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        flag, least = "--" + name.replace("_", "-"), {"seed": 0, **ranges}.get(name)
        most = LARGEST_INT if isinstance(value, int) else LARGEST
        if isinstance(least, tuple):
            least, most = least
        if least is None and not 0 < value <= most:
            raise ValueError(f"{flag} must be above 0 and at most {most:.2g}, not {value}")
        if least is not None and not least <= value <= most:
            raise ValueError(f"{flag} must be at least {least} and at most {most:.2g}, not {value}")


def torch_device(name: str):
    """Return the torch.device that a --device flag names; "auto" is the GPU where there is one.

    Raises UserError where this machine has no such device.
    """
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device in present if present[device])
    if not present[name]:
        raise UserError(f"--device {name}: torch finds no such device on this machine; use --device cpu, or auto")
    return torch.device(name)


def jax_device(name: str):
    """Return the JAX device that a --device flag names; "auto" is the GPU where there is one.

    Raises UserError where JAX finds no such device, for want of the device or of its CUDA plugin.
    """
    import jax

    try:
        return jax.devices(None if name == "auto" else name)[0]
    except RuntimeError:
        raise UserError(
            f'--device {name}: JAX finds no such device on this machine (its CUDA plugin: pip install -e ".[cuda]"); '
            "use --device cpu, or auto"
        ) from None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


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
    """Return the git commit of `folder`, with "-dirty" behind it where tracked files were changed; None outside git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
