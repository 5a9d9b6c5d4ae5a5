"""Measure exercises 14 to 17 on an NVIDIA GPU, in parts of at most nine minutes, and make the tables of their READMEs.

    python tests/gpu/measure.py smoke --checkout path/to/nanoGPT
    python tests/gpu/measure.py report

The parts, in the order of their worth: `smoke` (does everything run?), `vision` (15's images per second, 14's targets),
`language` (17 and 16 beside nanoGPT's own train.py, in turn), `changes` (what each change of 14 bought), `best` (16's
preset best on five seeds, then candidates for it). Nothing else should run on the machine. This program itself takes
no memory of the GPU. Each row is printed and written to --file as soon as it is there, and a part that is called again
measures what is missing. `report` prints the READMEs' tables from that file. `--rehearse` does all of it with tiny
sizes, on a CPU too, and writes to a file of its own.

Exercise 15 gets the 40 photographs of original size in data/imagenet_sample/fullres, each in its class, packed as
ImageNet is; the other 960 classes hold one of them each, so that there are as many as ImageNet has, and the compiled
program is the one for --dummy-data. Exercise 17 reads data/openwebtext_sample.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from itertools import chain, cycle
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from tyro.conf import Positional

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from common import UserError, imagenet
from common.checkpoint import whole_file
from common.curriculum import ROOT
from common.data import data_dir
from common.program import clean_exit

import peer_nanogpt
import peer_openwebtext
from helpers import train_py, watch

TARGETS = {  # of exercise 14: each target, the flags for it, and how many seeds
    "99.0 % in 0.3 s": ("--steps 360 --eval-every 360 --rotate 0 --scale 0 --shear 0", 20),
    "99.5 % in 1 s (the preset)": ("", 20),
    "99.65 % in 6 s": ("--steps 6000 --eval-every 6000 --rotate 10 --scale 0.1 --shear 0.1 --shift 2", 10),
}
SPEEDS = {  # of exercise 15, at its GPU preset: what is measured, and the flags for it
    "the device alone": "--dummy-data",
    "with photographs": "",
    "the device alone, at 160 pixels": "--dummy-data --train-size 160",
    "with photographs, at 160 pixels": "--train-size 160",
}
SPEED_STEPS = 300  # of each of them: so many that the batches prefetched at the start do not matter
IMAGENET = 1_281_167  # training images
MICRO_BATCH = 32  # of 480 sequences per step, in exercise 17 and in nanoGPT
LOSS = 1.47  # of exercise 16: nanoGPT's, and the one to which the time is taken
SEEDS = 5  # of its preset best
CANDIDATES = (  # flags beside --preset best, which has dropout 0.4 and 3,000 steps; the likeliest first
    *("--dropout 0.5", "--dropout 0.3", "--learning-rate 0.002", "--steps 2000", "--dropout 0.5 --steps 4500"),
    *("--weight-decay 1", "--layers 4", "--dropout 0.2", "--steps 4500", "--learning-rate 0.0005", "--channels 288"),
    "--dropout 0.3 --weight-decay 1",
)
SMOKE = {  # some hundred steps of each exercise; of 17, whose steps are long, fewer
    14: "--steps 240 --eval-every 240",
    15: "--steps 100 --eval-every 100",
    16: "--preset nanogpt --steps 300 --max-new-tokens 1",
    17: f"--preset gpt2 --no-whole --micro-batch {MICRO_BATCH} --steps 20 --eval-every 1000 --max-new-tokens 1",
}
TINY = {  # flags of a rehearsal, behind all others
    14: "--dry-run --channels 2 --batch-size 100",
    15: "--depth 18 --channels 2 --batch-size 64 --size 32 --train-size 32 --workers 0 --steps 2 --eval-every 2",
    16: "--dry-run --block-size 64 --channels 24 --layers 1 --batch-size 4",
    17: "--dry-run --block-size 64 --channels 16 --heads 2 --layers 1 --batch-size 4",
}
PARTS = ("smoke", "vision", "language", "changes", "best", "report")


@dataclass
class Config:
    parts: Positional[tuple[Literal[PARTS], ...]] = PARTS  # what to measure, or report
    checkout: Path | None = None  # folder of a nanoGPT checkout; without one its rows are left out
    file: Path = Path(__file__).parent / "out" / "measured.json"  # the rows
    minutes: float = 9.0  # longest time of a part
    rehearse: bool = False  # tiny sizes, to see that everything works

    def __post_init__(self):
        if self.rehearse:
            self.file = self.file.with_name("rehearsal.json")


def machine(rehearse: bool) -> str:
    """Return the card, its driver and the versions; UserError if there is no NVIDIA GPU. Nothing touches the GPU."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        card = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()[0]
        card = card.replace(", ", ", driver ")
    except (OSError, subprocess.CalledProcessError, IndexError):
        if not rehearse:
            raise UserError(
                "nvidia-smi finds no NVIDIA GPU here, so there is nothing to measure: run it where there is one, or "
                "give --rehearse to try it with tiny sizes"
            ) from None
        card = "no GPU: a rehearsal"
    versions = []
    for name in ("numpy", "torch", "jax", "optax"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    return ", ".join([card, f"Python {sys.version.split()[0]}", *versions])


def commit() -> str:
    """Return the git commit of this checkout, or that there is none."""
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    return "unknown"


@contextlib.contextmanager
def memory():
    """Yield a list whose one entry is the most memory of the GPU, in GB, that was in use inside; 0 without a GPU."""
    most, done = [0.0], threading.Event()
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]

    def look():
        while not done.wait(0.5):
            try:
                used = subprocess.run(query, capture_output=True, text=True, timeout=5).stdout.split()
                most[0] = max(most[0], float(used[0]) * 2**20 / 1e9)
            except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def scratch() -> tempfile.TemporaryDirectory:
    """Return a temporary folder, in memory where there is much: a checkpoint of exercise 17 has 1.5 GB."""
    shm = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=shm if shm.is_dir() and shutil.disk_usage(shm).free > 2e10 else None)


