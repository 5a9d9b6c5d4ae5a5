"""common/checkpoint.py: what has a file's name is on the disk, whole, before anything is lost for it."""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from common import checkpoint

import numpy as np
import pytest
import tyro
from helpers import load


@dataclass
class Config:
    out: Path
    steps: int = 10


class Written:
    """A run as far as a checkpoint needs it; its files are written when it is asked for its state."""

    def __init__(self, out, events):
        self.config, self.out = Config(out), out
        self.latest = self.least = {"validation loss": 1.0}
        self.events = events

    def state(self):
        self.events.append("history")
        return {"sizes": {}, "latest": {}, "least": {}, "seconds": 1.0}


@pytest.fixture
def events(tmp_path, monkeypatch):
    """Return a list that gets what happens to the folder: fsync of file or folder, and replace, with the file's size.

    The size at fsync is that of what is on the disk then, whatever Python still has in a buffer.
    """
    events, fsync, replace = [], os.fsync, os.replace

    def keep(number):
        found = os.fstat(number)
        if stat.S_ISDIR(found.st_mode):
            assert found.st_ino == tmp_path.stat().st_ino
            events.append("folder")
        else:
            events.append(("file", found.st_ino, found.st_size))
        fsync(number)

    def move(old, new):
        replace(old, new)
        events.append(("replace", os.stat(new).st_ino, os.stat(new).st_size))

    monkeypatch.setattr(os, "fsync", keep)
    monkeypatch.setattr(os, "replace", move)
    return events


def write_json(run, name):
    with checkpoint.whole_file(run.out / name) as file:
        file.write(json.dumps(list(range(100))).encode())


def save_torch(run, name):
    import torch

    model = torch.nn.Linear(3, 2)
    if name == "best.pt":
        checkpoint.save_best(run, 5, None, model)
    else:
        checkpoint.save_torch(run, 5, None, model, [], torch.amp.GradScaler("cpu", enabled=False))


def save_jax(run, name):
    checkpoint.save_jax(run, 5, [np.arange(50.0)])


@pytest.mark.parametrize(
    ("save", "name"),
    [(write_json, "a.json"), (save_torch, "checkpoint.pt"), (save_torch, "best.pt"), (save_jax, "checkpoint.npz")],
)
def test_whole_and_on_the_disk_before_it_gets_its_name(save, name, events, tmp_path):
    """All of its bytes; then it gets its name; then the name is on the disk. The run's own files come before it."""
    path = tmp_path / name
    path.write_bytes(b"an older one")
    save(Written(tmp_path, events), name)
    file = (path.stat().st_ino, path.stat().st_size)
    folder = ["folder"] if hasattr(os, "O_DIRECTORY") else []  # Windows cannot open one
    history = [] if save is write_json else ["history"]
    assert events == [*history, ("file", *file), ("replace", *file), *folder]
    assert [found.name for found in tmp_path.iterdir()] == [name]


def test_interrupted_file_leaves_the_old_one(events, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"an older one")
    with pytest.raises(KeyboardInterrupt), checkpoint.whole_file(path) as file:
        file.write(b"half of")
        raise KeyboardInterrupt
    assert events == []
    assert path.read_bytes() == b"an older one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [15, 16, 17])
def test_resume_is_one_flag(number, capsys):
    """Bare it is yes, wherever it stands."""
    config = load(number).Config
    for flags, value in (
        ([], "auto"),
        (["--resume"], "yes"),
        (["--resume", "--seed", "3"], "yes"),
        (["--seed", "3", "--resume", "no"], "no"),
        (["--resume=auto"], "auto"),
    ):
        assert tyro.cli(config, args=flags).resume == value
    with pytest.raises(SystemExit):
        tyro.cli(config, args=["--resume", "perhaps"])
    assert "--resume: give yes, no or auto" in capsys.readouterr().err


@pytest.mark.parametrize(("save", "name"), [(save_torch, "checkpoint.pt"), (save_jax, "checkpoint.npz")])
def test_auto_resumes_a_restart_of_the_same_torchrun(save, name, tmp_path, monkeypatch):
    path = tmp_path / name
    monkeypatch.setattr(checkpoint, "RUN_ID", "a")
    assert not checkpoint.should_resume("auto", path)  # there is none yet
    save(Written(tmp_path, []), name)
    found = {flag: checkpoint.should_resume(flag, path) for flag in ("yes", "no", "auto")}
    assert found == {"yes": True, "no": False, "auto": True}
    for other in ("b", "none"):
        monkeypatch.setattr(checkpoint, "RUN_ID", other)
        assert not checkpoint.should_resume("auto", path)
