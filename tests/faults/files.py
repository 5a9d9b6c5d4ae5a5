"""Every file that is read, damaged in every way: the right value comes out, or one sentence, and soon."""

import copy
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from common import UserError, checkpoint, data, imagenet, openwebtext, text
from common.cli.folder import Folder, read_run
from common.cli.judge import judge
from common.cli.review import write_review
from common.curriculum import find_exercise
from common.record import Run
from tests import helpers
from tests.faults import tiny
from tests.faults.programs import MORE_MEMORY, Case, end, file_operations, import_all, start

import numpy as np

SECONDS = 5  # that reading one file may take
SHARE = 250  # of the full campaign's files, one in so many is tried in the short one
KINDS = ("flipped bits", "flipped bits", "cut off", "doubled", "spliced", "zeroed", "empty", "a byte more")
ODD = [None, True, -1, 0, 1, 2**64, 10**400, 0.5, -1e308, math.nan, math.inf, "", "x" * 10**5, "../x", "\ud800\x1b[31m"]
ODD += [[], [None], {}, {"": {}}, [[[]]], [1] * 1000]


@dataclass(frozen=True)
class Reader:
    """One way to read files."""

    name: str
    files: list[Path]  # what is damaged, one at a time
    read: Callable[[], object]  # returns what was read; UserError, and no other, is a refusal
    count: int  # of damaged files in the full campaign
    checked: bool = True  # whether checksums, or the source, tell the right value from any other
    damage: Callable = None  # a way of its own


