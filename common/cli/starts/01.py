"""To do:
1. backward: derive dL/dw and dL/db on paper, and return them as a list; both are numbers of shape ().
2. Run it: the loss should end at the noise floor. Then change one sign, and look at what happens.
"""

from common.cli.check_it import are_equal, has_shape, is_near, run_checks, run_main

import numpy as np
import train

rng = np.random.default_rng(1)
x, y = rng.normal(size=20), rng.normal(size=20)  # (B,), (B,)
params = [np.array(0.7), np.array(-1.3)]  # (), ()


def loss_at(w, b):
    return train.loss_fn(train.forward([w, b], x), y)


def test_shapes():
    """the gradients have the shape of the parameters"""
    grads = train.backward(x, train.forward(params, x), y)
    is_near("the number of gradients", len(grads), 2, 0)
    for grad in grads:
        has_shape("a gradient", np.asarray(grad))


def test_gradients():
    """they agree with central differences: (L(w + h) - L(w - h)) / 2h"""
    w, b, h = *params, 1e-5
    measured = (loss_at(w + h, b) - loss_at(w - h, b)) / (2 * h), (loss_at(w, b + h) - loss_at(w, b - h)) / (2 * h)
    grads = train.backward(x, train.forward(params, x), y)
    for name, grad, there in zip(("dL/dw", "dL/db"), grads, measured, strict=True):
        is_near(name, grad, there, 1e-6)


def test_data_is_left_alone():
    """backward changes neither the inputs nor the targets"""
    before = x.copy(), y.copy()
    train.backward(x, train.forward(params, x), y)
    are_equal("the inputs", x, before[0], 0)
    are_equal("the targets", y, before[1], 0)


def test_one_batch_by_heart():
    """with one batch as its data the program finds the line"""
    metrics, losses, _ = run_main(train, num_samples=500, batch_size=500, steps=200)
    is_near("the slope", metrics["slope"], 3, 0.02)
    is_near("the intercept", metrics["intercept"], 2, 0.02)
    assert metrics["loss"] < 0.02, f"the loss ends at {metrics['loss']:.4g}, from {losses[0]:.4g}; expected about 0.01"


if __name__ == "__main__":
    run_checks(globals())
