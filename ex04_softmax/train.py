"""Exercise 4: "Classification where input is a vector, output is categorical (softmax & negative log likelihood loss)."

Changes from ex03:
- A target is one of K classes, and the model answers with K scores (logits), one for each class.
- The loss is the negative log likelihood of the right class under the softmax of the logits; accuracy stands beside it.
- Two features instead of ten, so that the answer can be drawn: out/regions.png.

    python ex04_softmax/train.py

Ends within 1 % of the Bayes accuracy, the best that any model can do; three seconds.
"""

from dataclasses import dataclass
from functools import partial
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
    batch_size: int = 500  # batch size: samples per step, B
    steps: int = 1_000  # training steps (200 are an epoch, in which every sample is seen once)
    learning_rate: float = 0.1  # learning rate (step size) of SGD
    eval_every: int = 10  # steps between two evaluations on all samples
    seed: int = 0  # random seed
    out: Path = Path(__file__).parent / "out"  # folder for the files that the run writes
    dry_run: bool = False  # only three steps, to check that everything works

    def __post_init__(self):
        check_config(self, num_samples=2, num_features=2)  # a covariance matrix needs two
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
    truth = x @ np.eye(config.num_features, config.num_classes) * 3.0  # (N, K): logit k is feature k, the last is 0
    y = (truth + rng.gumbel(size=truth.shape)).argmax(1)  # (N,): a draw from softmax(truth) (Gumbel-max trick)
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(truth)


def batches(rng, n, batch_size):
    """Yield the indices (B,) of one minibatch after another, for ever; every epoch is a new shuffle of 0, …, n - 1."""
    while True:
        order = rng.permutation(n)  # (n,)
        for start in range(0, n - batch_size + 1, batch_size):
            yield order[start : start + batch_size]  # (B,)


def init_params(config):
    """Return the parameters to start from: weight and bias, both zero."""
    w = torch.zeros(config.num_features, config.num_classes, requires_grad=True)  # (D, K)
    b = torch.zeros(config.num_classes, requires_grad=True)  # (K,)
    return [w, b]


def forward(params, x):
    """Return the model's answer to a batch of inputs x (B, D)."""
    w, b = params
    return x @ w + b  # (B, K)


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
    torch.set_default_dtype(torch.float64)  # numpy's default: programs that should agree do so to many digits
    x, y, truth = make_data(config, rng)
    print(f"data: inputs {tuple(x.shape)}, shares of classes {np.bincount(y, minlength=config.num_classes) / len(y)}")
    # The loss of the truth is as low as it gets: on fresh samples no model does better on average.
    baselines = {f"ln {config.num_classes}": np.log(config.num_classes), "Bayes": loss_fn(truth, y)}
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
        metrics = run.finish(**final, bayes_accuracy=bayes_accuracy)
    plot_loss(run.out, "nats per sample", log="x")
    plot_regions(run.out, lambda points: model(torch.from_numpy(points)).argmax(1), x, y)
    return metrics


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
