"""Set-up of all tests: one thread each, nothing carried from one test to the next, real data or a reason."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

# Before torch is imported: the tests share the cores, and one thread gives the same numbers every time.
os.environ["OMP_NUM_THREADS"] = "1"

# Before JAX is: what one test or the program that it runs has compiled, no other need compile again. All workers share
# the folder; with a largest size JAX locks it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2 * 2**30)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

# What a shell starts in its background, or nohup, hears no Ctrl-C, nor would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from common import data
from common import openwebtext as openwebtext_data

import pytest
import torch


@pytest.fixture(autouse=True)
def _process_wide_defaults():
    """Take back what an exercise's main() sets for its whole process."""
    yield
    torch.set_default_dtype(torch.float32)
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_default_device", None)


@pytest.fixture(scope="module")
def quick_compiler():
    """Let JAX compile in half the time, here and in the programs that are started, what then runs slower.

    For tiny runs whose promise is not about what XLA makes of them: test_dry_run and others run what users run.
    """
    import jax

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # else what this process has compiled so would give other tests other last digits


@pytest.fixture
def without_pictures(request, monkeypatch):
    """Leave pictures empty in tests of what a run computes, unless they have the mark `draws`: each takes 0.3 seconds.

    test_dry_run and others draw those of every program.
    """
    if not request.node.get_closest_marker("draws"):
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: Path(path).touch())


@pytest.fixture(scope="session")
def mnist():
    """Return the real MNIST, from data/ or downloaded; with neither the test is skipped, or fails if it must not."""
    return _require(data.mnist)


@pytest.fixture(scope="session")
def shakespeare():
    """Return the real Tiny Shakespeare, likewise."""
    return _require(data.shakespeare)


@pytest.fixture(scope="session")
def uci_digits():
    """Return the digits of UCI, likewise."""
    return _require(data.uci_digits)


@pytest.fixture(scope="session")
def photographs():
    """Return the folder of a sample of ImageNet: train and val of ten classes, and 40 files of the original size."""

    def find():
        folder = data.data_dir() / "imagenet_sample"
        if not folder.is_dir():
            raise data.DataError(f"{folder}, a sample of ImageNet's photographs, is missing")
        return folder

    return _require(find)


@pytest.fixture(scope="session")
def _tokens(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture
def openwebtext(_tokens, monkeypatch):
    """Return the folder of the 1,000 sample documents; their tokens go to a folder of the tests, not into data/."""
    folder = data.data_dir() / "openwebtext_sample"
    monkeypatch.setenv(
        "TIKTOKEN_CACHE_DIR", os.environ.get("TIKTOKEN_CACHE_DIR", str(data.data_dir() / "tiktoken_cache"))
    )
    monkeypatch.setenv("RAMPUP_DATA", str(_tokens))
    _require(openwebtext_data.encoding)
    _require(lambda: openwebtext_data._files(folder))
    return folder


def _require(read):
    try:
        return read()
    except data.DataError as error:
        if os.environ.get("RAMPUP_REQUIRE_DATA"):
            pytest.fail(f"RAMPUP_REQUIRE_DATA is set, but {error}")
        pytest.skip(str(error))
