"""How small a step should a gradient check take?

    python ex05_ffn_manual/differences.py

Predicted, by Taylor's series: the error of a central difference falls as h², that of a forward difference as h, until
rounding takes over and it rises as 1/h. Measured: against autograd, on exercise 5's network and on a single layer,
which has no ReLU. 11 CPU seconds.
"""

from dataclasses import dataclass
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import train as ex05
import tyro

STEPS = np.geomspace(1e-1, 1e-10, 19)  # h, a factor of √10 apart


@dataclass
class Config:
    layers: int = 3  # linear layers of the deep network, with a ReLU between every two
    entries: int = 150  # weights and biases whose gradient is checked
    batch_size: int = 100  # samples that the loss is the mean over, B
    seed: int = 0  # random seed of data, weights, and entries
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few entries, to check that everything works

    def __post_init__(self):
        check_config(self)


def relative_errors(grads, params, x, y, h, picked, central=True):
    """Return the relative error of each picked entry (array, index) of the gradients against a finite difference."""
    errors = []
    for array, index in picked:
        losses = []
        for move in (h, -h if central else 0.0):
            moved = [param.detach().clone() for param in params]
            moved[array].view(-1)[index] += move
            losses.append(ex05.loss_fn(ex05.forward(moved, x), y).item())
        difference = (losses[0] - losses[1]) / (2 * h if central else h)
        grad = float(grads[array].reshape(-1)[index])
        errors.append(abs(grad - difference) / max(abs(grad), abs(difference), 1e-6))  # 1e-6: what rounding leaves of 0
    return np.array(errors)


def pick(params, count, seed):
    """Return `count` random entries of the parameters, each as (number of the array, index in it)."""
    rng = np.random.default_rng(seed)
    return [(array := rng.integers(len(params)), rng.integers(params[array].numel())) for _ in range(count)]


def slope(errors):
    """Return the slope of the median error (steps, entries) over h on logarithmic axes, from the largest h down."""
    return np.polyfit(np.log(STEPS[:5]), np.log(np.median(errors, 1)[:5]), 1)[0]


def draw(deep, smooth):
    """Return the picture: the error over h without a ReLU, and with."""
    figure, (left, right) = panels("One layer: no ReLU", "Three layers: ReLUs have kinks", widths=(5.5, 5.5))
    for ax, curves in ((left, smooth), (right, deep)):
        for color, place, up, (name, errors) in zip(SAFE, (7, 7, 13), (-11, 9, 9), curves.items()):
            ax.plot(STEPS, np.median(errors, 1), color=color)
            label(ax, STEPS[place], np.median(errors, 1)[place], name, color, (5, up))
        ax.set(xscale="log", yscale="log", xlim=(0.15, 6e-11), ylim=(1e-12, 30))  # smaller steps at the right
        ax.set(xlabel="step h of the difference", ylabel="relative error (median of the entries)")
    for name, power in (("central", 2), ("forward", 1)):
        guide = np.median(smooth[name], 1)[0] / 6 * (STEPS[:6] / STEPS[0]) ** power
        left.plot(STEPS[:6], guide, "k:", linewidth=1)
        label(left, STEPS[5], guide[5], f"predicted: ∝ h{'²' * (power - 1)}", "black", (-60, -12))
    right.plot(STEPS, deep["central"].max(1), color=SAFE[0], linewidth=0.8)
    label(right, STEPS[5], deep["central"].max(1)[5], "central, worst entry", SAFE[0], (6, 9))
    return figure


def main(config: Config) -> dict[str, float]:
    torch.manual_seed(config.seed)
    torch.set_default_dtype(torch.float64)
    x, y, _ = ex05.make_data(ex05.Config(), np.random.default_rng(config.seed))
    x, y = x[: config.batch_size], y[: config.batch_size]  # (B, D), (B,)
    deep, smooth = {}, {}
    for curves, layers in ((deep, config.layers), (smooth, 1)):
        params = ex05.init_params(ex05.Config(layers=layers))
        picked = pick(params, 5 if config.dry_run else config.entries, config.seed)
        double, single = (params, x, y), ([param.detach().float().requires_grad_() for param in params], x.float(), y)
        for name, args in (("central", double), ("forward", double), ("float32, central", single)):
            grads = torch.autograd.grad(ex05.loss_fn(ex05.forward(args[0], args[1]), y), args[0])
            curves[name] = np.array([relative_errors(grads, *args, h, picked, name != "forward") for h in STEPS])
    return answer(
        config,
        draw(deep, smooth),
        slope_central=(slope(smooth["central"]), 1.8, 2.2),
        slope_forward=(slope(smooth["forward"]), 0.8, 1.2),
        best_step=(STEPS[np.median(smooth["central"], 1).argmin()], 1e-6, 1e-4),  # the cube root of 1e-16
        best_error_in_float32=(np.median(smooth["float32, central"], 1).min(), 1e-5, 1e-3),  # 6e-8 to the power 2/3
        slope_central_with_relu=(slope(deep["central"]), 1.8, 2.2),
        worst_entry_with_relu=(deep["central"][4].max(), None, 1e-4),  # at h = 1e-3
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
