"""To do:
1. conv(x, w, stride): images (B, H, W, C) and filters (k, k, C, C') to feature maps, with padding "SAME".
2. init_params(key, config): two convolutions {"w": (5, 5, C, C'), "b": (C',)}, two dense layers. How many inputs has a
   unit?
3. forward(params, images, training=False, key=None, dropout=0.0): dropout on the flattened features, in training only.
4. train_step(params, opt_state, x, y, optimizer, key, dropout), and a new key for each step.
5. Config: channels, dropout, batches and steps of the lesson.
"""

import math

from common.cli.check_it import are_equal, has_shape, is_near, run_checks

import jax
import numpy as np
import torch
import train

config = train.Config()
rng = np.random.default_rng(0)
images = rng.normal(size=(32, 28, 28)).astype(np.float32)  # (B, H, W)
labels = rng.integers(10, size=32).astype(np.int32)  # (B,)


def params():
    return train.init_params(jax.random.key(0), config)


def test_conv():
    """a convolution of stride 1 gives what torch's gives"""
    x, w = rng.normal(size=(2, 9, 9, 3)).astype(np.float32), rng.normal(size=(5, 5, 3, 4)).astype(np.float32)
    arrays = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(w).permute(3, 2, 0, 1)
    wanted = torch.nn.functional.conv2d(*arrays, padding=2).permute(0, 2, 3, 1).numpy()  # (B, H, W, C')
    are_equal("the feature maps", np.asarray(train.conv(x, w, 1)), wanted, 1e-3)
    has_shape("with stride 2", train.conv(x, w, 2), 2, 5, 5, 4)


def test_params():
    """454,922 parameters, the filters within the bounds of a unit with k · k · C inputs"""
    is_near("the number of parameters", sum(leaf.size for leaf in jax.tree.leaves(params())), 454_922, 0)
    largest = float(abs(params()[1]["w"]).max())
    assert largest <= 1 / math.sqrt(5 * 5 * 32), f"the largest number of the second filters is {largest:.3g}"


def test_first_loss():
    """logits are (B, 10), and the first loss is near ln 10"""
    logits = train.forward(params(), images)
    has_shape("the logits", logits, 32, 10)
    is_near("the first loss", float(train.loss_fn(logits, labels)), math.log(10), 0.3)


def test_dropout():
    """dropout acts in training alone, depends on the key, and leaves the mean as it is"""
    are_equal("two evaluations", *(np.asarray(train.forward(params(), images)) for _ in "ab"), 0)
    keys = jax.random.split(jax.random.key(1), 200)
    drawn = [np.asarray(train.forward(params(), images[:4], True, key, 0.5)) for key in keys]
    assert not np.array_equal(drawn[0], drawn[1]), "two keys drop the same features"
    are_equal("dropout of 0", np.asarray(train.forward(params(), images, True, keys[0], 0.0)),
              np.asarray(train.forward(params(), images)), 1e-5)  # fmt: skip
    assert abs(np.mean(drawn, 0) - np.asarray(train.forward(params(), images[:4]))).max() < 0.15, "the mean has moved"


def test_one_batch_by_heart():
    """32 images of noise are learnt by heart"""
    optimizer, there = train.make_optimizer(config), params()
    state = optimizer.init(there)
    for _ in range(40):
        there, state, loss = train.train_step(there, state, images, labels, optimizer, jax.random.key(0), 0.0)
    assert float(loss) < 0.2, f"after 40 steps on one batch the loss is {float(loss):.3g}, expected less than 0.2"


if __name__ == "__main__":
    run_checks(globals())
