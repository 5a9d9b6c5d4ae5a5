"""Exercise 5: "Now use N feedforward layers instead of pure linear regression (deep learning!)"

Changes from ex04:
- The model is N linear maps with a ReLU between every two; their weights start at random, by He's rule (He et al. 2015,
  section 2.2), which keeps the scale of the activations the same from layer to layer.
- The plane of the inputs is wound up, so that the straight decision boundaries become spirals: no linear
  model can follow them any more. What a linear map fitted by least squares reaches is printed beside the result.
- The logits behind the classes are 30 times larger, so that the classes hardly overlap and 99 % can be had.
- 5,000 steps, which the spirals take, and fewer evaluations, which now cost time.

    python ex05_ffn_manual/train.py

Three layers get 97 % right where a linear map fitted by least squares gets 55 %; ten seconds.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from common.plotting import plot_loss, plot_regions
from common.program import check_config, clean_exit
from common.record import Run

import numpy as np
import torch
import tyro


@dataclass
class Config:
    num_samples: int = 100_000  # number of training samples, N
    num_features: int = 2  # features of an input, D
    num_classes: int = 3  # classes, K; up to D + 1 of them can be told apart
    twist: float = 2.5  # twist of the spiral, in radians per unit of distance from its centre
    layers: int = 3  # number of linear layers; 1 is exercise 4's model
    hidden: int = 64  # width of each hidden layer, C
    batch_size: int = 500  # batch size: samples per step, B
    steps: int = 5_000  # training steps (200 are an epoch, in which every sample is seen once)
    learning_rate: float = 0.1  # learning rate (step size) of SGD
    eval_every: int = 100  # steps between two evaluations on all samples
    seed: int = 0  # random seed
    out: Path = Path(__file__).parent / "out"  # folder for the files that the run writes
    dry_run: bool = False  # only three steps, to check that everything works

    def __post_init__(self):
        check_config(self, num_samples=2, num_features=2, twist=0)  # a covariance matrix needs two
        if self.batch_size > self.num_samples:
            raise ValueError(f"--batch-size {self.batch_size} is larger than the training set ({self.num_samples})")


def whiten(x):
    """Return x (N, D) shifted to mean 0 and scaled along its principal axes, so that its covariance is the identity."""
    variances, axes = np.linalg.eigh(np.cov(x.T))  # (D,), (D, D) whose columns are the axes
    return (x - x.mean(0)) @ axes / np.sqrt(variances)  # (N, D)


def make_data(config, rng):
    """Return inputs x, targets y, and the truth: what a model that knew the parameters behind y would answer."""
    mixing = rng.normal(0.0, 1.0, (config.num_features, config.num_features))  # (D, D) makes the features correlated
    x = whiten(rng.uniform(0.0, 100.0, (config.num_samples, config.num_features)) @ mixing)  # (N, D)
    truth = x @ np.eye(config.num_features, config.num_classes) * 90.0  # (N, K): logit k is feature k, the last is 0
    y = (truth + rng.gumbel(size=truth.shape)).argmax(1)  # (N,): a draw from softmax(truth) (Gumbel-max trick)
    plane = x[:, 0] + 1j * x[:, 1]  # (N,): the first two features as complex numbers
    plane *= np.exp(1j * config.twist * np.abs(plane))  # rotated by an angle that grows with the distance
    x[:, 0], x[:, 1] = plane.real, plane.imag  # (N,), (N,)
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(truth)


def batches(rng, n, batch_size):
    """Yield the indices (B,) of one minibatch after another, for ever; every epoch is a new shuffle of 0, …, n - 1."""
    while True:
        order = rng.permutation(n)  # (n,)
        for start in range(0, n - batch_size + 1, batch_size):
            yield order[start : start + batch_size]  # (B,)


def init_params(config):
    """Return weight (fan_in, fan_out) and bias (fan_out,) of each layer, by He's rule, in one list: w, b, w, b, …"""
    widths = [config.num_features] + [config.hidden] * (config.layers - 1) + [config.num_classes]
    layers = []
    for fan_in, fan_out in pairwise(widths):
        layers += [torch.randn(fan_in, fan_out) * (2 / fan_in) ** 0.5, torch.zeros(fan_out)]
    layers[-2] *= 0.1  # the last layer starts small, so that all classes are about as likely and the loss is near ln K
    return [param.requires_grad_() for param in layers]


