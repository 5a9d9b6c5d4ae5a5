"""Exercise 17 beside nanoGPT: tokens per second of the preparation, and the losses of the same weights and batches.

    python tests/bench/peer_openwebtext.py tokenise --copies 20
    python tests/bench/peer_openwebtext.py losses --checkout path/to/nanoGPT
    python tests/bench/peer_openwebtext.py step

`tokenise` takes the sample's 1,000 documents so many times over. It times our way, and that of nanoGPT's prepare.py:
`datasets.map` with a process for each core, then the file from the Arrow table that holds the tokens. Of both it tells
the most memory that was not a file's, all processes together. `losses` trains exercise 17 as it is, and nanoGPT's model
with nanoGPT's optimizer, schedule and clipping, from the same weights on the same batches, and tells how far apart the
losses of a step are; nanoGPT's learning rate rises a little later than ours, by 1 / (warm-up + 1), and with
`--same-rate` it is given ours. The defaults are a small model in float32, so that a CPU can do it. `step` times a step
of the preset for laptops, compiled and not, with all sequences at once and in micro-batches.
"""

import contextlib
import io
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
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from tyro.conf import Positional

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
from common import data, openwebtext
from common.program import clean_exit, torch_device

from helpers import load, load_beside, read_metrics, train_py, watch
from peer_nanogpt import milliseconds


@dataclass
class Config:
    what: Positional[Literal["tokenise", "losses", "step"]]
    checkout: Path | None = None  # folder of a nanoGPT checkout
    documents: Path = data.data_dir() / "openwebtext_sample"  # to tokenise, or to train on
    copies: int = 20  # how often the documents are repeated
    steps: int = 200  # training steps
    same_rate: bool = False  # nanoGPT's model takes our learning rates
    flags: str = (  # of both programs
        "block-size=64 layers=4 heads=4 channels=32 batch-size=8 precision=float32 no-compile learning-rate=0.0006"
    )


def many_documents(folder: Path, into: Path, copies: int) -> Path:
    """Write all documents of a folder so many times over into one file of parquet."""
    import pyarrow
    import pyarrow.parquet

    texts = openwebtext.load_documents(folder, whole=False)["text"]
    table = pyarrow.table({"text": pyarrow.array(list(texts))})
    with pyarrow.parquet.ParquetWriter(into, table.schema) as writer:
        for _ in range(copies):
            writer.write_table(table)
    return into


def their_way(path: Path, folder: Path) -> None:
    """Tokenise as prepare.py does: every document to a row of token ids, then all rows to a file."""
    import datasets

    datasets.disable_progress_bars()
    gpt2 = openwebtext.encoding()

    def tokens(row):
        ids = [*gpt2.encode_ordinary(row["text"]), gpt2.eot_token]
        return {"ids": ids, "len": len(ids)}

    documents = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(folder))
    for name, part in documents.train_test_split(test_size=0.02, seed=2357, shuffle=True).items():
        part = part.map(tokens, remove_columns=["text"], num_proc=os.cpu_count())
        file = np.memmap(folder / f"{name}.bin", np.uint16, "w+", shape=(sum(part["len"]),))
        shards, end = min(1024, len(part)), 0
        for index in range(shards):
            rows = part.shard(shards, index, contiguous=True).with_format("numpy")["ids"]
            ids = np.concatenate(list(rows))
            file[end : end + len(ids)] = ids
            end += len(ids)
        file.flush()


def anonymous_memory() -> int:
    """Return the bytes of this process and its children that are not pages of a file."""
    total, pids = 0, [os.getpid()]
    for pid in pids:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            total += 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
            pids += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return total


