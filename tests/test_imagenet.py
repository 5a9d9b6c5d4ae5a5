"""Exercise 15: ResNets against transformers', the recipe against torch and by hand, devices, checkpoints."""

import errno
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from itertools import chain
from types import SimpleNamespace

from common import UserError, checkpoint, imagenet
from common.curriculum import ROOT

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import tyro
from helpers import load, one_sentence, read_metrics, run
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification

pytestmark = pytest.mark.usefixtures("quick_compiler", "without_pictures")

TINY = {"channels": 2, "size": 32, "train_size": 32, "workers": 0, "batch_size": 8, "device": "cpu"}
AS_FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]


def shaken(params, seed=0):
    """Return the parameters with noise on all but the weights, so that no scale is 0 or 1 and no statistic is new."""
    rng = np.random.default_rng(seed)

    def shake(path, param):
        return param if path[-1].key == "w" else param + jnp.asarray(rng.uniform(0.05, 0.3, param.shape), param.dtype)

    return jax.tree.map_with_path(shake, params)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def new_model(ex, config, classes):
    """Return a new model's parameters and running statistics."""
    params = ex.init_params(jax.random.key(0), config, classes)
    return params, ex.init_batch_stats(params)


@pytest.fixture
def made_up(monkeypatch):
    """Return exercise 15 with 24 made-up images of 3 classes for training and 11 for validation."""
    ex = load(15)

    def few(n):
        return imagenet.MadeUp(["ape", "bee", "cat"], (np.arange(n) % 3).astype(np.int32))

    monkeypatch.setattr(ex, "make_data", lambda config: (few(24), few(11)))
    return ex


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an image folder of three classes, 8 images each for training and 4 for validation."""
    monkeypatch.setenv("RAMPUP_DATA", str(tmp_path / "data"))
    rng = np.random.default_rng(0)
    for name in ("ape", "bee", "cat"):
        for split, n in (("train", 8), ("val", 4)):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(n):
                picture = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((50, 40))
                picture.save(tmp_path / "images" / split / name / f"{i}.JPEG")
    return tmp_path / "images"


def to_torch(params, batch_stats, model):
    """Put our parameters and running statistics into transformers' model."""

    def put(layer, stats, convolution):
        convolution.convolution.weight.data = torch.tensor(np.asarray(layer["w"]).transpose(3, 2, 0, 1))
        norm = convolution.normalization
        names = {"scale": norm.weight, "bias": norm.bias, "mean": norm.running_mean, "var": norm.running_var}
        for name, theirs in names.items():
            theirs.data = torch.tensor(np.asarray((layer | stats)[name]))

    put(params["stem"], batch_stats["stem"], model.resnet.embedder.embedder)
    theirs = [layer for stage in model.resnet.encoder.stages for layer in stage.layers]
    blocks, block_stats = (list(chain.from_iterable(tree["stages"])) for tree in (params, batch_stats))
    for block, stats, layer in zip(blocks, block_stats, theirs, strict=True):
        names = [name for name in ("conv0", "conv1", "conv2") if name in block]
        for name, other in zip(names, layer.layer, strict=True):
            put(block[name], stats[name], other)
        assert (block["shortcut"] is not None) == hasattr(layer.shortcut, "convolution")
        if block["shortcut"] is not None:
            put(block["shortcut"], stats["shortcut"], layer.shortcut)
    model.classifier[1].weight.data = torch.tensor(np.asarray(params["head"]["w"]).T)
    model.classifier[1].bias.data = torch.tensor(np.asarray(params["head"]["b"]))


@pytest.mark.parametrize(("depth", "channels", "params"), [(50, 64, 25_557_032), (18, 64, 11_689_512), (34, 8, None)])
def test_equals_transformers(depth, channels, params):
    """The same weights give the same logits: widths, strides, paddings, shortcuts, eps; sides of odd length, too."""
    ex = load(15)
    blocks = [2, 2, 2, 2] if depth == 18 else [3, 4, 6, 3]
    widths = [channels * 2**stage * (4 if depth == 50 else 1) for stage in range(4)]
    kind = "bottleneck" if depth == 50 else "basic"
    theirs = ResNetForImageClassification(
        ResNetConfig(embedding_size=channels, hidden_sizes=widths, depths=blocks, layer_type=kind, num_labels=1000)
    ).eval()
    ours = new_model(ex, ex.Config(depth=depth, channels=channels), 1000)
    if params:
        assert count(ours[0]) == params == sum(param.numel() for param in theirs.parameters())
    ours = shaken(ours)
    to_torch(*ours, theirs)
    images = np.random.default_rng(0).normal(size=(2, 75, 64, 3)).astype(np.float32)
    logits, _ = ex.forward(*ours, images)
    with torch.no_grad():
        expected = theirs(torch.tensor(images).permute(0, 3, 1, 2)).logits
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert abs(logits).max() > 0.1


