"""The commits of an exercise: they lead from its parent's program to its own, one idea each, and each step runs."""

import runpy
import shutil
import subprocess
import sys

from common import UserError
from common.cli import commits
from common.curriculum import EXERCISES, find_exercise

import pytest
import torch
from helpers import train_py
from test_rampup import rampup

WITH_COMMITS = [exercise.number for exercise in EXERCISES if commits.folder_of(exercise).exists()]
SMALL = {
    "channels": 8,
    "vocab_size": 512,
    "size": 32,
    "train_size": 32,
    "workers": 0,
    "max_new_tokens": 4,
}  # of a dry run, where a program has the flag
with_commits = pytest.mark.parametrize("number", WITH_COMMITS)


@pytest.fixture
def series(monkeypatch, tmp_path):
    """Exercise 7, whose patches are a copy that a test may spoil."""
    exercise = find_exercise(7)
    shutil.copytree(commits.folder_of(exercise), tmp_path / "commits")
    monkeypatch.setattr(commits, "folder_of", lambda exercise: tmp_path / "commits")
    return exercise


@with_commits
def test_commits_lead_from_the_parent_to_the_exercise(number):
    assert commits.check_commits(find_exercise(number)) == []


@with_commits
def test_every_step_runs(number, quick_compiler, without_pictures, tmp_path, monkeypatch, capsys):
    *steps, _ = commits.split(find_exercise(number), tmp_path)  # the last is the exercise's own program
    for path in steps:  # all in this process, which has its libraries loaded
        source = (path / "train.py").read_text(encoding="utf-8")
        small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items() if f"    {name}: int" in source]
        monkeypatch.setattr(sys, "argv", ["train.py", "--dry-run", *small])
        runpy.run_path(str(path / "train.py"), run_name="__main__")
        assert capsys.readouterr().out.splitlines()[-1].startswith("result: "), path.name
        torch.set_default_dtype(torch.float32)  # which exercise 7's first steps change


@with_commits
def test_git_apply_takes_them(number, tmp_path):
    exercise = find_exercise(number)
    shutil.copy(train_py(exercise.parent), tmp_path / "train.py")
    patches = sorted(commits.folder_of(exercise).glob("*.patch"), key=lambda path: commits.number_of(path.name))
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "apply", *patches], cwd=tmp_path, check=True)
    assert (tmp_path / "train.py").read_bytes() == train_py(number).read_bytes()


def test_split_and_join_are_inverse(series, tmp_path):
    before = {path.name: path.read_bytes() for path in commits.folder_of(series).glob("*.patch")}
    commits.split(series, tmp_path / "split")
    commits.join(series, tmp_path / "split")
    assert {path.name: path.read_bytes() for path in commits.folder_of(series).glob("*.patch")} == before
    with pytest.raises(UserError, match="name a new folder"):
        commits.split(series, tmp_path / "split")

    changed = tmp_path / "split" / "4-test-set" / "train.py"  # an edit in the middle, undone by the next patch
    changed.write_text(changed.read_text().replace("# random seed", "# the seed"))
    commits.join(series, tmp_path / "split")
    assert commits.check_commits(series) == []
    assert [commit.lines for commit in commits.read_commits(series)] == [13, 22, 59, 26, 3, 17]


def test_join_refuses(series, tmp_path):
    with pytest.raises(UserError, match="holds no folders"):
        commits.join(series, tmp_path / "none")
    commits.split(series, tmp_path / "split")
    last = tmp_path / "split" / "6-device" / "train.py"
    last.write_text(last.read_text() + "# more\n")
    with pytest.raises(UserError, match=r"is not ex07_mnist_mlp/train.py"):
        commits.join(series, tmp_path / "split")
    assert commits.check_commits(series) == []
    last.unlink()
    with pytest.raises(UserError, match="cannot read"):
        commits.join(series, tmp_path / "split")


def test_a_series_that_does_not_fit_is_noticed(series):
    path = commits.folder_of(series) / "3-digits.patch"
    text = path.read_text()
    path.write_text(text.replace(" def batches(", " def batchez(", 1))
    with pytest.raises(UserError, match=r"3-digits.patch does not fit: line \d+ is not 'def batchez"):
        commits.check_commits(series)
    path.write_text(
        text.replace("+    hidden: int = 256", "+    hidden: int = 257")
    )  # fits, until its last line is read
    with pytest.raises(UserError, match=r"4-test-set.patch does not fit|do not end"):
        assert commits.check_commits(series) == ["the patches of ex07_mnist_mlp do not end at its train.py"]
        raise UserError("do not end")
    path.write_text(text.partition("\n\n")[0] + "\n---\n" + text.partition("\n---\n")[2])
    assert commits.check_commits(series) == [
        "3-digits: the message has a title, an empty line, and three to eight more"
    ]


def test_commands(tmp_path):
    listed = rampup("commits", 7).stdout
    assert "  4  Measure it on digits that it has never seen  24 lines" in listed
    assert listed in rampup("diff", 7).stdout
    assert rampup("commits", 2).stdout == "ex02_linreg_torch is one commit: rampup diff 2\n"
    shown = rampup("diff", 7, "--commit", 4).stdout
    assert shown.startswith("Measure it on digits that it has never seen\n\nThe other 10,000 images")
    assert "24 changed lines" in shown
    assert 'run.record(step, "test"' in shown
    page = tmp_path / "page.html"
    assert rampup("diff", 7, "--commit", 4, "--html", page).returncode == 0
    assert "generalisation gap" in page.read_text(encoding="utf-8")
    refused = {
        ("diff", 7, "--commit", 9): "has commits 1 to 6",
        ("diff", 2, "--commit", 1): "no commits",
        ("diff", 7, 8, "--commit", 1): "--commit is of one exercise",
    }
    for arguments, said in refused.items():
        result = rampup(*arguments)
        assert result.returncode == 1
        assert said in result.stderr
    assert "lead from its parent" in rampup("commits", 7, "--check").stdout

    assert rampup("start", 7, tmp_path / "mine", "--commit", 3).returncode == 0
    begun = (tmp_path / "mine" / "train.py").read_text(encoding="utf-8")
    assert "So far 3 of its commits are made, up to: Handwritten digits in place of spirals." in begun
    assert commits.changed_lines(commits.commit_of(find_exercise(7), 3).after, begun) == 0
