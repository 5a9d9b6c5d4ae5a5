"""How many neighbours should you ask?

    python ex04_softmax/neighbours.py

Predicted: one neighbour is right on all samples that it has seen, and errs on new ones at most twice as often as the
best that is possible; the best number lies strictly between one and very many. Measured: on 2,000 samples of exercise
4's, and 2,000 new ones. 5 CPU seconds.
"""

from dataclasses import dataclass
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import torch.nn.functional as F
import train as ex04
import tyro

KS = (1, 3, 7, 15, 31, 63, 127, 255, 511, 1023, 1999)


@dataclass
class Config:
    num_samples: int = 2_000  # samples among which neighbours are sought, N
    seed: int = 0  # random seed of the data
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few new samples, to check that everything works

    def __post_init__(self):
        check_config(self, num_samples=(10, 20_000))


def neighbours(x, y, new_x, new_y, ks):
    """Return the share of new samples (M, D) whose class is that of most of their k nearest among x (N, D), by k."""
    distances = torch.cdist(new_x, x)  # (M, N)
    votes = F.one_hot(y[distances.argsort(1)], 3).cumsum(1)  # (M, N, K): of the nearest, of the nearest two, …
    return np.array([(votes[:, k - 1].argmax(1) == new_y).double().mean().item() for k in ks])


def draw(ks, seen, new, bayes):
    """Return the picture: the error on samples that are known and on new ones, over k."""
    figure, (ax,) = panels("Errors of k nearest neighbours", widths=(8,), height=4.6)
    for color, place, values, name in (
        (SAFE[0], 1, seen, "on samples that it knows"),
        (SAFE[1], 2, new, "on new samples"),
    ):
        ax.plot(ks, 100 * (1 - values), "o-", color=color, markersize=4)
        label(ax, ks[place], 100 * (1 - values[place]), name, color, (8, 10 if color == SAFE[1] else -8))
    ax.axhline(100 * (1 - bayes), color="0.3", linestyle=":")
    label(ax, 60, 100 * (1 - bayes), "Bayes: nobody does better", "0.3", (0, -9))
    ax.plot(1, 200 * (1 - bayes), "kx")
    label(ax, 1, 200 * (1 - bayes), "predicted: k = 1 stays below twice Bayes", "black", (8, 0))
    best = new.argmax()
    label(ax, ks[best], 100 * (1 - new[best]), f"best: k = {ks[best]}", SAFE[1], (0, -14), ha="center")
    ax.set(xscale="log", ylim=(-2, 45), xlabel="neighbours that vote, k", ylabel="errors (%)")
    return figure


def main(config: Config) -> dict[str, float]:
    torch.set_default_dtype(torch.float64)
    x, y, truth = ex04.make_data(ex04.Config(), np.random.default_rng(config.seed))
    n, m = config.num_samples, 200 if config.dry_run else 2_000
    ks = [k for k in KS if k < n]
    seen = neighbours(x[:n], y[:n], x[: min(n, m)], y[: min(n, m)], ks)
    new = neighbours(x[:n], y[:n], x[n : n + m], y[n : n + m], ks)
    bayes = (truth[n : n + m].argmax(1) == y[n : n + m]).double().mean().item()
    return answer(
        config,
        draw(ks, seen, new, bayes),
        error_of_1_on_known=(1 - seen[0], None, 0),
        error_of_1_over_bayes=((1 - new[0]) / (1 - bayes), 1, 2),
        best_k=(ks[new.argmax()], 3, 1000),
        error_of_best_over_bayes=((1 - new.max()) / (1 - bayes), 1, 1.1),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
