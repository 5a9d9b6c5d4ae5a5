"""Exercise 17: "Upgrade your code to work on multiple GPUs, get your hands on some, switch your dataset to openwebtext,
and try to match Karpathy's implementation and performance (at GPT2 scale)."

Changes from ex16:
- Data parallelism: torchrun starts a process for each GPU. All have the same model; each takes its share of a step's
  sequences, and DistributedDataParallel averages the gradients.
- Gradient accumulation: a process splits its share into micro-batches that fit into memory, adds up their gradients,
  and exchanges them after the last one only. A step has the same tokens for any number of processes.
- The text is OpenWebText in GPT-2's tokens: 18 GB in a memory-mapped file, from which each batch is read.
- When a process dies, torchrun starts all of them again (--max-restarts), and they continue from the last checkpoint.
- GPT-2's vocabulary, padded to a multiple of 128 for fast matrix products; presets for all four sizes of GPT-2.

    python ex17_ddp_openwebtext/train.py
    torchrun --standalone --nproc-per-node 8 --max-restarts 3 ex17_ddp_openwebtext/train.py --whole

On a laptop a small model reaches 6.7 nats per token of a sample in three minutes on two CPU cores (by the tokens'
frequencies alone 7.8). On a GPU it is GPT-2 124M; with --whole, nanoGPT's run to about 2.85. Not yet run on one.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import UserError, checkpoint, distributed, openwebtext, speed
from common.plotting import plot_loss
from common.program import Resume, Terminated, check_config, clean_exit, torch_device
from common.record import DRY_RUN_STEPS, Run

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import tyro
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Preset = Literal["auto", "laptop", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]


@dataclass
class Config:
    preset: Preset = "auto"  # set of defaults for the other flags; auto: gpt2 on a GPU, laptop elsewhere
    vocab_size: int = 50_304  # vocabulary, V: GPT-2's 50,257 tokens, padded to a multiple of 128
    block_size: int = 64  # context length in tokens (of GPT-2's vocabulary), T
    layers: int = 4  # transformer blocks
    heads: int = 4  # attention heads per block, A
    channels: int = 128  # width of the embeddings and of the blocks, C
    bias: bool = False  # biases in linear layers and layer norms
    dropout: float = 0.0  # dropout probability
    init_std: float = 0.02  # standard deviation of the initial weights
    batch_size: int = 12  # batch size: sequences per step of all processes together, B
    micro_batch: int = 16  # most sequences per forward and backward pass of one process (micro-batch)
    steps: int = 2_000  # training steps
    learning_rate: float = 0.001  # peak learning rate of AdamW
    warmup_steps: int = 100  # steps of linear warm-up of the learning rate; then it decays along a half cosine
    decay_to: float = 0.1  # final learning rate, as a share of --learning-rate
    weight_decay: float = 0.1  # weight decay of AdamW, on matrices only
    beta1: float = 0.9  # AdamW's decay of the running mean of the gradients
    beta2: float = 0.95  # AdamW's decay of the running mean of their squares
    grad_clip: float = 1.0  # gradient clipping: largest norm of all gradients together; 0: none
    muon: bool = False  # Muon instead of AdamW for the matrices in the blocks
    precision: speed.Precision = "auto"  # number format of matrix products; auto: the fastest of the device
    compile: bool = False  # compile the model first (torch.compile), which takes up to a minute
    eval_every: int = 250  # steps between two evaluations on the validation set, each with a sample and a checkpoint
    resume: Resume = "auto"  # continue from the checkpoint in --out, with its flags; auto: if of one --rdzv-id
    profile: int = 0  # steps to write a trace of (trace.json.gz, for ui.perfetto.dev), from the third on; 0: none
    overwrite: bool = False  # replace the checkpoints in --out even if they took more than ten minutes
    timeout: int = 600  # seconds that a process waits for the others before it gives up
    prompt: str = "The"  # text that the generated samples continue
    max_new_tokens: int = 100  # tokens per generated sample
    temperature: float = 0.8  # sampling temperature: the logits are divided by it; 0: always the likeliest token
    top_k: int = 0  # top-k sampling: draw from the k likeliest tokens only; 0: from all
    top_p: float = 0.95  # nucleus (top-p) sampling: draw from the fewest tokens whose probabilities reach this sum
    seed: int = 0  # random seed
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # device to compute on; auto is a GPU where there is one
    data: Path | None = None  # a parquet, JSON or text file of your own, or a folder of them, instead of OpenWebText
    whole: bool = False  # train on all 8 million documents of OpenWebText, not only the 100,000 of its first file
    val_share: float | None = None  # share of documents for validation; default 0.0005, or 0.02 of fewer than 100,000
    out: Path = Path(__file__).parent / "out"  # folder for the files that the run writes
    dry_run: bool = False  # only three steps, to check that everything works

    def __post_init__(self):
        ranges = {"dropout": (0, 0.99), "beta1": (0, 0.99999), "beta2": (0, 0.99999), "decay_to": (0, 1)}
        check_config(self, **ranges, weight_decay=0, grad_clip=0, temperature=0, top_k=0, top_p=(0.01, 1))
        if self.channels % self.heads:
            raise ValueError(f"--channels {self.channels} must be a multiple of --heads {self.heads}")
        if self.dry_run:
            self.steps = min(self.steps, DRY_RUN_STEPS)


GPT2 = {"block_size": 1024, "batch_size": 480}  # 480 x 1,024 = 491,520 tokens per step
GPT2 |= {"steps": 600, "eval_every": 100, "compile": True}  # a quarter of an hour's taste
PRESETS = {  # what differs from the defaults above
    "laptop": {"layers": 2, "batch_size": 16, "steps": 1_000, "learning_rate": 0.004, "decay_to": 0.0, "compile": True},
    # nanoGPT's config/train_gpt2.py; the larger three have the shapes of GPT-2's and GPT-3's learning rates for them.
    "gpt2": {**GPT2, "layers": 12, "heads": 12, "channels": 768, "micro_batch": 32, "learning_rate": 6e-4},
    "gpt2-medium": {**GPT2, "layers": 24, "heads": 16, "channels": 1024, "micro_batch": 16, "learning_rate": 3e-4},
    "gpt2-large": {**GPT2, "layers": 36, "heads": 20, "channels": 1280, "micro_batch": 8, "learning_rate": 2.5e-4},
    "gpt2-xl": {**GPT2, "layers": 48, "heads": 25, "channels": 1600, "micro_batch": 4, "learning_rate": 2e-4},
}
WHOLE = {"steps": 600_000, "warmup_steps": 2_000, "eval_every": 2_000}  # with --whole: nanoGPT's own length


def defaults(
    preset: Preset = "auto", resume: Resume = "auto", device: str = "auto", out: Path = Config.out, whole: bool = False
) -> Config:
    """Return what the flags are by default: the preset's values, or those of the checkpoint to go on from."""
    if checkpoint.should_resume(resume, out / "checkpoint.pt"):
        return checkpoint.load_flags(Config, out / "checkpoint.pt", preset)
    on_gpu = device in ("auto", "cuda") and torch_device(device).type == "cuda"
    if preset == "auto":
        preset = "gpt2" if on_gpu else "laptop"
    config = Config(preset, **PRESETS[preset] | (WHOLE if whole and preset != "laptop" else {}))
    config.micro_batch = speed.fitting(config.micro_batch) if on_gpu else config.micro_batch
    return config


