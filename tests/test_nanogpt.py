"""Exercise 16: characters of Shakespeare, against exercise 13, nanoGPT's numbers and transformers' GPT-2."""

import gzip
import inspect
import io
import json
import math
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from common import UserError, checkpoint, speed
from common.record import Run

import pytest
import torch
import tyro
import warm
from helpers import check_causality, cut_off, load, load_beside, one_sentence, read_metrics, run, run_anew, train_py

pytestmark = pytest.mark.usefixtures("without_pictures")

CPU = torch.device("cpu")
FOLDER = train_py(16).parent
SMALL = {"block_size": 16, "channels": 16, "layers": 2, "heads": 2, "batch_size": 4, "max_new_tokens": 5}
FLAGS = ["--block-size", 16, "--channels", 16, "--layers", 2, "--heads", 2, "--batch-size", 4, "--device", "cpu"]


@pytest.fixture
def ex():
    return load(16)


@pytest.fixture
def script():
    """Return a function that loads one of the programs beside train.py."""
    return lambda name: load_beside(16, name)


def new_model(ex, vocab_size=50, **fields):
    torch.manual_seed(0)
    config = ex.Config(**SMALL | fields)
    model = ex.Transformer(config, vocab_size)
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.3)
    return config, model


def train(ex, out, **fields):
    return ex.main(ex.Config(out=out, **{**SMALL, "device": "cpu", "dropout": 0.1, **fields}))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat, and ROMEO:\nthe dog sat on the cat!\n" * 40, encoding="utf-8")
    return path


# The model


