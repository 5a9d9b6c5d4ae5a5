"""What does each mistake look like?

    python ex07_mnist_mlp/mistakes.py

Predicted: each of eight faults, planted in exercise 7's program, is caught by one of six checks or more, those of the
page "It does not learn"; each check catches a fault that no other does; the right program passes all. Measured: on
MNIST, an epoch for each. 18 CPU seconds.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

from common.plotting import CLASSES, SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import train as ex07
import tyro

FAULTS = ["no fault", "labels shuffled", "gradients not zeroed", "softmax twice", "ReLU on the logits"]
FAULTS += ["step × 100", "pixels 0 to 255", "weights 0", "test set in training"]


@dataclass
class Config:
    steps: int = 468  # training steps of each program
    seed: int = 0  # random seed
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self)


def planted(fault, seed, x, y, x_test, y_test):
    """Return training images and classes, model, loss, learning rate, whether gradients are zeroed, with a fault."""
    torch.manual_seed(seed)
    model, loss, rate = ex07.MLP(ex07.Config()), ex07.loss_fn, 0.2
    if fault == "labels shuffled":
        y = y[torch.randperm(len(y))]
    elif fault == "softmax twice":
        loss = lambda logits, y: ex07.loss_fn(logits.softmax(1), y)  # noqa: E731
    elif fault == "ReLU on the logits":
        loss = lambda logits, y: ex07.loss_fn(logits.relu(), y)  # noqa: E731
    elif fault == "step × 100":
        rate = 20.0
    elif fault == "pixels 0 to 255":
        x = 255 * (0.3081 * x + 0.1307)
    elif fault == "weights 0":
        for param in model.parameters():
            param.data.zero_()
    elif fault == "test set in training":
        x, y = torch.cat([x_test, x[len(x_test) :]]), torch.cat([y_test, y[len(y_test) :]])
    return x, y, model, loss, rate, fault != "gradients not zeroed"


def train(model, loss_fn, rate, zeroed, minibatches):
    """Return the losses of exercise 7's loop over minibatches (x, y)."""
    losses, optimizer = [], torch.optim.SGD(model.parameters(), lr=rate)
    for x, y in minibatches:
        loss = loss_fn(model(x), y)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        if zeroed:
            optimizer.zero_grad()
    return np.nan_to_num(losses, nan=1e9, posinf=1e9)


def gradients(model, loss_fn, zeroed, x, y):
    """Return the norms of the matrices' gradients after a first and a second backward pass on the same images."""
    norms = []
    for _ in range(2):
        loss_fn(model(x), y).backward()
        norms.append([layer.weight.grad.norm().item() for layer in model.layers])
        if zeroed:
            model.zero_grad()
    return np.array(norms)


def checks(x, y, model, loss_fn, rate, zeroed, x_test):
    """Return for each check whether it finds something wrong with a new network, from the first 32 images."""
    x_few, y_few = x[:32], y[:32]
    norms = gradients(copy.deepcopy(model), loss_fn, zeroed, x_few, y_few)
    sizes = np.array([layer.weight.norm().item() for layer in model.layers])
    shares = rate * norms[0] / np.maximum(sizes, 1e-9)
    first = loss_fn(model(x_few), y_few).item()
    by_heart = train(copy.deepcopy(model), loss_fn, rate, zeroed, [(x_few, y_few)] * 200)[-1]
    seen = set(map(bytes, x.numpy().reshape(len(x), -1).astype(np.float16)))
    known = np.mean([bytes(image) in seen for image in x_test[:500].numpy().reshape(-1, 784).astype(np.float16)])
    return {
        "the data": abs(x.mean().item()) > 0.1 or abs(x.std().item() - 1) > 0.1 or known > 0.1,
        "first loss": abs(first - np.log(10)) > 0.3,
        "one batch by heart": by_heart > 0.1,
        "gradients arrive": norms.min() == 0
        or norms.max() > 100 * norms.min()
        or norms[1].sum() > 1.5 * norms[0].sum(),
        "share of an update": shares.max() > 0.3 or shares.max() < 1e-5,
    }


def draw(curves, found):
    """Return the picture: the loss with each fault, and which check finds which fault."""
    figure, (left, right) = panels("Training loss", "What each check says", widths=(6, 8))
    for color, (fault, losses) in zip(CLASSES, curves.items()):
        width = max(1, len(losses) // 20)
        smooth = np.convolve(losses, np.ones(width) / width, "valid").clip(0.1, 20)
        left.plot(smooth, color=color, linewidth=2.5 if fault == "no fault" else 1.3, label=fault)
    left.set(yscale="log", xlabel="steps")
    left.legend(frameon=False, fontsize=7, ncols=2, loc="upper right", bbox_to_anchor=(1, 0.94))
    for row, results in enumerate(found.values()):
        for column, caught in enumerate(results.values()):
            label(right, column, row, "wrong" if caught else "–", SAFE[1] if caught else "0.5", (0, 0), ha="center")
    right.grid(False)
    right.set(xlim=(-0.5, 5.5), ylim=(8.5, -0.5), yticks=range(len(found)), xticks=range(6), yticklabels=found)
    right.set_xticklabels([name.replace(" ", "\n", 1) for name in results], fontsize=8)
    return figure


def main(config: Config) -> dict[str, float]:
    tensors, curves, found = ex07.make_data(config, "cpu"), {}, {}
    for fault in FAULTS:
        x, y, *program = planted(fault, config.seed, *tensors)
        found[fault] = checks(x, y, *program, tensors[2])
        order = ex07.batches(np.random.default_rng(config.seed), len(x), 128)
        steps = range(3 if config.dry_run else config.steps)
        curves[fault] = train(*program, ((x[index], y[index]) for _, index in zip(steps, order)))
        found[fault]["beats ln 10"] = curves[fault][-50:].mean() > 0.9 * np.log(10)
    matrix = np.array([list(results.values()) for results in found.values()])  # (9, 6)
    for fault, results in found.items():
        print(f"{fault}: {', '.join(name for name, caught in results.items() if caught) or 'passes'}")
    alone = matrix[matrix.sum(1) == 1].any(0)  # (6,): checks that are the only one to catch a fault
    return answer(
        config,
        draw(curves, found),
        faults_caught=(matrix[1:].any(1).sum(), 8, 8),
        flagged_without_fault=(matrix[0].sum(), None, 0),
        checks_that_alone_catch_one=(alone.sum(), 6, 6),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
