"""Print how many photographs per second exercise 15's loader decodes, by number of workers, and what each part costs.

    python tests/bench/loader.py

The 40 photographs of original size in data/imagenet_sample/fullres (or --images, a folder of classes) are packed as for
training, and random crops of them are decoded over and over. Processor time is right on a busy machine, too; the rates
of the workers are by the clock, and need an idle one.
"""

import io
import os
import tempfile
import time
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from common import data, imagenet
from common.program import clean_exit

import numpy as np
import tyro
from PIL import Image


@dataclass
class Config:
    images: Path | None = None  # folder of folders of images; without it, the sample's
    workers: tuple[int, ...] = (0, 1, 2)  # numbers of worker processes to compare; 0 decodes in the main process
    size: int = 224  # size of a decoded image in pixels
    side: int = 256  # short side of a packed image in pixels
    batch_size: int = 64  # images that a worker hands over at once
    batches: int = 40  # that each number of workers is measured on
    cores: int = 16  # number of cores to project to


def microseconds(f, items, rounds=10):
    """Return the processor time that f takes for an item: the least of some rounds over all of them."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        for item in items:
            f(item)
        times.append(time.process_time() - start)
    return 1e6 * min(times) / len(items)


def main(config: Config) -> None:
    source = (config.images or data.data_dir() / "imagenet_sample" / "fullres").resolve()
    with tempfile.TemporaryDirectory() as folder:
        for split in imagenet.SPLITS:
            (Path(folder) / split).symlink_to(source)
        os.environ["RAMPUP_DATA"] = folder
        start = time.process_time()
        packed, _ = imagenet.prepare(folder, config.side)
        print(f"packing: {2 * len(packed) / (time.process_time() - start):.0f} images/s per core")
        measure(config, packed)


def measure(config, packed):
    """Print the costs of the parts, then the rates of the loader."""
    jpegs = [packed[i] for i in range(len(packed))]
    images = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in jpegs]
    size, rng = config.size, np.random.default_rng(0)
    print(f"packed: {np.mean([len(jpeg) for jpeg in jpegs]) / 1e3:.1f} kB per image, decoded ", end="")
    print(f"{np.mean([3 * image.width * image.height for image in images]) / 1e3:.1f} kB")
    parts = {
        "decode it all": (lambda jpeg: Image.open(io.BytesIO(jpeg)).load(), jpegs),
        "crop and resize one that is decoded": (
            lambda image: imagenet.crop(image, imagenet.random_box(rng, *image.size, (0.08, 1)), size),
            images,
        ),
        "evaluation, in total": (lambda jpeg: np.asarray(imagenet.decode(jpeg, size)), jpegs),
        "training, in total": (lambda jpeg: np.asarray(imagenet.decode(jpeg, size, rng)), jpegs),
    }
    for name, (f, items) in parts.items():
        cost = microseconds(f, items)
        print(f"{name:36s} {cost:5.0f} µs of processor time, {1e6 / cost:5.0f} images/s per core", flush=True)
    print(f"{config.cores} such cores, in training: {config.cores * 1e6 / cost:.0f} images/s")

    for workers in config.workers:
        steps = ((step, rng.integers(len(packed), size=config.batch_size)) for step in count())
        batches = imagenet.load(packed, steps, size, seed=0, workers=workers)
        for _ in islice(batches, 3 * max(1, workers)):  # until all workers are busy
            pass
        start = time.perf_counter()
        for _ in islice(batches, config.batches):
            pass
        rate = config.batches * config.batch_size / (time.perf_counter() - start)
        print(f"{workers} workers: {rate:5.0f} images/s, {rate / max(1, workers):5.0f} each", flush=True)


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
