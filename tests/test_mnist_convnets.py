"""Exercises 9 and 10: the convnet and the resnet, against torch."""

import math
import sys
from itertools import chain

from common import data
from common.curriculum import ROOT

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import load, one_sentence, read_metrics, run

sys.path.insert(0, str(ROOT / "tests" / "bench"))
import resnet_parts

pytestmark = pytest.mark.usefixtures("without_pictures")

DROPOUT_KEY = jax.random.key(7)


def images(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 28, 28)).astype(np.float32), rng.integers(0, 10, n).astype(np.int32)


def torch_conv(x, w, stride, bias=None):
    """Convolve x (B, C, H, W) with w (k, k, C, C') in torch, padded as XLA's "SAME" does: more at the lower right."""
    k, size = w.shape[0], x.shape[-1]
    total = max((math.ceil(size / stride) - 1) * stride + k - size, 0)
    low, high = total // 2, total - total // 2
    return F.conv2d(F.pad(x, (low, high, low, high)), w.permute(3, 2, 0, 1), bias, stride)


def as_torch(params):
    return jax.tree.map(lambda param: torch.tensor(np.asarray(param)), params)


def new_model(ex, config):
    """Return what forward takes before the images: new parameters and, for a resnet, new running statistics."""
    params = ex.init_params(jax.random.key(0), config)
    return (params, ex.init_batch_stats(params)) if hasattr(ex, "init_batch_stats") else (params,)


def count(params):
    return sum(param.size for param in jax.tree.leaves(params))


def shaken(params, seed=0):
    """Return the parameters with noise on all but the weights, so that no bias is 0 and no scale is 0 or 1."""
    rng = np.random.default_rng(seed)

    def shake(path, param):
        return param if path[-1].key == "w" else param + jnp.asarray(rng.uniform(0.05, 0.3, param.shape), param.dtype)

    return jax.tree.map_with_path(shake, params)


