"""Exercise 8: JAX and optax, against exercise 7 and torch."""

import math
from types import SimpleNamespace

from common import UserError, data
from common.program import is_older, jax_device

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from helpers import load, read_metrics

pytestmark = pytest.mark.usefixtures("without_pictures")


def twins(hidden=32, layers=3):
    """Return exercises 7 and 8, a torch model, and JAX parameters that are the same numbers."""
    seven, eight = load(7), load(8)
    torch.manual_seed(0)
    model = seven.MLP(seven.Config(hidden=hidden, layers=layers))
    params = [
        {"w": jnp.asarray(layer.weight.detach().numpy().T), "b": jnp.asarray(layer.bias.detach().numpy())}
        for layer in model.layers
    ]
    return seven, eight, model, params


def images(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 28, 28)).astype(np.float32), rng.integers(0, 10, n).astype(np.int32)


def assert_same(model, params, what, tolerance):
    for layer, param in zip(model.layers, params, strict=True):
        for name, tensor in (("w", what(layer.weight).T), ("b", what(layer.bias))):
            np.testing.assert_allclose(param[name], tensor.detach().numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_07_equals_08(layers):
    seven, eight, model, params = twins(layers=layers)
    x, y = images(64)
    logits = model(torch.from_numpy(x))
    np.testing.assert_allclose(eight.forward(params, x), logits.detach().numpy(), rtol=0, atol=1e-5)
    loss = seven.loss_fn(logits, torch.from_numpy(y).long())
    loss.backward()
    value, grads = jax.value_and_grad(lambda params: eight.loss_fn(eight.forward(params, x), y))(params)
    assert value == pytest.approx(loss.item(), abs=1e-5)
    assert_same(model, grads, lambda param: param.grad, 1e-5)
    torch_metrics = seven.evaluate(model, torch.from_numpy(x), torch.from_numpy(y).long())
    assert eight.evaluate(params, x, y) == pytest.approx(torch_metrics, abs=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "sgd"])
def test_optax_and_torch_walk_together(optimizer):
    """100 steps of the exercise's own train_step, its cosine included, against torch's optimizer and schedule."""
    _, eight, model, params = twins()
    config = eight.Config(optimizer=optimizer, learning_rate=0.001 if optimizer == "adam" else 0.01, steps=100)
    ours = eight.make_optimizer(config)
    opt_state = ours.init(params)
    theirs = {
        "adam": lambda: torch.optim.Adam(model.parameters(), lr=config.learning_rate),
        "momentum": lambda: torch.optim.SGD(model.parameters(), lr=config.learning_rate, momentum=0.9),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=config.learning_rate),
    }[optimizer]()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=100)
    for step in range(100):
        x, y = images(16, seed=step)
        params, opt_state, loss = eight.train_step(params, opt_state, x, y, ours)
        expected = F.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y).long())
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        schedule.step()
        assert float(loss) == pytest.approx(expected.item(), abs=1e-4)
    assert_same(model, params, lambda param: param, 1e-4)


def test_adam_by_hand():
    """The update rule of Kingma and Ba 2015, algorithm 1, in numpy."""
    eight = load(8)
    optimizer = eight.make_optimizer(eight.Config(learning_rate=0.1, steps=10**6))
    param = np.array([1.0, -2.0, 3.0])
    ours, state = jnp.asarray(param), optimizer.init(jnp.asarray(param))
    mean, square = np.zeros(3), np.zeros(3)
    for step in range(1, 21):
        grad = 2 * param
        mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
        param = param - 0.1 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        updates, state = optimizer.update(2 * ours, state, ours)
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(ours, param, rtol=1e-4)


def test_parameters():
    eight = load(8)
    config = eight.Config(hidden=300, layers=4)
    params = eight.init_params(jax.random.key(0), config)
    assert [layer["w"].shape for layer in params] == [(784, 300), (300, 300), (300, 300), (300, 10)]
    for layer, fan_in in zip(params, (784, 300, 300, 300)):  # uniform between ± 1 / √fan_in, as in torch
        assert float(layer["w"].var()) == pytest.approx(1 / (3 * fan_in), rel=0.05)
        if fan_in > 10 and layer["b"].size > 10:  # weights and biases have keys of their own
            assert abs(np.corrcoef(layer["w"][0], layer["b"])[0, 1]) < 0.3
        for param in layer.values():
            assert 0.9 < float(abs(param).max()) * fan_in**0.5 <= 1 or param.size < 100
    assert not np.allclose(params[1]["w"], params[2]["w"])  # every layer has a key of its own
    again, other = (eight.init_params(jax.random.key(seed), config) for seed in (0, 1))
    assert (params[0]["w"] == again[0]["w"]).all()
    assert not (params[0]["w"] == other[0]["w"]).any()
    x, y = images(500)
    assert eight.evaluate(params, x, y)["loss"] == pytest.approx(math.log(10), abs=0.05)


