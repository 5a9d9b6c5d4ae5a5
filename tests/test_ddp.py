"""Exercise 17: the same losses as exercise 16's, whatever the number of processes and whoever of them dies."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path

from common import UserError, checkpoint, distributed
from common import openwebtext as owt
from common.record import Run

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import cut_off, load, load_beside, one_sentence, read_metrics, run, train_py

pytestmark = pytest.mark.usefixtures("without_pictures")

SMALL = {"block_size": 16, "channels": 16, "layers": 2, "heads": 2, "batch_size": 8, "max_new_tokens": 3}
SMALL |= {
    "device": "cpu",
    "precision": "float32",
    "compile": False,
    "learning_rate": 0.002,
    "warmup_steps": 5,
    "decay_to": 0.1,
    "val_share": 0.002,
    "micro_batch": 2,
}
FLAGS = []
for name, value in SMALL.items():
    flag = name.replace("_", "-")
    FLAGS += [f"--no-{flag}"] if value is False else [f"--{flag}", value]
STEPS, EVERY = 50, 10  # of the runs with two processes


@pytest.fixture
def ex():
    return load(17)


@pytest.fixture
def tokens(monkeypatch):
    """Let the exercise read 3,000 made-up tokens, of which the last 400 are for validation."""
    words = np.random.default_rng(0).integers(0, 300, 3_000).astype(np.uint16)
    monkeypatch.setattr(owt, "read", lambda *args: (words[:2_600], words[2_600:], owt.encoding(dry_run=True)))


def train(ex, out, **fields):
    return ex.main(ex.Config(out=out, **SMALL | fields))


def losses(out, split="train"):
    return list(read_metrics(out)[split, "loss"].values())


# torchrun


def torchrun(processes, *flags, during=None, limit=300, restarts=0, where=("--standalone",)):
    """Run the exercise under torchrun; `during` is called with torchrun's process. Nothing of it outlives the test.

    The first variable is explained in common/distributed.py; the second torchrun sets by itself for several processes.
    """
    command = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc-per-node={processes}"]
    command += [f"--max-restarts={restarts}", "--monitor-interval=0.1", train_py(17), *flags]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    options["env"] = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([str(part) for part in command], **options)
    try:
        if during:
            during(process)
        output, _ = process.communicate(timeout=limit)
        return subprocess.CompletedProcess(command, process.returncode, output, "")
    finally:
        for pid in [*workers(process), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def has_row(out, step):
    return (out / "metrics.csv").exists() and f"\n{step},train".encode() in (out / "metrics.csv").read_bytes()


def workers(process):
    """Return the ids of the processes that torchrun has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if status.read_text().rpartition(")")[2].split()[1] == str(process.pid):
                found.append(int(status.parent.name))
    return sorted(found)


def wait_for(condition, limit=120):
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def step_of(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)["step"]


