"""Exercise 2: "Same but using pytorch (torch.backward). Also, auto-render a plot of the results (steps of GD on x-axis,
loss on y-axis)."

Changes from ex01:
- The parameters are torch tensors, and loss.backward() computes the gradients that backward() had derived by hand.
- The loss is drawn into out/loss.png.

    python ex02_linreg_torch/train.py

Every loss equals exercise 1's to 1e-10; two seconds, most of them for importing torch.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.plotting import plot_loss
from common.program import check_config, clean_exit
from common.record import Run

import numpy as np
import torch
import tyro


@dataclass
class Config:
    num_samples: int = 100_000  # number of training samples, N
    noise: float = 0.1  # standard deviation of the noise on the targets
    batch_size: int = 500  # batch size: samples per step, B
    steps: int = 1_000  # training steps (200 are an epoch, in which every sample is seen once)
    learning_rate: float = 0.1  # learning rate (step size) of SGD
    eval_every: int = 10  # steps between two evaluations on all samples
    seed: int = 0  # random seed
    out: Path = Path(__file__).parent / "out"  # folder for the files that the run writes
    dry_run: bool = False  # only three steps, to check that everything works

    def __post_init__(self):
        check_config(self, num_samples=2)
        if self.batch_size > self.num_samples:
            raise ValueError(f"--batch-size {self.batch_size} is larger than the training set ({self.num_samples})")


def whiten(x):
    """Return x (N,) shifted to mean 0 and scaled to variance 1."""
    return (x - x.mean()) / x.std()  # (N,)


def make_data(config, rng):
    """Return inputs x, targets y, and the truth: what a model that knew the parameters behind y would answer."""
    x = whiten(rng.uniform(0.0, 100.0, config.num_samples))  # (N,)
    truth = 3.0 * x + 2.0  # (N,)
    y = truth + rng.normal(0.0, config.noise, config.num_samples)  # (N,)
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(truth)


def batches(rng, n, batch_size):
    """Yield the indices (B,) of one minibatch after another, for ever; every epoch is a new shuffle of 0, …, n - 1."""
    while True:
        order = rng.permutation(n)  # (n,)
        for start in range(0, n - batch_size + 1, batch_size):
            yield order[start : start + batch_size]  # (B,)


def init_params():
    """Return the parameters to start from: weight and bias, both zero."""
    w = torch.zeros((), requires_grad=True)  # ()
    b = torch.zeros((), requires_grad=True)  # ()
    return [w, b]


def forward(params, x):
    """Return the model's answer to a batch of inputs x (B,)."""
    w, b = params
    return w * x + b  # (B,)


def loss_fn(prediction, y):
    """Return the mean squared error () of predictions (B,) against targets y (B,)."""
    assert prediction.shape == y.shape
    return ((prediction - y) ** 2).mean()  # ()


@torch.no_grad()
def evaluate(model, x, y):
    """Return the metrics of the model on the samples x, y, by name."""
    return {"loss": loss_fn(model(x), y).item()}


def main(config: Config) -> dict[str, float]:
    rng = np.random.default_rng(config.seed)
    torch.set_default_dtype(torch.float64)  # numpy's default: programs that should agree do so to many digits
    x, y, truth = make_data(config, rng)
    print(f"data: inputs {tuple(x.shape)}, targets {tuple(y.shape)} with mean {y.mean():.3f} ± {y.std():.3f}")
    # The loss of the truth is as low as it gets: on fresh samples no model does better on average.
    baselines = {"predict the mean": ((y - y.mean()) ** 2).mean(), "noise floor": loss_fn(truth, y)}

    minibatches = ((x[index], y[index]) for index in batches(rng, len(x), config.batch_size))
    params = init_params()
    model = partial(forward, params)  # model(x) is forward(params, x)
    with Run(config, baselines) as run:
        for step, (x_batch, y_batch) in zip(run.steps(config.steps), minibatches):  # (B,), (B,)
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
        metrics = run.finish(**final, slope=params[0].item(), intercept=params[1].item())
    plot_loss(run.out, "mean squared error", log="xy")
    return metrics


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