@pytest.mark.parametrize("bias", [False, True])
def test_13_equals_16(ex, bias):
    old = load(13)
    _, theirs = new_model(old, bias=bias, dropout=0.0)
    config, ours = new_model(ex, bias=bias)
    ours.load_state_dict(theirs.state_dict())  # the names are the same, all of them
    words = torch.randint(50, (3, 16))
    torch.testing.assert_close(ours(words), theirs(words), atol=1e-5, rtol=1e-5)
    for model, module in ((theirs, old), (ours, ex)):
        module.loss_fn(model(words), words).backward()
    for (name, param), other in zip(ours.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(param.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_causality(ex):
    _, model = new_model(ex)
    check_causality(model, torch.randint(50, (4, 16)))


def test_dropout_is_there_in_training_alone(ex):
    config, model = new_model(ex, dropout=0.5)
    words = torch.randint(50, (4, 16))
    assert (model(words) != model(words)).any()
    attention = model.blocks[0].attention
    attention.dropout.p = 0.0
    x = torch.randn(2, 16, 16)
    assert (attention(x) == attention(x)).all()
    attention.dropout.p = 0.5
    assert (attention(x) != attention(x)).any()  # of the attention weights
    model.eval()
    assert (model(words) == model(words)).all()


def test_parameters_as_nanogpt_counts_them(ex):
    config = ex.Config(**ex.PRESETS["nanogpt"])
    with torch.device("meta"):
        model = ex.Transformer(config, 65)
    count = sum(param.numel() for param in model.parameters()) - model.positions.weight.numel()
    assert count == 10_646_784
    assert ex.flops_per_token(config, model) == 6 * count + 12 * 6 * 6 * 64 * 256  # layers, heads, width, block


def test_autocast(ex):
    config, model = new_model(ex)
    torch.manual_seed(0)
    model = ex.Transformer(config, 50)
    words = torch.randint(50, (8, 17))
    loss = ex.loss_fn(model(words[:, :-1]), words[:, 1:])
    model.precision = torch.bfloat16
    logits = model(words[:, :-1])
    assert logits.dtype == torch.float32
    rough = ex.loss_fn(logits, words[:, 1:])
    assert rough.item() != loss.item()
    assert rough.item() == pytest.approx(loss.item(), abs=1e-2)
    rough.backward()
    assert all(param.grad.dtype == torch.float32 for param in model.parameters())


def test_initial_loss_is_ln_v(ex):
    torch.manual_seed(0)
    model = ex.Transformer(ex.Config(), 65)
    words = torch.randint(65, (4, 65))
    assert ex.loss_fn(model(words[:, :-1]), words[:, 1:]).item() == pytest.approx(math.log(65), abs=0.1)


def test_overfits(ex):
    config, model = new_model(ex)
    torch.manual_seed(0)
    model = ex.Transformer(config, 50)
    words = torch.randint(50, (4, 17))
    (optimizer,) = ex.make_optimizers(ex.Config(**SMALL, learning_rate=0.01), model)
    for _ in range(200):
        loss = ex.loss_fn(model(words[:, :-1]), words[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


# transformers' GPT-2


def gpt2(transformers, **options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **options))
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def transformers():
    import transformers

    return transformers


def test_from_transformers(ex, script, transformers, tmp_path):
    theirs = gpt2(transformers)
    theirs.save_pretrained(tmp_path / "theirs")
    config, ours = script("pretrained").from_hugging_face(tmp_path / "theirs")
    words = torch.randint(50, (3, 16))
    answer = theirs(words, labels=words)
    logits = ours.eval()(words)
    torch.testing.assert_close(logits, answer.logits, atol=1e-4, rtol=1e-4)
    loss = ex.loss_fn(logits[:, :-1], words[:, 1:])
    assert loss.item() == pytest.approx(answer.loss.item(), abs=1e-4)
    assert (config.layers, config.heads, config.channels, config.block_size) == (2, 2, 16, 16)


@pytest.mark.parametrize("bias", [False, True])
def test_to_transformers(ex, script, transformers, tmp_path, bias):
    config, ours = new_model(ex, bias=bias)
    script("pretrained").to_hugging_face(ours, list("abc"), tmp_path / "ours")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval()
    words = torch.randint(50, (3, 16))
    torch.testing.assert_close(theirs(words).logits, ours.eval()(words), atol=1e-4, rtol=1e-4)
    _, again = script("pretrained").from_hugging_face(tmp_path / "ours" / "model.safetensors", heads=2)
    torch.testing.assert_close(again.eval()(words), ours(words), atol=1e-5, rtol=1e-5)


# Data


def test_characters_of_the_text(ex, shakespeare):
    train_tokens, val_tokens, vocab = ex.read_tokens(ex.Config())
    assert (len(train_tokens), len(val_tokens), len(vocab)) == (1_003_854, 111_540, 65)
    assert "".join(vocab[i] for i in torch.cat([train_tokens, val_tokens])[:500]) == shakespeare[:500]
    assert "".join(vocab) == "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def test_every_validation_character_is_scored_once(ex):
    for length in (17, 32, 33, 95):
        words, val = torch.arange(100), torch.arange(100, 100 + length)
        x, y, x_val, y_val = ex.make_data(ex.Config(**SMALL), words, val, CPU)
        assert y_val[y_val >= 0].tolist() == val.tolist()
        assert (x_val[y_val >= 0] == y_val[y_val >= 0] - 1).all()
        assert x_val.shape[1] == 16
        assert (x_val >= 0).all()
        assert (y == x + 1).all()


@pytest.mark.parametrize("n", [64, 100, 1000])
def test_batches_cover_the_text(ex, n):
    config = ex.Config(**SMALL)  # blocks of 16, 4 a batch
    blocks, epoch = n // 16, n // 16 // 4
    batches = ex.batches(config, n, 0, CPU)
    firsts = set()
    for _ in range(30):
        starts = torch.cat([next(batches) for _ in range(epoch)])
        assert len(set(starts.tolist())) == len(starts) == 4 * epoch  # each once in an epoch
        assert starts.min() >= 0
        assert starts.max() < n  # where there is a sample
        assert len(set((starts % 16).tolist())) == 1  # side by side: all but a block and a part of a batch is seen
        assert len(starts) >= blocks - 3
        firsts.add(starts[0].item() % 16)
    assert len(firsts) > 5  # and not with the same borders every time


def test_batches_follow_from_seed_and_step(ex):
    config = ex.Config(**SMALL)
    whole = ex.batches(config, 1000, 0, CPU)
    starts = [next(whole) for _ in range(60)]
    for step in (0, 1, 14, 15, 16, 31, 59):  # an epoch has 15 steps
        assert torch.equal(next(ex.batches(config, 1000, step, CPU)), starts[step])
    other = ex.Config(**SMALL, seed=1)
    assert not torch.equal(next(ex.batches(other, 1000, 0, CPU)), starts[0])


# Training


def test_decay_groups(ex):
    _, model = new_model(ex, bias=True)
    matrices, vectors = ex.make_optimizers(ex.Config(), model)[0].param_groups
    names = {id(param): name for name, param in model.named_parameters()}
    decayed = {names[id(param)] for param in matrices["params"]}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {"embedding.weight", "positions.weight", "blocks.0.up.weight", "blocks.1.attention.out.weight"} <= decayed
    assert not any("norm" in name or "bias" in name for name in decayed)
    assert len(decayed) + len(vectors["params"]) == len(names)


def test_betas_are_nanogpts(ex):
    """For Shakespeare; exercise 17 has those for GPT-2."""
    for betas, flags in (((0.9, 0.99), {}), ((0.8, 0.7), {"beta1": 0.8, "beta2": 0.7})):
        (adamw,) = ex.make_optimizers(ex.Config(**flags), new_model(ex)[1])
        assert [group["betas"] for group in adamw.param_groups] == [betas] * 2


def test_muon_learns(ex, text, tmp_path):
    """The matrices in the blocks are Muon's, and a run with it can be resumed (what it does: exercise 17's tests)."""
    assert inspect.getsource(ex.make_optimizers) == inspect.getsource(load(17).make_optimizers)
    fields = {"text": text, "eval_every": 5, "muon": True, "learning_rate": 0.01, "warmup_steps": 1}
    metrics = train(ex, tmp_path, steps=20, **fields)
    assert metrics["validation_loss"] < 2.8  # that of the characters' frequencies is 2.84
    train(ex, tmp_path, steps=22, **fields, resume="yes")
    assert list(read_metrics(tmp_path)["train", "loss"]) == list(range(22))


def test_learning_rate(ex):
    config = ex.Config(learning_rate=0.5, warmup_steps=10, steps=1000, decay_to=0.1)
    rates = [ex.learning_rate(config, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.05)  # not 0: the first step counts
    assert rates[9] == rates[10] == max(rates) == 0.5
    assert rates[505] == pytest.approx(0.275)  # half way between the warm-up and the end
    assert rates[999] == pytest.approx(0.05, rel=1e-3)
    assert all(a > b for a, b in pairwise(rates[10:]))
    long = ex.Config(learning_rate=0.5, warmup_steps=10, steps=5)  # shorter than its warm-up
    assert [ex.learning_rate(long, step) for step in range(5)] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25])


@pytest.mark.parametrize("grad_clip", [1.0, 0.25, 0.0])
def test_gradients_are_clipped(ex, text, tmp_path, monkeypatch, grad_clip):
    """To the flag's norm; 0 is no clipping. What is recorded is the norm before, and the rate of the step."""
    seen = []

    def step(self, closure=None):
        grads = [param.grad for group in self.param_groups for param in group["params"]]
        seen.append(torch.cat([grad.flatten() for grad in grads]).norm().item())

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    monkeypatch.setattr(ex, "loss_fn", lambda logits, y: 1000 * logits.logsumexp(-1).mean())
    monkeypatch.setattr(ex, "evaluate", lambda model, x, y: {"loss": 1.0})
    train(ex, tmp_path / "out", text=text, steps=3, grad_clip=grad_clip)
    recorded = read_metrics(tmp_path / "out")
    norms = list(recorded["train", "grad_norm"].values())
    assert min(norms) > 10
    assert seen == pytest.approx([grad_clip] * 3 if grad_clip else norms, rel=1e-3)
    rates = [ex.learning_rate(ex.Config(**SMALL, steps=3), step) for step in range(3)]
    assert list(recorded["train", "lr"].values()) == rates


def test_beats_its_baseline(text, tmp_path):
    result = run(16, *FLAGS, "--text", text, "--steps", 60, "--learning-rate", 0.01, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    baseline = float(next(line for line in lines if line.startswith("baselines: ")).split()[2].rstrip(","))
    assert float(lines[-1].split("validation_loss=")[1].split()[0]) < baseline
    assert any(line.startswith("preset nanogpt-cpu") for line in lines)
    assert any(line.startswith("speed: ") and "unknown chip" in line for line in lines)


def test_presets(ex, monkeypatch):
    assert set(ex.PRESETS) | {"auto"} == set(ex.Preset.__args__)
    assert ex.defaults(device="cpu").preset == "nanogpt-cpu"
    monkeypatch.setattr(ex, "torch_device", torch.device)
    assert ex.defaults(device="cuda").preset == "nanogpt"
    monkeypatch.setattr(ex, "torch_device", lambda name: CPU)  # for whose card torch has no code
    assert ex.defaults().preset == "nanogpt-cpu"
    assert ex.defaults(device="cpu").preset == "nanogpt-cpu"
    big = ex.defaults(preset="nanogpt")
    assert (big.layers, big.heads, big.channels, big.block_size, big.batch_size) == (6, 6, 384, 256, 64)
    assert (big.steps, big.dropout, big.learning_rate, big.decay_to, big.bias) == (5000, 0.2, 0.001, 0.1, False)
    assert big.compile


def test_flags_win_over_the_preset(ex, tmp_path):
    result = run(16, "--preset", "nanogpt", "--dry-run", *FLAGS, "--dropout", 0.25, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    config = checkpoint.read_torch(ex.Config, tmp_path / "dry_run" / "checkpoint.pt")["config"]
    assert (config.preset, config.compile, config.dropout, config.layers) == ("nanogpt", True, 0.25, 2)


def test_profile(ex, text, tmp_path):
    """A trace of as many steps as were asked for, which does not change the training."""
    train(ex, tmp_path / "plain", text=text, steps=8)
    train(ex, tmp_path / "traced", text=text, steps=8, profile=3)
    with gzip.open(tmp_path / "traced" / "trace.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("Optimizer.step#AdamW.step") == 3
    assert not (tmp_path / "plain" / "trace.json.gz").exists()
    assert read_metrics(tmp_path / "traced") == read_metrics(tmp_path / "plain")


def test_profile_of_jax(tmp_path):
    ex = load(14)
    config = tyro.cli(ex.Config, args=["--dry-run", "--profile", "1", "--device", "cpu", "--out", str(tmp_path)])
    ex.main(config)
    with gzip.open(tmp_path / "dry_run" / "trace.json.gz") as file:
        assert b"train_steps" in file.read()


def test_speed():
    flops = 857_000_000  # of GPT-2 124M on a token, at 1,024 of them
    assert "41.6% of 989 TFLOP/s (NVIDIA H200)" in fake_speed("NVIDIA H200", 480_000, flops)
    assert "of 756 TFLOP/s" in fake_speed("NVIDIA H100 PCIe", 1e5, flops)
    assert "of 362 TFLOP/s" in fake_speed("NVIDIA L40S", 1e5, flops)
    for name, peak in {
        "NVIDIA A100-SXM4-80GB": 312,
        "Tesla T4": 65,
        "Tesla P100-PCIE-16GB": 18.7,
        "Tesla V100-SXM2-16GB": 125,
        "NVIDIA GH200 480GB": 989,
        "AMD Instinct MI300X": 1307,
        "NVIDIA GeForce RTX 4060": 30.2,
        "NVIDIA GeForce RTX 4060 Ti": 44.1,
        "NVIDIA GeForce RTX 4070 Ti SUPER": 88.2,
        "NVIDIA GeForce RTX 5090": 209.5,
        "NVIDIA L4": 121,
    }.items():
        assert f"of {peak} TFLOP/s ({name})" in fake_speed(name, 1e4, flops)
    for name in ("NVIDIA RTX A1000", "NVIDIA GeForce RTX 4060 Laptop GPU", "NVIDIA T400", "NVIDIA A10G"):
        assert f"unknown chip ({name})" in fake_speed(name, 1e4, flops)
    assert "unknown chip (NVIDIA GeForce GTX 1050)" in fake_speed("NVIDIA GeForce GTX 1050", 1e4, flops)
    assert "41.6% of 989 TFLOP/s (8 × NVIDIA H200)" in fake_speed("NVIDIA H200", 8 * 480_000, flops, 8)


def fake_speed(name, rate, flops, *devices):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_name", lambda: name)
        return speed.describe(rate, flops, torch.device("cuda"), *devices)


def test_speed_on_the_way(monkeypatch):
    """Of 10 steps of 500,000 tokens in 20 seconds, with 36,000 left; on two GPUs, as a share of both."""
    shown = {"tokens/s": 250_000, "hours left": pytest.approx(20)}
    assert speed.progress(10, 36_000, 500_000, 20.0, 857_000_000, CPU) == shown
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 10**9)
    found = speed.progress(10, 36_000, 500_000, 20.0, 857_000_000, torch.device("cuda"), 2)
    assert found == shown | {"MFU %": pytest.approx(10.83, abs=0.01), "GB": 3}


@pytest.mark.parametrize(("native", "found"), [(True, torch.bfloat16), (False, torch.float16)])
def test_gpu_without_bfloat16(native, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert speed.precision(torch.device("cuda"), "auto") is found
    assert speed.precision(torch.device("cuda"), "float32") is torch.float32
    assert speed.precision(torch.device("mps"), "auto") is torch.float32


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_losses_on_a_gpu_are_read_later(ex, tmp_path, kind):
    class OnGpu:
        device, shape, read = torch.device(kind), (), 0

        def __init__(self, value):
            self.value = value

        def tolist(self):
            OnGpu.read += 1
            return self.value

    with Run(ex.Config(out=tmp_path), {"ln V": 1.0}) as run_:
        for step in range(14):
            run_.record(step, "train", loss=OnGpu(float(step)), lr=0.1)
            assert OnGpu.read == (10 if step >= 10 else 0)
        run_.record(14, "validation", loss=0.5)
        assert OnGpu.read == 14
        assert list(read_metrics(tmp_path)["train", "loss"].values()) == list(range(14))
        for step in range(14, 20):
            run_.record(step, "train", loss=OnGpu(math.nan if step == 16 else 1.0))
        with pytest.raises(UserError, match="train loss is nan at step 16 "):
            run_.record(20, "validation", loss=0.5)
    assert list(read_metrics(tmp_path)["train", "loss"]) == list(range(16))


# Checkpoints


@pytest.mark.parametrize("cut", [9, 13])
def test_exact_resume(ex, text, tmp_path, cut):
    """A run that stops in the middle goes on as if it had not: the same files, the same weights."""
    fields = {"text": text, "steps": 16, "eval_every": 4, "learning_rate": 0.01}
    train(ex, tmp_path / "whole", **fields)
    with cut_off(cut):
        train(ex, tmp_path / "cut", **fields)
    assert checkpoint.read_torch(ex.Config, tmp_path / "cut" / "checkpoint.pt")["step"] == cut // 4 * 4
    torch.manual_seed(1234)
    train(ex, tmp_path / "cut", **fields, resume="yes")
    for name in ("metrics.csv", "samples.txt"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    whole, resumed = (checkpoint.read_torch(ex.Config, tmp_path / name / "checkpoint.pt") for name in ("whole", "cut"))
    assert all(torch.equal(whole["model"][name], resumed["model"][name]) for name in whole["model"])
    best = [checkpoint.read_torch(ex.Config, tmp_path / name / "best.pt") for name in ("whole", "cut")]
    assert best[0]["step"] == best[1]["step"]
    assert best[0]["run"]["least"] == best[1]["run"]["least"]


def test_float16_scales_the_gradients(ex, text, tmp_path, monkeypatch):
    """The losses of float32; a step that overflows changes nothing; a resumed run goes on with the scale it had."""
    scaler = torch.amp.GradScaler
    hard = partial(scaler, init_scale=2.0**40, growth_interval=3)
    fields = {"text": text, "steps": 24, "eval_every": 8, "learning_rate": 0.01}
    train(ex, tmp_path / "float32", **fields, precision="float32")
    train(ex, tmp_path / "easy", **fields, precision="float16")
    found, expected = (read_metrics(tmp_path / name)["train", "loss"] for name in ("easy", "float32"))
    assert list(found.values()) == pytest.approx(list(expected.values()), abs=0.01)
    assert list(found.values()) != list(expected.values())
    norms = [read_metrics(tmp_path / name)["train", "grad_norm"] for name in ("easy", "float32")]
    assert list(norms[0].values()) == pytest.approx(list(norms[1].values()), rel=0.05)  # of gradients not scaled

    monkeypatch.setattr(torch.amp, "GradScaler", hard)
    train(ex, tmp_path / "whole", **fields, precision="float16")
    skipped = [step for step in range(24) if step not in read_metrics(tmp_path / "whole")["train", "grad_norm"]]
    assert len(skipped) >= 8  # 2^40 is halved at each of them
    assert skipped[:8] == list(range(8))
    state = torch.load(tmp_path / "whole" / "checkpoint.pt")
    assert state["optimizers"][0][0]["step"] == 24 - len(skipped)
    for cut in (9, 17):  # the first checkpoint has no moments yet
        with cut_off(cut):
            train(ex, tmp_path / "cut", **fields, precision="float16", overwrite=True)
        train(ex, tmp_path / "cut", **fields, precision="float16", resume="yes")
        assert (tmp_path / "cut" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
        assert torch.load(tmp_path / "cut" / "checkpoint.pt")["scaler"] == state["scaler"]
    torch.save(state | {"scaler": {**state["scaler"], "scale": float("nan")}}, tmp_path / "cut" / "checkpoint.pt")
    with pytest.raises(UserError, match="damaged"):
        train(ex, tmp_path / "cut", **fields | {"steps": 30}, precision="float16", resume="yes")


def test_resume_after_a_kill(ex, text, tmp_path):
    """A run killed in mid-air, resumed from the command line, with its flags but for one."""
    flags = [*FLAGS, "--text", text, "--out", tmp_path, "--eval-every", 20, "--preset", "best-cpu"]
    command = [sys.executable, train_py(16), *map(str, flags), "--steps", "1000000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "best.pt").exists() or b"\n35,train" not in (tmp_path / "metrics.csv").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = checkpoint.read_torch(ex.Config, tmp_path / "checkpoint.pt")["step"]
    result = run(16, "--resume", "--out", tmp_path, "--steps", step + 30, "--weight-decay", 0.5, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert list(read_metrics(tmp_path)["train", "loss"]) == list(range(step + 30))
    config = checkpoint.read_torch(ex.Config, tmp_path / "checkpoint.pt")["config"]
    assert (config.channels, config.preset, config.weight_decay) == (16, "best-cpu", 0.5)
    before = (tmp_path / "metrics.csv").read_bytes()
    again = run(16, "--resume", "--out", tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"it has made all {step + 30} steps" in again.stdout
    assert "give a larger --steps" in again.stdout
    one_sentence(
        run(16, "--resume", "--out", tmp_path, "--steps", step), f"has {step + 30} steps, more than --steps {step}"
    )
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_flags_win_over_the_checkpoint(ex, text, tmp_path, monkeypatch):
    train(ex, tmp_path / "out", text=text, steps=4)
    seen = []
    step = torch.optim.AdamW.step

    def spy(self, closure=None):
        seen.append((self.param_groups[0]["weight_decay"], self.param_groups[0]["lr"]))
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train(ex, tmp_path / "out", text=text, steps=6, resume="yes", weight_decay=0.7, learning_rate=0.3, warmup_steps=1)
    assert [decay for decay, _ in seen] == [0.7, 0.7]
    assert all(rate < 0.3 for _, rate in seen)
    assert seen[0][1] > 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 3}, "a model with --layers 2, not 3"),
        ({"heads": 4}, "a model with --heads 2, not 4"),
        ({"block_size": 8}, "a model with --block-size 16, not 8"),
        ({"bias": True}, "a model with --bias False, not True"),
        ({"dry_run": True}, "--resume and --dry-run cannot be combined"),
    ],
)
def test_checkpoint_of_another_model(ex, text, tmp_path, changes, message):
    train(ex, tmp_path / "out", text=text, steps=2)
    before = (tmp_path / "out" / "metrics.csv").read_bytes()
    with pytest.raises(UserError, match=message):
        train(ex, tmp_path / "out", **{"text": text, "steps": 4, "resume": "yes"} | changes)
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == before


class Trap:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_checkpoints_that_are_refused(ex, text, tmp_path):
    out = tmp_path / "out"
    train(ex, out, text=text, steps=2)
    one_sentence(run(16, "--resume", "--preset", "best", "--out", out), "has --preset auto, not best")
    whole = (out / "checkpoint.pt").read_bytes()
    trap = Trap()
    trap.path = str(tmp_path / "trapped")
    buffer = io.BytesIO()
    torch.save({"config": {}, "vocab": [], "model": trap}, buffer)
    for content in (whole[: len(whole) // 2], whole[:10], b"", buffer.getvalue(), pickle.dumps(trap), b"no checkpoint"):
        (out / "checkpoint.pt").write_bytes(content)
        with pytest.raises(UserError, match=r"checkpoint\.pt is damaged, or it is not a checkpoint"):
            checkpoint.read_torch(ex.Config, out / "checkpoint.pt")
    torch.save({"config": {"text": None, "docs": 3}, "model": {}}, out / "checkpoint.pt")  # another exercise's
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged, or it is not a checkpoint of this exercise"):
        checkpoint.read_torch(ex.Config, out / "checkpoint.pt")
    torch.save([1, 2], out / "checkpoint.pt")
    one_sentence(run(16, "--resume", "--out", out), "checkpoint.pt is damaged, or it is not a checkpoint")
    assert not (tmp_path / "trapped").exists()
    one_sentence(run(16, "--resume", "--out", tmp_path / "none"), "there is no checkpoint", "without --resume first")


def test_flipped_bits(ex, text, tmp_path):
    """A checkpoint with any bit flipped is refused or, where the bit is in no data, the same."""
    train(ex, tmp_path, text=text, steps=2)
    path = tmp_path / "checkpoint.pt"
    content, whole = path.read_bytes(), checkpoint.read_torch(ex.Config, path)
    refused = 0
    for byte in random.Random(0).sample(range(len(content)), 150):
        path.write_bytes(content[:byte] + bytes([content[byte] ^ 16]) + content[byte + 1 :])
        try:
            found = checkpoint.read_torch(ex.Config, path)
        except UserError as error:
            assert "is damaged" in str(error)
            refused += 1
        else:
            assert found["step"] == whole["step"]
            assert all(torch.equal(found["model"][name], value) for name, value in whole["model"].items())
    assert refused > 75


def changed(key, value):
    def change(state):
        *keys, last = [int(part) if part.isdigit() else part for part in key.split("/")]
        for part in keys:
            state = state[part]
        if value is KeyError:
            del state[last]
        else:
            state[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(changed(key, KeyError) for key in ("step", "run", "vocab", "rng", "optimizers", "model", "config/layers")),
        *(changed(key, KeyError) for key in ("run/sizes", "run/least", "run/latest", "optimizers/0/3")),
        *(changed("step", value) for value in (-1, "two", 1.5, None, [2])),
        *(changed("run/sizes", value) for value in ({"metrics.csv": -5}, {"metrics.csv": "all"}, 7, {"x": 1e99})),
        *(changed("run/seconds", value) for value in (float("nan"), "long", None)),
        *(changed("config/layers", value) for value in ("4", True, 0, None)),
        *(changed("config/dropout", value) for value in ("0.1", float("nan"))),
        *(changed("vocab", value) for value in ("abc", [1, 2], {})),
        *(changed("model", value) for value in ({}, [], {"embedding.weight": torch.ones(3)})),
        *(changed("model/norm.weight", value) for value in (torch.full((16,), torch.nan), torch.ones(17), 3, None)),
        *(changed("optimizers", value) for value in ([], [{}], [{"a": 1}], None, 5)),
        *(changed("rng", value) for value in (None, torch.ones(3), torch.zeros(5, dtype=torch.uint8))),
        *(changed("cuda_rng", value) for value in (None, 3)),
    ],
)
def test_nothing_in_a_checkpoint_is_believed(ex, text, tmp_path, change):
    """What is missing, or of another shape or type, is refused in one sentence, and no other file is touched."""
    train(ex, tmp_path / "out", text=text, steps=2)
    path = tmp_path / "out" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    refused = "checkpoint.pt (is damaged, or it is not a checkpoint|is for another vocabulary|holds a model alone)"
    with pytest.raises(UserError, match=refused):
        train(ex, tmp_path / "out", text=text, steps=4, resume="yes")
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_a_checkpoint_names_no_file_elsewhere(ex, text, tmp_path):
    train(ex, tmp_path / "out", text=text, steps=2)
    (tmp_path / "precious").write_text("a file outside --out")
    path = tmp_path / "out" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    state["run"]["sizes"]["../precious"] = 10
    torch.save(state, path)
    train(ex, tmp_path / "out", text=text, steps=4, resume="yes")
    assert (tmp_path / "precious").read_text() == "a file outside --out"


def test_a_run_that_stopped_before_its_end_is_finished(ex, text, tmp_path, monkeypatch):
    """After the last checkpoint, wherever it was: --resume writes what is missing, and nothing twice."""
    fields = {"text": text, "steps": 6, "eval_every": 2}
    train(ex, tmp_path / "whole", **fields)
    files = ("metrics.csv", "samples.txt")
    whole = [(tmp_path / "whole" / name).read_bytes() for name in files]
    for number, place in enumerate(("Run.finish", "Run.sample", "Run.record", "evaluate", "plot_loss")):
        out = tmp_path / str(number)
        holder, name = (Run, place[4:]) if place.startswith("Run.") else (ex, place)
        true = getattr(holder, name)

        def stop(*args, _true=true, _out=out, **kwargs):
            saved = _out / "checkpoint.pt"
            if saved.exists() and checkpoint.read_torch(ex.Config, saved)["step"] == 6:
                raise KeyboardInterrupt
            return _true(*args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(holder, name, stop)
            train(ex, out, **fields)
        assert not (out / "loss.png").exists()
        metrics = train(ex, out, **fields, resume="yes")
        assert metrics["validation_loss"] == read_metrics(out)["validation", "loss"][6]
        assert (out / "result.json").exists()
        assert (out / "loss.png").exists()
        assert [(out / name).read_bytes() for name in files] == whole


def test_a_new_run_removes_the_old_checkpoint(ex, text, tmp_path):
    train(ex, tmp_path / "out", text=text, steps=2)
    with Run(ex.Config(out=tmp_path / "out"), {"ln V": 1.0}):
        assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_checkpoint_of_another_text(ex, text, tmp_path):
    train(ex, tmp_path / "out", text=text, steps=2)
    text.write_text(text.read_text().replace("dog", "fox"))
    with pytest.raises(UserError, match="another vocabulary"):
        train(ex, tmp_path / "out", text=text, steps=4, resume="yes")


def test_dry_run_leaves_a_trained_model_alone(ex, text, tmp_path):
    train(ex, tmp_path, text=text, steps=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(16, "--dry-run", "--preset", "nanogpt", *FLAGS[2:], "--out", tmp_path).returncode == 0
    assert (tmp_path / "dry_run" / "checkpoint.pt").exists()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_checkpoint_holds_no_path_of_this_machine(ex, text, tmp_path):
    train(ex, tmp_path / "out", text=text, steps=2)
    (tmp_path / "out").rename(tmp_path / "moved")
    assert checkpoint.read_torch(ex.Config, tmp_path / "moved" / "best.pt")["config"].out == ex.Config.out
    train(ex, tmp_path / "moved", text=text, steps=4, resume="yes")


def test_checkpoint_on_a_full_disk(ex, text, tmp_path, monkeypatch):
    train(ex, tmp_path / "out", text=text, steps=2)
    before = (tmp_path / "out" / "checkpoint.pt").read_bytes()

    def full(state, name):
        Path(name).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        train(ex, tmp_path / "out", text=text, steps=4, resume="yes")
    assert (tmp_path / "out" / "checkpoint.pt").read_bytes() == before


def test_best_is_the_least_validation_loss(ex, text, tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.2])
    monkeypatch.setattr(ex, "evaluate", lambda model, x, y: {"loss": next(losses)})
    metrics = train(ex, tmp_path / "out", text=text, steps=6, eval_every=2)
    assert checkpoint.read_torch(ex.Config, tmp_path / "out" / "best.pt")["step"] == 2
    assert (metrics["validation_loss"], metrics["least_validation_loss"]) == (2.2, 2.0)


def test_checkpoint_from_before_a_flag(ex, text, tmp_path):
    """What a checkpoint does not have takes its default: a run of weeks outlives a new version of the program."""
    train(ex, tmp_path, text=text, steps=2)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for name in ("beta2", "grad_clip", "muon"):
        del state["config"][name]
    torch.save(state, tmp_path / "checkpoint.pt")
    assert checkpoint.load_flags(ex.Config, tmp_path / "checkpoint.pt").beta2 == 0.99
    train(ex, tmp_path, text=text, steps=4, resume="yes")


# torch.compile


def test_compiled_model_is_the_same(ex, capsys):
    """Where there is no C++ compiler this is the fallback, which is the same, too."""
    config, model = new_model(ex, dropout=0.5, layers=1)
    words = torch.randint(50, (4, 17))
    x, y = words[:, :-1], words[:, 1:]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    fast = speed.compiled(model, lambda model: model(x, y))
    assert ("not compiled" in capsys.readouterr().err) == (shutil.which("g++") is None)
    assert torch.equal(torch.rand(3), expected)  # nothing was drawn
    assert all(param.grad is None for param in model.parameters())
    fast.eval()
    fast(x, y).backward()
    gradients = [param.grad.clone() for param in model.parameters()]
    model.zero_grad()
    ex.loss_fn(model(x), y).backward()
    for ours, param in zip(gradients, model.parameters()):
        torch.testing.assert_close(ours, param.grad, atol=1e-5, rtol=1e-4)


def test_without_a_compiler(text, tmp_path):
    env = os.environ | {"CXX": "/nowhere/g++", "CC": "/nowhere/gcc", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    result = run_anew(16, *FLAGS, "--text", text, "--steps", 2, "--compile", "--out", tmp_path / "out", env=env)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("not compiled, so slower (") == 1
    assert result.stdout.splitlines()[-1].startswith("result: ")


def test_compile_is_passed_over_in_a_dry_run(ex, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: pytest.fail("compiled"))
    train(ex, tmp_path, dry_run=True, compile=True)


def test_a_text_without_the_default_prompt(ex, tmp_path):
    """In an alphabet that has none of its characters: the samples continue the first ones of the text."""
    path = tmp_path / "text.txt"
    path.write_text("Жизнь прожить — не поле перейти.\n" * 60, encoding="utf-8")
    train(ex, tmp_path / "out", text=path, steps=2)
    assert (tmp_path / "out" / "samples.txt").read_text(encoding="utf-8").split("\n")[1].startswith("Жизнь пр")


# Bad input


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "we #1"], "--prompt: the vocabulary lacks 'w', '#', '1': use only characters of"),
        (["--prompt", ""], "--prompt is empty"),
        (["--beta2", 1], "--beta2 must be at least 0 and at most 1"),
        (["--grad-clip", -1], "--grad-clip must be at least 0"),
        (["--profile", -1], "--profile must be at least 0"),
        (["--resume", "maybe"], "--resume: give yes, no or auto"),
        (["--top-k", 30], "--top-k 30 is larger than the vocabulary (29 tokens)"),
        (["--block-size", 2100], "the text's 2100 validation characters must be more than --block-size 2100"),
        (["--channels", 30, "--heads", 4], "--channels 30 must be a multiple of --heads 4"),
        (["--decay-to", 2], "--decay-to must be at least 0 and at most 1"),
        (["--preset", "gpt5"], "--preset"),
        (["--device", "tpu"], "--device"),
    ],
)
def test_bad_input(flags, message, tmp_path):
    one_sentence(run(16, "--dry-run", "--out", tmp_path, *flags), message)


def test_out_of_memory(ex, text, tmp_path):
    result = run(16, *FLAGS, "--text", text, "--channels", 10**6, "--out", tmp_path / "out")
    one_sentence(result, "error: out of memory (", "--batch-size first")


# sample.py and pretrained.py


def test_words_in_view(script):
    first = script("sample").first_in_view
    for size in (1, 2, 5, 16):
        for n in range(1, 60):
            assert n - size <= first(n, size) < n
            assert first(n, size) == 0 or n - first(n, size) > size // 2 - 1
    assert [first(n, 16) for n in (16, 17, 24, 25, 32, 33)] == [0, 8, 8, 16, 16, 24]


@torch.no_grad()
@pytest.mark.parametrize("number", [13, 16, 17])
def test_sample_shows_the_model_one_shape(number):
    """A compiled or tuned kernel meets one length, and the text is that of windows as long as the text so far."""
    ex = load(number)
    config = ex.Config(block_size=16, layers=2, heads=2, channels=16, max_new_tokens=30, temperature=1.0)
    model, shapes = ex.Transformer(config, 256).eval(), []
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.3)
    expected, generator = torch.tensor([3, 1, 4, 1, 5]), torch.Generator().manual_seed(config.seed)
    prompt = expected
    for _ in range(config.max_new_tokens):
        expected = torch.cat([expected, ex.draw(model(expected[None, -16:])[0, -1], config, generator)])
    model.register_forward_pre_hook(lambda model, args: shapes.append(tuple(args[0].shape)))
    vocab = (SimpleNamespace(n_vocab=256),) if number == 17 else ()
    assert ex.sample(model, prompt, config, *vocab).tolist() == expected.tolist()
    assert set(shapes) == {(1, 16)}
    assert len(shapes) == 30


@torch.no_grad()
@pytest.mark.parametrize("length", [10, 60])
def test_cached_is_uncached(ex, script, length):
    """The same words with and without the cache, also beyond the block, and the same logits."""
    sampling = script("sample")
    _, model = new_model(ex)
    model.eval()
    prompt = torch.tensor([3, 1, 4, 1, 5])
    texts = []
    for cache in (True, False):
        config = sampling.Config(cache=cache, temperature=1.0)
        texts.append([word.item() for _, word in zip(range(length), sampling.generate(model, prompt, config, 0))])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 5
    if length == 10:  # within the block, that is train.py's own sample
        config = ex.Config(**SMALL | {"max_new_tokens": 10}, temperature=1.0)
        assert ex.sample(model, prompt, config)[5:].tolist() == texts[0]
    words = torch.randint(50, (16,))
    caches = [torch.zeros(2, 1, 2, 16, 8) for _ in model.blocks]
    for start, end in ((0, 5), (5, 6), (6, 7)):
        logits = sampling.next_logits(model, words[start:end], start, caches)
        torch.testing.assert_close(logits, model(words[None, :end])[0, -1], atol=1e-4, rtol=1e-4)


def test_sample_py(ex, text, tmp_path):
    train(ex, tmp_path, text=text, steps=2)

    def write(*flags):
        return warm.run(FOLDER / "sample.py", "--checkpoint", tmp_path / "best.pt", *flags)

    flags = ["--prompt", "ROMEO:\\n", "--max-new-tokens", 40, "--number", 2, "--temperature", 1]
    cached, again, uncached = write(*flags), write(*flags), write(*flags, "--no-cache")
    assert cached.returncode == 0, cached.stderr
    assert cached.stdout == again.stdout == uncached.stdout
    first, second = cached.stdout.split("--- sample ")[1:]
    assert first.startswith("1\nROMEO:\n")
    assert first[2:] != second[2:]
    assert len(first) == len(second) == 2 + 7 + 40 + 1
    assert "tokens/s on cpu, with the cache" in cached.stderr
    one_sentence(write("--prompt", "ROMEO#"), "the vocabulary lacks '#'")
    for wrong, flag in ((["--prompt", ""], "an empty --prompt"), (["--stop"], "--stop")):
        one_sentence(write(*wrong), f"a model of characters has no <|endoftext|>, so it cannot take {flag}")
    (tmp_path / "prompt.txt").write_text("ROMEO:\n")
    assert write(*flags[2:], "--prompt-file", tmp_path / "prompt.txt").stdout == cached.stdout
    one_sentence(write("--prompt", "a", "--prompt-file", "b"), "--prompt and --prompt-file both give the text")
    one_sentence(write("--prompt-file", tmp_path / "none"), "cannot read the text", "name another file")
    one_sentence(write("--top-k", 99), "--top-k 99 is larger than the")
    one_sentence(write("--checkpoint", tmp_path / "none.pt"), "there is no checkpoint")


def test_pretrained_py(ex, script, transformers, text, tmp_path):
    train(ex, tmp_path, text=text, steps=2)

    def convert(*flags):
        return warm.run(FOLDER / "pretrained.py", *flags)

    result = convert("--init-from", tmp_path / "best.pt", "--export", tmp_path / "folder")
    assert result.returncode == 0, result.stderr
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "folder").eval()
    ours, vocab = script("sample").load_model(tmp_path / "best.pt", CPU)
    words = torch.randint(len(vocab), (2, 16))
    torch.testing.assert_close(theirs(words).logits, ours(words), atol=1e-4, rtol=1e-4)
    one_sentence(convert(), "nothing to do")
    save = ["--save", tmp_path / "new" / "checkpoint.pt"]
    (tmp_path / "empty").mkdir()
    one_sentence(convert("--init-from", tmp_path / "empty", *save), "there is no", "model.safetensors")
    one_sentence(convert("--init-from", tmp_path / "none", *save), "there is no checkpoint")
    taken = tmp_path / "checkpoint.pt"
    one_sentence(
        convert("--init-from", tmp_path / "folder", "--save", taken), "checkpoint.pt is the checkpoint of a run"
    )
    (tmp_path / "folder" / "model.safetensors").write_bytes(b"0123456789")
    one_sentence(convert("--init-from", tmp_path / "folder", *save), "does not hold all weights")


def test_gpt2_shape(script, transformers, tmp_path, monkeypatch):
    """OpenAI's smallest model has 124,439,808 parameters; here they are those of a random one of that shape."""
    pretrained = script("pretrained")
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    theirs.save_pretrained(tmp_path)
    pretrained.main(pretrained.Config(tmp_path, save=tmp_path / "gpt2.pt"))
    model, vocab = script("sample").load_model(tmp_path / "gpt2.pt", CPU)
    assert sum(param.numel() for param in model.parameters()) == 124_439_808
    assert vocab is None
    words = torch.randint(50257, (1, 20))
    torch.testing.assert_close(model(words), theirs.eval()(words).logits, atol=1e-4, rtol=1e-4)


def test_ctrl_c_in_a_checkpoint(ex, text, tmp_path):
    """While torch writes it: that is no full disk, and the last checkpoint stays."""
    train(ex, tmp_path, text=text, steps=2)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    code = f"""
import os, signal, threading, torch
from common import checkpoint
from common.program import clean_exit
state = {{str(i): torch.ones(100_000) for i in range(400)}}  # 160 MB
threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
with clean_exit():
    checkpoint.write_torch(state, checkpoint.Path({str(tmp_path / "checkpoint.pt")!r}))
    raise SystemExit("it was not in time")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 130, result.stderr
    assert [path.name for path in tmp_path.glob("*.tmp")] == []
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
