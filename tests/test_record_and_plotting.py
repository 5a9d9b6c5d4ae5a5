"""common/record.py and common/plotting.py: what a run writes down, and the pictures drawn from it."""

import errno
import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from common import UserError, plotting, record
from common.curriculum import ROOT
from common.program import check_config, clean_exit
from common.record import Run

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


def test_loss_picture(tmp_path, monkeypatch):
    run_to_the_end(tmp_path, **{"ln 2": math.log(2), "floor": 0.01})
    figures = []
    monkeypatch.setattr(plotting, "save", lambda figure, path: figures.append((figure, path)))
    plotting.plot_loss(tmp_path, "nats per sample", log="xy")
    ((figure, path),) = figures
    assert path == tmp_path / "loss.png"
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
    for module in ("plotting", "checkpoint", "record"):
        source = (ROOT / "common" / f"{module}.py").read_text(encoding="utf-8")
        written |= set(re.findall(r'out / "([a-z]+\.\w+)"', source)) | set(re.findall(r'_write_json\("(\S+)"', source))
    assert written == set(record.RUN_FILES)


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
