"""Exercise 16: "Go back to your transformer. Make it work on GPU, and try to match Karpathy's implementation and
performance from the nanoGPT repo (on the shakespeare dataset)."

Changes from ex13:
- Tokens are single characters, split as in nanoGPT, whose settings are presets beside better ones (--preset).
- Made for a GPU: the text stays there, attention and AdamW are one fused kernel each, the model is compiled and
  multiplies in bfloat16, and the loop does not wait for the loss.
- What nanoGPT trains with: weight decay on matrices only, gradient clipping, a learning rate that ends above 0; and
  optionally Muon for the matrices (--muon).
- The batches follow from the seed, and a checkpoint holds all else: --resume continues exactly where the run stopped.

    python ex16_gpu_nanogpt/train.py

1.91 nats per character of the validation set in under a minute on two CPU cores, as nanoGPT; 1.67 with --preset
best-cpu in the same time. On a GPU (preset nanogpt) about 1.47 is to be expected; nothing was measured on one yet.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import UserError, checkpoint, data, speed, text
from common.plotting import plot_loss
from common.program import Resume, Terminated, check_config, clean_exit, terminated, torch_device
from common.record import DRY_RUN_STEPS, Run

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import nn

Preset = Literal["auto", "nanogpt", "nanogpt-cpu", "best", "best-cpu"]


@dataclass
class Config:
    preset: Preset = "auto"  # set of defaults for the other flags; auto: nanogpt on a GPU, nanogpt-cpu elsewhere
    block_size: int = 64  # context length in tokens, T; here a token is a character
    layers: int = 4  # transformer blocks
    heads: int = 4  # attention heads per block, A
    channels: int = 128  # width of the embeddings and of the blocks, C
    bias: bool = False  # biases in linear layers and layer norms
    dropout: float = 0.0  # dropout probability
    init_std: float = 0.02  # standard deviation of the initial weights
    batch_size: int = 12  # batch size: samples per step, B
    steps: int = 2_000  # training steps
    learning_rate: float = 0.001  # peak learning rate of AdamW
    warmup_steps: int = 100  # steps of linear warm-up of the learning rate; then it decays along a half cosine
    decay_to: float = 0.1  # final learning rate, as a share of --learning-rate
    weight_decay: float = 0.1  # weight decay of AdamW, on matrices only
    beta1: float = 0.9  # AdamW's decay of the running mean of the gradients
    beta2: float = 0.99  # AdamW's decay of the running mean of their squares
    grad_clip: float = 1.0  # gradient clipping: largest norm of all gradients together; 0: none
    muon: bool = False  # Muon instead of AdamW for the matrices in the blocks
    precision: speed.Precision = "auto"  # number format of matrix products; auto: the fastest of the device
    compile: bool = False  # compile the model first (torch.compile), which takes up to a minute
    eval_every: int = 250  # steps between two evaluations on the validation set, each with a sample and a checkpoint
    resume: Resume = "auto"  # continue from the checkpoint in --out, with its flags; auto: if of one --rdzv-id
    profile: int = 0  # steps to write a trace of (trace.json.gz, for ui.perfetto.dev), from the third on; 0: none
    overwrite: bool = False  # replace the checkpoints in --out even if they took more than ten minutes
    prompt: str = "ROMEO:\n"  # text that the generated samples continue
    max_new_tokens: int = 100  # tokens per generated sample
    temperature: float = 0.8  # sampling temperature: the logits are divided by it; 0: always the likeliest token
    top_k: int = 0  # top-k sampling: draw from the k likeliest tokens only; 0: from all
    top_p: float = 0.95  # nucleus (top-p) sampling: draw from the fewest tokens whose probabilities reach this sum
    seed: int = 0  # random seed
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # device to compute on; auto is a GPU where there is one
    text: Path | None = None  # a text file of your own (UTF-8) instead of Tiny Shakespeare
    out: Path = Path(__file__).parent / "out"  # folder for the files that the run writes
    dry_run: bool = False  # only three steps, to check that everything works

    def __post_init__(self):
        ranges = {"dropout": (0, 0.99), "beta1": (0, 0.99999), "beta2": (0, 0.99999), "decay_to": (0, 1)}
        check_config(self, **ranges, weight_decay=0, grad_clip=0, temperature=0, top_k=0, top_p=(0.01, 1))
        if self.channels % self.heads:
            raise ValueError(f"--channels {self.channels} must be a multiple of --heads {self.heads}")
        if self.dry_run:
            self.steps = min(self.steps, DRY_RUN_STEPS)


NANOGPT = {"block_size": 256, "layers": 6, "heads": 6, "channels": 384, "dropout": 0.2, "batch_size": 64}
PRESETS = {  # what differs from the defaults above, which are nanoGPT's for a laptop
    "nanogpt-cpu": {},
    "best-cpu": {"layers": 2, "batch_size": 24, "learning_rate": 0.008, "warmup_steps": 50, "decay_to": 0.0},
    "nanogpt": {**NANOGPT, "steps": 5_000, "compile": True},
    "best": {**NANOGPT, "dropout": 0.4, "steps": 3_000, "decay_to": 0.0, "compile": True},
}


def defaults(preset: Preset = "auto", resume: Resume = "auto", device: str = "auto", out: Path = Config.out) -> Config:
    """Return what the flags are by default: the preset's values, or those of the checkpoint to go on from."""
    if checkpoint.should_resume(resume, out / "checkpoint.pt"):
        return checkpoint.load_flags(Config, out / "checkpoint.pt", preset)
    if preset == "auto":
        on_gpu = device in ("auto", "cuda") and torch_device(device).type == "cuda"
        preset = "nanogpt" if on_gpu else "nanogpt-cpu"
    return Config(preset, **PRESETS[preset])


