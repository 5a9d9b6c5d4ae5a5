"""How large may a step be, and what does a larger one cost?

    python ex01_linreg_numpy/landscape.py

Predicted: SGD diverges above 2 / (largest curvature of the loss), which is 1 for whitened inputs; below it the noise of
the batches keeps the loss 2η / (B (1 - η)) of the floor above the floor, with learning rate η and batch size B.
Measured: with exercise 1's own gradient and batches. 4 CPU seconds.
"""

from dataclasses import dataclass
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import train as ex01
import tyro


@dataclass
class Config:
    batch_size: int = 500  # batch size where the largest stable step is sought
    noisy_batch_size: int = 20  # batch size where the excess over the floor is measured, B
    seed: int = 0  # random seed of data and batches
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self, batch_size=(1, 50_000), noisy_batch_size=(1, 50_000))


def hessian(x):
    """Return the second derivatives (2, 2) of the mean squared error of w x + b, which are the same at every (w, b)."""
    return 2 * np.array([[(x**2).mean(), x.mean()], [x.mean(), 1.0]])


def walk(x, y, start, learning_rate, batch_size, steps, seed=0):
    """Return the parameters (steps + 1, 2) of exercise 1's loop: w and b after every step."""
    params = [np.array(value) for value in start]
    path = [[param.copy() for param in params]]
    for _, index in zip(range(steps), ex01.batches(np.random.default_rng(seed), len(x), batch_size)):
        grads = ex01.backward(x[index], ex01.forward(params, x[index]), y[index])
        for param, grad in zip(params, grads):
            param -= learning_rate * grad
        path.append([param.copy() for param in params])
    return np.array(path)


def largest_stable_step(x, y, best, guess, batch_size):
    """Return the learning rate above which 400 steps lead away from the minimum `best` (2,), by bisection."""
    start = best + np.linalg.eigh(hessian(x))[1][:, -1]  # a step of 1 up the steepest direction
    low, high = 0.5 * guess, 1.5 * guess
    while high - low > 0.0005 * guess:
        middle = (low + high) / 2
        away = np.linalg.norm(walk(x, y, start, middle, batch_size, 400)[-1] - best) > 1
        low, high = (low, middle) if away else (middle, high)
    return middle


def predicted_excess(learning_rate, batch_size):
    return 2 * learning_rate / (batch_size * (1 - learning_rate))


def excess(x, y, best, learning_rate, batch_size, steps):
    """Return by how much the loss stays above its minimum, as a share of it, on average over the steps."""
    off = walk(x, y, best, learning_rate, batch_size, steps)[steps // 10 :] - best  # (steps, 2): the start is forgotten
    return (off @ hessian(x) / 2 * off).sum(1).mean() / ex01.loss_fn(ex01.forward(best, x), y)  # the loss is quadratic


def draw(x, y, best, raw, raw_best, limit, excesses, batch_size):
    """Return the picture: the round bowl, the valley without whitening, the excess predicted and measured."""
    titles = "Whitened: the limit is 1", f"Not whitened: the limit is {limit:.5f}", "What a larger step costs"
    figure, (bowl, valley, costs) = panels(*titles)
    for ax, inputs, middle, reach in ((bowl, x, best, (3.4, 3.2)), (valley, raw, raw_best, (0.11, 4.5))):
        w, b = (np.linspace(m - r, m + r, 200) for m, r in zip(middle, reach))
        off = np.stack(np.meshgrid(w, b), -1) - middle  # (200, 200, 2)
        loss = (off @ hessian(inputs) / 2 * off).sum(-1)  # (200, 200)
        ax.contour(w, b, loss, loss.max() * np.linspace(0.02, 1, 9) ** 2, colors="0.8", linewidths=0.8)
        ax.set(xlabel="weight w", ylabel="bias b", xlim=w[[0, -1]], ylim=b[[0, -1]])
        ax.plot(*middle, "k+", markersize=10)
    for color, rate, off in zip(SAFE, (0.02, 0.5, 0.95, 1.05), ((-2.6, 0.9), (1.1, 2.4), (1.3, -2.4), (-0.7, -0.4))):
        path = walk(x, y, best + off, rate, 500, 14 if rate > 1 else 60)
        bowl.plot(*path.T, "o-", color=color, markersize=3, linewidth=1)
        label(bowl, *path[0 if rate < 1 else -2], f"η = {rate}", color, (0, 9 if off[1] > -1 else -9), ha="center")
    path = walk(raw, y, np.add(raw_best, (0.05, 2.0)), 0.95 * limit, 500, 300)
    valley.plot(*path.T, "o-", color=SAFE[1], markersize=2, linewidth=0.5)
    label(valley, *path[-1], "300 steps at 0.95 of the limit:\nhardly along the valley", SAFE[1], (0, 24), ha="center")
    rates = np.geomspace(0.007, 0.97, 400)
    costs.plot(rates, predicted_excess(rates, batch_size), color=SAFE[0])
    label(costs, 0.03, 0.0031, "predicted: 2η / (B (1 - η))", SAFE[0], (10, -6))
    costs.plot(excesses.keys(), excesses.values(), "o", color=SAFE[1])
    label(costs, 0.1, excesses[0.1], "measured", SAFE[1], (-6, 7), ha="right")
    label(costs, 0.9, excesses[0.9], "measured, and the\nformula no longer holds", SAFE[1], (-8, 3), ha="right")
    costs.set(xscale="log", yscale="log", xlabel="learning rate η", ylabel="loss above the floor, as a share of it")
    return figure


def main(config: Config) -> dict[str, float]:
    x, y, _ = ex01.make_data(ex01.Config(), np.random.default_rng(config.seed))
    raw = 28.9 * x + 50.0  # as if it had not been whitened: between 0 and 100
    best, raw_best = (np.polyfit(inputs, y, 1) for inputs in (x, raw))
    limit, raw_limit = (2 / np.linalg.eigvalsh(hessian(inputs))[-1] for inputs in (x, raw))
    raw_stable = largest_stable_step(raw, y, raw_best, raw_limit, config.batch_size)
    size, steps = config.noisy_batch_size, 100 if config.dry_run else 20_000
    excesses = {rate: excess(x, y, best, rate, size, steps) for rate in (0.01, 0.03, 0.1, 0.3, 0.6, 0.8, 0.9)}
    return answer(
        config,
        draw(x, y, best, raw, raw_best, raw_limit, excesses, size),
        largest_stable_step=(largest_stable_step(x, y, best, limit, config.batch_size), 0.98, 1.02),
        unwhitened_over_predicted=(raw_stable / raw_limit, 0.98, 1.02),
        excess_over_predicted=(excesses[0.1] / predicted_excess(0.1, size), 0.85, 1.15),
        excess_over_predicted_at_0_9=(excesses[0.9] / predicted_excess(0.9, size), 0.85, 1.15),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
