"""Exercises 1 to 6: the mathematics, and that each equals the one it grew from."""

import json
import math

from common.curriculum import ROOT

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import load, read_metrics, run

pytestmark = pytest.mark.usefixtures("without_pictures")


def central_difference(loss, param, h=1e-6):
    """Return the numerical gradient of loss() with respect to every entry of an array that it reads."""
    gradient = np.zeros_like(param)
    for index in np.ndindex(param.shape):
        value = param[index]
        param[index] = value + h
        above = loss()
        param[index] = value - h
        gradient[index] = (above - loss()) / (2 * h)
        param[index] = value
    return gradient


def test_01_gradient_by_hand():
    ex = load(1)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=50), rng.normal(size=50)
    params = [np.array(0.7), np.array(-1.3)]
    by_hand = ex.backward(x, ex.forward(params, x), y)
    for param, gradient in zip(params, by_hand):
        numerical = central_difference(lambda: ex.loss_fn(ex.forward(params, x), y), param)
        assert abs(gradient - numerical) / abs(numerical) < 1e-7


def test_01_whitening():
    x = load(1).whiten(np.random.default_rng(0).uniform(3, 90, 10_000))
    assert x.mean() == pytest.approx(0, abs=1e-12)
    assert x.var() == pytest.approx(1)


@pytest.mark.parametrize("number", [3, 4, 5, 6])
def test_03_to_06_whitening(number):
    rng = np.random.default_rng(0)
    x = load(number).whiten(rng.uniform(3, 90, (10_000, 5)) @ rng.normal(size=(5, 5)))
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(x.T), np.eye(5), atol=1e-9)


def test_batches_shuffle_every_epoch():
    stream = load(1).batches(np.random.default_rng(0), 10, 3)
    epochs = [np.concatenate([next(stream) for _ in range(3)]) for _ in range(4)]
    for epoch in epochs:
        assert len(set(epoch)) == 9  # nothing twice; the tenth is left out, another one every time
        assert set(epoch) <= set(range(10))
    assert not np.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize("seed", [0, 1])
def test_01_equals_02(seed, tmp_path):
    for number in (1, 2):
        ex = load(number)
        ex.main(ex.Config(seed=seed, out=tmp_path / str(number)))
    one, two = (read_metrics(tmp_path / name) for name in "12")
    assert one.keys() == two.keys()
    for key in one:
        assert list(one[key]) == list(two[key])
        np.testing.assert_allclose(list(one[key].values()), list(two[key].values()), rtol=0, atol=1e-10)


def test_03_with_one_feature_fits_like_02(tmp_path):
    """A vector of two features of which the second says nothing gives the same line."""
    ex = load(3)
    torch.set_default_dtype(torch.float64)
    params = ex.init_params(ex.Config(num_features=2))
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])
    y = torch.tensor([3.0, 5.0, -1.0])  # 2 x + 1
    for _ in range(2000):
        ex.loss_fn(ex.forward(params, x), y).backward()
        with torch.no_grad():
            for param in params:
                param -= 0.1 * param.grad
                param.grad = None
    assert [round(value, 6) for value in (*params[0].tolist(), params[1].item())] == [2.0, 0.0, 1.0]


def test_loss_refuses_shapes_that_would_broadcast():
    with pytest.raises(AssertionError):
        load(1).loss_fn(np.zeros((5, 1)), np.zeros(5))


@pytest.mark.parametrize("number", [4, 5])
def test_log_softmax_by_hand(number):
    loss_fn = load(number).loss_fn
    torch.manual_seed(0)
    logits = torch.randn(20, 7, dtype=torch.float64, requires_grad=True)
    y = torch.randint(7, (20,))
    torch.testing.assert_close(loss_fn(logits, y), F.cross_entropy(logits, y), rtol=0, atol=1e-12)
    # The gradient is (softmax - one hot) / B, as every textbook has it.
    (gradient,) = torch.autograd.grad(loss_fn(logits, y), logits)
    expected = (logits.softmax(1) - F.one_hot(y, 7)) / 20
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("number", [4, 5])
def test_log_softmax_is_stable(number):
    loss_fn = load(number).loss_fn
    rows = torch.tensor([[1e4, 0.0], [0.0, -1.0]], dtype=torch.float64)  # of very different sizes
    assert loss_fn(rows, torch.tensor([0, 1])).item() == pytest.approx((0 + math.log(1 + math.e)) / 2)
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]], dtype=torch.float64, requires_grad=True)
    assert loss_fn(logits, torch.tensor([0, 2])).item() == 0
    loss = loss_fn(logits, torch.tensor([1, 2]))
    assert loss.item() == 1e4  # the mean of 2e4 and 0
    loss.backward()
    assert logits.grad.isfinite().all()


