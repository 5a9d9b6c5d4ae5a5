"""Exercise 14: the fast resnet, against exercise 10 and scipy."""

import inspect
import json
import math
import time
from itertools import islice
from types import SimpleNamespace

from common import UserError, data, speed

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import tyro
from helpers import load, one_sentence, read_metrics, run

pytestmark = pytest.mark.usefixtures("without_pictures")

STILL = {"rotate": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0, "dropout": 0.0}  # no noise at all


def small(ex, **flags):
    return ex.Config(dry_run=True, **{"channels": 4, "device": "cpu"} | flags)


def bytes_and_classes(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n).astype(np.int32)


def shaken(params, seed=0):
    """Return the parameters with noise on all but the weights, so that no bias is 0 and no scale is 0 or 1."""
    rng = np.random.default_rng(seed)

    def shake(path, param):
        return param if path[-1].key == "w" else param + jnp.asarray(rng.uniform(0.05, 0.3, param.shape), param.dtype)

    return jax.tree.map_with_path(shake, params)


def new_state(ex, config):
    """Return a new model's parameters, running statistics and optimizer state."""
    params = ex.init_params(jax.random.key(0), config)
    return params, ex.init_batch_stats(params), ex.make_optimizer(config).init(params)


def assert_close(ours, theirs, tolerance):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=0, atol=tolerance), ours, theirs)


@pytest.fixture
def made_up(monkeypatch):
    """Let every run, not only a dry one, read the 1,000 made-up images."""
    sets = data.mnist(dry_run=True)
    monkeypatch.setattr(data, "mnist", lambda dry_run=False: sets)


@pytest.fixture
def scripted(made_up, monkeypatch):
    """Return exercise 14 with a program that notes index and first step of each call, and gives losses as told."""
    ex = load(14)
    ex.calls, ex.losses = [], {}

    def program(*state_and_data):
        *state, _, _, index, first, _ = state_and_data
        ex.calls.append((index, first))
        return *state, jnp.array([ex.losses.get(first + i, 1.0) for i in range(len(index))])

    program.as_text = lambda: ""  # of what XLA compiled
    monkeypatch.setattr(ex, "compile_steps", lambda config, x, y: program)
    monkeypatch.setattr(ex, "evaluate", lambda *args: {"loss": 2.0, "accuracy": 0.5})
    return ex


@pytest.mark.parametrize("training", [False, True])
def test_10_equals_14(training):
    """The same weights give the same logits and move the same statistics, in evaluation and in training."""
    ten, ex = load(10), load(14)
    config = ex.Config(channels=8, blocks=2)
    params, batch_stats = shaken(new_state(ex, config)[:2])
    images, _ = bytes_and_classes(16)
    noise = training, jax.random.key(7), 0.3
    ours, moved = ex.forward(params, batch_stats, ex.normalise(images), *noise)
    theirs, expected = ten.forward(params, batch_stats, (images / np.float32(255) - 0.1307) / 0.3081, *noise)
    assert ours.dtype == jnp.float32
    assert_close(ours, theirs, 1e-5)
    assert_close(moved, expected, 1e-5)


def test_what_stands_as_in_10():
    ten, ex = load(10), load(14)
    names = ["batches", "init_layer", "init_params", "init_batch_stats", "conv_norm", "residual_block"]
    for name in [*names, "loss_fn", "make_optimizer"]:
        assert inspect.getsource(getattr(ex, name)) == inspect.getsource(getattr(ten, name))
    sources = [inspect.getsource(module.train_step.__wrapped__) for module in (ex, ten)]
    assert sources[0] == sources[1]


def test_run_without_noise_equals_that_of_10(made_up, tmp_path):
    """Also the order of the data, the initial weights and the evaluations are 10's."""
    ten, ex = load(10), load(14)
    for number, module in ((10, ten), (14, ex)):
        flags = STILL if number == 14 else {"dropout": 0.0}
        module.main(module.Config(channels=4, steps=3, eval_every=2, out=tmp_path / str(number), device="cpu", **flags))
    ours, theirs = read_metrics(tmp_path / "14"), read_metrics(tmp_path / "10")
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-5)


