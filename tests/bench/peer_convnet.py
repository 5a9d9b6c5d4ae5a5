"""Seconds until 99 % of MNIST's test digits are right: exercise 9, and the convnet of pytorch/examples/mnist, in turn.

    python tests/bench/peer_convnet.py --rounds 3

The peer has the network and the settings of that program's defaults (two 3×3 convolutions with 32 and 64 channels, one
max pool, dropout 0.25 and 0.5, a dense layer of 128; Adadelta at 1.0, times 0.7 per epoch; batches of 64), written
anew, and takes its images from memory instead of a DataLoader. Both are evaluated after every epoch. The peer's clock
starts when its data are in memory, exercise 9's before it reads them and compiles.
"""

import contextlib
import io
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from common.program import clean_exit

from helpers import load


@dataclass
class Config:
    rounds: int = 3  # runs of each program, with seeds 0, 1, …
    target: float = 0.99  # test accuracy
    flags: str = ""  # flags of exercise 9, as "flag=value flag=value"


def ours(config, seed):
    """Return the seconds until exercise 9's first evaluation at the target, and all accuracies by epoch."""
    ex = load(9)
    evaluate, seen = ex.evaluate, []

    def timed(*args):
        metrics = evaluate(*args)
        seen.append((time.perf_counter() - start, metrics["accuracy"]))
        return metrics

    ex.evaluate = timed
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        flags = [*config.flags.split(), f"seed={seed}", f"out={out}", "device=cpu"]
        start = time.perf_counter()
        ex.main(tyro.cli(ex.Config, args=["--" + flag for flag in flags]))
    return first(seen[1:], config.target)  # the first evaluation is before the first epoch


def peer(config, seed):
    """Return the same of the peer, which stops there."""
    ex = load(9)
    x, y, x_test, y_test = (torch.from_numpy(array) for array in ex.make_data(ex.Config()))
    x, x_test = x[:, None], x_test[:, None]  # (N, 1, H, W)
    y, y_test = y.long(), y_test.long()
    torch.manual_seed(seed)
    start = time.perf_counter()
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
        *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
    )
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    seen = []
    for _ in range(14):
        model.train()
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
        schedule.step()
        model.eval()
        with torch.no_grad():
            right = sum(
                (model(xb).argmax(1) == yb).sum().item() for xb, yb in zip(x_test.split(1000), y_test.split(1000))
            )
        seen.append((time.perf_counter() - start, right / len(y_test)))
        if seen[-1][1] >= config.target:
            break
    return first(seen, config.target)


def first(seen, target):
    """Return the seconds of the first evaluation at the target (nan if there is none), and all accuracies."""
    seconds = next((seconds for seconds, accuracy in seen if accuracy >= target), float("nan"))
    return seconds, [accuracy for _, accuracy in seen]


def main(config: Config) -> None:
    times = {ours: [], peer: []}
    for seed in range(config.rounds):
        for run in times:
            seconds, accuracies = run(config, seed)
            times[run].append(seconds)
            shown = " ".join(f"{100 * accuracy:.2f}" for accuracy in accuracies)
            print(
                f"{run.__name__}, seed {seed}: {seconds:.1f} s to {100 * config.target:g} %; by epoch {shown}",
                flush=True,
            )
    mine, theirs = (np.array(seconds) for seconds in times.values())
    print(f"ours {mine.mean():.1f} s, peer {theirs.mean():.1f} s, ratio {mine.mean() / theirs.mean():.2f}")


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
