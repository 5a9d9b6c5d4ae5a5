"""To do:
1. make_data(config): numpy arrays, images (N, 28, 28) of float32 and classes (N,) of int32; the jax_device of
   common.program in place of the torch_device.
2. init_params(key, config): a list of {"w": (fan_in, fan_out), "b": (fan_out,)}, drawn as nn.Linear draws them.
3. forward(params, images): logits (B, 10). loss_fn(logits, y). evaluate(params, x, y).
4. make_optimizer(config): optax's Adam, with a schedule. train_step(params, opt_state, x, y, optimizer) returns the
   three new things: params, opt_state, loss; and it is compiled.
"""

import math

from common.cli.check_it import are_equal, has_shape, is_near, program, run_checks

import jax
import numpy as np
import torch
import train

config = train.Config()
rng = np.random.default_rng(0)
images = rng.normal(size=(64, 28, 28)).astype(np.float32)  # (B, H, W)
labels = rng.integers(10, size=64).astype(np.int32)  # (B,)


def params():
    return train.init_params(jax.random.key(0), config)


def test_params():
    """weights (784, 256), (256, 256), (256, 10), within the bounds of nn.Linear, and biases that are not 0"""
    for layer, (fan_in, fan_out) in zip(params(), ((784, 256), (256, 256), (256, 10)), strict=True):
        has_shape("a weight", layer["w"], fan_in, fan_out)
        has_shape("a bias", layer["b"], fan_out)
        for name in "wb":
            largest = float(abs(layer[name]).max())
            assert 0.8 / math.sqrt(fan_in) < largest <= 1 / math.sqrt(fan_in), f"largest number of {name}: {largest}"


def test_seed():
    """another key gives other weights, and no two layers share their numbers"""
    first, other = params(), train.init_params(jax.random.key(1), config)
    assert not np.array_equal(first[0]["w"], other[0]["w"]), "two keys give the same weights"
    drawn = [np.ravel(layer[name])[:10] / abs(layer[name]).max() for layer in first for name in "wb"]  # of one range
    for i, numbers in enumerate(drawn):
        assert not any(np.allclose(numbers, other, atol=0.02) for other in drawn[:i]), "two draws have the same numbers"


def test_logits():
    """with exercise 7's weights, transposed, it gives exercise 7's logits"""
    parent = program(7)
    torch.set_default_dtype(torch.float32)
    model = parent.MLP(parent.Config())
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    theirs = [{"w": layer.weight.detach().numpy().T, "b": layer.bias.detach().numpy()} for layer in linears]
    wanted = model(torch.from_numpy(images)).detach().numpy()
    are_equal("the logits", np.asarray(train.forward(theirs, images)), wanted, 1e-5)


def test_first_loss():
    """the first loss is near ln 10"""
    is_near("the first loss", float(train.loss_fn(train.forward(params(), images), labels)), math.log(10), 0.3)


def test_one_batch_by_heart():
    """64 images of noise are learnt by heart"""
    optimizer, there = train.make_optimizer(config), params()
    state = optimizer.init(there)
    for _ in range(60):
        there, state, loss = train.train_step(there, state, images, labels, optimizer)
    assert float(loss) < 0.1, f"after 60 steps on one batch the loss is {float(loss):.3g}, expected less than 0.1"


def test_compiled():
    """a step is compiled once: Python comes through the loss the first time alone"""
    calls, loss_fn = [], train.loss_fn
    train.loss_fn = lambda logits, y: calls.append(1) or loss_fn(logits, y)
    try:
        optimizer, there = train.make_optimizer(config), params()
        state = optimizer.init(there)
        for _ in range(4):
            there, state, _ = train.train_step(there, state, images, labels, optimizer)
    finally:
        train.loss_fn = loss_fn
    assert len(calls) < 2, f"four steps of one shape came through loss_fn {len(calls)} times: is train_step compiled?"


def test_schedule():
    """the learning rate falls: the last update is much smaller than the first"""
    few = train.Config(steps=20)
    optimizer, there = train.make_optimizer(few), params()
    state, sizes = optimizer.init(there), []
    grads = jax.tree.map(np.ones_like, there)
    for _ in range(few.steps):
        updates, state = optimizer.update(grads, state, there)
        sizes.append(float(abs(updates[0]["w"]).max()))
    assert sizes[-1] < 0.1 * sizes[0], f"the first update is {sizes[0]:.3g}, the last of 20 is {sizes[-1]:.3g}"


if __name__ == "__main__":
    run_checks(globals())
