"""To do:
1. init_params(key, config): {"stem": …, "stages": [[block, …], …], "head": {"w", "b"}}. A layer of stem and blocks is
   {"w", "scale", "bias"}; a block is {"conv1", "conv2", "shortcut"}, the shortcut None where it is the identity.
2. init_batch_stats(params): running means and variances, {"mean", "var"}, arranged as the parameters are.
3. batch_norm(x, layer, stats, training) returns the normalised x, and the stats as they are after this batch.
4. residual_block(x, block, stats, stride, training) returns relu(x + f(x)), and its stats.
5. forward(params, batch_stats, images, training=False, key=None, dropout=0.0) returns logits and new batch_stats;
   train_step(params, batch_stats, opt_state, x, y, optimizer, key, dropout) returns the first three, and the loss.
6. The loop moves into train(config, seed, run, x, y, x_test, y_test): exercise 14 will call it many times.
"""

import math

from common.cli.check_it import are_equal, has_shape, is_near, run_checks

import jax
import jax.numpy as jnp
import numpy as np
import torch
import train

config = train.Config(channels=8)
rng = np.random.default_rng(0)
images = rng.normal(size=(16, 28, 28)).astype(np.float32)  # (B, H, W)
labels = rng.integers(10, size=16).astype(np.int32)  # (B,)


def model():
    params = train.init_params(jax.random.key(0), config)
    return params, train.init_batch_stats(params)


def test_params():
    """77,802 parameters at 32 channels, none of them a running statistic"""
    params = train.init_params(jax.random.key(0), train.Config())
    is_near("the number of parameters", sum(leaf.size for leaf in jax.tree.leaves(params)), 77_802, 0)


def test_batch_norm():
    """batch_norm is torch's BatchNorm2d, in training and in evaluation"""
    x = (3 * rng.normal(size=(4, 5, 5, 6)) + 2).astype(np.float32)  # (B, H, W, C)
    layer = {"scale": jnp.full(6, 1.5), "bias": jnp.full(6, 0.5)}
    stats = {"mean": jnp.zeros(6), "var": jnp.ones(6)}
    theirs = torch.nn.BatchNorm2d(6)
    torch.nn.init.constant_(theirs.weight, 1.5)
    torch.nn.init.constant_(theirs.bias, 0.5)
    for training in (True, True, False):
        theirs.train(training)
        y, stats = train.batch_norm(x, layer, stats, training)
        wanted = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).detach().permute(0, 2, 3, 1).numpy()
        are_equal("in training" if training else "in evaluation", np.asarray(y), wanted, 1e-3)
        are_equal("the running variance", np.asarray(stats["var"]), theirs.running_var.numpy(), 1e-3)


def test_new_block():
    """a new block gives what came into it (where that is not below 0)"""
    params, stats = model()
    x = abs(rng.normal(size=(2, 7, 7, 8))).astype(np.float32)  # (B, H, W, C)
    y, _ = train.residual_block(x, params["stages"][0][0], stats["stages"][0][0], 1, True)
    are_equal("a block's answer", np.asarray(y), x, 1e-6)


def test_first_loss():
    """logits are (B, 10), and the first loss is near ln 10"""
    logits, _ = train.forward(*model(), images)
    has_shape("the logits", logits, 16, 10)
    is_near("the first loss", float(train.loss_fn(logits, labels)), math.log(10), 0.2)


def test_evaluation():
    """in evaluation an image's logits do not depend on the others"""
    params, stats = model()
    others = np.concatenate([images[:1], 5 * images[1:]])  # (B, H, W)
    one, other = (np.asarray(train.forward(params, stats, batch)[0]) for batch in (images, others))
    are_equal("the logits of the first image", other[0], one[0], 1e-5)


def test_one_batch():
    """the loss of 16 images of noise falls, and the running statistics move"""
    optimizer, (params, stats) = train.make_optimizer(config), model()
    there = params, stats, optimizer.init(params)
    for _ in range(100):
        *there, loss = train.train_step(*there, images, labels, optimizer, jax.random.key(0), 0.0)
    assert float(loss) < 1, f"after 100 steps on one batch the loss is {float(loss):.3g}, expected less than 1"
    moved = float(abs(there[1]["stem"]["mean"] - stats["stem"]["mean"]).max())
    assert moved > 0, "the running mean of the stem is where it began"


if __name__ == "__main__":
    run_checks(globals())
