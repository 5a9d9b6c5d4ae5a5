"""Two processes that want the same at once, one of which may be killed: the other has what it would have alone."""

import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM

from common import imagenet, openwebtext
from common.program import clean_exit
from tests.faults import tiny
from tests.faults.programs import Case, end, exercise, import_all, kill, run, start, wait_for, wrong_end


def cases(full: bool, rng: Random, folder: Path) -> Iterator[Case]:
    """Yield a case for each pair."""
    import_all()
    openwebtext.DOCUMENTS = openwebtext.NOTED = imagenet.SHARD = 4  # so that there is a beginning and an end
    flags, prepared = tiny.inputs(folder), Path(os.environ["RAMPUP_DATA"])
    works = {
        "openwebtext": (partial(openwebtext.read, folder / "docs.txt"), ("*.bin", "tokens.json")),
        "imagenet": (partial(imagenet.prepare, str(folder / "photographs")), ("*.jpegs", "*.json")),
    }
    for what, (prepare, names) in works.items():
        place = prepared / what
        shutil.rmtree(place, ignore_errors=True)  # what other parts prepared
        since = time.monotonic()
        yield Case("none", what, wrong_end(run(cleanly(prepare)), (0,)))
        seconds, alone = time.monotonic() - since, files(place, names)
        for i in range(24 if full else 4):
            shutil.rmtree(place)
            signal = (0, SIGKILL, SIGINT, SIGTERM)[i % 4]
            both = [start(cleanly(prepare)) for _ in range(2)]
            time.sleep(rng.uniform(0, seconds))
            kill([both[0].pid], signal) if signal else None
            first, second = (end(process) for process in both)
            lost = wrong_end(first, (0, -9, -15, 143, 130)) if signal else wrong_end(first, (0,))
            lost = lost or wrong_end(second, (0,))
            lost = lost or ("" if files(place, names) == alone else "the files are not those of one alone")
            yield Case(f"two prepare it, {signal.name + ' to one' if signal else 'none killed'}", what, lost)
    for number in (16, 17, 15) if full else (16,):
        yield from one_folder(number, flags[number], folder / f"{number}")


def cleanly(work):
    """Return what `start` is to call for a program that does this work."""

    def program():
        with clean_exit():
            work()

    return program


def files(place: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Return by name what is in the files of a folder, however deep, that have such names."""
    return {path.name: path.read_bytes() for name in names for path in sorted(place.rglob(name)) if path.is_file()}


def one_folder(number: int, flags: list[object], out: Path) -> Iterator[Case]:
    """Yield cases of two runs into one --out: the second, at the same time or later, costs nobody anything."""
    whole = out.with_name(f"{number} alone")
    yield tiny.unbroken(number, flags, whole)
    for more in ([], ["--resume"]):
        shutil.rmtree(out, ignore_errors=True)
        process = start(exercise(number, *flags, "--out", out))
        wait_for(lambda: tiny.has_checkpoint(out), process)
        os.kill(process.pid, SIGSTOP)  # it is there, and does nothing
        second = run(exercise(number, *flags, "--out", out, *more))
        os.kill(process.pid, SIGCONT)
        lost = wrong_end(second, (1,)) or ("" if "another run is writing" in second.text else "not refused")
        lost = lost or wrong_end(end(process), (0,)) or tiny.not_the_same(out, whole)
        yield Case(f"a second run into --out {' '.join(more)}".strip(), f"exercise {number}", lost)
    weights, dry = ("best.*", "checkpoint.*"), [*flags, "--dry-run"]
    for fault, other, theirs, names in (("a dry run", number, dry, ("*",)), ("exercise 1", 1, [], weights)):
        before = {path: path.read_bytes() for name in names for path in out.glob(name) if path.is_file()}
        lost = wrong_end(run(exercise(other, *theirs, "--out", out)), (0, 1))
        gone = [path.name for path, content in before.items() if tiny.content(path) != content]
        lost = lost or (f"{', '.join(sorted(gone)[:3])} lost" if gone else "")
        yield Case(f"{fault} into its --out", f"exercise {number}", lost)
