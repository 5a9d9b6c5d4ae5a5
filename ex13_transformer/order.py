"""How does it know what came first?

    python ex13_transformer/order.py

Predicted: without positions it is at most 0.1 worse, for the causal mask tells it where it is; rotary ones, which show
distances, are 0.05 better than learnt ones. In blocks twice as long as those of the training learnt ones lose 0.3,
sinusoidal ones 0.1, and none at most 0.1, less than rotary ones. Measured: exercise 13's network at half its size, on
characters, whose order matters more than that of words. 50 CPU seconds.
"""

from dataclasses import dataclass
from pathlib import Path

from common import data
from common.plotting import SAFE, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import torch.nn.functional as F
import train as ex13
import tyro

KINDS = ("none", "learnt", "sinusoidal", "rotary")
T, A = 32, 4  # characters of a block in training, and in the test 2 T; heads


@dataclass
class Config:
    steps: int = 800  # training steps of each network
    batch_size: int = 16  # batch size: blocks per step, B
    learning_rate: float = 0.003  # peak learning rate of AdamW
    warmup_steps: int = 100  # steps of linear warm-up; then half a cosine down to 0
    seed: int = 0  # random seed of weights and batches
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # little text and few steps, to check that everything works

    def __post_init__(self):
        check_config(self)


def angles(size, width):
    """Return an angle (T, D / 2) for each place and each pair of numbers: from a radian a token down to 1 / 10,000."""
    return torch.arange(size)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)


def waves(size, width):
    """Return a fixed vector (T, D) for each place: the sines and cosines of its angles (Vaswani 2017, section 3.5)."""
    return torch.cat([angles(size, width).sin(), angles(size, width).cos()], 1)


def turn(x):
    """Turn each pair of numbers of queries or keys (B, T, A, D) by its place's angle (Su et al. 2021)."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())  # (B, T, A, D / 2): a pair is a point
    angle = angles(x.shape[1], x.shape[-1])[:, None]  # (T, 1, D / 2)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)  # (B, T, A, D)


class Rotary(torch.nn.Sequential):
    """An attention's layer for queries, keys and values that turns queries and keys: (B, T, C) to (B, T, 3 C)."""

    def forward(self, x):
        q, k, v = self[0](x).unflatten(-1, (3, A, -1)).unbind(2)  # each (B, T, A, D)
        return torch.stack([turn(q), turn(k), v], 2).flatten(2)  # (B, T, 3 C)


def new_network(kind, vocab_size):
    """Return exercise 13's network at half its size, told of the order in one of four ways."""
    model = ex13.Transformer(ex13.Config(2 * T, layers=2, heads=A, channels=64, dropout=0, init_std=0.02), vocab_size)
    table = model.positions.weight
    if kind == "sinusoidal":
        table.data = waves(*table.shape) * 2**0.5 * table.data.std()  # as large as a table to be learnt
    elif kind != "learnt":
        table.data.zero_()
    table.requires_grad = kind == "learnt"
    if kind == "rotary":
        for block in model.blocks:
            block.attention.qkv = Rotary(block.attention.qkv)
    return model


def train(kind, tokens, vocab_size, config):
    """Return a network trained on blocks of T tokens, from anywhere in the text (L,)."""
    torch.manual_seed(config.seed)
    model = new_network(kind, vocab_size)
    blocks = tokens.unfold(0, T + 1, 1)  # (N, T + 1)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    rng = np.random.default_rng(config.seed)
    steps = range(3 if config.dry_run else config.steps)
    for step, index in zip(steps, ex13.batches(rng, len(blocks), config.batch_size)):
        optimizer.param_groups[0]["lr"] = ex13.learning_rate(config, step)
        loss = ex13.loss_fn(model(blocks[index, :-1]), blocks[index, 1:])  # ()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@torch.no_grad()
def by_place(model, tokens):
    """Return the loss (2 T,) of a text (L,) by the place in blocks twice as long as those of the training."""
    blocks = tokens.unfold(0, 2 * T + 1, T)  # (N, 2 T + 1)
    total = 0
    for part in blocks.split(256):
        total += F.cross_entropy(model(part[:, :-1]).transpose(1, 2), part[:, 1:], reduction="none").sum(0)  # (2 T,)
    return total / len(blocks)


def draw(losses, model):
    """Return the picture: each network's loss over the place in the block, and how alike the places' vectors are."""
    figure, (left, right) = panels("Loss by place, in blocks of 64 characters", "How alike is the vector of place 17")
    for color, (kind, loss) in zip(SAFE, losses.items()):
        means = loss.unflatten(0, (-1, 4)).mean(1)  # (T / 2,): of four places each
        left.plot(np.arange(2.5, 2 * T, 4), means, "o-", markersize=3, color=color, label=kind)
    for n, table in ((1, model.positions.weight.detach()), (2, waves(2 * T, 64))):
        alike = F.cosine_similarity(table, table[T // 2], dim=1)  # (2 T,)
        right.plot(np.arange(2 * T) + 1, alike, color=SAFE[n], label=KINDS[n])
    for ax in (left, right):
        ax.axvline(T + 0.5, color="0.5", linestyle="--")
        ax.legend(frameon=False)
    left.set(xlabel="place; right of the dashed line: never trained", ylabel="nats per character")
    right.set(xlabel="to that of this place", ylabel="cosine")
    return figure


def main(config: Config) -> dict[str, float]:
    text = data.shakespeare(config.dry_run)
    tokens, cut = ex13.encode(text, vocab := sorted(set(text))), len(text) * 9 // 10  # (L,)
    models = {kind: train(kind, tokens[:cut], len(vocab), config) for kind in KINDS}
    losses = {kind: by_place(model, tokens[cut:]) for kind, model in models.items()}  # each (2 T,)
    within = {kind: loss[T // 2 : T].mean().item() for kind, loss in losses.items()}  # with 16 or more before it
    beyond = {kind: losses[kind][T:].mean().item() - loss for kind, loss in within.items()}
    return answer(
        config,
        draw(losses, models["learnt"]),
        loss_learnt=within["learnt"],
        none_minus_learnt=(within["none"] - within["learnt"], 0, 0.1),
        sinusoidal_minus_learnt=within["sinusoidal"] - within["learnt"],
        rotary_minus_learnt=(within["rotary"] - within["learnt"], None, -0.05),
        lost_beyond_learnt=(beyond["learnt"], 0.3, None),
        lost_beyond_sinusoidal=(beyond["sinusoidal"], 0.1, None),
        lost_beyond_none=(beyond["none"], None, 0.1),
        lost_beyond_none_minus_rotary=(beyond["none"] - beyond["rotary"], None, 0),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