def cases(full: bool, rng: random.Random, folder: Path) -> Iterator[Case]:
    """Yield a case for each damaged file."""
    for reader in readers(folder):
        count, done, seed = reader.count if full else max(3, reader.count // SHARE), 0, rng.random()
        while done < count:
            note = folder / "results"
            ended = end(start(partial(try_all, reader, range(done, count), seed, note)), 3600)
            results = note.read_text(encoding="utf-8").splitlines()
            for line in results:
                yield Case(line.partition("\t")[0], reader.name, line.partition("\t")[2])
            done += len(results)
            if done < count:  # the program itself was ended
                last = ended.text.strip().splitlines()[-1:] or [""]
                yield Case("crash", reader.name, f"exit code {ended.code} at number {done} ({last[0]})")
                done += 1


class Overtime(BaseException):
    """What stops a reader that takes too long."""


def overtime(*_) -> None:
    """Stop a reader."""
    raise Overtime


def try_all(reader: Reader, numbers: range, seed: float, note: Path) -> None:
    """Damage and read files, and write a line on each to `note`."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 8 * MORE_MEMORY, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, overtime)
    originals = {path: path.read_bytes() for path in reader.files}
    with open(note, "w", buffering=1, encoding="utf-8") as results, open(os.devnull, "w") as nowhere:
        right = flat(reader.read())
        sys.stdout = sys.stderr = nowhere
        for number in numbers:
            rng = random.Random(f"{seed} {number}")
            path, other = rng.choice(reader.files), rng.choice(reader.files)
            damage = reader.damage or (damaged_json if path.suffix == ".json" else damaged)
            fault, content = damage(rng, originals[path], originals[other])
            path.write_bytes(content)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            lost = attempt(reader, right if reader.checked else None)
            more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            lost = lost or (f"{more / 1e9:.1f} GB of memory" if more > MORE_MEMORY else "")
            for path, content in originals.items():
                path.write_bytes(content)
            results.write(f"{fault}\t{lost}\n")


def attempt(reader: Reader, right: bytes | None) -> str:
    """Return what is wrong with how a file is read."""
    try:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        value = reader.read()
        return "another value in silence" if right is not None and flat(value) != right else ""
    except UserError as error:
        return "" if "\n" not in str(error) else "more than one line"
    except Overtime:
        return f"more than {SECONDS} s"
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} ({Path(frame.filename).name}:{frame.lineno})"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def flat(value: object) -> bytes:
    """Return bytes that are the same for the same value, whatever of dicts, lists, arrays and tensors it is made of."""
    if isinstance(value, dict):
        return b"{%s}" % b",".join(flat(key) + b":" + flat(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return b"[%s]" % b",".join(map(flat, value))
    if hasattr(value, "shape"):
        array = np.asarray(value)
        return repr((array.shape, array.dtype)).encode() + array.tobytes()
    return repr(value).encode(errors="surrogatepass")


# Damage


def damaged(rng: random.Random, content: bytes, other: bytes) -> tuple[str, bytes]:
    """Return what was done to a file, and what it is then; `other` is a file of which it may get a piece."""
    kind, new, size = rng.choice(KINDS), bytearray(content), len(content)
    start = rng.randrange(size)
    length = min(size - start, int(size ** rng.random()))
    if kind == "flipped bits":
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            new[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == "cut off":
        del new[start:]
    elif kind == "doubled":
        new += content if rng.random() < 0.5 else content[start : start + length]
    elif kind == "spliced":
        there = rng.randrange(len(other))
        new[start : start + rng.choice([0, length])] = other[there : there + length]
    elif kind == "zeroed":
        new[start : start + length] = bytes(length)
    elif kind == "empty":
        new.clear()
    else:
        new.insert(start, rng.randrange(256))
    return kind, bytes(new)


def odd(rng: random.Random, value: object) -> object:
    """Return a value of which one part, however deep, is missing, has another name or is something else."""
    if isinstance(value, dict | list) and value and rng.random() < 0.95:
        value = copy.copy(value)
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if rng.random() < 0.15:
            del value[key]
        elif isinstance(value, dict) and rng.random() < 0.1:
            value[rng.choice(["../precious", "", "x"])] = value.pop(key)
        else:
            value[key] = odd(rng, value[key])
        return value
    if getattr(value, "shape", ()) and rng.random() < 0.5:
        return rng.choice([value[:1], value[..., None], value[:0]])
    return rng.choice(ODD)


def damaged_json(rng: random.Random, content: bytes, other: bytes) -> tuple[str, bytes]:
    """Return the same for a file of JSON, which may also stay one, with other values."""
    if rng.random() < 0.5:
        return damaged(rng, content, other)
    return "other values", json.dumps(odd(rng, json.loads(content))).encode()


# Readers


def readers(folder: Path) -> list[Reader]:
    """Make the files, in a folder of data of their own, and return all readers."""
    import_all()
    real, own = Path(os.environ["RAMPUP_DATA"]), folder / "data"
    flags = tiny.inputs(folder)
    shutil.copytree(real / "mnist", own / "mnist", ignore=shutil.ignore_patterns("*.lock"))
    shutil.copytree(real / "shakespeare", own / "shakespeare", ignore=shutil.ignore_patterns("*.lock"))
    os.environ["RAMPUP_DATA"] = str(own)
    data.MNIST_MIRRORS = data.SHAKESPEARE_MIRRORS = ("http://127.0.0.1:9/",)  # nobody is there
    for number in (15, 16):
        case = tiny.unbroken(number, flags[number], folder / str(number))
        assert not case.lost, case.lost
    return [
        Reader("MNIST", sorted((own / "mnist").glob("*.gz")), data.mnist, 250),
        Reader("Tiny Shakespeare", [own / "shakespeare" / "input.txt"], data.shakespeare, 1_000),
        *texts(folder),
        *checkpoints(folder),
        *tokens(folder, own),
        *photographs(folder, own),
        *records(folder),
    ]


def texts(folder: Path) -> list[Reader]:
    """Return the readers of a user's own text."""
    path = folder / "mine.txt"
    path.write_text("\ufeffThe café's 他们说 «да», 🙂 e\u0301!\r\n\n" + data.shakespeare()[:5_000], encoding="utf-8")

    def content_of():
        content = text.read(path)
        assert content == path.read_text(encoding="utf-8").replace("\ufeff", "")
        return content

    def words():
        content = path.read_bytes().decode(errors="replace").replace("\ufeff", "")
        found = text.split_words(content)
        assert "".join("".join(found).split()) == "".join(content.split())  # nothing is lost but blanks
        return text.join_words(found)

    return [Reader("text", [path], content_of, 15_000, False), Reader("words of a text", [path], words, 15_000, False)]


def checkpoints(folder: Path) -> list[Reader]:
    """Return the readers of checkpoints, the one place of the campaign that knows how they are read."""
    import jax
    import torch

    nanogpt, resnet, out = helpers.load(16), helpers.load(15), folder / "16"
    vocab = torch.load(out / "checkpoint.pt", weights_only=True)["vocab"]
    (folder / "precious").write_text("x" * 100)
    history = {path: path.read_bytes() for path in (out / "metrics.csv", out / "samples.txt")}

    def read_pt(name):
        state = checkpoint.read_torch(nanogpt.Config, out / name)
        return {**state, "config": vars(state["config"])}

    def resume_pt():
        config = checkpoint.load_flags(nanogpt.Config, out / "checkpoint.pt")
        config.steps += 1
        torch.manual_seed(0)
        model = nanogpt.Transformer(config, len(vocab))
        (optimizer,) = nanogpt.make_optimizers(config, model)
        step, state = checkpoint.resume_torch(
            config, vocab, model, [optimizer], torch.amp.GradScaler("cpu", enabled=False)
        )
        try:
            with Run(config, {"ln V": 1.0}, "cpu", state):
                assert (folder / "precious").read_text() == "x" * 100
        finally:
            for path, content in history.items():
                path.write_bytes(content)
        return step, state, model.state_dict(), optimizer.state_dict()["state"]

    @cache
    def new_state():  # in the process that reads, since JAX cannot be forked once it is in use
        config = checkpoint.load_flags(resnet.Config, folder / "15" / "checkpoint.npz")
        params = resnet.init_params(jax.random.key(0), config, 3)
        model = params, resnet.init_batch_stats(params)
        return *model, resnet.make_optimizer(config).init(params), model

    def resume_npz():
        config = checkpoint.load_flags(resnet.Config, folder / "15" / "checkpoint.npz")
        config.steps = (config.steps or 0) + 1
        state, step, run = checkpoint.resume_jax(config, new_state())
        return jax.tree.leaves(state), step, run

    def odd_pt(rng, content, _):
        state, file = torch.load(io.BytesIO(content), weights_only=True), io.BytesIO()
        torch.save(odd(rng, state), file)
        return "other values", file.getvalue()

    def odd_npz(rng, content, _):
        with np.load(io.BytesIO(content)) as file:
            arrays, file = dict(file), io.BytesIO()
        if rng.random() < 0.7:
            notes = json.dumps(odd(rng, json.loads(str(arrays["notes"]))))
            np.savez(file, **arrays | {"notes": notes})
        else:
            changed = odd(rng, arrays)
            changed = changed if isinstance(changed, dict) else {}
            np.savez(file, **{name or "-": value for name, value in changed.items()})
        return "other values", file.getvalue()

    pt, npz = [out / "checkpoint.pt"], [folder / "15" / "checkpoint.npz"]
    return [
        Reader("checkpoint.pt", pt, partial(read_pt, "checkpoint.pt"), 10_000),
        Reader("best.pt", [out / "best.pt"], partial(read_pt, "best.pt"), 2_000),
        Reader("checkpoint.pt, --resume", pt, resume_pt, 1_000),
        Reader("checkpoint.pt, --resume", pt, resume_pt, 3_000, False, odd_pt),
        Reader("checkpoint.npz, --resume", npz, resume_npz, 10_000),
        Reader("checkpoint.npz, --resume", npz, resume_npz, 3_000, False, odd_npz),
    ]


def tokens(folder: Path, own: Path) -> list[Reader]:
    """Return the readers of tokenised documents, and of what is left of tokenising when it is cut off."""
    openwebtext.DOCUMENTS = openwebtext.NOTED = 4  # a note after so many
    docs = folder / "docs.txt"

    def read():
        train, val, _ = openwebtext.read(docs)
        for words in (train, val):
            openwebtext.windows(words, list(range(0, len(words) - 9, 9)), 9)
        return np.array(train), np.array(val)

    notes = 0

    def cut_off(count, name, writes):
        nonlocal notes
        notes += writes and name.startswith("train") and name.endswith(".tmp")
        if notes == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    def begin():
        sys.addaudithook(file_operations(own / "openwebtext", cut_off))
        read()

    end(start(begin))
    (part,) = (own / "openwebtext").glob("*/train.part")
    note, half = part.with_suffix(".json"), part.read_bytes()
    state = note.read_bytes()
    end(start(read))  # which goes on
    files = [part.with_name(name) for name in ("tokens.json", "train.bin", "val.bin")]
    note.write_bytes(state)

    def go_on():
        part.write_bytes(half)
        for path in files[:2]:
            path.unlink(missing_ok=True)
        return read()

    return [
        Reader("tokens.json", files[:1], read, 2_000),
        Reader("tokens of documents", files[1:], read, 4_000, False),
        Reader("note of tokenising", [note], go_on, 1_000),
    ]


def photographs(folder: Path, own: Path) -> list[Reader]:
    """Return the reader of packed photographs."""

    def read():
        for packed in imagenet.prepare(str(folder / "photographs")):
            assert all(0 <= label < len(packed.classes) == 3 for label in packed.labels)
            for batch in imagenet.in_order(len(packed), 8):
                images, _ = imagenet.load_batch(packed, 32, None, (0.35, 1.0), batch)
                assert images.shape == (8, 32, 32, 3)

    read()
    (place,) = (path.parent for path in (own / "imagenet").rglob("set.json"))
    return [
        Reader("packed photographs, their lists", sorted(place.glob("*.json")), read, 2_000, False),
        Reader("packed photographs", sorted(place.glob("*.jpegs")), read, 2_000, False),
    ]


def records(folder: Path) -> list[Reader]:
    """Return the readers of what a run recorded."""
    program, place = find_exercise(16), folder / "learner"
    shutil.copytree(folder / "16", place / "out", ignore=shutil.ignore_patterns("*.pt", ".lock"))
    shutil.copy(helpers.train_py(16), place)

    def read():
        found = Folder(place, "")
        read_run(found, place / "out")
        return len(judge(program, found))

    def review():
        write_review(program, place, folder / "review.html", False)

    files = [place / "out" / name for name in ("metrics.csv", "result.json")]
    return [
        Reader("metrics.csv and result.json", files, read, 30_000, False),
        Reader("rampup review", [*files, place / "train.py", place / "out" / "loss.png"], review, 300, False),
    ]
