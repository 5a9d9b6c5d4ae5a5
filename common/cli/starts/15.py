"""To do:
1. make_data(config) by common.imagenet; a loader with worker processes. normalise: each of the three colours.
2. init_params(key, config, classes) and forward: ResNet-18 (two 3 x 3 convolutions per block) and ResNet-50
   (bottlenecks), by config.depth; a stem of 7 x 7 filters and a 3 x 3 max pooling, stride 2 each. Padding is even on
   both sides, as in the paper's networks, and not "SAME".
3. loss_fn(logits, y) of probabilities (B, K), for label smoothing. make_optimizer: SGD with Nesterov's momentum, a
   warm-up, half a cosine; weight decay on weights alone.
4. evaluate: top-1 and top-5, each image once. train: batches over all devices, checkpoints that a run goes on from.
"""

from common.cli.check_it import are_equal, has_shape, is_near, run_checks

import jax
import jax.numpy as jnp
import numpy as np
import torch
import train

rng = np.random.default_rng(0)


def config(**flags):
    return train.Config(**{"depth": 18, "channels": 8, "steps": 100} | flags)


def model():
    params = train.init_params(jax.random.key(0), config(), 10)
    return params, train.init_batch_stats(params)


def test_parameters():
    """ResNet-50 with 1,000 classes has 25,557,032 parameters, ResNet-18 has 11,689,512"""
    for depth, wanted in ((50, 25_557_032), (18, 11_689_512)):
        there = config(depth=depth, channels=64)
        shapes = jax.eval_shape(lambda there=there: train.init_params(jax.random.key(0), there, 1000))
        is_near(f"ResNet-{depth}", sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)), wanted, 0)


def test_conv():
    """a convolution of stride 2 gives what torch's gives"""
    x, w = rng.normal(size=(2, 8, 8, 3)).astype(np.float32), rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    arrays = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(w).permute(3, 2, 0, 1)
    wanted = torch.nn.functional.conv2d(*arrays, stride=2, padding=1).permute(0, 2, 3, 1).numpy()
    are_equal("the feature maps", np.asarray(train.conv(x, jnp.asarray(w), 2)), wanted, 1e-3)


def test_normalise():
    """a photograph of ImageNet's mean colour becomes 0"""
    grey = np.full((1, 2, 2, 3), 255 * np.array([0.485, 0.456, 0.406]))
    are_equal("normalised pixels", np.asarray(train.normalise(grey)), np.zeros((1, 2, 2, 3)), 1e-3)


def test_logits():
    """logits are (B, K)"""
    logits, _ = train.forward(*model(), jnp.zeros((2, 64, 64, 3)))
    has_shape("the logits", logits, 2, 10)


def test_loss():
    """loss_fn takes probabilities, as label smoothing needs them"""
    logits, y = rng.normal(size=(4, 10)).astype(np.float32), rng.dirichlet(np.ones(10), 4).astype(np.float32)
    wanted = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(y)).item()
    is_near("the loss", float(train.loss_fn(logits, y)), wanted, 1e-4)


def test_weight_decay():
    """weight decay pulls at the weights, and at neither scales nor biases"""
    params, _ = model()
    optimizer = train.make_optimizer(config())
    still = jax.tree.map(jnp.zeros_like, params)  # gradients of 0: what moves now is moved by the decay
    state = optimizer.init(params)
    for _ in range(10):
        updates, state = optimizer.update(still, state, params)
    moved = jax.tree.map(lambda update: float(abs(update).max()), updates)
    assert moved["head"]["w"] > 0, "weight decay does not reach the head's weights"
    there = {name: moved["stem"][name] for name in ("scale", "bias")}
    assert not any(there.values()), f"weight decay moves scale and bias of the stem: {there}"


if __name__ == "__main__":
    run_checks(globals())