def test_scanned_steps_equal_single_ones_and_a_loop_of_train_step():
    ten, ex = load(10), load(14)
    config = small(ex, dropout=0.3)
    x, y, _, _ = ex.make_data(config)
    key = jax.random.key(5)
    optimizer = ex.make_optimizer(config)
    index = np.stack(list(islice(ex.batches(np.random.default_rng(0), len(x), 32), 3)))  # (3, B)
    results = {}
    for per_call in (1, 3):
        program = jax.jit(lambda *args: ex.train_steps(config, optimizer, *args))
        state, losses = new_state(ex, config), []
        for first in range(0, 3, per_call):
            *state, new = program(*state, x, y, index[first : first + per_call], first, key)
            assert new.shape == (per_call,)
            losses += new.tolist()
        results[per_call] = losses, state[:2]
    state, losses = new_state(ten, config), []
    for step in range(3):
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, step))
        images = ex.normalise(ex.augment(augment_key, x[index[step]], config))
        *state, loss = ten.train_step(*state, images, y[index[step]], optimizer, dropout_key, config.dropout)
        losses.append(loss.item())
    for per_call in (1, 3):
        assert results[per_call][0] == pytest.approx(losses, abs=1e-5)
        assert_close(results[per_call][1], state[:2], 1e-3)  # Adam makes much of a gradient that is nearly 0


def test_program_writes_over_what_it_is_given():
    ex = load(14)
    config = small(ex, batch_size=16)
    x, y, _, _ = ex.make_data(config)
    program = ex.compile_steps(config, x, y)
    state = new_state(ex, config)
    index = np.arange(16)[None]
    *after, losses = program(*state, x, y, index, 0, jax.random.key(0))
    assert losses.shape == (1,)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, x, y)))


def test_every_image_is_used_at_most_once_an_epoch(scripted, tmp_path):
    ex, orders = scripted, []
    for seed in (0, 1):
        ex.calls.clear()
        ex.main(ex.Config(seed=seed, batch_size=300, steps=12, steps_per_call=4, out=tmp_path, device="cpu"))
        assert [first for _, first in ex.calls] == [0, 4, 8]
        orders.append(np.concatenate([index for index, _ in ex.calls]))  # (12, B): four epochs
        for epoch in orders[-1].reshape(4, 900):
            assert len(set(epoch.tolist())) == 900
            assert 0 <= epoch.min() <= epoch.max() < 1000
        expected = islice(ex.batches(np.random.default_rng(seed), 1000, 300), 12)
        np.testing.assert_array_equal(orders[-1], list(expected))
    assert (orders[0] != orders[1]).mean() > 0.9


