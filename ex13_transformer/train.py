"""Exercise 13: "Change architecture to be a causal transformer. Input data is still N words, but output data is now N
next-words (ie the same sequence but offset by 1)."

Changes from ex12:
- Self-attention: each token looks back at all tokens before it in the block, and decides by their content which to use.
- Blocks of attention and a small MLP, each with a shortcut (its output is added to its input), as in GPT-2 (Radford et
  al. 2019).
- Every token of a block is predicted from those before it: one pass over T tokens gives T predictions.

    python ex13_transformer/train.py

4.13 nats per test word, better than exercise 11's 4.18, in four minutes on two CPU cores.
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import UserError, data, text
from common.plotting import plot_attention, plot_loss
from common.program import check_config, clean_exit, torch_device
from common.record import Run

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@dataclass
class Config:
    block_size: int = 32  # context length in tokens, T
    layers: int = 3  # transformer blocks
    heads: int = 4  # attention heads per block, A
    channels: int = 128  # width of the embeddings and of the blocks, C
    bias: bool = True  # biases in linear layers and layer norms
    dropout: float = 0.1  # dropout probability
    init_std: float = 0.08  # standard deviation of the initial weights
    batch_size: int = 16  # batch size: samples per step, B
    steps: int = 5_000  # training steps (514 see as many tokens as the text has)
    learning_rate: float = 0.001  # peak learning rate of AdamW
    warmup_steps: int = 200  # steps of linear warm-up of the learning rate; then it decays to 0 along a half cosine
    weight_decay: float = 0.1  # weight decay of AdamW
    eval_every: int = 500  # steps between two evaluations on the test set
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
        check_config(self, dropout=(0, 0.99), weight_decay=0, temperature=0, top_k=0, top_p=(0.01, 1))
        if self.channels % self.heads:
            raise ValueError(f"--channels {self.channels} must be a multiple of --heads {self.heads}")


def read_tokens(config):
    """Return the token ids of the training text and the test text, each (L,), and the vocabulary: the tokens by id."""
    tokens = text.split_words(text.read(config.text) if config.text else data.shakespeare(config.dry_run))
    cut = len(tokens) * 9 // 10
    counts = Counter(tokens[:cut])
    vocab = ["<unk>"] + [token for token in counts if counts[token] >= 2]  # by first occurrence; all others are <unk>
    if cut <= config.block_size or len(vocab) == 1:
        raise UserError(
            f"the text's {cut} training tokens must be more than --block-size {config.block_size}, and hold one twice"
        )
    return encode(tokens[:cut], vocab), encode(tokens[cut:], vocab), vocab


def encode(tokens, vocab):
    """Return a list of tokens as token ids (L,), their indices in the vocabulary."""
    ids = {token: i for i, token in enumerate(vocab)}
    return torch.tensor([ids.get(token, 0) for token in tokens])  # (L,)


def make_data(config, train, test, device):
    """Return tokens (N, T) and next tokens (N, T) of the training tokens, then those of the test tokens.

    Windows of test tokens overlap by half, and the first half of their next tokens is -1, not to be scored: so each
    test token is scored once, with half a block before it or more.
    """
    size, half = config.block_size, (config.block_size + 1) // 2
    x, y = train[:-1].unfold(0, size, 1), train[1:].unfold(0, size, 1)  # (N, T), (N, T): views of one array
    tokens = torch.cat([train[half - size - 1 :], F.pad(test, (0, -len(test) % half), value=-1)])
    x_test, y_test = tokens[:-1].unfold(0, size, half).clamp(min=0), tokens[1:].unfold(0, size, half).clone()
    y_test[:, :-half] = -1
    return x.to(device), y.to(device), x_test.to(device), y_test.to(device)


def batches(rng, n, batch_size):
    """Yield the indices (B,) of one minibatch after another, for ever; every epoch is a new shuffle of 0, …, n - 1."""
    while True:
        order = rng.permutation(n)  # (n,)
        for start in range(0, n - batch_size + 1, batch_size):
            yield order[start : start + batch_size]  # (B,)


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
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, A, T, T): every query with every key
        later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)  # (T, T): above the diagonal, what comes later
        self.weights = scores.masked_fill(later, -torch.inf).softmax(-1)  # (B, A, T, T): rows of sum 1
        y = self.dropout(self.weights) @ v  # (B, A, T, C / A): each token's values, as much as it is looked at
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
    """Embeddings of tokens and positions, blocks, logits by the embedding table: tokens (B, T) to logits (B, T, V)."""

    def __init__(self, config, vocab_size):
        super().__init__()
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

    def forward(self, tokens):
        x = self.dropout(self.embedding(tokens) + self.positions.weight[: tokens.shape[1]])  # (B, T, C)
        for block in self.blocks:
            x = block(x)  # (B, T, C)
        return self.head(self.norm(x))  # (B, T, V)


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
    logits[0] = -torch.inf  # never <unk>
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
    """Return the learning rate: a linear warm-up, then half a cosine down to 0."""
    warmup = min(1, (step + 1) / config.warmup_steps)
    progress = max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * warmup * (1 + math.cos(math.pi * progress)) / 2


def main(config: Config) -> dict[str, float]:
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)  # for what torch itself draws at random
    device = torch_device(config.device)
    train_tokens, test_tokens, vocab = read_tokens(config)
    x, y, x_test, y_test = make_data(config, train_tokens, test_tokens, device)
    if config.batch_size > len(x):
        raise UserError(f"--batch-size {config.batch_size} is larger than the training set ({len(x)} tokens)")
    sizes = f"{len(train_tokens)} training and {len(test_tokens)} test tokens"
    print(f"data: {sizes} ({(test_tokens == 0).float().mean():.1%} unknown), vocabulary {len(vocab)}")

    prompt = encode(text.prompt_words(config, vocab, train_tokens), vocab).to(device)  # (L,)
    if not len(prompt):
        raise UserError("--prompt is empty: give it a character or more")
    if config.top_k > len(vocab):
        raise UserError(f"--top-k {config.top_k} is larger than the vocabulary ({len(vocab)} tokens)")

    minibatches = DataLoader(TensorDataset(x, y), sampler=batches(rng, len(x), config.batch_size), batch_size=None)
    model = Transformer(config, len(vocab)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    counts = torch.bincount(train_tokens, minlength=len(vocab)) + 1  # (V,): one more, so that none is 0
    baselines = {"unigram": -(counts / counts.sum()).log()[test_tokens].mean(), "ln V": np.log(len(vocab))}
    with Run(config, baselines, device) as run:
        for step, (x_batch, y_batch) in zip(run.steps(config.steps), minibatches):  # tokens, and next tokens
            if step % config.eval_every == 0:
                run.record(step, "test", **evaluate(model, x_test, y_test))
                run.sample(step, sample(model, prompt, config), vocab, train_tokens)
            optimizer.param_groups[0]["lr"] = learning_rate(config, step)
            loss = loss_fn(model(x_batch), y_batch)  # ()
            run.record(step, "train", loss=loss.item())
            loss.backward()  # adds dL/dparam to the grad of every param
            optimizer.step()
            optimizer.zero_grad()  # else the next backward() would add to this one's
        test = evaluate(model, x_test, y_test)
        run.record(step + 1, "test", **test)
        run.sample(step + 1, sample(model, prompt, config), vocab, train_tokens)
        metrics = run.finish(
            test_loss=test["loss"], test_perplexity=np.exp(test["loss"]), test_accuracy=test["accuracy"]
        )
    plot_loss(run.out, "nats per word")
    model.eval()(x_test[:1, :20])  # which leaves its attention weights behind
    patterns = [block.attention.weights[0].detach().cpu() for block in model.blocks]  # each (A, 20, 20)
    plot_attention(run.out, patterns, [vocab[token] for token in x_test[0, :20]])
    return metrics


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