def test_what_stands_as_in_14():
    fourteen, ex = load(14), load(15)
    for name in ("batches", "init_layer", "init_batch_stats", "batch_norm", "conv_norm"):
        assert inspect.getsource(getattr(ex, name)) == inspect.getsource(getattr(fourteen, name))
    sources = [inspect.getsource(module.train_step.__wrapped__) for module in (ex, fourteen)]
    assert sources[0] == sources[1]


def test_blocks_begin_as_their_shortcuts():
    ex = load(15)
    model = new_model(ex, ex.Config(depth=50, channels=2), 10)
    blocks = list(chain.from_iterable(model[0]["stages"]))
    assert len(blocks) == 16
    for block in blocks:
        assert not block["conv2"]["scale"].any()
        assert (block["conv1"]["scale"] == 1).all()
    logits, _ = ex.forward(*model, np.zeros((1, 64, 64, 3), np.float32))
    assert abs(logits).max() < 0.5  # so that the loss begins near ln K


def test_optimizer_equals_torch_by_hand():
    """Nesterov's momentum, decay of the weights alone, and the schedule, over all steps of a run."""
    ex = load(15)
    config = ex.Config(steps=40, learning_rate=0.3, weight_decay=0.05)
    rng = np.random.default_rng(0)
    names = {"w": (3, 2), "scale": (2,), "bias": (2,), "b": (2,)}
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in names.items()}
    params = {"layer": {name: jnp.array(value) for name, value in start.items()} | {"shortcut": None}}
    optimizer = ex.make_optimizer(config)
    state = optimizer.init(params)
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    weights = {"params": [theirs["w"]], "weight_decay": 0.05}
    others = {"params": [theirs[name] for name in ("scale", "bias", "b")], "weight_decay": 0.0}
    sgd = torch.optim.SGD([weights, others], lr=1.0, momentum=0.9, nesterov=True)
    for step in range(40):
        # A line from 0.001 to 0.3 over the first 40 // 18 = 2 steps, then half a cosine over the other 38.
        rate = 0.001 + 0.299 * step / 2 if step < 2 else 0.15 * (1 + np.cos(np.pi * (step - 2) / 38))
        grads = {name: rng.normal(size=shape).astype(np.float32) for name, shape in names.items()}
        for group in sgd.param_groups:
            group["lr"] = rate
        for name, grad in grads.items():
            theirs[name].grad = torch.tensor(grad)
        sgd.step()
        tree = {"layer": {name: jnp.array(grad) for name, grad in grads.items()} | {"shortcut": None}}
        updates, state = optimizer.update(tree, state, params)
        params = jax.tree.map(lambda param, change: param + change, params, updates)
        for name in names:
            np.testing.assert_allclose(params["layer"][name], theirs[name].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 17])
def test_schedule_of_few_steps(steps):
    ex = load(15)
    optimizer = ex.make_optimizer(ex.Config(steps=steps, weight_decay=0.0))
    params = {"w": jnp.ones(1)}
    updates, _ = optimizer.update({"w": jnp.ones(1)}, optimizer.init(params), params)
    assert updates["w"] == pytest.approx(-0.1 * 1.9)


def start_of(ex, config, n=8):
    """Return the arguments of update() for its first step."""
    model = new_model(ex, config, 3)
    optimizer = ex.make_optimizer(config)
    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)
    return optimizer, *model, optimizer.init(model[0]), model, images, np.arange(n) % 3