def read_tokens(config):
    """Return the token ids of training text and validation text, each (L,), and the vocabulary: all characters."""
    tokens = text.read(config.text) if config.text else data.shakespeare(config.dry_run)
    cut = len(tokens) * 9 // 10
    vocab = sorted(set(tokens))
    if len(tokens) - cut <= config.block_size:
        raise UserError(
            f"the text's {len(tokens) - cut} validation characters must be more than --block-size {config.block_size}"
        )
    return encode(tokens[:cut], vocab), encode(tokens[cut:], vocab), vocab


def encode(tokens, vocab):
    """Return a text as token ids (L,), the indices of its characters in the vocabulary; UserError if one has none."""
    ids = {token: i for i, token in enumerate(vocab)}
    text.check_characters(tokens, vocab)
    return torch.tensor([ids[token] for token in tokens])  # (L,)


def make_data(config, train, val, device):
    """Return tokens (N, T) and next tokens (N, T) of the training tokens, then those of the validation tokens.

    Validation tokens come in blocks, each token once; -1, which fills up the last block, is not to be scored.
    """
    size, train, val = config.block_size, train.to(device), val.to(device)
    x, y = train[:-1].unfold(0, size, 1), train[1:].unfold(0, size, 1)  # (N, T), (N, T): views of one array
    tokens = torch.cat([train[-1:], F.pad(val, (0, -len(val) % size), value=-1)])
    x_val, y_val = tokens[:-1].view(-1, size).clamp(min=0), tokens[1:].view(-1, size)
    return x, y, x_val, y_val


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
    for x_part, y_part in zip(x.split(32), y.split(32)):  # (P, T), (P, T): the logits of all would need gigabytes
        scored = y_part >= 0  # (P, T)
        logits, y_part = model(x_part)[scored], y_part[scored]  # (S, V), (S,)
        assert logits.shape[:-1] == y_part.shape
        loss += loss_fn(logits, y_part).item() * len(y_part)
        right += (logits.argmax(-1) == y_part).sum().item()
        count += len(y_part)
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
def sample(model, tokens, config):
    """Return the tokens (L,) and those that the model draws after them, one at a time, each from its own prediction."""
    model.eval()  # without dropout
    generator = torch.Generator(tokens.device).manual_seed(config.seed)  # so that sampling does not change the training
    for _ in range(config.max_new_tokens):
        window = tokens[-config.block_size :]  # (L,), then padded to one length; no token sees what comes after it
        padded = F.pad(window, (0, config.block_size - len(window)))[None]  # (1, T)
        logits = model(padded)[0, len(window) - 1]  # (V,)
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
    device = torch_device(config.device)
    train_tokens, val_tokens, vocab = read_tokens(config)
    x, y, x_val, y_val = make_data(config, train_tokens, val_tokens, device)
    blocks = len(x) // config.block_size
    if config.batch_size > blocks:
        there = f"{max(0, blocks)} blocks of --block-size {config.block_size} tokens"
        raise UserError(f"--batch-size {config.batch_size} is larger than the training text ({there})")
    print(f"data: {len(train_tokens)} training and {len(val_tokens)} validation characters, vocabulary {len(vocab)}")

    prompt = encode(text.prompt_words(config, vocab, train_tokens), vocab).to(device)  # (L,)
    if not len(prompt):
        raise UserError("--prompt is empty: give it a character or more")
    if config.top_k > len(vocab):
        raise UserError(f"--top-k {config.top_k} is larger than the vocabulary ({len(vocab)} tokens)")

    model = Transformer(config, len(vocab)).to(device)
    model.precision = speed.precision(device, config.precision)
    print(f"preset {config.preset}, with your flags on top; {device}, {model.precision}")
    optimizers = make_optimizers(config, model)
    # Small gradients would be 0 in float16: the loss is scaled up, and a step whose gradients overflow is left out.
    scaler = torch.amp.GradScaler(device.type, enabled=model.precision == torch.float16)
    resumed = checkpoint.should_resume(config.resume, config.out / "checkpoint.pt")
    start_step, state = checkpoint.resume_torch(config, vocab, model, optimizers, scaler) if resumed else (0, None)
    compiled_model = model
    if config.compile and not config.dry_run:
        index = next(batches(config, len(x), 0, device))  # (B,)
        compiled_model = speed.compiled(model, lambda model: model(x[index], y[index]))
    counts = torch.bincount(train_tokens, minlength=len(vocab)) + 1  # (V,): one more, so that none is 0
    baselines = {"unigram": -(counts / counts.sum()).log()[val_tokens].mean(), "ln V": np.log(len(vocab))}
    with Run(config, baselines, device, state) as run:
        seconds = -speed.clock(device)  # of training alone
        steps = speed.profiled(run, run.steps(config.steps, start_step))
        for step, index in zip(steps, batches(config, len(x), start_step, device)):  # (B,)
            stop = terminated()
            if step % config.eval_every == 0 or stop:
                seconds += speed.clock(device)
                checkpoint.save_torch(run, step, vocab, model, optimizers, scaler)
                if stop:
                    raise Terminated
                run.record(step, "validation", **evaluate(model, x_val, y_val))
                run.sample(step, sample(model, prompt, config), vocab, train_tokens, 20)
                checkpoint.save_best(run, step, vocab, model)
                seconds -= speed.clock(device)
            lr = learning_rate(config, step)
            loss = compiled_model(x[index], y[index])  # ()
            scaler.scale(loss).backward()  # adds dL/dparam to the grad of every param
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)  # (), unclipped
            norm = {"grad_norm": grad_norm} if not scaler.is_enabled() or grad_norm.isfinite() else {}
            run.record(step, "train", loss=loss.detach(), lr=lr, **norm)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
                scaler.step(optimizer)
                optimizer.zero_grad()  # else the next backward() would add to this one's
            scaler.update()
        seconds += speed.clock(device)
        checkpoint.save_torch(run, config.steps, vocab, model, optimizers, scaler)
        val = evaluate(model, x_val, y_val)
        run.record(config.steps, "validation", **val)
        run.sample(config.steps, sample(model, prompt, config), vocab, train_tokens, 20)
        checkpoint.save_best(run, config.steps, vocab, model)
        measured = {"validation_loss": val["loss"], "least_validation_loss": run.least["validation loss"]}
        if config.steps > start_step:
            seconds /= config.steps - start_step
            tokens_per_second = config.batch_size * config.block_size / seconds
            print(speed.describe(tokens_per_second, flops_per_token(config, model), device))
            measured["step_ms"] = 1000 * seconds
        metrics = run.finish(**measured)
    plot_loss(run.out, "nats per character")
    return metrics


if __name__ == "__main__":
    with clean_exit():
        default, _ = tyro.cli(defaults, add_help=False, return_unknown_args=True)
        main(tyro.cli(Config, default=default, description=__doc__))
