"""Compare settings of an exercise on held-out training data, so that none is chosen on the test set.

    python tests/bench/choose.py 7 hidden=256 "hidden=512 learning-rate=0.05" --seeds 3

Trains the exercise's own main() with each string of flags on the first nine tenths of the training images or words, and
prints accuracy and loss on the others (last evaluation, mean ± standard deviation over seeds) and the seconds per run.
The test set is not used.
"""

import contextlib
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import UserError, data
from common.program import clean_exit
from common.text import join_words, split_words

from helpers import load


@dataclass
class Config:
    exercise: tyro.conf.Positional[int]  # number of the exercise
    settings: tyro.conf.Positional[tuple[str, ...]] = ("",)  # each a string of that exercise's flags, as flag=value
    seeds: int = 3  # runs of each setting, with seeds 0, 1, …


def main(config: Config) -> None:
    if config.exercise not in (7, 8, 9, 10, 11, 12, 13, 14):
        raise UserError(f"exercise {config.exercise} has no test set to keep apart: choose one of 7 to 14")
    module = load(config.exercise)
    if config.exercise in (7, 8, 9, 10, 14):
        (images, labels), _ = data.mnist()
        cut = len(images) * 9 // 10
        train, validation = (images[:cut], labels[:cut]), (images[cut:], labels[cut:])
        data.mnist = lambda dry_run=False: (train, validation)  # the exercise takes the validation set for its test set
    else:  # whose test set is the last tenth of the words
        words = split_words(data.shakespeare())
        text = join_words(words[: len(words) * 9 // 10])
        data.shakespeare = lambda dry_run=False: text
    for setting in config.settings:
        results = []
        for seed in range(config.seeds):
            with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()) as log:
                flags = [*setting.split(), f"seed={seed}", f"out={out}"]
                metrics = module.main(tyro.cli(module.Config, args=["--" + flag for flag in flags]))
            seconds = float(log.getvalue().split("seconds=")[-1])
            results.append((100 * metrics["test_accuracy"], metrics["test_loss"], seconds))
        (accuracy, loss, seconds), deviation = np.mean(results, axis=0), np.std(results, axis=0, ddof=config.seeds > 1)
        print(
            f"{setting or '(defaults)':60s} validation accuracy {accuracy:.2f} ± {deviation[0]:.2f} %, "
            f"loss {loss:.4f} ± {deviation[1]:.4f}, {seconds:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