def test_smoothing_by_hand():
    """0.2 of the probability goes to all 3 classes alike; evaluation has none of it."""
    ex = load(15)
    config = ex.Config(**TINY, smoothing=0.2, steps=10)
    optimizer, *state, images, labels = start_of(ex, config)
    *_, loss = ex.update(config, optimizer, *state, images, labels, 0, jax.random.key(0))
    logits, _ = ex.forward(*state[:2], ex.normalise(images), True, jax.random.key(0))
    log_probs = np.asarray(jax.nn.log_softmax(logits))  # (B, K)
    of_class = log_probs[np.arange(8), labels]  # (B,)
    assert loss.shape == ()
    assert loss == pytest.approx(-(0.8 * of_class + 0.2 * log_probs.mean(1)).mean(), abs=1e-5)


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_ema_by_hand(ema):
    """Of the parameters and of the running statistics."""
    ex = load(15)
    config = ex.Config(**TINY, ema=ema, steps=10)
    optimizer, *state, images, labels = start_of(ex, config)
    update = jax.jit(ex.partial(ex.update, config, optimizer))
    expected = state[3]
    for step in range(3):
        *state, _ = update(*state, images, labels, step, jax.random.key(0))
        model = tuple(state[:2])
        keep = min(ema, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda old, new, keep=keep: keep * old + (1 - keep) * new, expected, model)
    jax.tree.map(lambda ours, other: np.testing.assert_allclose(ours, other, atol=1e-6), state[3], expected)
    same = jax.tree.leaves(jax.tree.map(lambda one, other: bool((one == other).all()), state[3], model))
    assert all(same) == (ema == 0)


def test_overfits_a_batch_and_parameters_stay_float32():
    ex = load(15)
    config = ex.Config(**TINY | {"channels": 8}, steps=60, precision="bfloat16", learning_rate=0.05)
    optimizer, *state, images, labels = start_of(ex, config)
    update = jax.jit(ex.partial(ex.update, config, optimizer))
    losses = []
    for step in range(60):
        *state, loss = update(*state, images, labels, step, jax.random.key(0))
        losses.append(float(loss))
    assert losses[0] == pytest.approx(np.log(3), abs=0.2)
    assert losses[-1] < 0.05
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((state[:2], state[3]))}
    assert dtypes == {np.dtype("float32")}


