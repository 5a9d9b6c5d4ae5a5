"""Exercise 9's read_photo.py: what is read of photographs of every kind, and what is refused."""

import re
import resource
import subprocess
import sys

from common import UserError

import jax
import numpy as np
import pytest
from helpers import load_beside, one_sentence, train_py
from PIL import Image

READ_PHOTO = train_py(9).parent / "read_photo.py"


MEASURED = (  # runs a program, and prints how much memory it has needed at most
    "import runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0]); "
    "runpy.run_path(sys.argv[0], run_name='__main__'); print(open('/proc/self/status').read())"
)


@pytest.fixture(scope="module")
def q():
    return load_beside(9, "read_photo")


@pytest.fixture(scope="module")
def folder(q, mnist, tmp_path_factory):
    """Return a folder with the weights of a short training."""
    config = q.Config(steps=400, out=tmp_path_factory.mktemp("read"))
    q.train(config, *mnist[0])
    return config.out


@pytest.fixture(scope="module")
def params(q, folder):
    return q.kept(q.Config(steps=400, out=folder))


@pytest.fixture(scope="module")
def page(q, mnist):
    """Return a page, its centres, its labels: digits of the training set, which are easier, for the net is not good."""
    index = np.random.default_rng(1).permutation(60_000)[:60]
    return *q.make_page(mnist[0][0][index], np.random.default_rng(1)), mnist[0][1][index]


def text(lines):
    return ["".join(str(digit) for _, digit, _ in line) for line in lines]


def share(lines, labels):
    """Return the share of the digits that are read at their places."""
    ours, truth = "".join(text(lines)), "".join(map(str, labels))
    return sum(a == b for a, b in zip(ours, truth)) / len(truth) if len(ours) == len(truth) else 0.0


def read_file(q, params, image, path, **options):
    image.save(path, **options)
    return q.read(q.load_page(path), params)


def test_pages(q, params, mnist):
    """Each of the four stages is needed, which is why there are four."""
    rng, totals = np.random.default_rng(2), {}  # the second of these pages is written in pencil
    for _ in range(3):
        index = rng.permutation(10_000)[:60]
        made, centres = q.make_page(mnist[1][0][index], rng)
        for without in ("", "paper", "threshold", "blobs", "normalise"):
            lines = q.read(made / np.float32(255), params, without)
            totals[without] = totals.get(without, 0) + q.score(lines, centres, mnist[1][1][index], 0.9)
    right = {without: counts[0] / (180 + counts[1]) for without, counts in totals.items()}
    assert right[""] > 0.95
    assert totals[""][3] / totals[""][2] > 0.98
    for without, value in right.items():
        assert without == "" or value < right[""] - 0.03, without


def test_normalising_mnist_changes_nothing(q, params, mnist):
    images, labels = mnist[1][0][:2000] / np.float32(255), mnist[1][1][:2000]
    as_is, _ = q.classify(params, images)
    ours = np.stack([q.normalise(image) for image in images])
    again, _ = q.classify(params, ours)
    assert abs((as_is == labels).mean() - (again == labels).mean()) < 0.005
    assert abs(ours - images).mean() < 0.002
    small = np.pad(images[0], ((0, 5), (0, 9)))  # paper beside a digit, and fainter ink, change nothing
    np.testing.assert_allclose(q.normalise(0.3 * small), q.normalise(images[0]), atol=1e-5)


def test_score(q):
    lines = [[((0, 0, 10, 10), 3, 0.95), ((0, 20, 10, 30), 4, 0.5)], [((50, 0, 60, 10), 1, 0.99)]]
    centres = np.array([(5, 5), (5, 25), (90, 90)])
    assert q.score(lines, centres, [3, 4, 7], 0.9).tolist() == [2, 1, 2, 1]
    assert q.score(lines, centres, [8, 4, 7], 0.9).tolist() == [1, 1, 2, 0]
    assert q.score([], centres, [8, 4, 7], 0.9).tolist() == [0, 0, 0, 0]


def test_otsu(q):
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(0.1, 0.02, 9000), rng.normal(0.7, 0.05, 1000)])
    assert 0.15 < q.otsu(two) < 0.55
    assert q.otsu(rng.normal(0.1, 0.02, 9000)) == np.inf
    assert q.otsu(np.zeros(100)) == np.inf
    assert q.otsu(np.full(100, 0.3)) == np.inf


