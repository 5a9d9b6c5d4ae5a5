"""The measurements on a GPU, rehearsed on a CPU, and the clocks of the comparisons with nanoGPT."""

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from common.curriculum import ROOT
from common.program import UserError

import jax
import pytest
import tyro
from helpers import load, one_sentence, train_py, watch

PROGRAM = ROOT / "tests" / "gpu" / "measure.py"


@pytest.fixture
def measure(monkeypatch):
    """Return tests/gpu/measure.py as a module."""
    for folder in ("gpu", "bench"):
        monkeypatch.syspath_prepend(str(ROOT / "tests" / folder))
    import measure

    monkeypatch.delitem(sys.modules, "measure")
    return measure


def in_this_process(command, seconds=None, *, env=None, cwd=None):
    """Run a program as watch() does, but here, where torch and JAX are imported already."""
    command, lines = list(map(str, command)), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    modules = dict(sys.modules)
    start = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(lines):
        patch.setattr(sys, "argv", command[1:])
        if env and "RAMPUP_DATA" in env:
            patch.setenv("RAMPUP_DATA", env["RAMPUP_DATA"])
        try:
            runpy.run_path(command[1], run_name="__main__")
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            jax.config.update("jax_default_device", None)
            sys.modules.update(modules)
    return [(time.perf_counter() - start, line) for line in lines.getvalue().splitlines()], ""


def test_rehearsal(measure, quick_compiler, tmp_path, monkeypatch, capsys):
    """The parts work on a CPU; the photographs share the program of --dummy-data; the tables are the READMEs'.

    Without smoke, whose dry runs are those of test_every_exercise, and with the table of test_changes.
    """

    def in_place(command, seconds=None, **options):
        if Path(command[1]).name == "changes.py":
            return [(0.0, "| batches of 500 | 70 | 0.86 |")], ""
        return in_this_process(command, seconds, **options)

    for module in (measure, measure.peer_nanogpt, measure.peer_openwebtext):
        monkeypatch.setattr(module, "watch", in_place)
    monkeypatch.setattr(measure, "SPEEDS", dict(list(measure.SPEEDS.items())[:2]))
    monkeypatch.setattr(measure, "TARGETS", dict(list(measure.TARGETS.items())[:1]))
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # which the rehearsal sets for its programs
    monkeypatch.setenv("RAMPUP_DATA", os.environ.get("RAMPUP_DATA", str(ROOT / "data")))
    programs, compile_it = [], jax.stages.Lowered.compile

    def compile_and_note(lowered, *args, **options):
        text = lowered.as_text()
        programs.append(text[: text.index("\n")] + str(hash(text)))
        return compile_it(lowered, *args, compiler_options={"xla_backend_optimization_level": 0}, **options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_and_note)
    measure.main(measure.Config(measure.PARTS[1:], file=tmp_path / "measured.json", rehearse=True))
    text = capsys.readouterr().out
    rows = next(iter(json.loads((tmp_path / "rehearsal.json").read_text()).values()))["rows"]
    assert {name: row["error"] for name, row in rows.items() if "error" in row} == {}
    names = [*measure.SPEEDS, *measure.TARGETS, "17", "16, nanogpt", "14, changes", "best, seed 0", "best, seed 1"]
    names += [f"best {measure.CANDIDATES[0]}"]
    assert set(rows) == set(names)
    assert rows["with photographs"]["loss"] > 6  # of 1,000 classes; of one it would be 0
    updates = [program for program in programs if "jit_update" in program]
    assert len(updates) == 2
    assert updates[0] == updates[1]
    tables = text[text.index("## no GPU: a rehearsal") :]
    for number in (14, 15, 17):
        readme = train_py(number).with_name("README.md").read_text(encoding="utf-8")
        heads = [line for line in readme.splitlines() if line.startswith("|") and line in tables.splitlines()]
        assert [head for head in heads if set(head) != set("|-")], f"no table of {number}"
    for name in (*measure.SPEEDS, *measure.TARGETS, "batches of 500"):
        assert f"| {name} |" in tables
    assert "time per step, preset nanogpt to nanoGPT: not yet measured" in tables  # no checkout was given
    assert "What failed" not in tables


