"""Exercise 7: "Still just classification on vector inputs, but now on MNIST. (Flatten each input into a vector.)" And
from here on: "measure & plot the test-set loss, in addition to the train set".

Changes from ex06:
- The data are 60,000 scanned handwritten digits; the model flattens each into a vector of 784 pixels.
- What counts is measured on 10,000 other digits, which are never trained on: the test set.
- The model is an nn.Module with its forward() written out: from here on models are more than a chain of layers.
- float32 instead of float64, and a GPU where there is one: from here on it is the speed that counts.

    python ex07_mnist_mlp/train.py

98.3 % of the test digits right, in twenty seconds on two CPU cores.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from common import UserError, data
from common.plotting import plot_loss
from common.program import check_config, clean_exit, torch_device
from common.record import Run

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@dataclass
class Config:
    layers: int = 3  # number of linear layers
    hidden: int = 256  # width of each hidden layer, C
    batch_size: int = 128  # batch size: images per step, B
    steps: int = 9_360  # training steps (468 are an epoch: 20 epochs)
    learning_rate: float = 0.2  # learning rate (step size) of SGD
    eval_every: int = 100  # steps between two evaluations on the test set
    seed: int = 0  # random seed
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # device to compute on; auto is a GPU where there is one
    out: Path = Path(__file__).parent / "out"  # folder for the files that the run writes
    dry_run: bool = False  # only three steps, to check that everything works

    def __post_init__(self):
        check_config(self)


def make_data(config, device):
    """Return images (N, H, W) and classes (N,) of the training set, then those of the test set."""
    tensors = []
    for images, labels in data.mnist(config.dry_run):  # (N, H, W), (N,) of uint8
        x = (torch.from_numpy(images) / 255 - 0.1307) / 0.3081  # (N, H, W): the training pixels' mean 0 and variance 1
        tensors += [x.to(device), torch.from_numpy(labels).long().to(device)]  # (N, H, W), (N,)
    return tensors


def batches(rng, n, batch_size):
    """Yield the indices (B,) of one minibatch after another, for ever; every epoch is a new shuffle of 0, …, n - 1."""
    while True:
        order = rng.permutation(n)  # (n,)
        for start in range(0, n - batch_size + 1, batch_size):
            yield order[start : start + batch_size]  # (B,)


class MLP(nn.Module):
    """Linear layers with a ReLU between every two: images (B, H, W) to logits (B, K)."""

    def __init__(self, config):
        super().__init__()
        widths = [784] + [config.hidden] * (config.layers - 1) + [10]
        self.layers = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths))

    def forward(self, images):
        x = images.flatten(1)  # (B, D)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))  # (B, C)
        return self.layers[-1](x)  # (B, K)


loss_fn = F.cross_entropy  # logits (B, K), classes (B,): the mean over the batch ()


@torch.no_grad()
def evaluate(model, x, y):
    """Return the metrics of the model on the samples x, y, by name."""
    logits = model(x)  # (N, K)
    assert logits.shape[:-1] == y.shape  # y of shape (N, 1) would broadcast in the accuracy, without an error
    return {"loss": loss_fn(logits, y).item(), "accuracy": (logits.argmax(1) == y).sum().item() / len(y)}


def main(config: Config) -> dict[str, float]:
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)  # for what torch itself draws at random
    device = torch_device(config.device)
    x, y, x_test, y_test = make_data(config, device)
    if config.batch_size > len(x):
        raise UserError(f"--batch-size {config.batch_size} is larger than the training set ({len(x)} images)")
    print(f"data: training {tuple(x.shape)}, test {tuple(x_test.shape)}; images of each class {np.bincount(y.cpu())}")

    minibatches = DataLoader(TensorDataset(x, y), sampler=batches(rng, len(x), config.batch_size), batch_size=None)
    model = MLP(config).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    with Run(config, {"ln 10": np.log(10)}, device) as run:
        for step, (x_batch, y_batch) in zip(run.steps(config.steps), minibatches):  # (B, H, W), (B,)
            if step % config.eval_every == 0:
                run.record(step, "test", **evaluate(model, x_test, y_test))
            loss = loss_fn(model(x_batch), y_batch)  # ()
            run.record(step, "train", loss=loss.item())
            loss.backward()  # adds dL/dparam to the grad of every param
            optimizer.step()
            optimizer.zero_grad()  # else the next backward() would add to this one's
        test = evaluate(model, x_test, y_test)
        run.record(step + 1, "test", **test)
        metrics = run.finish(test_loss=test["loss"], test_accuracy=test["accuracy"])
    plot_loss(run.out, "nats per image", log="y")
    return metrics


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