def test_04_classes_are_drawn_from_the_softmax():
    ex = load(4)
    x, y, truth = ex.make_data(ex.Config(), np.random.default_rng(0))
    probs = truth.softmax(1)  # (N, K)
    # In every tenth of the samples, ordered by what class 0 is given, that class is as frequent as it should be.
    for part in probs[:, 0].argsort().chunk(10):
        assert (y[part] == 0).double().mean() == pytest.approx(probs[part, 0].mean().item(), abs=0.02)
    assert np.bincount(y).min() > 0.2 * len(y)


def test_05_he_initialisation():
    ex = load(5)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    params = ex.init_params(ex.Config(hidden=500, layers=6))
    assert [tuple(p.shape) for p in params[::2]] == [(2, 500), *[(500, 500)] * 4, (500, 3)]
    assert [tuple(p.shape) for p in params[1::2]] == [(500,)] * 5 + [(3,)]
    x = torch.randn(1000, 2)
    sizes = []
    for w, b in zip(params[:-2:2], params[1:-2:2]):
        sizes.append(x.square().mean().item())
        x = torch.relu(x @ w + b)
    assert max(sizes) / min(sizes) < 1.5  # the numbers neither grow nor vanish from layer to layer
    logits = ex.forward(params, torch.randn(1000, 2))
    loss = ex.loss_fn(logits, torch.randint(3, (1000,)))
    assert loss.item() == pytest.approx(math.log(3), abs=0.05)


def test_05_gradient():
    ex = load(5)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    params = ex.init_params(ex.Config(hidden=4))
    x, y = torch.randn(30, 2), torch.randint(3, (30,))
    ex.loss_fn(ex.forward(params, x), y).backward()

    def loss():
        with torch.no_grad():
            return ex.loss_fn(ex.forward(params, x), y).item()

    for param in params:
        numerical = central_difference(loss, param.detach().numpy())
        np.testing.assert_allclose(param.grad.numpy(), numerical, rtol=1e-7, atol=1e-9)


def test_05_winding_turns_every_point_about_the_middle():
    wound, plain = load(5), load(4)
    x_wound, _, _ = wound.make_data(wound.Config(), np.random.default_rng(0))
    x, _, _ = plain.make_data(plain.Config(), np.random.default_rng(0))
    radius = x.norm(dim=1)
    torch.testing.assert_close(x_wound.norm(dim=1), radius)
    turned = torch.atan2(x_wound[:, 1], x_wound[:, 0]) - torch.atan2(x[:, 1], x[:, 0])
    torch.testing.assert_close(torch.cos(turned), torch.cos(2.5 * radius))
    torch.testing.assert_close(torch.sin(turned), torch.sin(2.5 * radius))


def test_05_is_out_of_reach_of_the_linear_model(tmp_path):
    """Exercise 4's program, trained on exercise 5's data, stays under 60 %, and so does exercise 5 with one layer."""
    linear, ex = load(4), load(5)
    linear.make_data = lambda config, rng: ex.make_data(ex.Config(), rng)
    softmax = linear.main(linear.Config(out=tmp_path / "4", steps=2000))
    one_layer = ex.main(ex.Config(out=tmp_path / "5", steps=2000, layers=1))
    assert softmax["accuracy"] < 0.6
    assert one_layer["accuracy"] < 0.6
    assert one_layer["linear_accuracy"] == pytest.approx(softmax["accuracy"], abs=0.03)