def test_changes(measure, quick_compiler, capsys):
    """The benchmark of 14's changes runs on a CPU, too, and every row has its place in the README."""
    import changes

    changes.main(changes.Config(dry_run=True))
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 8
    readme = train_py(14).with_name("README.md").read_text(encoding="utf-8")
    for row in rows:
        assert row.split("|")[1] in readme


def test_smoke(measure, tmp_path, monkeypatch):
    """Every exercise is run twice; its row has times, what it said, and whether it was compiled."""
    seen = []

    def stand_in(command, seconds=None, *, env=None, cwd=None):
        out = Path(command[command.index("--out") + 1], "dry_run" if "--dry-run" in command else "")
        out.mkdir(exist_ok=True)
        (out / "result.json").write_text("{}")
        number = int(Path(command[1]).parent.name[2:4])
        seen.append((number, "--dry-run" in command, env.get("XLA_PYTHON_CLIENT_PREALLOCATE")))
        said = "not compiled, so slower (no Triton)" if number == 17 else ""
        return [(0.0, "preset gpt2, with your flags on top"), (0.0, "noise"), (0.0, "result: loss=1")], said

    monkeypatch.setattr(measure, "watch", stand_in)
    monkeypatch.setattr(measure, "data_of_15", lambda config: ("--data photographs", {"RAMPUP_DATA": "there"}))
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    config, here = measure.Config(file=tmp_path / "measured.json"), {"rows": {}}
    rows = dict(measure.measure(config, "smoke", here))
    assert {name: row["error"] for name, row in rows.items() if "error" in row} == {}
    assert seen == [(n, dry, None if dry else "false") for n in (14, 16, 17, 15) for dry in (True, False)]
    assert [row["compiled"] for row in rows.values()] == [True, True, False, True]
    assert rows["exercise 14"]["said"] == ["preset gpt2, with your flags on top", "result: loss=1"]
    table = list(measure.report("a card", here["rows"]))
    assert any(line.startswith("| exercise 17 | 0.0 | ") and line.endswith(" | False |") for line in table)


def test_goes_on_where_it_was_cut(measure, tmp_path, monkeypatch, capsys):
    """A row that fails costs itself alone; a second call measures what is missing, and what failed."""
    calls = []

    def part(config, rows):
        def row(name, seconds):
            calls.append(name)
            assert seconds <= 540
            if name == "bad" and calls.count("bad") == 1:
                raise RuntimeError("it broke")
            return {"figure": len(calls)}

        for name in ("good", "bad", "late"):
            yield name, 10_000 if name == "late" and len(calls) == 2 else 1, lambda left, name=name: row(name, left)

    monkeypatch.setattr(measure, "smoke", part)
    monkeypatch.setattr(measure, "machine", lambda rehearse: "NVIDIA H100, driver 1")
    config = measure.Config(parts=("smoke",), file=tmp_path / "a" / "measured.json")
    measure.main(config)
    assert calls == ["good", "bad"]
    assert "late would take about 10000 seconds more: call it again" in capsys.readouterr().out
    kept = json.loads(config.file.read_text())["NVIDIA H100, driver 1"]["rows"]
    assert (kept["good"]["figure"], kept["bad"]["error"]) == (1, "it broke")
    measure.main(config)
    assert calls == ["good", "bad", "bad", "late"]
    monkeypatch.setattr(measure, "machine", lambda rehearse: "NVIDIA T4, driver 1")
    measure.main(config)  # another card's figures are others
    assert list(json.loads(config.file.read_text())) == ["NVIDIA H100, driver 1", "NVIDIA T4, driver 1"]
    config.file.write_text("{")
    with pytest.raises(UserError, match="measured.json is damaged"):
        measure.main(config)


def test_targets_of_14(measure, monkeypatch):
    """Their flags are sound over the GPU's preset, stop no clock on the way, and stand in the README."""
    ex = load(14)
    monkeypatch.setattr(ex, "jax_device", lambda name: SimpleNamespace(platform="gpu"))
    readme = " ".join(train_py(14).with_name("README.md").read_text(encoding="utf-8").split())
    for name, (flags, seeds) in measure.TARGETS.items():
        config = tyro.cli(ex.Config, default=ex.preset(ex.Config()), args=flags.split())
        assert config.steps % config.steps_per_call == 0
        assert config.eval_every >= config.steps
        assert " ".join(f"python ex14_gpu_resnet/train.py --seeds {seeds} {flags}".split()) in readme
        assert f"| {name} |" in readme


