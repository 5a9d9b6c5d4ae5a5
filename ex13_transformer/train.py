"""Exercise 13: "Change architecture to be a causal transformer. Input data is still N words, but output data is now N
next-words (ie the same sequence but offset by 1)."

Changes from ex12:
- Attention: each word looks back at all words before it in the block, and decides by their content which to use.
- Blocks of attention and a small MLP, each added to what came in, as in GPT-2 (Radford et al. 2019).
- Every word of a block is predicted from those before it: T predictions for one pass over T words.

    python ex13_transformer/train.py

4.2 nats per test word, a little better than exercise 11, in four minutes on two CPU cores.
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import UserError, data
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
    block_size: int = 32  # words that the model looks back at, T
    layers: int = 3  # transformer blocks
    heads: int = 4  # attention heads of each, A
    channels: int = 128  # width of a word's embedding and of the blocks, C
    bias: bool = True  # biases in linear layers and norms
    dropout: float = 0.1  # share of the embeddings and hidden units that is set to 0 in training
    batch_size: int = 16  # samples per step, B
    steps: int = 5_000  # updates of the parameters (514 of them show as many words as there are)
    learning_rate: float = 0.001  # largest step size of AdamW
    warmup_steps: int = 200  # steps in which it rises to that; then it falls to 0 along a half cosine
    weight_decay: float = 0.1  # AdamW pulls the parameters towards 0 by this times the learning rate at every step
    eval_every: int = 500  # steps between two evaluations on the test set
    prompt: str = "ROMEO:\n"  # text that samples go on from
    sample_words: int = 100  # words of a sample
    temperature: float = 0.8  # logits are divided by it before a word is drawn; 0: the likeliest word
    top_k: int = 0  # draw from this many of the likeliest words; 0: from all
    top_p: float = 0.95  # draw from the fewest words that have this probability together
    seed: int = 0  # of everything that is drawn at random
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute; auto is a GPU where there is one
    text: Path | None = None  # a text file of your own (UTF-8) instead of Tiny Shakespeare
    out: Path = Path(__file__).parent / "out"  # folder for what the run writes
    dry_run: bool = False  # three steps only, to see that everything works

    def __post_init__(self):
        check_config(self, dropout=(0, 0.99), weight_decay=0, temperature=0, top_k=0, top_p=(0.01, 1))
        if self.channels % self.heads:
            raise ValueError(f"--channels {self.channels} must be a multiple of --heads {self.heads}")


def read_words(config):
    """Return the training words (N,) and the test words (M,) as numbers, and the vocabulary: the words by number."""
    words = data.split_words(data.text(config.text) if config.text else data.shakespeare(config.dry_run))
    cut = len(words) * 9 // 10
    counts = Counter(words[:cut])
    vocab = ["<unk>"] + [word for word in counts if counts[word] >= 2]  # by first occurrence; <unk> is all other words
    if cut <= config.block_size or len(vocab) == 1:
        raise UserError(
            f"the text's {cut} training words must be more than --block-size {config.block_size}, and hold a word twice"
        )
    return encode(words[:cut], vocab), encode(words[cut:], vocab), vocab


def encode(words, vocab):
    """Return a list of words as numbers (N,), their places in the vocabulary."""
    numbers = {word: number for number, word in enumerate(vocab)}
    return torch.tensor([numbers.get(word, 0) for word in words])  # (N,)


def make_data(config, train, test, device):
    """Return words (N, T) and next words (N, T) of the training words, then those of the test words.

    Windows of test words overlap by half, and the first half of their next words is -1, not to be scored: so each test
    word is scored once, with half a block before it or more.
    """
    size, half = config.block_size, (config.block_size + 1) // 2
    x, y = train[:-1].unfold(0, size, 1), train[1:].unfold(0, size, 1)  # (N, T), (N, T): views of one array
    words = torch.cat([train[half - size - 1 :], F.pad(test, (0, -len(test) % half), value=-1)])
    x_test, y_test = words[:-1].unfold(0, size, half).clamp(min=0), words[1:].unfold(0, size, half).clone()
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
        y = self.dropout(self.weights) @ v  # (B, A, T, C / A): each word's values, as much as it is looked at
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
    """Embeddings of words and places, blocks, logits by the embedding table: words (B, T) to logits (B, T, V)."""

    def __init__(self, config, vocab_size):
        super().__init__()
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

    def forward(self, words):
        x = self.dropout(self.embedding(words) + self.positions.weight[: words.shape[1]])  # (B, T, C)
        for block in self.blocks:
            x = block(x)  # (B, T, C)
        return self.head(self.norm(x))  # (B, T, V)


def loss_fn(logits, y):
    """Return the mean negative log likelihood () of the words y (…) under the softmax of the logits (…, V)."""
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


@torch.no_grad()
def evaluate(model, x, y):
    """Return what is measured of the model on the samples x, y, by name."""
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
    """Return a word (1,) drawn from the logits (V,) with temperature, top-k and top-p (Holtzman et al. 2020)."""
    logits[0] = -torch.inf  # never <unk>
    if config.temperature < 1e-6:  # where the logits would overflow
        return logits.argmax(keepdim=True)
    probs, words = F.softmax(logits / config.temperature, dim=0).sort(descending=True)  # (V,), (V,)
    probs[config.top_k or len(probs) :] = 0
    before = probs.cumsum(0) - probs  # (V,): what the likelier words have together
    probs[before >= config.top_p * probs.sum()] = 0
    return words[torch.multinomial(probs, 1, generator=generator)]


@torch.no_grad()
def sample(model, words, config):
    """Return the words (N,) and those that the model draws after them, one at a time, each from its own prediction."""
    model.eval()  # without dropout
    generator = torch.Generator(words.device).manual_seed(config.seed)  # so that training draws what it would have
    for _ in range(config.sample_words):
        logits = model(words[None, -config.block_size :])[0, -1]  # (V,)
        words = torch.cat([words, draw(logits, config, generator)])
    model.train()
    return words


def learning_rate(config, step):
    """Return the step size: a straight line up to the warm-up's end, times half a cosine down to 0."""
    warmup = min(1, (step + 1) / config.warmup_steps)
    return config.learning_rate * warmup * (1 + math.cos(math.pi * step / config.steps)) / 2


