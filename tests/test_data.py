"""common/data.py: fetching from mirrors that misbehave, and reading files that are not what they say."""

import gzip
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from helpers import one_sentence, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import data
from common.data import DataError

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
            if manner == "503":
                self.send_error(503)
                return
            if manner == "slow":
                time.sleep(1.0)
            if manner == "stuck":
                stop.wait(30)
            body = b"an error page" if manner == "wrong" else CONTENT
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT) if manner == "short" else len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if manner == "short" else body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
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


@pytest.mark.parametrize("manner", ["503", "wrong", "short", "stuck"])
def test_second_mirror_helps_out(manner, mirror, monkeypatch):
    address, requests = mirror
    monkeypatch.setattr(data, "TIMEOUT", 2.0)
    path = data.fetch("set", "file.bin", SHA256, (address + manner + "/", address + "good/"))
    assert path.read_bytes() == CONTENT
    assert requests == [f"/{manner}/file.bin", "/good/file.bin"]


@pytest.mark.parametrize(("manner", "why"), [("503", "HTTP 503"), ("wrong", "wrong sha256"), ("short", "")])
def test_no_mirror_helps(manner, why, mirror, tmp_path):
    address, _ = mirror
    with pytest.raises(DataError) as error:
        data.fetch("set", "file.bin", SHA256, (address + manner + "/", "http://127.0.0.1:9/"))
    folder = tmp_path / "data" / "set"
    for word in (str(folder / "file.bin"), "is missing", f"{address}{manner}/file.bin ({why}", SHA256, "RAMPUP_DATA"):
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
        DataError, match=r"file\.bin is damaged \(its sha256 is [0-9a-f]{64}\) and could not be downloaded"
    ):
        data.fetch("set", "file.bin", SHA256, (address + "503/",))
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
    one_sentence(result, f"error: {tmp_path}/mnist/{name} is missing", data.MNIST_SHA256[name], "set RAMPUP_DATA")
    for url in data.MNIST_MIRRORS:
        assert url + name in result.stderr
    assert (tmp_path / "out" / "metrics.csv").read_text(encoding="utf-8") == "an earlier run\n"


@pytest.mark.parametrize("damage", ["truncated", "bit flipped"])
def test_damaged_mnist(damage, mnist, tmp_path, monkeypatch):
    shutil.copytree(data.data_dir() / "mnist", tmp_path / "mnist")
    for name, value in (OFFLINE | {"RAMPUP_DATA": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(path.read_bytes()[:-100] if damage == "truncated" else content)
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte.gz is damaged"):
        data.mnist()


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


def test_shakespeare(shakespeare):
    assert len(shakespeare) == 1_115_394
    assert len(set(shakespeare)) == 65
    assert shakespeare.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")


def idx(array):
    """Return an array as the bytes of an IDX file."""
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


@pytest.mark.parametrize("shape", [(5,), (3, 4, 2), (1, 1, 1, 1)])
def test_parse_idx(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(data.parse_idx(idx(array)), array)


GOOD = idx(np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x08", "0 dimensions"),
        (b"\1\0\x08\1" + GOOD[4:], "not an IDX file"),
        (b"\0\0\x0d\3" + GOOD[4:], "not an IDX file"),  # floats
        (b"\0\0\x08\0" + GOOD[4:], "0 dimensions"),
        (b"\0\0\x08\xff" + GOOD[4:], "255 dimensions"),
        (GOOD[:10], "in the middle of its header"),
        (GOOD[:-1], r"holds 23 elements, but its header says \(2, 3, 4\), which are 24"),
        (GOOD + b"\0", "holds 25 elements"),
        (b"\0\0\x08\3" + b"\xff" * 12 + b"\0", "which are 79228162458924105385300197375"),
        (b"\0\0\x08\1\0\0\0\0", "empty"),
    ],
)
def test_parse_idx_refuses(content, message):
    with pytest.raises(DataError, match=message):
        data.parse_idx(content)


def mutations():
    """Return a strategy for IDX files in which some bytes are changed, cut out or put in."""
    edit = st.tuples(st.integers(0, len(GOOD)), st.integers(0, 8), st.binary(max_size=8))

    def apply(edits):
        content = GOOD
        for start, length, new in edits:
            content = content[:start] + new + content[start + length :]
        return content

    return st.lists(edit, min_size=1, max_size=4).map(apply)


@settings(max_examples=10_000, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.binary(max_size=64), st.binary(max_size=40).map(lambda tail: b"\0\0\x08" + tail), mutations()))
def test_no_bytes_make_parse_idx_fail_in_another_way(content):
    try:
        array = data.parse_idx(content)
    except DataError:
        return
    assert idx(array) == content  # what is accepted was read right, to the last byte


@settings(max_examples=1_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.binary(max_size=64), mutations(), mutations().map(gzip.compress)), st.integers(0, 200), st.binary())
def test_no_file_makes_read_idx_fail_in_another_way(tmp_path_factory, content, cut, tail):
    path = tmp_path_factory.getbasetemp() / "fuzz.gz"
    path.write_bytes(content[:cut] + tail)
    try:
        data.read_idx(path)
    except DataError as error:
        assert str(path) in str(error)


def test_files_that_do_not_fit(tmp_path):
    def write(name, array):
        (tmp_path / name).write_bytes(gzip.compress(idx(array)))
        return tmp_path / name

    images, labels = write("images.gz", np.zeros((3, 2, 2))), write("labels.gz", np.arange(3))
    assert data.read_images_and_labels(images, labels)[1].tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"images\.gz holds 3 images, but .*four\.gz holds 4 labels"):
        data.read_images_and_labels(images, write("four.gz", np.arange(4)))
    with pytest.raises(DataError, match=r"labels\.gz holds an array of shape \(3,\), not images"):
        data.read_images_and_labels(labels, labels)
    with pytest.raises(DataError, match=r"images\.gz holds an array of shape \(3, 2, 2\), not labels"):
        data.read_images_and_labels(images, images)
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"not IDX at all"))
    with pytest.raises(DataError, match=r"text\.gz is not an IDX file"):
        data.read_images_and_labels(tmp_path / "text.gz", labels)
    (tmp_path / "plain.gz").write_bytes(idx(np.arange(3)))
    with pytest.raises(DataError, match=r"plain\.gz cannot be read as a gzip file"):
        data.read_images_and_labels(images, tmp_path / "plain.gz")
