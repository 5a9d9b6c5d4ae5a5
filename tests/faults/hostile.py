"""Folders and programs of a stranger, for `rampup review`, `review --zip` and `rampup check --dry-run`."""

import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from common.cli import check
from tests.faults.programs import Case, kill, python, run, too_much_memory, wrong_end
from tests.helpers import train_py

SECRET, EVIL = "a secret of mine", "<script>alert(1)</script><img src=x onerror=alert(2)>"
MARK = f"left by {os.getpid()}"  # by which what a program leaves behind is known
RESULT = {"metrics": {"loss": 0.5}, "baselines": {"ln 3": 1.1}, "config": {"steps": 5}, "versions": {}, "seed": 0}
HEAD = "step,split,metric,value\n"


def cases(full: bool, rng: Random, folder: Path) -> Iterator[Case]:
    """Yield a case for each folder and for each program."""
    import common.cli.commands
    import common.cli.review  # noqa: F401, for the programs that are forked from here

    (folder / "secret.txt").write_text(SECRET)
    for fault, spoil in folders(folder / "secret.txt", full).items():
        path = folder / "theirs"
        (path / "out").mkdir(parents=True)
        shutil.copy(train_py(4), path)
        (path / "out" / "result.json").write_text(json.dumps(RESULT))
        (path / "out" / "metrics.csv").write_text(HEAD + "".join(f"{i},train,loss,{1 / (i + 1)}\n" for i in range(50)))
        try:
            spoil(path)
        except PermissionError:  # not everybody can make devices
            remove(path)
            continue
        for flags in ([], ["--zip"]):
            yield Case(fault, " ".join(["rampup review", *flags]), review(path, folder, flags))
        remove(path)
    check.LIMIT = 10 if full else 4  # seconds for a dry run
    for fault, source in programs(full).items():
        yield Case(fault, "rampup check --dry-run", checked(folder / "theirs", source))


def remove(path: Path) -> None:
    """Delete a folder; Python's rmtree would not come to the bottom of a deep one."""
    subprocess.run(["rm", "-rf", path], check=True)


# Folders


def folders(secret: Path, full: bool) -> dict[str, Callable[[Path], object]]:
    """Return by name what is done to a learner's folder."""

    def write(name: str, content: str | bytes) -> Callable[[Path], object]:
        return lambda path: (path / name).write_bytes(content.encode() if isinstance(content, str) else content)

    def link(name: str, to: Path | str) -> Callable[[Path], object]:
        return lambda path: ((path / name).unlink(missing_ok=True), (path / name).symlink_to(to))

    def sparse(name: str, size: int) -> Callable[[Path], object]:
        return lambda path: ((path / name).touch(), os.truncate(path / name, size))

    def pipe(name: str) -> Callable[[Path], object]:
        return lambda path: ((path / name).unlink(missing_ok=True), os.mkfifo(path / name))

    def device(path: Path) -> None:
        os.mknod(path / "out" / "loss.png", 0o20644, os.makedev(1, 5))  # as /dev/zero is

    def many(path: Path) -> None:
        for i in range(20_000 if full else 3_000):
            (path / f"file{i}").touch()

    def deep(path: Path) -> None:
        here = os.getcwd()
        os.chdir(path)
        for _ in range(1_500):
            os.mkdir("d")
            os.chdir("d")
        os.chdir(here)

    def names(path: Path) -> None:
        odd = [EVIL.replace("/", ""), "C:evil", "..\\evil", "new\nline", "\x1b[31mred", "\u202egnp.exe", "\udcff\udcfe"]
        for name in odd:
            (path / name).write_text("x")

    def everywhere(text: str) -> Callable[[Path], object]:
        parts = {name: {text: 0.5, "loss": 0.5} for name in ("metrics", "baselines", "config", "versions")}
        return lambda path: (
            (path / "out" / "result.json").write_text(json.dumps(RESULT | parts | {"device": text, "commit": text})),
            (path / "out" / "samples.txt").write_text(text),
            (path / "out" / "metrics.csv").write_text(HEAD + f"0,{text},loss,1\n"),
            (path / "train.py").write_text(f'"""{text}"""\n'),
        )

    every = {f"link to a file outside, {name}": link(name, secret) for name in ("train.py", "out/samples.txt", "x.txt")}
    every |= {f"a pipe, {name}": pipe(name) for name in ("train.py", "out/metrics.csv", "out/loss.png")}
    every |= {f"20 GB, {name}": sparse(name, 20 * 10**9) for name in ("train.py", "out/result.json", "out/x.bin")}
    every |= {
        "out is a link": lambda path: (shutil.rmtree(path / "out"), (path / "out").symlink_to("/etc")),
        "a link to itself": link("out/result.json", "result.json"),
        "a device": device,
        "endless device behind a link": link("out/metrics.csv", "/dev/zero"),
        "many files": many,
        "1,500 folders deep": deep,
        "odd names": names,
        "scripts in all texts": everywhere(EVIL),
        "escape sequences in all texts": everywhere("\x1b[2J\x1b]0;x\x07 \u202e \u2066"),
        "NUL, not UTF-8": write("train.py", b"\xff\xfe\0x = 1\n"),
        "190 kB of brackets": write("train.py", "(" * 190_000),
        "190 kB in one line": write("train.py", "x = " + "1 + " * 47_000 + "1\n"),
        "many short lines": write("train.py", "x\n" * 60_000 if full else "x\n" * 5_000),
        "brackets in result.json": write("out/result.json", "[" * 200_000),
        "numbers of 5,000 digits": write("out/result.json", json.dumps(RESULT).replace("0.5", "9" * 5_000)),
        "a field of 200 kB": write("out/metrics.csv", HEAD + '0,train,"' + "x" * 200_000 + "\n"),
        "a quote that never ends": write("out/metrics.csv", HEAD + '0,"train,loss,1\n' + "1,train,loss,1\n" * 20_000),
        "NaN and infinity": write("out/metrics.csv", HEAD + "0,train,loss,nan\n1,train,loss,inf\n2,train,loss,1e999\n"),
        "5,000 series": write("out/metrics.csv", HEAD + "".join(f"0,s{i},loss,1\n" for i in range(5_000))),
        "a picture that is HTML": write("out/loss.png", EVIL),
        "a picture cut off": write("out/loss.png", b"\x89PNG\r\n\x1a\n" + bytes(20)),
        "no train.py": lambda path: (path / "train.py").unlink(),
    }
    return every