def tokenise(config: Config) -> None:
    """Print tokens, seconds, rate and memory of both ways, each in a process of its own."""
    if os.environ.get("TOKENISE"):  # that process
        way, path, folder = json.loads(os.environ["TOKENISE"])
        os.environ["RAMPUP_DATA"], peak, done = folder, [anonymous_memory()], threading.Event()

        def watch():
            while not done.wait(0.05):
                peak[0] = max(peak[0], anonymous_memory())

        threading.Thread(target=watch).start()
        start = time.perf_counter()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                openwebtext.read(Path(path), val_share=0.02) if way == "ours" else their_way(Path(path), Path(folder))
        finally:
            seconds = time.perf_counter() - start
            done.set()
        count = sum(file.stat().st_size // 2 for file in Path(folder).rglob("*.bin"))
        row = f"{count:,} | {seconds:.1f} | {count / seconds / 1e6:.2f} M | {peak[0] / 1e6:.0f} MB"
        print(f"| {'exercise 17' if way == 'ours' else 'the way of prepare.py'} | {row} |", flush=True)
        return
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(data.data_dir() / "tiktoken_cache"))
    head = "| | tokens | seconds | tokens per second | memory |\n|---|---|---|---|---|"
    print(f"{os.cpu_count()} cores\n{head}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RAMPUP_DATA"] = folder
        for copies in (config.copies // 4, config.copies):
            path = many_documents(config.documents, Path(folder) / f"{copies}.parquet", copies)
            for way in ("ours", "theirs"):
                (Path(folder) / f"{way}{copies}").mkdir()
                job = json.dumps([way, str(path), str(Path(folder) / f"{way}{copies}")])
                subprocess.run([sys.executable, __file__, "tokenise"], check=True, env=os.environ | {"TOKENISE": job})


def their_model(checkout: Path, config, model):
    """Return nanoGPT's model with the weights of ours."""
    sys.path.insert(0, str(checkout))
    from model import GPT, GPTConfig

    with contextlib.redirect_stdout(io.StringIO()):
        sizes = {"n_layer": config.layers, "n_head": config.heads, "n_embd": config.channels}
        sizes |= {"block_size": config.block_size, "vocab_size": len(model.embedding.weight)}
        theirs = GPT(GPTConfig(**sizes, dropout=config.dropout, bias=config.bias))
    state = theirs.state_dict()
    for name, param in model.named_parameters():
        state[f"transformer.{load_beside(16, 'pretrained').their_name(name)}"] = param.detach()
    theirs.load_state_dict(state | {"lm_head.weight": model.embedding.weight.detach()})
    return theirs


def their_losses(checkout: Path, ex, config, same_rate: bool) -> list[float]:
    """Train nanoGPT's model as its train.py does, on the batches of ours, and return the loss of every step."""
    torch.manual_seed(config.seed)
    device = torch_device(config.device)
    ours = ex.Transformer(config, config.vocab_size)
    precision = ex.speed.precision(device, config.precision)
    model = their_model(checkout, config, ours).to(device)
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = model.configure_optimizers(config.weight_decay, config.learning_rate, (0.9, 0.95), device.type)
    tokens, _, _ = openwebtext.read(config.data, config.whole, config.val_share, config.dry_run)
    indices, losses = ex.batches(config, len(tokens) - config.block_size, 0, "cpu"), []
    least = config.learning_rate * config.decay_to
    for step in range(3 if config.dry_run else config.steps):
        rate = config.learning_rate * (step + 1) / (config.warmup_steps + 1)
        if step >= config.warmup_steps:
            share = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
            rate = least + (config.learning_rate - least) * (1 + np.cos(np.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = ex.learning_rate(config, step) if same_rate else rate
        parts, total = next(indices).split(config.micro_batch), 0.0
        for part in parts:
            x, y = ex.read_samples(config, tokens, part, device)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                loss = model(x, y.contiguous())[1] * len(part) / config.batch_size
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    return losses


def losses(checkout: Path | None, args: list[str], same_rate: bool = False) -> None:
    """Train exercise 17 with flags, and nanoGPT beside it, and print the losses and how far apart they are."""
    ex = load(17)
    default, _ = tyro.cli(ex.defaults, add_help=False, return_unknown_args=True, args=args)
    with tempfile.TemporaryDirectory() as out:
        config = tyro.cli(ex.Config, default=default, args=[*args, "--out", out])
        with contextlib.redirect_stdout(io.StringIO()):
            ex.main(config)
        ours = np.array(list(read_metrics(Path(out) / ("dry_run" if config.dry_run else ""))["train", "loss"].values()))
    theirs = np.array(their_losses(checkout, ex, config, same_rate)) if checkout else ours
    tokens = config.batch_size * config.block_size
    print(f"{len(ours)} steps of {tokens} tokens, the same weights and batches; {torch_device(config.device)}")
    print("| step | exercise 17 | nanoGPT | difference |\n|---|---|---|---|")
    for step in sorted({0, len(ours) // 4, len(ours) // 2, len(ours) - 1}):
        print(f"| {step} | {ours[step]:.4f} | {theirs[step]:.4f} | {ours[step] - theirs[step]:+.5f} |")
    print(f"largest difference: {abs(ours - theirs).max():.5f}\n", flush=True)


def our_speed(flags: list[str], out: str, **options) -> dict:
    """Train exercise 17; return its tokens per second, and its line of speed, which says if it was not compiled."""
    lines, stderr = watch([sys.executable, train_py(17), "--out", out, *flags], **options)
    speed = next(line for _, line in lines if line.startswith("speed: "))
    rate = float(re.search(r"speed: ([\d,]+)", speed)[1].replace(",", ""))
    return {"rate": rate, "speed": speed + ("; not compiled" if "not compiled" in stderr else "")}


def prepare(checkout: Path, documents: Path, folder: Path) -> Path:
    """Copy what is needed of a checkout of nanoGPT into a folder, and the tokens of exercise 17 beside it."""
    copy = folder / "nanogpt"
    (copy / "data" / "openwebtext").mkdir(parents=True)
    for name in ("train.py", "model.py", "configurator.py"):
        shutil.copy(checkout / name, copy)
    shutil.copytree(checkout / "config", copy / "config")
    for name, tokens in zip(("train", "val"), openwebtext.read(documents)[:2]):
        tokens.tofile(copy / "data" / "openwebtext" / f"{name}.bin")
    return copy


def their_speed(copy: Path, micro_batch: int, steps: int, flags: list[str], **options) -> dict:
    """Train nanoGPT with 480 sequences per step; return its tokens per second from the tenth step on."""
    sizes = [f"--batch_size={micro_batch}", f"--gradient_accumulation_steps={480 // micro_batch}"]
    command = [sys.executable, "train.py", "config/train_gpt2.py", "--wandb_log=False", "--eval_iters=1"]
    lines, _ = watch([*command, *sizes, f"--max_iters={steps}", *flags], cwd=copy, **options)
    shape = next(filter(None, (re.match(r"tokens per iteration will be: ([\d,]+)", line) for _, line in lines)))
    return {"rate": 1000 * int(shape[1].replace(",", "")) / milliseconds(lines, every=1000), "speed": ""}


def step() -> None:
    """Print the seconds per step on a laptop, the median of 25, compiled and not, and of the first step."""
    ex = load(17)
    config = ex.Config("laptop", **ex.PRESETS["laptop"])
    torch.manual_seed(0)
    tokens = torch.randint(50_257, (config.batch_size, config.block_size + 1))
    print("| | micro-batch | seconds per step | the first time |\n|---|---|---|---|")
    for compiled in (False, True):
        for size in (4, 8, 16):
            torch._dynamo.reset()
            model = ex.Transformer(config, config.vocab_size)
            model.precision = ex.speed.precision(tokens.device, config.precision)
            (optimizer,), fast = ex.make_optimizers(config, model), torch.compile(model) if compiled else model
            times = []
            for _ in range(26):
                start = time.perf_counter()
                for part in tokens.split(size):
                    (fast(part[:, :-1], part[:, 1:]) * len(part) / len(tokens)).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                times.append(time.perf_counter() - start)
            row = f"{size} | {sorted(times[1:])[12]:.3f} | {times[0]:.1f}"
            print(f"| {'compiled' if compiled else 'as it is'} | {row} |", flush=True)


def main(config: Config) -> None:
    if config.what == "step":
        step()
    elif config.what == "tokenise":
        tokenise(config)
    else:
        path = ["--data", str(config.documents), "--steps", str(config.steps), "--eval-every", str(10**6)]
        flags = ["--" + flag for flag in config.flags.split()]
        losses(config.checkout, [*path, "--max-new-tokens", "1", *flags], config.same_rate)


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
