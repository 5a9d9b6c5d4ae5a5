"""`rampup start`: the folder that it makes, and the checks in it, which the solution passes and its parent does not."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from common import UserError
from common.cli import check_it, commands, start
from common.cli.diff import changed_lines
from common.curriculum import ROOT, find_exercise

import pytest
import torch
from helpers import numbers, train_py
from test_rampup import rampup

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(autouse=True)
def dtype():
    yield
    torch.set_default_dtype(torch.float32)
    sys.modules.pop("train", None)


def checks_of(folder: Path) -> list:
    """Return the checks in a folder's check_it.py, with its train.py imported, as if it were run there."""
    modules = {}
    for name in ("train", "check_it"):
        modules[name] = ModuleType(name)
        modules[name].__file__ = str(folder / f"{name}.py")
        sys.modules[name] = modules[name]
        source = (folder / f"{name}.py").read_text(encoding="utf-8")
        exec(compile(source, modules[name].__file__, "exec"), modules[name].__dict__)
    sys.modules.pop("check_it")
    return [value for name, value in vars(modules["check_it"]).items() if name.startswith("test_")]


@numbers
def test_solution_passes_and_its_parent_does_not(number, tmp_path):
    exercise = find_exercise(number)
    start.start(exercise, tmp_path)
    assert start.marked(tmp_path) == exercise.folder
    assert any(check_it.attempt(test) for test in checks_of(tmp_path))
    (tmp_path / "train.py").write_text(train_py(number).read_text(encoding="utf-8"), encoding="utf-8")
    for test in checks_of(tmp_path):
        assert check_it.attempt(test) == "", test.__doc__


@numbers
def test_folder_begins_with_the_parents_program(number, tmp_path):
    exercise = find_exercise(number)
    start.start(exercise, tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        ".exercise", "check_it.py", "task.md", "train.py",
    ]  # fmt: skip
    program = (tmp_path / "mine" / "train.py").read_text(encoding="utf-8")
    parent = train_py(exercise.parent or 1).read_text(encoding="utf-8")
    assert changed_lines(parent, program) == (0 if exercise.parent else 9)  # the body of backward, and the gap
    docstring = ast.get_docstring(ast.parse(program))
    assert " ".join(exercise.sentence.split()) in " ".join(docstring.split())
    assert "\n1. " in docstring
    assert "\n2. " in docstring
    task = (tmp_path / "mine" / "task.md").read_text(encoding="utf-8")
    assert "**Done** when" in task
    assert "](../" not in task


def test_start_check_hint_and_review_of_an_own_folder(tmp_path):
    result = rampup("start", 1, cwd=tmp_path)
    folder = tmp_path / "my_ex01_linreg_numpy"
    assert result.returncode == 0, result.stderr
    assert "cd my_ex01_linreg_numpy" in result.stdout
    command = [sys.executable, "check_it.py"]
    tried = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert tried.returncode == 1
    assert "not written yet (train.py, line " in tried.stdout
    assert "4 to go" in tried.stdout
    checked = rampup("check", cwd=folder)  # the number stands in the folder
    assert checked.returncode == 1
    assert "as exercise 1" in checked.stdout
    assert "derive the gradient" in checked.stdout
    assert "Exercise 1:" in rampup("hint", cwd=folder).stdout
    assert rampup("review", cwd=folder).returncode == 0
    assert (folder / "review_ex01_linreg_numpy.html").exists()

    (folder / "train.py").write_text(train_py(1).read_text(encoding="utf-8"), encoding="utf-8")
    tried = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert (tried.returncode, tried.stdout.count("\nok ")) == (0, 3), tried.stdout
    other = rampup("check", 2, "--folder", "my_ex01_linreg_numpy", "--dry-run", cwd=tmp_path)
    assert "this folder was begun for ex01_linreg_numpy" in other.stdout


def test_start_leaves_what_is_there(tmp_path):
    (tmp_path / "check_it.py").write_text("mine")
    with pytest.raises(UserError, match="has a check_it.py already, which stays as it is: name a new folder"):
        start.start(find_exercise(4), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["check_it.py"]
    assert (tmp_path / "check_it.py").read_text() == "mine"
    with pytest.raises(UserError, match="name another folder"):
        start.start(find_exercise(4), tmp_path / "check_it.py" / "below")


def test_start_with_ones_own_program(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text("# no docstring\nx = 1\n")
    start.start(find_exercise(5), tmp_path / "a", own)
    program = (tmp_path / "a" / "train.py").read_text(encoding="utf-8")
    assert program.endswith('"""\n\n# no docstring\nx = 1\n')
    assert "So far this is mine.py as you wrote it" in program
    for name, text in (("broken.py", "def ("), ("binary.py", "\0"), ("none.py", None)):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="cannot begin with .*: name the train.py of the exercise before"):
            start.start(find_exercise(5), tmp_path / "b", tmp_path / name)
    assert not (tmp_path / "b").exists()


def test_exercise_must_be_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="which exercise"):
        commands.which("")
    (tmp_path / ".exercise").write_text("ex99\n../../etc")
    with pytest.raises(UserError, match="which exercise"):
        commands.which("")
    (tmp_path / ".exercise").write_text("ex04_softmax\n")
    assert commands.which("").number == 4
    assert commands.which("7").number == 7  # what one says counts
    assert commands.which("", ROOT / "ex04_softmax" / ".." / tmp_path / "train.py").number == 4


def test_what_a_check_says():
    def config():
        raise TypeError("Config.__init__() got an unexpected keyword argument 'layers'")

    train = ModuleType("train")
    assert check_it.attempt(config) == "Config has no field layers yet"
    assert check_it.attempt(lambda: train.forward) == "train.py has no forward yet"
    assert "ZeroDivisionError: division by zero (test_start.py" in check_it.attempt(lambda: 1 / 0)
    assert check_it.attempt(lambda: sys.exit("--batch-size is larger")).startswith("train.py ended")
    with pytest.raises(AssertionError, match="the loss is nan, expected 1"):
        check_it.is_near("the loss", float("nan"), 1, 0.1)
    with pytest.raises(AssertionError, match="differ by up to nan"):
        check_it.are_equal("the losses", torch.tensor([float("nan")]), torch.tensor([1.0]), 0.1)
