"""Why are the scores divided by √d?

    python ex13_transformer/scores.py

Predicted: a score is a sum of d products, so its standard deviation grows as √d; without the division the softmax of
64-wide heads gives most of the weight to one key, and half of the gradient is lost on the way back. And in a new
network of exercise 13 it makes no difference yet: its weights are too small. Measured: random queries and keys, with
32 keys for each query, and exercise 13's own network before its first step. 3 CPU seconds.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import torch
import train as ex13
import tyro

WIDTHS = (4, 16, 64, 256)  # widths of a head, d


@dataclass
class Config:
    queries: int = 4_000  # random queries, each with 32 keys of its own
    seed: int = 0  # random seed of queries, keys, and weights
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few queries, to check that everything works

    def __post_init__(self):
        check_config(self, queries=(1, 100_000))
        if self.dry_run:
            self.queries = 50


def attend(q, k, divide=True):
    """Return scores and weights, both (N, T), of queries (N, d) and keys (N, T, d)."""
    scores = (k @ q[..., None])[..., 0] / (math.sqrt(q.shape[-1]) if divide else 1)  # (N, T)
    return scores, scores.softmax(-1)


def slopes(weights):
    """Return how much of a gradient comes back through the softmax that gave these weights (N, T), on average.

    It is the norm of its Jacobian, diag(p) - p pᵀ, which is 0 where one weight is 1.
    """
    jacobian = torch.diag_embed(weights) - weights[..., None] * weights[..., None, :]  # (N, T, T)
    return jacobian.flatten(1).norm(dim=1).mean().item()


def spread_in_a_new_network(config):
    """Return the standard deviation of the scores, not divided, of exercise 13's first layer before any training.

    With GPT-2's weights of 0.02, and inputs of 1 behind the norm: 0.02² C √d is to be expected, 0.29.
    """
    ex = ex13.Config(init_std=0.02)
    block = ex13.Transformer(ex, 100).blocks[0]
    x = torch.randn(config.queries // ex.block_size + 1, ex.block_size, ex.channels)  # (B, T, C)
    q, k, _ = block.attention.qkv(block.norm1(x)).unflatten(-1, (3, ex.heads, -1)).permute(2, 0, 3, 1, 4)
    return (q @ k.transpose(-2, -1)).std().item()


def draw(spreads, sorted_weights):
    """Return the picture: the spread of the scores over d, and the weights of 32 keys from the largest to the least."""
    figure, (left, right) = panels("Spread of the scores", "Weights of 32 keys, largest first")
    for color, divide, name in ((SAFE[1], False, "not divided"), (SAFE[0], True, "divided by √d")):
        left.loglog(WIDTHS, [spreads[d, divide] for d in WIDTHS], "o", color=color)
        left.plot(WIDTHS, [1 if divide else math.sqrt(d) for d in WIDTHS], color=color, linewidth=1)
        label(left, 16, spreads[16, divide], name, color, (8, -8))
        for d in WIDTHS if not divide else (64,):
            weights = sorted_weights[d, divide]
            right.plot(range(1, 33), weights, color=color, alpha=0.4 + 0.15 * WIDTHS.index(d))
            label(right, 1, weights[0], f"d = {d}, {name}", color, (14, 6))
    left.set(xlabel="width of a head, d", ylabel="standard deviation", xticks=WIDTHS, xticklabels=WIDTHS)
    left.minorticks_off()
    right.set(xlabel="rank of the key", ylabel="weight, mean of all queries", ylim=(0, 1))
    return figure


def main(config: Config) -> dict[str, float]:
    torch.manual_seed(config.seed)
    spreads, largest, back = {}, {}, {}
    for d in WIDTHS:
        q, k = torch.randn(config.queries, d), torch.randn(config.queries, 32, d)
        for divide in (False, True):
            scores, weights = attend(q, k, divide)
            spreads[d, divide] = scores.std().item()
            largest[d, divide] = weights.sort(descending=True).values.mean(0)  # (T,)
            back[d, divide] = slopes(weights)
    return answer(
        config,
        draw(spreads, largest),
        spread_over_root_d=(spreads[256, False] / 16, 0.95, 1.05),
        spread_divided=(spreads[256, True], 0.95, 1.05),
        largest_weight=(largest[64, False][0].item(), 0.5, None),
        largest_weight_divided=(largest[64, True][0].item(), None, 0.25),
        gradient_kept=(back[64, False] / back[64, True], None, 0.5),
        gradient_kept_at_256=back[256, False] / back[256, True],
        spread_in_a_new_network=(spread_in_a_new_network(config), 0.26, 0.32),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
