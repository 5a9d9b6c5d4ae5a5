"""The promises that every train.py makes, checked from outside, in processes of their own."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

from common import UserError, data
from common.curriculum import ROOT
from common.text import split_words

import numpy as np
import pytest
import tyro
from helpers import BUILT, cut_off, load, numbers, one_sentence, read_metrics, run, run_anew, train_py


@numbers
def test_dry_run(number, tmp_path, monkeypatch):
    monkeypatch.setenv("RAMPUP_DATA", "/nowhere")
    device = ("--device", "cpu") if number >= 7 else ()  # a GPU need not give the same numbers twice
    start = run_anew if number in (1, 6, 8, 17) else run  # one of each library in a Python as a user's
    result = start(number, "--dry-run", *device, "--out", tmp_path / "a", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith("data: ")
    assert any(line.startswith("baselines: ") for line in lines)
    assert re.fullmatch(r"result: (\w+=\S+ )+seconds=\d+\.\d", lines[-1])
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["dry_run"]  # a real run's files are safe from it
    series = read_metrics(tmp_path / "a" / "dry_run")
    assert list(series["train", "loss"]) == [0, 1, 2]
    evaluated = next(values for (split, _), values in series.items() if split != "train")
    assert list(evaluated) == [0, 3]
    if number >= 2:
        assert (tmp_path / "a" / "dry_run" / "loss.png").stat().st_size > 10_000
    # The flags that it recorded, in another process, give the same bytes on a CPU with one thread; another seed not.
    ex = load(number)
    flags = json.loads((tmp_path / "a" / "dry_run" / "result.json").read_bytes())["config"]
    ex.main(ex.Config(**flags | {"out": tmp_path / "b"}))
    metrics = ex.main(ex.Config(**flags | {"out": tmp_path / "c", "seed": 3}))
    csv = [(tmp_path / name / "dry_run" / "metrics.csv").read_bytes() for name in "abc"]
    assert csv[0] == csv[1] != csv[2]
    check_result_json(number, tmp_path / "c", metrics)


def check_result_json(number, out, metrics):
    """Check what result.json says of a dry run with seed 3."""
    text = (out / "dry_run" / "result.json").read_text(encoding="utf-8")
    result = json.loads(text)
    assert result["exercise"] == train_py(number).parent.name
    assert result["seed"] == result["config"]["seed"] == 3
    assert result["metrics"] == metrics
    assert set(result["config"]) == {field.name for field in dataclasses.fields(load(number).Config)}
    assert result["config"]["out"] == out.name  # no folder of this machine
    assert result["baselines"]
    assert result["versions"]["numpy"]
    assert result["seconds"] > 0
    assert str(ROOT) not in text
    assert str(out.parent) not in text


@numbers
def test_help_names_every_field(number, monkeypatch, capsys):
    module = load(number)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        tyro.cli(module.Config, args=["--help"], description=module.__doc__)
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(module.Config):
        assert "--" + field.name.replace("_", "-") in shown
    assert "learning rate" in shown
    assert "Exercise" in shown


@numbers
def test_bad_flags_are_refused_before_anything_is_lost(number, tmp_path, capsys):
    (tmp_path / "metrics.csv").write_text("an earlier run\n")
    ex, flags = load(number), ["--dry-run", "--batch-size", str(10**7), "--out", str(tmp_path)]
    with pytest.raises((SystemExit, UserError)) as end:
        ex.main(tyro.cli(ex.Config, args=flags))
    said = f"{capsys.readouterr().err} {end.value}".replace("│", " ")
    assert "--batch-size 10000000 is larger than" in " ".join(said.split())
    assert (tmp_path / "metrics.csv").read_text(encoding="utf-8") == "an earlier run\n"


@pytest.mark.parametrize("number", [1, 8, 17])
def test_bad_flags_are_refused_with_one_sentence(number, tmp_path):
    """What clean_exit() makes of a refusal, which all have around main()."""
    one_sentence(run(number, "--steps", "many", "--out", tmp_path), "--steps", "many")
    result = run(number, "--dry-run", "--batch-size", 10**7, "--out", tmp_path)
    one_sentence(result, "--batch-size 10000000 is larger than")


@numbers
@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--no-such-flag", "1", "Unrecognized options: --no-such-flag"),
        ("--steps", "0", "--steps must be above 0"),
        ("--steps", "1.5", "invalid literal for int"),
        ("--batch-size", "-5", "--batch-size must be above 0"),
        ("--learning-rate", "nan", "--learning-rate must be above 0"),
        ("--learning-rate", "inf", "--learning-rate must be above 0 and at most 3.4e+38, not inf"),
        ("--steps", "9" * 30, "--steps must be above 0 and at most 9e+15"),
        ("--seed", "-1", "--seed must be at least 0"),
        ("--seed", "9" * 30, "--seed must be at least 0 and at most 9e+15"),
    ],
)
def test_flag_out_of_range(number, flag, value, message, capsys):
    with pytest.raises(SystemExit) as end:
        tyro.cli(load(number).Config, args=[flag, value])
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("number", [1, 8, 17])
def test_unwritable_output_folder(number, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = run(number, "--dry-run", "--out", tmp_path / "file" / "out")
    one_sentence(result, "cannot write to the folder", "Not a directory", "choose another folder with --out DIR")
    assert result.returncode == 1


# `Run` checks every loss of every exercise; 14, 15 and 17 have code of their own between it and their losses.
@pytest.mark.parametrize("number", [1, 4, 7, 8, 14, 15, 17])
def test_loss_that_is_not_finite_stops_the_run(number, tmp_path, request, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of the programs
    flags = ("--device", "cpu") if number >= 7 else ()
    if number in (7, 8, 14):
        request.getfixturevalue("mnist")
    if number == 15:
        flags += ("--dummy-data", "--size", 32, "--train-size", 32, "--channels", 2, "--workers", 0)
    if number == 17:
        flags += ("--data", request.getfixturevalue("openwebtext"), *LONG[17])
    result = run(number, *flags, "--learning-rate", "1e38", "--eval-every", 10**6, "--out", tmp_path)
    if number == 4:  # whose gradients are bounded, and whose log-softmax is finite for logits of any size
        assert result.returncode == 0
        return
    one_sentence(result, "train loss is", "at step", "with learning rate 1e+38", "lower --learning-rate")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1  # no warnings of numpy beside it
    series = read_metrics(tmp_path)
    step = int(re.search(r"at step (\d+)", result.stderr)[1])
    assert list(series["train", "loss"]) == list(range(step))  # all before it is kept


@pytest.mark.parametrize("number", [1, 6])
def test_ctrl_c(number, tmp_path):
    command = [sys.executable, train_py(number), "--steps", "1000000", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "metrics.csv").exists() or (tmp_path / "metrics.csv").stat().st_size < 10_000:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert stderr.startswith("interrupted: what was recorded so far is in ")
    assert "result:" not in stdout
    steps = list(read_metrics(tmp_path)["train", "loss"])
    assert steps == list(range(len(steps)))
    assert not (tmp_path / "result.json").exists()
    assert json.loads((tmp_path / "run.json").read_bytes())["exercise"] == train_py(number).parent.name


def test_an_interrupted_run_can_be_drawn(tmp_path):
    with cut_off(20):
        ex = load(7)
        ex.main(ex.Config(out=tmp_path, device="cpu"))
    command = [sys.executable, "-m", "common.plotting", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.stdout == f"{tmp_path / 'loss.png'}\n", result.stderr
    assert (tmp_path / "loss.png").stat().st_size > 10_000
    result = subprocess.run([*command[:3], tmp_path / "none"], capture_output=True, text=True, cwd=ROOT)
    one_sentence(result, "there is no", "metrics.csv: give the --out of a run")


@pytest.mark.parametrize("kibibytes", [7, 8])
def test_full_disk(kibibytes, tmp_path):
    # A limit on the size of files stands in for the full disk: writes come back short, then fail.
    command = [
        "bash",
        "-c",
        f'ulimit -f {kibibytes}; exec "$@"',
        "bash",
        sys.executable,
        train_py(1),
        "--out",
        tmp_path,
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    one_sentence(result, "cannot write to", "what was recorded so far is in", "--out DIR")
    assert result.returncode == 1
    steps = list(read_metrics(tmp_path)["train", "loss"])  # which reads whole lines only
    assert steps == list(range(len(steps)))
    size = (tmp_path / "metrics.csv").stat().st_size
    assert kibibytes * 1024 - 40 < size <= kibibytes * 1024  # nothing that had room was lost


def test_two_runs_into_one_folder(tmp_path):
    command = [sys.executable, train_py(1), "--steps", "10000000", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "metrics.csv").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        one_sentence(
            run(1, "--out", tmp_path), f"another run is writing to {tmp_path}", "choose another folder with --out DIR"
        )
    finally:
        process.kill()
        process.wait()
    assert run(1, "--dry-run", "--out", tmp_path).returncode == 0  # a killed run leaves the folder free


def test_refused_run_loses_nothing(tmp_path):
    assert run(1, "--steps", "5", "--out", tmp_path).returncode == 0
    before = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / "loss.png").mkdir()
    one_sentence(run(1, "--steps", "5", "--seed", "1", "--out", tmp_path), "cannot write to the folder")
    assert (tmp_path / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("flags", [("--num-samples", 1, "--batch-size", 1), ("--num-samples", 2, "--batch-size", 1)])
def test_data_too_small_to_say_anything(flags, tmp_path):
    for number in (3, 4):
        result = run(number, *flags, "--out", tmp_path)
        assert result.returncode != 0
        assert "Traceback" not in result.stderr
        assert "check the data" in result.stderr or "--num-samples must be at least 2" in result.stderr


def test_reader_that_goes_away(tmp_path):
    command = f"{sys.executable} {train_py(1)} --out {tmp_path} | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert result.stdout.startswith("data: ")
    assert result.stderr == ""


def test_progress_bar_on_a_terminal(tmp_path):
    """In a terminal of 100 columns there is one line that is written over, and the result line behind it."""
    import pty
    import termios

    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (30, 100))
    command = [sys.executable, train_py(1), "--steps", "20000", "--out", tmp_path]
    process = subprocess.Popen(command, stdout=child, stderr=subprocess.PIPE)
    os.close(child)
    output = b""
    with contextlib.suppress(OSError):  # Linux says "input/output error" when the other end closes
        while part := os.read(parent, 4096):
            output += part
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == b""
    assert b" % of 20000 steps, " in output
    assert b"train loss 0.0" in output
    lines = output.decode().replace("\r\n", "\n").rstrip().split("\n")
    assert lines[-1].startswith("result: loss=0.01")
    assert len(lines) <= 6


SMALL = ("--layers", 1, "--channels", 16, "--heads", 2, "--eval-every", 20, "--max-new-tokens", 5)
LONG = {  # flags that make a run go on for long, with evaluations and checkpoints now and then
    1: (),
    8: ("--eval-every", 5),
    15: ("--dummy-data", "--channels", 2, "--size", 32, "--train-size", 32, "--batch-size", 8, "--workers", 0),
    16: SMALL,
    17: (*SMALL, "--batch-size", 2, "--no-compile", "--precision", "float32", "--val-share", 0.002),
}


@pytest.mark.parametrize("number", LONG)
def test_sigterm(number, tmp_path, request, monkeypatch):
    """15 to 17 save after the step at hand; all keep every row, say so, and end with 143."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of the programs
    device = ("--device", "cpu", "--steps", 10**6) if number > 6 else ("--steps", 10**6)
    if number == 17:
        device += ("--data", request.getfixturevalue("openwebtext"))
    command = [sys.executable, train_py(number), *LONG[number], *device, "--out", tmp_path / "out"]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "metrics.csv").exists() or not has_row(tmp_path / "out", 25):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert "ended by SIGTERM: what was recorded so far is in " in stderr
    assert "Traceback" not in stderr
    steps = list(read_metrics(tmp_path / "out")["train", "loss"])
    assert steps == list(range(len(steps)))
    if number < 15:
        return
    result = run(number, "--resume", "--out", tmp_path / "out", "--steps", len(steps))
    assert result.returncode == 0, result.stderr
    assert list(read_metrics(tmp_path / "out")["train", "loss"]) == steps  # all was in the checkpoint


