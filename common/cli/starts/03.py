"""To do:
1. Config: a field num_features: int = 10 (10 numbers in an input).
2. whiten: inputs (N, D); afterwards their covariance is the identity.
3. make_data: first a (D, D) matrix of normal numbers, which makes the inputs' features correlated, then the inputs,
   the true weights (D,), and the noise.
4. init_params(config): a weight for each feature. forward: (B, D) to (B,). Write every shape beside its line.
"""

from common.cli.check_it import are_equal, has_shape, run_checks, run_main

import numpy as np
import torch
import train

torch.set_default_dtype(torch.float64)


def config(**flags):
    return train.Config(num_samples=1000, num_features=4, batch_size=50, **flags)


def test_whiten():
    """whitened inputs have mean 0, and the identity as their covariance"""
    rng = np.random.default_rng(1)
    x = train.whiten(rng.uniform(0, 100, (1000, 4)) @ rng.normal(size=(4, 4)))  # (N, D)
    are_equal("the means", np.asarray(x).mean(0), np.zeros(4), 1e-8)
    are_equal("the covariances", np.cov(np.asarray(x).T), np.eye(4), 1e-8)


def test_data():
    """inputs are (N, D), targets (N,), and the truth misses the targets by the noise alone"""
    x, y, truth = train.make_data(config(), np.random.default_rng(0))
    has_shape("the inputs", x, 1000, 4)
    has_shape("the targets", y, 1000)
    has_shape("the truth", truth, 1000)
    spread = float((truth - y).std())
    assert 0.08 < spread < 0.12, f"targets are {spread:.3g} away from the truth, expected the noise of 0.1"


def test_forward():
    """predictions are (B,), not (B, 1): else prediction - y would be (B, B)"""
    params = train.init_params(config())
    has_shape("the prediction", train.forward(params, torch.randn(5, 4)), 5)


def test_one_batch_by_heart():
    """with one batch as its data the program reaches the noise floor"""
    metrics, _, _ = run_main(train, num_samples=500, num_features=4, batch_size=500, steps=300)
    assert metrics["loss"] < 0.013, f"the loss ends at {metrics['loss']:.4g}, expected about 0.01, the noise floor"


if __name__ == "__main__":
    run_checks(globals())