def main(config: Config) -> dict[str, float]:
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)  # for what torch itself draws at random
    device = torch_device(config.device)
    train_words, test_words, vocab = read_words(config)
    x, y, x_test, y_test = make_data(config, train_words, test_words, device)
    if config.batch_size > len(x):
        raise UserError(f"--batch-size {config.batch_size} is more than the {len(x)} words there are to predict")
    sizes = f"{len(train_words)} training and {len(test_words)} test words"
    print(f"data: {sizes} ({(test_words == 0).float().mean():.1%} unknown), vocabulary {len(vocab)}")

    prompt = encode(data.prompt_words(config, vocab, train_words), vocab).to(device)  # (P,)
    if not len(prompt):
        raise UserError("--prompt is empty: give it a character or more")
    if config.top_k > len(vocab):
        raise UserError(f"--top-k {config.top_k} is more than the {len(vocab)} words of the vocabulary")

    minibatches = DataLoader(TensorDataset(x, y), sampler=batches(rng, len(x), config.batch_size), batch_size=None)
    model = Transformer(config, len(vocab)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    counts = torch.bincount(train_words, minlength=len(vocab)) + 1  # (V,): one more, so that none is 0
    baselines = {"unigram": -(counts / counts.sum()).log()[test_words].mean(), "ln V": np.log(len(vocab))}
    with Run(config, baselines, device) as run:
        for step, (x_batch, y_batch) in zip(run.steps(config.steps), minibatches):  # words, and next words
            if step % config.eval_every == 0:
                run.record(step, "test", **evaluate(model, x_test, y_test))
                run.sample(step, sample(model, prompt, config), vocab, train_words)
            optimizer.param_groups[0]["lr"] = learning_rate(config, step)
            loss = loss_fn(model(x_batch), y_batch)  # ()
            run.record(step, "train", loss=loss.item())
            loss.backward()  # adds dL/dparam to the grad of every param
            optimizer.step()
            optimizer.zero_grad()  # else the next backward() would add to this one's
        test = evaluate(model, x_test, y_test)
        run.record(step + 1, "test", **test)
        run.sample(step + 1, sample(model, prompt, config), vocab, train_words)
        metrics = run.finish(
            test_loss=test["loss"], test_perplexity=np.exp(test["loss"]), test_accuracy=test["accuracy"]
        )
    plot_loss(run.out, "nats per word")
    model.eval()(x_test[:1, :20])  # which leaves its attention weights behind
    patterns = [block.attention.weights[0].detach().cpu() for block in model.blocks]  # each (A, 20, 20)
    plot_attention(run.out, patterns, [vocab[word] for word in x_test[0, :20]])
    return metrics


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
