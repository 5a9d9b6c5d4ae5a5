"""To do:
1. make_data(config): all images on the device as bytes. normalise(images, dtype): in the compiled step.
2. augment(key, images, config): each image rotated, scaled, sheared and shifted by its own random amounts; by 0 where
   config.rotate, scale, shear and shift are 0.
3. conv computes in the type of its input; batch norm and everything after it in float32. Config: precision.
4. train_steps(config, optimizer, params, batch_stats, opt_state, x, y, index, first, key): n steps in one program, for
   index (n, B); it returns the state and the losses (n,), and step first + i draws the same noise in every split.
5. train reads losses late and takes the time without evaluations; main prints images per second.
"""

import math

from common.cli.check_it import are_equal, has_shape, is_near, program, run_checks

import jax
import jax.numpy as jnp
import numpy as np
import train

config = train.Config(channels=8, batch_size=8, steps=4)
rng = np.random.default_rng(0)
x = jnp.asarray(rng.integers(256, size=(32, 28, 28)), jnp.uint8)  # (N, H, W)
y = jnp.asarray(rng.integers(10, size=32), jnp.int32)  # (N,)


def model():
    params = train.init_params(jax.random.key(0), config)
    return params, train.init_batch_stats(params)


def test_logits():
    """with the same weights, the logits are exercise 10's"""
    parent, images = program(10), train.normalise(x)
    has_shape("normalised images", images, 32, 28, 28)
    wanted, _ = parent.forward(*model(), np.asarray(images))
    are_equal("the logits", np.asarray(train.forward(*model(), images)[0]), np.asarray(wanted), 1e-4)


def test_augment():
    """augmentation by 0 changes nothing, and otherwise each image in its own way, other with another key"""
    images = x.astype(jnp.float32)
    still = train.Config(rotate=0.0, scale=0.0, shear=0.0, shift=0.0)
    moved = np.asarray(train.augment(jax.random.key(0), images, still))  # (N, H, W)
    are_equal("images moved by 0", moved, np.asarray(images), 1e-2)
    same = jnp.stack([images[0]] * 4)
    one, other = (np.asarray(train.augment(jax.random.key(key), same, train.Config())) for key in (0, 1))
    assert abs(one[0] - one[1]).max() > 1, "two copies of an image are moved alike"
    assert abs(one - other).max() > 1, "two keys move the images alike"


def test_precision():
    """in bfloat16 the logits are still float32, and nearly the same"""
    params, stats = model()
    full = train.forward(params, stats, train.normalise(x))[0]
    half = train.forward(params, stats, train.normalise(x, jnp.bfloat16))[0]
    assert half.dtype == jnp.float32, f"the logits are of {half.dtype}, expected float32"
    are_equal("the logits", np.asarray(half), np.asarray(full), 0.05 * float(abs(full).max()) + 0.01)


def test_steps_per_call():
    """two steps in one call are two calls of one step: same losses, same noise"""
    optimizer, (params, stats) = train.make_optimizer(config), model()
    index, key = np.arange(16).reshape(2, 8), jax.random.key(1)  # (n, B)
    new = params, stats, optimizer.init(params)
    *_, together = train.train_steps(config, optimizer, *new, x, y, index, 0, key)
    has_shape("the losses", together, 2)
    is_near("the first loss", float(together[0]), math.log(10), 0.2)
    *state, first = train.train_steps(config, optimizer, *new, x, y, index[:1], 0, key)
    *_, second = train.train_steps(config, optimizer, *state, x, y, index[1:], 1, key)
    are_equal("the losses", np.asarray(together), np.concatenate([first, second]), 1e-3)


if __name__ == "__main__":
    run_checks(globals())