def forward(params, x):
    """Return the model's answer to a batch of inputs x (B, D)."""
    for w, b in zip(params[:-2:2], params[1:-2:2]):
        x = torch.relu(x @ w + b)  # (B, C)
    return x @ params[-2] + params[-1]  # (B, K)


def loss_fn(logits, y):
    """Return the mean negative log likelihood () of the classes y (B,) under the softmax of the logits (B, K)."""
    shifted = logits - logits.amax(1, keepdim=True)  # (B, K): the same softmax, but exp() cannot overflow
    log_probs = shifted - shifted.exp().sum(1, keepdim=True).log()  # (B, K): ln(exp(logitₖ) / Σⱼ exp(logitⱼ))
    return -log_probs[torch.arange(len(y)), y].mean()  # ()


@torch.no_grad()
def evaluate(model, x, y):
    """Return the metrics of the model on the samples x, y, by name."""
    logits = model(x)  # (N, K)
    assert logits.shape[:-1] == y.shape  # y of shape (N, 1) would broadcast in the accuracy, without an error
    return {"loss": loss_fn(logits, y).item(), "accuracy": (logits.argmax(1) == y).sum().item() / len(y)}


def main(config: Config) -> dict[str, float]:
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)  # for what torch itself draws at random
    torch.set_default_dtype(torch.float64)  # numpy's default: programs that should agree do so to many digits
    x, y, truth = make_data(config, rng)
    print(f"data: inputs {tuple(x.shape)}, shares of classes {np.bincount(y, minlength=config.num_classes) / len(y)}")
    # The loss of the truth is as low as it gets: on fresh samples no model does better on average.
    baselines = {f"ln {config.num_classes}": np.log(config.num_classes), "Bayes": loss_fn(truth, y)}
    # What a linear map can do: least squares from the inputs and a constant 1 to the one-hot classes.
    inputs = torch.cat([x, torch.ones(len(x), 1)], 1)  # (N, D + 1)
    linear = inputs @ torch.linalg.lstsq(inputs, torch.eye(config.num_classes)[y]).solution  # (N, K)
    linear_accuracy = (linear.argmax(1) == y).sum().item() / len(y)
    bayes_accuracy = (truth.argmax(1) == y).sum().item() / len(y)

    minibatches = ((x[index], y[index]) for index in batches(rng, len(x), config.batch_size))
    params = init_params(config)
    model = partial(forward, params)  # model(x) is forward(params, x)
    with Run(config, baselines) as run:
        for step, (x_batch, y_batch) in zip(run.steps(config.steps), minibatches):  # (B, D), (B,)
            if step % config.eval_every == 0:
                run.record(step, "all", **evaluate(model, x, y))
            loss = loss_fn(model(x_batch), y_batch)  # ()
            run.record(step, "train", loss=loss.item())
            loss.backward()  # adds dL/dparam to the grad of every param
            with torch.no_grad():  # the update is no part of what is differentiated
                for param in params:
                    param -= config.learning_rate * param.grad  # in place: params, and so model, hold the new values
                    param.grad = None  # else the next backward() would add to this one's
        final = evaluate(model, x, y)
        run.record(step + 1, "all", **final)
        metrics = run.finish(**final, linear_accuracy=linear_accuracy, bayes_accuracy=bayes_accuracy)
    plot_loss(run.out, "nats per sample", log="x")
    plot_regions(run.out, lambda points: model(torch.from_numpy(points)).argmax(1), x, y)
    return metrics


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