def convnet_in_torch(params, x):
    x = torch.from_numpy(x)[:, None]  # (B, 1, H, W)
    for layer in params[:-2]:
        x = F.relu(torch_conv(x, layer["w"], 2, layer["b"]))
    x = x.permute(0, 2, 3, 1).flatten(1)  # the features in the order of (H, W, C)
    x = F.relu(x @ params[-2]["w"] + params[-2]["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def resnet_in_torch(params, batch_stats, x, train):
    def conv_norm(x, layer, stats, stride):
        x = torch_conv(x, layer["w"], stride)
        mean, var = stats["mean"].clone(), stats["var"].clone()
        return F.batch_norm(x, mean, var, layer["scale"], layer["bias"], training=train)

    x = F.relu(conv_norm(torch.from_numpy(x)[:, None], params["stem"], batch_stats["stem"], 2))
    blocks = chain.from_iterable(params["stages"])
    for block, stats in zip(blocks, chain.from_iterable(batch_stats["stages"]), strict=True):
        stride = 2 if block["conv1"]["w"].shape[2] != block["conv1"]["w"].shape[3] else 1
        h = F.relu(conv_norm(x, block["conv1"], stats["conv1"], stride))
        h = conv_norm(h, block["conv2"], stats["conv2"], 1)
        if "shortcut" in block:
            h = h + (conv_norm(x, block["shortcut"], stats["shortcut"], stride) if block["shortcut"] else x)
        x = F.relu(h)
    return x.mean((2, 3)) @ params["head"]["w"] + params["head"]["b"]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_convnet_equals_torch(layers):
    ex = load(9)
    params = ex.init_params(jax.random.key(0), ex.Config(layers=layers, channels=4, hidden=16))
    x, y = images(16)
    twin = as_torch(params)
    for layer in twin:
        for param in layer.values():
            param.requires_grad_()
    logits = convnet_in_torch(twin, x)
    np.testing.assert_allclose(ex.forward(params, x), logits.detach().numpy(), rtol=0, atol=1e-5)
    F.cross_entropy(logits, torch.from_numpy(y).long()).backward()
    grads = jax.grad(lambda params: ex.loss_fn(ex.forward(params, x), y))(params)
    for layer, expected in zip(grads, twin, strict=True):
        for name in "wb":
            np.testing.assert_allclose(layer[name], expected[name].grad.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shortcuts", [True, False])
def test_resnet_equals_torch(train, shortcuts):
    ex = load(10)
    config = ex.Config(stages=3, blocks=2, channels=4, shortcuts=shortcuts)
    model = shaken(new_model(ex, config))
    x, _ = images(16)
    logits, moved = ex.forward(*model, x, train, DROPOUT_KEY, 0.0)
    np.testing.assert_allclose(logits, resnet_in_torch(*as_torch(model), x, train), rtol=0, atol=1e-4)
    assert jax.tree.structure(moved) == jax.tree.structure(model[1])


def test_batch_norm_equals_torch():
    """Outputs, gradients and running statistics over five training batches, and then in evaluation."""
    ex = load(10)
    rng = np.random.default_rng(0)
    theirs = torch.nn.BatchNorm2d(6)
    layer = {name: jnp.asarray(rng.uniform(0.5, 2, 6), jnp.float32) for name in ("scale", "bias")}
    stats = {"mean": jnp.zeros(6), "var": jnp.ones(6)}
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(np.array(layer["scale"])))
        theirs.bias.copy_(torch.from_numpy(np.array(layer["bias"])))
    for train in (True,) * 5 + (False,):
        x = rng.normal(3, 5, (2, 3, 4, 6)).astype(np.float32)  # 24 numbers a channel: n / (n - 1) shows
        x[..., 5] *= 0.001  # and in one of them the 1e-5 under the root
        weight = rng.normal(size=x.shape).astype(np.float32)
        theirs.train(train)
        theirs.zero_grad()
        x_torch = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
        out = theirs(x_torch).permute(0, 2, 3, 1)
        (out * torch.from_numpy(weight)).sum().backward()

        def weighted(layer, x, stats, train=train, weight=weight):
            out, moved = ex.batch_norm(x, layer, stats, train)
            return (out * weight).sum(), (out, moved)

        gradients = jax.grad(weighted, argnums=(0, 1, 2), has_aux=True)
        (grads, x_grad, stats_grads), (ours, moved) = gradients(layer, x, stats)
        np.testing.assert_allclose(ours, out.detach().numpy(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(x_grad, x_torch.grad.permute(0, 2, 3, 1).numpy(), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(grads["scale"], theirs.weight.grad.numpy(), atol=1e-4)
        np.testing.assert_allclose(grads["bias"], theirs.bias.grad.numpy(), atol=1e-4)
        if train:  # no gradient reaches the running statistics
            assert not stats_grads["mean"].any()
            assert not stats_grads["var"].any()
        else:
            assert all((moved[name] == stats[name]).all() for name in stats)
        stats = moved
        np.testing.assert_allclose(stats["mean"], theirs.running_mean.numpy(), atol=1e-5)
        np.testing.assert_allclose(stats["var"], theirs.running_var.numpy(), rtol=1e-5)


@pytest.mark.parametrize("part", resnet_parts.CHANGES)
def test_what_the_bench_takes_away(part, monkeypatch):
    """Each edit of the program finds its lines, leaves a network, and takes away what it says."""
    source, ex = resnet_parts.without(part), load(10)
    monkeypatch.setitem(vars(ex), "__name__", "without")
    monkeypatch.setitem(sys.modules, "without", ex)
    exec(compile(source, "train.py", "exec"), vars(ex))
    config = ex.Config(channels=4)
    model = new_model(ex, config)
    logits, moved = jax.eval_shape(lambda x: ex.forward(*model, x, True, DROPOUT_KEY, 0.1), np.zeros((2, 28, 28)))
    assert logits.shape == (2, 10)
    block = model[0]["stages"][0][0]
    jaxpr = str(jax.make_jaxpr(lambda x: ex.forward(*model, x, True, DROPOUT_KEY, 0.1))(np.zeros((2, 28, 28))))
    assert ("rsqrt" in jaxpr) == (part != "batch norm")
    assert ("shortcut" in block) == (part != "shortcuts")
    assert bool(block["conv2"]["scale"].any()) == (part in ("zero scale", "shortcuts"))
    assert (model[0]["head"]["w"].shape[0] == 128) == (part == "global average pooling")


def test_evaluation_looks_at_each_image_alone():
    ex = load(10)
    model = shaken(new_model(ex, ex.Config(channels=8)))
    x, _ = images(8)
    alone = np.concatenate([ex.forward(*model, x[i : i + 1])[0] for i in range(8)])
    np.testing.assert_allclose(ex.forward(*model, x)[0], alone, atol=1e-4)


@pytest.mark.parametrize("number", [9, 10])
def test_evaluate_is_not_in_training_mode(number):
    """No dropout, no statistics of the batch: the loss on eight images is the mean of their eight losses."""
    ex = load(number)
    model = shaken(new_model(ex, ex.Config(channels=8)))
    x, y = images(8)
    alone = [ex.evaluate(*model, x[i : i + 1], y[i : i + 1]) for i in range(8)]
    together = ex.evaluate(*model, x, y)
    for name in ("loss", "accuracy"):
        assert together[name] == pytest.approx(np.mean([metrics[name] for metrics in alone]), abs=1e-5)


def test_parameter_counts():
    ex = load(9)
    for layers, channels, hidden, size in ((2, 32, 128, 7), (3, 5, 7, 4), (1, 4, 6, 14)):
        widths = [channels * 2**layer for layer in range(layers)]
        expected = 25 * channels + sum(25 * 2 * c * c for c in widths[:-1]) + sum(widths)
        expected += (size**2 * widths[-1] + 1) * hidden + (hidden + 1) * 10
        assert count(ex.init_params(jax.random.key(0), ex.Config(layers=layers, channels=channels, hidden=hidden))) == (
            expected
        )
    ex = load(10)
    for stages, blocks, c in ((2, 1, 32), (3, 2, 4), (1, 3, 5)):
        expected, norms = 25 * c, c
        for stage in range(stages):
            w = c * 2**stage
            expected += blocks * 2 * 9 * w * w
            norms += blocks * 2 * w
            if stage:  # the first block's first convolution comes from half as many channels, and has a projection
                expected += w * w // 2 - 9 * w * w // 2
                norms += w
        expected += 10 * c * 2 ** (stages - 1) + 10
        params, batch_stats = new_model(ex, ex.Config(stages=stages, blocks=blocks, channels=c))
        assert count(params) == expected + 2 * norms  # every batch norm has a scale and a bias
        assert count(batch_stats) == 2 * norms  # and a running mean and variance
        plain, plain_stats = new_model(ex, ex.Config(stages=stages, blocks=blocks, channels=c, shortcuts=False))
        widths = [c * 2**stage for stage in range(1, stages)]
        assert count(params) - count(plain) == sum(w**2 // 2 + 2 * w for w in widths)  # the projections
        assert count(batch_stats) - count(plain_stats) == sum(2 * w for w in widths)


def test_initial_weights():
    """Uniform within 1 / √fan_in as torch has it in 9; normal with variance 2 / fan_in after He et al. in 10."""
    nine, ten = load(9), load(10)
    params = nine.init_params(jax.random.key(0), nine.Config())
    for layer, fan_in in zip(params, (25, 25 * 32, 49 * 64, 128), strict=True):
        assert 0.95 < float(abs(layer["w"]).max()) * fan_in**0.5 <= 1.0001
        assert float(layer["w"].var()) == pytest.approx(1 / (3 * fan_in), rel=0.1)
        assert float(abs(layer["b"]).max()) * fan_in**0.5 <= 1.0001
    scaled = [
        param.ravel()[0] * fan_in**0.5
        for layer, fan_in in zip(params, (25, 800, 3136, 128))
        for param in layer.values()
    ]
    assert len({round(float(value), 5) for value in scaled}) == 8  # weights and biases have keys of their own
    params = ten.init_params(jax.random.key(0), ten.Config())
    blocks = list(chain.from_iterable(params["stages"]))
    layers = [params["stem"], *(layer for block in blocks for layer in block.values() if layer)]
    for layer in layers:
        assert float(layer["w"].var()) == pytest.approx(2 / math.prod(layer["w"].shape[:3]), rel=0.1)
    firsts = {float(layer["w"].ravel()[0] * math.prod(layer["w"].shape[:3]) ** 0.5) for layer in layers}
    assert len(firsts) == len(layers)  # every layer has a key of its own
    assert float(params["head"]["w"].std()) == pytest.approx(0.01, rel=0.1)


def test_initial_loss(mnist):
    for number in (9, 10):
        ex = load(number)
        _, _, x, y = ex.make_data(ex.Config())
        model = new_model(ex, ex.Config())
        assert ex.evaluate(*model, x[:1000], y[:1000])["loss"] == pytest.approx(math.log(10), abs=0.05)


def test_a_new_block_is_the_identity():
    """So the gradient comes through unchanged, and the first to learn are the scales that are 0 (Goyal et al. 2017)."""
    ex = load(10)
    params, batch_stats = new_model(ex, ex.Config(blocks=2, channels=8))
    block, stats = params["stages"][0][1], batch_stats["stages"][0][1]
    x = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, (4, 6, 6, 8)), jnp.float32)
    out, pullback, _ = jax.vjp(lambda x, block: ex.residual_block(x, block, stats, 1, True), x, block, has_aux=True)
    np.testing.assert_array_equal(out, x)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)
    x_grad, block_grad = pullback(weight)
    np.testing.assert_allclose(x_grad, weight, atol=1e-6)
    assert not block_grad["conv1"]["w"].any()
    assert not block_grad["conv2"]["w"].any()
    assert (abs(block_grad["conv2"]["scale"]) > 1e-3).all()
    # Without the shortcut all that comes through is what the convolutions make of it.
    plain = ex.init_params(jax.random.key(0), ex.Config(blocks=2, channels=8, shortcuts=False))["stages"][0][1]
    out, _ = ex.residual_block(x, plain, stats, 1, True)
    assert (plain["conv2"]["scale"] == 1).all()
    assert abs(np.corrcoef(out.ravel(), x.ravel())[0, 1]) < 0.5


@pytest.mark.parametrize("number", [9, 10])
def test_dropout(number):
    ex = load(number)
    model = new_model(ex, ex.Config(channels=8) if number == 10 else ex.Config(channels=2))
    x, y = images(64)

    def logits(*args):
        out = ex.forward(*model, x, *args)
        return np.asarray(out[0] if number == 10 else out)

    kept = logits(True, DROPOUT_KEY, 0.0)
    if number == 9:  # in 10, training also means that batch norm looks at the batch
        np.testing.assert_array_equal(kept, logits())
    np.testing.assert_array_equal(logits(False, DROPOUT_KEY, 0.5), logits())
    other = jax.random.key(8)
    assert (logits(True, DROPOUT_KEY, 0.5) == logits(True, DROPOUT_KEY, 0.5)).all()
    assert (logits(True, DROPOUT_KEY, 0.5) != logits(True, other, 0.5)).mean() > 0.9
    optimizer = ex.make_optimizer(ex.Config())
    state = (*model, optimizer.init(model[0]), x, y, optimizer)
    losses = [ex.train_step(*state, key, 0.5)[-1] for key in (DROPOUT_KEY, DROPOUT_KEY, other)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("number", [9, 10])
def test_share_and_scale_of_what_is_dropped(number):
    """With identities for the dense layers, the logits are features themselves: four times as large, or 0."""
    ex = load(number)
    if number == 9:
        model = (params,) = shaken(new_model(ex, ex.Config(layers=5, channels=1, hidden=16)))
        params[-2] = {"w": jnp.eye(16), "b": jnp.zeros(16)}
        params[-1] = {"w": jnp.eye(16)[:, :10], "b": jnp.zeros(10)}
    else:
        model = params, _ = shaken(new_model(ex, ex.Config(stages=1, channels=10)))
        params["head"] = {"w": jnp.eye(10), "b": jnp.zeros(10)}
    x, _ = images(400)

    def logits(dropout):
        out = ex.forward(*model, x, True, DROPOUT_KEY, dropout)
        return np.asarray(out[0] if number == 10 else out)

    features, dropped = logits(0.0), logits(0.75)
    there = features > 0
    assert there.mean() > 0.2
    zero = dropped == 0
    assert zero[there].mean() == pytest.approx(0.75, abs=0.03)
    np.testing.assert_allclose(dropped[~zero], 4 * features[~zero], rtol=1e-5)
    assert len(np.unique(zero, axis=0)) > 100  # each image loses features of its own


def test_what_is_dropped_are_features_and_not_hidden_units():
    ex = load(9)
    params = ex.init_params(jax.random.key(0), ex.Config(channels=2, hidden=10))
    params[-2] = {"w": jnp.abs(params[-2]["w"]), "b": jnp.ones(10)}
    params[-1] = {"w": jnp.eye(10), "b": jnp.zeros(10)}
    x, _ = images(100)
    hidden, other = (np.asarray(ex.forward(params, x, True, DROPOUT_KEY, dropout)) for dropout in (0.0, 0.5))
    assert (other > 0).all()
    assert (abs(other - hidden) > 1e-4).mean() > 0.99


@pytest.mark.parametrize("number", [9, 10])
def test_other_features_are_dropped_at_every_step(number, tmp_path, monkeypatch):
    ex = load(number)
    keys = []
    step = ex.train_step

    def spy(*state_and_batch):
        *_, key, dropout = state_and_batch
        keys.append(tuple(np.asarray(jax.random.key_data(key))))
        assert dropout == 0.25
        return step(*state_and_batch)

    monkeypatch.setattr(ex, "train_step", spy)
    for seed in (0, 1):
        ex.main(ex.Config(dry_run=True, dropout=0.25, seed=seed, out=tmp_path, device="cpu"))
    assert len(set(keys)) == 6


@pytest.mark.parametrize("number", [10, 14])
def test_weight_decay_is_of_weights_alone(number):
    """Without a gradient, AdamW's step is its weight decay: the first learning rate times 0.2 times each weight."""
    ex = load(number)
    params = shaken(ex.init_params(jax.random.key(0), ex.Config(channels=4)))
    optimizer = ex.make_optimizer(ex.Config(learning_rate=0.5, weight_decay=0.2))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for (path, update), param in zip(jax.tree.leaves_with_path(updates), jax.tree.leaves(params)):
        np.testing.assert_allclose(update, -0.1 * param if path[-1].key == "w" else 0 * param, rtol=1e-5)


@pytest.mark.parametrize("number", [10, 14, 15])
def test_running_statistics_are_not_trained(number):
    """They move as forward says; gradients and the optimizer's state are of the parameters alone."""
    ex = load(number)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 32, 32, 3) if number == 15 else (8, 28, 28)).astype(np.float32)
    y = np.eye(10, dtype=np.float32)[:8] if number == 15 else np.arange(8)
    params = ex.init_params(jax.random.key(0), ex.Config(channels=4), *([10] if number == 15 else []))
    batch_stats = ex.init_batch_stats(params)
    assert {path[-1].key for path, _ in jax.tree.leaves_with_path(params)} == {"w", "scale", "bias", "b"}
    assert {path[-1].key for path, _ in jax.tree.leaves_with_path(batch_stats)} == {"mean", "var"}
    optimizer, seen = ex.make_optimizer(ex.Config(steps=100)), []

    def update(grads, opt_state, params):
        seen.append(jax.tree.structure(grads))
        return optimizer.update(grads, opt_state, params)

    spy = optimizer._replace(update=update)
    opt_state = optimizer.init(params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    moments = [leaf.shape for leaf in jax.tree.leaves(opt_state) if leaf.ndim]  # all but the counts of steps
    assert moments == shapes * (1 if number == 15 else 2)  # momentum; Adam's two means
    after, moved, opt_state_after, _ = ex.train_step(params, batch_stats, opt_state, x, y, spy, DROPOUT_KEY, 0.5)
    assert seen == [jax.tree.structure(params)] == [jax.tree.structure(after)]
    assert jax.tree.structure(opt_state_after) == jax.tree.structure(opt_state)
    _, expected = ex.forward(params, batch_stats, x, True, DROPOUT_KEY, 0.5)
    assert jax.tree.structure(moved) == jax.tree.structure(expected) == jax.tree.structure(batch_stats)
    jax.tree.map(lambda ours, other: np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-6), moved, expected)
    changed = jax.tree.map(lambda ours, other: bool((ours != other).any()), moved, batch_stats)
    assert all(jax.tree.leaves(changed))
    assert (after["stem"]["w"] != params["stem"]["w"]).any()
    types = jax.tree.map(jax.typeof, (params, batch_stats, opt_state))  # equal, or the second step compiles anew
    assert types == jax.tree.map(jax.typeof, (after, moved, opt_state_after))


@pytest.mark.parametrize("number", [9, 10])
def test_overfits_32_images(number, mnist):
    ex = load(number)
    config = ex.Config(channels=16, steps=100, learning_rate=0.02)
    x, y, _, _ = ex.make_data(config)
    model = new_model(ex, config)
    optimizer = ex.make_optimizer(config)
    state = *model, optimizer.init(model[0])
    for _ in range(100):
        *state, loss = ex.train_step(*state, x[:32], y[:32], optimizer, DROPOUT_KEY, 0.0)
    assert loss < 0.05


@pytest.mark.parametrize(("number", "steps", "least"), [(9, 120, 0.9), (10, 80, 0.75)])
def test_short_run_learns_repeats_and_evaluates_on_the_test_set(number, steps, least, mnist, monkeypatch, tmp_path):
    ex = load(number)
    train, (test_images, labels) = mnist
    test = test_images[:1000], labels[:1000]
    monkeypatch.setattr(data, "mnist", lambda dry_run=False: (train, test))
    config = {"steps": steps, "eval_every": 50, "channels": 16, "learning_rate": 0.04 if number == 10 else 0.005}
    config["device"] = "cpu"
    metrics = [ex.main(ex.Config(out=tmp_path / name, **config)) for name in "ab"]
    assert metrics[0] == metrics[1]
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()
    assert metrics[0]["test_accuracy"] > least
    assert metrics[0]["test_loss"] < math.log(10)
    series = read_metrics(tmp_path / "a")
    assert list(series["train", "loss"]) == list(range(steps))
    assert list(series["test", "loss"]) == [*range(0, steps, 50), steps]
    assert series["test", "accuracy"][steps] == metrics[0]["test_accuracy"]  # the last evaluation, not the best
    # Trained on true labels, tested on labels that are all wrong.
    monkeypatch.setattr(data, "mnist", lambda dry_run=False: (train, (test[0], (test[1] + 1) % 10)))
    assert ex.main(ex.Config(out=tmp_path / "c", **config))["test_accuracy"] < 0.1
    assert read_metrics(tmp_path / "c")["train", "loss"] == series["train", "loss"]  # nothing is learned from the test


@pytest.mark.parametrize("number", [9, 10])
def test_seed_is_that_of_weights_and_of_batches(number, tmp_path, monkeypatch):
    ex = load(number)
    ex.main(ex.Config(dry_run=True, seed=0, out=tmp_path, device="cpu"))
    first = read_metrics(tmp_path / "dry_run")
    ex.main(ex.Config(dry_run=True, seed=1, out=tmp_path, device="cpu"))
    assert first["test", "loss"][0] != read_metrics(tmp_path / "dry_run")["test", "loss"][0]  # the weights differ
    params = ex.init_params(jax.random.key(0), ex.Config())
    monkeypatch.setattr(ex, "init_params", lambda key, config: params)
    losses = []
    for seed in (0, 1):
        ex.main(ex.Config(dry_run=True, seed=seed, dropout=0.0, out=tmp_path, device="cpu"))
        losses.append(read_metrics(tmp_path / "dry_run")["train", "loss"][0])
    assert losses[0] != losses[1]  # and so does the order


@pytest.mark.draws
def test_pictures(tmp_path, monkeypatch):
    ex = load(9)
    draw, seen = ex.plot_features, []
    monkeypatch.setattr(ex, "plot_features", lambda *args: seen.append(args) or draw(*args))
    parameters = []
    evaluate = ex.evaluate
    monkeypatch.setattr(ex, "evaluate", lambda params, x, y: parameters.append(params) or evaluate(params, x, y))
    for channels in (1, 20):
        ex.main(ex.Config(dry_run=True, channels=channels, out=tmp_path, device="cpu"))
        assert (tmp_path / "dry_run" / "features.png").stat().st_size > 10_000
        _, filters, image, maps = seen[-1]
        first = as_torch(parameters[-1][0])  # as they are at the end
        np.testing.assert_array_equal(filters, first["w"][:, :, 0])
        np.testing.assert_array_equal(image, ex.make_data(ex.Config(dry_run=True))[2][0])
        expected = F.relu(torch_conv(torch.from_numpy(np.array(image))[None, None], first["w"], 2, first["b"]))
        np.testing.assert_allclose(maps, expected[0].permute(1, 2, 0).numpy(), atol=1e-5)


def test_gradients(tmp_path, monkeypatch, mnist):
    monkeypatch.syspath_prepend(str(ROOT / "ex10_mnist_resnet"))
    import gradients
    import train

    for name in ("gradients", "train"):
        monkeypatch.delitem(sys.modules, name)

    x, y, _, _ = train.make_data(train.Config(dry_run=True))
    x, y = x[:16], y[:16]
    params = shaken(train.init_params(jax.random.key(0), train.Config(blocks=2, channels=4)))
    batch_stats = train.init_batch_stats(params)
    norms = gradients.gradient_norms(params, x, y)
    assert len(norms) == 4
    stats = chain.from_iterable(batch_stats["stages"])
    steps = list(zip(chain.from_iterable(params["stages"]), stats, (1, 1, 2, 1), strict=True))

    def loss(h, first):  # the loss as a function of what enters block `first`
        for step in steps[first:]:
            h, _ = train.residual_block(h, *step, True)
        return train.loss_fn(h.mean((1, 2)) @ params["head"]["w"] + params["head"]["b"], y)

    h = jax.nn.relu(train.conv_norm(x[..., None], params["stem"], batch_stats["stem"], 2, True)[0])
    for first, step in enumerate(steps):
        assert norms[first] == pytest.approx(float(jnp.linalg.norm(jax.grad(loss)(h, first))), rel=1e-4)
        h, _ = train.residual_block(h, *step, True)

    ratios = gradients.main(gradients.Config(blocks=6, batch_size=32, out=tmp_path))
    identity, shortcuts, plain = ratios.values()
    assert identity < 5
    assert plain > 2 * shortcuts


@pytest.mark.parametrize(
    ("number", "flags", "words"),
    [
        (9, ("--layers", 0), "--layers must be above 0"),
        (9, ("--dropout", 1), "--dropout must be at least 0 and at most 0.99, not 1"),
        (10, ("--dropout", -0.1), "--dropout must be at least 0"),
        (10, ("--stages", 0), "--stages must be above 0"),
        (10, ("--blocks", 0), "--blocks must be above 0"),
        (9, ("--dry-run", "--device", "cuda"), "--device cuda: JAX finds no such device on this machine"),
        (9, ("--dry-run", "--device", "cpu", "--channels", 10**6), "out of memory"),
        (9, ("--channels", 10**9), "--channels must be above 0 and at most 1e+06, not 1000000000"),
        (9, ("--layers", 10**9), "--layers must be above 0 and at most 1e+04, not 1000000000"),
        (10, ("--dry-run", "--device", "cpu", "--channels", 10**6), "out of memory"),
    ],
)
def test_bad_flags(number, flags, words, tmp_path):
    if "cuda" in flags and any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this machine has a GPU for JAX")
    one_sentence(run(number, *flags, "--out", tmp_path), words)