@pytest.mark.parametrize("turned", [-9, -4, 0, 4, 9])
def test_reading_order(q, turned):
    rng = np.random.default_rng(0)
    rows, columns = np.repeat(np.arange(3), 7) * 100 + 50, np.tile(np.arange(7), 3) * 100 + 50
    down = rows + np.tan(np.deg2rad(turned)) * columns + rng.uniform(-8, 8, 21)
    height = rng.uniform(20, 35, 21)
    boxes = np.stack([down - height, columns - 20, down + height, columns + 20], 1)
    mixed = rng.permutation(21)
    read = [mixed[line].tolist() for line in q.in_lines(boxes[mixed])]
    assert read == np.arange(21).reshape(3, 7).tolist()


def test_photographs_of_every_kind(q, params, page, tmp_path):
    made, _, labels = page
    plain = Image.fromarray(made)
    lines = read_file(q, params, plain, tmp_path / "grey.png")
    assert share(lines, labels) > 0.93
    assert [len(line) for line in text(lines)] == [10] * 6
    colour = Image.merge("RGB", [plain.point(lambda value, k=k: k * value) for k in (0.9, 1, 0.8)])
    assert share(read_file(q, params, colour, tmp_path / "a.jpg", quality=90), labels) > 0.93
    exif = Image.Exif()
    exif[0x0112] = 6  # the phone was held on its side: turn it by 90 degrees clockwise
    on_its_side = plain.transpose(Image.Transpose.ROTATE_90)
    assert share(read_file(q, params, on_its_side, tmp_path / "b.jpg", exif=exif, quality=95), labels) > 0.93
    assert share(read_file(q, params, on_its_side, tmp_path / "c.jpg", quality=95), labels) < 0.5
    deep = Image.fromarray(made.astype(np.uint16) * 200)
    assert share(read_file(q, params, deep, tmp_path / "d.png"), labels) > 0.93
    ink = Image.fromarray(255 - (255 * q.find_ink(made / np.float32(255))).astype(np.uint8))
    only_ink = Image.new("RGBA", ink.size, (0, 0, 60))  # dark all over, but seen through
    only_ink.putalpha(ink.point(lambda value: 255 - value))
    assert share(read_file(q, params, only_ink, tmp_path / "e.png"), labels) > 0.93
    assert share(read_file(q, params, ink.convert("1"), tmp_path / "f.png"), labels) > 0.9
    assert share(read_file(q, params, plain.convert("P"), tmp_path / "g.gif"), labels) > 0.93


def test_a_board(q, params, mnist):
    index = np.random.default_rng(2).permutation(60_000)[:60]
    made, _ = q.make_page(mnist[0][0][index], np.random.default_rng(2), board=True)
    assert made.mean() < 60
    assert share(q.read(made / np.float32(255), params), mnist[0][1][index]) > 0.93


def test_a_page_without_digits(q, params, page, tmp_path, capsys):
    empty, _ = q.make_page(np.zeros((60, 28, 28), np.uint8), np.random.default_rng(3))
    assert all(prob < 0.9 for line in q.read(empty / np.float32(255), params) for *_, prob in line)  # a shadow's corner
    empty, _ = q.make_page(np.zeros((60, 28, 28), np.uint8), np.random.default_rng(3), shadow=False)
    for nothing in (empty, np.zeros((300, 400)), np.full((300, 400), 255), np.zeros((1, 1)), np.zeros((3, 900))):
        assert q.read(nothing / np.float32(255), params) == []
    Image.fromarray(empty).save(tmp_path / "empty.png")
    q.main(q.Config(photo=tmp_path / "empty.png", out=tmp_path, dry_run=True))
    assert "0 digits" in capsys.readouterr().out


def test_a_photo_of_12_megapixels_as_a_user_reads_it(folder, page, tmp_path):
    large = Image.fromarray(page[0]).convert("RGB").resize((4200, 3000))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for name in ("photo.jpg", "photo.png"):
        large.save(tmp_path / name)
        command = [sys.executable, "-c", MEASURED, READ_PHOTO, tmp_path / name, "--steps", "400", "--out", folder]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10  # of two cores: 5 seconds
        before = after
        assert int(re.search(r"^VmHWM:\s+(\d+) kB", result.stdout, re.M)[1]) < 1e6
    assert re.search(r"^[\d?]{10}$", result.stdout, re.M)
    assert "60 digits" in result.stdout
    assert (folder / "read_photo.png").stat().st_size > 10_000


