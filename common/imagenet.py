"""ImageNet for exercise 15: photographs packed once into large files, then decoded by worker processes.

A packed set is a folder. For every shard of up to 1,024 images it has NAME.jpegs, the JPEG files end to end, and
NAME.json, their lengths and labels; set.json has the classes and the number of shards. Each .json begins with its
checksum, and is written again if it is damaged.
"""

import hashlib
import io
import json
import math
import multiprocessing.queues
import os
import shutil
import signal
import sys
import tarfile
import textwrap
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import UserError
from common.checkpoint import whole_file
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
FORMAT = 2  # version of a packed set; sets of another version are not used
QUALITY = 90  # of the JPEGs that are encoded again
TWO_WAYS = (
    "get ImageNet's archives from image-net.org and unpack them into a folder with train/CLASS/*.JPEG and "
    "val/CLASS/*.JPEG (extract_ILSVRC.sh of github.com/pytorch/examples does it), or accept the terms at "
    f"huggingface.co/datasets/{HUGGING_FACE}, set HF_TOKEN, and give --data {HUGGING_FACE}"
)


@dataclass
class Packed:
    """A packed set of N images in the order of their classes and names; packed[i] is the i-th as a JPEG's bytes."""

    classes: list[str]  # their names; a label is an index into this list
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
    call packs it into data_dir()/imagenet; if it is killed, the next one continues after the last whole shard. A shard
    is packed again when a file in it has another size or time than before. Images that cannot be read are named and
    counted. With on_error="skip" they are left out; with "stop" DataError is raised once the others are packed, and
    the next call tries them again. DataError is also raised if there is no such source, if a folder is not laid out as
    it should be, or if the disk is full.
    """
    classes, shards = [], {}
    if Path(source).as_posix() == HUGGING_FACE and not Path(source).is_dir():
        identity = [HUGGING_FACE]  # and no more: what was downloaded may be deleted when it is packed
    else:
        root = _imagenette() if source == IMAGENETTE and not Path(source).is_dir() else Path(source)
        classes, parts = read_folder(root.resolve())
        shards = _shards(parts)
        identity = [str(root.resolve()), *(image[0] for part in parts.values() for image in part)]
    digest = hashlib.sha256(os.fsencode("\n".join([*identity, f"{FORMAT} {side} {SHARD} {QUALITY}"]))).hexdigest()
    folder = data_dir() / "imagenet" / f"{Path(identity[0]).name}-{side}-{digest[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # of two runs, one packs and the other waits
            sets = _open(folder, shards, on_error == "skip")
            if sets is None:
                if not shards:
                    classes, parts = _hugging_face()
                    shards = _shards(parts)
                _pack(folder, classes, shards, side, workers, on_error == "skip")
                sets = _open(folder, shards, skip=True)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    unreadable, n = [name for packed in sets for name in packed.unreadable], sum(map(len, sets))
    if unreadable and (on_error == "stop" or not all(map(len, sets))):
        count = f"{len(unreadable)} of the {n + len(unreadable)} images cannot be read, the first is {unreadable[0]}"
        raise DataError(f"{count}: repair them, or skip them with --on-error skip")
    return sets


def read_folder(root: Path) -> tuple[list[str], dict[str, list[tuple[str, int, int, int]]]]:
    """Return the classes of an image folder, and by split its images in alphabetical order.

    An image is (path, label, size in bytes, time of its last change in ns). What is hidden, not a file or has
    another extension is skipped, and counted in one line on the screen. Raises DataError if the folder is not
    train/CLASS/*.JPEG and val/CLASS/*.JPEG with the same classes in both.
    """
    classes, parts, others = {}, {split: [] for split in SPLITS}, Counter()
    try:
        for split in SPLITS:
            if not (root / split).is_dir():
                raise DataError(f"--data: there is no folder {root / split if root.is_dir() else root}; {TWO_WAYS}")
            classes[split] = [entry.name for entry in _entries(root / split, ("folders",), others)]
            if not classes[split]:
                raise DataError(f"{root / split} has no class folders: put its images into one folder per class")
        if odd := sorted(set(classes["train"]) ^ set(classes["val"])):
            there = "train" if odd[0] in classes["train"] else "val"
            count = f" ({len(odd)} classes are in one of them only)" if len(odd) > 1 else ""
            raise DataError(f"train and val in {root} must have the same classes: {odd[0]} is in {there} only{count}")
        for split in SPLITS:
            for label, name in enumerate(classes[split]):
                files = [(f.path, label, f.stat()) for f in _entries(root / split / name, SUFFIXES, others)]
                if not files:
                    raise DataError(f"{root / split / name} holds no images ({' '.join(SUFFIXES)}): fill or delete it")
                parts[split] += [(path, label, stat.st_size, stat.st_mtime_ns) for path, label, stat in files]
    except OSError as error:
        raise DataError(f"cannot read {error.filename} ({error.strerror}): make it readable") from None
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
        print(f"skipped {others.total()} entries of {root} that are not images: {kinds}", flush=True)
    return classes["train"], parts


def _entries(folder: Path, kinds: tuple[str, ...], others: Counter) -> list[os.DirEntry]:
    """Return the entries of a folder that are of these kinds, by name; the others are counted.

    A kind is "folders", a file's extension, "hidden", or "no files" (pipes, links to nothing).
    """
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        suffix = os.path.splitext(entry.name)[1].lower()
        kind = "folders" if entry.is_dir() else suffix if entry.is_file() else "no files"
        kind = "hidden" if entry.name.startswith(".") else kind
        if kind in kinds:
            found.append(entry)
        else:
            others[kind if kind.strip(".").replace(" ", "").isalnum() and len(kind) < 10 else "others"] += 1
    return found


def to_jpeg(content: bytes, side: int) -> bytes:
    """Return an image file as an RGB JPEG with a short side of at most `side` pixels; unchanged if it already is one.

    Raises what Pillow raises if it cannot read the file to its end. EXIF's rotation is ignored, as elsewhere.
    """
    image = Image.open(io.BytesIO(content))
    width, height = image.size
    scale = min(1.0, side / min(width, height))
    if scale == 1 and image.format == "JPEG" and image.mode == "RGB" and "progressive" not in image.info:
        image.load()  # to its end
        return content
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    if image.mode.startswith("I"):  # grey of 16 bits, which convert() would cut off at 255
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    image.draft("RGB", (2 * size[0], 2 * size[1]))  # a JPEG need not be decoded at more than this
    file = io.BytesIO()
    resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    resized.save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return file.getvalue()


def pack_shard(folder: Path, side: int, name_and_examples: tuple[str, Iterable]) -> tuple[int, list[str]]:
    """Write one shard and its index; return the number of its examples, and which ones cannot be read and why.

    An example is (path, label, …), or Hugging Face's {"image": {"path", "bytes"}, "label"}. Both files are written
    whole or not at all, and the index comes last. Raises OSError if the disk is full.
    """
    name, examples = name_and_examples
    (folder / f"{name}.json").unlink(missing_ok=True)  # that of earlier files
    jpegs, labels, unreadable = [], [], []
    for example in examples:
        if isinstance(example, tuple):
            content, path, label = None, *example[:2]
        else:
            content, path, label = example["image"]["bytes"], example["image"]["path"], example["label"]
        try:
            jpegs.append(to_jpeg(Path(path).read_bytes() if content is None else content, side))
            labels.append(label)
        except Exception as error:  # Pillow meets damaged files with many kinds
            unreadable.append(f"{path} ({error})")
    with whole_file(folder / f"{name}.jpegs") as file:
        file.writelines(jpegs)
    index = {"key": _key(examples), "lengths": [len(jpeg) for jpeg in jpegs], "labels": labels}
    _write(folder / f"{name}.json", index | {"unreadable": unreadable})
    return len(examples), unreadable


def load(
    packed: Packed,
    batches: Iterable[tuple[int, np.ndarray]],
    size: int,
    seed: int | None = None,
    area: tuple[float, float] = (0.08, 1.0),
    workers: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images (B, S, S, 3) of uint8 and labels (B,) of int32, for batches of (step, indices (B,) of the images).

    With a seed, for training: random resized crops (Szegedy et al. 2015) with a share of the area within `area` and an
    aspect ratio between 3/4 and 4/3, half of them flipped horizontally. They depend on seed, step and index alone: any
    number of workers gives the same, and so does a run that starts at a later step. Without a seed, for evaluation:
    centre crops of 7/8 of the short side. Index -1 gives a black image with label -1.
    """
    for images, labels in in_workers(partial(load_batch, packed, size, seed, area), batches, workers):
        yield np.asarray(images), np.asarray(labels)  # torch's tensors, where they come from workers


def in_order(n: int, batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (step, indices (B,)) with each of 0, …, n - 1 once and in order; -1 fills up the last batch."""
    for step, start in enumerate(range(0, n, batch_size)):
        indices = np.arange(start, start + batch_size)  # (B,)
        yield step, np.where(indices < n, indices, -1)


def load_batch(packed, size, seed, area, step_and_indices):
    """Return the images (B, S, S, 3) and labels (B,) of one batch, as load() does."""
    step, indices = step_and_indices  # (), (B,)
    images = np.zeros((len(indices), size, size, 3), np.uint8)  # (B, S, S, 3)
    labels = np.where(indices < 0, -1, packed.labels[indices])  # (B,)
    for row, i in enumerate(indices):
        if i < 0:
            continue
        rng = None if seed is None else np.random.default_rng((seed, step, i))
        try:
            images[row] = decode(packed[i], size, rng, area)
        except OSError as error:
            file = packed.files[packed.shards[i]]
            raise DataError(f"cannot read image {i} of {file} ({error}): delete its folder to pack it again") from None
    return images, labels


def decode(jpeg: bytes, size: int, rng=None, area: tuple[float, float] = (0.08, 1.0)) -> Image.Image:
    """Return a random resized crop (S, S) of a JPEG, or without `rng` its centre crop, as load() describes them."""
    image = Image.open(io.BytesIO(jpeg), formats=["JPEG"])
    if rng is None:
        return crop(image, central_box(*image.size), size)
    image = crop(image, random_box(rng, *image.size, area), size)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def crop(image: Image.Image, box: tuple[int, int, int, int], size: int) -> Image.Image:
    """Return the part of an image in the box (left, top, width, height), resized to (S, S).

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which is faster, if the part then still has `size` pixels.
    """
    left, top, width, height = box
    before = image.size
    draft = image.draft("RGB", (math.ceil(before[0] * size / width), math.ceil(before[1] * size / height)))
    scale = draft[1][2] / before[0] if draft else 1.0
    corners = (left * scale, top * scale, (left + width) * scale, (top + height) * scale)
    return image.resize((size, size), Image.Resampling.BILINEAR, corners)


def random_box(rng, width: int, height: int, area: tuple[float, float]) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of a random crop: its area is uniform, its aspect ratio log-uniform."""
    for _ in range(10):
        pixels = width * height * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    return (width - w) // 2, (height - h) // 2, w, h  # the largest that the aspect ratios allow, in the middle


def central_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of the centre crop, a square: 224 of the 256 pixels of the short side."""
    side = max(1, round(min(width, height) * 224 / 256))
    return round((width - side) / 2), round((height - side) / 2), side, side


def in_workers(f: Callable, arguments: Iterable, workers: int) -> Iterator:
    """Yield f(x) for every x, in order, computed by worker processes, or by this one where `workers` is 0.

    The workers are fresh processes that import torch and what f needs, but not the program's main file, and so no JAX.
    They end with this iterator, or with the program however that ends. Raises UserError if one of them is killed, if
    they cannot be started, or if one cannot send what it computed.
    """
    if not workers:
        yield from map(f, arguments)
        return
    from torch.utils.data import DataLoader

    try:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.utils.data"])  # imported once for all
    except ValueError:  # Windows has none
        context = multiprocessing.get_context("spawn")
    options = {"multiprocessing_context": context, "worker_init_fn": _begin_worker}
    loader = DataLoader(_Items(f), batch_size=None, sampler=arguments, num_workers=workers, **options)
    for result in _results(loader):
        if isinstance(result, Exception):
            raise result
        yield result


def _results(loader) -> Iterator:
    """Yield what the workers of torch's loader return; raises UserError if they, or their queues, fail."""
    main, context = sys.modules["__main__"], loader.multiprocessing_context
    try:
        # What torch is about to make: where there is no room for it, torch would print a traceback of its own.
        [context.Event(), *(context.Queue() for _ in range(loader.num_workers + 1))]
        sys.modules["__main__"] = types.ModuleType("__main__")  # multiprocessing has every process import the main file
        try:
            results = iter(loader)
        finally:
            sys.modules["__main__"] = main
        yield from results
    except (RuntimeError, EOFError, OSError) as error:
        if str(error).startswith("Caught "):  # by torch, in the function that they compute
            raise
        raise _failed(error) from None


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
    sys.excepthook = threading.excepthook = lambda *error: None  # of a thread, too, which was sending a batch
    multiprocessing.queues.Queue._on_queue_feeder_error = _hand_over_error
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def _hand_over_error(queue, error: Exception, item) -> None:
    """Send the error in place of an item that could not be sent: else the main process would wait for ever."""
    if isinstance(item, tuple):  # (number, result); it is bytes when the other end is gone
        queue.put((item[0], _failed(error)))


def _failed(error: Exception) -> UserError:
    why = textwrap.shorten(repr(error), 150)
    want = "perhaps for lack of memory or shared memory (docker run --shm-size 16g), or by a limit (ulimit -a)"
    return UserError(f"a worker process failed ({why}), {want}: lower --workers; with 0 there are none")


def _imagenette() -> Path:
    """Return the image folder of Imagenette, downloaded and unpacked if it is not there yet."""
    folder = data_dir() / "imagenet"
    root, temporary = folder / "imagenette2-160", folder / "imagenette2-160.tmp"
    if not root.is_dir():
        archive = fetch("imagenet", "imagenette2-160.tgz", IMAGENETTE_SHA256, IMAGENETTE_MIRRORS, 99_003_388)
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
        raise DataError(f"--data {HUGGING_FACE}: Hugging Face could not provide it ({why}); {TWO_WAYS}") from None
    files = [part.cast_column("image", datasets.Image(decode=False)) for part in found]
    return found[0].features["label"].names, dict(zip(SPLITS, files))


def _shards(parts: dict) -> dict[str, Iterable]:
    """Return the examples of every shard, by its name; a part is a list, or a Dataset."""
    shards = {}
    for split, part in parts.items():
        for k, start in enumerate(range(0, len(part), SHARD)):
            rows = range(start, min(start + SHARD, len(part)))
            shards[f"{split}-{k:05d}"] = part[rows.start : rows.stop] if isinstance(part, list) else part.select(rows)
    return shards


def _key(examples) -> str:
    """Return a key that changes when the files do; nothing for those of Hugging Face, which do not change."""
    return hashlib.sha256(repr(examples).encode()).hexdigest() if isinstance(examples, list) else ""


def _pack(folder: Path, classes: list[str], shards: dict, side: int, workers: int, skip: bool) -> None:
    """Pack every shard that is not there yet, then write set.json, which says that all are."""
    for path in folder.glob("*.tmp"):  # of a run that was killed
        path.unlink()
    todo = {name: shard for name, shard in shards.items() if _index(folder, name, shard, skip) is None}
    total, left = sum(map(len, shards.values())), sum(map(len, todo.values()))
    print(f"packing {left} of {total} images into {folder} ({workers} worker processes)", flush=True)
    with tqdm(total=total, initial=total - left, unit=" images", dynamic_ncols=True, disable=None) as bar:
        for count, unreadable in in_workers(partial(pack_shard, folder, side), todo.items(), workers):
            for name in unreadable:
                tqdm.write(f"cannot read {name}", file=sys.stderr)
            bar.update(count)
    counts = {split: sum(name.startswith(split) for name in shards) for split in SPLITS}
    _write(folder / "set.json", {"classes": classes, "shards": counts})


def _open(folder: Path, shards: dict, skip: bool) -> tuple[Packed, ...] | None:
    """Return the packed sets in a folder; None if a shard is not there yet, or must be packed again."""
    description, sets = _read(folder / "set.json"), []
    if description is None:
        return None
    for split, count in description["shards"].items():
        names = [f"{split}-{k:05d}" for k in range(count)]
        indices = [_index(folder, name, shards.get(name), skip) for name in names]
        if None in indices:
            return None
        lengths = [np.array(index["lengths"], np.int64) for index in indices]
        offsets = [np.cumsum(part) - part for part in lengths]
        labels = [np.array(index["labels"], np.int32) for index in indices]
        numbers = np.repeat(np.arange(count), [len(part) for part in lengths])  # (N,)
        arrays = (numbers, *map(np.concatenate, (offsets, lengths, labels)))  # (N,) each
        unreadable = [name for index in indices for name in index["unreadable"]]
        sets.append(Packed(description["classes"], [folder / f"{name}.jpegs" for name in names], *arrays, unreadable))
    return tuple(sets)


def _index(folder: Path, name: str, examples, skip: bool) -> dict | None:
    """Return the index of a shard of these examples; None if it is not whole, or, unless `skip`, lacks images."""
    index, jpegs = _read(folder / f"{name}.json"), folder / f"{name}.jpegs"
    if index is None or index["key"] != _key(examples) or (index["unreadable"] and not skip):
        return None
    return index if jpegs.exists() and jpegs.stat().st_size == sum(index["lengths"]) else None


def _sealed(content: bytes) -> bytes:
    """Return a JSON object's bytes with their checksum as its first entry, on a line of its own."""
    return b'{"sha256": "%s",\n%s' % (hashlib.sha256(content).hexdigest().encode(), content[1:])


def _write(path: Path, content: dict) -> None:
    """Write a JSON file that is whole or not there."""
    with whole_file(path) as file:
        file.write(_sealed(json.dumps(content).encode()))


def _read(path: Path) -> dict | None:
    """Return what was written to a JSON file; None if there is none, or if it is damaged, and then delete it."""
    if not path.exists():
        return None
    sealed = path.read_bytes()
    content = b"{" + sealed.partition(b"\n")[2]
    if sealed == _sealed(content):
        return json.loads(content)
    print(f"{path} is damaged: it is made again", flush=True)
    path.unlink()
    return None


def _cannot_write(folder: Path, error: OSError) -> DataError:
    why = error.strerror or error
    return DataError(f"cannot write to {folder} ({why}): free some space, or set RAMPUP_DATA to another folder")
