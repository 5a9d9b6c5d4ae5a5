"""The short fault campaign, one part a test (tests/faults/__init__.py says how to run all of it)."""

import subprocess
import sys

from common.curriculum import ROOT

import pytest


@pytest.mark.parametrize("part", ["kill", "disk", "network", "files", "hostile", "together", "repeat"])
def test_nothing_is_lost(part, mnist, shakespeare):
    command = [sys.executable, "-m", "tests.faults", part]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert result.returncode == 0, result.stderr + result.stdout
    assert f"\n| {part} | " in result.stdout  # it did try something
