"""When do more parameters hurt?

    python ex03_vector_regression/double_descent.py

Predicted: with as many features as samples the one fit without error has to bend most, so that the error on new samples
peaks exactly there, a hundred times above that of ten times as many features; all of it is variance, and a little ridge
takes it away. Measured: on 300 digits of MNIST, of which a tenth have wrong labels. 12 CPU seconds.
"""

from dataclasses import dataclass
from pathlib import Path

from common.data import mnist
from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import train as ex03
import tyro

FEATURES = (0.03, 0.1, 0.3, 0.7, 0.9, 1, 1.1, 1.4, 2, 4, 10)  # as multiples of the number of samples


@dataclass
class Config:
    num_samples: int = 300  # samples of a training set, n
    ridge: float = 0.0  # weight of the squared parameters in the loss of what is predicted to peak
    sets: int = 5  # training sets, over which bias and variance are taken
    seed: int = 0  # random seed of samples, wrong labels and features
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # on made-up digits, to check that everything works

    def __post_init__(self):
        check_config(self, num_samples=(10, 5_000), ridge=0, sets=(2, 10))


def fit(features, y, ridge):
    """Return the weights (p, K) of least squares, of all that fit equally well the smallest; with ridge, of the sum."""
    u, s, v = np.linalg.svd(features, full_matrices=False)  # (n, r), (r,), (r, p)
    shrunk = s / (s**2 + ridge * len(y)) if ridge else np.where(s > 1e-10 * s[0], 1 / s, 0)  # (r,)
    return v.T @ (shrunk[:, None] * (u.T @ y))


def errors(x, y, test_x, test_y, p, ridge, config):
    """Return the errors with p random ReLU features: on new digits, bias² and variance of it, and in training."""
    rng = np.random.default_rng(config.seed)
    projection = rng.normal(size=(x.shape[1], p)) / x.shape[1] ** 0.5  # (D, p)
    predictions, training = [], []
    for _ in range(config.sets):
        index = rng.choice(len(x), config.num_samples, replace=False)  # (n,)
        wrong = rng.random((config.num_samples, 1)) < 0.1
        targets = np.where(wrong, np.eye(10)[rng.integers(10, size=config.num_samples)], y[index])  # (n, K)
        features = np.maximum(x[index] @ projection, 0)  # (n, p)
        w = fit(features, targets, ridge)
        training.append(10 * ex03.loss_fn(ex03.forward([w, 0.0], features), targets))  # the sum over K = 10 classes
        predictions.append(ex03.forward([w, 0.0], np.maximum(test_x @ projection, 0)))
    predictions = np.array(predictions)  # (sets, N, K)
    error = 10 * ex03.loss_fn(predictions, np.broadcast_to(test_y, predictions.shape))
    variance = 10 * predictions.var(0, ddof=1).mean()
    bias = 10 * ex03.loss_fn(predictions.mean(0), test_y) - variance / config.sets  # what the mean of so few still has
    return np.array([error, bias, variance, np.mean(training)])  # error = bias + variance, exactly


def draw(sizes, plain, ridge, n):
    """Return the picture: error over the number of features, its two parts, and what ridge makes of it."""
    figure, (ax,) = panels("Squared error on new digits, over the number of parameters", widths=(8,), height=5)
    sure = plain[:, 2] < 5  # where five sets can tell how large the bias is
    ax.fill_between(sizes[sure], 1e-2, plain[sure, 1], color=SAFE[5], alpha=0.35, linewidth=0)
    label(ax, sizes[1], 0.06, "bias²", SAFE[0], (0, 0), ha="center")
    ax.fill_between(
        sizes, np.interp(sizes, sizes[sure], plain[sure, 1]), plain[:, 0], color=SAFE[4], alpha=0.35, linewidth=0
    )
    label(ax, n, 1.1, "variance", SAFE[1], (0, 0), ha="center")
    for values, color, style, name, place in (
        (plain[:, 0], SAFE[1], "o-", "least squares, on new digits", -3),
        (ridge[:, 0], SAFE[2], "o--", "with ridge 0.01", -2),
        (plain[:, 3], "0.4", "o:", "in training", 1),
    ):
        ax.plot(sizes, values, style, color=color, markersize=3)
        label(ax, sizes[place], values[place], name, color, (6, 10 if color != "0.4" else -12))
    ax.axvline(n, color="0.3", linewidth=0.8)
    label(ax, n, 0.016, f"as many parameters as samples: {n}", shift=(6, 0))
    ax.set(xscale="log", yscale="log", ylim=(0.01, None), xlabel="random features p", ylabel="squared error")
    return figure


def main(config: Config) -> dict[str, float]:
    config.num_samples = min(config.num_samples, 30) if config.dry_run else config.num_samples
    (x, y), (test_x, test_y) = mnist(dry_run=config.dry_run)
    x, test_x = (np.reshape(images, (len(images), -1)) / 255 for images in (x[:3_000], test_x[:1_000]))
    y, test_y = np.eye(10)[y[:3_000]], np.eye(10)[test_y[:1_000]]  # (N, K)
    sizes = np.array([max(1, round(share * config.num_samples)) for share in FEATURES])
    plain = np.array([errors(x, y, test_x, test_y, p, config.ridge, config) for p in sizes])  # (sizes, 4)
    ridge = np.array([errors(x, y, test_x, test_y, p, 0.01, config) for p in sizes])
    peak = plain[:, 0].argmax()
    return answer(
        config,
        draw(sizes, plain, ridge, config.num_samples),
        peak_at_parameters_per_sample=(sizes[peak] / config.num_samples, 1, 1),
        peak_over_error_at_10=(plain[peak, 0] / plain[-1, 0], 100, None),
        share_of_variance_at_peak=(plain[peak, 2] / plain[peak, 0], 0.95, 1.05),
        largest_error_with_ridge=(ridge[:, 0].max(), None, 1),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
