"""Exercise 1: "Linear regression where input & output are each a single scalar, with stochastic gradient descent
(minibatches), using numpy. (The trickiest part is implementing backprop by hand.)"

    python ex01_linreg_numpy/train.py

Finds the slope and the intercept of a noisy line to within 0.01, in less than a second on any laptop.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.program import check_config, clean_exit
from common.record import Run

import numpy as np
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
    return x, y, truth


def batches(rng, n, batch_size):
    """Yield the indices (B,) of one minibatch after another, for ever; every epoch is a new shuffle of 0, …, n - 1."""
    while True:
        order = rng.permutation(n)  # (n,)
        for start in range(0, n - batch_size + 1, batch_size):
            yield order[start : start + batch_size]  # (B,)


def init_params():
    """Return the parameters to start from: weight and bias, both zero."""
    w = np.zeros(())  # (): an array and not a float, so that it can be updated in place
    b = np.zeros(())  # ()
    return [w, b]


def forward(params, x):
    """Return the model's answer to a batch of inputs x (B,)."""
    w, b = params
    return w * x + b  # (B,)


def loss_fn(prediction, y):
    """Return the mean squared error () of predictions (B,) against targets y (B,)."""
    assert prediction.shape == y.shape
    return ((prediction - y) ** 2).mean()  # ()


def backward(x, prediction, y):
    """Return the gradients dL/dw () and dL/db () of the loss, derived from its end to its beginning."""
    # L = 1/B Σᵢ (pᵢ - yᵢ)²  and  pᵢ = w xᵢ + b, with p for the prediction.
    # Each pᵢ stands in one term of the sum, so the power rule gives  dL/dpᵢ = 2 (pᵢ - yᵢ) / B.
    d_prediction = 2 * (prediction - y) / len(y)  # (B,)
    # w stands in every pᵢ, with dpᵢ/dw = xᵢ, and the chain rule adds up:  dL/dw = Σᵢ dL/dpᵢ · xᵢ.
    d_w = (d_prediction * x).sum()  # ()
    # b stands in every pᵢ too, with dpᵢ/db = 1:  dL/db = Σᵢ dL/dpᵢ.
    d_b = d_prediction.sum()  # ()
    return [d_w, d_b]


def evaluate(model, x, y):
    """Return the metrics of the model on the samples x, y, by name."""
    return {"loss": loss_fn(model(x), y).item()}


def main(config: Config) -> dict[str, float]:
    rng = np.random.default_rng(config.seed)
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
            prediction = model(x_batch)  # (B,)
            loss = loss_fn(prediction, y_batch)  # ()
            run.record(step, "train", loss=loss.item())
            grads = backward(x_batch, prediction, y_batch)
            for param, grad in zip(params, grads):
                param -= config.learning_rate * grad  # in place: params, and so model, hold the new values
        final = evaluate(model, x, y)
        run.record(step + 1, "all", **final)
        metrics = run.finish(**final, slope=params[0].item(), intercept=params[1].item())
    return metrics


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
