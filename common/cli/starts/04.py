"""To do:
1. Config: a field num_classes: int = 3, and two features, not ten. The noise is gone.
2. make_data: the true logits (N, K) of a whitened input; then classes (N,) drawn from their softmax.
3. init_params: weights (D, K), biases (K,). forward: logits (B, K).
4. loss_fn(logits, y): softmax and mean negative log likelihood, from exponentials and logarithms.
5. evaluate: the accuracy, too, a share between 0 and 1. main: the baselines of a classifier.
"""

import math

from common.cli.check_it import has_shape, is_near, run_checks, run_main

import numpy as np
import torch
import torch.nn.functional as F
import train

torch.set_default_dtype(torch.float64)
logits, y = 3 * torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])  # (B, K), (B,)


def test_shapes():
    """inputs are (N, 2), classes (N,) whole numbers from 0 to 2, logits (B, 3)"""
    config = train.Config(num_samples=1000, batch_size=50)
    x, classes, truth = train.make_data(config, np.random.default_rng(0))
    has_shape("the inputs", x, 1000, 2)
    has_shape("the classes", classes, 1000)
    has_shape("the true logits", truth, 1000, 3)
    assert set(classes.tolist()) == {0, 1, 2}, f"the classes are {sorted(set(classes.tolist()))[:5]}, expected 0, 1, 2"
    has_shape("the logits", train.forward(train.init_params(config), x[:7]), 7, 3)


def test_first_loss():
    """before training each class has the probability 1/3: the loss is ln 3"""
    config = train.Config(num_samples=1000, batch_size=50)
    x, classes, _ = train.make_data(config, np.random.default_rng(0))
    is_near("the first loss", train.loss_fn(train.forward(train.init_params(config), x), classes), math.log(3), 1e-9)


def test_loss():
    """loss_fn is what torch's own cross-entropy is"""
    is_near("the loss", train.loss_fn(logits, y).item(), F.cross_entropy(logits, y).item(), 1e-9)


def test_large_logits():
    """the loss stays finite where the logits are in the thousands"""
    loss = train.loss_fn(1000 * logits, y).item()
    is_near("the loss", loss, F.cross_entropy(1000 * logits, y).item(), 1e-6)


def test_accuracy():
    """the accuracy is the share of right answers"""
    right = (logits.argmax(1) == y).double().mean().item()
    is_near("the accuracy", train.evaluate(lambda x: logits, None, y)["accuracy"], right, 1e-9)


def test_training():
    """two thousand samples are learnt about as well as they can be"""
    metrics, losses, _ = run_main(train, num_samples=2000, batch_size=500, steps=400)
    assert metrics["loss"] < 0.8 * losses[0], f"the loss ends at {metrics['loss']:.4g}, from {losses[0]:.4g}"
    assert metrics["accuracy"] > 0.7, f"the accuracy ends at {metrics['accuracy']:.1%}, expected about 80 %"


if __name__ == "__main__":
    run_checks(globals())
