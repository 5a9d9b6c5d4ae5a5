"""common/imagenet.py: packing photographs that are not what they should be, and reading them in the right order."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from itertools import islice

from common import UserError, imagenet
from common.data import DataError

import datasets
import numpy as np
import pytest
from helpers import one_sentence
from PIL import Image

OFFLINE = {name: "http://127.0.0.1:9" for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy")}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Return the folder for packed sets of this test; its shards are small."""
    monkeypatch.setenv("RAMPUP_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(imagenet, "SHARD", 4)
    return tmp_path / "data" / "imagenet"


def picture(n, width=40, height=30, mode="RGB"):
    """Return the n-th of many different smooth pictures."""
    colours = np.random.default_rng(n).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Return an image folder of three classes, 7 images each for training and 3 for validation."""
    for label, name in enumerate(("ape", "bee", "cat")):
        for split, count in (("train", 7), ("val", 3)):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for n in range(count):
                size = (40 + 9 * n, 30 + 5 * label)
                picture(100 * label + n, *size).save(tmp_path / "images" / split / name / f"{n}.JPEG", quality=95)
    return tmp_path / "images"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def only(folder):
    """Return the one packed set in a folder."""
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_prepare(workers, folder, home):
    train, val = imagenet.prepare(str(folder), workers=workers)
    assert (len(train), len(val)) == (21, 9)
    assert train.classes == val.classes == ["ape", "bee", "cat"]
    assert list(train.labels) == [0] * 7 + [1] * 7 + [2] * 7
    assert train.labels.dtype == np.int32
    paths = [folder / "train" / name / f"{n}.JPEG" for name in train.classes for n in range(7)]
    assert [train[i] for i in range(21)] == [path.read_bytes() for path in paths]  # small enough to be kept as they are
    before = {path: path.stat().st_mtime_ns for path in only(home).iterdir()}
    again, _ = imagenet.prepare(str(folder), workers=workers)
    assert again[20] == train[20]
    assert before == {path: path.stat().st_mtime_ns for path in only(home).iterdir()}  # nothing is packed twice
    assert len(before) == 1 + 1 + 2 * (6 + 3)  # lock, set.json, shards


def test_other_settings_or_images_are_another_set(folder, home):
    imagenet.prepare(str(folder))
    small, _ = imagenet.prepare(str(folder), side=20)
    assert {min(Image.open(io.BytesIO(small[i])).size) for i in range(21)} == {20}
    picture(0).save(folder / "train" / "ape" / "new.JPEG")
    assert len(imagenet.prepare(str(folder))[0]) == 22
    shutil.copytree(folder, folder.with_name("copy"))
    imagenet.prepare(str(folder.with_name("copy")))
    assert len([path for path in home.iterdir() if path.is_dir()]) == 4


def test_photographs_replaced_under_the_same_names(folder, home, capsys):
    imagenet.prepare(str(folder))
    picture(50, 33, 33).save(folder / "train" / "cat" / "4.JPEG")  # of another size
    path, other = folder / "train" / "ape" / "0.JPEG", io.BytesIO()
    picture(51, 8, 8).save(other, "JPEG")
    path.write_bytes(other.getvalue().ljust(path.stat().st_size, b"\0"))  # of another time alone
    capsys.readouterr()
    train, _ = imagenet.prepare(str(folder))
    assert "packing 8 of 30" in capsys.readouterr().out  # the shards that they are in
    paths = [folder / "train" / name / f"{n}.JPEG" for name in train.classes for n in range(7)]
    assert [train[i] for i in range(21)] == [path.read_bytes() for path in paths]
    assert len(list(home.glob("*/*.json"))) == 1 + 6 + 3  # in place of the old ones
    imagenet.prepare(str(folder))
    assert "packing" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["brackets[1]", "docs [v2]", "a*b?", "[!a]", "with space"])
def test_a_path_is_no_pattern(name, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RAMPUP_DATA", str(tmp_path / name / "data"))
    (folder / "train" / "bee").rename(folder / "train" / name)
    (folder / "val" / "bee").rename(folder / "val" / name)
    folder = folder.rename(folder.with_name(f"images {name}"))
    train, val = imagenet.prepare(str(folder))
    assert train.classes == sorted(["ape", name, "cat"])
    (only(tmp_path / name / "data" / "imagenet") / "set.json").unlink()
    (only(tmp_path / name / "data" / "imagenet") / "x.jpegs.tmp").write_bytes(b"")
    assert (len(train), len(val)) == tuple(map(len, imagenet.prepare(str(folder)))) == (21, 9)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("mode", "suffix", "options"),
    [
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("1", "PNG", {}),
        ("LA", "PNG", {}),
        ("PA", "TIFF", {}),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (60, 40), (700, 300)])
def test_to_jpeg(mode, suffix, options, size):
    file = io.BytesIO()
    picture(1, *size, "RGB").convert(mode).save(file, suffix, **options)
    image = Image.open(io.BytesIO(imagenet.to_jpeg(file.getvalue(), side=100)))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    assert "progressive" not in image.info
    expected = Image.open(file).convert("RGB")
    if size == (700, 300):
        assert image.size == (233, 100)
        expected = expected.resize((233, 100), Image.Resampling.BOX)
    assert image.size == expected.size
    difference = np.abs(np.asarray(image, int) - np.asarray(expected, int)).mean()
    # Of 255 levels. The pixels of the modes 1, P and PA flicker; three columns have two of colour.
    assert difference < (25 if mode[0] in "1P" or size == (3, 200) else 3)


@pytest.mark.parametrize(("suffix", "kind"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_grey_of_16_bits(suffix, kind):
    ramp = np.tile(np.linspace(0, 65535, 256).astype(kind), (64, 1))  # (64, 256)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, suffix)
    image = np.asarray(Image.open(io.BytesIO(imagenet.to_jpeg(file.getvalue(), side=256))))
    assert image.shape == (64, 256, 3)
    assert len(np.unique(image)) > 240
    assert abs(image.mean() - 127.5) < 1
    assert np.abs(image[32, :, 0] - np.arange(256.0)).max() <= 3


def test_small_jpeg_is_kept_and_a_large_one_shrinks():
    file = io.BytesIO()
    picture(2, 300, 200).save(file, "JPEG", quality=95)
    assert imagenet.to_jpeg(file.getvalue(), side=200) == file.getvalue()
    assert Image.open(io.BytesIO(imagenet.to_jpeg(file.getvalue(), side=199))).size == (298, 199)


@pytest.mark.parametrize("damage", ["cut", "no image", "empty"])
def test_corrupt_image(damage, folder, home, capsys):
    path = folder / "train" / "bee" / "3.JPEG"
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "no image": b"<html>", "empty": b""}[damage])
    with pytest.raises(
        DataError, match=rf"^1 of the 30 images cannot be read, the first is {path} \(.*--on-error skip"
    ):
        imagenet.prepare(str(folder))
    assert f"cannot read {path}" in capsys.readouterr().err
    train, val = imagenet.prepare(str(folder), on_error="skip")
    assert "packing" not in capsys.readouterr().out  # all is there
    assert (len(train), len(val)) == (20, 9)
    assert [name.split(" (")[0] for name in train.unreadable] == [str(path)]
    assert train[10] == (folder / "train" / "bee" / "4.JPEG").read_bytes()
    path.write_bytes(whole)  # mended
    train, _ = imagenet.prepare(str(folder))
    assert "packing 4 of 30" in capsys.readouterr().out  # the shard that it is in
    assert len(train) == 21
    assert train[10] == whole


def test_all_images_corrupt(folder):
    for path in folder.glob("val/*/*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="9 of the 30 images cannot be read"):
        imagenet.prepare(str(folder), on_error="skip")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: shutil.rmtree(f),
            r"no folder .*/images; get ImageNet's archives .* or accept the terms at .*HF_TOKEN",
        ),
        (lambda f: shutil.rmtree(f / "val"), r"no folder .*/images/val; get ImageNet"),
        (lambda f: shutil.rmtree(f / "val" / "cat"), r"must have the same classes: cat is in train only$"),
        (
            lambda f: (f / "val" / "cat").rename(f / "val" / "dog"),
            r"cat is in train only \(2 classes are in one of them",
        ),
        (lambda f: [p.unlink() for p in f.glob("train/bee/*")], r"/train/bee holds no images \(\.jpeg"),
        (lambda f: [shutil.rmtree(p) for p in f.glob("val/*")], r"/val has no class folders"),
        (lambda f: (shutil.rmtree(f / "train"), (f / "train").write_text("")), r"no folder .*/train;"),
    ],
)
def test_folder_that_is_laid_out_otherwise(change, message, folder, home):
    change(folder)
    with pytest.raises(DataError, match=message) as error:
        imagenet.prepare(str(folder))
    assert "\n" not in str(error.value)
    assert not home.exists()


def test_other_files_are_no_images(folder, capsys):
    for hidden in (".ipynb_checkpoints", "ape/.ipynb_checkpoints"):
        for split in ("train", "val"):
            shutil.copytree(folder / "val" / "bee", folder / split / hidden)
    ape = folder / "train" / "ape"
    shutil.copy(ape / "0.JPEG", ape / "._0.JPEG")
    for name in ("notes.txt", "a.gif", "b.GIF", "c.tiff", "d.jfif", "no_extension", "e.\x1b[31m", "f." + 90 * "x"):
        (ape / name).write_bytes((ape / "0.JPEG").read_bytes())
    (ape / "folder.JPEG").mkdir()
    os.mkfifo(ape / "pipe.JPEG")  # which would be waited for, for ever
    (ape / "link.JPEG").symlink_to("nowhere")
    (folder / "train" / "README.md").write_text("none")
    train, val = imagenet.prepare(str(folder))
    assert train.classes == val.classes == ["ape", "bee", "cat"]
    assert (len(train), len(val)) == (21, 9)
    lines = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    kinds = "5 hidden, 3 others, 2 .gif, 2 no files, 1 .md"
    assert lines == [f"skipped 17 entries of {folder} that are not images: {kinds}"]


def test_no_line_where_all_are_images(folder, capsys):
    (folder / "train" / "ape" / "again.JPEG").symlink_to("0.JPEG")
    assert len(imagenet.prepare(str(folder))[0]) == 22
    assert "skipped" not in capsys.readouterr().out


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_tiny_photographs(size, folder):
    picture(1, *size).save(folder / "train" / "ape" / "0.JPEG")
    picture(1, *size).save(folder / "val" / "ape" / "0.JPEG")
    train, val = imagenet.prepare(str(folder))
    for seed in (0, None):
        ((images, labels),) = imagenet.load(train, [(0, np.array([0]))], 16, seed)
        assert images.shape == (1, 16, 16, 3)
        assert levels(images[0].mean((0, 1)), np.asarray(picture(1, *size)).mean((0, 1))) < 128


PREPARE = """
import sys
from common import imagenet
from common.program import clean_exit
imagenet.SHARD = 4
with clean_exit():
    imagenet.prepare(sys.argv[1], workers=int(sys.argv[2]))
"""


def processes(*words):
    """Return the command lines of running processes, not of ended ones, that hold all these words."""
    lines = subprocess.run(["ps", "-wweo", "pid,ppid,pgid,args"], capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if "<defunct>" not in line and all(word in line for word in words)]


def wait_until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, processes("forkserver")
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_while_packing(workers, photographs, tmp_path, home):
    folder = tmp_path / "images"
    large = sorted((photographs / "fullres").glob("*/*"))  # so that packing takes some seconds
    for split, n in (("train", 200), ("val", 100)):
        (folder / split / "all").mkdir(parents=True)
        for i in range(n):
            (folder / split / "all" / f"{i:03d}.JPEG").symlink_to(large[i % len(large)].resolve())
    command = [sys.executable, "-c", PREPARE, folder, str(workers)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(list(home.glob("*/train-*.json"))) >= 3)
    process.kill()
    process.wait()
    wait_until(lambda: not processes(f" {process.pid} "))  # the workers end by themselves, within some seconds
    killed = only(home)
    assert not (killed / "set.json").exists()
    done = set(killed.glob("*.json"))
    assert 3 <= len(done) < 75
    (killed / "train-00049.jpegs.tmp").write_bytes(b"half a file")
    before = {path: path.stat().st_mtime_ns for path in done}
    train, val = imagenet.prepare(str(folder), workers=workers)
    assert (len(train), len(val)) == (200, 100)
    assert before == {path: path.stat().st_mtime_ns for path in done}
    after = contents(killed)
    assert not [name for name in after if name.endswith(".tmp")]
    killed.rename(home.parent / "kept")
    imagenet.prepare(str(folder))
    assert contents(killed) == after


def test_truncated_shard_is_packed_again(folder, home, capsys):
    imagenet.prepare(str(folder))
    before = contents(only(home))
    (only(home) / "train-00002.jpegs").write_bytes(before["train-00002.jpegs"][:-1])
    (only(home) / "val-00000.json").write_bytes(b"")
    capsys.readouterr()
    imagenet.prepare(str(folder))
    assert "packing 8 of 30" in capsys.readouterr().out
    assert contents(only(home)) == before


def resealed(content, **changes):
    """Return a JSON file's bytes with some entries changed, and none of them the checksum."""
    return json.dumps(json.loads(content) | changes).encode()


@pytest.mark.parametrize("name", ["set.json", "train-00001.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda old: b"",
        lambda old: old[: len(old) // 2],
        lambda old: b"null",
        lambda old: b"[]",
        lambda old: b"{" * 100_000,
        lambda old: b"\xff\xfe\0",
        lambda old: b"{}",
        lambda old: resealed(old, shards={"train": 2**64, "val": 2**64}),
        lambda old: resealed(old, shards={"train": 1, "val": 1}),
        lambda old: resealed(old, shards={"../train": -1}),
        lambda old: resealed(old, classes=7),
        lambda old: resealed(old, labels=[0, 0, 0, 2**70], lengths=[-1, "a", None, 1e300]),
        lambda old: resealed(old, labels=[3, 3, 3, 3]),  # of 0, 1, 2
        lambda old: old.replace(b"1", b"0"),
    ],
)
def test_damaged_note_is_made_again(damage, name, folder, home, capsys):
    imagenet.prepare(str(folder))
    before = contents(only(home))
    (only(home) / name).write_bytes(damage(before[name]))
    capsys.readouterr()
    train, _ = imagenet.prepare(str(folder))
    packed = 0 if name == "set.json" else 4
    output = capsys.readouterr().out.splitlines()
    assert output[0] == f"{only(home) / name} is damaged: it is made again"
    assert output[1].startswith(f"packing {packed} of 30 images")
    assert len(output) == 2
    assert contents(only(home)) == before
    assert list(train.labels) == [0] * 7 + [1] * 7 + [2] * 7


def test_two_at_once(folder, home):
    code = [sys.executable, "-c", PREPARE, folder, "0"]
    both = [subprocess.Popen(code, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("packing 30 of 30" in output for output in outputs) == [False, True]
    assert not list(home.rglob("*.tmp"))


@pytest.mark.parametrize("workers", [0, 1])
def test_full_disk(workers, folder, home):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(folder / "train" / "cat" / "6.JPEG", quality=95)  # in a shard larger than the others
    limit = 20_000  # of the size of files, which stands in for the full disk
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n" + PREPARE
    command = [sys.executable, "-c", code, folder, str(workers)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    one_sentence(result, f"error: cannot write to {home}", "File too large", "free some space", "RAMPUP_DATA")
    assert result.returncode == 1
    kept = contents(only(home))
    assert "train-00005.json" not in kept
    assert not [name for name in kept if name.endswith(".tmp")]
    imagenet.prepare(str(folder))
    after = contents(only(home))
    assert kept.items() <= after.items()
    assert "train-00005.json" in after


def test_folder_that_cannot_be_written(folder, home):
    home.parent.mkdir()
    home.write_text("in the way")
    with pytest.raises(DataError, match="cannot write to .*File exists|Not a directory"):
        imagenet.prepare(str(folder))


def test_imagenette(folder, home, monkeypatch):
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(DataError) as error:
        imagenet.prepare("imagenette")
    url = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"
    for word in (str(home / "imagenette2-160.tgz"), "is missing", url, imagenet.IMAGENETTE_SHA256, "RAMPUP_DATA"):
        assert word in str(error.value)
    with tarfile.open(home / "imagenette2-160.tgz", "w:gz") as tar:
        tar.add(folder, "imagenette2-160")
    digest = hashlib.sha256((home / "imagenette2-160.tgz").read_bytes()).hexdigest()
    monkeypatch.setattr(imagenet, "IMAGENETTE_SHA256", digest)
    (home / "imagenette2-160.tmp" / "imagenette2-160" / "train" / "half").mkdir(parents=True)  # killed while unpacking
    train, val = imagenet.prepare("imagenette")
    assert (train.classes, len(train), len(val)) == (["ape", "bee", "cat"], 21, 9)
    (home / "imagenette2-160.tgz").unlink()
    assert len(imagenet.prepare("imagenette")[0]) == 21


def test_hugging_face(folder, home, tmp_path, monkeypatch):
    classes = datasets.ClassLabel(names=["ape", "bee, bumblebee", "cat"])
    features = datasets.Features({"image": datasets.Image(), "label": classes})
    parts = []
    for split in ("train", "val"):
        paths = sorted(folder.glob(f"{split}/*/*"))
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
        rows = {"image": images, "label": ["abc".index(path.parent.name[0]) for path in paths]}
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / split)
        parts.append(datasets.load_from_disk(tmp_path / split))
    expected = [imagenet.prepare(str(folder))[k] for k in range(2)]

    def load_dataset(name, split):
        assert (name, split) == ("ILSVRC/imagenet-1k", ["train", "validation"])
        return parts

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = imagenet.prepare("ILSVRC/imagenet-1k", workers=1)
    assert found[0].classes == ["ape", "bee, bumblebee", "cat"]
    for a, b in zip(found, expected):
        assert list(a.labels) == list(b.labels)
        assert [a[i] for i in range(len(a))] == [b[i] for i in range(len(b))]
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert len(imagenet.prepare("ILSVRC/imagenet-1k")[0]) == 21  # what was downloaded is needed no more


def test_no_hugging_face(tmp_path):
    code = "import sys; sys.argv[1:] = ['ILSVRC/imagenet-1k', '0']\n" + PREPARE
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    one_sentence(
        result, "error: --data ILSVRC/imagenet-1k: Hugging Face could not provide it", "image-net.org", "HF_TOKEN"
    )


def shuffled(n, batch_size):
    """Yield the numbers (B,) of one batch after another, as the exercises do."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(n)
        for start in range(0, n - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def test_same_batches_with_any_number_of_workers(folder):
    train, _ = imagenet.prepare(str(folder))
    runs = []
    for workers in (0, 1, 3):
        batches = enumerate(islice(shuffled(21, 7), 9))
        runs.append(list(imagenet.load(train, batches, size=16, seed=5, workers=workers)))
    for run in runs:
        assert len(run) == 9
        for (images, labels), (expected, expected_labels) in zip(run, runs[0]):
            assert images.shape == (7, 16, 16, 3)
            assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
            np.testing.assert_array_equal(images, expected)
            np.testing.assert_array_equal(labels, expected_labels)
    # Another epoch, another seed: other crops of the same images.
    again = next(imagenet.load(train, [(3, next(shuffled(21, 7)))], size=16, seed=5))
    other = next(imagenet.load(train, [(0, next(shuffled(21, 7)))], size=16, seed=6))
    for images, labels in (again, other):
        np.testing.assert_array_equal(labels, runs[0][0][1])
        assert (images != runs[0][0][0]).mean(axis=(1, 2, 3)).min() > 0.5


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_once_an_epoch(workers, folder):
    for n, path in enumerate(sorted(folder.glob("train/*/*"))):
        Image.new("RGB", (30, 30), (10 * n, 0, 0)).save(path, quality=95)  # known by its colour, however it is cropped
    train, val = imagenet.prepare(str(folder))
    batches = enumerate(islice(shuffled(21, 7), 6))
    loaded = list(imagenet.load(train, batches, size=8, seed=0, workers=workers))
    for epoch in (loaded[:3], loaded[3:]):
        seen = np.concatenate([images[:, 4, 4, 0] for images, _ in epoch])
        assert sorted(np.round(seen / 10).astype(int)) == list(range(21))
        labels = np.concatenate([labels for _, labels in epoch])
        assert list(np.round(seen / 10).astype(int) // 7) == list(labels)


def test_resume(folder):
    train, _ = imagenet.prepare(str(folder))
    unbroken = list(imagenet.load(train, enumerate(islice(shuffled(21, 4), 17)), size=16, seed=1))
    rest = islice(enumerate(shuffled(21, 4)), 8, 17)
    for a, b in zip(imagenet.load(train, rest, size=16, seed=1, workers=2), unbroken[8:], strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def test_validation_counts_every_image_once(folder):
    _, val = imagenet.prepare(str(folder))
    numbers = [list(index) for _, index in imagenet.in_order(9, 4)]
    assert numbers == [[0, 1, 2, 3], [4, 5, 6, 7], [8, -1, -1, -1]]
    assert [list(index) for _, index in imagenet.in_order(8, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    batches = list(imagenet.load(val, imagenet.in_order(9, 4), size=8))
    assert np.concatenate([labels for _, labels in batches]).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, -1, -1, -1]
    assert (batches[2][0][1:] == 0).all()
    assert (batches[2][0][0] > 0).any()
    whole, _ = next(imagenet.load(val, imagenet.in_order(9, 9), size=8))
    np.testing.assert_array_equal(whole, np.concatenate([images for images, _ in batches])[:9])


@pytest.fixture
def jpegs(photographs):
    """Return forty photographs as packed JPEGs with a short side of 256 pixels."""
    return [imagenet.to_jpeg(path.read_bytes(), 256) for path in sorted((photographs / "fullres").glob("*/*"))]


def levels(a, b):
    """Return the mean difference of two pictures, of 255 levels."""
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).mean()


def test_crops_are_pillows(jpegs):
    rng = np.random.default_rng(0)
    for jpeg in jpegs:
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        left, top, w, h = imagenet.random_box(rng, *image.size, (0.08, 1))
        expected = image.crop((left, top, left + w, top + h)).resize((224, 224), Image.Resampling.BILINEAR)
        found = imagenet.crop(Image.open(io.BytesIO(jpeg)), (left, top, w, h), 224)
        assert found.size == (224, 224)
        inside = (4, 4, 220, 220)  # at the edges ours also looks at the pixels beyond the box
        assert np.abs(np.asarray(found.crop(inside), int) - np.asarray(expected.crop(inside), int)).max() <= 1
        assert levels(found, expected) < 0.5


def test_crops_decoded_at_part_of_the_size(jpegs):
    drafted = 0
    for jpeg in jpegs:
        image = Image.open(io.BytesIO(jpeg))
        width, height = image.size
        box = (width // 8, height // 8, width * 3 // 4, height * 3 // 4)
        found = imagenet.crop(image, box, 64)
        drafted += image.size != (width, height)
        corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
        expected = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR, corners)
        assert levels(found, expected) < 4
        assert levels(found, expected) < levels(np.roll(found, 1, axis=1), expected)  # nothing has moved
    assert drafted > 30


def test_central_crop_is_the_literatures(jpegs):
    checked = 0
    for jpeg in jpegs:
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        if min(image.size) != 256:
            continue
        left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)  # of the resized, short side 256
        expected = image.crop((left, top, left + 224, top + 224))
        found = imagenet.crop(Image.open(io.BytesIO(jpeg)), imagenet.central_box(*image.size), 224)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
        checked += 1
    assert checked > 20


@pytest.mark.parametrize("size", [(256, 341), (1, 1), (1, 500), (500, 1), (2, 3), (160, 160), (1000, 40)])
def test_random_box(size):
    rng = np.random.default_rng(0)
    boxes = np.array([imagenet.random_box(rng, *size, (0.08, 1)) for _ in range(2000)])
    left, top, w, h = boxes.T
    assert (boxes[:, 2:] >= 1).all()
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + w <= size[0]).all()
    assert (top + h <= size[1]).all()
    if min(size) >= 160:
        assert (w / h > 0.73).all()
        assert (w / h < 1.37).all()
        share = w * h / np.prod(size)
        assert share.min() < 0.09 < 0.4 < share.mean() < 0.55  # uniform, but the largest often do not fit
        assert share.max() > 0.9


def test_random_boxes_are_as_often_wide_as_high():
    rng = np.random.default_rng(0)
    boxes = np.array([imagenet.random_box(rng, 1000, 1000, (0.0001, 0.0002)) for _ in range(4000)])
    left, top, w, h = boxes.T
    assert abs(np.log(w / h).mean()) < 0.01
    assert (left + w).max() == (top + h).max() == 1000  # the last place is one of them
    assert left.min() == top.min() == 0


def test_half_of_the_crops_are_mirrored(tmp_path, folder):
    ramp = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 64, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(folder / "train" / "ape" / "0.JPEG", quality=95)
    train, _ = imagenet.prepare(str(folder))
    steps = ((step, np.array([0])) for step in range(400))
    mirrored = np.mean([images[0, 4, 0, 0] > images[0, 4, -1, 0] for images, _ in imagenet.load(train, steps, 8, 0)])
    assert 0.4 < mirrored < 0.6


MAIN = """
import sys
print("main imported", flush=True)
import jax
import numpy as np
from itertools import repeat
from common import imagenet
from common.program import clean_exit

if __name__ == "__main__":
    with clean_exit():
        modules = set(next(imagenet.in_workers(eval, ["sorted(__import__('sys').modules)"], 2)))
        print("torch" in modules, [name for name in modules if "jax" in name.split(".")[0]], flush=True)
        train, _ = imagenet.prepare(sys.argv[1])
        for step, _ in enumerate(imagenet.load(train, repeat((0, np.arange(2))), 16, 0, workers=2)):
            if step == 20:
                print("loading", flush=True)
            if step == 20 and sys.argv[2] == "leave":
                break
"""


@pytest.mark.parametrize("end", ["leave", "interrupt", "kill"])
def test_workers(end, folder, tmp_path, request):
    (tmp_path / "main.py").write_text(MAIN)
    command = [sys.executable, tmp_path / "main.py", folder, end]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    request.addfinalizer(process.kill)  # where an assertion fails
    lines = []
    while "loading\n" not in lines:
        lines.append(process.stdout.readline())
        assert lines[-1]
    assert lines.count("main imported\n") == 1  # no worker did
    assert "True []\n" in lines
    if end == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to all
    if end == "kill":
        workers = [line.split()[0] for line in processes(f" {process.pid} ", "forkserver")]
        os.kill(int(workers[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == {"leave": 0, "interrupt": 130, "kill": 1}[end]
    assert "Traceback" not in errors
    if end == "kill":
        assert re.search(
            r"error: a worker process failed \(.*\), perhaps for lack of memory .*: lower --workers", errors
        )
    wait_until(lambda: not processes(f" {process.pid} "))


def test_errors_of_workers_are_one_sentence(folder, home):
    train, _ = imagenet.prepare(str(folder))
    (only(home) / "train-00000.jpegs").unlink()
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"cannot read image 0 of .*train-00000\.jpegs.*delete"):
            next(imagenet.load(train, [(0, np.array([0]))], size=8, workers=workers))


LIMITED = """
import resource, sys
import numpy as np
from common import imagenet
from common.program import clean_exit

if __name__ == "__main__":
    pictures, _ = imagenet.made_up(3)
    kind, limit, workers = getattr(resource, sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    with clean_exit():
        for images, _ in imagenet.load(pictures, imagenet.in_order(64, 16), 32, workers=workers):
            print(images.shape)
"""


@pytest.mark.parametrize(("kind", "limit"), [("RLIMIT_FSIZE", 4096), ("RLIMIT_NOFILE", 20), ("RLIMIT_NOFILE", 10)])
def test_batch_that_cannot_be_handed_over(kind, limit, tmp_path):
    """The limit of files' sizes is also one of shared memory, and stands in for a /dev/shm that is full."""
    (tmp_path / "main.py").write_text(LIMITED)
    command = [sys.executable, tmp_path / "main.py", kind, str(limit)]
    result = subprocess.run([*command, "2"], capture_output=True, text=True, timeout=60)
    one_sentence(result, "error: a worker process failed (", "docker run --shm-size", "lower --workers")
    assert result.returncode == 1
    result = subprocess.run([*command, "0"], capture_output=True, text=True, timeout=60)  # what the sentence advises
    assert result.stdout == 4 * "(16, 32, 32, 3)\n"


SPAWN = """
import multiprocessing.context as context
context._concrete_contexts.pop("forkserver")
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_where_only_spawn_exists(workers, tmp_path):
    (tmp_path / "main.py").write_text(SPAWN + LIMITED)
    command = [sys.executable, tmp_path / "main.py", "RLIMIT_NOFILE", "256", str(workers)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.stdout, result.returncode) == (4 * "(16, 32, 32, 3)\n", 0)
    assert "Traceback" not in result.stderr


def test_errors_of_what_workers_compute_are_no_users():
    for workers in (0, 1):
        with pytest.raises(RuntimeError, match="that is ours"):
            list(imagenet.in_workers(exec, ["raise RuntimeError('that is ours')"], workers))
