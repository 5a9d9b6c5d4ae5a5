"""Can it be done with numpy alone?

    python ex07_mnist_mlp/from_scratch.py

Predicted: yes; from the same weights and batches the first 200 losses are exercise 7's within 1e-4, in float64 within
1e-10; the accuracy is 98.29 ± 0.1 %, and a step takes at most 1.5 times as long. Measured: with a backward pass by
hand, and no torch but for the first weights and the comparison. 27 CPU seconds.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from common.plotting import label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import train as ex07
import tyro


@dataclass
class Config:
    steps: int = 9_360  # training steps, as many as exercise 7's
    seed: int = 0  # random seed
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self)


def forward(params, x):
    """Return what enters each layer, (B, D), (B, C), …, and the logits (B, K); params are w, b, w, b, …"""
    inputs = [x]
    for w, b in zip(params[:-2:2], params[1:-2:2]):
        inputs.append(np.maximum(inputs[-1] @ w.T + b, 0))  # (B, C)
    return inputs, inputs[-1] @ params[-2].T + params[-1]


def backward(params, inputs, logits, y):
    """Return the loss () and its gradient with respect to each parameter."""
    logits = logits - logits.max(1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))  # (B, K)
    rows = np.arange(len(y))
    d = np.exp(log_probs)
    d[rows, y] -= 1
    d /= len(y)  # (B, K): dL/dlogits
    grads = []
    for n in reversed(range(len(inputs))):
        grads = [d.T @ inputs[n], d.sum(0), *grads]
        if n > 0:
            d = d @ params[2 * n] * (inputs[n] > 0)  # (B, C)
    return -log_probs[rows, y].mean(), grads


def train(params, x, y, config, steps):
    """Return the losses (steps,) of exercise 7's loop with numpy, and the CPU seconds; params are changed."""
    losses, start = [], time.process_time()
    for _, index in zip(range(steps), ex07.batches(np.random.default_rng(config.seed), len(x), 128)):
        loss, grads = backward(params, *forward(params, x[index]), y[index])
        losses.append(loss)
        for param, grad in zip(params, grads):
            param -= 0.2 * grad
    return np.array(losses), time.process_time() - start


def train_torch(model, x, y, config, steps):
    """Return the losses (steps,) of exercise 7's loop with torch, and the CPU seconds."""
    optimizer, losses, start = torch.optim.SGD(model.parameters(), lr=0.2), [], time.process_time()
    for _, index in zip(range(steps), ex07.batches(np.random.default_rng(config.seed), len(x), 128)):
        loss = ex07.loss_fn(model(x[index]), y[index])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return np.array(losses), time.process_time() - start


def draw(w, images, logits, y):
    """Return the picture: units of the first layer, which digit is taken for which, the surest mistakes."""
    figure, (left, middle, right) = panels(
        "Sixteen units' weights", "Test digits: taken for which?", "Surest mistakes: said for true"
    )
    tiles = w[:16].reshape(4, 4, 28, 28)
    left.imshow(tiles.transpose(0, 2, 1, 3).reshape(112, 112), cmap="RdBu_r", vmin=-0.3, vmax=0.3)
    said = logits.argmax(1)
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (y, said), 1)
    middle.imshow(np.log1p(counts * (1 - np.eye(10))), cmap="Oranges")
    for row, column in np.ndindex(10, 10):
        dark = row != column and counts[row, column] > 5
        label(middle, column, row, str(counts[row, column]), "white" if dark else "0.2", (0, 0), ha="center")
    middle.set(xlabel="said", ylabel="true", xticks=range(10), yticks=range(10))
    margin = np.where(said == y, -np.inf, logits.max(1) - logits[np.arange(len(y)), y])
    worst = np.argsort(-margin)[:12]
    right.imshow(images[worst].reshape(3, 4, 28, 28).transpose(0, 2, 1, 3).reshape(84, 112), cmap="gray_r")
    for n, index in enumerate(worst):
        label(right, 28 * (n % 4), 28 * (n // 4) + 3, f"{said[index]} for {y[index]}", "#d55e00", (2, 0))
    for ax in (left, middle, right):
        ax.grid(False)
    for ax in (left, right):
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return figure


def main(config: Config) -> dict[str, float]:
    tensors, few, off = ex07.make_data(config, "cpu"), 3 if config.dry_run else 200, {}
    y, y_test = (tensor.numpy() for tensor in tensors[1::2])
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(config.seed)  # as exercise 7 does: the first weights are the same
        model, x, x_test = ex07.MLP(ex07.Config()).to(dtype), *(tensor.flatten(1).to(dtype) for tensor in tensors[::2])
        params = [param.detach().numpy().copy() for param in model.parameters()]
        torch_losses, torch_seconds = train_torch(model, x, tensors[1], config, few)
        steps = few if config.dry_run or dtype == torch.float64 else config.steps
        losses, seconds = train(params, x.numpy(), y, config, steps)
        off[dtype] = abs(losses[:few] - torch_losses[: len(losses)]).max()
    _, logits = forward(params, x_test.numpy())
    return answer(
        config,
        draw(params[0], tensors[2].numpy(), logits, y_test),
        off_from_exercise_7_in_float64=(off[torch.float64], None, 1e-10),
        off_from_exercise_7=(off[torch.float32], None, 1e-4),
        accuracy=(100 * (logits.argmax(1) == y_test).mean(), 98.19, 98.39),
        seconds_over_torch=(seconds / len(losses) / (torch_seconds / few), None, 1.5),
        last_loss=losses[-100:].mean(),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
