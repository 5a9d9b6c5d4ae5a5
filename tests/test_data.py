"""common/data.py: fetching from mirrors that misbehave, and reading files that are not what they say."""

import contextlib
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from common import data, text
from common.data import DataError

import numpy as np
import pytest
from helpers import one_sentence, run

CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """Return the address of a local server, the first part of whose paths says how it misbehaves, and its requests."""
    requests, stop = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            manner = self.path.split("/")[1]
            with contextlib.suppress(OSError):  # the client hangs up
                getattr(self, manner, self.whole)()

        def head(self, **headers):
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()

        def whole(self, body=CONTENT, length=None):
            self.head(Content_Length=len(CONTENT) if length is None else length)
            self.wfile.write(body)

        def busy(self):
            self.send_error(503)

        def slow(self):
            time.sleep(1.0)
            self.whole()

        def stuck(self):
            stop.wait(30)

        def wrong(self):
            self.whole(b"an error page", 13)

        def short(self):
            self.whole(CONTENT[: len(CONTENT) // 2])

        def more(self):
            self.whole(CONTENT + b"more", len(CONTENT) + 4)

        def endless(self):
            self.head()
            while not stop.is_set():
                self.wfile.write(CONTENT)

        def chunked(self):
            self.head(Transfer_Encoding="chunked")
            while not stop.is_set():
                self.wfile.write(b"%x\r\n%s\r\n" % (len(CONTENT), CONTENT))

        def bomb(self):
            packed = gzip.compress(bytes(20_000_000))
            self.head(Content_Encoding="gzip", Content_Length=len(packed))
            self.wfile.write(packed)

        def packed(self):
            packed = gzip.compress(CONTENT)
            self.head(Content_Encoding="gzip", Content_Length=len(packed))
            self.wfile.write(packed)

        def drip(self, begin=b"HTTP/1.0 200 OK\r\n\r\n"):
            self.wfile.write(begin)
            while not stop.wait(0.05):
                self.wfile.write(b"a")
                self.wfile.flush()

        def dripping_head(self):
            self.drip(b"HTTP/1.0 200 OK\r\nServer: ")

        def dripping_chunk_size(self):
            self.drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

        def to_itself(self):
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("RAMPUP_DATA", str(tmp_path / "data"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    yield f"http://127.0.0.1:{server.server_port}/", requests
    stop.set()
    server.shutdown()
    server.server_close()


def files_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_fetch_downloads_once(mirror, tmp_path):
    address, requests = mirror
    for _ in range(2):
        path = data.fetch("set", "file.bin", SHA256, (address + "good/",))
        assert path == tmp_path / "data" / "set" / "file.bin"
        assert path.read_bytes() == CONTENT
    assert requests == ["/good/file.bin"]
    assert files_in(path.parent) == ["file.bin"]


BAD = ("busy", "wrong", "short", "more", "endless", "chunked", "bomb", "to_itself")
SLOW = ("stuck", "drip", "dripping_head", "dripping_chunk_size")


@pytest.mark.parametrize("manner", BAD + SLOW)
def test_second_mirror_helps_out(manner, mirror, monkeypatch):
    address, requests = mirror
    monkeypatch.setattr(data, "TIMEOUT", 1.0 if manner in SLOW else 20.0)
    start = time.monotonic()
    path = data.fetch("set", "file.bin", SHA256, (address + manner + "/", address + "good/"), len(CONTENT))
    assert time.monotonic() - start < 10
    assert path.read_bytes() == CONTENT
    assert requests[0] == f"/{manner}/file.bin"
    assert "/good/file.bin" in requests
    assert files_in(path.parent) == ["file.bin"]


def test_mirror_may_pack_what_it_sends(mirror):
    assert data.fetch("set", "file.bin", SHA256, (mirror[0] + "packed/",), len(CONTENT)).read_bytes() == CONTENT


def test_mirror_is_cut_off_at_the_size(mirror, monkeypatch):
    """Not at the end, for it may have none: no more than the size, the known or the largest, and a bit is written."""
    address, _ = mirror
    monkeypatch.setattr(data, "LARGEST", 3 * len(CONTENT))
    written = []

    class File(io.BytesIO):
        def write(self, chunk):
            written.append(len(chunk))
            return super().write(chunk)

    for size, most in ((len(CONTENT), len(CONTENT)), (None, data.LARGEST)):
        for manner in ("endless", "chunked", "bomb"):
            written.clear()
            with pytest.raises(ValueError, match=f"^it sends more than {most:,} bytes$"):
                data._download(f"{address}{manner}/file.bin", File(), SHA256, size)
            assert most < sum(written) <= most + data.LEAST


def test_interrupted_download_leaves_nothing(mirror, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "_why", interrupt)  # when the mirror has sent half
    with pytest.raises(KeyboardInterrupt):
        data.fetch("set", "file.bin", SHA256, (mirror[0] + "short/",))
    assert files_in(tmp_path / "data" / "set") == []


def test_killed_download_leaves_nothing_behind_the_next(mirror, tmp_path):
    address, requests = mirror
    code = f"from common import data; data.fetch('set', 'file.bin', {SHA256!r}, ({address + 'drip/'!r},))"
    process = subprocess.Popen([sys.executable, "-c", code])
    while not requests:
        time.sleep(0.05)
    process.kill()
    process.wait()
    path = data.fetch("set", "file.bin", SHA256, (address + "good/",))
    assert files_in(path.parent) == ["file.bin"]


@pytest.mark.parametrize(
    ("manner", "why"),
    [
        ("busy", "(HTTP 503)"),
        ("wrong", "(wrong sha256)"),
        ("short", "("),
        ("more", "(it sends more than 102,400 bytes)"),
        ("drip", "(fewer than 10,000 bytes in 0.5 s)"),
        ("stuck", "(fewer than 10,000 bytes in 0.5 s)"),
    ],
)
def test_no_mirror_helps(manner, why, mirror, tmp_path, monkeypatch):
    address, _ = mirror
    monkeypatch.setattr(data, "TIMEOUT", 0.5)
    with pytest.raises(DataError) as error:
        data.fetch("set", "file.bin", SHA256, (address + manner + "/", "http://127.0.0.1:9/"), len(CONTENT))
    folder = tmp_path / "data" / "set"
    for word in (str(folder / "file.bin"), "is missing", f"{address}{manner}/file.bin {why}", SHA256, "RAMPUP_DATA"):
        assert word in str(error.value)
    assert "http://127.0.0.1:9/file.bin" in str(error.value)
    assert files_in(folder) == []


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "empty"])
def test_damaged_file_is_replaced_or_kept(damage, mirror, tmp_path):
    address, _ = mirror
    path = tmp_path / "data" / "set" / "file.bin"
    path.parent.mkdir(parents=True)
    flipped = bytearray(CONTENT)
    flipped[1000] ^= 4
    damaged = {"truncated": CONTENT[:-1], "bit flipped": bytes(flipped), "empty": b""}[damage]
    path.write_bytes(damaged)
    with pytest.raises(
        DataError, match=r"is damaged, or is another file \(its sha256 is [0-9a-f]{64}\), and could not be downloaded"
    ):
        data.fetch("set", "file.bin", SHA256, (address + "busy/",))
    assert path.read_bytes() == damaged  # nothing is lost
    assert data.fetch("set", "file.bin", SHA256, (address + "good/",)).read_bytes() == CONTENT


def test_mirrors_are_those_of_the_design():
    assert data.MNIST_MIRRORS == (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    )
    assert [mirror.split("/")[2] for mirror in data.SHAKESPEARE_MIRRORS] == [
        "raw.githubusercontent.com",
        "cdn.jsdelivr.net",
    ]


def test_two_processes_at_once(mirror, tmp_path):
    address, requests = mirror
    code = f"from common import data; print(data.fetch('set', 'file.bin', {SHA256!r}, ({address + 'slow/'!r},)))"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert paths == [str(tmp_path / "data" / "set" / "file.bin")] * 2
    assert (tmp_path / "data" / "set" / "file.bin").read_bytes() == CONTENT
    assert requests == ["/slow/file.bin"]  # the other one waited


def test_folder_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RAMPUP_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot use .*Not a directory.*set RAMPUP_DATA to another folder"):
        data.fetch("set", "file.bin", SHA256, ())


OFFLINE = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
OFFLINE |= {name.lower(): value for name, value in OFFLINE.items()}  # which requests looks at first


def test_exercise_without_data_and_network(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.csv").write_text("an earlier run\n")
    result = run(7, "--out", tmp_path / "out", env=os.environ | OFFLINE | {"RAMPUP_DATA": str(tmp_path)})
    assert result.returncode == 1
    name = "train-images-idx3-ubyte.gz"
    one_sentence(result, f"error: {tmp_path}/mnist/{name} is missing", data.MNIST[name][0], "set RAMPUP_DATA")
    for url in data.MNIST_MIRRORS:
        assert url + name in result.stderr
    assert (tmp_path / "out" / "metrics.csv").read_text(encoding="utf-8") == "an earlier run\n"


@pytest.fixture
def own_mnist(mnist, tmp_path, monkeypatch):
    """Return a folder with MNIST's files that may be changed, on a machine without a network."""
    shutil.copytree(data.data_dir() / "mnist", tmp_path / "mnist")
    for name, value in (OFFLINE | {"RAMPUP_DATA": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    return tmp_path / "mnist"


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "empty", "HTML", "another set", "endless"])
def test_damaged_mnist(damage, own_mnist):
    path = own_mnist / "t10k-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    damaged = {
        "truncated": content[:-100],
        "bit flipped": bytes(flipped),
        "empty": b"",
        "HTML": b"<html>404</html>",
        "another set": (own_mnist / "train-labels-idx1-ubyte.gz").read_bytes(),
        "endless": gzip.compress(bytes(100_000_000), 1),
    }[damage]
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte.gz is damaged, or is another file"):
        data.mnist()
    assert path.read_bytes() == damaged


def test_mnist_packed_anew(mnist, own_mnist):
    """What counts is what is in the files (python-mnist #19, vision #3554)."""
    for path in own_mnist.iterdir():
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
        assert data._sha256(path) != data.MNIST[path.name][0]
    for theirs, ours in zip(mnist, data.mnist(), strict=True):
        for a, b in zip(theirs, ours, strict=True):
            np.testing.assert_array_equal(a, b)


def test_sizes_beside_the_checksums(mnist, shakespeare, uci_digits):
    ours = {
        "mnist": data.MNIST,
        "shakespeare": {"input.txt": data.SHAKESPEARE},
        "uci_digits": {"digits.csv.gz": data.UCI_DIGITS},
    }
    for folder, files in ours.items():
        for name, (sha256, size) in files.items():
            path = data.data_dir() / folder / name
            assert (data._sha256(path), path.stat().st_size) == (sha256, size)


def test_mnist(mnist):
    (images, labels), (test_images, test_labels) = mnist
    assert (images.shape, test_images.shape) == ((60_000, 28, 28), (10_000, 28, 28))
    assert images.dtype == labels.dtype == np.uint8
    assert list(labels[:10]) == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert list(np.bincount(test_labels)) == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    images[0, 0, 0] = 1  # an array of one's own, not a view of a file


def test_mnist_dry_run_has_the_right_shapes(monkeypatch):
    monkeypatch.setenv("RAMPUP_DATA", "/nowhere")
    for images, labels in data.mnist(dry_run=True):
        assert images.shape == (len(labels), 28, 28)
        assert images.dtype == labels.dtype == np.uint8
        assert set(labels) == set(range(10))
    assert len(data.shakespeare(dry_run=True)) > 1000


def test_uci_digits(uci_digits, monkeypatch):
    images, labels = uci_digits
    assert images.shape == (1797, 8, 8)
    assert (images.min(), images.max()) == (0, 16)
    assert list(labels[:10]) == list(range(10))
    assert list(np.bincount(labels)) == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    monkeypatch.setenv("RAMPUP_DATA", "/nowhere")
    images, labels = data.uci_digits(dry_run=True)
    assert images.shape == (len(labels), 8, 8)


def test_shakespeare(shakespeare):
    assert len(shakespeare) == 1_115_394
    assert len(set(shakespeare)) == 65
    assert shakespeare.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: give a text with words in it"),
        (b"\xef\xbb\xbf \n", "is empty"),
        ("Hark!".encode("utf-16"), "is not UTF-8 text but UTF-16: save it as plain text in UTF-8"),
        ("Hark!".encode("utf-16-be"), "holds NUL characters"),
        (b"Hark!\0", "holds NUL characters"),
        ("Häuser".encode("latin-1"), r"is not UTF-8 text \(byte 1\): save it"),
        (gzip.compress(b"Hark!", mtime=0), "is a gzip file, not UTF-8 text: unpack it first"),
        (None, "cannot read the text .*: No such file"),
    ],
)
def test_texts_that_are_refused(content, message, tmp_path):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        text.read(path)
    with pytest.raises(DataError, match="Is a directory"):
        text.read(tmp_path)


def test_text_without_marks(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffHark!\r\nBoth files \ufeffhad one.\n".encode())
    assert text.read(path) == "Hark!\nBoth files had one.\n"


def test_shorten():
    assert text.shorten("a" * 100) == "a" * 100
    assert text.shorten("a" * 101) == "a" * 99 + "…"
