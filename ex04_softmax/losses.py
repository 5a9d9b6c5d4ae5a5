"""Perceptron, SVM, softmax: which of them knows how sure it is?

    python ex04_softmax/losses.py

Predicted: all come near the Bayes accuracy but the perceptron, which never settles where classes overlap; softmax alone
is right as often as it says. Measured: on exercise 4's data, by its loop with other losses. 7 CPU seconds.
"""

from dataclasses import dataclass
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import train as ex04
import tyro


@dataclass
class Config:
    scale: float = 1.0  # what the logits are multiplied by before they become probabilities
    seed: int = 0  # random seed of data and batches
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self)


def others(logits, y):
    """Return by how much the logit of each wrong class lies above that of the right one (B, K); 0 for the right one."""
    return logits - logits.gather(1, y[:, None])  # (B, K)


def weston_watkins(logits, y):
    """Return the sum over the wrong classes of how far each comes within a margin of 1 (Weston & Watkins 1999)."""
    return torch.relu(others(logits, y) + 1).sum(1).mean() - 1  # the right class has 1


LOSSES = {  # Crammer & Singer (2001) count only the worst of the wrong classes
    "softmax": ex04.loss_fn,
    "SVM, Weston–Watkins": weston_watkins,
    "SVM, Crammer–Singer": lambda logits, y: torch.relu(
        others(logits, y).scatter(1, y[:, None], -1e9).amax(1) + 1
    ).mean(),
    "perceptron": lambda z, y: others(z, y).amax(1).mean(),
}


def train(loss_fn, x, y, config):
    """Return the parameters that exercise 4's loop reaches, and its accuracy at 20 steps, the last ones (20,)."""
    params, accuracies = ex04.init_params(ex04.Config()), []
    steps = 200 if config.dry_run else 1_000
    for step, index in zip(range(steps), ex04.batches(np.random.default_rng(config.seed), len(x), 500)):
        loss_fn(ex04.forward(params, x[index]), y[index]).backward()
        with torch.no_grad():
            for param in params:
                param -= 0.1 * param.grad
                param.grad = None
            if step >= steps - 200 and step % 10 == 9:
                accuracies.append((ex04.forward(params, x).argmax(1) == y).double().mean().item())
    return params, np.array(accuracies)


def reliability(logits, y):
    """Return the probability said of the likeliest class and the share that is right, in ten bins; how far apart."""
    said, right = torch.softmax(logits, 1).max(1)[0].numpy(), (logits.argmax(1) == y).numpy()
    bins = np.minimum((said * 10).astype(int), 9)
    count = np.bincount(bins, minlength=10)
    mean, true = (np.bincount(bins, values, 10) / np.maximum(count, 1) for values in (said, right))
    return (mean, true, count), (abs(mean - true) * count).sum() / count.sum()


def draw(accuracies, curves, off, bayes):
    """Return the picture: the accuracy of each at its last steps, and how often it is right when it is so sure."""
    figure, (left, right) = panels("Accuracy at the last 20 evaluations", "When it says p, how often is it right?")
    for row, (color, name) in enumerate(zip(SAFE, LOSSES)):
        left.plot(100 * accuracies[name], row + np.linspace(-0.12, 0.12, 20), "o", color=color, markersize=4)
        label(left, 100 * bayes, row - 0.3 * (row == 3), name, color, (-10, 0), ha="right")
        said, true = (values[curves[name][2] > 200] for values in curves[name][:2])
        right.plot(said, true, "o-", color=color, markersize=4)
        place, shift, side = ((1, (10, -6), "left"), (2, (-8, 4), "right"), (4, (-8, 4), "right"), (0, (8, 8), "left"))[
            row
        ]
        label(right, said[place], true[place], f"{name}: off by {off[name]:.3f}", color, shift, ha=side)
    left.axvline(100 * bayes, color="0.3", linestyle=":")
    label(left, 100 * bayes, -0.4, "Bayes, predicted for all but the last", "0.3", (-10, 0), ha="right")
    left.set(xlabel="accuracy (%)", yticks=[], ylim=(3.6, -0.7))
    right.plot([1 / 3, 1], [1 / 3, 1], ":", color="0.3")
    right.set(xlabel="probability said of the likeliest class", ylabel="share that is right", xlim=(0.03, 1.02))
    return figure


def main(config: Config) -> dict[str, float]:
    torch.set_default_dtype(torch.float64)
    x, y, truth = ex04.make_data(ex04.Config(), np.random.default_rng(config.seed))
    bayes = (truth.argmax(1) == y).double().mean().item()
    accuracies, curves, off = {}, {}, {}
    for name, loss_fn in LOSSES.items():
        params, accuracies[name] = train(loss_fn, x, y, config)
        curves[name], off[name] = reliability(config.scale * ex04.forward(params, x).detach(), y)
    softmax, *svms, _ = [bayes - values.mean() for values in accuracies.values()]
    *spreads, spread = [values.std() for values in accuracies.values()]
    return answer(
        config,
        draw(accuracies, curves, off, bayes),
        softmax_below_bayes=(softmax, None, 0.001),
        svm_below_bayes=(max(svms), None, 0.005),
        perceptron_spread_over_others=(spread / max(spreads), 10, None),
        calibration_error_softmax=(off["softmax"], None, 0.01),
        calibration_error_svm=(min(off["SVM, Weston–Watkins"], off["SVM, Crammer–Singer"]), 0.05, None),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