@pytest.mark.parametrize("layers", [1, 3])
def test_05_equals_06(layers, tmp_path, monkeypatch):
    five, six = load(5), load(6)
    by_library = six.MLP

    def same_weights(config):
        model = by_library(config)
        torch.manual_seed(config.seed)  # as exercise 5 does just before it draws its weights
        for param, raw in zip(model.parameters(), five.init_params(config), strict=True):
            param.data = (raw.mT if raw.ndim == 2 else raw).detach().clone()
        return model

    monkeypatch.setattr(six, "MLP", same_weights)
    for name, ex in (("5", five), ("6", six)):
        ex.main(ex.Config(out=tmp_path / name, steps=300, layers=layers))
    five, six = (read_metrics(tmp_path / name) for name in "56")
    assert five.keys() == six.keys()
    for key in five:
        assert list(five[key]) == list(six[key])
        np.testing.assert_allclose(list(five[key].values()), list(six[key].values()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("number", [4, 5, 6])
def test_overfits_a_few_samples(number, tmp_path):
    ex = load(number)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    config = ex.Config()
    x, y = torch.randn(4, 2), torch.arange(4) % 3
    if number == 4:  # which can only tell apart what straight lines can
        x = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0], [2.0, 0.0]])
    params = list(ex.MLP(config).parameters()) if number == 6 else ex.init_params(config)
    model = ex.MLP(config) if number == 6 else lambda x: ex.forward(params, x)
    params = list(model.parameters()) if number == 6 else params
    for _ in range(3000):
        ex.loss_fn(model(x), y).backward()
        with torch.no_grad():
            for param in params:
                param -= 0.3 * param.grad
                param.grad = None
    assert ex.loss_fn(model(x), y).item() < 0.01


@pytest.mark.parametrize("number", [5, 6])
def test_seed_is_that_of_the_weights_too(number, tmp_path, monkeypatch):
    ex = load(number)
    samples = ex.make_data(ex.Config(), np.random.default_rng(0))
    monkeypatch.setattr(ex, "make_data", lambda config, rng: samples)
    for seed in (0, 1):
        ex.main(ex.Config(dry_run=True, seed=seed, out=tmp_path / str(seed)))
    first, second = (read_metrics(tmp_path / name / "dry_run")["all", "loss"] for name in "01")
    assert first[0] != second[0]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
def test_seed_is_that_of_the_data(number, tmp_path, monkeypatch):
    ex, seen = load(number), []
    make_data = ex.make_data

    def keep(config, rng):
        seen.append(np.asarray(make_data(config, rng)[0]))
        raise KeyboardInterrupt  # the rest of the run is not needed

    monkeypatch.setattr(ex, "make_data", keep)
    for seed in (0, 0, 1):
        with pytest.raises(KeyboardInterrupt):
            ex.main(ex.Config(num_samples=1_000, seed=seed, out=tmp_path))
    assert (seen[0] == seen[1]).all()
    assert (seen[0] != seen[2]).all()


def test_noise_flag(tmp_path):
    for number in (1, 3):
        ex = load(number)
        ex.main(ex.Config(noise=1.0, dry_run=True, out=tmp_path / str(number)))
        baselines = json.loads((tmp_path / str(number) / "dry_run" / "result.json").read_text(encoding="utf-8"))[
            "baselines"
        ]
        assert baselines["noise floor"] == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
def test_full_run_reaches_its_target(number, tmp_path):
    """The run of a user, whole, with the default flags."""
    result = run(number, "--out", tmp_path, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    metrics = {
        key: float(value) for key, value in (item.split("=") for item in result.stdout.split("result: ")[1].split())
    }
    series = read_metrics(tmp_path)
    losses = series["train", "loss"]
    stored = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert stored["metrics"]["loss"] < next(iter(stored["baselines"].values()))  # the baseline is beaten
    if number <= 3:
        assert stored["baselines"]["noise floor"] == pytest.approx(0.01, rel=0.02)
        assert stored["metrics"]["loss"] == pytest.approx(stored["baselines"]["noise floor"], rel=0.01)
    if number <= 2:
        assert stored["baselines"]["predict the mean"] == pytest.approx(9.01, abs=0.05)  # 3² and the noise
        assert metrics["slope"] == pytest.approx(3, abs=0.01)
        assert metrics["intercept"] == pytest.approx(2, abs=0.01)
    if number >= 4:
        assert losses[0] == pytest.approx(math.log(3), abs=0.1)
    if number == 4:
        assert metrics["accuracy"] == pytest.approx(metrics["bayes_accuracy"], rel=0.01)
    if number >= 5:
        assert metrics["linear_accuracy"] < 0.6
        assert 0.95 <= metrics["accuracy"] <= metrics["bayes_accuracy"] + 0.002
        assert 0.99 < metrics["bayes_accuracy"] < 0.9999
