"""ImageNet for exercise 15: photographs packed once into large files, then decoded by worker processes.

A packed set is a folder. Of every shard of up to 1,024 images it has NAME.jpegs, the JPEG files end to end, and
NAME.json, their lengths and labels; set.json has the classes and the number of shards.
"""

import hashlib
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import tarfile
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import UserError
from common.data import DataError, data_dir, fetch

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

IMAGENETTE = "imagenette"  # ten classes of ImageNet, short side 160 pixels (github.com/fastai/imagenette)
IMAGENETTE_MIRRORS = ("https://s3.amazonaws.com/fast-ai-imageclas/",)
IMAGENETTE_SHA256 = "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5"  # as in tensorflow/datasets
HUGGING_FACE = "ILSVRC/imagenet-1k"
SPLITS = {"train": "train", "val": "validation"}  # the folders, and what Hugging Face calls them
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
SHARD = 1024  # images that one worker packs into one file
QUALITY = 90  # of the JPEGs that are encoded anew
TWO_WAYS = (
    "get ImageNet's archives from image-net.org and unpack them into a folder with train/CLASS/*.JPEG and "
    "val/CLASS/*.JPEG (extract_ILSVRC.sh of github.com/pytorch/examples does it), or accept the terms at "
    f"huggingface.co/datasets/{HUGGING_FACE}, set HF_TOKEN, and give --data {HUGGING_FACE}"
)


@dataclass
class Packed:
    """A packed set of N images in the order of their classes and names; packed[i] is the i-th as a JPEG's bytes."""

    classes: list[str]  # their names; a label is a place in this list
    files: list[Path]  # the shards
    shards: np.ndarray  # (N,), which file an image is in
    offsets: np.ndarray  # (N,), where it begins there
    lengths: np.ndarray  # (N,), in bytes
    labels: np.ndarray  # (N,) of int32
    unreadable: list[str]  # images that were left out, and why

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> bytes:
        with open(self.files[self.shards[i]], "rb") as file:
            file.seek(self.offsets[i])
            return file.read(self.lengths[i])


