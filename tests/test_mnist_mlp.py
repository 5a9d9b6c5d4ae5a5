"""Exercise 7, on the real MNIST."""

import math

from common import UserError
from common.program import has_code, torch_device

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import load, read_metrics

pytestmark = pytest.mark.usefixtures("without_pictures")


def test_data_are_what_the_lesson_says(mnist):
    ex = load(7)
    x, y, x_test, y_test = ex.make_data(ex.Config(), torch.device("cpu"))
    assert (x.shape, y.shape, x_test.shape, y_test.shape) == ((60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,))
    assert x.dtype == torch.float32
    assert x.mean().item() == pytest.approx(0, abs=1e-3)
    assert x.std().item() == pytest.approx(1, abs=1e-3)
    images, labels = mnist[0]
    np.testing.assert_allclose(x[7] * 0.3081 + 0.1307, images[7] / 255, atol=1e-6)
    assert y[7] == labels[7]


def test_initial_loss_and_number_of_parameters(mnist):
    ex = load(7)
    torch.manual_seed(0)
    config = ex.Config(hidden=100)
    model = ex.MLP(config)
    _, _, x_test, y_test = ex.make_data(config, torch.device("cpu"))
    assert ex.evaluate(model, x_test, y_test)["loss"] == pytest.approx(math.log(10), abs=0.05)
    hidden = config.hidden
    expected = (784 + 1) * hidden + (config.layers - 2) * (hidden + 1) * hidden + (hidden + 1) * 10
    assert sum(param.numel() for param in model.parameters()) == expected


def test_evaluate_against_numpy(mnist):
    ex = load(7)
    torch.manual_seed(0)
    model = ex.MLP(ex.Config(hidden=8, layers=2))
    x = torch.randn(40, 784)
    y = torch.randint(10, (40,))
    (w1, b1, w2, b2) = (param.detach().double().numpy() for param in model.parameters())
    logits = np.maximum(x.numpy() @ w1.T + b1, 0) @ w2.T + b2
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    measured = ex.evaluate(model, x, y)
    assert measured["loss"] == pytest.approx(-log_probs[np.arange(40), y].mean(), abs=1e-5)
    assert measured["accuracy"] == pytest.approx((logits.argmax(1) == y.numpy()).mean())


def test_overfits_32_images(mnist):
    ex = load(7)
    torch.manual_seed(0)
    model = ex.MLP(ex.Config())
    x, y, _, _ = ex.make_data(ex.Config(), torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(200):
        F.cross_entropy(model(x[:32]), y[:32]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert F.cross_entropy(model(x[:32]), y[:32]).item() < 0.01


def test_short_run_learns_and_repeats(mnist, tmp_path):
    ex = load(7)
    metrics = [ex.main(ex.Config(out=tmp_path / name, steps=1000, device="cpu")) for name in "ab"]
    assert metrics[0] == metrics[1]
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()
    assert metrics[0]["test_accuracy"] > 0.96
    series = read_metrics(tmp_path / "a")
    assert list(series["train", "loss"]) == list(range(1000))
    assert list(series["test", "loss"]) == list(range(0, 1001, 100))
    assert series["test", "accuracy"][1000] == metrics[0]["test_accuracy"]  # the last evaluation, not the best


def test_evaluating_changes_no_training_number(mnist, tmp_path):
    ex = load(7)
    for every in (1, 7):
        ex.main(ex.Config(out=tmp_path / str(every), steps=30, eval_every=every, device="cpu"))
    assert read_metrics(tmp_path / "1")["train", "loss"] == read_metrics(tmp_path / "7")["train", "loss"]


def test_trains_on_training_and_measures_on_test_data(tmp_path, monkeypatch):
    ex = load(7)
    x, y = torch.randn(256, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(256) % 10
    y_test = (y + 1) % 10  # who learns the training set is wrong on each of these
    monkeypatch.setattr(ex, "make_data", lambda config, device: [x, y, x, y_test])
    config = ex.Config(steps=200, hidden=100, seed=3, device="cpu", out=tmp_path)
    metrics = ex.main(config)
    series = read_metrics(tmp_path)
    assert series["train", "loss"][199] < 0.1
    assert metrics["test_accuracy"] == series["test", "accuracy"][200] == 0 < series["test", "accuracy"][0]
    torch.manual_seed(3)
    model = ex.MLP(config)
    assert series["test", "loss"][0] == ex.evaluate(model, x, y_test)["loss"]  # before the first update
    first = np.random.default_rng(3).permutation(256)[:128]
    assert series["train", "loss"][0] == ex.evaluate(model, x[first], y[first])["loss"]


def fake_gpu(monkeypatch, capability, builds):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla P100-PCIE-16GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: builds)


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    fake_gpu(monkeypatch, (9, 0), ["sm_80", "sm_90"])
    assert torch_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert torch_device("auto").type == "cpu"


def test_gpu_that_torch_has_no_code_for(monkeypatch, capsys):
    """It is found before the first kernel: said once and left alone, or refused in a sentence."""
    fake_gpu(monkeypatch, (6, 0), ["sm_75", "sm_80", "sm_120"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert torch_device("auto").type == torch_device("auto").type == torch_device("cpu").type == "cpu"
    said = capsys.readouterr().err
    assert (
        "has no code for the Tesla P100-PCIE-16GB (sm_60), only for sm_75, sm_80, sm_120, so the CPU is used\n" in said
    )
    assert said.count("\n") == 1
    with pytest.raises(UserError, match=r"--device cuda: torch .* has no code for the Tesla P100.*use --device cpu"):
        torch_device("cuda")


@pytest.mark.parametrize(
    ("capability", "builds", "expected"),
    [
        ((8, 9), ["sm_75", "sm_86"], True),  # an RTX 4060 runs the code of older cards of its major version
        ((8, 0), ["sm_75", "sm_86"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((7, 0), ["sm_75", "compute_75"], False),
        ((9, 0), ["sm_90a"], True),
        ((12, 0), ["sm_90", "sm_100", "sm_120"], True),
        ((12, 0), ["sm_90", "sm_100"], False),
        ((9, 4), ["gfx942"], True),  # AMD's
        ((8, 0), [], True),
    ],
)
def test_has_code(capability, builds, expected):
    assert has_code(capability, builds) is expected


def test_gpu_that_is_not_there(monkeypatch):
    ex = load(7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda: torch finds no such device on this machine; use --device cpu"):
        ex.main(ex.Config(dry_run=True, device="cuda"))