@pytest.mark.parametrize("per_call", [1, 2, 6])
def test_every_loss_is_recorded_and_evaluations_where_asked(scripted, per_call, tmp_path):
    ex = scripted
    ex.losses = {step: 1 + step / 100 for step in range(12)}
    flags = {"batch_size": 100, "steps": 12, "eval_every": 5, "out": tmp_path, "device": "cpu"}
    ex.main(ex.Config(steps_per_call=per_call, **flags))
    series = read_metrics(tmp_path)
    assert series["train", "loss"] == pytest.approx(ex.losses)
    assert list(series["train", "loss"]) == list(range(12))
    # The first call at or behind 0, 5, 10, and the end.
    assert list(series["test", "loss"]) == {1: [0, 5, 10, 12], 2: [0, 6, 10, 12], 6: [0, 6, 12]}[per_call]
    steps = [int(row.split(",")[0]) for row in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == sorted(steps)


@pytest.mark.parametrize(("bad", "calls"), [(1, 2), (13, 3), (14, 3), (47, 4)])
def test_nan_in_the_middle_of_a_call_names_its_first_step(scripted, bad, calls, tmp_path):
    """It is seen when the next call is on its way, not later; all rows before it are kept."""
    ex = scripted
    ex.losses = {bad: math.nan, bad + 1: math.nan}
    flags = {"batch_size": 20, "steps": 48, "steps_per_call": 12, "out": tmp_path, "device": "cpu"}
    with pytest.raises(UserError, match=f"^train loss is nan at step {bad} with learning rate 0.008: lower"):
        ex.main(ex.Config(**flags))
    assert len(ex.calls) == calls
    series = read_metrics(tmp_path)
    assert list(series.get(("train", "loss"), [])) == list(range(bad))


def test_nan_is_named_before_the_evaluation_that_it_spoils(scripted, monkeypatch, tmp_path):
    ex = scripted
    ex.losses = {3: math.nan}
    monkeypatch.setattr(ex, "evaluate", lambda *args: {"loss": math.nan if len(ex.calls) else 2.0})
    flags = {"batch_size": 100, "steps": 12, "steps_per_call": 4, "eval_every": 4, "out": tmp_path, "device": "cpu"}
    with pytest.raises(UserError, match="train loss is nan at step 3"):
        ex.main(ex.Config(**flags))


def test_clock_counts_neither_evaluations_nor_compiling(scripted, monkeypatch, tmp_path):
    ex = scripted
    program = ex.compile_steps(None, None, None)
    monkeypatch.setattr(ex, "compile_steps", lambda config, x, y: time.sleep(0.7) or program)
    monkeypatch.setattr(ex, "evaluate", lambda *args: time.sleep(0.5) or {"loss": 2.0, "accuracy": 0.5})
    flags = {"batch_size": 100, "steps": 4, "eval_every": 1, "out": tmp_path, "device": "cpu"}
    metrics = ex.main(ex.Config(**flags))
    assert metrics["compile_seconds"] == pytest.approx(0.7, abs=0.3)
    assert metrics["train_seconds"] < 0.4
    assert json.loads((tmp_path / "result.json").read_text())["seconds"] > 3.2


def test_seeds(made_up, tmp_path, capsys):
    """Seeds 3 and 4 in one run are what each is alone; the history is the first one's."""
    ex = load(14)
    flags = {"channels": 2, "batch_size": 50, "steps": 3, "device": "cpu"}
    ex.main(ex.Config(seed=3, seeds=2, out=tmp_path / "both", **flags))
    output = capsys.readouterr().out.splitlines()
    assert "seed 3: test accuracy" in output[-3]
    assert "seed 4: test accuracy" in output[-2]
    assert " test_accuracy=0." in output[-1]
    assert "±" in output[-1]
    both = json.loads((tmp_path / "both" / "result.json").read_text())
    for i in range(2):
        metrics = ex.main(ex.Config(seed=3 + i, out=tmp_path / str(i), **flags))
        for name in ("test_loss", "test_accuracy"):
            assert both["finals"][name][i] == metrics[name]
        assert "finals" not in json.loads((tmp_path / str(i) / "result.json").read_text())
    for name, values in both["finals"].items():
        assert len(values) == 2
        assert both["metrics"][name] == pytest.approx(np.mean(values))
    assert both["finals"]["test_loss"][0] != both["finals"]["test_loss"][1]
    history = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("both", "0", "1")]
    assert history[0] == history[1] != history[2]


