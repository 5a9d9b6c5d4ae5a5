"""A thousand digits, and nothing else: what helps?

    python ex07_mnist_mlp/regularize.py

Predicted: digits that are moved about gain at least 2.5 points of accuracy, more than all else together; dropout 0 to
1.5; weight decay (L2) lowers the loss and leaves the accuracy; to stop where the loss is least costs accuracy.
Measured: on exercise 7's network; how much of each is chosen on 1,000 other training digits. 57 CPU seconds.
"""

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

NOTHING = {"decay": 0.0, "dropout": 0.0, "pixels": 0}
STRENGTHS = {"L2": ("decay", (0.001, 0.003, 0.01)), "dropout": ("dropout", (0.25, 0.5)), "moved": ("pixels", (1, 2, 3))}


@dataclass
class Config:
    digits: int = 1_000  # training digits, and as many others to choose on
    steps: int = 2_000  # training steps, of 50 digits each
    seed: int = 0  # random seed of digits, weights, batches
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self, digits=(50, 30_000))


def forward(model, images, dropout):
    """Return the logits (B, K) of exercise 7's network for images (B, H, W), with dropout behind each hidden layer."""
    x = images.flatten(1)  # (B, D)
    for layer in model.layers[:-1]:
        x = F.dropout(F.relu(layer(x)), dropout, model.training)  # (B, C)
    return model.layers[-1](x)


def move(images, pixels, rng):
    """Return images (B, H, W), each moved by up to so many pixels up or down and left or right."""
    down, right = rng.integers(-pixels, pixels + 1, (2, len(images)))  # (B,) each
    padded = F.pad(images, [pixels] * 4, value=images.min().item())  # with paper
    rows = torch.from_numpy(pixels - down)[:, None, None] + torch.arange(images.shape[1])[:, None]  # (B, H, 1)
    columns = torch.from_numpy(pixels - right)[:, None, None] + torch.arange(images.shape[2])  # (B, 1, W)
    return padded[torch.arange(len(images))[:, None, None], rows, columns]


def train(x, y, held_out, config, steps, decay, dropout, pixels):
    """Return the model, and steps, training loss, loss and accuracy on held_out (images, classes), every 25 steps."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    model = ex07.MLP(ex07.Config())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay)
    rows, models = [], []
    for step, index in zip(range(steps + 1), ex07.batches(np.random.default_rng(config.seed), len(x), 50)):
        if step % 25 == 0 or step == steps:
            measured = ex07.evaluate(model.eval(), *held_out)
            rows.append((step, ex07.evaluate(model, x, y)["loss"], measured["loss"], measured["accuracy"]))
            models.append([param.detach().clone() for param in model.parameters()])
            model.train()
        images = move(x[index], pixels, rng) if pixels else x[index]
        loss = ex07.loss_fn(forward(model, images, dropout), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return models, np.array(rows)


def draw(curves):
    """Return the picture: training and held-out loss over the steps, with each help."""
    figure, axes = panels(*curves, widths=(3,) * len(curves), height=3.4)
    for ax, (steps, training, loss, _) in zip(axes, (rows.T for rows in curves.values())):
        ax.plot(steps, np.maximum(training, 1e-3), color=SAFE[0])
        ax.plot(steps, loss, color=SAFE[1])
        ax.set(yscale="log", ylim=(1e-3, 3), xlabel="steps")
    label(axes[0], steps[-1] / 2, 0.003, "training", SAFE[0], (0, 10))
    label(axes[0], steps[-1] / 2, 0.9, "held out", SAFE[1], (0, 8))
    axes[0].set_ylabel("loss")
    return figure


def main(config: Config) -> dict[str, float]:
    x, y, x_test, y_test = ex07.make_data(config, "cpu")
    chosen, n = np.random.default_rng(config.seed).permutation(len(x)), min(config.digits, len(x) // 2)
    (x, y), held_out = ((x[index], y[index]) for index in (chosen[:n], chosen[n : 2 * n]))
    steps, runs = 3 if config.dry_run else config.steps, {}
    runs["nothing"] = train(x, y, held_out, config, steps, **NOTHING)
    best = {}
    for name, (flag, values) in STRENGTHS.items():
        tried = {value: train(x, y, held_out, config, steps, **NOTHING | {flag: value}) for value in values}
        best[flag] = max(values, key=lambda value, tried=tried: tried[value][1][-1, 3])  # by the accuracy at the end
        runs[name] = tried[best[flag]]
    runs["all three"] = train(x, y, held_out, config, steps, **best)
    print("chosen on held-out digits:", ", ".join(f"{name} {value}" for name, value in best.items()))
    model, test = ex07.MLP(ex07.Config()), {}
    stopped = runs["nothing"][1][:, 2].argmin()  # where the held-out loss is least
    for name, (models, _) in [*runs.items(), ("stopped", (runs["nothing"][0][: stopped + 1], None))]:
        with torch.no_grad():
            for param, value in zip(model.parameters(), models[-1]):
                param.copy_(value)
        test[name] = ex07.evaluate(model, x_test, y_test)
    gain = {name: 100 * (measured["accuracy"] - test["nothing"]["accuracy"]) for name, measured in test.items()}
    return answer(
        config,
        draw({name: rows for name, (_, rows) in runs.items()}),
        accuracy_with_nothing=100 * test["nothing"]["accuracy"],
        gain_of_moved=(gain["moved"], 2.5, None),
        moved_minus_all_else=(gain["moved"] - gain["dropout"] - gain["L2"] - gain["stopped"], 0, None),
        gain_of_dropout=(gain["dropout"], 0, 1.5),
        gain_of_l2=(gain["L2"], -0.5, 0.5),
        loss_with_l2_over_nothing=(test["L2"]["loss"] / test["nothing"]["loss"], None, 0.95),
        gain_of_stopping=(gain["stopped"], None, 0),
        gain_of_all_three=gain["all three"],
        step_of_least_loss=runs["nothing"][1][stopped, 0],
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
