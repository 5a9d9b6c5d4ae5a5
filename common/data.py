"""Real data: look in data/, verify, and only then download."""

import gzip
import hashlib
import os
import struct
import threading
import zlib
from concurrent.futures import Future, wait
from pathlib import Path
from typing import BinaryIO

from common import UserError
from common.checkpoint import whole_file
from common.curriculum import ROOT

import numpy as np
from filelock import FileLock
from tqdm import tqdm

MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
MNIST = {  # sha256 and size in bytes of each file
    "train-images-idx3-ubyte.gz": ("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9_912_422),
    "train-labels-idx1-ubyte.gz": ("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28_881),
    "t10k-images-idx3-ubyte.gz": ("8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1_648_877),
    "t10k-labels-idx1-ubyte.gz": ("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4_542),
}
MNIST_CONTENTS = {  # sha256 of their decompressed contents
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
SHAKESPEARE_MIRRORS = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
    "https://cdn.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/",
)
SHAKESPEARE = ("86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", 1_115_394)  # sha256, bytes
UCI_DIGITS_MIRRORS = (
    "https://raw.githubusercontent.com/scikit-learn/scikit-learn/1.5.0/sklearn/datasets/data/",
    "https://cdn.jsdelivr.net/gh/scikit-learn/scikit-learn@1.5.0/sklearn/datasets/data/",
)
UCI_DIGITS = ("09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22", 57_523)  # sha256, bytes
TIMEOUT, LEAST = 30.0, 10_000  # give up a mirror that sends fewer than LEAST bytes in TIMEOUT seconds
LARGEST = 2 * 2**30  # most bytes to download where the size of the file is not known


class DataError(UserError):
    """A data file that is missing, damaged or not what its name says."""


def data_dir() -> Path:
    """Return the folder of all data: $RAMPUP_DATA, or data/ in the checkout."""
    return Path(os.environ.get("RAMPUP_DATA") or ROOT / "data")


def mnist(dry_run: bool = False) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return MNIST's training and test set, each as images (N, 28, 28) and labels (N,), uint8.

    LeCun, Cortes, Burges, "The MNIST database of handwritten digits": 60,000 and 10,000 images. With `dry_run`, random
    images of the same shape instead, 1,000 and 200, and nothing is read. Raises DataError if a file is missing or
    damaged and cannot be downloaded.
    """
    if dry_run:
        rng = np.random.default_rng(0)
        images, labels = rng.integers(0, 256, (1200, 28, 28), np.uint8), rng.integers(0, 10, 1200, np.uint8)
        return (images[:1000], labels[:1000]), (images[1000:], labels[1000:])
    train_images, train_labels, test_images, test_labels = (_read_idx(name) for name in MNIST)
    return (train_images, train_labels), (test_images, test_labels)


def _read_idx(name: str) -> np.ndarray:
    """Return the array of one of MNIST's files, which may have been compressed again if its contents are the same.

    The format (yann.lecun.com/exdb/mnist): three bytes for the type, the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the elements, last axis fastest.
    """
    try:
        with gzip.open(data_dir() / "mnist" / name) as file:
            content = file.read(50_000_000)  # more than any of them holds
    except (OSError, EOFError, zlib.error):  # it is not there, or damaged
        content = b""
    if hashlib.sha256(content).hexdigest() != MNIST_CONTENTS[name]:
        sha256, size = MNIST[name]
        content = gzip.decompress(fetch("mnist", name, sha256, MNIST_MIRRORS, size).read_bytes())
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()


def shakespeare(dry_run: bool = False) -> str:
    """Return Tiny Shakespeare, 1,115,394 characters of his plays (karpathy/char-rnn).

    With `dry_run`, a few made-up lines instead. Raises DataError if the file is damaged or cannot be downloaded.
    """
    if dry_run:
        return "First Citizen:\nWe dry the run, and run it dry; speak, speak.\n\nROMEO:\nSpeak, speak!\n\n" * 250
    sha256, size = SHAKESPEARE
    return fetch("shakespeare", "input.txt", sha256, SHAKESPEARE_MIRRORS, size).read_text(encoding="utf-8")


def uci_digits(dry_run: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return 1,797 digits of 13 people, who wrote none of MNIST's: images (N, 8, 8) of 0 to 16, labels (N,), uint8.

    Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits" (UCI, CC BY 4.0), the test part, scikit-learn's copy.
    With `dry_run`, 100 random images instead. Raises DataError if the file is damaged or cannot be downloaded.
    """
    if dry_run:
        rng = np.random.default_rng(0)
        return rng.integers(0, 17, (100, 8, 8), np.uint8), rng.integers(0, 10, 100, np.uint8)
    sha256, size = UCI_DIGITS
    with gzip.open(fetch("uci_digits", "digits.csv.gz", sha256, UCI_DIGITS_MIRRORS, size)) as file:
        rows = np.loadtxt(file, delimiter=",").astype(np.uint8)  # (N, 65)
    return rows[:, :64].reshape(-1, 8, 8), rows[:, 64]


def fetch(folder: str, name: str, sha256: str, mirrors: tuple[str, ...], size: int | None = None) -> Path:
    """Return the path of a verified data file, downloaded into data_dir()/folder if it is not there yet.

    `mirrors` are base addresses, tried in turn; one that sends more than `size` bytes is cut off there, and one that is
    too slow is given up. The file gets its name when it is complete and its sha256 is right; if two processes ask at
    once, one downloads and the other waits. Raises DataError, which names everything needed to get it by hand.
    """
    path = data_dir() / folder / name
    try:
        if _sha256(path) == sha256:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(name + ".lock")):
            found = _sha256(path)
            if found == sha256:  # somebody else has brought it while we waited
                return path
            problems = []
            for mirror in mirrors:
                try:
                    with whole_file(path) as file:
                        _download(mirror + name, file, sha256, size)
                    return path
                except (OSError, ValueError) as error:  # requests' errors are OSErrors
                    problems.append(f"{mirror + name} ({_why(error)})")
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot use {path} ({reason}): fix that, or set RAMPUP_DATA to another folder") from None
    state = "is missing" if found is None else f"is damaged, or is another file (its sha256 is {found}),"
    raise DataError(
        f"{path} {state} and could not be downloaded from {' or '.join(problems)}: "
        f"put the file with sha256 {sha256} there, or set RAMPUP_DATA to a folder that has {folder}/{name}"
    )


def _download(url: str, file: BinaryIO, sha256: str, size: int | None) -> None:
    """Download a URL into a file; ValueError if it is too large or has another sha256.

    Raises TimeoutError if it is too slow, and requests' own errors, which are OSErrors. A thread does the download,
    because a socket's own timeout starts again with every byte; if it hangs, it is left behind until the file closes.
    """
    with tqdm(desc=url, total=size, unit="B", unit_scale=True, disable=None) as bar:
        found = Future()
        threading.Thread(target=_receive, args=(url, file, size, bar, found), daemon=True).start()
        while not found.done():
            before = file.tell()
            wait([found], TIMEOUT)
            if not found.done() and file.tell() < before + LEAST:
                raise TimeoutError
    if found.result() != sha256:
        raise ValueError("wrong sha256")


def _receive(url: str, file: BinaryIO, size: int | None, bar: tqdm, found: Future) -> None:
    """Download a URL into a file, and put its sha256, or the error, into `found`."""
    import requests

    try:
        digest = hashlib.sha256()
        with requests.get(url, stream=True, timeout=TIMEOUT) as response:
            response.raise_for_status()
            for chunk in response.iter_content(4096):
                digest.update(chunk)
                bar.update(file.write(chunk))
                if file.tell() > (size or LARGEST):
                    raise ValueError(f"it sends more than {size or LARGEST:,} bytes")
        found.set_result(digest.hexdigest())
    except Exception as error:
        found.set_exception(error)


def _sha256(path: Path) -> str | None:
    """Return the sha256 of a file, in hexadecimal digits; None where there is none."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _why(error: Exception) -> str:
    """Return in a few words why a download failed."""
    if getattr(error, "response", None) is not None:
        return f"HTTP {error.response.status_code}"
    if type(error) is ValueError:  # our own, not a subclass of it from requests
        return str(error)
    if "Timeout" in type(error).__name__:
        return f"fewer than {LEAST:,} bytes in {TIMEOUT:g} s"
    return getattr(error, "strerror", None) or type(error).__name__
