"""Exercise 11: "Go back to a feedforward architecture. Each input should be a sequence of N words, output should be the
(N+1)th word. (Classification, the classes are all the possible words in the vocabulary, negative log likelihood loss.)"

Changes from ex07:
- The data are the tokens of a text, here its words, as token ids: from every T tokens in a row the model predicts the
  next one.
- An embedding table turns each token into a vector, and the T vectors go side by side into the network (Bengio et al.
  2003). The same table turns the last hidden vector into logits (weight tying).
- LayerNorm, dropout, and AdamW with warm-up and cosine decay: there are few words to learn from, and many parameters.

    python ex11_shakespeare_ffn/train.py

A test loss of 4.18 nats per word after a minute on two CPU cores; counting runs of four words gives 4.43.
"""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from common import UserError, data, text
from common.plotting import plot_loss
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
    block_size: int = 5  # context length in tokens, T
    layers: int = 2  # number of linear layers between the embeddings and the logits
    hidden: int = 512  # width of each hidden layer
    channels: int = 256  # embedding width, C
    dropout: float = 0.0  # dropout probability; two epochs do not need it, longer runs do
    batch_size: int = 256  # batch size: samples per step, B
    steps: int = 2_000  # training steps (1,027 are an epoch)
    learning_rate: float = 0.003  # peak learning rate of AdamW
    warmup_steps: int = 200  # steps of linear warm-up of the learning rate; then it decays to 0 along a half cosine
    weight_decay: float = 0.3  # weight decay of AdamW
    eval_every: int = 500  # steps between two evaluations on the test set
    seed: int = 0  # random seed
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # device to compute on; auto is a GPU where there is one
    text: Path | None = None  # a text file of your own (UTF-8) instead of Tiny Shakespeare
    out: Path = Path(__file__).parent / "out"  # folder for the files that the run writes
    dry_run: bool = False  # only three steps, to check that everything works

    def __post_init__(self):
        check_config(self, dropout=(0, 0.99), weight_decay=0)


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
    """Return contexts (N, T) and next tokens (N,) of the training tokens, then those of the test tokens."""
    tensors = []
    for tokens in train, torch.cat([train[-config.block_size :], test]):  # every test token has a full context
        tokens = tokens.to(device)
        tensors += [tokens.unfold(0, config.block_size, 1)[:-1], tokens[config.block_size :]]  # (N, T), (N,)
    return tensors


def batches(rng, n, batch_size):
    """Yield the indices (B,) of one minibatch after another, for ever; every epoch is a new shuffle of 0, …, n - 1."""
    while True:
        order = rng.permutation(n)  # (n,)
        for start in range(0, n - batch_size + 1, batch_size):
            yield order[start : start + batch_size]  # (B,)


class MLP(nn.Module):
    """Embeddings side by side, linear layers with ReLU and norm, logits by the table: tokens (B, T) to (B, V)."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.channels)
        widths = [config.block_size * config.channels] + [config.hidden] * (config.layers - 1) + [config.channels]
        self.layers = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[1:])
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.channels, vocab_size)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.head.weight = self.embedding.weight  # weight tying: one table for the embedding and for the logits

    def forward(self, tokens):
        x = self.dropout(self.embedding(tokens)).flatten(1)  # (B, T · C)
        for layer, norm in zip(self.layers, self.norms):
            x = self.dropout(norm(F.relu(layer(x))))  # (B, hidden), the last (B, C)
        return self.head(x)  # (B, V)


loss_fn = F.cross_entropy  # logits (B, V), tokens (B,): the mean over the batch ()


@torch.no_grad()
def evaluate(model, x, y):
    """Return the metrics of the model on the samples x, y, by name."""
    model.eval()  # without dropout
    loss, right, count = 0.0, 0, 0
    for x_part, y_part in zip(x.split(1024), y.split(1024)):  # (P, T), (P,): the logits of all would need a gigabyte
        logits = model(x_part)  # (P, V)
        assert logits.shape[:-1] == y_part.shape
        loss += loss_fn(logits, y_part).item() * len(y_part)
        right += (logits.argmax(-1) == y_part).sum().item()
        count += len(y_part)
    model.train()
    return {"loss": loss / count, "accuracy": right / count}


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

    minibatches = DataLoader(TensorDataset(x, y), sampler=batches(rng, len(x), config.batch_size), batch_size=None)
    model = MLP(config, len(vocab)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    counts = torch.bincount(train_tokens, minlength=len(vocab)) + 1  # (V,): one more, so that none is 0
    baselines = {"unigram": -(counts / counts.sum()).log()[test_tokens].mean(), "ln V": np.log(len(vocab))}
    with Run(config, baselines, device) as run:
        for step, (x_batch, y_batch) in zip(run.steps(config.steps), minibatches):  # tokens, and next tokens
            if step % config.eval_every == 0:
                run.record(step, "test", **evaluate(model, x_test, y_test))
            optimizer.param_groups[0]["lr"] = learning_rate(config, step)
            loss = loss_fn(model(x_batch), y_batch)  # ()
            run.record(step, "train", loss=loss.item())
            loss.backward()  # adds dL/dparam to the grad of every param
            optimizer.step()
            optimizer.zero_grad()  # else the next backward() would add to this one's
        test = evaluate(model, x_test, y_test)
        run.record(step + 1, "test", **test)
        metrics = run.finish(
            test_loss=test["loss"], test_perplexity=np.exp(test["loss"]), test_accuracy=test["accuracy"]
        )
    plot_loss(run.out, "nats per word")
    return metrics


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
