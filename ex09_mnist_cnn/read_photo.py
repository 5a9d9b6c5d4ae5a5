"""Does it read *your* sevens?

    python ex09_mnist_cnn/read_photo.py photo.jpg
    python ex09_mnist_cnn/read_photo.py

With a photograph of digits on a page it says what stands there, and draws it into out/read_photo.png: a box for each
digit, and "?" where it is not sure. Without one it measures itself.

Predicted: at least 95 % of the digits are read, on pages and of other people than MNIST's, and 99 % of what it is sure
of is right; each of the four stages is worth 3 points. Measured: on pages made of MNIST's test digits, and on UCI's.
180 CPU seconds, most of them to train; the weights are kept in out/read_photo.npz.
"""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from common import data
from common.plotting import SAFE, label, panels, save
from common.program import check_config, clean_exit
from common.record import answer

import jax
import numpy as np
import train as ex09
import tyro
from distorted import kept, train
from matplotlib.patches import Rectangle
from pages import coarse, letters, load_page, make_page
from PIL import Image
from scipy import ndimage
from stages import find_blobs, find_ink, in_lines, normalise, otsu


@dataclass
class Config:
    photo: Annotated[Path | None, tyro.conf.Positional] = None  # picture to read
    sure: float = 0.9  # probability below which a digit is a "?"
    without: Literal["nothing", "paper", "threshold", "blobs", "normalise"] = "nothing"  # the stage to leave out
    steps: int = 2_808  # training steps (468 are an epoch)
    held_out: bool = False  # measure on the last tenth of the training digits alone, and train on the others
    seed: int = 0  # random seed of the weights and the pages
    out: Path = Path(__file__).parent / "out"  # folder for the picture, the numbers and the weights
    dry_run: bool = False  # three steps, to check that everything works

    def __post_init__(self):
        check_config(self, sure=(0, 1))


def classify(params, images):
    """Return digits (n,) and probabilities (n,) of images (n, 28, 28) with ink from 0 to 1."""
    probs = np.asarray(jax.nn.softmax(ex09.forward(params, (np.asarray(images, np.float32) - 0.1307) / 0.3081)))
    return probs.argmax(1), probs.max(1)


def read(page, params, without="nothing"):
    """Return lines of (box, digit, probability) of what stands on a page (H, W), in the order in which one reads."""
    ink = find_ink(page, without != "paper")
    blobs = find_blobs(ink, 0.5 if without == "threshold" else otsu(ink), without != "blobs")
    if not blobs:
        return []
    images = [normalise(blob, how="stretch" if without == "normalise" else "mass") for _, blob in blobs]
    boxes = np.array([box for box, _ in blobs])  # (n, 4)
    digits, probs = classify(params, images)
    return [[(boxes[i], int(digits[i]), float(probs[i])) for i in line] for line in in_lines(boxes)]


def score(lines, centres, labels, sure):
    """Return of a page with digits at centres (n, 2): digits read, blobs without one, sure ones, right of those."""
    right = extra = surely = both = 0
    left = set(range(len(labels)))
    for (top, first, bottom, last), digit, prob in chain(*lines):
        inside = [i for i in left if top <= centres[i][0] < bottom and first <= centres[i][1] < last]
        left.difference_update(inside)
        is_right = len(inside) == 1 and labels[inside[0]] == digit
        extra += not inside
        right, surely, both = right + is_right, surely + (prob >= sure), both + (is_right and prob >= sure)
    return np.array([right, extra, surely, both])


def draw(page, lines, sure):
    """Return the picture: the page with a box around each digit, and beside it what was read."""
    figure, (ax,) = panels(f"What it reads; ? where it is less than {100 * sure:g} % sure", widths=(6.4,), height=4.9)
    smooth = ndimage.gaussian_filter(page, 1.5)  # without noise, of which a PNG would grow large
    ax.imshow(smooth, cmap="gray", vmin=0, vmax=1)
    ax.set_axis_off()
    for (top, left, bottom, right), digit, prob in chain(*lines):
        color = SAFE[2] if prob >= sure else SAFE[1]
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=color))
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        label(ax, right, top, f"{digit}" if prob >= sure else "?", color, (2, 3), weight="bold", bbox=paper)
    return figure