def flags_of(out, data, *more):
    return [*FLAGS, "--data", data, "--steps", STEPS, "--eval-every", EVERY, "--out", out, *more]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Hold the folder of a run with two processes, which the first test that needs it makes."""
    return tmp_path_factory.mktemp("two") / "out"


@pytest.fixture
def two_processes(two, openwebtext):
    """Return the folder of an unbroken run with two processes; beside it, as "cut", what it was after some steps."""

    def keep(process):
        wait_for(lambda: (two / "checkpoint.pt").exists() and step_of(two) >= EVERY)
        shutil.copytree(two, two.parent / "cut", ignore=lambda *_: [".lock"])

    if not two.exists():
        result = torchrun(2, *flags_of(two, openwebtext), during=keep)
        assert result.returncode == 0, result.stdout
        assert "tokens per step: 128 = 8 sequences x 16; 2 processes in 2 micro-steps of at most 2" in result.stdout
        assert result.stdout.count("result: ") == result.stdout.count("data: ") == 1  # one of them speaks
    return two


def test_one_process_equals_two(ex, openwebtext, two_processes, tmp_path):
    train(ex, tmp_path, data=openwebtext, steps=STEPS, eval_every=EVERY)
    for split in ("train", "validation"):
        assert losses(two_processes, split) == pytest.approx(losses(tmp_path, split), abs=1e-5)
    assert len(losses(tmp_path)) == STEPS
    assert losses(tmp_path)[-1] < losses(tmp_path)[0] - 0.3  # it has learned something meanwhile
    accuracy = [read_metrics(out)["validation", "accuracy"] for out in (two_processes, tmp_path)]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=1e-4)


def test_compiled_and_in_parts_on_two_processes(ex, openwebtext, tmp_path):
    """As on GPUs: DistributedDataParallel around a compiled model (without a C++ compiler, around a plain one).

    Of one layer: each more is only compiled longer.
    """
    result = torchrun(2, *flags_of(tmp_path / "two", openwebtext, "--compile", "--steps", 6, "--layers", 1))
    assert result.returncode == 0, result.stdout
    assert ("not compiled" in result.stdout) == (shutil.which("g++") is None)
    train(ex, tmp_path / "one", data=openwebtext, steps=6, eval_every=EVERY, layers=1)
    for split in ("train", "validation"):
        assert losses(tmp_path / "two", split) == pytest.approx(losses(tmp_path / "one", split), abs=1e-4)


def test_resume_with_another_number_of_processes(ex, openwebtext, two_processes, tmp_path):
    shutil.copytree(two_processes.parent / "cut", tmp_path / "out")
    assert EVERY <= step_of(tmp_path / "out") < STEPS
    train(ex, tmp_path / "out", data=openwebtext, steps=STEPS, eval_every=EVERY, resume="yes")
    assert losses(tmp_path / "out") == pytest.approx(losses(two_processes), abs=1e-5)


def test_killed_worker(openwebtext, two_processes, tmp_path):
    """torchrun starts both again, from the last checkpoint, and nobody can tell it from the files."""
    killed = []

    def kill(process):
        wait_for(lambda: has_row(tmp_path, 15))
        killed.append(workers(process)[-1])
        os.kill(killed[0], signal.SIGKILL)

    result = torchrun(2, *flags_of(tmp_path, openwebtext), during=kill, restarts=1)
    assert result.returncode == 0, result.stdout
    assert killed
    assert result.stdout.count("--- step 0\n") == 1  # it did not begin anew
    for name in ("metrics.csv", "samples.txt"):
        assert (tmp_path / name).read_bytes() == (two_processes / name).read_bytes()


@pytest.mark.parametrize("whom", ["torchrun", "one worker"])
def test_sigterm(openwebtext, two_processes, tmp_path, whom):
    """Both processes save after the same step and end with 143; whoever goes on leaves the unbroken run's files.

    Going on is tried once: whoever had the signal, the checkpoint and the files before it are those of these steps.
    """

    def terminate(process):
        wait_for(lambda: has_row(tmp_path, 13))
        os.kill(process.pid if whom == "torchrun" else workers(process)[-1], signal.SIGTERM)

    result = torchrun(2, *flags_of(tmp_path, openwebtext), during=terminate)
    assert result.returncode != 0
    assert result.stdout.count("ended by SIGTERM: what was recorded so far is in") == 1  # by one of them
    if whom != "torchrun":  # which else reports its own end alone
        assert result.stdout.count("exitcode  : 143") >= 1
    step = step_of(tmp_path)
    assert 14 <= step < STEPS
    assert list(read_metrics(tmp_path)["train", "loss"]) == list(range(step))
    for name in ("metrics.csv", "samples.txt"):
        assert (two_processes / name).read_bytes().startswith((tmp_path / name).read_bytes())
    if whom == "torchrun":
        return
    assert torchrun(2, *flags_of(tmp_path, openwebtext), "--resume", "yes").returncode == 0
    for name in ("metrics.csv", "samples.txt"):
        assert (tmp_path / name).read_bytes() == (two_processes / name).read_bytes()


def test_killed_on_one_of_two_hosts(openwebtext, two_processes, tmp_path):
    """Each of two torchruns counts its own failures, so the numbers of restarts differ; both go on all the same."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    where = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint={address}", "--rdzv-id=a-name"]
    where += ["--local-addr=127.0.0.1"]
    hosts, results = [], []

    def start():
        options = {"during": hosts.append, "restarts": 2, "where": where}
        results.append(torchrun(1, *flags_of(tmp_path, openwebtext), **options))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_for(lambda: has_row(tmp_path, 15))
    ranks = [
        (dict(part.partition("=")[::2] for part in Path(f"/proc/{pid}/environ").read_text().split("\0"))["RANK"], pid)
        for host in hosts
        for pid in workers(host)
    ]
    os.kill(dict(ranks)["0"], signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert [result.returncode for result in results] == [0, 0], "\n".join(result.stdout for result in results)
    assert sum(result.stdout.count("--- step 0\n") for result in results) == 1
    for name in ("metrics.csv", "samples.txt"):
        assert (tmp_path / name).read_bytes() == (two_processes / name).read_bytes()


def test_others_that_do_not_come(tmp_path):
    env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    flags = ["--dry-run", *FLAGS, "--timeout", 2, "--out", tmp_path]
    result = run(17, *flags, env=os.environ | env)
    one_sentence(result, "process 1 could not connect to the others at 127.0.0.1:9 within 2 seconds", "--timeout")
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("world", "flags", "message"),
    [
        (9, [], "--batch-size 8 must be at least the number of processes, 9"),
        (1, ["--vocab-size", 256], "--vocab-size 256 must be at least GPT-2's 257 tokens"),
        (20, ["--batch-size", 20], "30000 validation tokens are too few for 20 processes"),
        (1, ["--block-size", 40_000], "30000 validation tokens are too few for 1 processes"),
    ],
)
def test_processes_that_do_not_fit(world, flags, message, tmp_path):
    env = os.environ | {"RANK": "0", "WORLD_SIZE": str(world), "LOCAL_RANK": "0"}
    one_sentence(run(17, "--dry-run", *FLAGS, *flags, "--out", tmp_path, env=env), message)


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="--nproc-per-node is more than the 2 GPUs here: lower it"):
        distributed.find_place(torch.device("cuda"))
    with pytest.raises(UserError, match="--device mps works with one process only"):
        distributed.find_place(torch.device("mps"))