def train(config, number, flags, seconds, **environment):
    """Run an exercise; return its lines, its stderr and its result.json."""
    flags = [*flags.split(), *(TINY[number].split() if config.rehearse else [])]
    with scratch() as out:
        command = [sys.executable, train_py(number), "--out", out, *flags]
        lines, stderr = watch(command, seconds, env=os.environ | environment)
        where = Path(out, "dry_run" if "--dry-run" in flags else "")
        return [line for _, line in lines], stderr, json.loads((where / "result.json").read_text())


def data_of_15(config):
    """Return the flags and the environment with which exercise 15 reads the photographs.

    The packed photographs and what JAX has compiled are kept beside --file, for the rows and calls to come.
    """
    place = config.file.parent.resolve()
    folder = place / ("pictures" if config.rehearse else "photographs")
    link_photographs(folder, config.rehearse)
    cache = {"JAX_COMPILATION_CACHE_DIR": str(place / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return f"--data {folder}", {"RAMPUP_DATA": str(place), **cache}


def link_photographs(folder, rehearse):
    """Fill an image folder of 1,000 classes: of the sample's photographs eight links each, of other classes one.

    In a rehearsal they are random pictures of 80 × 64 pixels.
    """
    if rehearse:
        photographs, pictures = [folder / f"class{i}" / "0.jpeg" for i in range(10)], imagenet.made_up(1)[0]
        for i, photograph in enumerate(photographs):
            photograph.parent.mkdir(parents=True, exist_ok=True)
            if not photograph.exists():
                photograph.write_bytes(pictures[i])
    else:
        photographs = sorted((data_dir() / "imagenet_sample" / "fullres").resolve().glob("*/*"))
    if not photographs:
        raise UserError(f"there are no photographs in {data_dir() / 'imagenet_sample' / 'fullres'}")
    known = {photograph.parent.name for photograph in photographs}
    others = [f"other{i:03}" for i in range(1000 - len(known))]
    for split, times in (("train", 8), ("val", 1)):
        for photograph in photographs:
            for i in range(times):
                link(photograph, folder / split / photograph.parent.name / f"{i}-{photograph.name}")
        for name, photograph in zip(others, cycle(photographs)):
            link(photograph, folder / split / name / photograph.name)


def link(photograph, path):
    """Make a link to a photograph, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(photograph)


def smoke(config, rows):
    """Yield a row for each exercise: a dry run, then some hundred steps."""

    def both(number, seconds):
        start = time.perf_counter()
        train(config, number, "--dry-run --depth 18" if number == 15 else "--dry-run", seconds)
        dry = time.perf_counter() - start
        if config.rehearse:
            return {"dry": dry}
        flags, environment = data_of_15(config) if number == 15 else ("", {})
        if number == 17:
            flags = f"--data {data_dir() / 'openwebtext_sample'}"
        with memory() as most:
            found = train(
                config,
                number,
                f"{flags} {SMOKE[number]}",
                seconds - dry,
                XLA_PYTHON_CLIENT_PREALLOCATE="false",  # else JAX takes three quarters, whatever it needs
                **environment,
            )
        lines, stderr, result = found
        said = [line for line in lines if re.search(r"^preset |preset, and|tokens per step|^speed|^result", line)]
        times = {"dry": dry, "seconds": time.perf_counter() - start - dry, "GB": most[0]}
        return {**times, "compiled": "not compiled" not in stderr, "said": said, "stderr": stderr[-500:]}

    for number, needed in ((14, 90), (16, 90), (17, 120), (15, 150)):
        yield f"exercise {number}", needed, partial(both, number)


def vision(config, rows):
    """Yield a row for each speed of exercise 15 and each target of exercise 14."""

    def speed(flags, seconds):
        data, environment = data_of_15(config)
        length = f"--steps {SPEED_STEPS} --eval-every {SPEED_STEPS}"
        *_, result = train(config, 15, f"{data} {length} {flags}", seconds, **environment)
        seen = result["metrics"]
        return {"rate": seen["images_per_second"], "data_ms": seen["data_ms"], "loss": seen["train_loss"]}

    def target(flags, seeds, seconds):
        seeds = 2 if config.rehearse else seeds
        *_, result = train(config, 14, f"--seeds {seeds} {flags}", seconds)
        return {**result["finals"], "compile_seconds": result["metrics"]["compile_seconds"]}

    speeds = [(name, 150, partial(speed, flags)) for name, flags in SPEEDS.items()]
    targets = [(name, 100, partial(target, *flags_and_seeds)) for name, flags_and_seeds in TARGETS.items()]
    yield from chain(speeds[:2], targets, speeds[2:])


def language(config, rows):
    """Yield rows of exercise 17 and nanoGPT, then of exercise 16 and nanoGPT, then of 17's losses beside nanoGPT's."""
    sample = data_dir() / "openwebtext_sample"
    small = "--n_layer=1 --n_head=1 --n_embd=16 --device=cpu --compile=False --dtype=float32"  # nanoGPT's rehearsal

    def ours_17(seconds):
        flags = f"--preset gpt2 --no-whole --data {sample} --steps 40 --eval-every 1000000 --max-new-tokens 1"
        flags = [*flags.split(), "--micro-batch", str(MICRO_BATCH), *(TINY[17].split() if config.rehearse else [])]
        with scratch() as out:
            return peer_openwebtext.our_speed(flags, out, seconds=seconds)

    def theirs_17(seconds):
        with scratch() as folder:
            copy = peer_openwebtext.prepare(config.checkout, sample, Path(folder))
            tiny = f"{small} --block_size=8 --log_interval=5".split() if config.rehearse else []
            return peer_openwebtext.their_speed(copy, MICRO_BATCH, 16 if config.rehearse else 40, tiny, seconds=seconds)

    def ours_16(seconds):
        flags = ["--preset", "nanogpt", *(TINY[16].split() if config.rehearse else [])]
        return peer_nanogpt.ours(flags, LOSS, seconds=seconds)

    def theirs_16(seconds):
        with scratch() as folder:
            copy = peer_nanogpt.prepare(config.checkout, Path(folder))
            tiny = f"{small} --max_iters=30 --eval_iters=1".split() if config.rehearse else []
            seen = peer_nanogpt.theirs(copy, tiny, LOSS, seconds=seconds)
            if not config.rehearse:
                seen["whole"] = peer_nanogpt.their_loss(copy)  # on the CPU
            return seen

    def losses(seconds):
        bench = Path(__file__).parent.parent / "bench" / "peer_openwebtext.py"
        flags = "preset=gpt2 no-whole batch-size=64"  # 64 × 1,024 = 65,536 tokens
        command = [sys.executable, bench, "losses", "--checkout", config.checkout, "--documents", sample]
        lines, _ = watch([*command, "--steps", 100, "--flags", flags], seconds)
        return {"table": [line for _, line in lines]}

    yield "17", 130, ours_17
    if config.checkout:
        yield "17, nanoGPT", 130, theirs_17
    yield "16, nanogpt", 110, ours_16
    if config.checkout:
        yield "16, nanoGPT", 140, theirs_16
        if not config.rehearse:
            yield "17, losses", 150, losses


def changes(config, rows):
    """Yield one row: exercise 14's table of what each change bought."""

    def table(seconds):
        bench = Path(__file__).parent.parent / "bench" / "changes.py"
        lines, _ = watch([sys.executable, bench, *(["--dry-run"] if config.rehearse else [])], seconds)
        return {"table": [line for _, line in lines if line]}

    yield "14, changes", 300, table


def best(config, rows):
    """Yield a row for each seed of exercise 16's preset best, and for each candidate."""

    def run(flags, seconds):
        flags = ["--preset", "best", *flags.split(), *(TINY[16].split() if config.rehearse else [])]
        return peer_nanogpt.ours(flags, LOSS, seconds=seconds)

    for seed in range(2 if config.rehearse else SEEDS):
        yield f"best, seed {seed}", 70, partial(run, f"--seed {seed}")
    for flags in CANDIDATES[: 1 if config.rehearse else None]:
        yield f"best {flags}", 70, partial(run, flags)


def load_rows(path):
    """Return the rows of a file: by machine, by name; {} if there is none."""
    try:
        return json.loads(path.read_text())
    except OSError:
        return {}
    except ValueError:
        raise UserError(f"{path} is damaged: delete it, and measure again") from None


def measure(config, part, here):
    """Measure what is missing of a part on this machine, at most for its minutes; write and print each row."""
    end = time.perf_counter() + 60 * config.minutes
    for name, needed, row_of in globals()[part](config, here):
        left = end - time.perf_counter()
        if "error" not in here["rows"].get(name, {"error": ""}):
            print(f"{part}: {name}: measured before", flush=True)
            continue
        if left < needed and not config.rehearse:
            print(f"{part}: {name} would take about {needed} seconds more: call it again for what is left", flush=True)
            return
        start = time.perf_counter()
        try:
            row = row_of(left)
        except Exception as error:  # a row that fails costs its time, and no more
            row = {"error": (str(error).strip() or repr(error))[:2000]}
        row |= {"took": round(time.perf_counter() - start, 1), "commit": commit()}
        here["rows"][name] = row
        yield name, row


def cell(value, form="{:,.0f}"):
    """Return a figure for a table: a number, or several as mean ± standard deviation; of None that it is missing."""
    if value is None or (isinstance(value, list) and not value):
        return "not yet measured"
    if not isinstance(value, list):
        return form.format(value)
    spread = f" ± {form.format(np.std(value, ddof=1))}" if len(value) > 1 else ""
    return form.format(np.mean(value)) + spread


def ratio(one, other, form="{:.2f}"):
    """Return the ratio of two figures for a table, or that it is missing."""
    return cell(one / other if one and other else None, form)


def report(about, rows):
    """Return the READMEs' tables of one machine as lines; a figure that was not measured says so."""

    def of(name, key):
        return rows.get(name, {}).get(key)

    yield f"## {about}"
    commits = {row["commit"] for row in rows.values()}
    yield f"\ncommit {', '.join(sorted(commits)) or 'none'}"
    yield "\n### Does it run?\n"
    yield "| | dry run, seconds | the run, seconds | GB of the GPU at most | compiled |\n|---|---|---|---|---|"
    for number in (14, 15, 16, 17):
        row = rows.get(f"exercise {number}", {})
        times = " | ".join(cell(row.get(key), "{:.1f}") for key in ("dry", "seconds", "GB"))
        yield f"| exercise {number} | {times} | {cell(row.get('compiled'), '{}')} |"
        yield from row.get("said", [])
    seeds = ", ".join(f"{name}: {count}" for name, (_, count) in TARGETS.items())
    yield f"\n### Exercise 14 (seeds from 0 on; {seeds})\n"
    yield "| target | test accuracy | seconds of training | seconds of compiling |\n|---|---|---|---|"
    for name in TARGETS:
        accuracies = of(name, "test_accuracy")
        right = [100 * value for value in accuracies] if accuracies else None
        times = f"{cell(of(name, 'train_seconds'), '{:.3f}')} | {cell(of(name, 'compile_seconds'), '{:.1f}')}"
        yield f"| {name} | {cell(right, '{:.3f}')}{' %' if right else ''} | {times} |"
    yield ""
    yield from of("14, changes", "table") or ["| one change after the other | not yet measured |"]
    yield f"\n### Exercise 15, {SPEED_STEPS} steps of its preset, seed 0\n"
    yield "| | images per second | of the device alone | 16 epochs of ImageNet | 90 epochs |\n|---|---|---|---|---|"
    alone = None
    for name, flags in SPEEDS.items():
        rate = of(name, "rate")
        alone = rate if "--dummy-data" in flags else alone
        hours = [cell(epochs * IMAGENET / rate / 3600 if rate else None, "{:.1f} h") for epochs in (16, 90)]
        yield f"| {name} | {cell(rate)} | {ratio(rate, alone, '{:.0%}')} | {' | '.join(hours)} |"
    yield "\n### Exercise 16, seed 0; preset best: all seeds that were run\n"
    yield f"| | ms per step | last loss | least loss | seconds in total | seconds to {LOSS} | speed |"
    yield "|---|---|---|---|---|---|---|"
    bests = [name for name in rows if name.startswith("best, seed")]
    groups = {"preset nanogpt": ["16, nanogpt"], "nanoGPT's own train.py": ["16, nanoGPT"], "preset best": bests}
    groups |= {name: [name] for name in rows if name.startswith("best --")}
    for title, names in groups.items():
        runs = [rows[name] for name in names if "ms" in rows.get(name, {})]
        last, least = ([f(run["losses"]) for run in runs] for f in (lambda losses: losses[-1], min))
        reached = [run["reached"] for run in runs if run["reached"]]
        reached = cell(reached, "{:.1f}") if reached or not runs else "never"
        ms, total = ([run[key] for run in runs] for key in ("ms", "seconds"))
        cells = (cell(ms, "{:.2f}"), cell(last, "{:.4f}"), cell(least, "{:.4f}"), cell(total, "{:.1f}"), reached)
        yield f"| {title} | {' | '.join(cells)} | {runs[0]['speed'] if runs else ''} |"
    if of("16, nanoGPT", "whole"):
        yield f"\nnanoGPT's kept checkpoint on the whole validation set: {of('16, nanoGPT', 'whole'):.4f}"
    ours, theirs = rows.get("16, nanogpt", {}), rows.get("16, nanoGPT", {})
    soon = [rows[name]["reached"] for name in bests if rows[name].get("reached")]
    yield f"time per step, preset nanogpt to nanoGPT: {ratio(ours.get('ms'), theirs.get('ms'))}"
    yield f"time to {LOSS}, preset best to nanoGPT: {ratio(np.mean(soon) if soon else None, theirs.get('reached'))}"
    yield f"\n### Exercise 17, 40 steps, micro-batches of {MICRO_BATCH}, seed 0\n"
    head = "124M, context length 1,024, bfloat16, compiled, 491,520 tokens per step"
    yield f"| {head} | tokens/s | MFU | ratio to nanoGPT |\n|---|---|---|---|"
    speed = of("17", "speed") or ""
    mfu = re.search(r"MFU: ([\d.]+%|unknown chip)", speed)
    late = " (not compiled)" if "not compiled" in speed else ""
    both = ratio(of("17", "rate"), of("17, nanoGPT", "rate"))
    yield f"| {about.split(',')[0]}{late} | {cell(of('17', 'rate'))} | {cell(mfu and mfu[1], '{}')} | {both} |"
    yield f"| nanoGPT's own train.py | {cell(of('17, nanoGPT', 'rate'))} | | |\n"
    yield from of("17, losses", "table") or ["the same weights and batches: not yet measured"]
    failed = {name: row["error"] for name, row in rows.items() if "error" in row}
    yield from chain(["\n### What failed\n"] if failed else [], (f"- {name}: {why}" for name, why in failed.items()))


def main(config: Config) -> None:
    if config.rehearse:
        config.file.unlink(missing_ok=True)
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiling is most of a rehearsal
    machines = load_rows(config.file)
    for part in config.parts:
        if part == "report":
            if not machines:
                print("nothing is measured yet")
            for about, here in machines.items():
                print("\n".join(report(about, here["rows"])), flush=True)
            continue
        about = machine(config.rehearse)
        config.file.parent.mkdir(parents=True, exist_ok=True)
        here = machines.setdefault(about, {"rows": {}})
        print(f"{part}, on {about}", flush=True)
        for name, row in measure(config, part, here):
            with whole_file(config.file) as file:
                file.write((json.dumps(machines, indent=1) + "\n").encode())
            shown = {key: value for key, value in row.items() if key not in ("losses", "stderr", "commit")}
            print(f"{part}: {name}: {json.dumps(shown, ensure_ascii=False)}", flush=True)


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