def test_normalise():
    ex = load(15)
    images = np.array([[[[0, 128, 255]]]], np.uint8)
    expected = [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(ex.normalise(images)[0, 0, 0], expected, rtol=1e-5)
    assert ex.normalise(images, "bfloat16").dtype == jnp.bfloat16


@pytest.mark.parametrize(("batch_size", "classes"), [(8, 10), (11, 10), (30, 10), (8, 3)])
def test_every_validation_image_counts_once(batch_size, classes, monkeypatch):
    """Loss, top-1 and top-5 are those of all 11 images in one go, however they are cut into batches."""
    ex = load(15)
    rng = np.random.default_rng(5)
    packed = imagenet.MadeUp(list(range(classes)), rng.integers(0, classes, 11).astype(np.int32))
    table = rng.normal(size=(11, classes))
    seen = []

    def load_numbers(packed, batches, size, workers):
        for _, numbers in batches:
            seen.extend(number for number in numbers if number >= 0)
            yield numbers.astype(np.float32)[:, None], np.where(numbers < 0, -1, packed.labels[numbers])

    monkeypatch.setattr(ex.imagenet, "load", load_numbers)
    monkeypatch.setattr(ex, "normalise", lambda images, dtype: images)
    monkeypatch.setattr(ex, "forward", lambda *args: (jnp.asarray(table[np.asarray(args[2][:, 0]).astype(int)]), None))
    config = ex.Config(**TINY | {"batch_size": batch_size})
    measured = ex.evaluate(config, None, None, packed, jax.devices()[0])
    ranks = (table > table[np.arange(11), packed.labels][:, None]).sum(1)
    assert classes == 3 or {0, 4, 6} <= set(ranks.tolist())  # the last that counts, too
    logs = table - np.log(np.exp(table).sum(1, keepdims=True))
    assert seen == list(range(11))
    assert measured["accuracy"] == pytest.approx((ranks == 0).mean())
    assert measured["top5"] == pytest.approx((ranks < 5).mean())
    assert measured["loss"] == pytest.approx(-logs[np.arange(11), packed.labels].mean(), abs=1e-5)


SHARDED = """
import sys
import jax
import numpy as np
sys.path.insert(0, "tests")
from helpers import load
from common import imagenet
ex, devices, put = load(15), jax.devices(), jax.device_put
few = [imagenet.MadeUp(["ape", "bee", "cat"], (np.arange(n) % 3).astype(np.int32)) for n in (24, 11)]
ex.make_data = lambda config: few
for n in (1, 2, 4):
    jax.devices = lambda platform=None: devices[:n]
    def seen(x, where):
        y = put(x, where)
        if isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], np.ndarray):  # a batch
            assert [shard.data.shape[0] for shard in y[0].addressable_shards] == [8 // n] * n
            print("batches in", n, "parts")
        return y
    jax.device_put = seen
    sizes = dict(channels=2, size=32, train_size=32, workers=0, batch_size=8, dropout=0.2, ema=0.9)
    ex.main(ex.Config(steps=10, eval_every=5, out=ex.Path(sys.argv[1]) / str(n), **sizes))
try:
    ex.main(ex.Config(batch_size=6))
except Exception as error:
    print(error)
"""


def test_commands_for_several_gpus(tmp_path):
    """The README's; the last is run, with as many simulated devices (test_dry_run has one, the next test 2 and 4)."""
    text = (ROOT / "ex15_imagenet" / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\| (\d) \| `python ex15_imagenet/train.py (.*)` \|$", text, re.MULTILINE)
    assert [int(number) for number, _ in commands] == [1, 4, 8]
    ex = load(15)
    configs = [tyro.cli(ex.Config, args=flags.split()) for _, flags in commands]
    assert [(config.batch_size, config.epochs) for config in configs[1:]] == [(1024, 90), (2048, 90)]
    assert len({config.learning_rate / config.batch_size for config in configs[1:]}) == 1  # which goes with the batch
    small = ["--dry-run", "--dummy-data", *AS_FLAGS[:1], "--size=16", "--train-size=16", "--workers=0", "--device=cpu"]
    options = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    result = run(15, *commands[-1][1].split(), *small, "--out", tmp_path, env=options)
    assert result.returncode == 0, result.stderr
    assert "epochs, devices: 8\n" in result.stdout


def test_epochs(tmp_path):
    """Steps and evaluations follow from them, anew when a run goes on for more; with --steps they contradict it."""
    sizes = ["--size=16", "--train-size=16", "--batch-size=1000"]  # of 10,000 images
    flags = [*AS_FLAGS, *sizes, "--dummy-data", f"--out={tmp_path}"]
    assert run(15, *flags, "--epochs=0.2").returncode == 0
    assert list(read_metrics(tmp_path)["train", "loss"]) == [0, 1]
    result = run(15, "--resume", "--epochs=1.2", f"--out={tmp_path}")
    assert result.returncode == 0, result.stderr
    series = read_metrics(tmp_path)
    assert list(series["train", "loss"]) == list(range(12))
    assert list(series["validation", "loss"]) == [0, 10, 12]
    result = run(15, *flags, "--epochs=1", "--steps=3")
    assert result.returncode == 1
    assert result.stderr == "error: --epochs and --steps both say how long to train: give one of them\n"


def test_sharded_equals_unsharded(tmp_path):
    """Ten steps, their losses and the evaluations between, on 1, 2 and 4 simulated devices."""
    options = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", SHARDED, tmp_path], capture_output=True, text=True, cwd=ROOT, env=options, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert "epochs, devices: 4" in result.stdout
    assert "batches in 4 parts" in result.stdout
    assert "--batch-size 6 must be a multiple of the number of devices (4)" in result.stdout
    one, two, four = (read_metrics(tmp_path / str(n)) for n in (1, 2, 4))
    assert list(one["train", "loss"]) == list(range(10))
    for name in one:
        assert two[name] == pytest.approx(one[name], abs=1e-4)
        assert four[name] == pytest.approx(one[name], abs=1e-4)


def test_what_is_loaded_and_what_is_evaluated(made_up, tmp_path, monkeypatch):
    """Random parts of one size in training, the middle in another for evaluation, of the mean of the parameters."""
    ex = made_up
    loaded, evaluated, saved = set(), [], []
    true_load, true_save = imagenet.load, checkpoint.save_jax

    def load_batches(packed, numbers, size, seed=None, area=None, workers=0):
        loaded.add((len(packed), size, seed, area))
        return true_load(packed, numbers, size, seed, area or (0.08, 1.0), workers)

    def evaluate(config, params, batch_stats, packed, rows):
        evaluated.append(np.asarray(params["head"]["w"]))
        return {"loss": 1.0}

    def save(run, step, state):
        saved.append([np.asarray(params["head"]["w"]) for params in (state[0], state[3][0])])
        true_save(run, step, state)

    monkeypatch.setattr(ex.checkpoint, "save_jax", save)
    with monkeypatch.context() as patch:
        patch.setattr(ex, "evaluate", evaluate)
        patch.setattr(ex.imagenet, "load", load_batches)
        ex.main(ex.Config(**TINY | {"size": 48}, steps=3, ema=0.9, seed=5, area=0.4, out=tmp_path))
    assert loaded == {(24, 32, 5, (0.4, 1))}
    last, mean = saved[-1]
    assert (evaluated[-1] == mean).all()
    assert (last != mean).any()
    monkeypatch.setattr(ex.imagenet, "load", load_batches)
    ex.evaluate(
        ex.Config(**TINY | {"size": 48}),
        *new_model(ex, ex.Config(channels=2), 3),
        imagenet.MadeUp(["ape", "bee", "cat"], np.zeros(5, np.int32)),
        jax.devices()[0],
    )
    assert (5, 48, None, None) in loaded


def test_dropout_differs_from_step_to_step(made_up, tmp_path, monkeypatch):
    ex = made_up
    keys = []
    true_fold = jax.random.fold_in
    monkeypatch.setattr(ex.jax.random, "fold_in", lambda key, step: keys.append(step) or true_fold(key, step))
    ex.main(ex.Config(**TINY, steps=4, out=tmp_path))
    assert keys == [0, 1, 2, 3]


def test_gradients_equal_transformers():
    """Those of ResNet-50 in training, whose batch norms take the batch's own mean and variance."""
    ex = load(15)
    theirs = ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[32, 64, 128, 256], layer_type="bottleneck", num_labels=10)
    ).train()
    params, batch_stats = shaken(new_model(ex, ex.Config(depth=50, channels=8), 10))
    to_torch(params, batch_stats, theirs)
    images = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype(np.float32)
    labels = np.array([3, 1, 4, 1])

    def loss(params):
        logits, _ = ex.forward(params, batch_stats, images, True, jax.random.key(0), 0.0)
        return ex.loss_fn(logits, jax.nn.one_hot(labels, 10))

    ours, grads = jax.value_and_grad(loss)(params)
    expected = theirs(torch.tensor(images).permute(0, 3, 1, 2), labels=torch.tensor(labels)).loss
    expected.backward()
    assert ours == pytest.approx(expected.item(), abs=1e-4)
    stem = theirs.resnet.embedder.embedder.convolution.weight.grad.permute(2, 3, 1, 0).numpy()
    np.testing.assert_allclose(grads["stem"]["w"], stem, atol=2e-3 * abs(stem).max())
    middle = theirs.resnet.encoder.stages[1].layers[0].layer[1]
    filters, scale = middle.convolution.weight.grad.permute(2, 3, 1, 0), middle.normalization.weight.grad
    for name, other in {"w": filters.numpy(), "scale": scale.numpy()}.items():
        np.testing.assert_allclose(grads["stages"][1][0]["conv1"][name], other, atol=2e-3 * abs(other).max())