WAYS = {  # to make a digit an image of 28 x 28
    "whole": lambda image: np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BILINEAR)),
    "stretched": lambda image: normalise(image, how="stretch"),
    "longest_28": lambda image: normalise(image, 28, "box"),
    "box": lambda image: normalise(image, how="box"),
    "mass": normalise,
    "swapped": lambda image: 1 - normalise(image),
}


def main(config: Config) -> dict[str, float]:
    page = load_page(config.photo) if config.photo else None  # before the training, which takes a minute or two
    params = kept(config)
    if not (params and config.photo):
        (x, y), (x_test, y_test) = data.mnist(config.dry_run)  # (N, 28, 28), (N,)
        if config.held_out:
            n = len(x) // 10
            x, y, x_test, y_test = x[:-n], y[:-n], x[-n:], y[-n:]
        params = params or train(config, x, y)
    if config.photo:
        lines = read(page, params, config.without)
        for line in lines:
            print("".join(str(digit) if prob >= config.sure else "?" for _, digit, prob in line))
        path = (config.out / "dry_run" if config.dry_run else config.out) / "read_photo.png"
        save(draw(page, lines, config.sure), path)
        print(f"{sum(map(len, lines))} digits; picture: {path}")
        return {}
    rng, totals = np.random.default_rng(config.seed), {}
    pages = rng.permutation(len(x_test))[: 60 if config.dry_run else 600].reshape(-1, 60)
    for n, index in enumerate(pages):
        page, centres = make_page(x_test[index], rng, shadow=n % 2 == 0)
        for without in ("nothing", "paper", "threshold", "blobs", "normalise"):
            lines = read(page / np.float32(255), params, without)
            totals[without] = totals.get(without, 0) + score(lines, centres, y_test[index], config.sure)
            if n == 0 and without == config.without:
                figure = draw(page / np.float32(255), lines, config.sure)
    read_right = {without: 100 * right / (pages.size + extra) for without, (right, extra, *_) in totals.items()}
    _, _, surely, both = totals[config.without]
    other = data.uci_digits(config.dry_run)  # (N, 8, 8), (N,)
    if config.held_out:  # for UCI's, which are a test set: digits made as coarse in the same way
        other = np.stack([coarse(image) for image in x_test]), y_test  # (N, 8, 8), (N,)
    percent, sets = {}, {"uci": other, "mnist": (x_test, y_test)}
    for way, change in WAYS.items():
        for name, (images, labels) in sets.items():
            digits, probs = classify(params, [change(image / np.float32(images.max())) for image in images])
            percent[f"{name}_{way}"] = 100 * (digits == labels).mean()
            if (name, way) == ("uci", "mass"):
                uci_sure = 100 * (digits == labels)[probs >= config.sure].sum() / max(1, (probs >= config.sure).sum())
    _, letters_sure = classify(params, [normalise(image / np.float32(255)) for image in letters()])
    return answer(
        config,
        figure,
        pages_read=(read_right[config.without], 95, None),
        pages_right_of_sure=(100 * both / max(1, surely), 99, None),
        pages_sure=(100 * surely / pages.size, 85, None),
        uci_read=(percent["uci_mass"], 95, None),
        uci_right_of_sure=(uci_sure, 99, None),
        lost_without_paper=(read_right["nothing"] - read_right["paper"], 3, None),
        lost_without_threshold=(read_right["nothing"] - read_right["threshold"], 3, None),
        lost_without_blobs=(read_right["nothing"] - read_right["blobs"], 3, None),
        lost_without_normalise=(read_right["nothing"] - read_right["normalise"], 3, None),
        letters_sure=(100 * (letters_sure >= config.sure).mean(), None, 10),
        **percent,
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
