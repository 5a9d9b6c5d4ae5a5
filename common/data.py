"""Real data: look in data/, verify, and only then download; read it with every assumption checked."""

import gzip
import hashlib
import math
import os
import re
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pooch
from filelock import FileLock

from common import UserError
from common.curriculum import ROOT

MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
SHAKESPEARE_MIRRORS = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
    "https://cdn.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/",
)
SHAKESPEARE_SHA256 = {"input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"}
MAX_RANK = 4  # dimensions of an IDX file; MNIST's images have 3
TIMEOUT = 30.0  # seconds without an answer after which a mirror is given up


class DataError(UserError):
    """A data file that is missing, damaged or not what its name says."""


def data_dir() -> Path:
    """Return the folder of all data: $RAMPUP_DATA, or data/ in the checkout."""
    return Path(os.environ.get("RAMPUP_DATA") or ROOT / "data")


def mnist(dry_run: bool = False) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return MNIST's training and test set, each as images (N, 28, 28) and labels (N,), uint8.

    LeCun, Cortes, Burges, "The MNIST database of handwritten digits": 60,000 and 10,000 images. With `dry_run`, random
    images of the same shape instead, 1,000 and 200, and nothing is read. Raises DataError where a file cannot be had,
    is damaged, or does not fit the others.
    """
    if dry_run:
        rng = np.random.default_rng(0)
        images, labels = rng.integers(0, 256, (1200, 28, 28), np.uint8), rng.integers(0, 10, 1200, np.uint8)
        return (images[:1000], labels[:1000]), (images[1000:], labels[1000:])
    sets = []
    for part in ("train", "t10k"):
        names = [f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"]
        paths = [fetch("mnist", name, MNIST_SHA256[name], MNIST_MIRRORS) for name in names]
        sets.append(read_images_and_labels(*paths))
    return tuple(sets)


def shakespeare(dry_run: bool = False) -> str:
    """Return Tiny Shakespeare, 1,115,394 characters of his plays (karpathy/char-rnn).

    With `dry_run`, a few made-up lines instead. Raises DataError where the file cannot be had or is damaged.
    """
    if dry_run:
        return "First Citizen:\nWe dry the run, and run it dry; speak, speak.\n\nROMEO:\nSpeak, speak!\n\n" * 250
    path = fetch("shakespeare", "input.txt", SHAKESPEARE_SHA256["input.txt"], SHAKESPEARE_MIRRORS)
    return path.read_text(encoding="utf-8")


def text(path: Path) -> str:
    """Return the text of a user's own file; raises DataError where it cannot be read, is not UTF-8, or is empty."""
    try:
        content = path.read_text(encoding="utf-8-sig")  # without the mark that some editors put in front
    except OSError as error:
        raise DataError(f"cannot read the text {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    if not content.strip():
        raise DataError(f"the text {path} is empty")
    return content


def split_words(content: str) -> list[str]:
    """Return the words of a text in order: runs of letters and apostrophes, single other characters, ends of lines."""
    return re.findall(r"[A-Za-z']+|[^\sA-Za-z']|\n", content)


def join_words(words: list[str]) -> str:
    """Return words as a text that reads as English: no space before a comma, at a hyphen or at the ends of a line."""
    content = re.sub(r" ([.,:;?!)\]])", r"\1", " ".join(words))
    content = re.sub(r"([(\[]) ", r"\1", content)
    return re.sub(r" ?([-\n]) ?", r"\1", content)


def fetch(folder: str, name: str, sha256: str, mirrors: tuple[str, ...]) -> Path:
    """Return the path of a verified data file, downloaded into data_dir()/folder if it is not there yet.

    `mirrors` are base addresses, tried in turn. The download goes to a temporary file that takes its place when the
    sha256 is right, so a file under this name is always whole; of two processes that ask at once, one downloads and
    the other waits. Raises DataError, which names everything needed to get the file by hand.
    """
    path = data_dir() / folder / name
    try:
        if _sha256(path) == sha256:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(name + ".lock")):
            found = _sha256(path)  # somebody else may have brought it while we waited
            if found == sha256:
                return path
            problems = []
            pooch.get_logger().setLevel("INFO" if sys.stderr.isatty() else "WARNING")
            for mirror in mirrors:
                downloader = pooch.HTTPDownloader(timeout=TIMEOUT, progressbar=sys.stderr.isatty())
                try:
                    # pooch calls an old file of another content "outdated" and replaces it, again only when verified
                    pooch.retrieve(mirror + name, f"sha256:{sha256}", name, path.parent, downloader=downloader)
                    return path
                except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError: wrong checksum
                    problems.append(f"{mirror + name} ({_why(error)})")
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot use {path} ({reason}): mend that, or set RAMPUP_DATA to another folder") from None
    state = "is missing" if found is None else f"is damaged (its sha256 is {found})"
    raise DataError(
        f"{path} {state} and could not be downloaded from {' or '.join(problems)}: "
        f"put the file with sha256 {sha256} there, or set RAMPUP_DATA to a folder that has {folder}/{name}"
    )


def read_images_and_labels(image_path: Path, label_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, H, W) and labels (N,), uint8, of two gzipped IDX files; DataError where they do not fit."""
    images, labels = (read_idx(path) for path in (image_path, label_path))
    if images.ndim != 3:
        raise DataError(f"{image_path} holds an array of shape {images.shape}, not images (N, H, W)")
    if labels.ndim != 1:
        raise DataError(f"{label_path} holds an array of shape {labels.shape}, not labels (N,)")
    if len(images) != len(labels):
        raise DataError(f"{image_path} holds {len(images)} images, but {label_path} holds {len(labels)} labels")
    return images, labels


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of a gzipped IDX file; raises DataError where it cannot be read or is not such a file."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a gzip file ({error}): delete it and fetch it again") from None
    return parse_idx(content, str(path))


def parse_idx(content: bytes, name: str = "the file") -> np.ndarray:
    """Return the uint8 array of an IDX file's bytes; raises DataError, naming `name`, where anything is not as it says.

    The format (yann.lecun.com/exdb/mnist): two zero bytes, the element type (8: unsigned byte, the only one that MNIST
    has), the number of dimensions, each dimension as a big-endian 32-bit integer, then the elements, last axis fastest.
    """
    if content[:3] != b"\0\0\x08":
        raise DataError(f"{name} is not an IDX file of bytes: it begins with {content[:3]!r}, not with 00 00 08")
    rank = content[3] if len(content) > 3 else 0
    if not 1 <= rank <= MAX_RANK:
        raise DataError(f"{name} says that it has {rank} dimensions, not 1 to {MAX_RANK}")
    start = 4 + 4 * rank
    if len(content) < start:
        raise DataError(f"{name} ends in the middle of its header: it has {len(content)} bytes, not {start}")
    shape = struct.unpack(f">{rank}I", content[4:start])
    size = math.prod(shape)  # in Python's integers, which no header can overflow
    if size == 0:
        raise DataError(f"{name} holds an empty array: its header says {shape}")
    if len(content) - start != size:
        raise DataError(f"{name} holds {len(content) - start} elements, but its header says {shape}, which are {size}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


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
    if type(error) is ValueError:  # pooch's, and no more special one of requests
        return "wrong sha256"
    return getattr(error, "strerror", None) or type(error).__name__