def has_row(out, step):
    return f"\n{step},train".encode() in (out / "metrics.csv").read_bytes()


@numbers
def test_common_is_imported_first_and_ends_the_program(number):
    """Before anything that takes long, so that Ctrl-C and SIGTERM are heard; and clean_exit() is around it all."""
    source = train_py(number).read_text(encoding="utf-8")
    assert source.index("\nfrom common") < re.search(r"\nimport (numpy|torch|jax)", source).start()
    assert '\nif __name__ == "__main__":\n    with clean_exit():\n' in source


def test_ctrl_c_while_it_imports():
    """From the moment on that common is imported."""
    code = "import signal, common; signal.raise_signal(signal.SIGINT)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 130
    assert result.stderr == ""


def test_ctrl_c_while_the_garbage_collector_calls_jax():
    """Which ignores what is raised there: the signal comes again."""
    code = """
import gc, signal, time
from common.program import clean_exit
signals = [signal.SIGINT]
def _xla_gc_callback(*_):
    if signals:
        signal.raise_signal(signals.pop())
        sum(range(10))  # the handler runs in here
gc.callbacks.append(_xla_gc_callback)
with clean_exit():
    gc.collect()
    time.sleep(30)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert result.returncode == 130
    assert result.stderr == ""


def test_another_exercises_files_are_left_alone(tmp_path):
    assert run(16, *LONG[16], "--steps", 4, "--device", "cpu", "--out", tmp_path).returncode == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    one_sentence(run(1, "--out", tmp_path), "belongs to ex16_gpu_nanogpt", "choose another --out DIR")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "best.pt").write_text("a model of my own")
    one_sentence(run(1, "--out", tmp_path / "mine"), "best.pt belongs to another program")
    assert (tmp_path / "mine" / "best.pt").exists()


def test_checkpoint_that_took_long_is_not_replaced(tmp_path):
    flags = (*LONG[16], "--steps", 2, "--device", "cpu", "--out", tmp_path)
    assert run(16, *flags).returncode == 0
    about = json.loads((tmp_path / "result.json").read_bytes()) | {"seconds": 601}
    before = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "result.json").unlink()
    one_sentence(run(16, *flags), "loss.png belongs to another program")
    for there in ("run.json", "result.json"):
        (tmp_path / "run.json").unlink(missing_ok=True)
        (tmp_path / there).write_text(json.dumps(about))
        one_sentence(run(16, *flags), "best.pt took 10 minutes", "--resume", "--out DIR", "--overwrite")
        assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert run(16, *flags, "--dry-run").returncode == 0  # which has a folder of its own
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert run(16, *flags, "--overwrite").returncode == 0


@numbers
def test_empty_out_is_refused(number, capsys):
    with pytest.raises(SystemExit):
        tyro.cli(load(number).Config, args=["--out", ""])
    assert "--out is empty: name a folder" in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (("--prompt", "-JULIET"), "after an equals sign: --prompt=-JULIET"),
        (("--compile=False",), "write --compile for yes, and --no-compile for no"),
        (("--compile", "true"), "write --compile for yes, and --no-compile for no"),
    ],
)
def test_spelling_of_a_flag(flags, hint, tmp_path):
    one_sentence(run(16, *flags, "--dry-run", "--out", tmp_path), hint)


def test_help_on_a_screen_of_two_columns():
    result = run(1, "--help", env=os.environ | {"COLUMNS": "2"})
    assert result.returncode == 0
    assert "--learning-rate" in result.stdout


def test_profiled_run_knows_its_exercise(tmp_path):
    command = [
        sys.executable,
        "-m",
        "cProfile",
        "-o",
        tmp_path / "profile",
        train_py(1),
        "--steps",
        "5",
        "--out",
        tmp_path,
    ]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert json.loads((tmp_path / "result.json").read_bytes())["exercise"] == "ex01_linreg_numpy"


@pytest.mark.parametrize("flags", [("--dry-run",), ("--help",)])
def test_output_that_takes_no_more(flags, tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, train_py(1), *flags, "--out", tmp_path]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr == "error: cannot write the output (No space left on device): free some space\n"


def test_out_of_memory():
    one_sentence(run(3, "--num-features", 2**31), "error: out of memory (", "lower the sizes")
    one_sentence(run(1, "--num-samples", 10**15), "error: out of memory (", "lower the sizes")
    one_sentence(run(6, "--hidden", 10**6), "error: out of memory (", "lower the sizes")


def test_output_of_a_piped_run_is_short(tmp_path):
    result = run(1, "--out", tmp_path)
    assert len(result.stdout.splitlines()) <= 25


def test_second_run_starts_anew(tmp_path):
    module = load(2)
    module.main(module.Config(steps=50, out=tmp_path))
    (tmp_path / "notes.txt").write_text("mine")
    module.main(module.Config(steps=3, out=tmp_path))
    assert list(read_metrics(tmp_path)["train", "loss"]) == [0, 1, 2]
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_default_out_is_the_folder_of_the_exercise():
    for exercise in BUILT:
        assert load(exercise.number).Config().out == ROOT / exercise.folder / "out"


@pytest.mark.parametrize("number", range(7, 15))
def test_choose_keeps_the_test_set_out(number, mnist, shakespeare, monkeypatch):
    """What tests/bench/choose.py trains and scores on is the training set's nine tenths and its last one."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "bench"))
    import choose

    for name in ("mnist", "shakespeare"):
        monkeypatch.setattr(data, name, getattr(data, name))  # which choose.py replaces
    (images, _), _ = data.mnist()
    words = split_words(data.shakespeare())
    seen = []

    def main(config):
        seen.append(data.mnist() if number not in (11, 12, 13) else split_words(data.shakespeare()))
        print("seconds=1")
        return {"test_accuracy": 0.5, "test_loss": 1.0}

    monkeypatch.setattr(choose, "load", lambda number: SimpleNamespace(main=main, Config=load(7).Config))
    choose.main(choose.Config(number, seeds=1))
    if number in (11, 12, 13):
        assert seen[0] == words[: len(words) * 9 // 10]
    else:
        (train, _), (held_out, _) = seen[0]
        assert (len(train), len(held_out)) == (54_000, 6_000)
        assert np.array_equal(np.concatenate([train, held_out]), images)
