"""Exercise 16 and nanoGPT's own train.py on a CPU, in turn: milliseconds per iteration, and seconds until a loss.

    python tests/bench/peer_nanogpt.py --checkout path/to/nanoGPT --rounds 3

The checkout is copied to a temporary folder and gets its data there by its own prepare.py. It trains with the flags
that its README gives for a laptop; both use as many threads as OMP_NUM_THREADS says. An iteration's time is without
evaluations: of nanoGPT from when its lines arrive, of exercise 16 its step_ms. The seconds until the target begin with
the process; nanoGPT gets there when the loss that it estimates from 20 random batches does, exercise 16 when that
of the whole validation set does. Behind nanoGPT's last line stands the loss on the whole set of the checkpoint it kept.
"""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import data
from common.program import clean_exit

from helpers import load, read_metrics, train_py, watch

LAPTOP = (
    "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 "
    "--n_head=4 --n_embd=128 --dropout=0.0"
)


@dataclass
class Config:
    checkout: Path | None = None  # folder of a nanoGPT checkout; without one, exercise 16 runs alone
    rounds: int = 1  # runs of each program, with seeds 0, 1, …
    steps: int = 2_000  # iterations of nanoGPT and of preset nanogpt-cpu
    presets: tuple[str, ...] = ("nanogpt-cpu", "best-cpu")  # presets of exercise 16; "best-cpu --muon" has a flag more
    flags: str = ""  # more flags of exercise 16, as "flag=value flag=value"
    target: float = 1.88  # validation loss
    statistic: int = 0  # random batches of nanoGPT's own statistic, for which exercise 16 is trained again; 0: none


def prepare(checkout: Path, folder: Path) -> Path:
    """Copy what is needed of a checkout of nanoGPT into a folder, and let it prepare its data there."""
    copy = folder / "nanogpt"
    copy.mkdir()
    for name in ("train.py", "model.py", "configurator.py"):
        shutil.copy(checkout / name, copy)
    for name in ("config", "data/shakespeare_char"):
        shutil.copytree(checkout / name, copy / name)
    (copy / "data/shakespeare_char/input.txt").write_text(data.shakespeare(), encoding="utf-8")
    subprocess.run(
        [sys.executable, "data/shakespeare_char/prepare.py"], cwd=copy, check=True, stdout=subprocess.DEVNULL
    )
    return copy


class Logits(torch.nn.Module):
    """nanoGPT's model with the interface of ours: tokens (B, T) to logits (B, T, V)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens, tokens)[0]


def their_loss(copy: Path) -> float:
    """Return the loss on the whole validation set of the checkpoint that nanoGPT has kept, the best of its own."""
    sys.path.insert(0, str(copy))
    from model import GPT, GPTConfig

    ex = load(16)
    saved = torch.load(copy / "out-shakespeare-char" / "ckpt.pt", map_location="cpu", weights_only=True)
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in saved["model"].items()})
    config = ex.Config(block_size=saved["model_args"]["block_size"])
    train_tokens, val_tokens, _ = ex.read_tokens(config)
    _, _, x, y = ex.make_data(config, train_tokens, val_tokens, torch.device("cpu"))
    return ex.evaluate(Logits(model), x, y)["loss"]


def milliseconds(lines: list[tuple[float, str]], every: int = 250) -> float:
    """Return nanoGPT's milliseconds per iteration, from the seconds at which its lines came.

    It evaluates at every `every`-th iteration, so spans are counted from ten iterations later to the last line before
    the next one. The times that it prints are not used: it takes them before it waits for a GPU.
    """
    spans = {}  # the first and the last line between two evaluations
    for at, line in lines:
        if (found := re.match(r"iter (\d+): loss ", line)) and int(found[1]) % every >= 10:
            spans.setdefault(int(found[1]) // every, []).append((at, int(found[1])))
    ends = [(span[0], span[-1]) for span in spans.values() if len(span) > 1]
    if not ends:
        raise RuntimeError("nanoGPT has printed too few iterations to be timed")
    return 1000 * sum(last[0] - first[0] for first, last in ends) / sum(last[1] - first[1] for first, last in ends)


def theirs(copy: Path, flags: list[str], target: float, seed: int = 0, **options) -> dict:
    """Train nanoGPT and return what was seen, by name, as `ours` does."""
    source = (copy / "train.py").read_text()
    (copy / "train.py").write_text(re.sub(r"manual_seed\(\d+", f"manual_seed({1337 + seed}", source))
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *flags]
    start = time.perf_counter()
    lines, _ = watch(command, cwd=copy, **options)
    seconds = time.perf_counter() - start
    steps = [(at, re.match(r"step \d+: train loss [\d.]+, val loss ([\d.]+)", line)) for at, line in lines]
    losses = [(at, float(found[1])) for at, found in steps if found]
    reached = next((at for at, loss in losses if loss <= target), None)
    seen = {"losses": [loss for _, loss in losses], "seconds": seconds, "reached": reached, "speed": ""}
    return {"ms": milliseconds(lines), **seen}


def ours(flags: list[str], target: float = 0.0, **options) -> dict:
    """Train exercise 16; return ms per iteration, losses, seconds in total and to the target, its speed line.

    The speed line says so if the model was not compiled.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        lines, stderr = watch([sys.executable, train_py(16), "--out", folder, *flags], **options)
        seconds = time.perf_counter() - start
        losses = read_metrics(Path(folder, "dry_run" if "--dry-run" in flags else ""))["validation", "loss"]
    step = next((step for step, loss in losses.items() if loss <= target), None)
    # A sample is printed when the evaluation before it is done.
    reached = next((at for at, line in lines if line.startswith(f"--- step {step},")), None)
    speed = next((line for _, line in lines if line.startswith("speed: ")), "")
    speed += "; not compiled" if "not compiled" in stderr else ""
    ms = float(re.search(r"step_ms=(\S+)", lines[-1][1])[1])
    return {"ms": ms, "losses": list(losses.values()), "seconds": seconds, "reached": reached, "speed": speed}


