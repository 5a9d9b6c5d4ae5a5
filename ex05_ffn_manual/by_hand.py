"""Would you notice a wrong gradient?

    python ex05_ffn_manual/by_hand.py

Predicted: a check against central differences catches each of six planted bugs; training alone hides two of them or
more. Measured: on exercise 5's network, with a backward pass by hand. 16 CPU seconds.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import train as ex05
import tyro
from differences import pick, relative_errors

BUGS = {  # a bug is one change in the text of backward(): what stands there, and what instead
    "no bug": ("", ""),
    "the sum of the losses, not the mean": (" / len(y)", ""),
    "ReLU's mask of the layer before": ("(inputs[n] > 0)", "(inputs[max(n - 1, 1)] > 0)"),
    "first layer never updated": ("return grads", "return [0 * grads[0], 0 * grads[1], *grads[2:]]"),
    "no mask of ReLU": (" * (inputs[n] > 0)", ""),
    "bias: the mean over the batch, not the sum": ("d.sum(0)", "d.mean(0)"),
    "bias forgotten": ("d.sum(0)", "0 * d.sum(0)"),
}


@dataclass
class Config:
    steps: int = 1_500  # training steps with each bug
    seed: int = 0  # random seed of data, weights, and entries
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self)


def backward(params, x, y):
    """Return the gradients of exercise 5's loss at x (B, D), y (B,) by its parameters w, b, w, b, …, all in numpy."""
    inputs = [x]  # of each layer: (B, D), (B, C), …
    for w, b in zip(params[:-2:2], params[1:-2:2]):
        inputs.append(np.maximum(inputs[-1] @ w + b, 0))  # (B, C)
    logits = inputs[-1] @ params[-2] + params[-1]  # (B, K)
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)  # (B, K)
    d = (probs - np.eye(probs.shape[1])[y]) / len(y)  # (B, K): dL/dlogits, what is said minus what is true
    grads = []
    for n in reversed(range(len(inputs))):
        grads = [inputs[n].T @ d, d.sum(0), *grads]
        if n > 0:  # on through the weights, and through the ReLU that made their inputs
            d = d @ params[2 * n].T * (inputs[n] > 0)  # (B, C)
    return grads


def planted(before, after):
    """Return backward() with a bug in its text."""
    exec(inspect.getsource(backward).replace(before, after), namespace := {"np": np})
    return namespace["backward"]


def train(gradient, params, x, y, learning_rate, steps):
    """Return the accuracy that exercise 5's loop reaches with a gradient, on average over its last 300 steps."""
    params, accuracies = [param.copy() for param in params], []
    for step, index in zip(range(steps), ex05.batches(np.random.default_rng(0), len(x), 500)):
        for param, grad in zip(params, gradient(params, x[index], y[index])):
            param -= learning_rate * grad
        if step % 50 == 0 and step >= steps - 300:
            logits = ex05.forward([torch.from_numpy(param) for param in params], torch.from_numpy(x[:20_000]))
            accuracies.append((logits.argmax(1).numpy() == y[:20_000]).mean())
    return np.mean(accuracies)


def draw(accuracies, shares):
    """Return the picture: what training with each bug reaches, and what the check says of it."""
    figure, (ax,) = panels("Accuracy after training with each bug; gradients that the check flags", widths=(9,))
    for row, (bug, accuracy) in enumerate(accuracies.items()):
        color = "0.5" if row == 0 else SAFE[1] if abs(accuracy - accuracies["no bug"]) < 0.01 else SAFE[0]
        ax.barh(row, 100 * accuracy, color=color, height=0.7)
        label(ax, 1, row, bug, "white")
        label(ax, 100 * accuracy, row, f"{100 * accuracy:.1f} %, flagged: {100 * shares[bug]:.0f} %", color)
    ax.set(xlim=(0, 125), xticks=range(0, 101, 20), yticks=[], ylim=(6.6, -0.6), xlabel="samples classified right (%)")
    return figure


def main(config: Config) -> dict[str, float]:
    torch.manual_seed(config.seed)
    torch.set_default_dtype(torch.float64)
    x, y, _ = ex05.make_data(ex05.Config(), np.random.default_rng(config.seed))
    params, few = ex05.init_params(ex05.Config()), (x[:100], y[:100])  # the check is of the loss of 100 samples
    autograd = torch.autograd.grad(ex05.loss_fn(ex05.forward(params, few[0]), few[1]), params)
    x, y, arrays = x.numpy(), y.numpy(), [param.detach().numpy() for param in params]
    accuracies, shares, picked = {}, {}, pick(params, 100, config.seed)
    for bug, change in BUGS.items():
        grads = planted(*change)(arrays, x[:100], y[:100])
        shares[bug] = (relative_errors(grads, params, *few, 1e-5, picked) > 1e-4).mean()
        rate = 0.1 / 500 if "sum of" in bug else 0.1  # whoever sums, lowers it until it trains
        with np.errstate(over="ignore", invalid="ignore"):  # a bug may make the training diverge
            accuracies[bug] = train(planted(*change), arrays, x, y, rate, 3 if config.dry_run else config.steps)
    off = [abs(grad - true.numpy()).max() for grad, true in zip(backward(arrays, x[:100], y[:100]), autograd)]
    hidden = [bug for bug in BUGS if abs(accuracies[bug] - accuracies["no bug"]) < 0.01]
    return answer(
        config,
        draw(accuracies, shares),
        off_from_autograd=(max(off), None, 1e-12),
        flagged_without_bug=(shares["no bug"], None, 0),
        caught_by_check=(sum(share > 0 for share in shares.values()), 6, 6),
        hidden_in_training=(len(hidden) - 1, 2, None),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