def test_checkpoint_that_one_host_does_not_see(monkeypatch, tmp_path):
    distributed.check_same_step(5, tmp_path)  # one process agrees with itself
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for other, refused in ((5, contextlib.nullcontext()), (0, pytest.raises(UserError, match="find different"))):

        def gather(found, mine, other=other):
            found[:] = [mine, other]

        monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
        with refused:
            distributed.check_same_step(5, tmp_path)


# Exercise 16


def test_16_equals_17(ex, tokens, monkeypatch, tmp_path):
    """The same initial weights, batches and losses, where text, vocabulary and optimizer are the same."""
    old = load(16)
    words, val = (torch.from_numpy(part.astype(np.int64)) for part in owt.read()[:2])
    monkeypatch.setattr(old, "read_tokens", lambda config: (words, val, [chr(i) for i in range(300)]))
    fields = {name: value for name, value in SMALL.items() if name not in ("val_share", "micro_batch")}
    fields |= {"steps": 30, "eval_every": 10, "beta2": 0.99}
    old.main(old.Config(out=tmp_path / "16", prompt="a", **fields))
    ex.main(ex.Config(out=tmp_path / "17", prompt="a", micro_batch=8, vocab_size=300, **fields))
    for split in ("train", "validation"):
        assert losses(tmp_path / "17", split) == pytest.approx(losses(tmp_path / "16", split), abs=1e-6)
    assert len(losses(tmp_path / "17")) == 30


def test_batches_are_those_of_16(ex):
    for step in (0, 5, 37):
        both = [module.batches(module.Config(), 5_000, step, "cpu") for module in (ex, load(16))]
        assert all(torch.equal(ours, theirs) for ours, theirs in islice(zip(*both), 10))


@pytest.fixture
def pretend(ex, tokens, monkeypatch):
    """Return a function that trains as one of so many processes, the others of which are not there."""

    def train_as(rank, world, out, **fields):
        monkeypatch.setattr(distributed, "find_place", lambda device: (rank, world, device))
        monkeypatch.setattr(distributed, "init_distributed", lambda *args: None)
        monkeypatch.setattr(ex.dist, "all_reduce", lambda *args, **options: None)
        monkeypatch.setattr(ex, "plot_loss", lambda *args: None)
        monkeypatch.setattr(ex, "DistributedDataParallel", lambda model: model)
        train(ex, out, vocab_size=300, **fields)

    return train_as


