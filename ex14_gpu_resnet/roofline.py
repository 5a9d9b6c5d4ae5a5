"""Where does a step's time go, and why not write your own matrix product?

    python ex14_gpu_resnet/roofline.py

Predicted: a library's product is 1,000 times faster than three loops in Python, or more; batches of 128 are within 30 %
of the best rate; and exercise 14's step takes at most twice the time that this machine's roofline allows: its peak for
arithmetic, or its memory, whichever is slower. Measured: on a core of the CPU that it runs on. 25 CPU seconds.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import jax
import jax.numpy as jnp
import numpy as np
import train as ex14
import tyro


@dataclass
class Config:
    most: int = 256  # largest batch size that is tried
    seed: int = 0  # random seed of the numbers, which change no time
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # small sizes, to check that everything works

    def __post_init__(self):
        check_config(self, most=(1, 60_000))


def loops(a, b):
    """Return a @ b (n, n) by three loops."""
    c = np.zeros_like(a).tolist()
    a, b = a.tolist(), b.tolist()
    for i in range(len(a)):
        for j in range(len(a)):
            for k in range(len(a)):
                c[i][j] += a[i][k] * b[k][j]
    return np.array(c)


def dots(a, b):
    """Return a @ b (n, n), each number as a product of a row and a column."""
    return np.array([[row @ column for column in b.T] for row in a])


def outers(a, b):
    """Return a @ b (n, n) as a sum of products of a column and a row, each of which is a matrix."""
    c = np.zeros_like(a)
    for column, row in zip(a.T, b):
        c += column[:, None] * row
    return c


def seconds_of(function, *inputs, least=0.2):
    """Return the CPU seconds that a function takes, of all its threads, until what it gives is really there.

    They are the least of several runs. CPU seconds, since those of a clock are longer where other programs run, too.
    """
    jax.block_until_ready(function(*inputs))  # compiled, and its memory found
    runs, begin = [], time.process_time()
    while len(runs) < 3 or time.process_time() - begin < least:
        start = time.process_time()
        jax.block_until_ready(function(*inputs))
        runs.append(time.process_time() - start)
    return min(runs)


def products(rng, small, large):
    """Return the GFLOP/s of a product of matrices in each of five ways."""
    rates = {}
    ways = {"three loops": loops, "dot products": dots, "outer products": outers}
    for name, function in (ways | {"library, float64": np.matmul, "library, float32": np.matmul}).items():
        n, dtype = small if name in ways else large, np.float32 if "32" in name else np.float64
        a, b = rng.normal(size=(2, n, n)).astype(dtype)
        rates[name] = 2 * n**3 / seconds_of(function, a, b) / 1e9
    return rates


def steps(rng, sizes):
    """Return for each batch size the CPU seconds of exercise 14's step, and its FLOPs and bytes as XLA counts."""
    optimizer, params = ex14.make_optimizer(ex14.Config()), ex14.init_params(jax.random.key(0), ex14.Config())
    state, rest = (params, ex14.init_batch_stats(params), optimizer.init(params)), (jax.random.key(1), 0.0)
    found = {}
    for size in sizes:
        x, y = rng.normal(size=(size, 28, 28)).astype(np.float32), rng.integers(0, 10, size, np.int32)
        program = ex14.train_step.lower(*state, x, y, optimizer, *rest).compile()
        cost = program.cost_analysis()
        found[size] = seconds_of(program, *state, x, y, *rest), cost["flops"], cost["bytes accessed"]
    return found


def draw(rates, found, peak, bandwidth):
    """Return the picture: five matrix products, images a second over the batch size, the steps under the roof."""
    figure, (left, middle, right) = panels(
        "A product of matrices", "Exercise 14's step", "Under the roof", widths=(4.5,) * 3
    )
    for row, (name, rate) in enumerate(rates.items()):
        left.barh(row, rate, color=SAFE[0], left=1e-4)
        label(left, 1.2e-4, row, f"{name}: {rate:.3g}", bbox={"facecolor": "white", "edgecolor": "none"})
    left.set(xscale="log", xlabel="GFLOP/s", yticks=[], ylim=(4.6, -0.6))
    middle.plot(found.keys(), [size / seconds for size, (seconds, *_) in found.items()], "o-", color=SAFE[0])
    middle.set(xscale="log", xlabel="batch size", ylabel="images per core-second")
    intensity = np.geomspace(0.1, 1000, 100)
    right.plot(intensity, np.minimum(peak, intensity * bandwidth) / 1e9, color="0.3")
    for size, (seconds, flops, moved) in found.items():
        right.plot(flops / moved, flops / seconds / 1e9, "o", color=SAFE[1])
        label(right, flops / moved, flops / seconds / 1e9, str(size), SAFE[1])
    right.set(xscale="log", yscale="log", xlabel="FLOPs per byte moved", ylabel="GFLOP/s")
    return figure


def main(config: Config) -> dict[str, float]:
    rng = np.random.default_rng(config.seed)
    rates = products(rng, 16 if config.dry_run else 128, 64 if config.dry_run else 1024)
    big = jnp.ones((256 if config.dry_run else 1536,) * 2)
    peak = 2 * len(big) ** 3 / seconds_of(jax.jit(jnp.matmul), big, big)  # FLOP/s
    many = np.ones((2, 10**6 if config.dry_run else 3 * 10**7), np.float32)
    bandwidth = many.nbytes / seconds_of(np.copyto, many[0], many[1])  # bytes per second, one half read, one written
    found = steps(rng, [4] if config.dry_run else [n for n in (1, 8, 32, 128, 256, 512, 1024) if n <= config.most])
    images = {size: size / seconds for size, (seconds, *_) in found.items()}
    seconds, flops, moved = found[size := min(128, max(found))]
    return answer(
        config,
        draw(rates, found, peak, bandwidth),
        library_over_loops=(rates["library, float32"] / rates["three loops"], 1000, None),
        rate_at_128_over_best=(images[size] / max(images.values()), 0.7, None),
        time_over_the_roof=(seconds / max(flops / peak, moved / bandwidth), None, 2),
        peak_gflops=peak / 1e9,
        gigabytes_per_second=bandwidth / 1e9,
        flops_per_byte_at_128=flops / moved,
        share_of_peak_at_128=flops / seconds / peak,
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
