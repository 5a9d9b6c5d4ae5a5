"""Time `rampup diff`, `review` and `site` as a user runs them, and fail if one takes longer than its limit.

    python tests/bench/rampup.py

The slowest of five runs of each counts; the exercise is the one with the most lines.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from common.curriculum import ROOT

from helpers import BUILT, train_py

LIMITS = {"diff": 1, "review": 3, "site": 20}  # seconds
RUNS = 5


def main() -> None:
    longest = max((e for e in BUILT if e.parent), key=lambda e: train_py(e.number).stat().st_size)
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "diff": [longest.folder],
            "review": [longest.folder, "--html", f"{folder}/review.html"],
            "site": [f"{folder}/site"],
        }
        slow = False
        for name, arguments in commands.items():
            seconds = []
            for _ in range(RUNS):
                start = time.perf_counter()
                command = [sys.executable, "-m", "common.cli", name, *arguments]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
                seconds.append(time.perf_counter() - start)
            print(f"rampup {name}: {min(seconds):.2f} to {max(seconds):.2f} s, limit {LIMITS[name]} s", flush=True)
            slow = slow or max(seconds) > LIMITS[name]
    sys.exit(slow)


if __name__ == "__main__":
    main()
