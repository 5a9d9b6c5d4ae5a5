"""What a training step of exercise 9 or 10 costs on a CPU, with its convolution written in several ways, beside torch.

    python tests/bench/convolution.py 10 --steps 20

The JAX rows are the exercise's own train_step; only the function conv() is another, which computes the same. torch has
the same network, with Adam, in its faster memory order (channels last). All are timed in turn, and the best of the
rounds counts, in CPU seconds, which other programs on the machine disturb less. An own gradient is one that JAX is
told by custom_vjp: that of the filters as a product of matrices, since XLA spends most of a step on that.
"""

import sys
import time
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import UserError
from common.program import clean_exit

from helpers import load


@dataclass
class Config:
    exercise: tyro.conf.Positional[int]  # 9 or 10
    steps: int = 20  # training steps of a round
    rounds: int = 3  # rounds, of which the best counts


def windows(x, w, stride):
    """Return the k · k shifted views (B, H', W', C) of x (B, H, W, C) that a convolution with w (k, k, C, C') reads."""
    k, sizes, around = len(w), x.shape[1:3], []
    out = [-(-size // stride) for size in sizes]  # (H', W')
    for size, n in zip(sizes, out):
        missing = max((n - 1) * stride + k - size, 0)
        around.append((missing // 2, missing - missing // 2))
    x = jnp.pad(x, ((0, 0), *around, (0, 0)))
    ends = [(n - 1) * stride + 1 for n in out]
    return [x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i in range(k) for j in range(k)]


def patches(x, w, stride):
    """Patches side by side, and one product of matrices."""
    return jnp.concatenate(windows(x, w, stride), -1) @ w.reshape(-1, w.shape[-1])  # (B, H', W', C')


def shifts(x, w, stride):
    """A sum of k · k products of matrices."""
    parts = zip(windows(x, w, stride), w.reshape(-1, *w.shape[2:]))
    return sum(window @ filters for window, filters in parts)  # (B, H', W', C')


def conv_patches(x, w, stride):
    """JAX's own function for patches, and one product of matrices."""
    order = ("NHWC", "HWIO", "NHWC")
    found = jax.lax.conv_general_dilated_patches(x, w.shape[:2], (stride, stride), "SAME", dimension_numbers=order)
    return found @ w.transpose(2, 0, 1, 3).reshape(-1, w.shape[-1])  # (B, H', W', C')


def channels_first(x, w, stride):
    """XLA's convolution in torch's usual order."""
    x = x.transpose(0, 3, 1, 2)  # (B, C, H, W)
    order = ("NCHW", "HWIO", "NCHW")
    y = jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=order)
    return y.transpose(0, 2, 3, 1)  # (B, H', W', C')


def own_gradient(conv):
    """Return conv with the gradient of the filters as a product of matrices: patches, transposed, times errors."""

    def wrapped(x, w, stride):
        @jax.custom_vjp
        def f(x, w):
            return conv(x, w, stride)

        def backward(saved, grad):
            x, w = saved
            (grad_x,) = jax.vjp(lambda x: conv(x, w, stride), x)[1](grad)
            rows = jnp.concatenate(windows(x, w, stride), -1).reshape(-1, w[..., 0].size)  # (B · H' · W', k · k · C)
            return grad_x, (rows.T @ grad.reshape(len(rows), -1)).reshape(w.shape)

        f.defvjp(lambda x, w: (f(x, w), (x, w)), backward)
        return f(x, w)

    return wrapped


def jax_steps(number, change):
    """Return a function that makes n steps of the exercise, its conv() changed by `change`, and the loss after them."""
    ex = load(number)  # anew, so that nothing is compiled yet
    ex.conv = change(ex.conv)
    config = ex.Config()
    x, y, *_ = ex.make_data(ex.Config(dry_run=True))
    x, y = (np.resize(array, (config.batch_size, *array.shape[1:])) for array in (x, y))
    params, optimizer = ex.init_params(jax.random.key(0), config), ex.make_optimizer(config)
    model = (params, ex.init_batch_stats(params)) if number == 10 else (params,)
    state = [*model, optimizer.init(params)]

    def steps(n):
        nonlocal state
        for _ in range(n):
            *state, loss = ex.train_step(*state, x, y, optimizer, jax.random.key(0), 0.0)
            loss = loss.item()
        return loss

    return steps


class Residual(nn.Module):
    """Exercise 10's residual block."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.body = nn.Sequential(*norm(c_in, c_out, 3, stride), nn.ReLU(), *norm(c_out, c_out, 3, 1))
        self.shortcut = nn.Sequential(*norm(c_in, c_out, 1, stride)) if c_in != c_out else nn.Identity()

    def forward(self, x):
        return F.relu(self.shortcut(x) + self.body(x))


def norm(c_in, c_out, k, stride):
    return nn.Conv2d(c_in, c_out, k, stride, k // 2, bias=False), nn.BatchNorm2d(c_out)


def torch_steps(number):
    """Return the same for torch's network of the same shape."""
    ex = load(number)
    config = ex.Config()
    if number == 9:
        widths = [1] + [config.channels * 2**layer for layer in range(config.layers)]
        layers = [(nn.Conv2d(a, b, 5, 2, 2), nn.ReLU()) for a, b in pairwise(widths)]
        features = widths[-1] * int(np.ceil(28 / 2**config.layers)) ** 2
        head = nn.Flatten(), nn.Linear(features, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 10)
    else:
        widths = [config.channels * 2**stage for stage in range(config.stages)]
        layers = [(*norm(1, widths[0], 5, 2), nn.ReLU()), (Residual(widths[0], widths[0], 1),)]
        layers += [(Residual(a, b, 2),) for a, b in pairwise(widths)]
        head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)
    model = nn.Sequential(*chain(*layers), *head).to(memory_format=torch.channels_last)
    x, y, *_ = (torch.from_numpy(np.asarray(array)) for array in ex.make_data(ex.Config(dry_run=True)))
    index = torch.arange(config.batch_size) % len(x)
    x, y = x[index, None].to(memory_format=torch.channels_last), y[index].long()
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate, fused=True)

    def steps(n):
        for _ in range(n):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return steps


def cpu_seconds(programs, steps, rounds):
    """Return the CPU seconds of a step of each program, a function of the number of steps, by name.

    They run in turn, so many steps each, and the best of the rounds counts.
    """
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.process_time()
            program(steps)
            best[name] = min(best[name], (time.process_time() - start) / steps)
    return best


def main(config: Config) -> None:
    if config.exercise not in (9, 10):
        raise UserError(f"exercise {config.exercise} has other layers: choose 9 or 10")
    changes = {
        "as it is: XLA's convolution, channels last": lambda conv: conv,
        "channels first": lambda conv: channels_first,
        "patches and one product": lambda conv: patches,
        "a sum of products": lambda conv: shifts,
        "conv_general_dilated_patches and one product": lambda conv: conv_patches,
        "as it is, own gradient of the filters": own_gradient,
    }
    programs = {name: jax_steps(config.exercise, change) for name, change in changes.items()}
    programs["torch, the same network"] = torch_steps(config.exercise)
    losses = [steps(2) for steps in programs.values()]  # compiled, then compared
    np.testing.assert_allclose(losses[:-1], losses[0], atol=1e-3)
    best = cpu_seconds(programs, config.steps, config.rounds)
    print("| | CPU ms per step | ratio to torch |\n|---|---|---|")
    for name, seconds in best.items():
        print(f"| {name} | {1000 * seconds:.1f} | {seconds / best['torch, the same network']:.2f} |")


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
