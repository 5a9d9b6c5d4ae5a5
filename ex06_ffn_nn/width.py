"""A network can represent any curve. Will it find it?

    python ex06_ffn_nn/width.py

Predicted: n ReLUs set by hand, one at each of n knots, err by 1/n², as straight lines do; training comes nowhere near.
Spreading the kinks evenly at the start mends that, and so do these with the last layer by least squares, not descent.
Measured: on y = sin 3πx + ½ sin 7πx, with Adam. 20 CPU seconds.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import torch.nn.functional as F
import train as ex06
import tyro

WIDTHS = (8, 16, 32, 64, 128)
curve = lambda x: np.sin(3 * np.pi * x) + 0.5 * np.sin(7 * np.pi * x)  # noqa: E731


@dataclass
class Config:
    steps: int = 1_500  # steps of Adam
    seed: int = 0  # random seed of the weights
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self)


@torch.no_grad()
def network(n, *values):
    """Return exercise 6's network with one input, one output and n ReLUs; `values` replace its first parameters."""
    model = ex06.MLP(SimpleNamespace(num_features=1, hidden=n, num_classes=1, layers=2))
    for param, value in zip(model.parameters(), values):
        param.copy_(torch.as_tensor(value).reshape(param.shape))
    return model


def by_hand(knots):
    """Return a network that runs straight from knot to knot: a ReLU at each changes the slope by what is needed."""
    changes = np.append(np.diff(np.diff(curve(knots)) / np.diff(knots), prepend=0.0), 0.0)  # (n,): of the slope
    return network(len(knots), np.ones(len(knots)), -knots, changes, curve(knots[0]))  # relu(x - knot) each


def spread(n):
    """Return a network with the kinks of its ReLUs spread over -1 to 1, every other one opening to the left."""
    sign = 1.0 - 2.0 * (torch.arange(n) % 2)  # (n,)
    return network(n, sign * n / 4, -sign * n / 4 * torch.linspace(-1, 1, n))


def solve(model, x, y):
    """Return the network with the best last layer for its hidden one, by least squares."""
    hidden = torch.cat([model[1](model[0](x)), torch.ones(len(x), 1)], 1).detach()  # (N, n + 1)
    best = torch.linalg.lstsq(hidden, y, driver="gelsd").solution  # (n + 1, 1)
    return network(hidden.shape[1] - 1, *model[0].parameters(), best[:-1], best[-1])


def train(model, x, y, config):
    """Train the network on all points at once."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in range(3 if config.dry_run else config.steps):
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model


def draw(x, fits, errors):
    """Return the picture: the fits with 32 ReLUs, and the error over their number."""
    titles = "32 ReLUs: the curve (grey), by hand (blue), trained (orange)", "Error over the number of ReLUs"
    figure, (left, right) = panels(*titles, widths=(6, 5))
    left.plot(x, curve(x), color="0.85", linewidth=6)
    for color, shift, (name, fit) in zip(SAFE, ((12, 9), (0, 10), (-30, -12), (-95, -10)), fits.items()):
        right.plot(WIDTHS, errors[name], "o-", color=color, markersize=4)
        label(right, WIDTHS[3], errors[name][3], name, color, shift)
        left.plot(x, fit, color=color, linewidth=1.2, visible=name in ("by hand", "trained"))
    right.plot(WIDTHS, 78 / np.array(WIDTHS) ** 2.0, "k:", linewidth=1)
    label(right, WIDTHS[0], 78 / WIDTHS[0] ** 2, "predicted by hand: ∝ 1/n²", "black", (12, 2))
    right.set(xscale="log", yscale="log", xlabel="ReLUs in the hidden layer, n", ylabel="root mean squared error")
    right.set_xticks(WIDTHS, WIDTHS, minor=False)
    return figure


def main(config: Config) -> dict[str, float]:
    torch.manual_seed(config.seed)
    torch.set_default_dtype(torch.float64)
    x = np.linspace(-1, 1, 512)
    inputs, y, errors, fits = torch.from_numpy(x)[:, None], torch.from_numpy(curve(x))[:, None], {}, {}  # (N, 1) each
    for n in WIDTHS:
        models = by_hand(np.linspace(-1, 1, n)), network(n), spread(n), solve(spread(n), inputs, y)
        for name, model in zip(("by hand", "trained", "trained, kinks spread", "kinks spread, solved"), models):
            model = train(model, inputs, y, config) if name.startswith("trained") else model
            fits[name] = fits[name] if n > 32 else model(inputs)[:, 0].detach().numpy()
            errors.setdefault(name, []).append(F.mse_loss(model(inputs), y).item() ** 0.5)
    ratios = [values[-1] / errors["by hand"][-1] for values in errors.values()]  # of the widest
    return answer(
        config,
        draw(x, fits, errors),
        slope_by_hand=(np.polyfit(np.log(WIDTHS[2:]), np.log(errors["by hand"][2:]), 1)[0], -2.1, -1.9),
        trained_over_by_hand=(ratios[1], 20, None),
        spread_over_by_hand=(ratios[2], None, 3),
        solved_over_by_hand=(ratios[3], None, 1),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