def test_affine_equals_scipy():
    ex = load(14)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 9, 14), np.uint8)  # not square: rows and columns cannot be mixed up
    matrices = np.eye(2) + 0.3 * rng.normal(size=(8, 2, 2))
    shifts = rng.uniform(-4, 4, (8, 2))
    ours = jax.jit(ex.affine)(images, jnp.asarray(matrices, jnp.float32), jnp.asarray(shifts, jnp.float32))
    centre = np.array([4.0, 6.5])
    for image, matrix, shift, moved in zip(images, matrices, shifts, ours, strict=True):
        offset = centre + shift - matrix @ centre
        oracle = scipy.ndimage.affine_transform(image.astype(float), matrix, offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(moved, oracle, atol=1e-2)  # of 255
    identity = jnp.broadcast_to(jnp.eye(2), (8, 2, 2))
    np.testing.assert_array_equal(ex.affine(images, identity, jnp.zeros((8, 2))), images)
    down = ex.affine(
        images, identity, jnp.tile(jnp.array([2.0, -1.0]), (8, 1))
    )  # reads two rows below, one to the left
    np.testing.assert_array_equal(down[:, :-2, 1:], images[:, 2:, :-1])
    assert not down[:, -2:].any()
    assert not down[:, :, 0].any()


def test_augment(monkeypatch):
    """Matrices and shifts lie within the flags, reach them, and are another for every image and key."""
    ex = load(14)
    n, key = 4000, jax.random.key(0)
    monkeypatch.setattr(ex, "affine", lambda images, matrix, shift: (np.asarray(matrix), np.asarray(shift)))

    def maps(**flags):
        return ex.augment(key, np.zeros((n, 28, 28), np.uint8), ex.Config(**STILL | flags))

    matrix, shift = maps()
    np.testing.assert_array_equal(matrix, np.broadcast_to(np.eye(2), (n, 2, 2)))
    assert not shift.any()
    matrix, _ = maps(rotate=10.0)
    np.testing.assert_allclose(matrix @ matrix.transpose(0, 2, 1), np.broadcast_to(np.eye(2), (n, 2, 2)), atol=1e-6)
    angles = np.degrees(np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0]))
    assert -10 <= angles.min() < -9.9
    assert 9.9 < angles.max() <= 10.0001
    assert np.linalg.det(maps(scale=0.2)[0]) == pytest.approx(maps(scale=0.2)[0][:, 0, 0] ** 2, rel=1e-5)
    assert 0.8 <= maps(scale=0.2)[0][:, 0, 0].min() < 0.81 < 1.19 < maps(scale=0.2)[0][:, 0, 0].max() <= 1.2001
    sheared, _ = maps(shear=0.3)
    assert -0.3 <= sheared[:, 1, 0].min() < -0.29 < 0.29 < sheared[:, 1, 0].max() <= 0.3001
    np.testing.assert_array_equal(sheared[:, [0, 0, 1], [0, 1, 1]], np.broadcast_to([1, 0, 1], (n, 3)))
    turned, _ = maps(rotate=90.0, shear=0.3)
    np.testing.assert_allclose(np.linalg.det(turned), 1, atol=1e-5)  # neither changes the size of what is drawn
    _, shift = maps(shift=3.0)
    assert (shift.min(0) < -2.9).all()
    assert (shift.max(0) > 2.9).all()
    assert (abs(shift) <= 3).all()
    draws = np.concatenate([part.reshape(n, -1) for part in maps(rotate=10.0, scale=0.1, shear=0.1, shift=2.0)], 1)
    assert len(np.unique(draws, axis=0)) == n
    assert abs(np.corrcoef(draws[:, 4], draws[:, 5])[0, 1]) < 0.1
    others = ex.augment(jax.random.key(1), np.zeros((n, 28, 28), np.uint8), ex.Config())
    assert (others[1] != draws[:, 4:]).all()


def test_test_set_is_not_augmented():
    ex = load(14)
    model = shaken(new_state(ex, ex.Config(channels=4))[:2])
    images, y = bytes_and_classes(8)
    logits, _ = ex.forward(*model, (images / np.float32(255) - 0.1307) / 0.3081)
    expected = {"loss": float(ex.loss_fn(logits, y)), "accuracy": float((np.asarray(logits).argmax(1) == y).mean())}
    assert ex.evaluate(*model, images, y) == pytest.approx(expected, abs=1e-5)


def test_bfloat16():
    """Convolutions in bfloat16; logits, parameters, running statistics, gradients and updates stay in float32."""
    ex = load(14)
    config = small(ex, precision="bfloat16")
    params, batch_stats = shaken(new_state(ex, config)[:2])
    images, y = bytes_and_classes(64)
    key = jax.random.key(0)
    exact, moved = ex.forward(params, batch_stats, ex.normalise(images), True, key, 0.0)
    rough, also_moved = ex.forward(params, batch_stats, ex.normalise(images, "bfloat16"), True, key, 0.0)
    assert {leaf.dtype for leaf in jax.tree.leaves((rough, also_moved))} == {np.dtype("float32")}
    assert 0 < abs(exact - rough).max() < 0.05 * abs(exact).max()
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=0.02, atol=0.02), moved, also_moved)
    pooled = params | {"head": {"w": jnp.eye(8, 10), "b": jnp.zeros(10)}}  # whose logits are the features themselves
    features, _ = ex.forward(pooled, batch_stats, ex.normalise(images, "bfloat16"))
    assert (features != features.astype("bfloat16")).mean() > 0.5  # their means, too, are taken in float32
    optimizer = ex.make_optimizer(config)
    index = np.arange(64).reshape(1, 64)
    state = (params, batch_stats, optimizer.init(params), images, y, index, 0, key)
    for precision, there in (("float32", False), ("bfloat16", True)):
        config.precision = precision
        program = str(jax.make_jaxpr(lambda *args: ex.train_steps(config, optimizer, *args))(*state))
        convolutions = [line for line in program.splitlines() if "= conv_general_dilated[" in line]
        assert convolutions
        assert all((":bf16[" in line) == there for line in convolutions)
    *after, opt_state, losses = jax.eval_shape(lambda *args: ex.train_steps(config, optimizer, *args), *state)
    assert {leaf.dtype for leaf in jax.tree.leaves((after, opt_state[0].mu, losses))} == {np.dtype("float32")}


