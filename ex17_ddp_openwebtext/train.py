"""Exercise 17: "Upgrade your code to work on multiple GPUs, get your hands on some, switch your dataset to openwebtext,
and try to match Karpathy's implementation and performance (at GPT2 scale)."

Changes from ex16:
- torchrun starts a process for each GPU. All have the same model; each takes its part of a step's samples, and
  DistributedDataParallel averages the gradients.
- A step has the same samples for any number of processes. What does not fit into memory at once comes in parts, whose
  gradients add up, and the processes talk only after the last part.
- The text is OpenWebText in GPT-2's tokens: 18 GB in a file, of which a batch is read when it is needed.
- When a process dies, torchrun starts all of them again (--max-restarts), and they go on from the last checkpoint.
- A larger vocabulary, rounded up to what a GPU multiplies well, and Muon for the matrices (--muon), if you like.

    python ex17_ddp_openwebtext/train.py
    torchrun --standalone --nproc-per-node 8 --max-restarts 3 ex17_ddp_openwebtext/train.py

On a laptop a small model reaches 6.7 nats per token of a sample in three minutes on two CPU cores (by the tokens'
frequencies alone 7.8). On a GPU it is GPT-2 124M, nanoGPT's run to about 2.85; nothing was measured on one yet.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import UserError, checkpoint, distributed, openwebtext, speed
from common.plotting import plot_loss
from common.program import Terminated, check_config, clean_exit, torch_device
from common.record import DRY_RUN_STEPS, Run

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import tyro
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Preset = Literal["auto", "gpt2", "laptop"]
VOCAB_SIZE = 50_304  # V: GPT-2's 50,257 tokens, and some that never occur, to make a multiple of 128


@dataclass
class Config:
    preset: Preset = "auto"  # what the other flags are by default; auto: gpt2 on a GPU, laptop elsewhere
    block_size: int = 64  # words that the model looks back at, T; a word is a token of GPT-2's
    layers: int = 4  # transformer blocks
    heads: int = 4  # attention heads of each, A
    channels: int = 128  # width of a word's embedding and of the blocks, C
    bias: bool = False  # biases in linear layers and norms
    dropout: float = 0.0  # share of the embeddings and hidden units that is set to 0 in training
    batch_size: int = 12  # samples per step of all processes together, B
    micro_batch: int = 16  # most samples that a process takes at once: what its memory has room for
    steps: int = 2_000  # updates of the parameters
    learning_rate: float = 0.001  # largest step size of AdamW
    warmup_steps: int = 100  # steps in which it rises to that; then it falls along a half cosine
    decay_to: float = 0.1  # share of it that is left at the end
    weight_decay: float = 0.1  # AdamW pulls the matrices towards 0 by this times the learning rate at every step
    muon: bool = False  # Muon instead of AdamW for the matrices in the blocks, with the same learning rate
    bfloat16: bool = True  # multiply in this type where the device itself can; float32 for everything else
    compile: bool = False  # make a few large kernels of the model first, which takes up to a minute
    eval_every: int = 250  # steps between two evaluations on the validation set, each with a sample and a checkpoint
    resume: Literal["no", "yes", "auto"] = "auto"  # go on from the checkpoint in --out; auto: if of the same --rdzv-id
    overwrite: bool = False  # give up the checkpoints in --out, also where they took more than ten minutes
    timeout: int = 600  # seconds that a process waits for the others before it gives up
    prompt: str = "The"  # text that samples go on from
    sample_words: int = 100  # words of a sample
    temperature: float = 0.8  # logits are divided by it before a word is drawn; 0: the likeliest word
    top_k: int = 0  # draw from this many of the likeliest words; 0: from all
    top_p: float = 0.95  # draw from the fewest words that have this probability together
    seed: int = 0  # of everything that is drawn at random
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute; auto is a GPU where there is one
    data: Path | None = None  # parquet, JSON or text files of your own, or a folder of them, instead of OpenWebText
    whole: bool = False  # all 8 million documents of OpenWebText and not the 100,000 of its first file
    val_share: float | None = None  # share of the documents for validation; none: 0.0005, or 0.02 of fewer than 100,000
    out: Path = Path(__file__).parent / "out"  # folder for what the run writes
    dry_run: bool = False  # three steps only, to see that everything works

    def __post_init__(self):
        check_config(self, dropout=(0, 0.99), weight_decay=0, temperature=0, top_k=0, top_p=(0.01, 1), decay_to=(0, 1))
        if self.channels % self.heads:
            raise ValueError(f"--channels {self.channels} must be a multiple of --heads {self.heads}")
        if self.dry_run:
            self.steps = min(self.steps, DRY_RUN_STEPS)


PRESETS = {  # what differs from the defaults above
    "laptop": {"layers": 2, "batch_size": 16, "steps": 1_000, "learning_rate": 0.004, "decay_to": 0.0, "compile": True},
    "gpt2": {  # nanoGPT's config/train_gpt2.py: 480 x 1,024 = 491,520 tokens a step
        **{"block_size": 1024, "layers": 12, "heads": 12, "channels": 768, "batch_size": 480, "micro_batch": 32},
        **{"steps": 600_000, "learning_rate": 6e-4, "warmup_steps": 2_000, "eval_every": 2_000},
        **{"compile": True, "whole": True},
    },
}


def defaults(preset: Preset = "auto", resume: str = "auto", device: str = "auto", out: Path = Config.out) -> Config:
    """Return what the flags are by default: the preset's values, or those of the checkpoint to go on from."""
    if checkpoint.should_resume(resume, out):
        return checkpoint.load_flags(Config, out / "checkpoint.pt", preset)
    if preset == "auto":
        preset = "gpt2" if torch.cuda.is_available() and device in ("auto", "cuda") else "laptop"
    return Config(preset, **PRESETS[preset])


