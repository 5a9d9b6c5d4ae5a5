"""A disk that takes no more, at every file that is written; then there is room again, and the run goes on."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from resource import RLIM_INFINITY, RLIMIT_FSIZE, setrlimit

from tests.faults import tiny
from tests.faults.programs import Case, end, exercise, file_operations, import_all, run, start, wait_for, wrong_end
from tests.helpers import train_py

WRITTEN = {  # by exercise and folder, how the names of the files begin that it writes there; "" is --out
    (15, ""): ("run", "metrics", "checkpoint", "result", "loss"),
    (16, ""): ("run", "metrics", "samples", "best", "checkpoint", "result", "loss"),
    (15, "imagenet"): ("train-00000.jpegs", "train-00000.json", "val-00000.jpegs", "set"),
    (17, "openwebtext"): ("train", "val", "tokens"),
}
SHORT = {  # one of each kind: a row, a text, a torch file, JSON; an array file; what is prepared
    (16, ""): ("metrics", "samples", "checkpoint", "result"),
    (15, ""): ("checkpoint",),
    (15, "imagenet"): ("train-00000.jpegs",),
    (17, "openwebtext"): ("train",),
}
LINKS = [f"{name}{end}" for name in ("best.pt", "checkpoint.pt", "result.json", "run.json") for end in ("", ".tmp")]
LINKS += ["metrics.csv", "samples.txt", "loss.png", "best.tmp", "checkpoint.tmp", "result.tmp"]
CLAIMS = ("is whole", "is kept", "stays", "is in ", "go on with")  # what may not be said of files that are gone


def cases(full: bool, rng: Random, folder: Path) -> Iterator[Case]:
    """Yield a case for each file that found no room, and for each folder that cannot be written to."""
    import_all()
    flags, data = tiny.inputs(folder), Path(os.environ["RAMPUP_DATA"])
    for number in (15, 16, 17):
        yield tiny.unbroken(number, flags[number], folder / f"{number}")
    for (number, prepared), files in (WRITTEN if full else SHORT).items():
        whole = folder / f"{number}"
        for i, name in enumerate(files * (4 if full else 1)):
            out = folder / f"{number}{prepared}-{i}"
            place = data / prepared if prepared else out
            sizes = [path.stat().st_size for path in (place if prepared else whole).rglob(f"{name}*")]
            if prepared:
                shutil.rmtree(place)  # so that it is prepared again
            most = rng.choice([0, rng.randrange(1, max(2, min(sizes, default=1)))])
            yield no_room(number, name, most, flags[number], place, out, whole)
    whole = folder / "16"
    yield from no_folder(flags[16], folder, whole)
    yield planted_links(flags[16], folder)
    if can_mount(folder):
        for size in range(8, 900, 37) if full else (400,):  # kB; all that a run writes has some 350
            yield small_disk(size, flags[16], folder / "disk", whole)
        for size in (16, 48, 64) if full else (16,):
            yield small_shared_memory(size, flags[15], folder / f"shm-{size}")


def no_room(number, name, most, flags, place, out, whole) -> Case:
    """Let one file grow to so many bytes and no more."""

    def act(count, opened, writes):
        if writes and opened.startswith(name):
            setrlimit(RLIMIT_FSIZE, (most, RLIM_INFINITY))
        elif writes and name != "metrics":  # which stays open
            setrlimit(RLIMIT_FSIZE, (RLIM_INFINITY, RLIM_INFINITY))

    ended = run(exercise(number, *flags, "--out", out, hook=file_operations(place, act)))
    lost = wrong_end(ended, (1,)) or tiny.not_the_same(out, whole, finished=False)
    return Case(f"no room for {name}…", f"exercise {number}", lost or tiny.finish(number, flags, out, whole))


def no_folder(flags, folder: Path, whole: Path) -> Iterator[Case]:
    """Yield cases of an --out that cannot be written to, or goes away."""
    (folder / "file").write_text("in the way")
    for fault, out in (("--out in /proc", "/proc/out"), ("--out below a file", folder / "file" / "out")):
        yield Case(fault, "exercise 16", wrong_end(run(exercise(16, *flags, "--out", out)), (1,)))
    for fault in ("--out deleted in mid-run", "--out renamed in mid-run"):
        out = folder / fault.split()[1]
        process = start(exercise(16, *flags, "--out", out))
        wait_for(lambda out=out: tiny.rows(out) > 6, process)
        os.rename(out, folder / "elsewhere")
        if "deleted" in fault:
            shutil.rmtree(folder / "elsewhere")
        ended = end(process)
        claims = [words for words in CLAIMS if words in ended.text] if ended.code else []
        yield Case(fault, "exercise 16", wrong_end(ended, (1,)) or (f'says "{claims[0]}"' if claims else ""))


def planted_links(flags, folder: Path) -> Case:
    """Run where links have the names of a run's files: what they lead to stays as it is."""
    (folder / "precious").write_text("mine")
    (folder / "links").mkdir()
    for name in LINKS:
        (folder / "links" / name).symlink_to(folder / "precious")
    lost = wrong_end(run(exercise(16, *flags, "--out", folder / "links")), (0, 1))
    changed = "" if (folder / "precious").read_text() == "mine" else "a file outside --out was written to"
    return Case("links with the names of its files", "exercise 16", lost or changed)


def small_shared_memory(size: int, flags, out: Path) -> Case:
    """Run with worker processes that have so many kilobytes to hand their batches over, as in a container."""
    mount = f'mount -t tmpfs -o size={size}k none /dev/shm && exec "$@"'
    command = [sys.executable, train_py(15), *flags, "--workers", 2, "--out", out]
    arguments = [str(part) for part in ("unshare", "--mount", "sh", "-c", mount, "sh", *command)]
    ended = run(lambda: os.execvp("unshare", arguments), 60)
    return Case("small /dev/shm", "exercise 15, two workers", wrong_end(ended, (0, 1)))


def can_mount(folder: Path) -> bool:
    """Return whether this user may mount a small disk in the memory."""
    (folder / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", folder / "disk"], capture_output=True).returncode:
        return False
    subprocess.run(["umount", folder / "disk"], check=True)
    return True


def small_disk(size: int, flags, disk: Path, whole: Path) -> Case:
    """Run on a disk of so many kilobytes; then make it large, and go on."""
    fault = "a small disk"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", disk], check=True)
    try:
        ended = run(exercise(16, *flags, "--out", disk / "out"))
        lost = wrong_end(ended, (0, 1)) or tiny.not_the_same(disk / "out", whole, finished=False)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        read_only = wrong_end(run(exercise(16, *flags, "--out", disk / "out")), (1,))
        subprocess.run(["mount", "-o", "remount,rw,size=100m", disk], check=True)
        lost = lost or (read_only and f"read-only: {read_only}") or tiny.finish(16, flags, disk / "out", whole)
        return Case(fault, "exercise 16", lost)
    finally:
        subprocess.run(["umount", disk], check=True)
