"""common/record.py and common/plotting.py: what a run writes down, and the pictures drawn from it."""

import errno
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from common import UserError, plotting, record
from common.curriculum import ROOT
from common.program import check_config, clean_exit
from common.record import Run

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import one_sentence, read_metrics
from matplotlib.figure import Figure
from matplotlib.image import imread


@dataclass
class Config:
    out: Path
    seed: int = 0
    learning_rate: float = 0.5
    momentum: float = 0.0
    batch_size: int = 8
    dry_run: bool = False


def run_to_the_end(out, steps=100, **baselines):
    with Run(Config(out), baselines or {"ln 2": math.log(2)}) as run:
        for step in run.steps(steps):
            if step % 10 == 0:
                run.record(step, "test", loss=1 / (step + 1), accuracy=0.5 + step / 250)
            run.record(step, "train", loss=1 / (step + 1))
        return run.finish(test_loss=0.25)


def test_metrics_are_kept_to_the_last_bit(tmp_path):
    value = 0.1 + 0.2
    with Run(Config(tmp_path), {}) as run:
        run.record(0, "train", loss=value, accuracy=np.float32(0.1))
        assert read_metrics(tmp_path)["train", "loss"][0] == value  # on the disk before the run is over
    assert read_metrics(tmp_path)["train", "accuracy"][0] == np.float32(0.1)


def test_finish(tmp_path, capsys):
    assert run_to_the_end(tmp_path) == {"test_loss": 0.25}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "baselines: ln 2 0.6931"
    assert lines[-1].startswith("result: test_loss=0.25 seconds=")
    assert 10 <= len(lines) <= 25
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["baselines"] == {"ln 2": math.log(2)}
    assert not list(tmp_path.glob("*.tmp"))


def test_many_seeds(tmp_path, capsys):
    """A quiet run shows and writes nothing but still refuses what is not finite; a list becomes mean ± deviation."""
    with Run(Config(tmp_path), {}) as run:
        run.record(0, "train", loss=1.0)
        run.quiet = True
        assert list(run.steps(50)) == list(range(50))
        run.record(0, "train", loss=2.0)
        with pytest.raises(UserError, match="train loss is nan at step 7"):
            run.record(7, "train", loss=math.nan)
        assert run.finish(loss=[1.0, 2.0], seconds_each=3.0, alone=[4.0]) == {
            "loss": 1.5,
            "seconds_each": 3.0,
            "alone": 4,
        }
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("result: loss=1.5±0.71 seconds_each=3 alone=4 seconds=")
    assert read_metrics(tmp_path) == {("train", "loss"): {0: 1.0}}
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["finals"] == {"loss": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (math.nan, "lower --learning-rate"),
        (math.inf, "lower --learning-rate"),
        (-math.inf, "look at the sign of the loss"),
    ],
)
def test_value_that_is_not_finite(value, advice, tmp_path):
    with pytest.raises(UserError, match=f"train loss is .* at step 3 with learning rate 0.5: {advice}"):
        with Run(Config(tmp_path), {}) as run:
            for step in range(10):
                run.record(step, "train", loss=value if step == 3 else 1.0)
    assert list(read_metrics(tmp_path)["train", "loss"]) == [0, 1, 2]


def test_disk_that_fills_up_in_the_middle_of_a_row(tmp_path):
    class FullDisk:
        """A file with room for 100 bytes, which then takes half a row and no more."""

        def __init__(self, file):
            self.file, self.room = file, 100

        def write(self, data):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = self.file.write(data[: self.room])
            self.room -= written
            return written

        def __getattr__(self, name):
            return getattr(self.file, name)

    with pytest.raises(UserError, match="cannot write to .*free some space there, .*what was recorded so far is in"):
        with Run(Config(tmp_path), {}) as run:
            run._csv = FullDisk(run._csv)
            for step in range(100):
                run.record(step, "train", loss=1.0)
    steps = list(read_metrics(tmp_path)["train", "loss"])
    assert steps == list(range(len(steps)))
    assert len(steps) > 3


class OnGpu:
    """A tensor that is still on a GPU, where Run knows it by its device, and reads it some rows later."""

    device, shape = SimpleNamespace(type="cuda"), ()

    def __init__(self, value):
        self.value = value

    def tolist(self):
        return self.value