def row(name: str, seen: dict) -> str:
    """Return what was seen of a run as a row of the table."""
    reached = f"{seen['reached']:.1f}" if seen["reached"] else "never"
    losses = f"{seen['losses'][-1]:.4f} | {min(seen['losses']):.4f}"
    return f"| {name} | {seen['ms']:.1f} | {losses} | {seen['seconds']:.1f} | {reached} |"


def least_statistic(flags: list[str], batches: int) -> float:
    """Train exercise 16 and return what nanoGPT would have called its best validation loss.

    That is the least, over all evaluations, of the mean loss of so many random batches of validation blocks.
    """
    ex = load(16)
    evaluate, make_data, seen, kept = ex.evaluate, ex.make_data, [], {}
    generator = torch.Generator().manual_seed(0)

    def keep(config, train, val, device):
        kept["windows"] = val.to(device).unfold(0, config.block_size, 1)  # (L - T + 1, T)
        kept["count"] = batches * config.batch_size
        return make_data(config, train, val, device)

    def both(model, x, y):
        windows = kept["windows"]
        starts = torch.randint(len(windows) - 1, (kept["count"],), generator=generator)
        seen.append(evaluate(model, windows[starts], windows[starts + 1])["loss"])
        return evaluate(model, x, y)

    ex.evaluate, ex.make_data = both, keep
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        args = [*map(str, flags), "--out", out]
        default, _ = tyro.cli(ex.defaults, add_help=False, return_unknown_args=True, args=args)
        ex.main(tyro.cli(ex.Config, default=default, args=args))
    return min(seen)


HEAD = """| | ms per iteration | last loss | least loss | seconds in total | seconds to the target |
|---|---|---|---|---|---|"""


def main(config: Config) -> None:
    print(f"{os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads, target {config.target}\n{HEAD}")
    extra = ["--" + flag for flag in config.flags.split()]
    with tempfile.TemporaryDirectory() as folder:
        copy = prepare(config.checkout, Path(folder)) if config.checkout else None
        for seed in range(config.rounds):
            for preset in config.presets:
                steps = ["--steps", str(config.steps)] if preset == "nanogpt-cpu" else []
                flags = ["--preset", *preset.split(), "--seed", str(seed), *steps, *extra]
                print(row(f"exercise 16, {preset}", ours(flags, config.target)), flush=True)
                if config.statistic:
                    print(f"nanoGPT's statistic of it: {least_statistic(flags, config.statistic):.4f}", flush=True)
            if copy:
                flags = [*LAPTOP.split(), f"--max_iters={config.steps}", f"--lr_decay_iters={config.steps}"]
                print(row("nanoGPT", theirs(copy, flags, config.target, seed)), flush=True)
                print(f"loss of its checkpoint on the whole validation set: {their_loss(copy):.4f}", flush=True)


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