def test_flags_of_all_rows_are_accepted(measure):
    for number, flags in measure.SMOKE.items():
        ex, args = load(number), [*flags.split(), *measure.TINY[number].split()]
        options = {}
        if hasattr(ex, "defaults"):
            options["default"], _ = tyro.cli(ex.defaults, add_help=False, return_unknown_args=True, args=args)
        tyro.cli(ex.Config, **options, args=args)
    ex = load(16)
    for flags in measure.CANDIDATES:
        assert tyro.cli(ex.Config, default=ex.defaults("best"), args=flags.split()) != ex.defaults("best")


def test_report_of_what_is_there(measure):
    """Means and deviations, ratios, what was not compiled, what failed and what is missing."""
    run = {"commit": "abc", "seconds": 40.0, "speed": "speed: 4 tokens/s; MFU: 12.3% of 989"}
    rows = {
        "99.0 % in 0.3 s": {"test_accuracy": [0.99, 0.992], "train_seconds": [0.2, 0.4], "compile_seconds": 9.0},
        "the device alone": {"rate": 3000.0},
        "with photographs": {"rate": 2700.0},
        "16, nanogpt": {**run, "ms": 4.0, "losses": [4.0, 1.46, 1.5], "reached": 20.0},
        "16, nanoGPT": {**run, "ms": 5.0, "losses": [4.0, 1.47, 1.6], "reached": 30.0, "whole": 1.4712},
        "best, seed 0": {**run, "ms": 4.0, "losses": [4.0, 1.45], "reached": 14.0},
        "best, seed 1": {**run, "ms": 4.0, "losses": [4.0, 1.43], "reached": 16.0},
        "17": {"rate": 480_000.0, "speed": "speed: 480,000 tokens/s; MFU: 41.5% of 989 TFLOP/s (H100); not compiled"},
        "17, nanoGPT": {"rate": 400_000.0},
        "14, changes": {"error": "no memory"},
    }
    text = "\n".join(
        measure.report("NVIDIA H100, driver 1", {name: {"commit": "abc"} | row for name, row in rows.items()})
    )
    for line in (
        "| 99.0 % in 0.3 s | 99.100 ± 0.141 % | 0.300 ± 0.141 | 9.0 |",
        "| 99.65 % in 6 s | not yet measured | not yet measured | not yet measured |",
        "| with photographs | 2,700 | 90% | 2.1 h | 11.9 h |",
        "| with photographs, at 160 pixels | not yet measured | not yet measured |",
        "| preset best | 4.00 ± 0.00 | 1.4400 ± 0.0141 | 1.4400 ± 0.0141 | 40.0 ± 0.0 | 15.0 ± 1.4 |",
        "time per step, preset nanogpt to nanoGPT: 0.80",
        "time to 1.47, preset best to nanoGPT: 0.50",
        "nanoGPT's kept checkpoint on the whole validation set: 1.4712",
        "| NVIDIA H100 (not compiled) | 480,000 | 41.5% | 1.20 |",
        "- 14, changes: no memory",
        "commit abc",
    ):
        assert line in text