def test_losses_of_several_steps(tmp_path):
    """An array has the losses of as many steps; JAX's are read a call later. What follows a nan is lost."""
    with pytest.raises(UserError, match="train loss is nan at step 27 "), Run(Config(tmp_path), {}) as run:
        run.record(0, "train", loss=np.arange(3.0), accuracy=np.arange(3.0) / 4)
        assert read_metrics(tmp_path)["train", "accuracy"] == {0: 0.0, 1: 0.25, 2: 0.5}
        for first in (3, 15):
            run.record(first, "train", loss=jnp.arange(first, first + 12.0))
        assert list(read_metrics(tmp_path)["train", "loss"]) == list(range(15))
        run.record(27, "train", loss=jnp.array(math.nan))
        run.record(28, "train", loss=jnp.array(1.0))
        run.record(29, "test", loss=2.0)
    assert list(read_metrics(tmp_path)["train", "loss"]) == list(range(27))


@pytest.mark.parametrize("kind", [OnGpu, jnp.asarray])
@pytest.mark.parametrize(("last", "kept"), [(2.5, [1.5, 2.0, 2.5]), (math.nan, [1.5, 2.0])])
def test_rows_on_a_gpu_are_written_when_a_run_is_interrupted(tmp_path, capsys, kind, last, kept):
    """A value among them that is not finite does not hide that it was Ctrl-C that ended the run."""
    with pytest.raises(KeyboardInterrupt), Run(Config(tmp_path), {}) as run:
        for step, value in enumerate((1.5, 2.0, last)):
            run.record(step, "train", loss=kind(value))
        assert read_metrics(tmp_path) == {}
        raise KeyboardInterrupt
    assert list(read_metrics(tmp_path)["train", "loss"].values()) == kept
    assert capsys.readouterr().err.startswith("interrupted: what was recorded so far is in ")


def test_what_a_checkpoint_refers_to_is_on_the_disk(tmp_path, monkeypatch):
    """The lengths that state() returns are those that metrics.csv and samples.txt have on the disk, all rows in."""
    on_disk, fsync = {}, os.fsync

    def keep(number):
        fsync(number)
        on_disk[os.fstat(number).st_ino] = os.fstat(number).st_size

    monkeypatch.setattr(os, "fsync", keep)
    with Run(Config(tmp_path), {}) as run:
        run.record(0, "train", loss=OnGpu(1.0))
        run.write_sample("step 0", "To be, or not to be")
        sizes = run.state()["sizes"]
    assert read_metrics(tmp_path) == {("train", "loss"): {0: 1.0}}
    assert sizes.keys() == {"metrics.csv", "samples.txt"}
    for name, size in sizes.items():
        assert size == (tmp_path / name).stat().st_size == on_disk[(tmp_path / name).stat().st_ino] > 0


def test_result_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"cannot write to .*what was recorded so far is in .*metrics\.csv"):
        with Run(Config(tmp_path), {}) as run:
            run.record(0, "train", loss=1.0)
            (tmp_path / "result.json").mkdir()
            run.finish(loss=1.0)


def test_numpy_warnings_come_back_after_a_run(tmp_path):
    with Run(Config(tmp_path), {}), np.errstate():
        np.float64(1e308) * 10
    with pytest.warns(RuntimeWarning):
        np.float64(1e308) * 10


def test_clean_exit(capsys):
    with pytest.raises(SystemExit) as end, clean_exit():
        raise UserError("no such thing: do another")
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: no such thing: do another\n"
    code = "from common.program import clean_exit\nwith clean_exit():\n    raise KeyboardInterrupt"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stderr) == (130, "")
    with pytest.raises(SystemExit) as end, clean_exit():
        raise MemoryError
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("error: out of memory (no details): lower the sizes")
    with pytest.raises(RuntimeError, match="illegal memory access"), clean_exit():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(ZeroDivisionError), clean_exit():  # a mistake in the program keeps its traceback
        _ = 1 / 0


def test_baseline_that_is_not_finite(tmp_path):
    with pytest.raises(UserError, match="the baseline floor is nan, not finite: check the data"):
        Run(Config(tmp_path), {"mean": 1.0, "floor": math.nan})


def test_dry_run_is_never_longer_than_asked(tmp_path):
    with Run(Config(tmp_path, dry_run=True), {}) as run:
        assert list(run.steps(1)) == [0]
        assert list(run.steps(10)) == [0, 1, 2]


def test_paths_in_the_result():
    assert record._portable(ROOT / "ex01_linreg_numpy" / "out") == "ex01_linreg_numpy/out"
    assert record._portable(Path("/home/somebody/runs")) == "runs"
    assert record._portable(3) == 3


