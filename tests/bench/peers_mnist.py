"""Run exercise 7 and other people's MNIST programs in turn on this machine, and print what each reaches and takes.

    git clone https://github.com/txus/dlr peers/txus && git clone https://github.com/warfaj/dlr peers/warfaj
    python tests/bench/peers_mnist.py peers/txus/7_and_8.py "peers/warfaj/7&8/train.py"

The programs run unchanged, with their own settings. All take MNIST from this course's data folder: a small stand-in for
torchvision, which hands out one image at a time as the real one does, is put on their path.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
from helpers import train_py


@dataclass
class Config:
    peers: tyro.conf.Positional[tuple[Path, ...]]  # the programs to compare with
    rounds: int = 3  # how often each is run


def main(config: Config) -> None:
    stub = Path(__file__).parent / "torchvision_stub"
    for _ in range(config.rounds):
        for program in (train_py(7), *config.peers):
            with tempfile.TemporaryDirectory() as folder:
                flags = ["--out", folder] if program == train_py(7) else []
                start = time.perf_counter()
                result = subprocess.run(
                    [sys.executable, program.resolve(), *flags],
                    cwd=folder,
                    env=os.environ | {"PYTHONPATH": str(stub), "MPLBACKEND": "agg"},
                    capture_output=True,
                    text=True,
                )
                seconds = time.perf_counter() - start
            last = [line for line in result.stdout.splitlines() if line.strip()][-1:] or result.stderr.splitlines()[-1:]
            print(
                f"{program.parent.name}/{program.name}: {seconds:.1f} s, exit code {result.returncode}, {last}",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