def make_data(config, train, val, device):
    """Return tokens (N, T) and next tokens (N, T) of the validation tokens, in blocks, so that each token comes once.

    The first comes after the training text's last; -1, which fills up the last block, is not to be scored.
    """
    size = config.block_size
    val = val[: 20 * size if config.dry_run else None]  # so many blocks are enough for several processes
    train, val = (torch.from_numpy(tokens.astype(np.int64)).to(device) for tokens in (train[-1:], val))  # (1,), (L,)
    tokens = torch.cat([train[-1:], F.pad(val, (0, -len(val) % size), value=-1)])
    x_val, y_val = tokens[:-1].view(-1, size).clamp(min=0), tokens[1:].view(-1, size)
    return x_val, y_val


def read_samples(config, tokens, starts, device):
    """Return tokens (B, T) and next tokens (B, T) of the samples that begin at starts (B,)."""
    rows = torch.from_numpy(openwebtext.windows(tokens, starts.tolist(), config.block_size + 1))  # (B, T + 1)
    if device.type == "cuda":
        rows = rows.pin_memory()  # so that the copy need not be waited for
    rows = rows.to(device, non_blocking=True)
    return rows[:, :-1], rows[:, 1:]


def batches(config, n, step, device):
    """Yield the indices (B,) of one minibatch after another, from a step on, for ever; they follow from the seed alone.

    Every epoch is a new shuffle of blocks of T tokens, side by side, the first of which begins at a random offset.
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
        if x.device.type == "cpu":  # whose kernel is slow in fewer bits
            q, k, v = q.float(), k.float(), v.float()  # each (B, A, T, C / A)
        with torch.autocast("cpu", enabled=False):
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)  # (B, A, T, C / A)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, T, C)


class Block(nn.Module):
    """Attention, then an MLP for each token alone, each behind a norm and with a shortcut: (B, T, C) to same."""

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
    """Embeddings of tokens and positions, blocks, logits by the embedding table: tokens (B, T) to logits (B, T, V).

    Given the next tokens y (B, T) it returns the loss (): so a compiler sees logits and loss as one, and need
    not write the logits down in float32.
    """

    def __init__(self, config, vocab_size):
        super().__init__()
        self.precision = torch.float32  # of the matrix products; main() takes a faster one where the device has it
        self.embedding = nn.Embedding(vocab_size, config.channels)
        self.positions = nn.Embedding(config.block_size, config.channels)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.channels, bias=config.bias)
        self.head = nn.Linear(config.channels, vocab_size, bias=False)
        self.head.weight = self.embedding.weight  # weight tying: one table for the embedding and for the logits
        for name, param in self.named_parameters():  # as in GPT-2: the more corrections add up, the smaller each starts
            if param.ndim == 2:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(param, std=config.init_std / (2 * config.layers) ** 0.5 if last else config.init_std)
            elif name.endswith("bias"):
                nn.init.zeros_(param)

    def forward(self, tokens, y=None):
        with torch.autocast(tokens.device.type, self.precision, enabled=self.precision != torch.float32):
            x = self.dropout(self.embedding(tokens) + self.positions.weight[: tokens.shape[1]])  # (B, T, C)
            for block in self.blocks:
                x = block(x)  # (B, T, C)
            logits = self.head(self.norm(x)).float()  # (B, T, V)
        return logits if y is None else loss_fn(logits, y)


def loss_fn(logits, y):
    """Return the mean negative log likelihood () of the tokens y (…) under the softmax of the logits (…, V)."""
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


@torch.no_grad()
def evaluate(model, x, y):
    """Return the metrics of the model on the samples x, y, by name."""
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
    """Return a token id (1,) drawn from the logits (V,) with temperature, top-k and top-p (Holtzman et al. 2020)."""
    if config.temperature < 1e-6:  # where the logits would overflow
        return logits.argmax(keepdim=True)
    probs, tokens = F.softmax(logits / config.temperature, dim=0).sort(descending=True)  # (V,), (V,)
    probs[config.top_k or len(probs) :] = 0
    before = probs.cumsum(0) - probs  # (V,): what the likelier tokens have together
    probs[before >= config.top_p * probs.sum()] = 0
    return tokens[torch.multinomial(probs, 1, generator=generator)]


@torch.no_grad()
def sample(model, tokens, config, vocab):
    """Return the tokens (L,) and those that the model draws after them, one at a time, each from its own prediction."""
    model.eval()  # without dropout
    generator = torch.Generator(tokens.device).manual_seed(config.seed)  # so that sampling does not change the training
    for _ in range(config.max_new_tokens):
        window = tokens[-config.block_size :]  # (L,), then padded to one length; no token sees what comes after it
        padded = F.pad(window, (0, config.block_size - len(window)))[None]  # (1, T)
        logits = model(padded)[0, len(window) - 1, : vocab.n_vocab]  # (V,) without those that never occur
        tokens = torch.cat([tokens, draw(logits, config, generator)])
    model.train()
    return tokens


def learning_rate(config, step):
    """Return the learning rate: a linear warm-up, then half a cosine down to its final share."""
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
    adamw = torch.optim.AdamW(groups, config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
    options = {"weight_decay": config.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    return [adamw, torch.optim.Muon(hidden, config.learning_rate, **options)] if config.muon else [adamw]


def flops_per_token(config, model):
    """Return the multiplications and additions of training on a token (Chowdhery et al. 2022, appendix B)."""
    params = sum(param.numel() for param in model.parameters()) - model.positions.weight.numel()
    return 6 * params + 12 * config.layers * config.channels * config.block_size


def main(config: Config) -> dict[str, float]:
    torch.manual_seed(config.seed)  # for what torch itself draws at random
    rank, world_size, device = distributed.find_place(torch_device(config.device))  # of this process
    train_tokens, val_tokens, vocab = openwebtext.read(config.data, config.whole, config.val_share, config.dry_run)
    x_val, y_val = make_data(config, train_tokens, val_tokens, device)
    n = len(train_tokens) - config.block_size  # offsets at which a sequence can begin
    blocks = n // config.block_size
    if config.batch_size > blocks:
        there = f"{max(0, blocks)} blocks of --block-size {config.block_size} tokens"
        raise UserError(f"--batch-size {config.batch_size} is larger than the training text ({there})")
    if config.batch_size < world_size:
        raise UserError(f"--batch-size {config.batch_size} must be at least the number of processes, {world_size}")
    if len(x_val) <= world_size:
        raise UserError(
            f"{len(val_tokens)} validation tokens are too few for {world_size} processes: raise --val-share"
        )
    print(f"data: {len(train_tokens)} training and {len(val_tokens)} validation tokens, vocabulary {config.vocab_size}")

    if config.vocab_size < vocab.n_vocab:
        raise UserError(f"--vocab-size {config.vocab_size} must be at least GPT-2's {vocab.n_vocab} tokens")
    prompt = vocab.encode(config.prompt.replace("\\n", "\n"), allowed_special="all") or [vocab.eot_token]
    prompt = torch.tensor(prompt, device=device)  # (L,)
    if config.top_k > vocab.n_vocab:
        raise UserError(f"--top-k {config.top_k} is larger than the vocabulary ({vocab.n_vocab} tokens)")

    rows = len(range(rank, config.batch_size, world_size))  # sequences per step of this process
    grad_accum_steps = math.ceil(rows / config.micro_batch)  # micro-steps per step, whose gradients add up
    tokens_per_step = config.batch_size * config.block_size  # whatever the number of processes
    split = f"{world_size} processes in {grad_accum_steps} micro-steps of at most {math.ceil(rows / grad_accum_steps)}"
    print(f"tokens per step: {tokens_per_step} = {config.batch_size} sequences x {config.block_size}; {split}")

    model = Transformer(config, config.vocab_size).to(device)
    model.precision = speed.precision(device, config.precision)
    print(f"preset {config.preset}, with your flags on top; {device}, {model.precision}")
    optimizers, flops = make_optimizers(config, model), flops_per_token(config, model)
    # Small gradients would be 0 in float16: the loss is scaled up, and a step whose gradients overflow is left out.
    scaler = torch.amp.GradScaler(device.type, enabled=model.precision == torch.float16)
    resumed = checkpoint.should_resume(config.resume, config.out / "checkpoint.pt")
    start_step, state = checkpoint.resume_torch(config, None, model, optimizers, scaler) if resumed else (0, None)
    if world_size > 1:
        distributed.init_distributed(device, config.timeout)
        distributed.check_same_step(start_step, config.out)
    ddp_model = model
    if config.compile and not config.dry_run:
        index = next(batches(config, n, 0, "cpu"))[:rows].tensor_split(grad_accum_steps)[0]  # (M,)
        x, y = read_samples(config, train_tokens, index, device)
        ddp_model = speed.compiled(model, lambda model: model(x, y))
    if world_size > 1:
        ddp_model = DistributedDataParallel(ddp_model)  # whose backward() ends with the mean gradient of all processes
    counts = np.bincount(train_tokens[:10_000_000], minlength=config.vocab_size) + 1  # (V,), so that none is 0
    unigram = -np.log(counts / counts.sum())[val_tokens].mean()
    baselines = {"unigram": unigram, "ln V": np.log(config.vocab_size)}
    with Run(config, baselines, device, state) if rank == 0 else nullcontext() as run:
        steps = range(start_step, config.steps)
        if run:
            steps = speed.profiled(run, run.steps(config.steps, start_step))
        seconds = -speed.clock(device)  # of training alone
        for step, index in zip(steps, batches(config, n, start_step, "cpu")):  # (B,)
            stop = distributed.any_terminated()
            if step % config.eval_every == 0 or stop:
                seconds += speed.clock(device)
                if run:
                    checkpoint.save_torch(run, step, None, model, optimizers, scaler)
                if stop:
                    distributed.shutdown()
                    raise Terminated
                val = evaluate(model, x_val[rank::world_size], y_val[rank::world_size])
                if run:
                    run.record(step, "validation", **val)
                    run.write_sample(f"step {step}", vocab.decode(sample(model, prompt, config, vocab).tolist()))
                    checkpoint.save_best(run, step, None, model)
                seconds -= speed.clock(device)
            lr = learning_rate(config, step)
            torch.manual_seed(
                hash((config.seed, step, rank))
            )  # of dropout; the hash of integers is the same everywhere
            loss = 0.0
            for micro_step, offsets in enumerate(index[rank::world_size].tensor_split(grad_accum_steps)):  # (M,)
                # Gradients are exchanged in the last micro-step only. DDP reads this in forward(): set it before.
                ddp_model.require_backward_grad_sync = micro_step == grad_accum_steps - 1
                x, y = read_samples(config, train_tokens, offsets, device)  # (M, T), (M, T)
                assert len(x) <= config.micro_batch
                share = len(x) * world_size / config.batch_size  # of a process's mean, since DDP averages over these
                micro_loss = ddp_model(x, y) * share  # ()
                loss += micro_loss.detach()
                scaler.scale(micro_loss).backward()  # adds dL/dparam to the grad of every param
            if world_size > 1:
                dist.all_reduce(loss)  # the sum over all processes
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)  # (), unclipped
            norm = {"grad_norm": grad_norm} if not scaler.is_enabled() or grad_norm.isfinite() else {}
            if run:
                run.record(step, "train", loss=loss / world_size, lr=lr, **norm)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
                scaler.step(optimizer)
                optimizer.zero_grad()  # else the next backward() would add to this one's
            scaler.update()
            if run:
                done, spent = step + 1 - start_step, seconds + time.perf_counter()
                rates = speed.progress(done, config.steps - step - 1, tokens_per_step, spent, flops, device, world_size)
                run.latest |= {"tokens": (step + 1) * tokens_per_step, **rates}
                if done == 50 and config.whole:
                    print(f"after 50 steps: {rates['hours left'] / 24:.1f} days left")
        seconds += speed.clock(device)
        if run:
            checkpoint.save_torch(run, config.steps, None, model, optimizers, scaler)
        val = evaluate(model, x_val[rank::world_size], y_val[rank::world_size])
        distributed.shutdown()  # no process needs the others from here on
        if not run:
            return {}
        run.record(config.steps, "validation", **val)
        run.write_sample(f"step {config.steps}", vocab.decode(sample(model, prompt, config, vocab).tolist()))
        checkpoint.save_best(run, config.steps, None, model)
        measured = {"validation_loss": val["loss"], "least_validation_loss": run.least["validation loss"]}
        if config.steps > start_step:
            seconds /= config.steps - start_step
            tokens_per_second = tokens_per_step / seconds
            print(speed.describe(tokens_per_second, flops, device, world_size))
            measured["step_ms"] = 1000 * seconds
        metrics = run.finish(**measured)
    plot_loss(run.out, "nats per token")
    return metrics


if __name__ == "__main__":
    with clean_exit():
        default, _ = tyro.cli(defaults, add_help=False, return_unknown_args=True)
        main(tyro.cli(Config, default=default, description=__doc__))
