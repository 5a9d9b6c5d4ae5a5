"""Set-up of all tests: one thread each, nothing carried from one test to the next, real data or a reason."""

import os
import sys

# Before torch is imported: the tests share the cores, and one thread gives the same numbers every time.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from common import data
from common.curriculum import ROOT


@pytest.fixture(autouse=True)
def _process_wide_defaults():
    """Take back what an exercise's main() sets for its whole process."""
    yield
    torch.set_default_dtype(torch.float32)
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_default_device", None)


@pytest.fixture(scope="session")
def mnist():
    """Return the real MNIST, from data/ or downloaded; with neither the test is skipped, or fails if it must not."""
    return _require(data.mnist)


@pytest.fixture(scope="session")
def shakespeare():
    """Return the real Tiny Shakespeare, likewise."""
    return _require(data.shakespeare)


@pytest.fixture(scope="session")
def photographs():
    """Return the folder of a sample of ImageNet: train and val of ten classes, and 40 files of the original size."""

    def find():
        folder = data.data_dir() / "imagenet_sample"
        if not folder.is_dir():
            raise data.DataError(f"{folder}, a sample of ImageNet's photographs, is missing")
        return folder

    return _require(find)


@pytest.fixture
def reference(monkeypatch):
    """Return tests/gpu/reference.py as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "gpu"))
    import reference

    monkeypatch.delitem(sys.modules, "reference")
    return reference


def _require(read):
    try:
        return read()
    except data.DataError as error:
        if os.environ.get("RAMPUP_REQUIRE_DATA"):
            pytest.fail(f"RAMPUP_REQUIRE_DATA is set, but {error}")
        pytest.skip(str(error))
