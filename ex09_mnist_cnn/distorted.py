"""Exercise 9's network for other people's digits: trained on MNIST's, distorted anew at every step.

What is turned, sheared and stretched stands for other hands, a thinner or thicker line for other pens, a blur for other
cameras (Simard et al. 2003 distort digits, too, by a field of their own at every pixel). And a program that reads forms
may have made every digit equally high and equally wide, a 1 as well: one half of them is stretched so.
"""

from contextlib import suppress

from common import UserError
from common.checkpoint import DAMAGED, whole_file

import jax
import jax.numpy as jnp
import numpy as np
import train as ex09


@jax.jit
@jax.vmap
def distort(key, image):
    """Return an image (28, 28) turned, sheared, stretched, moved, written with another pen, and blurred."""
    keys = jax.random.split(key, 5)
    turn = jnp.eye(2) + jax.random.uniform(keys[0], (2, 2), minval=-0.2, maxval=0.2)  # (2, 2)
    move = jax.random.uniform(keys[1], (2, 1, 1), minval=-1.5, maxval=1.5)
    size = jnp.array([(image.max(axis) > 0.5).sum() for axis in (1, 0)])  # (2,): its height and width
    form = jnp.where(jax.random.bernoulli(keys[4]), size / jnp.array([20, 12.5]), 1)[:, None, None]  # 12.5 as 20 : 32
    at = form * (jnp.tensordot(turn, jnp.mgrid[:28, :28] - 13.5, 1) + move) + 13.5  # (2, 28, 28)
    image = jax.scipy.ndimage.map_coordinates(image, at, order=1)  # (28, 28)
    near = jnp.stack([jnp.roll(image, shift, (0, 1)) for shift in ((0, 0), (0, 1), (1, 0), (1, 1))])  # (4, 28, 28)
    pen = jax.random.uniform(keys[2], minval=-0.7, maxval=1.0)
    image = jnp.where(pen > 0, image + pen * (near.max(0) - image), image - pen * (near.min(0) - image))
    blur = jax.random.uniform(keys[3], minval=0.1, maxval=1.5)  # pixels
    smear = jax.nn.softmax(-((jnp.arange(28)[:, None] - jnp.arange(28)) ** 2) / (2 * blur**2))  # (28, 28)
    image = smear @ image @ smear.T
    return image / jnp.maximum(image.max(), 1e-6)


def kept(config):
    """Return the weights that an earlier run with the same flags has left in out/, or None."""
    with suppress(*DAMAGED), np.load(config.out / "read_photo.npz") as file:
        if file["setting"].tolist() == [config.seed, config.steps, config.held_out] and not config.dry_run:
            return [{"w": file[f"w{i}"], "b": file[f"b{i}"]} for i in range(4)]


def train(config, images, labels):
    """Return weights of exercise 9's network, trained on digits (N, 28, 28), distorted; they are kept in out/."""
    steps = 3 if config.dry_run else config.steps
    print(f"training for {steps} steps", flush=True)
    params_key, key = jax.random.split(jax.random.key(config.seed))
    params = ex09.init_params(params_key, ex09.Config())
    optimizer = ex09.make_optimizer(ex09.Config(steps=steps))
    opt_state = optimizer.init(params)
    minibatches = ex09.batches(np.random.default_rng(config.seed), len(images), 128)
    for step, index in zip(range(steps), minibatches):
        keys = jax.random.split(jax.random.fold_in(key, step), 129)
        x = (distort(keys[1:], images[index] / np.float32(255)) - 0.1307) / 0.3081  # (B, 28, 28)
        y = labels[index].astype(np.int32)  # (B,)
        params, opt_state, _ = ex09.train_step(params, opt_state, x, y, optimizer, keys[0], 0.5)
    if not config.dry_run:
        arrays = {f"{name}{i}": value for i, layer in enumerate(params) for name, value in layer.items()}
        try:
            config.out.mkdir(parents=True, exist_ok=True)
            with whole_file(config.out / "read_photo.npz") as file:
                np.savez(file, setting=[config.seed, config.steps, config.held_out], **arrays)
        except OSError as error:
            raise UserError(f"cannot write to {config.out} ({error.strerror}): choose another --out DIR") from None
    return params
