"""Does the signal reach the other end?

    python ex05_ffn_manual/signals.py

Predicted: going back through a layer of ReLUs multiplies the gradient by √(n σ² / 2), for n inputs and weights of
variance σ²: by 0.707 for σ² = 1/n, by 1 for He's 2/n; through sigmoids, whose slope is at most 1/4, by less than that.
Where it vanishes, nothing is learnt. Measured: in 30 layers; by training 8. 20 CPU seconds.
"""

from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import train as ex05
import tyro

ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "ReLU": torch.relu}
VARIANCES = {"0.01²": lambda n: 1e-4, "1/n": lambda n: 1 / n, "2/n": lambda n: 2 / n}  # of the weights, for n inputs


@dataclass
class Config:
    layers: int = 30  # layers of the new network
    width: int = 64  # activations of each, n
    steps: int = 400  # training steps of each of the nine networks
    seed: int = 0  # random seed of data and weights
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self, layers=(3, 200), width=(2, 1_000))


def weights(widths, variance):
    """Return a random matrix (fan_in, fan_out) for every two neighbours of the widths."""
    return [torch.randn(m, n) * variance(m) ** 0.5 for m, n in pairwise(widths)]


def signals(x, matrices, activation):
    """Return the standard deviation of each layer's activations, and the norm of a random sum's gradient by them."""
    hidden = []
    for w in matrices:
        x = activation(x @ w)  # (B, n)
        hidden.append(x if hidden else x.requires_grad_())
    grads = torch.autograd.grad((x * torch.randn(x.shape)).sum(), hidden)
    return np.array([h.std().item() for h in hidden]), np.array([grad.norm().item() for grad in grads])


def trained(variance, activation, x, y, config):
    """Return the accuracy that exercise 5's loop reaches with 8 layers that start with this variance."""
    start = ex05.init_params(ex05.Config(layers=8, hidden=config.width))
    params = [p if p.ndim == 1 else p * (variance(len(p)) * len(p) / 2) ** 0.5 for p in start]  # He's has 2 / n
    params = [param.detach().requires_grad_() for param in params]
    relu, torch.relu = torch.relu, activation  # which exercise 5's forward calls
    for _, index in zip(range(config.steps), ex05.batches(np.random.default_rng(0), len(x), 200)):
        grads = torch.autograd.grad(ex05.loss_fn(ex05.forward(params, x[index]), y[index]), params)
        params = [(param - 0.1 * grad).detach().requires_grad_() for param, grad in zip(params, grads)]
    accuracy = (ex05.forward(params, x[:5_000]).argmax(1) == y[:5_000]).double().mean().item()
    torch.relu = relu
    return accuracy


def draw(forward, backward, accuracies):
    """Return the picture: nine lines forward, nine backward, and what nine networks learn."""
    titles = "Forward: size of the activations", "Backward: size of the gradient", "Accuracy after training"
    figure, (left, middle, right) = panels(*titles, widths=(5, 5, 4.5))
    for (color, activation), (style, variance) in product(zip(SAFE, ACTIVATIONS), zip((":", "--", "-"), VARIANCES)):
        for ax, curves, at in ((left, forward, -1), (middle, backward, 0)):
            values = curves[activation, variance]
            ax.plot(np.arange(1, len(values) + 1), values, style, color=color, linewidth=1.3)
            if variance == "1/n" and (activation == "ReLU" or (ax is middle and activation == "sigmoid")):
                label(ax, len(values) + 1 if at else 1, values[at], f"{activation} {variance}", color, (4, -8))
    label(middle, 1, 1e-8, "sigmoid 2/n", SAFE[0])
    label(middle, 1, 4e3, "level: ReLU 2/n, tanh 1/n and 2/n")
    label(left, 11, 300, "level: sigmoid, tanh, ReLU 2/n\ndotted: σ = 0.01")
    table = np.array([[accuracies[a, v] for v in VARIANCES] for a in ACTIVATIONS])
    right.imshow(table, cmap="Blues", vmin=0.3, vmax=1.2)
    for (row, column), value in np.ndenumerate(table):
        label(right, column, row, f"{100 * value:.0f} %", shift=(0, 0), ha="center")
    right.set_xticks(range(3), [f"σ² = {variance}" for variance in VARIANCES])
    right.set_yticks(range(3), list(ACTIVATIONS))
    right.grid(False)
    left.set(yscale="log", xlabel="layer", ylim=(1e-24, 1e5), xlim=(0, 42))
    middle.set(yscale="log", xlabel="layer", ylim=(1e-24, 1e5))
    return figure


def main(config: Config) -> dict[str, float]:
    torch.manual_seed(config.seed)
    torch.set_default_dtype(torch.float64)
    config.steps = 3 if config.dry_run else config.steps
    x, y, _ = ex05.make_data(ex05.Config(), np.random.default_rng(config.seed))
    inputs, forward, backward, accuracies, factors = torch.randn(100, config.width), {}, {}, {}, {}
    for key in product(ACTIVATIONS, VARIANCES):
        activation, variance = ACTIVATIONS[key[0]], VARIANCES[key[1]]
        forward[key], backward[key] = signals(
            inputs, weights([config.width] * (config.layers + 1), variance), activation
        )
        factors[key] = (backward[key][0] / backward[key][-1]) ** (1 / (config.layers - 1))
        accuracies[key] = trained(variance, activation, x, y, config)
    return answer(
        config,
        draw(forward, backward, accuracies),
        factor_relu_1_n=(np.mean(factors["ReLU", "1/n"]), 0.687, 0.727),
        factor_relu_2_n=(np.mean(factors["ReLU", "2/n"]), 0.98, 1.02),
        factor_sigmoid_1_n=(np.mean(factors["sigmoid", "1/n"]), None, 0.25),
        accuracy_relu_2_n=(accuracies["ReLU", "2/n"], 0.8, None),
        accuracy_sigmoid_1_n=(accuracies["sigmoid", "1/n"], None, 0.5),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