def review(path: Path, folder: Path, flags: list[str]) -> str:
    """Review a folder, and return what is wrong with what came out."""
    html, archive = folder / "review.html", folder / "review.zip"
    for file in (html, archive):
        file.unlink(missing_ok=True)
    command = ["-m", "common.cli", "review", "4", "--folder", path, "--html", html, *flags]
    ended = run(python(*command), 30)
    lost = wrong_end(ended, (0, 1)) or too_much_memory(ended) or odd_characters(ended.text)
    if lost or ended.code:
        return lost
    page = html.read_text(encoding="utf-8") if html.exists() else ""
    if flags:
        with zipfile.ZipFile(archive) as file:
            page = file.read(html.name).decode()
            for info in file.infolist():
                if re.search(r"^/|\.\.|:|\\\\", info.filename) or SECRET.encode() in file.read(info):
                    return f"the archive holds {info.filename[:40]!r}"
    if SECRET in page or "root:x:0" in page:
        return "a file outside the folder is shown"
    if page.count("<script") > 1 or re.search(r"<[^>]* on(error|load)=", page):
        return "a script of the folder is in the page"
    return odd_characters(page)


def odd_characters(text: str) -> str:
    """Return what is wrong with a text that is to be shown: characters that move the cursor, or turn text round."""
    found = re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text)
    return f"a raw {found[0]!r} is shown" if found else ""


# Programs


def programs(full: bool) -> dict[str, str]:
    """Return by name what is put at the beginning of exercise 1."""
    sleeper = f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)', {MARK!r}])"
    loud, deaf = "while True: print('x' * 1000)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    csv = "os.makedirs(sys.argv[2]); csv = sys.argv[2] + '/metrics.csv'"
    every = {
        "prints without end": loud,
        "prints without end, on stderr": "while True: print('x' * 1000, file=sys.stderr)",
        "leaves a child": sleeper,
        "leaves a child, and waits for it": f"{sleeper}.wait()",
        "leaves a child, both deaf to SIGTERM": f"{deaf}; {sleeper}.wait()",
        "a last line of many pairs": "print('result: ' + 'a=' * 300_000); sys.exit(0)",
        "escape sequences": "print('\\x1b[2J\\x1b]0;x\\x07\\u202e', file=sys.stderr); sys.exit('\\x1b[31m')",
        "bytes that are no text": "os.write(1, bytes(range(256)) * 99); os.write(2, bytes(range(256))); os._exit(3)",
    }
    more = {
        "waits for ever": "time.sleep(10_000)",
        "waits for input": "input()",
        "closes its output": "os.close(1); os.close(2)",
        "kills itself": "os.kill(os.getpid(), signal.SIGKILL)",
        "says nothing": "os._exit(0)",
        "a long line": "print('x' * 50_000_000)",
        "a pipe for metrics.csv": f"{csv}; os.mkfifo(csv); os._exit(0)",
        "1 GB of metrics.csv": f"{csv}; open(csv, 'w').truncate(10**9); print('result: a=1 seconds=1'); sys.exit(0)",
        "does not parse": "def (",
    }
    imports = "import os, signal, subprocess, sys, time"
    return {name: f"{imports}\n{source}\n" for name, source in (every | (more if full else {})).items()}


def checked(path: Path, source: str) -> str:
    """Check a program, and return what is wrong with that: it took too long, or something of it is still there."""
    path.mkdir()
    (path / "train.py").write_text(source + train_py(1).read_text(encoding="utf-8"), encoding="utf-8")
    ended = run(python("-m", "common.cli", "check", "1", "--folder", path, "--dry-run"), 40)
    shutil.rmtree(path)
    left = marked()
    kill(left)
    lost = wrong_end(ended, (0, 1)) or too_much_memory(ended) or odd_characters(ended.text)
    return lost or (f"{len(left)} processes were left" if left else "")


def marked() -> list[int]:
    """Return the processes that carry our mark."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if MARK.encode() in status.read_bytes().split(b"\0"):
                found.append(int(status.parent.name))
        except OSError:
            continue
    return found