@dataclass
class MadeUp:
    """N random pictures in place of a Packed, for runs without data."""

    classes: list[str]  # their names
    labels: np.ndarray  # (N,) of int32

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> bytes:
        colours = np.random.default_rng(i).integers(0, 256, (4, 5, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(colours).resize((80, 64)).save(file, "JPEG")
        return file.getvalue()


def made_up(classes: int) -> tuple[MadeUp, MadeUp]:
    """Return 10,000 random pictures for training and 100 for validation; nothing is read or written."""
    names = [f"class{label}" for label in range(classes)]
    return tuple(MadeUp(names, (np.arange(n) % classes).astype(np.int32)) for n in (10_000, 100))


def prepare(source: str, side: int = 256, workers: int = 0, on_error: str = "stop") -> tuple[Packed, Packed]:
    """Return the training and the validation set of a source, packed with short sides of at most `side` pixels.

    `source` is an image folder, "ILSVRC/imagenet-1k" for Hugging Face, or "imagenette", which is downloaded. The first
    call packs it into data_dir()/imagenet; after a kill, the next one goes on from the last whole shard. Images that
    cannot be read are named and counted. With on_error="skip" they are left out; with "stop" DataError is raised once
    the others are packed, and the next call tries them again. DataError is raised too where there is no such source,
    where a folder is not laid out as it should be, and where the disk is full.
    """
    classes, parts = [], None
    if source == HUGGING_FACE and not Path(source).is_dir():
        identity = [source]  # and no more: what was downloaded may be deleted when it is packed
    else:
        root = _imagenette() if source == IMAGENETTE and not Path(source).is_dir() else Path(source)
        classes, parts = read_folder(root.resolve())
        identity = [str(root.resolve()), *(path for part in parts.values() for path, _ in part)]
    digest = hashlib.sha256(os.fsencode("\n".join([*identity, f"{side} {SHARD} {QUALITY}"]))).hexdigest()
    folder = data_dir() / "imagenet" / f"{Path(identity[0]).name}-{side}-{digest[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # of two runs, one packs and the other waits
            sets = _open(folder, on_error == "skip")
            if sets is None:
                classes, parts = (classes, parts) if parts else _hugging_face()
                _pack(folder, classes, parts, side, workers, on_error == "skip")
                sets = _open(folder, skip=True)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    unreadable, n = [name for packed in sets for name in packed.unreadable], sum(map(len, sets))
    if unreadable and (on_error == "stop" or not all(map(len, sets))):
        count = f"{len(unreadable)} of the {n + len(unreadable)} images cannot be read, the first is {unreadable[0]}"
        raise DataError(f"{count}: mend them, or leave them out with --on-error skip")
    return sets


def read_folder(root: Path) -> tuple[list[str], dict[str, list[tuple[str, int]]]]:
    """Return the classes of an image folder, and by split its images' paths and labels, in alphabetical order.

    Raises DataError where it is not train/CLASS/*.JPEG and val/CLASS/*.JPEG with the same classes in both.
    """
    classes, parts = {}, {split: [] for split in SPLITS}
    try:
        for split in SPLITS:
            if not (root / split).is_dir():
                raise DataError(f"--data: there is no folder {root / split if root.is_dir() else root}; {TWO_WAYS}")
            classes[split] = sorted(entry.name for entry in os.scandir(root / split) if entry.is_dir())
            if not classes[split]:
                raise DataError(f"{root / split} has no folders of classes: sort its images into one folder a class")
        if odd := sorted(set(classes["train"]) ^ set(classes["val"])):
            there = "train" if odd[0] in classes["train"] else "val"
            count = f" ({len(odd)} classes are in one of them only)" if len(odd) > 1 else ""
            raise DataError(f"train and val in {root} differ in their classes: {odd[0]} is in {there} only{count}")
        for split in SPLITS:
            for label, name in enumerate(classes[split]):
                files = [f for f in os.listdir(root / split / name) if f.lower().endswith(SUFFIXES) and f[0] != "."]
                if not files:
                    raise DataError(f"{root / split / name} holds no images ({' '.join(SUFFIXES)}): fill or delete it")
                parts[split] += [(f"{root}/{split}/{name}/{file}", label) for file in sorted(files)]
    except OSError as error:
        raise DataError(f"cannot read {error.filename} ({error.strerror})") from None
    return classes["train"], parts


def to_jpeg(content: bytes, side: int) -> bytes:
    """Return an image file as an RGB JPEG with a short side of at most `side` pixels; one that is that as it is.

    Raises whatever Pillow does where it cannot read the file to its end. EXIF's rotation is ignored, as elsewhere.
    """
    image = Image.open(io.BytesIO(content))
    width, height = image.size
    scale = min(1.0, side / min(width, height))
    if scale == 1 and image.format == "JPEG" and image.mode == "RGB" and "progressive" not in image.info:
        image.load()  # to its end
        return content
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    image.draft("RGB", (2 * size[0], 2 * size[1]))  # a JPEG need not be decoded at more than this
    file = io.BytesIO()
    resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    resized.save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return file.getvalue()


def pack_shard(folder: Path, side: int, name_and_examples: tuple[str, Iterable]) -> tuple[int, list[str]]:
    """Write one shard and its index; return the number of its examples, and which cannot be read and why.

    An example is (path, label), or Hugging Face's {"image": {"path", "bytes"}, "label"}. A file under its own name is
    always whole, and the index comes last. Raises OSError where the disk takes no more.
    """
    name, examples = name_and_examples
    jpegs, labels, unreadable = [], [], []
    for example in examples:
        if isinstance(example, tuple):
            (path, label), content = example, None
        else:
            content, path, label = example["image"]["bytes"], example["image"]["path"], example["label"]
        try:
            jpegs.append(to_jpeg(Path(path).read_bytes() if content is None else content, side))
            labels.append(label)
        except Exception as error:  # Pillow meets damaged files with many kinds
            unreadable.append(f"{path} ({error})")
    _write(folder / f"{name}.jpegs", b"".join(jpegs))
    index = {"lengths": [len(jpeg) for jpeg in jpegs], "labels": labels, "unreadable": unreadable}
    _write(folder / f"{name}.json", json.dumps(index).encode())
    return len(examples), unreadable


def load(
    packed: Packed,
    batches: Iterable[tuple[int, np.ndarray]],
    size: int,
    seed: int | None = None,
    area: tuple[float, float] = (0.08, 1.0),
    workers: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images (B, S, S, 3) of uint8 and labels (B,) of int32, for batches of (step, numbers (B,) of the images).

    With a seed, for training: a random part of each image, its share of the area within `area` and its aspect ratio
    between 3/4 and 4/3, half of them mirrored (Szegedy et al. 2015). What is drawn depends on seed, step and number
    alone: any number of workers gives the same, and so does a run that starts at a later step. Without a seed, for
    evaluation: the square in the middle of 7/8 of the short side. Number -1 gives a black image of label -1.
    """
    for images, labels in in_workers(partial(load_batch, packed, size, seed, area), batches, workers):
        yield images.numpy(), labels.numpy()


def in_order(n: int, batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (step, numbers (B,)) with each of 0, …, n - 1 once and in order; -1 fills up the last batch."""
    for step, start in enumerate(range(0, n, batch_size)):
        numbers = np.arange(start, start + batch_size)  # (B,)
        yield step, np.where(numbers < n, numbers, -1)


def load_batch(packed, size, seed, area, step_and_numbers):
    """Return the images (B, S, S, 3) and labels (B,) of one batch, as load() does."""
    step, numbers = step_and_numbers  # (), (B,)
    images = np.zeros((len(numbers), size, size, 3), np.uint8)  # (B, S, S, 3)
    labels = np.where(numbers < 0, -1, packed.labels[numbers])  # (B,)
    for row, i in enumerate(numbers):
        if i < 0:
            continue
        rng = None if seed is None else np.random.default_rng((seed, step, i))
        try:
            images[row] = decode(packed[i], size, rng, area)
        except OSError as error:
            file = packed.files[packed.shards[i]]
            raise DataError(f"cannot read image {i} of {file} ({error}): delete its folder to pack it anew") from None
    return images, labels


def decode(jpeg: bytes, size: int, rng=None, area: tuple[float, float] = (0.08, 1.0)) -> Image.Image:
    """Return a random part (S, S) of a JPEG, or without `rng` the middle, as load() describes them."""
    image = Image.open(io.BytesIO(jpeg), formats=["JPEG"])
    if rng is None:
        return crop(image, central_box(*image.size), size)
    image = crop(image, random_box(rng, *image.size, area), size)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def crop(image: Image.Image, box: tuple[int, int, int, int], size: int) -> Image.Image:
    """Return the part of an image in the box (left, top, width, height), resized to (S, S).

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which is faster, where the part then still has `size` pixels.
    """
    left, top, width, height = box
    before = image.size
    draft = image.draft("RGB", (math.ceil(before[0] * size / width), math.ceil(before[1] * size / height)))
    scale = draft[1][2] / before[0] if draft else 1.0
    corners = (left * scale, top * scale, (left + width) * scale, (top + height) * scale)
    return image.resize((size, size), Image.Resampling.BILINEAR, corners)


def random_box(rng, width: int, height: int, area: tuple[float, float]) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of a random part: its area is uniform, its aspect ratio log-uniform."""
    for _ in range(10):
        pixels = width * height * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    return (width - w) // 2, (height - h) // 2, w, h  # the largest that the aspect ratios allow, in the middle


def central_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of the square in the middle: 224 of the 256 pixels of the short side."""
    side = max(1, round(min(width, height) * 224 / 256))
    return round((width - side) / 2), round((height - side) / 2), side, side


def in_workers(f: Callable, arguments: Iterable, workers: int) -> Iterator:
    """Yield f(x) for every x, in order, computed by worker processes, or by this one where `workers` is 0.

    The workers are fresh processes that import torch and what f needs, but not the program's main file, and so no JAX.
    They end with this iterator, or with the program however that ends. Raises UserError where one of them is killed.
    """
    from torch.utils.data import DataLoader

    options = {"multiprocessing_context": "forkserver", "worker_init_fn": _begin_worker} if workers else {}
    loader = DataLoader(_Items(f), batch_size=None, sampler=arguments, num_workers=workers, **options)
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch.utils.data"])  # imported once for all
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")  # multiprocessing has every process import the main file
    try:
        results = iter(loader)
    finally:
        sys.modules["__main__"] = main
    while True:
        try:
            result = next(results)
        except StopIteration:
            return
        except (RuntimeError, EOFError, OSError) as error:  # the latter two where it dies while it hands over an array
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            want = "perhaps for want of memory, or of shared memory (docker run --shm-size 16g)"
            raise UserError(f"a worker process died ({error!r}), {want}: lower --workers") from None
        if isinstance(result, Exception):
            raise result
        yield result


class _Items:
    """A function as what torch calls a data set: item x is f(x), or the error that names what the user can mend."""

    def __init__(self, f):
        self.f = f

    def __getitem__(self, x):
        try:
            return self.f(x)
        except (UserError, OSError) as error:
            return error  # torch would put the worker's traceback into the message of one that is raised


def _begin_worker(number: int) -> None:
    """Leave Ctrl-C to the main process, and end with it: when it is killed, torch's own watch sees the fork server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = lambda *error: None  # that of a thread which was handing a batch over
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def _imagenette() -> Path:
    """Return the image folder of Imagenette, downloaded and unpacked if it is not there yet."""
    folder = data_dir() / "imagenet"
    root, temporary = folder / "imagenette2-160", folder / "imagenette2-160.tmp"
    if not root.is_dir():
        archive = fetch("imagenet", "imagenette2-160.tgz", IMAGENETTE_SHA256, IMAGENETTE_MIRRORS)
        try:
            with FileLock(folder / "imagenette2-160.lock"), tarfile.open(archive) as tar:
                if not root.is_dir():  # somebody else may have unpacked it while we waited
                    shutil.rmtree(temporary, ignore_errors=True)
                    tar.extractall(temporary, filter="data")
                    os.replace(temporary / root.name, root)
                    shutil.rmtree(temporary)
        except OSError as error:
            raise _cannot_write(folder, error) from None
    return root


def _hugging_face() -> tuple[list[str], dict]:
    """Return the classes of ImageNet, and by split a Dataset of its images, from Hugging Face or from its cache."""
    import datasets

    try:
        found = datasets.load_dataset(HUGGING_FACE, split=list(SPLITS.values()))
    except Exception as error:  # its libraries and the network have many kinds
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"--data {HUGGING_FACE}: Hugging Face does not give it ({why}); {TWO_WAYS}") from None
    files = [part.cast_column("image", datasets.Image(decode=False)) for part in found]
    return found[0].features["label"].names, dict(zip(SPLITS, files))


def _pack(folder: Path, classes: list[str], parts: dict, side: int, workers: int, skip: bool) -> None:
    """Pack every shard that is not there yet, then write set.json, which says that all are."""
    for path in folder.glob("*.tmp"):  # of a run that was killed
        path.unlink()
    shards = {}
    for split, part in parts.items():
        for k, start in enumerate(range(0, len(part), SHARD)):
            rows = range(start, min(start + SHARD, len(part)))
            shards[f"{split}-{k:05d}"] = part[rows.start : rows.stop] if isinstance(part, list) else part.select(rows)
    todo = {name: shard for name, shard in shards.items() if _index(folder, name, skip) is None}
    total, left = sum(map(len, shards.values())), sum(map(len, todo.values()))
    print(f"packing {left} of {total} images into {folder} ({workers} worker processes)", flush=True)
    with tqdm(total=total, initial=total - left, unit=" images", dynamic_ncols=True, disable=None) as bar:
        for count, unreadable in in_workers(partial(pack_shard, folder, side), todo.items(), workers):
            for name in unreadable:
                tqdm.write(f"cannot read {name}", file=sys.stderr)
            bar.update(count)
    counts = {split: sum(name.startswith(split) for name in shards) for split in parts}
    _write(folder / "set.json", json.dumps({"classes": classes, "shards": counts}).encode())


def _open(folder: Path, skip: bool) -> tuple[Packed, ...] | None:
    """Return the packed sets in a folder; None where a shard is not there yet, or is to be packed again."""
    try:
        description, sets = json.loads((folder / "set.json").read_text()), []
    except (FileNotFoundError, ValueError):
        return None
    for split, count in description["shards"].items():
        names = [f"{split}-{k:05d}" for k in range(count)]
        indices = [_index(folder, name, skip) for name in names]
        if None in indices:
            return None
        lengths = [np.array(index["lengths"], np.int64) for index in indices]
        offsets = [np.cumsum(part) - part for part in lengths]
        labels = [np.array(index["labels"], np.int32) for index in indices]
        shards = np.repeat(np.arange(count), [len(part) for part in lengths])  # (N,)
        arrays = (shards, *map(np.concatenate, (offsets, lengths, labels)))  # (N,) each
        unreadable = [name for index in indices for name in index["unreadable"]]
        sets.append(Packed(description["classes"], [folder / f"{name}.jpegs" for name in names], *arrays, unreadable))
    return tuple(sets)


def _index(folder: Path, name: str, skip: bool) -> dict | None:
    """Return the index of a shard; None where the shard is not whole, or, unless `skip`, where it left images out."""
    try:
        index = json.loads((folder / f"{name}.json").read_text())
        size = (folder / f"{name}.jpegs").stat().st_size
    except (FileNotFoundError, ValueError):
        return None
    whole = size == sum(index["lengths"])  # a loss of power may have cost it its end
    return index if whole and (skip or not index["unreadable"]) else None


def _write(path: Path, content: bytes) -> None:
    """Write a file that is never seen half-written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(folder: Path, error: OSError) -> DataError:
    why = error.strerror or error
    return DataError(f"cannot write to {folder} ({why}): make room, or set RAMPUP_DATA to another folder; run it again")