def test_what_is_no_photograph(q, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("L", (300, 300)).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:60])
    for name, why in (("text.jpg", "in no format"), ("half.png", "damaged"), ("", "Is a directory"), ("x", "No such")):
        with pytest.raises(UserError, match=f"cannot read .* as a picture .*{why}.*: give a JPEG or a PNG"):
            q.load_page(tmp_path / name)
    result = subprocess.run([sys.executable, READ_PHOTO, tmp_path / "text.jpg"], capture_output=True, text=True)
    one_sentence(result, "cannot read", "give a JPEG or a PNG")


def test_weights_are_kept_and_damaged_ones_are_not_used(q, folder, tmp_path):
    assert q.kept(q.Config(steps=400, out=folder)) is not None
    for other in (q.Config(steps=401, out=folder), q.Config(steps=400, seed=1, out=folder), q.Config(out=tmp_path)):
        assert q.kept(other) is None
    whole = (folder / "read_photo.npz").read_bytes()
    (tmp_path / "read_photo.npz").write_bytes(whole[: len(whole) // 2])
    assert q.kept(q.Config(steps=400, out=tmp_path)) is None


def test_distorted_digits(q, mnist):
    distort = (
        sys.modules[q.train.__module__].distort if q.train.__module__ in sys.modules else q.train.__globals__["distort"]
    )
    images = np.repeat(mnist[0][0][:1] / np.float32(255), 200, 0)
    made = np.asarray(distort(jax.random.split(jax.random.key(0), 200), images))
    assert made.min() >= 0
    np.testing.assert_allclose(made.max((1, 2)), 1, rtol=1e-6)
    assert np.ptp(made.sum((1, 2))) > 50  # of thin pens, and of thick ones
    middle = made.sum((1, 2))[:, None] ** -1 * np.stack([(made * axis).sum((1, 2)) for axis in np.mgrid[:28, :28]], 1)
    assert abs(middle - 13.5).max() < 5
    assert middle.std(0).min() > 0.5


def test_a_digit_counts_once(q):
    lines = [[((0, 0, 10, 10), 3, 0.95), ((0, 0, 10, 10), 3, 0.95)]]
    assert q.score(lines, np.array([(5, 5)]), [3], 0.9).tolist() == [1, 1, 2, 1]


def test_distorted_as_on_a_form(q):
    """One half of what the network sees is stretched to 20 : 32; of a 1, which is narrow, it is easily seen."""
    bar = np.zeros((200, 28, 28), np.float32)
    bar[:, 4:24, 12:16] = 1
    distort = q.train.__globals__["distort"]
    wide = (np.asarray(distort(jax.random.split(jax.random.key(0), 200), bar)).max(1) > 0.5).sum(1)
    assert 0.4 < (wide > 10).mean() < 0.6
    assert np.median(wide[wide <= 10]) < 8


def test_as_coarse_as_ucis(q):
    bar = np.zeros((28, 28), np.uint8)
    bar[4:24, 12:16] = 255  # becomes a block of 20 x 32 points, of which two are taken off on each side
    expected = np.outer([2, 4, 4, 4, 4, 4, 4, 2], [0, 0, 4, 4, 4, 4, 0, 0])
    np.testing.assert_array_equal(q.coarse(bar), expected)
    slanted = np.zeros((28, 28), np.uint8)
    for row in range(4, 24):
        slanted[row, 24 - row : 27 - row] = 255
    rows = q.coarse(slanted).astype(float)
    middle = rows @ np.arange(8) / rows.sum(1)
    assert np.ptp(middle) < 0.5  # upright


def test_few_points_become_smooth_lines(q, mnist):
    """A digit of 8 x 8 points is nearer to what it was before than one that is enlarged with straight lines."""
    distance = []
    for image in mnist[0][0][:200]:
        truth = q.normalise(image / np.float32(255))
        small = np.asarray(Image.fromarray(image[4:24, 4:24]).resize((8, 8), Image.Resampling.BOX)) / np.float32(255)
        straight = np.asarray(Image.fromarray(small).resize((20, 20), Image.Resampling.BILINEAR))
        distance.append([abs(q.normalise(ink) - truth).mean() for ink in (small, straight)])
    ours, theirs = np.mean(distance, 0)
    assert ours < 0.95 * theirs


def test_held_out_as_a_dry_run(q, tmp_path):
    """Of 1,000 digits nothing is left without the last 6,000, and the first minibatch never comes."""
    numbers = q.main(q.Config(held_out=True, dry_run=True, out=tmp_path))
    assert 0 <= numbers["uci_mass"] <= 100
