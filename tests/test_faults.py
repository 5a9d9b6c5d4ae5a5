"""The short fault campaign, one part a test (tests/faults/__init__.py says how to run all of it)."""

from common.curriculum import ROOT

import pytest
import warm


@pytest.mark.parametrize("part", ["kill", "disk", "network", "files", "hostile", "together", "repeat"])
def test_nothing_is_lost(part, mnist, shakespeare):
    result = warm.run("-m", "tests.faults", part, cwd=ROOT, timeout=600)
    assert result.returncode == 0, result.stderr + result.stdout
    assert f"\n| {part} | " in result.stdout  # it did try something