def test_processes_share_a_step(ex, pretend, monkeypatch, tmp_path):
    """No two see the same sample in a step, and together they see those of one."""
    seen, read_samples = {}, ex.read_samples

    def spy(config, words, starts, device):
        seen.setdefault(now, []).append(starts.tolist())
        return read_samples(config, words, starts, device)

    monkeypatch.setattr(ex, "read_samples", spy)
    for world in (1, 2, 3, 4):
        for rank in range(world):
            now = (world, rank)
            pretend(rank, world, tmp_path / f"{world}-{rank}", steps=5, eval_every=10)
        for step in range(5):
            parts = {rank: -(-len(range(rank, 8, world)) // 2) for rank in range(world)}  # of one or two samples
            shares = [np.concatenate(seen[world, rank][step * n : (step + 1) * n]) for rank, n in parts.items()]
            whole = np.concatenate(seen[1, 0][step * 4 : step * 4 + 4])
            assert sorted(np.concatenate(shares)) == sorted(whole)
            assert len(set(whole)) == 8
            assert {len(share) for share in shares} <= {8 // world, -(-8 // world)}


def test_ragged_parts_weigh_as_much_as_they_have(ex, pretend, monkeypatch, tmp_path):
    """53 samples on three processes in parts of at most 8: the mean of their gradients is that of one process."""
    grads, sizes, read_samples = [], [], ex.read_samples

    def step(self, closure=None):
        params = [param for group in self.param_groups for param in group["params"]]
        grads.append(torch.cat([param.grad.flatten() for param in params]))

    def spy(config, words, starts, device):
        sizes.append(len(starts))
        return read_samples(config, words, starts, device)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    monkeypatch.setattr(ex, "read_samples", spy)
    monkeypatch.setattr(ex, "evaluate", lambda model, x, y: {"loss": 1.0})
    fields = {"steps": 1, "batch_size": 53, "grad_clip": 0}
    pretend(0, 1, tmp_path / "at once", micro_batch=53, **fields)
    pretend(0, 1, tmp_path / "in parts", micro_batch=8, **fields)
    for rank in range(3):
        pretend(rank, 3, tmp_path / str(rank), micro_batch=8, **fields)
    assert sizes == [53, 8, 8, 8, 8, 7, 7, 7, 6, 6, 6, 6, 6, 6, 6, 6, 5]
    whole, parts, *shares = grads
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(sum(shares) / 3, whole, atol=1e-6, rtol=1e-4)


def test_processes_talk_after_the_last_part(ex, pretend, monkeypatch, tmp_path):
    """What DistributedDataParallel asks in the forward pass is true for the last part of a step alone."""
    asked, forward = [], ex.Transformer.forward

    def spy(self, words, y=None):
        if y is not None:
            asked.append(self.require_backward_grad_sync)
        return forward(self, words, y)

    monkeypatch.setattr(ex.Transformer, "forward", spy)
    pretend(0, 2, tmp_path, steps=3, micro_batch=1)
    assert asked == [False, False, False, True] * 3


@pytest.fixture
def dropped(monkeypatch):
    """Return a list that gets, for every dropout layer of every forward pass in training, which units it drops."""
    seen, forward = [], torch.nn.Dropout.forward

    def spy(self, x):
        y = forward(self, x)
        if self.training:
            seen.append((y == 0).tolist())
        return y

    monkeypatch.setattr(torch.nn.Dropout, "forward", spy)
    return seen


def test_processes_drop_other_units(pretend, dropped, tmp_path):
    """In every step each process drops units of its own; no layer, step or seed has the same ones as another."""
    for rank, seed in ((0, 0), (1, 0), (0, 1), (1, 1)):
        pretend(rank, 2, tmp_path / f"{rank}-{seed}", steps=3, eval_every=10, dropout=0.5, seed=seed)
    assert len(dropped) == 4 * 3 * 2 * 5  # runs, steps, micro-steps, layers
    assert all(one != other for one, other in combinations(dropped, 2))


@pytest.mark.parametrize("rank", [0, 1])
def test_resumed_process_drops_what_the_unbroken_one_drops(pretend, dropped, tmp_path, rank):
    """Also process 1, whose random state is in no checkpoint."""
    fields = {"eval_every": 10, "dropout": 0.5}
    pretend(rank, 2, tmp_path / "whole", steps=5, **fields)
    whole = dropped.copy()
    pretend(0, 2, tmp_path / "cut", steps=3, **fields)  # writes the checkpoint
    dropped.clear()
    pretend(rank, 2, tmp_path / "cut", steps=5, resume="yes", **fields)
    assert dropped == whole[len(whole) * 3 // 5 :]


# The model


@pytest.mark.parametrize(
    ("preset", "bias", "vocab_size", "count"),
    [
        ("gpt2", True, 50_257, 124_439_808),
        ("gpt2", False, 50_257, 124_337_664),
        ("gpt2", False, 50_304, 124_373_760),
        ("gpt2-medium", True, 50_257, 354_823_168),
        ("gpt2-large", True, 50_257, 774_030_080),
        ("gpt2-xl", True, 50_257, 1_557_611_200),
    ],
)
def test_parameters(ex, preset, bias, vocab_size, count):
    """As many as OpenAI's models have (numbers that are written down here); each step has the same tokens."""
    config = ex.Config(bias=bias, **ex.PRESETS[preset])
    with torch.device("meta"):
        model = ex.Transformer(config, vocab_size)
    layers, channels = config.layers, config.channels
    assert sum(param.numel() for param in model.parameters()) == count
    assert ex.flops_per_token(config, model) == 6 * (count - 1024 * channels) + 12 * layers * channels * 1024
    assert config.batch_size * config.block_size == 491_520
    assert channels / config.heads == 64


def test_transformers_gpt2(ex, tmp_path):
    """The logits and the loss of transformers' GPT-2 with the same random weights, which pretrained.py takes there."""
    import transformers

    torch.manual_seed(0)
    config = ex.Config(**SMALL | {"bias": True})
    ours = ex.Transformer(config, 300)
    for param in ours.parameters():
        torch.nn.init.normal_(param, std=0.3)
    load_beside(16, "pretrained").to_hugging_face(ours, None, tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    words = torch.randint(300, (3, 16))
    answer = theirs(words, labels=words)
    torch.testing.assert_close(ours(words), answer.logits, atol=1e-4, rtol=1e-4)
    assert ours(words[:, :-1], words[:, 1:]).item() == pytest.approx(answer.loss.item(), abs=1e-4)


def test_initial_loss_is_ln_v(openwebtext, tmp_path):
    result = run(17, *FLAGS, "--data", openwebtext, "--steps", 60, "--eval-every", 60, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert losses(tmp_path)[0] == pytest.approx(np.log(50_257), abs=0.1)
    val = losses(tmp_path, "validation")
    assert val[0] == pytest.approx(np.log(50_257), abs=0.1)
    assert val[1] < val[0] - 0.5
    assert "speed: " in result.stdout
    assert "  tokens/s " in result.stdout


def test_sample_draws_tokens_alone(ex):
    """Never one of the 47 ids that only round the vocabulary up, though the model may like them."""
    config = ex.Config(**SMALL | {"max_new_tokens": 50, "temperature": 5.0, "top_p": 1.0})
    model = ex.Transformer(config, 304)
    with torch.no_grad():
        model.head.weight[257:] += 10 * model.norm.weight.mean()
    words = ex.sample(model, torch.tensor([1, 2]), config, owt.encoding(dry_run=True))
    assert words.max() < 257


@pytest.mark.parametrize("muon", [False, True])
def test_betas_are_nanogpts(ex, muon):
    """For GPT-2; exercise 16 has those for Shakespeare."""
    config = ex.Config(**SMALL | {"muon": muon})
    adamw = ex.make_optimizers(config, ex.Transformer(config, 300))[0]
    assert [group["betas"] for group in adamw.param_groups] == [(0.9, 0.95)] * 2


def test_gradients_are_clipped(ex, tokens, monkeypatch, tmp_path):
    """The gradient of a whole step, not of a micro-step, is scaled to norm 1 if it is longer, and left alone if not."""
    seen = []

    def step(self, closure=None):
        grads = [param.grad for group in self.param_groups for param in group["params"]]
        seen.append(torch.cat([grad.flatten() for grad in grads]))

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    monkeypatch.setattr(ex, "evaluate", lambda model, x, y: {"loss": 1.0})
    monkeypatch.setattr(ex, "plot_loss", lambda *args: None)
    for scale in (1e3, 2e-3, 1e-3):
        monkeypatch.setattr(ex, "loss_fn", lambda logits, y, scale=scale: scale * logits.logsumexp(-1).mean())
        train(ex, tmp_path, steps=1, vocab_size=300)
    long, short, shorter = seen
    assert long.norm() == pytest.approx(1.0, rel=1e-3)
    assert 0 < shorter.norm() < short.norm() < 0.5
    torch.testing.assert_close(short, 2 * shorter, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(long, short / short.norm(), atol=1e-5, rtol=1e-3)


def test_muon(ex, tokens, tmp_path):
    config = ex.Config(**SMALL | {"muon": True})
    model = ex.Transformer(config, 300)
    adamw, muon = ex.make_optimizers(config, model)
    count = sum(len(group["params"]) for optimizer in (adamw, muon) for group in optimizer.param_groups)
    assert count == len(list(model.parameters()))
    names = {id(param): name for name, param in model.named_parameters()}
    turned = {names[id(param)] for group in muon.param_groups for param in group["params"]}
    assert turned == {name for name in names.values() if name.startswith("blocks.") and "norm" not in name}
    weight = model.blocks[0].up.weight
    before = weight.detach().clone()
    ex.loss_fn(model(torch.randint(300, (4, 16))), torch.randint(300, (4, 16))).backward()
    gradient = torch.linalg.svdvals(weight.grad)
    muon.step()
    singular = torch.linalg.svdvals(before * (1 - 0.002 * 0.1) - weight.detach())  # of the step, without decay
    assert singular.min() / singular.max() > 2 * gradient.min() / gradient.max()  # all directions about the same
    assert singular.median() / singular.max() > 0.6
    train(ex, tmp_path, steps=4, eval_every=2, muon=True)
    whole = losses(tmp_path)
    train(ex, tmp_path, steps=6, eval_every=2, muon=True, resume="yes")
    assert losses(tmp_path)[:4] == whole
    with pytest.raises(UserError, match="a model with --muon True, not False"):
        train(ex, tmp_path, steps=8, resume="yes")


@pytest.mark.parametrize("name", ["up", "down"])
def test_muon_moves_as_far_as_adamw(ex, name):
    """A fifth of the learning rate in the root of the mean square, whatever the matrix's shape (Liu et al. 2025)."""
    model = ex.Transformer(ex.Config(**SMALL | {"channels": 64}), 300)
    _, muon = ex.make_optimizers(ex.Config(**SMALL | {"muon": True, "weight_decay": 0.0}), model)
    weight = getattr(model.blocks[0], name).weight
    before = weight.detach().clone()
    ex.loss_fn(model(torch.randint(300, (4, 16))), torch.randint(300, (4, 16))).backward()
    muon.step()
    assert (weight.detach() - before).square().mean().sqrt().item() == pytest.approx(0.2 * 0.002, rel=0.3)


# Accumulation and resume


def test_accumulation(ex, tokens, tmp_path, capsys):
    """Eight samples at once, or one after the other: the same losses."""
    for parts, most, micro_batch in ((1, 8, 8), (2, 4, 7), (3, 3, 3), (4, 2, 2), (8, 1, 1)):  # 3 do not divide 8
        train(ex, tmp_path / str(micro_batch), steps=10, micro_batch=micro_batch, vocab_size=300)
        assert f"= 8 sequences x 16; 1 processes in {parts} micro-steps of at most {most}" in capsys.readouterr().out
        assert losses(tmp_path / str(micro_batch)) == pytest.approx(losses(tmp_path / "8"), abs=1e-5)


@pytest.mark.parametrize("cut", [4, 7, 11])
def test_exact_resume(ex, tokens, tmp_path, cut):
    fields = {"steps": 12, "eval_every": 4, "dropout": 0.1, "vocab_size": 300}
    train(ex, tmp_path / "whole", **fields)
    with cut_off(cut):
        train(ex, tmp_path / "cut", **fields)
    torch.manual_seed(1234)
    train(ex, tmp_path / "cut", **fields, resume="yes")
    for name in ("metrics.csv", "samples.txt"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_when_to_go_on(ex, tokens, tmp_path, monkeypatch):
    train(ex, tmp_path, steps=2)
    assert not checkpoint.should_resume("auto", tmp_path / "checkpoint.pt")
    monkeypatch.setattr(checkpoint, "RUN_ID", "a")
    assert not checkpoint.should_resume("auto", tmp_path / "checkpoint.pt")  # written without torchrun
    train(ex, tmp_path, steps=2)
    assert checkpoint.should_resume("auto", tmp_path / "checkpoint.pt")
    assert not checkpoint.should_resume("auto", tmp_path / "none.pt")  # it failed before the first checkpoint
    assert not checkpoint.should_resume("no", tmp_path / "checkpoint.pt")
    assert ex.defaults(out=tmp_path).channels == 16
    for other in ("b", "none"):  # another torchrun, which may fail before it has a checkpoint; and no name at all
        monkeypatch.setattr(checkpoint, "RUN_ID", other)
        assert not checkpoint.should_resume("auto", tmp_path / "checkpoint.pt")
        assert checkpoint.should_resume("yes", tmp_path / "checkpoint.pt")
    assert ex.defaults(out=tmp_path, device="cpu").channels == 128
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    monkeypatch.setattr(checkpoint, "RUN_ID", "a")
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.should_resume("auto", tmp_path / "checkpoint.pt")


def test_killed_while_it_writes_a_checkpoint(ex, tokens, tmp_path, monkeypatch):
    train(ex, tmp_path / "whole", steps=6, eval_every=2)
    train(ex, tmp_path, steps=2, eval_every=2)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def killed(state, name):
        Path(name).write_bytes(before[:1_000])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", killed)
        train(ex, tmp_path, steps=6, eval_every=2, resume="yes")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    train(ex, tmp_path, steps=6, eval_every=2, resume="yes")
    assert losses(tmp_path)[2:] == losses(tmp_path / "whole")[2:]


def test_checkpoint_of_another_model(ex, tokens, tmp_path):
    train(ex, tmp_path, steps=2)
    for changes in ({"layers": 3}, {"channels": 32}, {"block_size": 8}, {"bias": True}):
        name, value = next(iter(changes.items()))
        with pytest.raises(UserError, match=f"a model with --{name.replace('_', '-')} "):
            train(ex, tmp_path, **{"steps": 4, "resume": "yes"} | changes)


def test_second_run_on_one_folder(ex, tokens, tmp_path):
    with Run(ex.Config(out=tmp_path), {"ln V": 1.0}), pytest.raises(UserError, match="another run is writing to"):
        train(ex, tmp_path, steps=2)


# Flags


def test_presets(ex, monkeypatch):
    assert set(ex.PRESETS) | {"auto"} == set(ex.Preset.__args__)
    assert ex.defaults(device="cpu").preset == "laptop"
    memory = [80e9]
    monkeypatch.setattr(ex, "torch_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory[0], 80e9))
    big = ex.defaults()
    assert big.preset == "gpt2"
    assert (big.layers, big.heads, big.channels, big.block_size) == (12, 12, 768, 1024)
    assert big.batch_size * big.block_size == 491_520
    assert (big.learning_rate, big.decay_to, big.weight_decay, big.bias, big.compile) == (6e-4, 0.1, 0.1, False, True)
    assert (big.steps, big.warmup_steps, big.whole) == (600, 100, False)  # a taste, of the first file
    whole = ex.defaults(whole=True)
    assert (whole.steps, whole.warmup_steps, whole.eval_every) == (600_000, 2_000, 2_000)
    assert ex.defaults(preset="laptop", whole=True).steps == 1_000
    for gigabytes, micro_batch in {80: 32, 40: 32, 25: 16, 15: 8, 7.5: 4, 0.1: 1}.items():
        memory[0] = gigabytes * 1e9
        assert ex.defaults().micro_batch == micro_batch


@pytest.fixture
def hugging_face(tmp_path):
    """Return the folder of a tiny GPT-2 with 300 tokens, as Hugging Face has it, and the model."""
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.3)
    model.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs", model


def fine_tune(ex, out, **fields):
    """Resume what pretrained.py has written, with its flags but for some."""
    config = ex.defaults(resume="yes", out=out)
    return ex.main(replace(config, resume="yes", device="cpu", precision="float32", max_new_tokens=3, **fields))


@torch.no_grad()
def their_loss(model):
    """Return the loss of transformers' model on the made-up validation tokens, each scored once."""
    words, val, _ = owt.read()
    words = torch.from_numpy(np.concatenate([words[-1:], val]).astype(np.int64))  # (401,)
    losses = [
        F.cross_entropy(model(words[None, start : start + 16][:, : 400 - start]).logits[0], words[start + 1 :][:16])
        for start in range(0, 400, 16)
    ]
    return torch.stack(losses).mean().item()


def test_fine_tunes_gpt2(ex, tokens, hugging_face, tmp_path):
    """From transformers' weights: at step 0 its loss, then a lower one; and a model of this exercise likewise."""
    folder, theirs = hugging_face
    pretrained = load_beside(16, "pretrained")
    pretrained.main(pretrained.Config(folder, save=tmp_path / "first" / "checkpoint.pt"))
    fields = {"steps": 20, "eval_every": 10, "batch_size": 8, "learning_rate": 0.01, "warmup_steps": 1}
    fine_tune(ex, tmp_path / "first", **fields)
    val = losses(tmp_path / "first", "validation")
    assert val[0] == pytest.approx(their_loss(theirs), abs=1e-4)
    assert val[-1] < val[0] - 0.04  # to about ln 300: the tokens are random
    again = tmp_path / "again" / "checkpoint.pt"
    pretrained.main(pretrained.Config(tmp_path / "first" / "checkpoint.pt", save=again))
    assert checkpoint.read_torch(ex.Config, again)["config"].learning_rate == 0.01  # with the run's flags
    fine_tune(ex, again.parent, steps=2)
    assert losses(again.parent, "validation")[0] == pytest.approx(val[-1], abs=1e-5)
    assert losses(again.parent)[0] != losses(tmp_path / "first")[0]


def test_what_cannot_be_resumed_says_why(ex, tokens, hugging_face, tmp_path):
    train(ex, tmp_path, steps=1, vocab_size=300)
    (tmp_path / "best.pt").replace(tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=r"holds a model alone, not the state of a run: .*pretrained\.py --save"):
        train(ex, tmp_path, steps=2, vocab_size=300, resume="yes")
    pretrained = load_beside(16, "pretrained")
    pretrained.main(pretrained.Config(hugging_face[0], save=tmp_path / "16" / "checkpoint.pt"))
    sixteen = load(16)
    config = replace(sixteen.defaults(resume="yes", out=tmp_path / "16"), resume="yes", device="cpu")
    with pytest.raises(UserError, match="is for another vocabulary: exercise 16 trains on characters, exercise 17 on"):
        sixteen.main(config)


def test_evaluate_py(ex, tokens, hugging_face, tmp_path):
    """Of a checkpoint the loss that its run has recorded, of a Hugging Face folder that of transformers."""
    evaluate = load_beside(16, "evaluate")
    train(ex, tmp_path, steps=2, vocab_size=300)
    found = evaluate.main(evaluate.Config(tmp_path / "checkpoint.pt", batch_size=3, precision="float32", device="cpu"))
    recorded = read_metrics(tmp_path)
    assert found["loss"] == pytest.approx(recorded["validation", "loss"][2], abs=1e-6)
    assert found["accuracy"] == pytest.approx(recorded["validation", "accuracy"][2], abs=1e-9)
    folder, theirs = hugging_face
    found = evaluate.main(evaluate.Config(folder, precision="float32", device="cpu"))
    assert found["loss"] == pytest.approx(their_loss(theirs), abs=1e-4)


def test_samples_begin_at_the_end_of_text(ex, tmp_path, monkeypatch, capsys):
    """By default, and where the prompt has that token; with --stop they end there. An export has GPT-2's tokens."""
    sampling, pretrained = load_beside(16, "sample"), load_beside(16, "pretrained")
    to_tokens, _ = sampling.codec(None)
    assert [to_tokens(text).tolist() for text in ("", "<|endoftext|>The")] == [[50_256], [50_256, 464]]
    config = ex.Config(**SMALL)
    model = ex.Transformer(config, 50_304)
    flags = {name: getattr(config, name) for name in (*checkpoint.SIZES, "bias")}
    pretrained.save_step_0(model, None, flags, tmp_path / "a.pt")
    pretrained.main(pretrained.Config(tmp_path / "a.pt", export=tmp_path / "theirs"))
    theirs, vocab, _ = pretrained.load_model(tmp_path / "theirs")
    assert vocab is None
    assert torch.equal(theirs.embedding.weight, model.embedding.weight[:50_257])
    seen = []

    def generate(model, tokens, config, seed):
        seen.append(tokens.tolist())
        yield from torch.tensor([464, 886, 50_256, 464, 464])

    monkeypatch.setattr(sampling, "generate", generate)
    capsys.readouterr()
    for stop, written in ((False, "The end<|endoftext|>TheThe"), (True, "The end")):
        sampling.main(sampling.Config(tmp_path / "a.pt", max_new_tokens=5, stop=stop, device="cpu"))
        output = capsys.readouterr()
        assert output.out == f"--- sample 1\n{written}\n"
        assert " tokens/s on cpu" in output.err
    assert seen == [[50_256]] * 2


def test_sample_py_of_16(two_processes):
    script = train_py(16).parent / "sample.py"
    flags = [
        "--checkpoint",
        two_processes / "best.pt",
        "--prompt",
        "The end",
        "--max-new-tokens",
        "20",
        "--device",
        "cpu",
    ]
    result = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("--- sample 1\nThe end")


def test_unwrapped_model_is_saved(two_processes):
    """A checkpoint of two processes has the names of one."""
    names = set(torch.load(two_processes / "checkpoint.pt")["model"])
    assert "embedding.weight" in names
    assert not any(name.startswith(("module.", "_orig_mod.")) for name in names)
