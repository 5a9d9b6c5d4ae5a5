"""The questions that go further: what holds for all of them, an oracle for each, and that a wrong thing is refused."""

import ast
import datetime
import itertools
import json
import re
import subprocess
import sys

from common import UserError, openwebtext
from common.cli.course import expected
from common.cli.questions import anchor, questions, read_answer, title
from common.cli.review import write_review
from common.curriculum import ROOT, find_exercise
from common.plotting import panels
from common.record import answer, in_words

import numpy as np
import pytest
import tokenizers
import torch
from helpers import BUILT, load, load_beside, one_sentence, read_metrics, train_py
from hypothesis import given, settings, strategies

ALL = {path: docstring for exercise in BUILT for path, docstring in questions(ROOT / exercise.folder).items()}
each = pytest.mark.parametrize("path", ALL, ids=lambda path: f"{path.parent.name[:4]}-{path.stem}")


def functions(source: str) -> dict[str, str]:
    """Return the text of each top-level function, without its name."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return {
        node.name: "\n".join(map(ast.unparse, node.body))
        for node in nodes
        if node.name not in ("main", "__post_init__")
    }


def ranges(source: str) -> dict[str, tuple]:
    """Return the range that a program predicts for each of its numbers, from its text."""
    call = next(
        n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "answer"
    )
    tuples = {k.arg: k.value.elts[1:] for k in call.keywords if isinstance(k.value, ast.Tuple)}
    return {name: tuple(map(ast.literal_eval, ends)) for name, ends in tuples.items()}


@each
def test_question_has_the_shape_of_all(path):
    source, number = path.read_text(encoding="utf-8"), int(path.parent.name[2:4])
    assert len(source.splitlines()) <= (165 if path.stem == "read_photo" else 150)  # it is a tool, too
    assert f"    python {path.parent.name}/{path.name}\n" in ALL[path]
    assert re.search(r"Predicted.*Measured.*\d CPU seconds", " ".join(ALL[path].split()))
    assert f"\nimport train as ex{number:02d}\n" in source
    theirs = functions(train_py(number).read_text(encoding="utf-8"))
    assert not set(functions(source).values()) & set(theirs.values())
    assert path.stem not in sys.stdlib_module_names  # its folder is the first on Python's path
    assert ranges(source)


@each
def test_readme_has_question_and_answer(path):
    lesson = (path.parent / "README.md").read_text(encoding="utf-8")
    assert lesson.index("## What to expect") < lesson.index("## Going further") < lesson.index("## Read more")
    part = lesson.partition("## Going further\n")[2].partition(f"\n### {title(ALL[path])}\n")[2]
    part = re.split(r"\n##", part)[0]
    guess, fold, told = part.partition("<details><summary>Answer</summary>")
    assert "**Guess first:**" in guess
    assert f"    python {path.parent.name}/{path.name}" in guess
    assert fold
    assert f"]({path.stem}.png)" in told
    picture = path.with_suffix(".png").stat().st_size
    assert 10_000 < picture <= 150_000
    for name, ends in ranges(path.read_text(encoding="utf-8")).items():
        row = next(line for line in told.splitlines() if line.startswith("|") and f"`{name}`" in line)
        mean, held = re.search(r"\*\*([-+\d.e]+)(?: ± [-+\d.e]+)?\*\* \| (yes|no|not always) \|$", row).groups()
        assert f"| {in_words(*ends)} |" in row
        least, most = (-np.inf if ends[0] is None else ends[0]), (np.inf if ends[1] is None else ends[1])
        assert held == "not always" or (least <= float(mean) <= most) == (held == "yes")


def test_figures_of_the_exercises_are_not_those_of_the_questions():
    for exercise in BUILT:
        lesson = (ROOT / exercise.folder / "README.md").read_text(encoding="utf-8")
        before = lesson.partition("## Going further")[0]
        assert all(figure.text in before for figure in expected(exercise))


@each
def test_question_dry_run(path, tmp_path):
    module = load_beside(int(path.parent.name[2:4]), path.stem)
    numbers = module.main(module.Config(out=tmp_path, dry_run=True))
    assert [file.name for file in sorted(tmp_path.rglob("*")) if file.is_file()] == [
        f"{path.stem}.json",
        f"{path.stem}.png",
    ]
    assert (tmp_path / "dry_run" / f"{path.stem}.png").stat().st_size > 10_000
    left = json.loads((tmp_path / "dry_run" / f"{path.stem}.json").read_text())
    assert left["question"] == title(ALL[path])
    assert left["exercise"] == path.parent.name
    assert {name: entry["value"] for name, entry in left["numbers"].items()} == numbers
    assert all(entry["held"] is None for entry in left["numbers"].values())


def test_question_as_a_user_runs_it(tmp_path):
    path = ROOT / "ex01_linreg_numpy" / "landscape.py"
    command = [sys.executable, path, "--dry-run", "--out", tmp_path]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "largest_stable_step=" in result.stdout
    refused = subprocess.run([*command, "--batch-size", "0"], capture_output=True, text=True)
    one_sentence(refused, "--batch-size must be at least 1")


# answer()


def config_of(out, **values):
    module = load_beside(1, "landscape")
    return module.Config(out=out, **values)


def test_answer(tmp_path, capsys):
    figure, _ = panels("title")
    numbers = answer(config_of(tmp_path), figure, a=(1.0, 0.5, 1), b=(2, None, 1.5), c=(np.float64(3), 3, None), d=4)
    assert numbers == {"a": 1, "b": 2, "c": 3, "d": 4}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a=1 (predicted 0.5 to 1: yes)"
    assert lines[1] == "b=2 (predicted at most 1.5: no)"
    assert lines[2] == "c=3 (predicted at least 3: yes)"
    assert lines[3] == "d=4"
    left = json.loads((tmp_path / "landscape.json").read_text())
    assert [entry["held"] for entry in left["numbers"].values()] == [True, False, True, None]
    assert {"seed", "config", "device", "versions", "commit", "program", "cpu_seconds"} <= set(left)
    with pytest.raises(UserError, match="a is nan, not finite"):
        answer(config_of(tmp_path), figure, a=np.nan)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        answer(config_of(tmp_path / "file"), figure, a=1)
    with pytest.raises(UserError, match="cannot write into"):
        (tmp_path / "o" / "landscape.json.tmp").mkdir(parents=True)
        answer(config_of(tmp_path / "o"), figure, a=1)


# rampup


def test_a_learners_own_questions_are_in_the_review(tmp_path):
    folder = tmp_path / "mine"
    (folder / "out").mkdir(parents=True)
    (folder / "train.py").write_text(train_py(1).read_text(encoding="utf-8"))
    (folder / "cubes.py").write_text('"""Are <cubes> harder?\n\nYes."""\nraise SystemExit("never run")\n')
    (folder / "other.py").write_text('"""No question."""\n')
    (folder / "not_run.py").write_text('"""Not run?"""\n')
    (folder / "broken.py").write_text('"""Is this broken?"""\n')
    numbers = {
        "limit": {"value": 1.0712, "predicted": [0.98, None], "held": True},
        "<b>": {"value": 2, "predicted": [None, 1], "held": False},
    }
    (folder / "out" / "cubes.json").write_text(json.dumps({"numbers": numbers}))
    (folder / "out" / "broken.json").write_text('{"numbers": [1]}')
    assert read_answer(folder / "cubes.py") == [
        ("limit", "1.071", "at least 0.98", True),
        ("<b>", "2", "at most 1", False),
    ]
    page = write_review(find_exercise(1), folder, tmp_path / "review.html", False).read_text(encoding="utf-8")
    assert "Are &lt;cubes&gt; harder?" in page
    assert "at least 0.98" in page
    assert "<b>2" not in page
    assert "&lt;b&gt;" in page
    assert "out/broken.json cannot be read" in page
    assert "Not run?" not in page


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"numbers": {"a": 1}}',
        '{"numbers": {"a": {"value": 1, "predicted": [1], "held": true}}}',
        '{"numbers": {"a": {"value": 1, "predicted": ["x", 2], "held": true}}}',
        '{"numbers": {"a": {"value": 1, "predicted": [1, 2], "held": "yes"}}}',
        "[" * 100_000,
    ],
)
def test_an_answer_that_is_none(text, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"out/a.json cannot be read"):
        read_answer(tmp_path / "a.py")


def test_anchor():
    assert anchor("How large may a step be, and what does `x` do?") == "how-large-may-a-step-be-and-what-does-x-do"


# what each question's program rests on


def test_01_landscape(tmp_path):
    q = load_beside(1, "landscape")
    rng = np.random.default_rng(0)
    x, y = rng.normal(1.0, 2.0, 500), rng.normal(size=500)

    def loss(params):
        return q.ex01.loss_fn(q.ex01.forward(params, x), y)

    best = np.polyfit(x, y, 1)
    for off in rng.normal(size=(5, 2)):  # the loss is the quadratic that the Hessian says, to the last digits
        assert loss(best + off) == pytest.approx(loss(best) + off @ q.hessian(x) @ off / 2)
    walked = q.walk(x, y, (0.0, 0.0), 0.05, 500, 50)  # with the whole set as its batch it is gradient descent
    shrink = np.eye(2) - 0.05 * q.hessian(x)
    np.testing.assert_allclose(walked[50] - best, np.linalg.matrix_power(shrink, 50) @ (walked[0] - best), atol=1e-9)
    held = q.main(q.Config(out=tmp_path, dry_run=True))["largest_stable_step"]
    assert 0.98 < held < 1.02
    x, y, _ = q.ex01.make_data(q.ex01.Config(), rng)
    raw = 2 * x + 1  # not whitened
    assert not 0.98 < q.largest_stable_step(raw, y, np.polyfit(raw, y, 1), 1, 500) < 1.02


def test_02_autograd(tmp_path):
    q = load_beside(2, "autograd")
    rng = np.random.default_rng(0)
    for _ in range(50):  # random graphs, in which nodes are used again and shapes are broadcast
        shapes = [(3, 3), (3, 1), (1, 3), (3,), ()]
        leaves = [rng.normal(size=shapes[i]) for i in rng.integers(5, size=4)] + [rng.normal(size=(3, 3))]
        ours, theirs = [q.Node(leaf) for leaf in leaves], [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
        a, b = list(ours), list(theirs)
        for _ in range(6):
            i, j, kind = *rng.integers(len(a), size=2), rng.integers(5)
            if kind == 4 and (a[i].shape[-2:] != (3, 3) or a[j].shape[-2:] != (3, 3)):
                continue
            for nodes in (a, b):
                left, right = nodes[i], nodes[j]
                nodes.append(
                    [left + right, left - right, left * right, left**2, left @ right if kind == 4 else 0][kind]
                )
        (a[-1] * a[-1]).mean().backward()
        (b[-1] * b[-1]).mean().backward()
        for mine, true in zip(ours, theirs):
            np.testing.assert_allclose(mine.grad, 0 if true.grad is None else true.grad.numpy(), rtol=1e-9, atol=1e-12)
    node = first = q.Node(1.0)
    for _ in range(10_000):
        node = node + 0.0
    (node * first).backward()
    assert first.grad == 2  # both ways count


def test_02_autograd_gives_the_losses_of_the_exercise(tmp_path):
    """But for the order of the samples, which its generator has drawn after the data."""
    ex, q = load(2), load_beside(2, "autograd")
    ex.main(ex.Config(out=tmp_path, steps=30))
    rng = np.random.default_rng(0)
    x, y, _ = ex.make_data(ex.Config(), rng)
    q.ex02.batches, q.np = (lambda _, n, size: ex.batches(rng, n, size)), np
    losses, _ = q.run(q.Node, x.numpy(), y.numpy(), 0, 30)
    np.testing.assert_allclose(losses, list(read_metrics(tmp_path)["train", "loss"].values()), rtol=0, atol=1e-10)


def test_03_double_descent(tmp_path, mnist):
    q = load_beside(3, "double_descent")
    rng = np.random.default_rng(0)
    for n, p in ((20, 8), (8, 20), (9, 9)):
        features, y = rng.normal(size=(n, p)), rng.normal(size=(n, 3))
        np.testing.assert_allclose(q.fit(features, y, 0.0), np.linalg.pinv(features) @ y, atol=1e-8)
        by_formula = np.linalg.solve(features.T @ features + 0.1 * n * np.eye(p), features.T @ y)
        np.testing.assert_allclose(q.fit(features, y, 0.1), by_formula, atol=1e-8)
    config = {"num_samples": 60, "sets": 3, "out": tmp_path}
    x = rng.normal(size=(300, 10))
    error, bias, variance, training = q.errors(
        x, np.eye(10)[rng.integers(10, size=300)], x[:50], np.eye(10)[:1].repeat(50, 0), 30, 0, q.Config(**config)
    )
    assert error == pytest.approx(bias + variance, abs=1e-9)
    assert training < error
    right = q.main(q.Config(**config))
    assert right["peak_at_parameters_per_sample"] == 1
    assert right["peak_over_error_at_10"] > 100
    assert q.main(q.Config(**config, ridge=0.01))["peak_over_error_at_10"] < 100


def test_03_echo(tmp_path):
    q = load_beside(3, "echo")
    config = q.Config(num_samples=10_000, taps=8, steps=400, out=tmp_path)
    right = q.main(config)
    assert right["worse_for_music"] > 10
    assert right["worse_for_noise"] < 2
    rng = np.random.default_rng(0)
    torch.set_default_dtype(torch.float64)
    x, room = rng.normal(size=(5_000, 8)), rng.normal(size=8)
    y = x @ room + 0.01 * rng.normal(size=5_000)
    _, taps = q.learn(torch.from_numpy(x), torch.from_numpy(y), room, np.eye(8), 300, 0)
    np.testing.assert_allclose(taps, np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-2)
    time = np.arange(6_400) / q.RATE
    assert q.spectrum(np.sin(2 * np.pi * 1000 * time), 64).argmax() * q.RATE / 64 == 1000
    q.sounds = lambda rng, n: {"noise": rng.normal(size=n), "music": rng.normal(size=n)}
    assert q.main(config)["worse_for_music"] < 10


def test_04_losses(tmp_path):
    q = load_beside(4, "losses")
    torch.manual_seed(0)
    logits, y = torch.randn(50, 3, dtype=torch.float64), torch.randint(3, (50,))
    ours = q.weston_watkins(logits, y)
    assert ours.item() == pytest.approx(3 * torch.nn.MultiMarginLoss()(logits, y).item())
    worst = [
        max(0, 1 + max(row[k] - row[c] for k in range(3) if k != c)) for row, c in zip(logits.tolist(), y.tolist())
    ]
    assert q.LOSSES["SVM, Crammer–Singer"](logits, y).item() == pytest.approx(np.mean(worst))
    missed = [max(row) - row[c] for row, c in zip(logits.tolist(), y.tolist())]
    assert q.LOSSES["perceptron"](logits, y).item() == pytest.approx(np.mean(missed))
    probs = torch.tensor([[0.75, 0.25, 0.0]] * 4).clamp(1e-12)
    assert q.reliability(probs.log(), torch.tensor([0, 0, 0, 1]))[1] == pytest.approx(0, abs=1e-6)
    assert q.reliability(probs.log(), torch.tensor([0, 0, 1, 1]))[1] == pytest.approx(0.25, abs=1e-6)
    right = q.main(q.Config(out=tmp_path, dry_run=True))
    assert right["calibration_error_svm"] > 0.05
    wrong = q.main(q.Config(out=tmp_path, dry_run=True, scale=3.0))
    assert wrong["calibration_error_svm"] != right["calibration_error_svm"]
    _, y, truth = q.ex04.make_data(q.ex04.Config(), np.random.default_rng(0))
    assert q.reliability(truth, y)[1] < 0.01 < 0.05 < q.reliability(3 * truth, y)[1]  # the true logits, and surer ones


def test_04_neighbours():
    q = load_beside(4, "neighbours")
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(40, 2)), rng.normal(size=(30, 2))
    y, new_y = rng.integers(3, size=40), rng.integers(3, size=30)
    ours = q.neighbours(*map(torch.from_numpy, (x, y, new, new_y)), (1, 5, 40))
    for k, share in zip((1, 5, 40), ours):
        right = 0
        for point, true in zip(new, new_y):
            nearest = sorted(range(40), key=lambda i: np.sum((x[i] - point) ** 2))[:k]
            right += np.bincount(y[nearest], minlength=3).argmax() == true
        assert share == right / 30


WRONG = (  # one sign, one transpose, one index: all that is wrong must be caught
    *((" @ w + b", " @ w - b"), ("probs - np.eye", "probs + np.eye"), ("/ len(y)", "/ (len(y) + 1)")),
    *(("inputs[n].T @ d", "-inputs[n].T @ d"), ("d.sum(0)", "-d.sum(0)"), ("(inputs[n] > 0)", "(inputs[n] >= 0)")),
    *(("d @ params[2 * n].T", "d @ params[2 * n]"), ("/= probs.sum(1", "/= probs.sum(0")),
)


def test_05_by_hand(tmp_path):
    q = load_beside(5, "by_hand")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    params = q.ex05.init_params(q.ex05.Config(layers=4, hidden=12, num_features=12))
    params = [(param + 0.1 * torch.randn(param.shape)).detach().requires_grad_() for param in params]  # no bias is 0
    x, y = torch.randn(40, 12), torch.randint(3, (40,))
    truth = torch.autograd.grad(q.ex05.loss_fn(q.ex05.forward(params, x), y), params)
    arrays = [param.detach().numpy() for param in params]
    for ours, true in zip(q.backward(arrays, x.numpy(), y.numpy()), truth):
        np.testing.assert_allclose(ours, true.numpy(), rtol=0, atol=1e-12)
    picked = q.pick(params, 60, 0)

    def flagged(gradient):
        try:
            grads = gradient(arrays, x.numpy(), y.numpy())
        except ValueError:  # of shapes that do not fit
            return True
        return (q.relative_errors(grads, params, x, y, 1e-5, picked) > 1e-4).any()

    assert not flagged(q.planted("", ""))
    source = q.inspect.getsource(q.backward)
    for before, after in (*[change for bug, change in q.BUGS.items() if bug != "no bug"], *WRONG):
        assert source.count(before) == 1, before
        assert flagged(q.planted(before, after)), before


def test_05_differences():
    q = load_beside(5, "differences")
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    params = q.ex05.init_params(q.ex05.Config(layers=1))
    x, y = torch.randn(30, 2), torch.randint(3, (30,))
    grads = torch.autograd.grad(q.ex05.loss_fn(q.ex05.forward(params, x), y), params)
    picked = [(0, i) for i in range(6)]
    for central, least, most in ((True, 1.9, 2.1), (False, 0.9, 1.1)):
        errors = [q.relative_errors(grads, params, x, y, h, picked, central) for h in q.STEPS[:5]]
        assert least < q.slope(np.array(errors)) < most
    wrong = [grad * 1.01 for grad in grads]
    assert (q.relative_errors(wrong, params, x, y, 1e-5, picked) > 1e-3).all()


def test_05_signals():
    q = load_beside(5, "signals")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)

    def rule(n):
        return 1.5 / n

    widths = [200] * 9
    forward, backward = q.signals(torch.randn(500, 200), q.weights(widths, rule), lambda x: x)
    np.testing.assert_allclose(forward[1:] / forward[:-1], 1.5**0.5, rtol=0.15)  # of a linear network, in closed form
    np.testing.assert_allclose(backward[:-1] / backward[1:], 1.5**0.5, rtol=0.15)
    w = q.weights([400, 100], lambda n: 2 / n)[0]
    assert w.shape == (400, 100)
    assert w.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.05)  # n is the number of inputs


def test_06_width(tmp_path):
    q = load_beside(6, "width")
    torch.set_default_dtype(torch.float64)
    knots, x = np.linspace(-1, 1, 12), np.linspace(-1, 1, 300)
    made = q.by_hand(knots)(torch.from_numpy(x)[:, None])[:, 0].detach().numpy()
    np.testing.assert_allclose(made, np.interp(x, knots, q.curve(knots)), atol=1e-12)
    kinks = -q.spread(16)[0].bias / q.spread(16)[0].weight[:, 0]
    np.testing.assert_allclose(kinks.detach().numpy(), np.linspace(-1, 1, 16), atol=1e-12)
    right = q.main(q.Config(out=tmp_path, dry_run=True))
    assert -2.1 < right["slope_by_hand"] < -1.9
    assert right["solved_over_by_hand"] <= 1
    by_hand, rng = q.by_hand, np.random.default_rng(0)
    q.by_hand = lambda knots: by_hand(np.sort(rng.uniform(-1, 1, len(knots))))
    assert not -2.1 < q.main(q.Config(out=tmp_path, dry_run=True))["slope_by_hand"] < -1.9


def test_07_from_scratch(tmp_path, mnist):
    q = load_beside(7, "from_scratch")
    torch.manual_seed(0)
    model = q.ex07.MLP(q.ex07.Config(hidden=12, layers=4)).double()
    x, y = torch.randn(40, 28, 28, dtype=torch.float64), torch.randint(10, (40,))
    loss = q.ex07.loss_fn(model(x), y)
    params = list(model.parameters())
    arrays = [param.detach().numpy().copy() for param in params]
    ours, grads = q.backward(arrays, *q.forward(arrays, x.flatten(1).numpy()), y.numpy())
    assert ours == pytest.approx(loss.item(), abs=1e-12)
    for mine, true in zip(grads, torch.autograd.grad(loss, params)):
        np.testing.assert_allclose(mine, true.numpy(), rtol=0, atol=1e-12)
    right = q.main(q.Config(out=tmp_path, steps=200))
    assert 0 < right["off_from_exercise_7_in_float64"] < 1e-10
    assert 0 < right["off_from_exercise_7"] < 0.1
    q.ex07.main(q.ex07.Config(out=tmp_path / "torch", steps=30, eval_every=1000))
    losses = list(read_metrics(tmp_path / "torch")["train", "loss"].values())[:30]
    torch.manual_seed(0)
    params = [param.detach().numpy().copy() for param in q.ex07.MLP(q.ex07.Config()).parameters()]
    x, y, *_ = (tensor.numpy() for tensor in q.ex07.make_data(q.Config(), "cpu"))  # and so are the program's losses
    np.testing.assert_allclose(q.train(params, x.reshape(-1, 784), y, q.Config(), 30)[0], losses, rtol=0, atol=1e-4)
    backward = q.backward
    q.backward = lambda params, inputs, logits, y: backward(params, inputs, logits, (y + 1) % 10)
    assert q.main(q.Config(out=tmp_path, steps=50))["off_from_exercise_7_in_float64"] > 0.1


def test_07_baselines(mnist):
    from scipy.spatial.distance import cdist

    q = load_beside(7, "baselines")
    x, y, x_test, y_test = (tensor[:600] for tensor in q.ex07.make_data(q.Config(), "cpu"))
    flat, new = x.flatten(1), x_test[:200].flatten(1)
    found = q.nearest(flat, new, 5)
    order = cdist(new, flat).argsort(1)[:, :5]
    np.testing.assert_array_equal(found.numpy(), order)
    for k in (1, 3, 5):
        ours = q.vote(y[found[:, :k]]).tolist()
        for said, labels in zip(ours, y.numpy()[order[:, :k]].tolist()):
            most = max(labels.count(label) for label in labels)
            assert said == next(label for label in labels if labels.count(label) == most)
    logits, labels = torch.randn(50, 10), torch.randint(10, (50,))
    missed = [max(row) - row[c] for row, c in zip(logits.tolist(), labels.tolist())]
    assert q.LOSSES["perceptron"](logits, labels).item() == pytest.approx(np.mean(missed), abs=1e-5)
    model = q.train(q.ex07.MLP(q.ex07.Config(layers=1)), q.ex07.loss_fn, x, y, 0.02, q.Config(steps=300))
    assert q.ex07.evaluate(model, x, y)["accuracy"] > 0.9


def test_07_regularize(mnist):
    q = load_beside(7, "regularize")
    torch.manual_seed(0)
    model, images = q.ex07.MLP(q.ex07.Config()), torch.randn(4000, 28, 28)
    with torch.no_grad():
        plain = model(images)
        torch.testing.assert_close(q.forward(model.eval(), images, 0.5), plain)  # no dropout in evaluation
        model.train()
        torch.testing.assert_close(q.forward(model, images, 0.0), plain)
        model.layers = model.layers[-2:]  # one hidden layer: its logits are linear in what is dropped
        model.layers[0] = torch.nn.Flatten()
        model.layers[1] = torch.nn.Linear(784, 10)
        mean = torch.stack([q.forward(model, images[:50], 0.5) for _ in range(400)]).mean(0)
        assert (mean - q.forward(model.eval(), images[:50], 0.5)).abs().mean() < 0.1  # of about the same mean
    x = torch.zeros(2, 28, 28)
    x[:, 14, 14] = 1
    moved = torch.cat([q.move(x, 2, np.random.default_rng(seed)) for seed in range(40)])
    places = {tuple(place) for place in (moved > 0).nonzero()[:, 1:].tolist()}
    assert moved.sum((1, 2)).tolist() == [1] * 80
    assert {min(p[0] for p in places), max(p[0] for p in places), max(p[1] for p in places)} == {12, 16}
    x, y, *_ = q.ex07.make_data(q.Config(), "cpu")
    few = (x[:50], y[:50])
    models, rows = q.train(*few, few, q.Config(), 1, decay=0.5, dropout=0.0, pixels=0)
    model = q.ex07.MLP(q.ex07.Config())
    for param, value in zip(model.parameters(), models[0]):
        param.data.copy_(value)
    order = next(q.ex07.batches(np.random.default_rng(0), 50, 50))
    grads = torch.autograd.grad(q.ex07.loss_fn(model(few[0][order]), few[1][order]), list(model.parameters()))
    for before, grad, after in zip(models[0], grads, models[1]):  # by the formula of a step with L2
        torch.testing.assert_close(after, before - 0.1 * (grad + 0.5 * before), rtol=1e-4, atol=1e-6)
    assert rows[0, 2] == rows[0, 1]


def test_07_mistakes(tmp_path, mnist):
    q = load_beside(7, "mistakes")
    tensors = q.ex07.make_data(q.Config(), "cpu")
    tensors = [tensor[:20_000] for tensor in tensors]
    found = {}
    for fault in q.FAULTS:
        x, y, *program = q.planted(fault, 0, *tensors)
        results = q.checks(x, y, *program, tensors[2])
        found[fault] = {name for name, caught in results.items() if caught}
    assert found["no fault"] == set()
    assert found["labels shuffled"] == set()  # it is the last check, after training, that finds these
    for fault, check in {
        "gradients not zeroed": "gradients arrive",
        "softmax twice": "one batch by heart",
        "ReLU on the logits": "one batch by heart",
        "step × 100": "share of an update",
        "pixels 0 to 255": "first loss",
        "weights 0": "gradients arrive",
        "test set in training": "the data",
    }.items():
        assert check in found[fault], fault
    page = (ROOT / "common" / "cli" / "pages" / "it-does-not-learn.md").read_text(encoding="utf-8")
    for fault in q.FAULTS:  # what is above, and the last column
        row = next(line for line in page.splitlines() if line.startswith(f"| {fault} |"))
        assert ["wrong" in cell for cell in row.split("|")[2:7]] == [name in found[fault] for name in results], fault


def test_08_valley(tmp_path):
    import jax.numpy as jnp
    import optax

    q = load_beside(8, "valley")
    rng = np.random.default_rng(0)
    hessian, start = np.diag(np.geomspace(0.01, 1, 6)), rng.normal(size=6)
    for method, constants, optimizer in (
        (q.momentum, {"rate": 0.3}, optax.sgd(0.3)),
        (q.momentum, {"rate": 0.3, "beta": 0.8}, optax.sgd(0.3, 0.8)),
        (q.momentum, {"rate": 0.3, "beta": 0.8, "nesterov": True}, optax.sgd(0.3, 0.8, nesterov=True)),
        (q.adam, {"rate": 0.01}, optax.adam(0.01)),
        (q.adam, {"rate": 0.01, "decay": 0.5}, optax.adamw(0.01, weight_decay=0.5)),
        (q.adam, {"rate": 0.01, "l2": 0.5}, optax.chain(optax.add_decayed_weights(0.5), optax.adam(0.01))),
    ):
        x = jnp.array(start)
        state = optimizer.init(x)
        for point in q.walk(method, hessian, start, 100, **constants):
            np.testing.assert_allclose(x, point, atol=1e-5)
            updates, state = optimizer.update(hessian @ x, state, x)
            x = x + updates
    assert q.steps_to(0.1, [np.array([1.0]), np.array([0.5]), np.array([0.05]), np.array([0.01])]) == 2
    q.KAPPAS = (10, 100)
    right = q.main(q.Config(out=tmp_path))
    assert right["descent_over_heavy_ball_at_100"] > 7
    assert right["adam_turned_over_as_it_lies"] > 2
    assert right["adamw_shrinks_one_over_other"] == pytest.approx(1, abs=0.1)
    assert right["adam_with_l2_shrinks_one_over_other"] > 2
    q.np.linalg.qr, qr = (lambda a: (np.eye(len(a)), None)), q.np.linalg.qr  # not turned
    try:
        assert q.main(q.Config(out=tmp_path))["adam_turned_over_as_it_lies"] < 2
    finally:
        q.np.linalg.qr = qr


# part 3: language


def test_16_bpe(shakespeare, tmp_path):
    q = load_beside(16, "bpe")
    cut = len(shakespeare) * 9 // 10
    ids = q.learn(shakespeare[:cut], 256 + 1_000)
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = byte_level(add_prefix_space=False)
    options = {"initial_alphabet": byte_level.alphabet(), "show_progress": False}
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=256 + 1_000, **options)
    theirs.train_from_iterator([shakespeare[:cut]], trainer)
    merges = json.loads(theirs.to_str())["model"]["merges"]
    letters = {chr(byte[0]): byte for byte in q.BYTES[:188]} | {chr(256 + i): q.BYTES[188 + i] for i in range(68)}
    made = [b"".join(letters[letter] for letter in left + right) for left, right in merges]
    assert list(ids)[256:] == made  # the same 1,000 merges, in the same order: ties are decided as there
    assert [ids[token] for token in q.encode(shakespeare[cut:], ids)] == theirs.encode(shakespeare[cut:]).ids

    gpt2 = openwebtext.encoding()
    ranks = {gpt2.decode_single_token_bytes(i): i for i in range(gpt2.eot_token)}
    tokens = [ranks[token] for token in q.encode(shakespeare, ranks)]
    assert len(tokens) == 338_025
    assert tokens == gpt2.encode_ordinary(shakespeare)
    assert q.encode("773", ranks) == [b"773"]
    assert q.merge([b"a"] * 3, (b"a", b"a")) == [b"aa", b"a"]
    other_order = {token: -i for token, i in ranks.items()}
    assert len(q.encode("neighbour Baptista", other_order)) != len(q.encode("neighbour Baptista", ranks))


@settings(max_examples=50, deadline=None)
@given(strategies.text(max_size=40))
def test_16_bpe_loses_nothing(text):
    q = load_beside(16, "bpe")
    ids = q.learn(text + "aaaa abab abab", 300)
    assert b"".join(q.encode(text, ids)).decode() == text
    assert list(ids.values()) == list(range(len(ids)))


def test_13_dates():
    q = load_beside(13, "dates")
    day = datetime.date(1955, 12, 3)
    assert dict(q.write(day, form) for form in q.FORMS) == {
        "December 3, 1955": [[14, 15], [9, 9]],
        "3. Dec '55": [[8, 9], [0, 0]],
        "the 3rd of Dec 1955": [[17, 18], [4, 4]],
        "12/3/1955": [[7, 8], [3, 3]],
        "3 December 1955": [[13, 14], [0, 0]],
    }
    assert q.write(day.replace(day=12), "{m}/{d}/{Y}") == ("12/12/1955", [[8, 9], [3, 4]])
    source, target, places = q.make_data(0)
    iso = [q.decode(ids) for ids in target.tolist()]
    assert len(set(iso)) == 36_525
    assert (min(iso), max(iso)) == ("=1950-01-01", "=2049-12-31")
    for n in range(50):
        text = q.decode(source[n].tolist())
        year, day = (text[first : last + 1].zfill(2) for first, last in places[n].tolist())
        assert (year, day) == (iso[n][3:5], iso[n][9:11])


def test_13_translate():
    q, dates = load_beside(13, "translate"), load_beside(13, "dates")
    days = [datetime.date(1990 + n, 1 + n, 1 + 3 * n) for n in range(8)]
    texts, places = zip(*(dates.write(day, form) for day, form in zip(days, dates.FORMS * 2)))
    source = dates.encode(texts, dates.S)  # (8, S)
    target = dates.encode([f"={day}" for day in days], 1 + dates.T)  # (8, 1 + T)
    torch.manual_seed(0)
    model = q.EncoderDecoder()
    ours, theirs = model.decoder[0].cross, torch.nn.MultiheadAttention(64, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.kv.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.kv.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, memory = torch.randn(8, 10, 64), torch.randn(8, dates.S, 64)
    y, weights = theirs(x, memory, memory, key_padding_mask=source == 0, average_attn_weights=False)
    torch.testing.assert_close(ours(x, memory, q.masks(source)[0]), y, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.weights, weights, rtol=0, atol=1e-6)

    for layers in ((2, 2, True), (0, 2, False)):
        model = q.EncoderDecoder(*layers)
        logits = model(source, target[:, :-1])  # (8, T, V)
        changed = target[:, :-1].clone()
        changed[:, 6:] = 5
        torch.testing.assert_close(model(source, changed)[:, :6], logits[:, :6])  # nothing sees what comes after it
        assert not torch.allclose(model(source, changed)[:, 6:], logits[:, 6:])
        assert not torch.allclose(model(source.roll(1, 0), target[:, :-1]), logits)  # what was read counts
        with torch.no_grad():
            model.embedding.weight[0] += 1
        torch.testing.assert_close(model(source, target[:, :-1]), logits)  # and what fills it up does not
    blind = q.EncoderDecoder(2, 2, False)
    torch.testing.assert_close(blind(source.roll(1, 0), target[:, :-1]), blind(source, target[:, :-1]))

    model = q.EncoderDecoder()
    q.train(model, source, target, q.Config(steps=60, batch_size=8, warmup_steps=5))
    right = q.exact(model, source, target)
    written = target[:, :1]
    for _ in range(dates.T):  # one character at a time, each from those before it
        padded = torch.nn.functional.pad(written, (0, dates.T - written.shape[1]))
        written = torch.cat([written, model(source, padded)[:, [written.shape[1] - 1]].argmax(-1)], 1)
    assert right == (written == target).all(1).double().mean().item() > 0.8
    assert q.exact(model, source.roll(1, 0), target) == 0
    assert q.exact(model, source, torch.cat([target[:, :-1], target[:, :1]], 1)) == 0  # the last character counts
    looks = q.aligned(model, source, target, torch.tensor(places))
    strongest = model.decoder[1].cross.weights[:, 2, 9].argmax(-1)  # (8,): layer 2, head 3, the day's second digit
    inside = [first <= place <= last for place, (_, (first, last)) in zip(strongest.tolist(), places)]
    assert looks[1, 2, 1].item() == np.mean(inside)


def test_11_memory():
    q = load_beside(11, "memory")
    torch.manual_seed(0)
    x = torch.zeros(3, 20, 2 * q.K)
    for bias in (0, 1, 3):  # all weights 0: a cell is what its forget gate leaves of the cell before
        net = q.new_network(f"LSTM, forget bias {bias}" if bias else "LSTM")
        for name, param in net.named_parameters():
            if "weight" in name or not bias:
                torch.nn.init.zeros_(param)
        norms = q.reach(net, x)
        np.testing.assert_allclose(norms[1:] / norms[:-1], 1 / (1 + np.exp(-bias)), rtol=1e-4)
    net = q.new_network("orthogonal RNN")
    for bias in (net.bias_ih_l0, net.bias_hh_l0):
        torch.nn.init.zeros_(bias)
    np.testing.assert_allclose(q.reach(net, x * 0), 1, rtol=1e-4)  # tanh has slope 1 at 0, and a rotation keeps lengths
    x, y = q.make_data(np.random.default_rng(0), 50, 12)
    assert (x[:, 0].argmax(1) == y).all()
    assert (x[:, 1:].argmax(2) >= q.K).all()  # only the first tells
    config = q.Config(steps=150)
    assert q.recall("LSTM, forget bias 3", 10, config) > 0.9
    q.KINDS["LSTM, forget bias 3"] = -3  # a gate that is shut
    assert q.recall("LSTM, forget bias 3", 10, config) < 0.5


def test_09_receptive_field():
    import jax

    q = load_beside(9, "receptive_field")
    assert [q.computed(layers) for layers in (0, 1, 2, 3)] == [1, 5, 13, 29]
    params = q.ex09.init_params(jax.random.key(0), q.ex09.Config(channels=8))
    images = np.random.default_rng(0).normal(size=(8, 28, 28)).astype(np.float32)
    for layers, middle in ((1, 7), (2, 3)):
        seen = q.field(params, layers, images) > 0
        poked = np.zeros((784, 28, 28), np.float32)
        poked[np.arange(784), np.arange(784) // 28, np.arange(784) % 28] = 50.0  # one pixel at a time, either way
        maps = np.stack([q.convolve(params[:layers], sign * poked)[:, middle, middle] for sign in (0, 1, -1)])
        moved = (maps[1:] != maps[0]).any((0, 2)).reshape(28, 28)
        assert moved.any(1).sum() == seen.any(1).sum() == q.computed(layers)
        assert not (seen & ~moved).any()
    np.testing.assert_allclose(q.forward(params, images, "stride"), q.ex09.forward(params, images), atol=1e-5)
    maps = torch.randn(8, 1, 28, 28)
    pooled = {"max pool": torch.nn.functional.max_pool2d, "mean pool": torch.nn.functional.avg_pool2d}
    one = {"w": np.zeros((5, 5, 1, 1), np.float32), "b": np.zeros(1, np.float32)}
    one["w"][2, 2] = 1  # the convolution leaves everything as it is
    for kind, function in pooled.items():
        ours = q.convolve([one], maps[:, 0].numpy(), kind)[..., 0]
        np.testing.assert_allclose(ours, function(maps.relu(), 2)[:, 0].numpy(), atol=1e-6)
    assert q.share_of_90(np.ones((10, 10))) == pytest.approx(0.9, abs=0.02)
    assert q.share_of_90(np.eye(10) * 1e3 + 1) == pytest.approx(0.1, abs=0.02)

    spot = np.zeros((8, 28, 28), np.float32)  # far from the border, on a ground of zeros that no bias lifts
    spot[:, 8:13, 8:13] = images[:, :5, :5]
    still = [layer | {"b": 0 * layer["b"]} for layer in params[:2]]
    short = {"w": params[-2]["w"][:16], "b": params[-2]["b"]}
    for kind, ends in (("global mean", [short, params[-1]]), ("stride", params[-2:])):
        here, there = (q.forward(still + ends, np.roll(spot, shift, 2), kind) for shift in (0, 4))
        assert np.allclose(here, there, atol=1e-5) == (kind == "global mean")  # not with a dense layer


def test_09_layers(mnist):
    import jax

    q = load_beside(9, "layers")
    params = q.ex09.init_params(jax.random.key(0), q.ex09.Config())
    x, y, x_test, y_test = q.ex09.make_data(q.Config())
    found = q.features(params, x[:50])
    assert [values.shape for values in found.values()] == [(50, 784), (50, 6272), (50, 3136), (50, 128)]
    logits = found["dense"] @ params[-1]["w"] + params[-1]["b"]
    np.testing.assert_allclose(logits, q.ex09.forward(params, x[:50]), atol=1e-4)
    rng = np.random.default_rng(0)
    known, new, labels = rng.normal(size=(30, 5)), rng.normal(size=(20, 5)), rng.integers(10, size=30)
    by_hand = [labels[np.argmin([np.sum((k - n) ** 2) for k in known])] for n in new]
    assert q.nearest(known, labels, new).tolist() == by_hand
    config = q.Config(steps=80, draws=2)
    params = q.ex09.init_params(jax.random.key(0), q.ex09.Config(channels=8))
    accuracy = {}
    for name, net in (("new", params), ("trained", q.train(params, jax.random.key(1), x, y, config))):
        found, found_test = q.features(net, x[:1000]), q.features(net, x_test[:500])
        accuracy[name] = {
            layer: q.readable(found[layer], found_test[layer], y[:1000], y_test[:500], config).mean(0)[0]
            for layer in q.LAYERS
        }
    assert accuracy["trained"]["dense"] > accuracy["trained"]["pixels"] + 10
    assert accuracy["new"]["dense"] < accuracy["new"]["pixels"] + 5  # it is the training that does it


def test_13_scores(tmp_path):
    q = load_beside(13, "scores")
    torch.manual_seed(0)
    query, keys, values = torch.randn(5, 24), torch.randn(5, 7, 24), torch.randn(5, 7, 24)
    scores, weights = q.attend(query, keys)
    true = torch.nn.functional.scaled_dot_product_attention(query[:, None], keys, values)[:, 0]
    torch.testing.assert_close((weights[:, None] @ values)[:, 0], true, rtol=0, atol=1e-6)
    jacobians = [torch.autograd.functional.jacobian(lambda row: row.softmax(-1), row) for row in scores]
    assert q.slopes(weights) == pytest.approx(np.mean([jacobian.norm().item() for jacobian in jacobians]), rel=1e-5)
    right = q.main(q.Config(queries=400, out=tmp_path))
    assert 0.95 < right["spread_divided"] < 1.05
    q.math.sqrt, sqrt = (lambda d: 1.0), q.math.sqrt
    try:
        assert q.main(q.Config(queries=400, out=tmp_path))["spread_divided"] > 10
    finally:
        q.math.sqrt = sqrt


def test_12_decoding():
    q = load_beside(12, "decoding")
    ex = q.ex12.Config(block_size=3, channels=8, hidden=8, max_new_tokens=2, temperature=0)
    torch.manual_seed(0)
    model, start = q.ex12.MLP(ex, 20).eval(), torch.tensor([4, 9, 2])
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(20)  # surer than a new network
        model.head.bias[0] = 3  # it would like to say <unk>
    assert q.beam_search(model, start, 3, 2, 1).tolist() == q.ex12.sample(model, start, ex).tolist()  # greedy
    model.eval()
    pairs = torch.cartesian_prod(torch.arange(1, 20), torch.arange(1, 20))  # (361, 2): all that could be said
    texts = torch.cat([start.expand(361, 3), pairs], 1)
    nats = [q.nats_per_word(model, text[None], 3) for text in texts]
    best = texts[int(np.argmin(nats))]
    assert q.beam_search(model, start, 3, 2, 20).tolist() == best.tolist()  # wide enough to lose nothing
    assert min(nats) <= q.nats_per_word(model, q.beam_search(model, start, 3, 2, 1)[None], 3)
    log_probs = [model(best[None, i : i + 3]).log_softmax(-1)[0, best[i + 3]].item() for i in (0, 1)]
    assert min(nats) == pytest.approx(-np.mean(log_probs), rel=1e-5)
    assert 0 not in q.beam_search(model, start, 3, 30, 4)[3:]
    assert np.isfinite(q.nats_per_word(model, torch.tensor([[4, 9, 2, 0, 0]]), 3))  # people say unknown words
    assert q.repeated(torch.tensor([1, 2, 3, 4, 5, 6])) == 0
    assert q.repeated(torch.tensor([1, 2, 1, 2, 1, 2, 1])) == 0.5  # 1 2 1 2, 2 1 2 1, and both again


def test_14_roofline():
    import time

    q = load_beside(14, "roofline")
    a, b = np.random.default_rng(0).normal(size=(2, 12, 12))
    for function in (q.loops, q.dots, q.outers):
        np.testing.assert_allclose(function(a, b), a @ b, atol=1e-12)

    class Later:  # what JAX returns at once, and has computed some time after
        def block_until_ready(self):
            begin = time.process_time()
            while time.process_time() - begin < 0.01:
                pass

    assert q.seconds_of(Later, least=0) >= 0.01
    _, flops, moved = q.steps(np.random.default_rng(0), (8,))[8]
    shapes = [(14, 5, 1, 32)] + [(14, 3, 32, 32)] * 2 + [(7, 3, 32, 64), (7, 3, 64, 64), (7, 1, 32, 64)]
    forward = sum(2 * side**2 * k**2 * c * d for side, k, c, d in shapes) * 8
    assert 2.4 * forward < flops < 3.6 * forward  # backward costs twice as much; zeros of the padding do not count
    assert moved > 4 * 8 * 784


def test_17_pieces(tmp_path):
    q = load_beside(17, "pieces")
    torch.manual_seed(0)
    ex = q.ex17.Config(vocab_size=50, layers=1, channels=16, heads=2, block_size=8)
    model = q.ex17.Transformer(ex, 50)
    x, full, cut = q.make_data(q.Config(), ex)
    assert torch.equal(x[:, 1:], full[:, :-1])
    assert ((cut == full) | (cut == -1)).all()
    lengths = (cut >= 0).sum(1)
    assert ((cut >= 0).long().argmin(1) % 8 == lengths % 8).all()  # scored from the first on, then no more
    for y in (full, cut):
        scored = y >= 0
        model.zero_grad()
        q.ex17.loss_fn(model(x)[scored], y[scored]).backward()
        truth = torch.cat([param.grad.flatten() for param in model.parameters()])
        parts = [q.gradient(model, x, y, pieces, weighted) for pieces, weighted in ((1, False), (8, True), (8, False))]
        torch.testing.assert_close(parts[0], truth, rtol=0, atol=1e-6)
        torch.testing.assert_close(parts[1], truth, rtol=0, atol=1e-6)
        assert torch.allclose(parts[2], truth, rtol=0, atol=1e-6) == (y is full)


def test_10_transfer(mnist):
    q = load_beside(10, "transfer")
    config = q.Config(channels=8, steps_before=300, steps=60)
    people, theirs = q.make_people(config)
    assert people.shape == (1797, 28, 28)
    inked = (people > people.min() + 1e-6).any(0)
    assert inked.sum() == inked[4:24, 4:24].sum() > 300
    x, y, _, _ = q.ex10.make_data(config)
    assert (people.min(), people.max()) == (x.min(), x.max())

    net = q.fit(*q.new(config, 0), x, y, config.steps_before, config)
    head = net[0]["head"]
    logits = q.features(*net, people[:9]) @ head["w"] + head["b"]
    np.testing.assert_allclose(logits, q.ex10.forward(*net, people[:9])[0], atol=1e-4)
    rng = np.random.default_rng(0)
    found, classes = rng.normal(size=(30, 16)).astype(np.float32), rng.integers(10, size=30)
    learnt = q.fit_head(head, found, classes)
    assert ((found @ learnt["w"] + learnt["b"]).argmax(1) == classes).mean() > 0.95  # more features than it needs

    wrong = q.fit(*q.new(config, 0), x, rng.permutation(y), config.steps_before, config)
    parts = people[:900], theirs[:900], people[900:], theirs[900:]
    right, shuffled = (q.compare(before, *parts, config, labels=(5,)) for before in (net, wrong))
    assert right["scratch"] == shuffled["scratch"]
    for kind in ("tuned", "frozen"):  # what has learnt nothing of the digits helps nobody
        assert right[kind][5] > right["scratch"][5] + 20
        assert shuffled[kind][5] < right["scratch"][5] + 10


def test_11_recurrent(tmp_path, monkeypatch):
    q, nn = load_beside(11, "recurrent"), torch.nn
    torch.manual_seed(0)
    x = torch.randn(3, 7, 5, requires_grad=True)
    for ours, theirs in ((q.rnn, nn.RNN(5, 6, batch_first=True)), (q.lstm, nn.LSTM(5, 6, batch_first=True))):
        w_x, w_h, b_x, b_h = theirs.parameters()
        slope = torch.randn(3, 7, 6)
        for mine, true in zip(
            (y := ours(x, w_x, w_h, b_x + b_h), *torch.autograd.grad(y, (x, w_x, w_h, b_x), slope)),
            (y := theirs(x)[0], *torch.autograd.grad(y, (x, w_x, w_h, b_x), slope)),
        ):
            torch.testing.assert_close(mine, true, rtol=0, atol=1e-6)
    train, test = torch.arange(100), torch.arange(100, 150)
    for size, n in ((32, 16), (5, 1)):
        blocks = q.windows(train, test, size, n)
        scored = blocks[:, -n:].flatten()
        assert scored[scored >= 0].tolist() == test.tolist()
        assert (blocks[:-1].diff() == 1).all()
    x, y = q.ex11.make_data(q.ex11.Config(), train, test, "cpu")[2:]
    assert torch.equal(blocks, torch.cat([x, y[:, None]], 1))  # exercise 11's contexts, and its score
    model = q.ex11.MLP(q.ex11.Config(), 150)
    assert q.evaluate(model, blocks, 1) == pytest.approx(q.ex11.evaluate(model, x, y)["loss"], rel=1e-5)

    rng = np.random.default_rng(0)
    name, words = rng.integers(1, 5, (2_000, 1)), rng.integers(5, 9, (2_000, 6))
    lines = np.concatenate([0 * name, name, words, name], 1)  # after six words the name again, and the line ends
    text = torch.from_numpy(lines).flatten()
    monkeypatch.setattr(q.ex11, "read_tokens", lambda config: (text[:-900], text[-900:], [*"\nABCDwxyz"]))
    config = q.Config(seconds=1.5, out=tmp_path)
    assert q.main(config)["lstm_minus_ffn"] < -0.05
    shut = torch.zeros(4 * 256)
    shut[256:512] = -50  # a forget gate that never opens; and no state is carried on, which would remember, too
    lstm = q.lstm
    monkeypatch.setattr(q, "lstm", lambda x, w_x, w_h, b, *gates: lstm(x, w_x, 0 * w_h, b + shut, *gates))
    assert q.main(config)["lstm_minus_ffn"] > 0


def test_13_order(monkeypatch):
    q = load_beside(13, "order")
    torch.manual_seed(0)
    layer = q.new_network("rotary", 30).blocks[0].attention.qkv
    x = torch.randn(1, 1, 64).expand(1, 20, 64)  # the same token at 20 places

    def scores():
        queries, keys, _ = layer(x * 10).unflatten(-1, (3, q.A, -1)).unbind(2)  # each (1, T, A, D)
        return torch.einsum("btad,bsad->ats", queries, keys)  # (A, T, T)

    def by_distance_alone():
        return torch.allclose(scores()[:, 3:, 3:], scores()[:, :-3, :-3], rtol=0, atol=1e-5)

    assert by_distance_alone()
    assert not torch.allclose(scores()[:, 0, 0], scores()[:, 0, 5], rtol=0, atol=1e-2)  # but they do depend on it
    turn, which = q.turn, itertools.cycle((True, False))
    monkeypatch.setattr(q, "turn", lambda x: turn(x) if next(which) else x)
    assert not by_distance_alone()  # keys that are not turned
    monkeypatch.setattr(q, "turn", turn)
    table = q.waves(64, 16)
    for t, i in ((0, 0), (5, 3), (63, 7)):
        assert table[t, [i, i + 8]].tolist() == pytest.approx(
            [f(t / 10_000 ** (i / 8)) for f in (np.sin, np.cos)], abs=1e-5
        )

    tokens = torch.randint(30, (1, 32))
    other = torch.cat([tokens[:, torch.randperm(31)], tokens[:, 31:]], 1)  # the last one stays

    def order_counts(kind, layers=2):
        model = q.new_network(kind, 30)
        model.blocks = model.blocks[:layers]
        for param in model.parameters():
            param.data *= 5  # surer than a new network
        return not torch.allclose(model(tokens)[0, -1], model(other)[0, -1], rtol=0, atol=1e-5)

    assert [order_counts(kind) for kind in q.KINDS] == [True] * 4  # without places by the causal mask
    assert not order_counts("none", 1)  # of which a second layer makes something
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "masked_fill", lambda scores, *_: scores)
        assert [order_counts(kind) for kind in q.KINDS] == [False, True, True, True]

    text = torch.randint(8, (4_000, 4)).repeat(1, 2).flatten()  # four random letters, twice
    config = q.Config(steps=120)

    def rotary_minus_none():
        losses = [q.by_place(q.train(kind, text[:-2_000], 8, config), text[-2_000:]) for kind in ("rotary", "none")]
        return (losses[0] - losses[1])[16:32].mean().item()

    assert rotary_minus_none() < -0.05
    monkeypatch.setattr(q, "turn", lambda x: x)
    assert rotary_minus_none() == pytest.approx(0, abs=1e-5)


def test_13_heads():
    q, copying = load_beside(13, "heads"), load_beside(13, "copying")
    text = "he said the end\nis near, my dear"
    tokens = torch.tensor([[ord(char) for char in text]])  # (1, T)
    masks = q.patterns(tokens, torch.tensor([ord(" "), ord("\n")]))[:, 0]  # (6, T, T)
    for t, char in enumerate(text):
        same = [s for s in range(t) if text[s] == char]
        spaces = [s for s in range(t) if text[s] in " \n"]
        targets = [t - 1], [t - 2], [0] if t else [], same, [s + 1 for s in same if s + 1 < t], spaces[-1:]
        assert [mask[t].nonzero().flatten().tolist() for mask in masks] == [[s for s in n if s >= 0] for n in targets]
    model = q.ex13.Transformer(q.ex13.Config(layers=1, heads=1, channels=8, dropout=0), 128)
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight.zero_()  # looks at all alike
    looks = q.looks(model, tokens, torch.tensor([32]))[0, 0]  # (6,)
    assert looks[0].item() == pytest.approx(100 * np.mean([1 / (t + 1) for t in range(1, 32)]), rel=1e-5)
    assert looks[1].item() == pytest.approx(100 * np.mean([1 / (t + 1) for t in range(2, 32)]), rel=1e-5)

    torch.manual_seed(0)
    tokens, known = copying.repeats(50)
    assert 0.2 < known.double().mean() < 0.7
    for row, can in zip(tokens.tolist(), known.tolist()):
        for t in range(32):
            before = row[:t].index(row[t]) if row[t] in row[:t] else None
            assert can[t] == (before is not None)
            assert not can[t] or row[before + 1] == row[t + 1]
    config = q.Config(steps=350, learning_rate=0.01, batch_size=32)
    model, curve = copying.learn_to_copy(2, config)
    assert curve[350] > 90
    before = q.looks(model, tokens[:, :-1], torch.tensor([-1]))[0, :, 0].argmax()
    model.blocks[0].attention.out.weight.data[:, 16 * before : 16 * before + 16] = 0
    assert copying.copied(model) < 50
    assert copying.learn_to_copy(1, config)[1][350] < 20


def test_17_batch_size(mnist):
    q = load_beside(17, "batch_size")
    torch.manual_seed(0)
    mean, spread = 0.05 * torch.randn(400), 0.5 + torch.rand(400)  # of the gradients of single images
    truth = (spread.square().sum() / mean.square().sum()).item()
    found, naive = [], []
    for _ in range(50):
        gradients = mean + spread * torch.randn(32, 400) / 8**0.5  # of 32 batches of 8
        found.append(q.noise_scale(gradients, 8))
        naive.append((8 * gradients.var(0).sum() / gradients.mean(0).square().sum()).item())
    assert np.median(found) == pytest.approx(truth, rel=0.1)
    assert np.median(naive) < 0.5 * truth  # |G|² of a sample is too large, by its noise
    sizes = np.array([8, 64, 512])
    assert q.fit(sizes, 50 * (1 + 80 / sizes)) == pytest.approx((50, 80))

    config = q.Config(target=0.4, starts=1)
    sets = q.make_data(config)
    q.SIZES = np.array([16, 128, 1024])
    tuned = [q.tune(config, sets, size, 0.05) for size in q.SIZES]
    _, critical = q.fit(q.SIZES, np.array([steps for steps, _ in tuned]))
    scales = q.measure_noise(config, sets, tuned[-1][1])[1]
    assert 1 / 3 < critical / scales.mean() < 3
    alike = [list(q.run(config, sets, size, 0.05, 0))[-1][0] for size in q.SIZES]  # one learning rate for all of them
    assert q.fit(q.SIZES, np.array(alike))[1] / scales.mean() < 1 / 3


def test_16_scaling(shakespeare, tmp_path):
    from torch.utils.flop_counter import FlopCounterMode

    q = load_beside(16, "scaling")
    ex = q.ex16.Config(layers=2, channels=32, batch_size=4)
    x, y = torch.randint(65, (500, 64)), torch.randint(65, (500, 64))
    plain = torch.nn.attention.SDPBackend.MATH  # of which torch knows how much it computes
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(plain):
        q.train(ex, x, y, 65, 1e9)
    assert counter.get_total_flops() == pytest.approx(1e9, rel=0.04)  # it spends what it was given
    budgets = np.array([1e9, 1e10, 1e11])
    assert q.power_law(budgets, 7 / budgets**0.08) == pytest.approx((7, 0.08))
    q.WIDTHS, q.BUDGETS = (16, 64), (1e9, 3e9, 9e9)
    right = q.main(q.Config(out=tmp_path))
    assert right["exponent"] > 0.06
    assert right["off_the_law"] < 0.05
    assert q.main(q.Config(out=tmp_path, rate_times_width=0.001))["exponent"] < 0.06  # it does not learn


def test_16_tokens(shakespeare, tmp_path):
    q = load_beside(16, "tokens")
    rare, alphabet = ["ax", "bay"], "abxy"
    end = q.spell([""], rare, alphabet)
    chances = [np.exp(end - q.spell([char], rare, alphabet)) for char in alphabet]
    assert sum(chances) + np.exp(-end) == pytest.approx(1)  # a spelling is one of all that there could be
    assert chances[0] == pytest.approx(3 / 12)
    training, new = shakespeare[:100_000], shakespeare[-20_000:]
    before, after, vocab, nats = q.cut(training, new)
    assert set(before) == set(vocab)
    words = q.bpe.CHUNK.findall(new)
    unknown = [word for word, token in zip(words, after, strict=True) if token == q.UNKNOWN]
    assert [token for token in after if token != q.UNKNOWN] == [word for word in words if word in vocab]
    assert nats / np.log(2) > 3 * len("".join(unknown)) > 3 * 1_000

    def zeros(ex, x, y, vocab_size, budget):
        model = train(ex, x[:500], y[:500], vocab_size, 0)
        torch.nn.init.zeros_(model.embedding.weight)  # all tokens are equally likely
        return model

    train, q.scaling.train = q.scaling.train, zeros
    even = q.main(q.Config(out=tmp_path, dry_run=True))
    text = q.ex16.data.shakespeare(dry_run=True)
    assert even["bits_of_characters"] == pytest.approx(np.log2(len(set(text))), rel=1e-5)
    before, after, vocab, nats = q.cut(text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :])
    bits = len(after) * np.log2(len(vocab)) + nats / np.log(2)
    assert even["bits_of_words"] == pytest.approx(bits / (len(text) - len(text) * 9 // 10), rel=1e-5)

    ex = q.ex16.Config(layers=2, channels=32, learning_rate=0.016, batch_size=4)
    merges, losses = q.bpe.learn(training, 500), []
    for texts in ((list(training), list(new)), q.cut(training, new, merges)[:2]):
        ids = {token: i for i, token in enumerate(sorted({*texts[0], *texts[1]}))}
        x, y, x_val, y_val = q.ex16.make_data(ex, *(torch.tensor([ids[t] for t in text]) for text in texts), "cpu")
        model = train(ex, x, y, len(ids), 4e9)
        losses.append((q.ex16.evaluate(model, x_val, y_val)["loss"] / np.log(2), len(texts[1])))
    (characters, _), (bits, count) = losses
    assert characters - bits * count / len(new) > 0.3
    assert not characters - bits > 0.3  # a token has more bits: what counts is a character's


def test_10_depth(mnist):
    import jax

    q = load_beside(10, "depth")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 14, 14)).astype(np.float32), rng.integers(10, size=16)
    for shortcuts, normed in ((False, False), (True, True)):  # the scan is exercise 10's network
        net, params = q.new(0, 3, shortcuts), q.ex10.init_params(jax.random.key(0), q.ex10.Config(1, 3, 8, shortcuts))
        logits, _ = q.ex10.forward(params, q.ex10.init_batch_stats(params), x, normed, jax.random.key(0))
        assert q.loss_of(net, x, y, normed) == pytest.approx(q.ex10.loss_fn(logits, y).item(), rel=1e-5)
    move = q.direction(rng, net)
    for ours, theirs in ((move["blocks"]["conv1"], net["blocks"]["conv1"]), (move["stem"], net["stem"])):
        for filters, own in zip(np.moveaxis(ours["w"], -1, 0), np.moveaxis(theirs["w"], -1, 0)):
            for one, other in zip(filters, own) if own.ndim == 4 else [(filters, own)]:  # those of one block
                assert np.linalg.norm(one) == pytest.approx(np.linalg.norm(other), rel=1e-5)
        assert not ours["scale"].any()
        assert not ours["bias"].any()
    np.testing.assert_allclose(q.surface(net, rng, x, y)[:, 0], q.loss_of(net, x, y, True), rtol=1e-5)
    assert q.uneven(np.array([[0, 2, 1, 3], [0, 1, 2, 3], [0, 2, 1, 3]])) == 2 / 6  # behind the first ray's ridge

    x, y, _, _ = q.ex10.make_data(q.Config())
    index = rng.integers(len(x), size=(150, 16))
    x, y = x[index].reshape(150, 16, 14, 2, 14, 2).mean((3, 5)), y[index]
    optimizer = q.ex10.make_optimizer(q.ex10.Config(steps=150, learning_rate=0.01, weight_decay=0.0))
    _, losses, norms = q.fit(q.new(0, 16, False), x, y, False, optimizer)
    assert losses[-50:].mean() > 2.29  # it does not learn
    assert norms[0] < 0.5 * norms[-1]
    _, losses, norms = q.fit(q.new(0, 16, True), x, y, False, optimizer)
    assert losses[-50:].mean() < 2.1
    np.testing.assert_allclose(norms, norms[-1], rtol=1e-4)  # every block starts as its shortcut: the same all along


def test_15_where_it_looks(tmp_path, monkeypatch):
    import types

    import jax

    q = load_beside(15, "where_it_looks")
    with pytest.raises(UserError, match=r"there is no .*: run python ex15_imagenet/train.py first"):
        q.main(q.Config(run=tmp_path))
    ex = q.ex15.Config(dummy_data=True, channels=4, size=128, steps=2)
    first, net = (
        (params, q.ex15.init_batch_stats(params))
        for params in (q.ex15.init_params(jax.random.key(seed), ex, 1000) for seed in (1, 2))
    )
    notes = {"sizes": {}, "latest": {}, "least": {}, "seconds": 0.0}
    run = types.SimpleNamespace(config=ex, out=tmp_path, state=lambda: notes)
    q.checkpoint.save_jax(run, 2, (*first, q.ex15.make_optimizer(ex).init(first[0]), net))
    images, labels, read, new = q.load_run(q.Config(run=tmp_path))
    assert images.shape == (50, 128, 128, 3)
    assert labels.tolist() == list(range(0, 100, 2))
    assert all(map(np.array_equal, *map(jax.tree.leaves, (read, net))))  # the moving average
    assert not np.array_equal(new[0]["stem"]["w"], net[0]["stem"]["w"])

    images, classes = images[:20], np.arange(20) % 7
    x = jax.numpy.asarray(q.ex15.normalise(images))
    maps, head = q.features(*net, x), net[0]["head"]
    logits, _ = q.ex15.forward(*net, x)
    np.testing.assert_allclose(maps.mean((1, 2)) @ head["w"] + head["b"], logits, atol=1e-5)
    cam = np.einsum("bhwc,cb->bhw", maps, head["w"][:, classes]) / (4 * 4)  # Zhou et al.: the head's own weights
    np.testing.assert_allclose(q.grad_cam(*net, x, classes), cam, atol=1e-5)
    hidden = x.at[:, 32:96, 64:128].set(0)
    by_hand = np.log(np.take_along_axis(jax.nn.softmax(q.ex15.forward(*net, hidden)[0]), classes[:, None], 1))[:, 0]
    np.testing.assert_allclose(q.occlusion(*net, x, classes, 64)[:, 1, 2], -by_hand, atol=1e-5)
    marked = np.random.default_rng(0).normal(size=(20, 128, 128))
    for share in (0.1, 0.4):
        left = (q.delete(x * 0 + 1, marked, share) > 0).all(-1)
        np.testing.assert_allclose(left.mean((1, 2)), 1 - share, atol=1e-3)
        assert (marked[~left].min() > np.quantile(marked, 1 - share) - 0.1) & (marked[left].max() < marked.max())

    params = jax.tree.map(np.array, net[0])  # a net made by hand that looks for a red spot, or for a blue one
    params["stem"]["w"][:] = 0
    params["stem"]["w"][..., 0, 0] = params["stem"]["w"][..., 2, 1] = 1
    for blocks in params["stages"][1:]:
        shape = blocks[0]["shortcut"]["w"].shape
        blocks[0]["shortcut"]["w"][:] = np.eye(*shape[2:])
    params["head"]["w"][:] = np.eye(*head["w"].shape)
    images[:] = (124, 116, 104)  # the mean colour
    for i, corner in enumerate(np.random.default_rng(0).integers(8, 92, size=(20, 2))):
        images[i, corner[0] : corner[0] + 28, corner[1] : corner[1] + 28, 2 * (i % 2)] = 255
    monkeypatch.setattr(q, "load_run", lambda config: (images, np.arange(20) % 2, (params, net[1]), net))
    monkeypatch.setattr(q, "occlusion", lambda *net_and_x: -cam)
    monkeypatch.setattr(q, "SHARES", (0.1, 0.2))
    right = q.main(q.Config(out=tmp_path))
    assert right["accuracy"] == 100
    assert right["grad_cam_over_patches"] > 10
    monkeypatch.setattr(q, "grad_cam", lambda *net_and_x: -cam)  # maps of something else
    assert q.main(q.Config(out=tmp_path))["grad_cam_over_patches"] < 10
