"""How far does one get without a network?

    python ex07_mnist_mlp/baselines.py

Predicted: the nearest of 60,000 digits has the right label for 96.5 to 97.2 % of the test digits; one template a class,
however it is learnt, for 91 to 93 %; the network answers at least 20 times faster than the neighbours. Measured: with
nearest means, 1, 3 and 5 neighbours, perceptron, SVM, softmax, and exercise 7's network. 41 CPU seconds.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import torch.nn.functional as F
import train as ex07
import tyro

LOSSES = {  # of logits (B, K), classes (B,)
    "perceptron": lambda logits, y: (logits.max(1).values - logits[torch.arange(len(y)), y]).mean(),
    "SVM": lambda logits, y: F.multi_margin_loss(logits, y),
    "softmax": ex07.loss_fn,
}
UP = {"SVM": 5, "softmax": -5, "1 neighbour": 8, "5 neighbours": -1, "3 neighbours": -3}  # so that no name hides one


@dataclass
class Config:
    steps: int = 4_680  # training steps of a network (468 are an epoch)
    learning_rate: float = 0.02  # learning rate of the networks of one layer
    seed: int = 0  # random seed
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps and digits, to check that everything works

    def __post_init__(self):
        check_config(self)


def nearest(x, new, most):
    """Return the indices (n, most) of the x (N, D) that are nearest to each new (n, D), the nearest first."""
    squares, found = (x**2).sum(1), []
    for part in new.split(500):
        distances = squares - 2 * part @ x.T  # (500, N): without what is the same for all of them
        found.append(distances.topk(most, largest=False).indices)
    return torch.cat(found)


def vote(labels):
    """Return the most frequent of labels (n, k); of those that tie, the class of the nearest."""
    counts = F.one_hot(labels, 10).sum(1).float()  # (n, 10)
    order = torch.arange(labels.shape[1], 0, -1) / 1000  # the nearer, the more
    bonus = torch.zeros_like(counts).scatter_reduce_(1, labels, order.expand(len(labels), -1), "amax")
    return (counts + bonus).argmax(1)


def train(model, loss_fn, x, y, learning_rate, config):
    """Return the model after exercise 7's loop with another loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    steps = range(3 if config.dry_run else config.steps)
    for _, index in zip(steps, ex07.batches(np.random.default_rng(config.seed), len(x), 128)):
        loss = loss_fn(model(x[index]), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def draw(templates, results):
    """Return the picture: ten templates of each linear method, and the error over the time that an answer takes."""
    figure, (left, right) = panels("What each looks for", "Error over the time of an answer", widths=(8, 6))
    rows = [np.concatenate(list(t.reshape(10, 28, 28) / np.abs(t).max()), 1) for t in templates.values()]
    left.imshow(np.concatenate(rows), cmap="RdBu_r", vmin=-1, vmax=1)
    left.set(xticks=[], yticks=28 * np.arange(len(rows)) + 14, yticklabels=list(templates))
    left.tick_params(length=0)
    left.spines[:].set_visible(False)
    left.grid(False)
    for name, (accuracy, _, seconds) in results.items():
        color = SAFE[1] if "neighbour" in name else SAFE[0]
        right.plot(1e6 * seconds, 100 - accuracy, "o", color=color)
        label(right, 1e6 * seconds, 100 - accuracy, name, color, (6, UP.get(name, 0)))
    right.set(xscale="log", yscale="log", xlabel="microseconds for a digit", ylabel="test error (%)")
    right.margins(x=0.3)
    for axis, ticks in ((right.xaxis, (1, 10, 100, 1000)), (right.yaxis, (2, 3, 5, 10, 20))):
        axis.set_ticks(ticks, labels=ticks)
        axis.set_ticks([], minor=True)
    return figure


def main(config: Config) -> dict[str, float]:
    torch.manual_seed(config.seed)
    x, y, x_test, y_test = ex07.make_data(config, "cpu")
    flat, flat_test, results, templates = x.flatten(1), x_test.flatten(1), {}, {}

    def note(name, start, answers):
        """Put down accuracy, and CPU seconds of training and of an answer; `answers` is called for it."""
        middle = time.process_time()
        right = (answers() == y_test).float().mean().item()
        results[name] = 100 * right, middle - start, (time.process_time() - middle) / len(x_test)

    start = time.process_time()
    means = torch.stack([flat[y == k].mean(0) if (y == k).any() else flat.mean(0) for k in range(10)])  # (10, D)
    note("nearest mean", start, lambda: nearest(means, flat_test, 1)[:, 0])
    templates["nearest mean"] = (means - flat.mean(0)).numpy()
    start = time.process_time()
    found = y[nearest(flat, flat_test, 5)]  # (n, 5)
    seconds = (time.process_time() - start) / len(x_test)
    for k, name in ((1, "1 neighbour"), (3, "3 neighbours"), (5, "5 neighbours")):
        results[name] = 100 * (vote(found[:, :k]) == y_test).float().mean().item(), 0.0, seconds
    for name, loss_fn in LOSSES.items():
        start = time.process_time()
        model = train(ex07.MLP(ex07.Config(layers=1)), loss_fn, x, y, config.learning_rate, config)
        note(name, start, lambda model=model: model(x_test).argmax(1))
        templates[name] = model.layers[0].weight.detach().numpy()
    start = time.process_time()
    model = train(ex07.MLP(ex07.Config()), ex07.loss_fn, x, y, 0.2, config)
    note("network", start, lambda: model(x_test).argmax(1))
    for name, (accuracy, training, seconds) in results.items():
        print(f"{name:14} {accuracy:6.2f} %, training {training:6.2f} s, an answer {1e6 * seconds:8.1f} µs")
    accuracy = {name: values[0] for name, values in results.items()}
    return answer(
        config,
        draw(templates, results),
        nearest_mean=accuracy["nearest mean"],
        one_neighbour=(accuracy["1 neighbour"], 96.5, 97.2),
        three_neighbours=accuracy["3 neighbours"],
        five_neighbours=accuracy["5 neighbours"],
        perceptron=(accuracy["perceptron"], 91, 93),
        svm=(accuracy["SVM"], 91, 93),
        softmax=(accuracy["softmax"], 91, 93),
        network=accuracy["network"],
        neighbour_over_network_time=(results["1 neighbour"][2] / results["network"][2], 20, None),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
