"""What does momentum buy, and what does Adam?

    python ex08_mnist_adam/valley.py

Predicted: in a valley κ times steeper across than along, gradient descent needs steps in proportion to κ, momentum to
its root. Adam does not care how the loss or one axis is scaled, but it does care how the valley is turned; and it
decays all weights alike only if the decay is kept out of the gradient (AdamW). Measured: on quadratics. 3 CPU seconds.
"""

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import train as ex08
import tyro

KAPPAS = (10, 100, 1_000, 10_000)


@dataclass
class Config:
    dims: int = 50  # dimensions of the quadratic, D
    seed: int = 0  # random seed of the starts, the turn and the noise
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self, dims=(2, 1_000))


def momentum(x, grad, state, rate, beta=0.0, nesterov=False):
    """Return the next point of optax.sgd(rate, beta, nesterov) and its state; with beta 0 it is gradient descent."""
    g = grad(x)
    velocity = beta * state[0] + g
    return x - rate * (g + beta * velocity if nesterov else velocity), (velocity,)


def adam(x, grad, state, rate, decay=0.0, l2=0.0):
    """Return the next point of optax.adamw(rate, weight_decay=decay), with an L2 penalty in the gradient, its state."""
    g, (mean, square, step) = grad(x) + l2 * x, state
    mean, square, step = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2, step + 1
    update = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return x - rate * (update + decay * x), (mean, square, step)


def methods(kappa):
    """Return each method's best constants where the curvatures go from 1 / kappa to 1 (Goh 2017; Nesterov 2004)."""
    root = kappa**-0.5
    return {
        "descent": {"rate": 2 / (1 + 1 / kappa)},
        "heavy ball": {"rate": (2 / (1 + root)) ** 2, "beta": ((1 - root) / (1 + root)) ** 2},
        "Nesterov": {"rate": 1.0, "beta": (1 - root) / (1 + root), "nesterov": True},
    }


def walk(method, hessian, start, steps, **constants):
    """Yield the points (D,) of a method on the loss x · hessian x / 2."""
    x, state = start, (0.0, 0.0, 0)
    for _ in range(steps):
        yield x
        x, state = method(x, lambda x: hessian @ x, state, **constants)


def steps_to(share, points):
    """Return after how many steps the distance to the minimum, 0, is below a share of what it was at first."""
    distances = (np.linalg.norm(x) for x in points)
    least = share * next(distances)
    return 1 + sum(1 for _ in takewhile(lambda distance: distance >= least, distances))


def shrink(rng, steps, **constants):
    """Return to which share two weights shrink under Adam where the gradient is all noise, of size 1 and 100."""
    x, state = np.ones((200, 2)), (0.0, 0.0, 0)  # 200 pairs, for a mean
    for _ in range(steps):
        noise = rng.normal(size=x.shape) * (1, 100)
        x, state = adam(x, lambda _, noise=noise: noise, state, 0.001, **constants)
    return x.mean(0)


def draw(counts, distances):
    """Return the picture: steps over κ, and Adam before and after a turn."""
    figure, (growth, turned) = panels("Steps until a millionth of the distance is left", "Adam, κ = 100")
    for color, (name, values) in zip(SAFE, counts.items()):
        growth.plot(KAPPAS, values, "o-", color=color)
        label(growth, KAPPAS[-1], values[-1], name, color, (-8, -26 if name == "heavy ball" else 10), ha="right")
    growth.set(xscale="log", yscale="log", xlabel="κ: largest over smallest curvature", ylabel="steps")
    for color, (name, distance) in zip(SAFE, distances.items()):
        turned.plot(distance, color=color)
        label(turned, 300, distance[300], f"the valley {name}", color, (8, 8))
    turned.set(yscale="log", xlabel="steps", ylabel="distance to the minimum")
    return figure


def main(config: Config) -> dict[str, float]:
    rng, most = np.random.default_rng(config.seed), 300 if config.dry_run else 100_000
    start, counts = rng.normal(size=config.dims), {name: [] for name in methods(10)}
    for kappa in KAPPAS:
        hessian = np.diag(np.geomspace(1 / kappa, 1, config.dims))  # (D, D)
        for name, constants in methods(kappa).items():
            counts[name].append(steps_to(1e-6, walk(momentum, hessian, start, most, **constants)))
    slopes = {name: np.log10(values[-1] / values[0]) / 3 for name, values in counts.items()}

    valley, turn = np.diag(np.geomspace(0.01, 1, config.dims)), np.linalg.qr(rng.normal(size=(config.dims,) * 2))[0]
    losses = {"as it lies": valley, "turned": turn @ valley @ turn.T, "times 100": 100 * valley}
    starts = {"turned": turn @ start}
    adams = {name: np.array([*walk(adam, at, starts.get(name, start), 3000, rate=0.03)]) for name, at in losses.items()}
    moved = abs(adams["times 100"] - adams["as it lies"])[:600].max()  # later the 1e-8 below the line counts
    optimizer = ex08.make_optimizer(ex08.Config(learning_rate=0.03, steps=10**9))  # so many that its rate stays
    x, state = start.astype(np.float32), optimizer.init(start.astype(np.float32))
    for point in adams["as it lies"][:100]:
        off = abs(x - point).max()
        updates, state = optimizer.update(valley.astype(np.float32) @ x, state)
        x = x + updates
    return answer(
        config,
        draw(counts, {name: np.linalg.norm(adams[name][:600], axis=1) for name in ("as it lies", "turned")}),
        off_from_exercise_8=(off, None, 1e-4),
        slope_of_descent=(slopes["descent"], 0.95, 1.05),
        slope_of_heavy_ball=(slopes["heavy ball"], 0.42, 0.58),
        slope_of_nesterov=(slopes["Nesterov"], 0.42, 0.58),
        descent_over_heavy_ball_at_100=(counts["descent"][1] / counts["heavy ball"][1], 7, None),
        adam_moved_by_100_times_the_loss=(moved, None, 1e-6),
        adam_turned_over_as_it_lies=(steps_to(0.01, adams["turned"]) / steps_to(0.01, adams["as it lies"]), 2, None),
        adamw_shrinks_one_over_other=(np.divide(*np.log(shrink(rng, 1_000, decay=1.0))), 0.9, 1.1),
        adam_with_l2_shrinks_one_over_other=(np.divide(*np.log(shrink(rng, 1_000, l2=1.0))), 2, None),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
