"""Take the parts of exercise 10's network away one at a time, and print what each is worth.

    python tests/bench/resnet_parts.py --steps 936

Each row is the exercise's own train.py with the lines of CHANGES edited, at the default depth, with its whole schedule
within so many steps. There is no weight decay, and learning rate and dropout are those of before it. Printed are the
test accuracy at the end, and the training loss (mean of the last 100 steps).
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
from helpers import read_metrics, train_py

CHANGES = {  # what is taken away: edits of train.py, as pairs of before and after
    "nothing": [],
    "batch norm": [
        (
            'return batch_norm(conv(x, layer["w"], stride), layer, stats, training)',
            'return conv(x, layer["w"], stride) * layer["scale"] + layer["bias"], stats',
        )
    ],
    "shortcuts": [("shortcuts: bool = True", "shortcuts: bool = False")],
    "zero scale": [("scale=0.0 if config.shortcuts else 1.0", "scale=1.0")],
    "global average pooling": [  # exercise 9's head: a dense layer of 128 units on all features
        (
            'head = {"w": 0.01 * jax.random.normal(next(keys), (widths[-1], 10)), "b": jnp.zeros(10)}',
            "size = (14 // 2 ** (config.stages - 1)) ** 2 * widths[-1]\n"
            "    w_dense = np.sqrt(2 / size) * jax.random.normal(jax.random.fold_in(key, 1), (size, 128))\n"
            '    head = {"w_dense": w_dense, "b_dense": jnp.zeros(128)}\n'
            '    head |= {"w": 0.01 * jax.random.normal(next(keys), (128, 10)), "b": jnp.zeros(10)}',
        ),
        ("x = x.mean((1, 2))", "x = x.reshape(len(x), -1)"),
        (
            'return x @ params["head"]["w"]',
            'x = jax.nn.relu(x @ params["head"]["w_dense"] + params["head"]["b_dense"])\n'
            '    return x @ params["head"]["w"]',
        ),
    ],
}
BEFORE = ("--learning-rate", "0.004", "--dropout", "0.3", "--weight-decay", "0")  # the series' last step adds these


@dataclass
class Config:
    parts: tyro.conf.Positional[tuple[str, ...]] = tuple(CHANGES)  # which to take away, one at a time
    seeds: tuple[int, ...] = (0, 1, 2)  # random seeds of the runs of each
    steps: int = 936  # training steps of a run: two epochs


def without(part: str) -> str:
    """Return the source of exercise 10 without a part."""
    source = train_py(10).read_text(encoding="utf-8")
    for before, after in CHANGES[part]:
        assert source.count(before) == 1, before
        source = source.replace(before, after)
    return source


def main(config: Config) -> None:
    for part in config.parts:
        results = []
        for seed in config.seeds:
            with tempfile.TemporaryDirectory() as folder:
                program, out = Path(folder) / "ex10_mnist_resnet" / "train.py", Path(folder) / "out"
                program.parent.mkdir()
                program.write_text(without(part), encoding="utf-8")
                flags = ["--seed", str(seed), "--steps", str(config.steps), "--out", str(out)]
                subprocess.run([sys.executable, program, *BEFORE, *flags], check=True, stdout=subprocess.DEVNULL)
                series = read_metrics(out)
            losses, accuracies = (list(series[key].values()) for key in (("train", "loss"), ("test", "accuracy")))
            results.append((100 * accuracies[-1], np.mean(losses[-100:])))
        (accuracy, loss), (accuracy_std, loss_std) = np.mean(results, 0), np.std(results, 0, ddof=len(results) > 1)
        print(f"| {part} | {accuracy:.2f} ± {accuracy_std:.2f} % | {loss:.3f} ± {loss_std:.3f} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