class Cut(Exception):
    """A run that ends in the middle."""


def cut_at(monkeypatch, ex, step):
    """Let a run end when it wants to record the training loss of a step."""

    class Ending(ex.Run):
        def record(self, at, split, **metrics):
            if (at, split) == (step, "train"):
                raise Cut
            super().record(at, split, **metrics)

    monkeypatch.setattr(ex, "Run", Ending)


def test_exact_resume(made_up, tmp_path, monkeypatch, capsys):
    """A run that was cut and resumed, twice, leaves the metrics.csv of the unbroken one, byte for byte."""
    ex = made_up
    flags = TINY | {"steps": 9, "eval_every": 2, "dropout": 0.2, "ema": 0.9}
    ex.main(ex.Config(**flags, out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        cut_at(patch, ex, 5)  # of epoch 1, with rows of steps 4 and 5 behind the checkpoint of step 4
        with pytest.raises(Cut):
            ex.main(ex.Config(**flags, out=tmp_path / "cut"))
    assert 4 in read_metrics(tmp_path / "cut")["train", "loss"]
    assert not (tmp_path / "cut" / "result.json").exists()
    with monkeypatch.context() as patch:
        cut_at(patch, ex, 7)
        with pytest.raises(Cut):
            ex.main(ex.Config(**flags, out=tmp_path / "cut", resume="yes"))
    assert checkpoint._read_arrays(tmp_path / "cut" / "checkpoint.npz")[1]["step"] == 6
    ex.main(ex.Config(**flags, out=tmp_path / "cut", resume="yes"))
    whole, cut = ((tmp_path / name / "metrics.csv").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert list(read_metrics(tmp_path / "cut")["validation", "top5"]) == [0, 2, 4, 6, 8, 9]
    before = {path.name: path.read_bytes() for path in (tmp_path / "cut").iterdir()}
    with pytest.raises(SystemExit) as end:
        ex.main(ex.Config(**flags, out=tmp_path / "cut", resume="yes"))
    assert end.value.code == 0
    assert "it has made all 9 steps" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "cut").iterdir()} == before
    for name in ("result.json", "loss.png"):  # lost, or never written; both come again
        (tmp_path / "cut" / name).unlink()
        ex.main(ex.Config(**flags, out=tmp_path / "cut", resume="yes"))
        result = json.loads((tmp_path / "cut" / "result.json").read_bytes())
        assert result["metrics"]["validation_loss"] == read_metrics(tmp_path / "cut")["validation", "loss"][9]
        assert result["metrics"]["train_loss"] == read_metrics(tmp_path / "cut")["train", "loss"][8]
        assert (tmp_path / "cut" / "metrics.csv").read_bytes() == whole
        assert (tmp_path / "cut" / "loss.png").exists()


def test_kill_and_resume_from_the_command_line(folder, tmp_path):
    """kill -9 leaves a checkpoint; --resume alone goes on with all flags of the run, and other flags over them."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    flags = [f"--data={folder}", "--eval-every=3", *AS_FLAGS]
    assert run(15, *flags, "--steps=12", "--out", tmp_path / "whole", env=environment).returncode == 0
    command = [sys.executable, ROOT / "ex15_imagenet" / "train.py", *flags, "--steps=12", "--out", tmp_path / "killed"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint.npz").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = run(15, "--resume", "--out", tmp_path / "killed", "--on-error", "skip", env=environment)
    assert resumed.returncode == 0, resumed.stderr
    whole, killed = ((tmp_path / name / "metrics.csv").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    notes = checkpoint._read_arrays(tmp_path / "killed" / "checkpoint.npz")[1]
    assert notes["config"]["on_error"] == "skip"
    assert notes["config"]["channels"] == 2


def test_checkpoint_that_is_another_is_refused(made_up, tmp_path):
    """Before anything is lost, and flags over those of the checkpoint count."""
    ex = made_up
    ex.main(ex.Config(**TINY, steps=2, out=tmp_path))
    history = (tmp_path / "metrics.csv").read_bytes()
    start = ex.preset(ex.Config(resume="yes", out=tmp_path))
    assert start.channels == 2
    config = tyro.cli(ex.Config, default=start, args=["--resume", "--steps", "4", "--channels", "4"])
    with pytest.raises(UserError, match=r"checkpoint.npz has another architecture \(0\.\S+ has shape \(.+\) in it"):
        ex.main(config)
    config = tyro.cli(ex.Config, default=start, args=["--resume", "--steps", "4", "--depth", "34"])
    with pytest.raises(UserError, match="has another architecture"):
        ex.main(config)
    content = (tmp_path / "checkpoint.npz").read_bytes()
    (tmp_path / "checkpoint.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"checkpoint.npz is damaged"):
        ex.preset(ex.Config(resume="yes", out=tmp_path))
    with zipfile.ZipFile(tmp_path / "checkpoint.npz", "w") as file:  # its sums are right, but what is in it is no array
        file.writestr("0.npy", bytes(100))
    with pytest.raises(UserError, match=r"checkpoint.npz is damaged"):
        ex.preset(ex.Config(resume="yes", out=tmp_path))
    assert (tmp_path / "metrics.csv").read_bytes() == history


def test_learns_photographs(photographs, tmp_path, monkeypatch):
    """Real photographs of ten classes, packed and decoded by a worker: far above chance, which is 10 %."""
    monkeypatch.setenv("RAMPUP_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")  # it trains for long, and as users' runs do
    sizes = ["--channels", 8, "--size", 48, "--train-size", 40, "--batch-size", 64, "--workers", 1, "--device", "cpu"]
    result = run(15, "--data", photographs, *sizes, "--steps", 100, "--eval-every", 100, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "data: 1000 photographs for training, 500 for validation, 10 classes" in result.stdout
    assert "data ms" in result.stdout  # beside the time of a step
    series = read_metrics(tmp_path / "out")
    assert series["validation", "loss"][0] == pytest.approx(np.log(10), abs=0.05)
    assert series["validation", "loss"][100] < 2.2
    assert series["validation", "accuracy"][100] > 0.2


def small_run(tmp_path, **flags):
    ex = load(15)
    config = ex.Config(out=tmp_path, **flags)
    state = {"sizes": {}, "latest": {}, "least": {}, "seconds": 1.0}
    return SimpleNamespace(config=config, out=tmp_path, state=lambda: state)


def test_checkpoint_keeps_every_bit(tmp_path):
    rng = np.random.default_rng(0)
    state = [{"w": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}, (jnp.array(7), [jnp.ones(2), None])]
    first = small_run(tmp_path, learning_rate=0.3)
    checkpoint.save_jax(first, 5, state)
    zeros = jax.tree.map(jnp.zeros_like, state)
    config = load(15).Config(out=tmp_path, resume="yes", steps=9)
    found, step, run_state = checkpoint.resume_jax(config, zeros)
    assert step == 5
    assert run_state == first.state()
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert checkpoint.load_flags(load(15).Config, tmp_path / "checkpoint.npz").learning_rate == 0.3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]


def test_damaged_checkpoints(tmp_path):
    """Cut anywhere, or with any bit flipped, a checkpoint is refused or, where the bit is in no data, the same."""
    state = [jnp.arange(50.0)]
    checkpoint.save_jax(small_run(tmp_path), 5, state)
    path = tmp_path / "checkpoint.npz"
    content = path.read_bytes()
    config = load(15).Config(out=tmp_path, resume="yes", steps=9)
    for cut in [0, 1, 30, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match="is damaged, or it is not a checkpoint"):
            checkpoint.resume_jax(config, state)
    refused = 0
    for byte in range(0, len(content), 7):
        path.write_bytes(content[:byte] + bytes([content[byte] ^ 4]) + content[byte + 1 :])
        try:
            found, step, _ = checkpoint.resume_jax(config, state)
        except UserError:
            refused += 1
        else:
            assert step == 5
            np.testing.assert_array_equal(found[0], state[0])
    assert refused > len(content) / 7 / 2
    path.write_bytes(b"no zip at all")
    with pytest.raises(UserError, match="is damaged, or it is not a checkpoint"):
        checkpoint._read_arrays(tmp_path / "checkpoint.npz")
    np.savez(path, something=np.ones(3))
    with pytest.raises(UserError, match="is damaged, or it is not a checkpoint"):
        checkpoint._read_arrays(tmp_path / "checkpoint.npz")
    path.unlink()
    with pytest.raises(UserError, match="there is no checkpoint .*: train without --resume first"):
        checkpoint._read_arrays(tmp_path / "checkpoint.npz")


def test_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    state = [jnp.arange(50.0)]
    checkpoint.save_jax(small_run(tmp_path), 5, state)
    before = (tmp_path / "checkpoint.npz").read_bytes()

    def half(file, **arrays):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.np, "savez", half)
    with pytest.raises(UserError, match=r"cannot write .*No space left.*free some space, .* checkpoint is kept"):
        checkpoint.save_jax(small_run(tmp_path), 6, state)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]
    assert (tmp_path / "checkpoint.npz").read_bytes() == before


def test_a_new_run_leaves_no_old_checkpoint(made_up, tmp_path):
    ex = made_up
    ex.main(ex.Config(**TINY, steps=4, out=tmp_path))
    ex.main(ex.Config(**TINY, steps=2, out=tmp_path))
    assert checkpoint._read_arrays(tmp_path / "checkpoint.npz")[1]["step"] == 2


def test_dummy_data_needs_one_batch(monkeypatch, tmp_path, capsys):
    """Training takes the same batch from the device again and again; 1,000 classes, as ImageNet has."""
    ex = load(15)
    sizes, true_load = [], imagenet.load

    def counted(packed, batches, size, *others, **more):
        for batch in true_load(packed, batches, size, *others, **more):
            sizes.append(len(packed))
            yield batch

    monkeypatch.setattr(ex.imagenet, "load", counted)
    metrics = ex.main(ex.Config(**TINY | {"batch_size": 60}, dummy_data=True, steps=3, out=tmp_path))
    assert sizes.count(10_000) == 1
    assert metrics["images_per_second"] > 0
    assert "ln K 6.908" in capsys.readouterr().out
    series = read_metrics(tmp_path)["train", "loss"]
    assert list(series) == [0, 1, 2]


def test_presets(monkeypatch):
    ex = load(15)
    assert ex.preset(ex.Config(device="cpu")) == ex.Config(epochs=11)
    stats, capability = {"bytes_limit": 60e9, "bytes_in_use": 0}, ["9.0"]

    def card(name):
        return SimpleNamespace(platform="gpu", memory_stats=lambda: stats, compute_capability=capability[0])

    monkeypatch.setattr(ex, "jax_device", card)
    monkeypatch.setattr(ex.os, "cpu_count", lambda: 64)
    ours = ex.preset(ex.Config(data=ex.Path("ILSVRC/imagenet-1k")))
    assert (ours.depth, ours.channels, ours.size, ours.batch_size, ours.precision) == (50, 64, 224, 256, "bfloat16")
    assert (ours.epochs, ours.steps, ours.eval_every) == (16, None, None)
    assert (ours.smoothing, ours.weight_decay, ours.learning_rate) == (0.1, 1e-4, 0.1)
    assert ex.preset(ex.Config(dummy_data=True)).train_size == 224
    small = ex.preset(ex.Config())  # Imagenette
    assert (small.epochs, small.size, small.train_size, small.depth) == (80, 160, 128, 50)
    assert ours.workers == 16
    monkeypatch.setattr(ex.os, "cpu_count", lambda: 2)
    assert ex.preset(ex.Config()).workers == 2
    for gigabytes, there, large, small in ((18, "8.6", 256, 256), (6, "8.9", 64, 256), (11, "7.5", 64, 256)):
        stats["bytes_limit"], capability[0] = gigabytes * 1e9, there
        for data, batch in (("ILSVRC/imagenet-1k", large), ("imagenette", small)):
            found = ex.preset(ex.Config(data=ex.Path(data)))
            assert (found.batch_size, found.learning_rate) == (batch, 0.1 * batch / 256)
            assert found.precision == ("float32" if there == "7.5" else "bfloat16")
    stats["bytes_limit"], capability[0] = 60e9, "9.0"
    flags = ["--data", "somewhere", "--depth", "18", "--train-size", "160"]
    config = tyro.cli(ex.Config, default=ex.preset(ex.Config()), args=flags)
    assert (config.depth, config.train_size, config.size, config.batch_size) == (18, 160, 160, 256)


def test_bad_input(folder, tmp_path):
    result = run(15, "--data", tmp_path / "nowhere", *AS_FLAGS, "--out", tmp_path / "out")
    one_sentence(result, "there is no folder", "image-net.org", "huggingface.co/datasets/ILSVRC/imagenet-1k")
    (folder / "train" / "bee" / "0.JPEG").write_bytes(b"not a photograph")
    flags = [f"--data={folder}", "--steps=2", *AS_FLAGS, "--out", tmp_path / "out"]
    one_sentence(run(15, *flags), "1 of the 36 images cannot be read", "bee/0.JPEG", "--on-error skip")
    assert not (tmp_path / "out").exists()
    result = run(15, *flags, "--on-error=skip")
    assert result.returncode == 0, result.stderr
    assert "data: 23 photographs for training, 12 for validation, 3 classes" in result.stdout
