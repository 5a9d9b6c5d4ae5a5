"""How large may a batch be?

    python ex17_ddp_openwebtext/batch_size.py

Predicted: the steps to a given loss are S_min (1 + B_c / B), within 20 %: below the critical batch size B_c twice the
batch halves them, far above it nothing does. B_c is, within a factor of 3, the gradient noise scale, averaged over the
steps of a run, which grows at least fivefold while the loss falls. Measured: a small network on MNIST, by SGD, with a
learning rate tuned for each batch size. 50 CPU seconds.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from common import data
from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import train as ex17
import tyro
from torch import nn

SIZES = np.array([8, 16, 32, 64, 128, 256, 512, 1024, 2048])  # batch sizes: images per step, B


@dataclass
class Config:
    target: float = 0.2  # held-out loss to train to
    starts: int = 2  # runs for each batch size and learning rate, whose steps are averaged
    seed: int = 0  # random seed
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # a few steps on made-up images, to check that everything works

    def __post_init__(self):
        check_config(self, target=(0.1, 2))


def make_data(config):
    """Return images (N, D) and classes (N,) to train on, then held-out ones: the last of the training set."""
    (images, labels), _ = data.mnist(config.dry_run)
    x, y = (torch.from_numpy(images).flatten(1) / 255 - 0.1307) / 0.3081, torch.from_numpy(labels).long()
    cut = len(x) - len(x) // 20
    return x[:cut], y[:cut], x[cut:], y[cut:]


def run(config, sets, batch_size, learning_rate, start):
    """Yield step, held-out loss and model, now and then, until SGD has brought that loss to the target."""
    x, y, x_held, y_held = sets
    rng = np.random.default_rng([config.seed, start])
    torch.manual_seed(100 * config.seed + start)
    model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), learning_rate)
    for step in range(5 if config.dry_run else 20_000):
        if step % max(1, step // 25) == 0:  # so that the number of steps is right within 4 %
            with torch.no_grad():
                loss = ex17.loss_fn(model(x_held), y_held).item()
            yield step, loss, model
            if loss <= config.target:
                return
        index = rng.integers(len(x), size=batch_size)  # (B,)
        optimizer.zero_grad()
        ex17.loss_fn(model(x[index]), y[index]).backward()
        optimizer.step()


def tune(config, sets, batch_size, learning_rate):
    """Return the mean of the steps to the target, and the learning rate, raised by √2 until they no longer fall."""
    fewest = math.inf
    while True:
        total = 0
        for start in range(config.starts):
            for step, _, _ in run(config, sets, batch_size, learning_rate, start):
                if total + step >= fewest:
                    return fewest / config.starts, learning_rate / 2**0.5
            total += step
        fewest, learning_rate = total, learning_rate * 2**0.5


def fit(b, s):
    """Return S_min and B_c of steps s (N,) = S_min (1 + B_c / b), by least squares of the relative errors."""
    (least, examples), *_ = np.linalg.lstsq(np.stack([1 / s, 1 / (b * s)], 1), np.ones(len(s)), rcond=None)
    return least, examples / least


def noise_scale(gradients, batch_size):
    """Return tr Σ / |G|² from the gradients (M, P) of M batches, as in appendix A of McCandlish 2018."""
    # The mean of B images has a squared norm of |G|² + tr Σ / B, on average: two equations, one for B, one for M B.
    small, large = gradients.square().sum(1).mean(), gradients.mean(0).square().sum()  # (), ()
    return (batch_size * len(gradients) * (small - large) / (len(gradients) * large - small)).item()


def measure_noise(config, sets, learning_rate, size=64):
    """Return held-out loss and noise scale along a run with the largest batch, each (N,)."""
    x, y, rng, rows = *sets[:2], np.random.default_rng(config.seed), []
    for _, loss, model in run(config, sets, SIZES[-1], learning_rate, 0):
        gradients = []
        for index in rng.integers(len(x), size=(64, size)):  # (B,)
            grads = torch.autograd.grad(ex17.loss_fn(model(x[index]), y[index]), list(model.parameters()))
            gradients.append(torch.cat([grad.flatten() for grad in grads]))  # (P,)
        rows.append((loss, noise_scale(torch.stack(gradients), size)))
    return np.array(rows).T


def draw(config, steps, least, critical, losses, scales):
    """Return the picture: steps over images for each batch size, and the noise scale over the loss."""
    title = f"To a loss of {config.target:g}: critical batch size {critical:.0f}"
    figure, (left, right) = panels(title, "Along a run with the largest batch", widths=(6, 5))
    b = np.geomspace(SIZES[0] / 2, 2 * SIZES[-1], 100)
    left.loglog(b * least * (1 + critical / b), least * (1 + critical / b), color=SAFE[0])
    left.plot(SIZES * steps, steps, "o", color=SAFE[0])
    for size, number in zip(SIZES, steps):
        label(left, size * number, number, f"{size:,}", shift=(5, 8))
    left.axhline(least, color=SAFE[1], linestyle="--", linewidth=1)  # what no batch size can go below
    left.axvline(critical * least, color=SAFE[1], linestyle="--", linewidth=1)
    left.set(xlabel="images in all", ylabel="steps; beside each point the images per step")
    right.loglog(losses, scales, "o", color=SAFE[0], markersize=4)
    for value, text, color in ((critical, "critical batch size", SAFE[1]), (scales.mean(), "mean", SAFE[0])):
        right.axhline(value, color=color, linestyle="--")
        label(right, 2.9, value, text, color, (0, 6))
    right.set(xlabel="held-out loss, falling", ylabel="gradient noise scale (images)")
    right.set(xlim=(3, 0.18), xticks=(2, 1, 0.5, 0.2), xticklabels=(2, 1, 0.5, 0.2))
    right.minorticks_off()
    return figure


def main(config: Config) -> dict[str, float]:
    sets, learning_rate, steps = make_data(config), 0.025, []
    for size in SIZES:
        number, learning_rate = tune(config, sets, size, learning_rate)  # a larger batch takes no smaller one
        steps.append(number)
    least, critical = fit(SIZES, np.array(steps))
    losses, scales = measure_noise(config, sets, learning_rate)
    first, *_, last = np.array_split(scales, 4)
    return answer(
        config,
        draw(config, steps, least, critical, losses, scales),
        critical_batch_size=critical,
        law_off=(np.abs(least * (1 + critical / SIZES) / steps - 1).max(), None, 0.2),
        noise_scale=scales.mean(),
        critical_over_noise_scale=(critical / scales.mean(), 0.33, 3),
        noise_scale_growth=(last.mean() / first.mean(), 5, None),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