def test_commit(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    assert record._commit(tmp_path) is None
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "One"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert record._commit(tmp_path) == head
    (tmp_path / "file").write_text("two")
    assert record._commit(tmp_path) == head + "-dirty"


def test_check_config(tmp_path):
    check_config(Config(tmp_path), momentum=0)
    for field, value in {"batch_size": 0, "learning_rate": math.nan, "seed": -1, "momentum": -0.1}.items():
        with pytest.raises(ValueError, match="--" + field.replace("_", "-")):
            check_config(Config(tmp_path, **{field: value}), momentum=0)
    with pytest.raises(ValueError, match=r"--momentum must be at least 0 and at most 3\.4e\+38, not inf"):
        check_config(Config(tmp_path, momentum=math.inf), momentum=0)
    with pytest.raises(ValueError, match=r"--momentum must be above 0 and at most 3\.4e\+38, not 0\.0"):
        check_config(Config(tmp_path))
    check_config(Config(tmp_path, momentum=0.99), momentum=(0, 0.99))
    for value in (-0.1, 0.991):
        with pytest.raises(ValueError, match=f"--momentum must be at least 0 and at most 0.99, not {value}"):
            check_config(Config(tmp_path, momentum=value), momentum=(0, 0.99))


def test_smoothing():
    assert list(plotting._smooth(np.arange(10.0), 50)) == list(range(10))  # untouched at the start
    values = np.random.default_rng(0).normal(3, 1, 5000)
    smooth = plotting._smooth(values, 50)
    assert smooth[1000:].mean() == pytest.approx(values[1000:].mean(), abs=0.01)
    assert smooth[1000:].std() == pytest.approx(1 / math.sqrt(2 * 50 - 1), rel=0.2)  # of an exponential mean of noise
    assert (plotting._smooth(np.full(1000, 1e-18), 10) > 0).all()  # a logarithmic axis can show it


@pytest.fixture
def figures(monkeypatch):
    """Return a dictionary that gets the figures that would be saved, by path."""
    figures = {}
    monkeypatch.setattr(plotting, "save", lambda figure, path: figures.update({path: figure}))
    return figures


def test_loss_picture(tmp_path, figures):
    run_to_the_end(tmp_path, **{"ln 2": math.log(2), "floor": 0.01})
    plotting.plot_loss(tmp_path, "nats per sample", log="xy")
    figure = figures[tmp_path / "loss.png"]
    loss, error = figure.axes
    assert (loss.get_xscale(), loss.get_yscale()) == ("symlog", "log")
    assert loss.get_ylabel() == "loss (nats per sample)"
    assert loss.get_xlabel() == "steps of gradient descent (8 samples each)"
    lines = {line.get_label(): line for line in loss.get_lines()}
    assert list(lines["training batch"].get_ydata()) == [1 / (step + 1) for step in range(100)]
    assert list(lines["test set"].get_xdata()) == list(range(0, 100, 10))
    assert sorted(line.get_ydata()[0] for line in loss.get_lines() if line.get_linestyle() == "--") == [
        0.01,
        math.log(2),
    ]
    assert list(lines["smoothed over 1 batches"].get_xdata()) == list(range(100))
    assert error.get_lines()[0].get_ydata()[-1] == pytest.approx(100 * (1 - (0.5 + 90 / 250)))  # per cent wrong
    assert "test loss 0.25" in figure.get_suptitle()


@pytest.mark.parametrize(("last", "marked"), [(2.0, False), (2.015, False), (2.03, True), (9.0, True)])
def test_overfitting_is_marked_at_the_least_validation_loss(tmp_path, figures, last, marked):
    """Neither at the first, the last or the largest, and only where it has risen by more than 1 % since."""
    with Run(Config(tmp_path), {}) as run:
        for step, value in {0: 4.0, 10: 3.0, 20: 2.0, 30: 5.0, 40: last}.items():
            run.record(step, "train", loss=1 / (step + 1))
            run.record(step, "validation", loss=value)
        run.finish(validation_loss=last)
    plotting.plot_loss(tmp_path, "nats")
    (ax,) = figures[tmp_path / "loss.png"].axes
    marks = [line for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert len(marks) == marked
    for mark in marks:
        assert list(mark.get_xdata()) == [20, 20]
        assert mark.get_label() == "least, 2 at step 20: overfits from here on"


def test_runs_beside_one_another_show_losses_and_errors(tmp_path, figures):
    for name, accuracies in {"adam": (0.5, 0.98), "sgd": (0.25, 0.9)}.items():
        with Run(Config(tmp_path / name), {}) as run:
            for step, accuracy in enumerate(accuracies):
                run.record(10 * step, "train", loss=1 - accuracy)
                run.record(10 * step, "test", loss=7.0, accuracy=accuracy)
            run.finish(test_loss=7.0)
    plotting.plot_runs((tmp_path / "adam", tmp_path / "sgd"), tmp_path / "both.png")
    loss, error = figures[tmp_path / "both.png"].axes
    for ax, adam, sgd in ((loss, [0.5, 0.02], [0.75, 0.1]), (error, [50, 2], [75, 10])):
        assert [line.get_label() for line in ax.get_lines()] == ["adam", "sgd"]
        for line, values in zip(ax.get_lines(), (adam, sgd), strict=True):
            assert list(line.get_xdata()) == [0, 10]
            assert line.get_ydata() == pytest.approx(values)


@pytest.mark.parametrize(("channels", "shown"), [(3, 3), (20, 16)])
def test_features_picture(tmp_path, figures, channels, shown):
    """The filters and, in the same order, their maps, upright; red is ink (1), and a map is white at 0."""
    rng = np.random.default_rng(0)
    filters = rng.normal(-1, 1, (5, 5, channels))
    image, maps = rng.random((28, 28)), 0.5 + rng.random((12, 12, channels))
    plotting.plot_features(tmp_path, filters, image, maps)
    parts = figures[tmp_path / "features.png"].subfigs
    drawn = [[picture for ax in part.axes for picture in ax.images] for part in parts]
    assert [len(pictures) for pictures in drawn] == [shown, 1, shown]
    for i in range(shown):
        np.testing.assert_array_equal(drawn[0][i].get_array(), filters[..., i])
        np.testing.assert_array_equal(drawn[2][i].get_array(), maps[..., i])
    np.testing.assert_array_equal(drawn[1][0].get_array(), image)
    assert all(picture.origin == "upper" for pictures in drawn for picture in pictures)
    for i in range(shown):
        red, _, blue, _ = drawn[0][i].to_rgba([[-1.0, 0.0, 1.0]])[0].T
        assert (red > blue + 0.1).tolist() == [False, False, True]
        assert (blue > red + 0.1).tolist() == [True, False, False]
        assert drawn[2][i].to_rgba([[0.0]]).min() == 1
        assert drawn[2][i].to_rgba([[0.5]])[..., :3].max() < 0.95  # the scale begins at 0, not at the least value
    assert len({picture.get_clim() for picture in drawn[0]}) == len({picture.get_clim() for picture in drawn[2]}) == 1


def test_attention_picture(tmp_path, figures):
    """A row of each picture is a query, what that word attends to, and its column a key."""
    weights = list(np.random.default_rng(0).dirichlet(np.ones(4), (3, 2, 4)))  # of 3 layers and 2 heads
    plotting.plot_attention(tmp_path, weights, ["a", "b", "c", "d"])
    axes = figures[tmp_path / "attention.png"].axes
    titles = [f"layer {layer}, head {head}" for layer in (1, 2, 3) for head in (1, 2)]
    assert [ax.get_title() for ax in axes] == titles
    for ax, expected in zip(axes, np.concatenate(weights), strict=True):
        (picture,) = ax.images
        np.testing.assert_array_equal(picture.get_array(), expected)
        assert picture.origin == "upper"
        assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c", "d"]
        assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("least", "scale"), [(70, "linear"), (2, "log")])
def test_error_axis_is_logarithmic_where_that_gives_it_labels(least, scale):
    ax = Figure().subplots()
    ax.plot([0, 1], [98, least])
    plotting._log_percent(ax)
    low, high = ax.get_ylim()
    assert ax.get_yscale() == scale
    assert sum(low <= tick <= high for tick in ax.get_yticks()) >= 4


def test_baseline_labels_stand_where_the_loss_is_not():
    ax = Figure().subplots()
    plotting._draw_baselines(ax, {"unigram": 5.5, "ln V": 8.9, "floor": 0.1})
    assert [text.get_ha() for text in ax.texts] == ["right", "right", "left"]


def test_pictures_are_files(tmp_path):
    run_to_the_end(tmp_path)
    plotting.plot_loss(tmp_path, "nats per sample")
    x = np.random.default_rng(0).normal(size=(100, 3))
    plotting.plot_regions(tmp_path, lambda points: (points[:, 0] > 0).astype(int), x, (x[:, 0] > 0).astype(int))
    for name in ("loss.png", "regions.png"):
        assert imread(tmp_path / name)[..., :3].std() > 0.05  # not a blank page
    regions = imread(tmp_path / "regions.png")
    height, width = regions.shape[:2]
    left, right = regions[height // 2, int(width * 0.3), :3], regions[height // 2, int(width * 0.8), :3]
    assert not np.allclose(left, right, atol=0.05)  # the two classes have two colours


def test_a_new_run_starts_every_file_anew_that_anything_writes():
    """The names in the sources of what writes into out/ are those that Run deletes or cuts back."""
    written = set()
    for module in ("plotting", "checkpoint", "record", "speed"):
        source = (ROOT / "common" / f"{module}.py").read_text(encoding="utf-8")
        written |= set(re.findall(r'out / "([a-z]+(?:\.\w+)+)"', source)) | set(
            re.findall(r'_write_json\("(\S+)"', source)
        )
    assert written == set(record.RUN_FILES)


def long_run(out, steps=30):
    with Run(Config(out), {"ln 2": math.log(2)}) as run:
        for step in run.steps(steps):
            if step % 10 == 0:
                run.record(step, "validation", loss=1 / (step + 1), accuracy=0.5)
            run.record(step, "train", loss=1 / (step + 1), lr=0.1 * step, grad_norm=2.0 + step)


def test_learning_rate_and_gradient_norm_have_a_panel(tmp_path, monkeypatch):
    long_run(tmp_path)
    monkeypatch.setattr(plotting, "save", lambda figure, path: figures.append(figure))
    figures = []
    plotting.plot_loss(tmp_path, "nats")
    axes = {ax.get_ylabel(): ax for ax in figures[0].axes}
    assert list(axes) == [
        "loss (nats)",
        "norm of the gradient, before clipping",
        "error (% of samples)",
        "learning rate",
    ]
    assert axes["norm of the gradient, before clipping"].lines[0].get_ydata().tolist() == [2.0 + i for i in range(30)]
    assert axes["learning rate"].lines[0].get_ydata().tolist() == [0.1 * step for step in range(30)]

    metrics = tmp_path / "metrics.csv"
    metrics.write_text("".join(line for line in metrics.read_text().splitlines(True) if ",lr," not in line))
    plotting.plot_loss(tmp_path, "nats")
    assert [ax.get_ylabel() for ax in figures[1].axes] == list(axes)[:3]


def test_tensorboard(tmp_path):
    """Every value of metrics.csv, under its metric and split; written twice, it has each once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    long_run(tmp_path)
    command = [sys.executable, "-m", "common.plotting", "--tensorboard"]
    for _ in range(2):
        result = subprocess.run([*command, tmp_path], capture_output=True, text=True, timeout=100)
        assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'tensorboard'}\n"
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    series = read_metrics(tmp_path)
    assert set(events.Tags()["scalars"]) == {f"{metric}/{split}" for split, metric in series}
    for (split, metric), values in series.items():
        found = {event.step: event.value for event in events.Scalars(f"{metric}/{split}")}
        assert found == pytest.approx(values, rel=1e-6)
        assert len(events.Scalars(f"{metric}/{split}")) == len(values)
    with pytest.raises(UserError, match=r"there is no .*none/metrics\.csv"):
        plotting.draw((tmp_path / "none",), tensorboard=True)


def test_without_tensorboard(tmp_path, monkeypatch):
    long_run(tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="TensorBoard is not installed: pip install tensorboard"):
        plotting.draw((tmp_path,), tensorboard=True)


def test_picture_that_cannot_be_written(tmp_path):
    run_to_the_end(tmp_path)
    (tmp_path / "loss.png").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*loss\.png"):
        plotting.plot_loss(tmp_path, "nats")


def test_runs_beside_one_another(tmp_path):
    for name in ("adam", "sgd"):
        run_to_the_end(tmp_path / name)
    command = [sys.executable, "-m", "common.plotting", tmp_path / "adam", tmp_path / "sgd", "--picture"]
    result = subprocess.run([*command, tmp_path / "both.png"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert imread(tmp_path / "both.png")[..., :3].std() > 0.05
    (tmp_path / "sgd" / "metrics.csv").unlink()
    one_sentence(
        subprocess.run([*command, "x.png"], capture_output=True, text=True), "sgd holds no metrics.csv of a run"
    )