def test_overfits_32_images(mnist):
    eight = load(8)
    config = eight.Config(steps=200)
    x, y, _, _ = eight.make_data(config)
    params = eight.init_params(jax.random.key(0), config)
    optimizer = eight.make_optimizer(config)
    opt_state = optimizer.init(params)
    for _ in range(200):
        params, opt_state, loss = eight.train_step(params, opt_state, x[:32], y[:32], optimizer)
    assert loss < 0.01


def test_short_run_learns_and_repeats(mnist, tmp_path):
    eight = load(8)
    metrics = [eight.main(eight.Config(out=tmp_path / name, steps=1000, device="cpu")) for name in "ab"]
    assert metrics[0] == metrics[1]
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()
    assert metrics[0]["test_accuracy"] > 0.97
    series = read_metrics(tmp_path / "a")
    assert list(series["train", "loss"]) == list(range(1000))
    assert list(series["test", "loss"]) == list(range(0, 1001, 100))
    assert series["test", "accuracy"][1000] == metrics[0]["test_accuracy"]


def test_same_data_and_batches_as_07(mnist):
    seven, eight = load(7), load(8)
    theirs = seven.make_data(seven.Config(), torch.device("cpu"))
    ours = eight.make_data(eight.Config())
    assert [array.dtype for array in ours] == [np.float32, np.int32] * 2
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-6)
    streams = [ex.batches(np.random.default_rng(5), 1000, 128) for ex in (seven, eight)]
    for _ in range(20):  # two epochs and more
        np.testing.assert_array_equal(*(next(stream) for stream in streams))


@pytest.mark.parametrize("number", [7, 8])
def test_evaluates_on_the_test_set(number, mnist, monkeypatch, tmp_path):
    """Trained on true labels, tested on labels that are all wrong."""
    train, (images, labels) = mnist
    monkeypatch.setattr(data, "mnist", lambda dry_run=False: (train, (images, (labels + 1) % 10)))
    ex = load(number)
    metrics = ex.main(ex.Config(out=tmp_path, steps=300, device="cpu"))
    series = read_metrics(tmp_path)
    assert metrics["test_accuracy"] == series["test", "accuracy"][300] < 0.05
    assert series["test", "accuracy"][200] < 0.05
    assert series["train", "loss"][299] < 1


def test_seed_is_that_of_weights_and_of_batches(tmp_path, monkeypatch):
    ex = load(8)
    first = {}
    for seed in (0, 1):
        ex.main(ex.Config(dry_run=True, seed=seed, out=tmp_path, device="cpu"))
        first[seed] = read_metrics(tmp_path / "dry_run")
    assert first[0]["test", "loss"][0] != first[1]["test", "loss"][0]  # the weights differ
    params = ex.init_params(jax.random.key(0), ex.Config())
    monkeypatch.setattr(ex, "init_params", lambda key, config: params)
    for seed in (0, 1):
        ex.main(ex.Config(dry_run=True, seed=seed, out=tmp_path, device="cpu"))
        first[seed] = read_metrics(tmp_path / "dry_run")
    assert first[0]["test", "loss"][0] == first[1]["test", "loss"][0]
    assert first[0]["train", "loss"][0] != first[1]["train", "loss"][0]  # and so does the order


def test_device(monkeypatch):
    assert jax_device("cpu").platform == "cpu"
    assert jax_device("auto") == jax.devices()[0]

    def no_plugin(name):
        raise RuntimeError(f"Unknown backend {name}")

    monkeypatch.setattr(jax, "devices", no_plugin)
    ex = load(8)
    with pytest.raises(UserError, match="--device cuda: JAX finds no such device on this machine.*use --device cpu"):
        ex.main(ex.Config(dry_run=True, device="cuda"))


@pytest.mark.parametrize(
    ("cuda", "capability", "used"), [(13000, "6.0", "cpu"), (12080, "6.0", "gpu"), (13000, "7.5", "gpu")]
)
def test_gpu_that_jax_has_no_code_for(cuda, capability, used, monkeypatch, capsys):
    """CUDA 13 begins at 7.5. `auto` says so and takes the CPU; who asks for the card gets a sentence."""
    cpu, client = jax.devices("cpu")[0], SimpleNamespace(platform_version=f"PJRT C API\ncuda {cuda}")
    card = SimpleNamespace(
        platform="gpu", device_kind=f"a card of {cuda}", compute_capability=capability, client=client
    )
    monkeypatch.setattr(jax, "devices", lambda name=None: [cpu if name == "cpu" else card])
    assert jax_device("auto").platform == used
    assert is_older(card, 7.5) is (capability == "6.0")
    assert not is_older(cpu, 7.5)
    assert ("so the CPU is used" in capsys.readouterr().err) is (used == "cpu")
    if used == "cpu":
        with pytest.raises(UserError, match=r"JAX with CUDA 13 has no code for the .* \(compute capability 6.0\)"):
            jax_device("cuda")