def test_no_gpu_is_one_sentence(tmp_path):
    """And the driver imports no JAX, which would take three quarters of the card, and asks torch for no GPU."""
    code = f"""
import runpy, sys
sys.argv = [{str(PROGRAM)!r}, "smoke", "--file", {str(tmp_path / "measured.json")!r}]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("jax" in sys.modules, "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized())
"""
    environment = os.environ | {"PATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    one_sentence(result, "error: nvidia-smi finds no NVIDIA GPU here", "--rehearse")
    assert result.stdout.split() == ["False", "False"]
    assert list(tmp_path.iterdir()) == []


def test_thousand_classes_of_photographs(measure, photographs, tmp_path):
    """Every photograph lies in its class, and there are as many classes as ImageNet has."""
    measure.link_photographs(tmp_path / "all", rehearse=False)
    folders = sorted((tmp_path / "all" / "train").iterdir())
    assert len(folders) == len(list((tmp_path / "all" / "val").iterdir())) == 1000
    known = [folder for folder in folders if not folder.name.startswith("other")]
    assert len(known) == 40
    for folder in known:
        assert {path.resolve().parent.name for path in folder.iterdir()} == {folder.name}
        assert len(list(folder.iterdir())) == 8


def test_watch(tmp_path):
    """Lines come with the time of their arrival; what fails or hangs ends with what it said, and with its workers."""
    program = tmp_path / "program.py"
    program.write_text("import sys, time\nprint('a')\ntime.sleep(0.5)\nprint('b')\nprint('why', file=sys.stderr)\n")
    lines, stderr = watch([sys.executable, program])
    assert [line for _, line in lines] == ["a", "b"]
    assert lines[1][0] - lines[0][0] > 0.4
    assert stderr == "why\n"
    program.write_text("raise SystemExit('a reason')")
    with pytest.raises(RuntimeError, match=r"program.py ended with code 1: a reason"):
        watch([sys.executable, program])
    program.write_text("import os, time\nprint(os.fork(), flush=True)\ntime.sleep(60)")
    start = time.perf_counter()
    with pytest.raises(RuntimeError, match=r"program.py was stopped after 1 seconds"):
        watch([sys.executable, program], 1)
    assert time.perf_counter() - start < 20


def test_iterations_of_nanogpt_are_timed_by_their_arrival(measure):
    """5 ms per iteration, 100 ms per evaluation; what it prints, the wait for a GPU left out, is not used."""
    lines, now = [], 0.0
    for number in range(601):
        if number % 250 == 0:
            now += 0.1
            lines.append((now, f"step {number}: train loss 4.2, val loss 4.2"))
        now += 0.005
        if number % 10 == 0:
            lines.append((now, f"iter {number}: loss 4.2000, time 0.01ms, mfu 1.00%"))
    assert measure.peer_nanogpt.milliseconds(lines) == pytest.approx(5.0)
    with pytest.raises(RuntimeError, match="too few iterations"):
        measure.peer_nanogpt.milliseconds(lines[:3])


def test_seconds_to_the_target(measure, tmp_path, monkeypatch):
    """Of ours from the lines of the samples and metrics.csv, of nanoGPT from its own; both say if never."""
    bench = measure.peer_nanogpt

    def stand_in(command, seconds=None, **options):
        if "--out" not in command:
            steps = [(float(i), f"step {250 * i}: train loss 1.0, val loss {2 - i / 10:.4f}") for i in range(4)]
            return [*steps, (4.0, "iter 10: loss 1.0, time 1ms"), (5.0, "iter 20: loss 1.0, time 1ms")], ""
        out = Path(command[command.index("--out") + 1])
        rows = "".join(f"{250 * i},validation,loss,{2 - i / 10}\n" for i in range(4))
        (out / "metrics.csv").write_text("step,split,metric,value\n" + rows)
        lines = [(10.0 * i, f"--- step {250 * i}, 0% of its 20-grams") for i in range(4)]
        return [*lines, (50.0, "speed: 1 tokens/s"), (51.0, "result: step_ms=4.5 seconds=3")], "not compiled, so slower"

    monkeypatch.setattr(bench, "watch", stand_in)
    ours = bench.ours([], 1.85)
    assert (ours["reached"], ours["ms"], ours["losses"]) == (20.0, 4.5, [2.0, 1.9, 1.8, 1.7])
    assert ours["speed"] == "speed: 1 tokens/s; not compiled"
    assert bench.ours([], 1.0)["reached"] is None
    (tmp_path / "train.py").write_text("torch.manual_seed(1337 + seed_offset)")
    theirs = bench.theirs(tmp_path, [], 1.85, seed=2)
    assert (theirs["reached"], theirs["ms"], theirs["losses"]) == (2.0, 100.0, [2.0, 1.9, 1.8, 1.7])
    assert "manual_seed(1339" in (tmp_path / "train.py").read_text()
