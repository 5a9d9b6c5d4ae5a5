"""To do:
1. Config: layers: int = 3, hidden: int = 64 (units of a hidden layer), 5,000 steps, an evaluation every 100.
2. make_data: logits 30 times larger; then the inputs are wound into spirals. The truth stays that of the plain inputs.
3. init_params: weight and bias of each layer, in one list; the size of the random weights is the question.
4. forward: layer by layer, with something between them that is not linear.
5. main: print what a linear map gets right, fitted by torch.linalg.lstsq.
"""

import math

from common.cli.check_it import are_equal, has_shape, program, run_checks, run_main

import numpy as np
import torch
import train

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
x = torch.randn(1000, 2)  # (B, D), about as large as whitened inputs


def params(**flags):
    torch.manual_seed(1)
    return train.init_params(train.Config(**flags))


def test_shapes():
    """any number of layers: weights (2, 64), (64, 64), …, (64, 3), and logits (B, 3)"""
    for layers in (1, 2, 4):
        there = params(layers=layers)
        has_shape(f"the logits of {layers} layers", train.forward(there, x), 1000, 3)
    shapes = sorted(tuple(param.shape) for param in params())
    assert len(shapes) == 6, f"three layers have {len(shapes)} tensors, expected 6: a weight and a bias each"
    assert (64, 64) in shapes, f"three layers have the shapes {shapes}, expected a (64, 64) among them"


def test_data():
    """the classes are exercise 4's draw from larger logits; the distance from the origin tells them apart no better"""
    config = train.Config(num_samples=2000)
    inputs, _, truth = train.make_data(config, np.random.default_rng(0))
    theirs, _, _ = program(4).make_data(program(4).Config(num_samples=2000), np.random.default_rng(0))
    distances, wanted = (np.linalg.norm(points, axis=1) for points in (inputs, theirs))  # winding turns, and no more
    are_equal("distances from the origin", distances, wanted, 1e-9)
    are_equal("the true logits", truth[:, :2], 90 * theirs, 1e-6)


def test_one_layer():
    """one layer is exercise 4's linear map"""
    w, b = sorted(params(layers=1), key=lambda param: -param.ndim)
    are_equal("the logits", train.forward(params(layers=1), x).detach(), (x @ w + b).detach(), 1e-9)


def test_not_linear():
    """three layers are no linear map"""
    answer = [train.forward(params(), x * scale).detach() for scale in (-1, 1)]
    assert (answer[0] + answer[1]).abs().max() > 1e-6, "f(x) + f(-x) is 0 everywhere: is anything between the layers?"


def test_sizes():
    """ten layers neither blow up the signal nor let it die away"""
    sizes = [train.forward(params(layers=layers), x).std().item() for layers in (3, 10)]
    there = f"logits of 3 layers have the size {sizes[0]:.3g}, those of 10 layers {sizes[1]:.3g}"
    assert 0.2 < sizes[1] / sizes[0] < 5, f"{there}; expected about the same"
    assert 0.1 < sizes[0] < 3, f"{there}; expected about 1"


def test_first_loss():
    """the first loss is not far from ln 3"""
    loss = train.loss_fn(train.forward(params(), x), torch.randint(3, (1000,))).item()
    assert loss < 2.5, f"the first loss is {loss:.4g}, expected about {math.log(3):.2f}"


def test_one_batch_by_heart():
    """a hundred samples are learnt by heart"""
    metrics, _, _ = run_main(train, num_samples=100, batch_size=100, steps=1500)
    assert metrics["accuracy"] > 0.9, f"the accuracy ends at {metrics['accuracy']:.0%}, expected 100 %, or nearly"


if __name__ == "__main__":
    run_checks(globals())