def test_presets(monkeypatch):
    ex = load(14)
    assert ex.preset(ex.Config(device="cpu")) == ex.Config()
    monkeypatch.setattr(ex, "jax_device", lambda name: SimpleNamespace(platform="gpu"))
    gpu = ex.preset(ex.Config())
    assert gpu.steps % gpu.steps_per_call == 0
    assert gpu.steps_per_call * gpu.batch_size == 60_000  # an epoch
    assert (gpu.precision, gpu.out) == ("bfloat16", ex.Config().out)
    config = tyro.cli(ex.Config, default=gpu, args=["--batch-size", "50", "--precision", "float32"])
    assert (config.batch_size, config.precision, config.learning_rate) == (50, "float32", gpu.learning_rate)
    for capability, precision in {"7.5": "float32", "8.9": "bfloat16", "gfx942": "bfloat16"}.items():
        card = SimpleNamespace(platform="gpu", compute_capability=capability)
        monkeypatch.setattr(ex, "jax_device", lambda name, card=card: card)
        assert ex.preset(ex.Config()).precision == precision
    dry = tyro.cli(ex.Config, default=gpu, args=["--dry-run"])
    assert (dry.steps, dry.steps_per_call) == (3, 3)
    assert dry.batch_size <= 1000  # of the made-up images


def test_short_run_learns(mnist, tmp_path):
    ex = load(14)
    flags = {"channels": 8, "steps": 400, "eval_every": 400, "device": "cpu"}
    metrics = ex.main(ex.Config(out=tmp_path, **flags))
    assert metrics["test_accuracy"] > 0.8
    series = read_metrics(tmp_path)
    assert series["train", "loss"][0] == pytest.approx(math.log(10), abs=0.2)
    assert series["test", "loss"][0] == pytest.approx(math.log(10), abs=0.05)
    assert series["test", "accuracy"][400] == metrics["test_accuracy"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--steps", 100, "--steps-per-call", 30), "--steps 100 must be a multiple of --steps-per-call 30"),
        (("--seeds", 0), "--seeds must be above 0"),
        (("--steps-per-call", 0), "--steps-per-call must be above 0"),
        (("--rotate", 181), "--rotate must be at least 0 and at most 1.8e+02, not 181"),
        (("--scale", 1), "--scale must be at least 0 and at most 0.9"),
        (("--shift", -1), "--shift must be at least 0"),
        (("--precision", "float16"), "--precision"),
        (("--dry-run", "--device", "cuda"), "--device cuda: JAX finds no such device on this machine"),
    ],
)
def test_bad_flags(flags, words, tmp_path, request):
    if "cuda" in flags and any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this machine has a GPU for JAX")
    if "--steps" in flags:
        request.getfixturevalue("mnist")
    one_sentence(run(14, *flags, "--out", tmp_path), words)


def test_dry_run_of_a_call_of_many_steps(tmp_path):
    result = run(14, "--dry-run", "--channels", 4, "--steps-per-call", 60, "--seeds", 2, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "128 images per step, 3 steps per call, float32" in result.stdout
    assert list(read_metrics(tmp_path / "dry_run")["train", "loss"]) == [0, 1, 2]


def test_convolutions_of_a_compiled_program():
    """On a GPU they are calls of cuDNN; what a T4's program really computes in is seen."""
    image, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    program = jax.jit(lambda x, w: load(14).conv(x, w, 1)).lower(image, kernel).compile()
    assert speed.convolutions(program) == "float32"
    line = '  %a.1 = ({}[5,14]{{1,0}}, u8[9]{{0}}) custom-call(%b), custom_call_target="__cudnn$convForward"'
    for formats, said in ((["bf16"], "bfloat16"), (["f32", "f32"], "float32"), ([], "an unknown format")):
        text = "\n".join(map(line.format, formats)) + "\n  %c = bf16[5] add(%a, %b)"
        assert speed.convolutions(SimpleNamespace(as_text=lambda text=text: text)) == said
