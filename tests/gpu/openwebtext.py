r"""Exercise 17 on a GPU: its speed beside nanoGPT's own train.py, and the losses of the same weights and batches.

    python tests/gpu/openwebtext.py --checkout path/to/nanoGPT
    torchrun --standalone --nproc-per-node 8 ex17_ddp_openwebtext/train.py --data data/openwebtext_sample --steps 40 \
        --out /tmp/speed

The first prints the tables of the exercise's README for one GPU, the second ends with the line of speed for eight.
Nothing else should run on the machine; of packages it needs those of pyproject.toml without JAX, and torch may be
another version. The text is that of the sample, which is enough for speed. `--dry-run` makes three steps of everything
with a small model, also on a CPU and without nanoGPT, to see that it works.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from common import data, openwebtext
from common.program import clean_exit

from helpers import machine, train_py
from peer_openwebtext import losses

TOKENS = 480 * 1024  # per step


@dataclass
class Config:
    checkout: Path | None = None  # folder of a nanoGPT checkout; without one, exercise 17 runs alone
    documents: Path = data.data_dir() / "openwebtext_sample"  # the text to train on
    tables: tuple[Literal["speed", "losses"], ...] = ("speed", "losses")  # tables to make
    micro_batches: tuple[int, ...] = (12, 24, 32, 60)  # sequences per micro-batch, of 480 per step, for both programs
    rounds: int = 2  # runs of each program, in turn
    steps: int = 40  # steps of each run
    dry_run: bool = False  # three steps of a small model


def ours(config, micro_batch, dry):
    """Return the tokens per second of exercise 17, and its own line about its speed, or why it could not run."""
    flags = ["--data", config.documents, "--steps", config.steps, "--eval-every", 10**6, "--max-new-tokens", 1]
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, train_py(17), *flags, "--micro-batch", micro_batch, "--out", out, *dry]
        result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        return None, (result.stderr.strip() or "no message").splitlines()[-1]
    line = next(line for line in result.stdout.splitlines() if line.startswith("speed: "))
    return float(re.search(r"speed: ([\d,]+)", line)[1].replace(",", "")), line


def prepare(config, folder):
    """Copy what is needed of a checkout of nanoGPT into a folder, and the tokens of exercise 17 beside it."""
    copy = folder / "nanogpt"
    (copy / "data" / "openwebtext").mkdir(parents=True)
    for name in ("train.py", "model.py", "configurator.py"):
        shutil.copy(config.checkout / name, copy)
    shutil.copytree(config.checkout / "config", copy / "config")
    for name, tokens in zip(("train", "val"), openwebtext.read(config.documents)[:2]):
        tokens.tofile(copy / "data" / "openwebtext" / f"{name}.bin")
    return copy


def theirs(copy, config, micro_batch):
    """Return the tokens per second of nanoGPT's train.py, by the median of the times that it prints after the tenth."""
    flags = ["--wandb_log=False", "--eval_iters=1", "--log_interval=1", f"--max_iters={config.steps}"]
    flags += [f"--batch_size={micro_batch}", f"--gradient_accumulation_steps={480 // micro_batch}"]
    command = [sys.executable, "train.py", "config/train_gpt2.py", *flags]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    times = [float(ms) for ms in re.findall(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", result.stdout)]
    if result.returncode or len(times) < 20:
        return None, (result.stderr.strip() or "no message").splitlines()[-1]
    return TOKENS / sorted(times[10:])[len(times[10:]) // 2] * 1000, ""


def speed(config, dry):
    """Print the tokens per second of both programs, in turn, and their ratio, for each size of a micro-batch."""
    print("| micro-batch | exercise 17, tokens per second | nanoGPT | ratio |\n|---|---|---|---|")
    bests = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        copy = prepare(config, Path(folder)) if config.checkout else None
        for micro_batch in config.micro_batches:
            rates, lines = ([], []), []
            for _ in range(config.rounds):
                for seen, (rate, line) in zip(
                    rates, (ours(config, micro_batch, dry), theirs(copy, config, micro_batch) if copy else (None, ""))
                ):
                    seen += [rate] if rate else []
                    lines += [line] if line else []
            best = [max(seen, default=0) for seen in rates]
            for seen, rate in zip(bests, best):
                seen.append(rate)
            ratio = f"{best[0] / best[1]:.2f}" if all(best) else ""
            cells = [f"{rate:,.0f}" if rate else "not measured" for rate in best]
            print(f"| {micro_batch} | {' | '.join(cells)} | {ratio} |", flush=True)
            print("\n".join(lines), file=sys.stderr, flush=True)
    if all(any(seen) for seen in bests):
        print(f"\nour best divided by nanoGPT's best: {max(bests[0]) / max(bests[1]):.2f}")
    print(f"\n{TOKENS} tokens per step, {config.steps} steps; the best of {config.rounds} runs of each, in turn\n")


def main(config: Config) -> None:
    dry = ["--dry-run", "--channels", "16", "--layers", "1", "--batch-size", "4"] if config.dry_run else []
    print(machine())
    if "speed" in config.tables:
        speed(config, dry)
    if "losses" in config.tables:
        flags = ["--data", str(config.documents), "--steps", "200", "--eval-every", str(10**6), "--max-new-tokens", "1"]
        losses(config.checkout, [*flags, "--batch-size", "64", *dry])  # 64 × 1,024 = 65,536 tokens


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