def make_data(config, train, val, device):
    """Return words (N, T) and next words (N, T) of the validation words, in blocks, so that each word comes once.

    The first comes after the training text's last; -1, which fills up the last block, is not to be scored.
    """
    size = config.block_size
    train, val = (torch.from_numpy(words.astype(np.int64)).to(device) for words in (train[-1:], val))  # (1,), (M,)
    words = torch.cat([train[-1:], F.pad(val, (0, -len(val) % size), value=-1)])
    x_val, y_val = words[:-1].view(-1, size).clamp(min=0), words[1:].view(-1, size)
    return x_val, y_val


def read_samples(config, words, starts, device):
    """Return words (B, T) and next words (B, T) of the samples that begin at starts (B,)."""
    rows = torch.from_numpy(openwebtext.windows(words, starts.tolist(), config.block_size + 1))  # (B, T + 1)
    if device.type == "cuda":
        rows = rows.pin_memory()  # so that the copy need not be waited for
    rows = rows.to(device, non_blocking=True)
    return rows[:, :-1], rows[:, 1:]


def batches(config, n, step, device):
    """Yield the indices (B,) of one minibatch after another, from a step on, for ever; they follow from the seed alone.

    Every epoch is a new shuffle of blocks of T words, side by side from a new place in the first one on.
    """
    size, batch_size = config.block_size, config.batch_size
    blocks = n // size  # which fit wherever the first one begins
    while True:
        epoch, done = divmod(step, blocks // batch_size)
        rng = np.random.default_rng([config.seed, epoch])
        order = torch.from_numpy(rng.permutation(blocks) * size + rng.integers(size)).to(device)  # (n / T,)
        for start in range(done * batch_size, blocks - batch_size + 1, batch_size):
            yield order[start : start + batch_size]  # (B,)
            step += 1


class Attention(nn.Module):
    """Causal multi-head self-attention: (B, T, C) to (B, T, C) (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.channels, 3 * config.channels, bias=config.bias)
        self.out = nn.Linear(config.channels, config.channels, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, A, T, C / A)
        dropout = self.dropout.p if self.training else 0.0
        if x.device.type == "cpu":  # whose kernel is slow in bfloat16
            q, k, v = q.float(), k.float(), v.float()  # each (B, A, T, C / A)
        with torch.autocast("cpu", enabled=False):
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)  # (B, A, T, C / A)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, T, C)


class Block(nn.Module):
    """Attention, then an MLP for each word alone, both on normed input and added to what came in: (B, T, C) to same."""

    def __init__(self, config):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.channels, bias=config.bias)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.channels, bias=config.bias)
        self.up = nn.Linear(config.channels, 4 * config.channels, bias=config.bias)
        self.down = nn.Linear(4 * config.channels, config.channels, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        x = x + self.dropout(self.attention(self.norm1(x)))  # (B, T, C)
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh")))  # (B, T, C)


class Transformer(nn.Module):
    """Embeddings of words and places, blocks, logits by the embedding table: words (B, T) to logits (B, T, V).

    Given the next words y (B, T), too, it returns the loss (), so that a compiler sees the logits and what is done with
    them as one, and need not write them down in float32.
    """

    def __init__(self, config, vocab_size):
        super().__init__()
        self.bfloat16 = False  # multiply in this type: faster where the device has it
        self.embedding = nn.Embedding(vocab_size, config.channels)
        self.positions = nn.Embedding(config.block_size, config.channels)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.channels, bias=config.bias)
        self.head = nn.Linear(config.channels, vocab_size, bias=False)
        self.head.weight = self.embedding.weight  # one table for both: words alike going in are alike coming out
        for name, param in self.named_parameters():  # as in GPT-2: the more corrections add up, the smaller each starts
            if param.ndim == 2:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(param, std=0.02 / (2 * config.layers) ** 0.5 if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(param)

    def forward(self, words, y=None):
        with torch.autocast(words.device.type, torch.bfloat16, enabled=self.bfloat16):
            x = self.dropout(self.embedding(words) + self.positions.weight[: words.shape[1]])  # (B, T, C)
            for block in self.blocks:
                x = block(x)  # (B, T, C)
            logits = self.head(self.norm(x)).float()  # (B, T, V)
        return logits if y is None else loss_fn(logits, y)


def loss_fn(logits, y):
    """Return the mean negative log likelihood () of the words y (…) under the softmax of the logits (…, V)."""
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


@torch.no_grad()
def evaluate(model, x, y):
    """Return what is measured of the model on the samples x, y, by name."""
    model.eval()  # without dropout
    loss, right, count = 0.0, 0, 0
    for x_part, y_part in zip(x.split(8), y.split(8)):  # (P, T), (P, T): the logits of all would need gigabytes
        scored = y_part >= 0  # (P, T)
        logits, y_part = model(x_part)[scored], y_part[scored]  # (S, V), (S,)
        assert logits.shape[:-1] == y_part.shape
        loss += loss_fn(logits, y_part).item() * len(y_part)
        right += (logits.argmax(-1) == y_part).sum().item()
        count += len(y_part)
    if dist.is_initialized():
        totals = torch.tensor([loss, right, count], dtype=torch.float64, device=x.device)
        dist.all_reduce(totals)  # each process has scored its own part
        loss, right, count = totals.tolist()
    model.train()
    return {"loss": loss / count, "accuracy": right / count}


def draw(logits, config, generator):
    """Return a word (1,) drawn from the logits (V,) with temperature, top-k and top-p (Holtzman et al. 2020)."""
    if config.temperature < 1e-6:  # where the logits would overflow
        return logits.argmax(keepdim=True)
    probs, words = F.softmax(logits / config.temperature, dim=0).sort(descending=True)  # (V,), (V,)
    probs[config.top_k or len(probs) :] = 0
    before = probs.cumsum(0) - probs  # (V,): what the likelier words have together
    probs[before >= config.top_p * probs.sum()] = 0
    return words[torch.multinomial(probs, 1, generator=generator)]


@torch.no_grad()
def sample(model, words, config, vocab):
    """Return the words (N,) and those that the model draws after them, one at a time, each from its own prediction."""
    model.eval()  # without dropout
    generator = torch.Generator(words.device).manual_seed(config.seed)  # so that training draws what it would have
    for _ in range(config.sample_words):
        logits = model(words[None, -config.block_size :])[0, -1, : vocab.n_vocab]  # (V,) without those that never occur
        words = torch.cat([words, draw(logits, config, generator)])
    model.train()
    return words


def learning_rate(config, step):
    """Return the step size: a straight line up to the warm-up's end, then half a cosine down to its last share."""
    warmup = min(1, (step + 1) / config.warmup_steps)
    progress = max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate * warmup * (config.decay_to + (1 - config.decay_to) * cosine)


def make_optimizers(config, model):
    """Return AdamW as one kernel, with weight decay on matrices alone, and Muon, if wanted, for those in the blocks.

    Muon (Jordan 2024) makes the step of a matrix orthogonal, so that it moves all directions by the same length. Scaled
    like AdamW's (Liu et al. 2025, arXiv 2502.16982), it takes AdamW's learning rate and weight decay.
    """
    hidden = [param for param in model.blocks.parameters() if param.ndim >= 2]
    matrices = [model.embedding.weight, model.positions.weight, *([] if config.muon else hidden)]
    vectors = [param for param in model.parameters() if param.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, config.learning_rate, betas=(0.9, 0.95), fused=True)
    options = {"weight_decay": config.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    return [adamw, torch.optim.Muon(hidden, config.learning_rate, **options)] if config.muon else [adamw]


def flops_per_word(config, model):
    """Return the multiplications and additions of training on a word (Chowdhery et al. 2022, appendix B)."""
    params = sum(param.numel() for param in model.parameters()) - model.positions.weight.numel()
    return 6 * params + 12 * config.layers * config.channels * config.block_size


def main(config: Config) -> dict[str, float]:
    torch.manual_seed(config.seed)  # for what torch itself draws at random
    rank, world, device = distributed.find_place(torch_device(config.device))  # of this process; world is R
    train_words, val_words, vocab = openwebtext.read(config.data, config.whole, config.val_share, config.dry_run)
    x_val, y_val = make_data(config, train_words, val_words, device)
    n = len(train_words) - config.block_size  # places where a sample can begin
    blocks = n // config.block_size
    if config.batch_size > blocks:
        raise UserError(f"--batch-size {config.batch_size} is more than the {blocks} blocks that there are of the text")
    if config.batch_size % world:
        raise UserError(f"--batch-size {config.batch_size} must be a multiple of the {world} processes")
    if len(x_val) <= world:
        raise UserError(f"{len(val_words)} validation words are too few for {world} processes: raise --val-share")
    print(f"data: {len(train_words)} training and {len(val_words)} validation tokens, vocabulary {VOCAB_SIZE}")

    prompt = torch.tensor(vocab.encode_ordinary(config.prompt.replace("\\n", "\n")), device=device)  # (P,)
    if not len(prompt):
        raise UserError("--prompt is empty: give it a character or more")
    if config.top_k > vocab.n_vocab:
        raise UserError(f"--top-k {config.top_k} is more than the {vocab.n_vocab} words of the vocabulary")

    rows = config.batch_size // world  # of a step's samples that are this process's
    parts = min(count for count in range(1, rows + 1) if rows % count == 0 and rows // count <= config.micro_batch)
    total = config.batch_size * config.block_size  # words of a step, whatever the number of processes
    print(f"step: {total} words = {world} processes x {parts} parts x {rows // parts} samples x {config.block_size}")

    model = Transformer(config, VOCAB_SIZE).to(device)
    model.bfloat16 = config.bfloat16 and speed.has_bfloat16(device)
    print(f"preset {config.preset}, but for your flags; {device}, {'bfloat16' if model.bfloat16 else 'float32'}")
    optimizers, flops = make_optimizers(config, model), flops_per_word(config, model)
    resumed = checkpoint.should_resume(config.resume, config.out)
    first, state = checkpoint.resume_torch(config, None, model, *optimizers) if resumed else (0, None)
    if world > 1:
        distributed.init_distributed(device, config.timeout)
        distributed.check_same_step(first, config.out)
    fast = model
    if config.compile and not config.dry_run:
        index = next(batches(config, n, 0, "cpu"))[: rows // parts]  # (M,)
        x, y = read_samples(config, train_words, index, device)
        fast = speed.compiled(model, lambda model: model(x, y))
    if world > 1:
        fast = DistributedDataParallel(fast)  # whose backward() ends with the mean gradient of all processes
    counts = torch.from_numpy(np.bincount(train_words[:10_000_000], minlength=VOCAB_SIZE)) + 1  # (V,): none is 0
    baselines = {"unigram": -(counts / counts.sum()).log()[val_words.astype(int)].mean(), "ln V": np.log(VOCAB_SIZE)}
    with Run(config, baselines, device, state) if rank == 0 else nullcontext() as run:
        steps = run.steps(config.steps, first) if run else range(first, config.steps)
        seconds = -speed.clock(device)  # of training alone
        for step, index in zip(steps, batches(config, n, first, "cpu")):  # (B,)
            stop = distributed.any_terminated()
            if step % config.eval_every == 0 or stop:
                seconds += speed.clock(device)
                if run:
                    checkpoint.save_torch(run, step, None, model, *optimizers)
                if stop:
                    distributed.shutdown(143)
                    raise Terminated
                val = evaluate(model, x_val[rank::world], y_val[rank::world])
                if run:
                    run.record(step, "validation", **val)
                    run.write_sample(f"step {step}", vocab.decode(sample(model, prompt, config, vocab).tolist()))
                    checkpoint.save_best(run, step, None, model)
                seconds -= speed.clock(device)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, step)
            torch.manual_seed(hash((config.seed, step, rank)))  # of dropout; numbers have one hash in all processes
            loss = 0.0
            for part, places in enumerate(index[rank::world].chunk(parts)):  # (M,)
                fast.require_backward_grad_sync = part == parts - 1  # the forward pass asks for it
                x, y = read_samples(config, train_words, places, device)  # (M, T), (M, T)
                assert x.shape == (rows // parts, config.block_size)
                part_loss = fast(x, y) / parts  # ()
                loss += part_loss.detach()
                part_loss.backward()  # adds dL/dparam to the grad of every param
            if world > 1:
                dist.all_reduce(loss)  # which now is the sum of them all
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()  # else the next backward() would add to this one's
            if run:
                run.record(step, "train", loss=loss / world)
                done, spent = step + 1 - first, seconds + time.perf_counter()
                rates = speed.progress(done, config.steps - step - 1, total, spent, flops, device, world)
                run.latest |= {"words": (step + 1) * total, **rates}
        seconds += speed.clock(device)
        if run:
            checkpoint.save_torch(run, config.steps, None, model, *optimizers)
        val = evaluate(model, x_val[rank::world], y_val[rank::world])
        distributed.shutdown()  # all is said
        if not run:
            return {}
        run.record(config.steps, "validation", **val)
        run.write_sample(f"step {config.steps}", vocab.decode(sample(model, prompt, config, vocab).tolist()))
        checkpoint.save_best(run, config.steps, None, model)
        measured = {"validation_loss": val["loss"], "least_validation_loss": run.least["validation loss"]}
        if config.steps > first:
            seconds /= config.steps - first
            words_per_second = config.batch_size * config.block_size / seconds
            print(speed.describe(words_per_second, flops, device, world))
            measured["step_ms"] = 1000 * seconds
        metrics = run.finish(**measured)
    plot_loss(run.out, "nats per token")
    return metrics


if __name__ == "__main__":
    with clean_exit():
        default, _ = tyro.cli(defaults, add_help=False, return_unknown_args=True)
        main(tyro.cli(Config, default=default, description=__doc__))
