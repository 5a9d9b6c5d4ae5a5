"""An exercise's folder, read without trust: nothing in it is run, nothing outside it is read, all sizes are limited."""

import ast
import hashlib
import io
import json
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from common import UserError
from common.cli.course import ROOT, Exercise

MAX_SOURCE = 2 * 10**5  # bytes of a train.py; the longest in the course has a tenth of it
MAX_TEXT = 10**6  # of another text that is shown
MAX_PICTURE = 4 * 10**6
MAX_CSV = 40 * 10**6  # 600,000 steps of exercise 17 have half of it
MAX_ROW = 1000  # characters of a row of it
MAX_FILE = 10**7  # of a file that goes into the zip
MAX_FILES = 200
MAX_DEPTH = 10  # of folders in folders
SHOWN = 200  # characters of a name or a value
TOO_DEEP = f"files more than {MAX_DEPTH} folders deep are left out"
PICTURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}  # by their first bytes
# What a screen does not show, or what changes the order of the text: escape sequences, bidi controls, surrogates.
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
# In a file's name, what Windows reads as a drive, a folder, a stream or a device, or leaves out.
NOT_PORTABLE = re.compile(r'[<>:"\\|?*\t\n]|[. ]$|^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d¹²³]) *(\.|$)', re.I)


@dataclass
class Folder:
    """What there is to see in a folder; texts are made `visible`."""

    path: Path
    source: str  # train.py
    sha256: str = ""  # of its bytes
    result: dict = field(default_factory=dict)  # result.json, or run.json if there is no other; empty without a run
    interrupted: bool = False  # the run has not come to its end: `result` has no metrics
    series: dict = field(default_factory=dict)  # metrics.csv: [(step, value), …] by (split, metric)
    pictures: list = field(default_factory=list)  # (name, media type, bytes)
    samples: str = ""
    problems: list = field(default_factory=list)  # what could not be read, in sentences
    files: list = field(default_factory=list)  # (path in the folder, bytes, why it is left out of the zip or "")


def visible(text: str) -> str:
    """Return text with every control character but tab and line feed written as an escape, \\x1b for instance."""
    return INVISIBLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def read_folder(exercise: Exercise, path: Path | None = None) -> Folder:
    """Return what is in a learner's own folder at `path`; without one in the working directory, or else the exercise's.

    Raises UserError if there is no such folder or no readable train.py in it.
    """
    path = (path or own_folder() or ROOT / exercise.folder).resolve()
    if path.name == "train.py" and path.is_file():
        path = path.parent
    if not path.is_dir():
        raise UserError(f"there is no folder {visible(str(path))}: name the one that holds train.py with --folder PATH")
    try:
        folder = Folder(path, read_text(path / "train.py", MAX_SOURCE))
        folder.sha256 = hashlib.sha256(read_bytes(path / "train.py", MAX_SOURCE)).hexdigest()
    except FileNotFoundError:
        raise UserError(f"no train.py in {visible(str(path))}: name another folder with --folder PATH") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {visible(str(path / 'train.py'))}: {reason(error)}") from None
    read_run(folder, path / "out")
    list_files(folder)
    return folder


def own_folder() -> Path | None:
    """Return the working directory if it holds a train.py, which the user is then at work on; else None."""
    return Path.cwd() if Path("train.py").is_file() else None


def read_run(folder: Folder, out: Path) -> None:
    """Fill in what a run left in `out`, and why some of it cannot be read."""
    folder.interrupted = not os.path.lexists(out / "result.json") and os.path.lexists(out / "run.json")
    for part, name, read in (
        ("result", "run.json" if folder.interrupted else "result.json", read_result),
        ("series", "metrics.csv", read_metrics),
        ("samples", "samples.txt", read_text),
    ):
        try:
            setattr(folder, part, read(out / name))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            folder.problems.append(f"out/{name} cannot be read: {reason(error)}")
    read_pictures(folder, out, "out/")
    if not folder.pictures and "common.record" not in folder.source:  # beside it, where programs of one's own draw
        read_pictures(folder, folder.path, "")


def read_pictures(folder: Folder, out: Path, prefix: str) -> None:
    """Fill in the pictures that lie in `out`, and why some cannot be shown; `prefix` stands before their names."""
    names = os.listdir(out) if out.is_dir() and not out.is_symlink() else []
    for name in sorted(names, key=lambda name: (name != "loss.png", name)):
        if not name.lower().endswith((".png", ".jpg", ".jpeg")):
            continue
        try:
            data = read_bytes(out / name, MAX_PICTURE)
            kind = next(kind for start, kind in PICTURES.items() if data.startswith(start))
            folder.pictures.append((prefix + visible(name), kind, data))
        except StopIteration:
            folder.problems.append(f"{prefix}{visible(name)} is not shown: it is neither a PNG nor a JPEG picture")
        except (OSError, ValueError) as error:
            folder.problems.append(f"{prefix}{visible(name)} is not shown: {reason(error)}")


def reason(error: Exception) -> str:
    """Return why a file cannot be read, without its path on this machine, which is nobody else's business."""
    return visible(getattr(error, "strerror", None) or str(error))[:SHOWN]


def read_bytes(path: Path, most: int) -> bytes:
    """Return a file's bytes. Raises ValueError where it is no plain file, behind a link, or larger than `most`."""
    if path.is_symlink() or path.parent.is_symlink():
        raise ValueError("it is a link, which may lead anywhere")
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):  # a pipe would keep us waiting for ever
        raise ValueError("it is not a plain file")
    if info.st_size > most:
        raise ValueError(f"it has {size(info.st_size)}, and at most {size(most)} are shown")
    return path.read_bytes()


def read_text(path: Path, most: int = MAX_TEXT) -> str:
    """Return a file's text, made visible; what is not UTF-8 becomes "�". Raises ValueError likewise."""
    data = read_bytes(path, most)
    if b"\0" in data:
        raise ValueError(f"it is a binary file of {size(len(data))}")
    return visible(data.decode("utf-8", errors="replace"))


def read_result(path: Path) -> dict:
    """Return result.json, or run.json. Raises ValueError if it is not the object that `Run` writes."""
    result = json.loads(read_bytes(path, MAX_TEXT), object_pairs_hook=visible_pairs)
    if not isinstance(result, dict):
        raise ValueError("it is not a JSON object")
    for name in ("config", "metrics", "baselines", "versions"):
        if not isinstance(result.setdefault(name, {}), dict):
            raise ValueError(f'"{name}" is not a JSON object')
    for name in ("metrics", "baselines"):
        bad = next((key for key, value in result[name].items() if not is_number(value)), None)
        if bad is not None:
            raise ValueError(f'"{bad[:50]}" in "{name}" is not a finite number')
    if not result["metrics"] and path.name != "run.json":
        raise ValueError('it has no "metrics"')
    return result


def visible_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object of a JSON file with all its names and texts made visible."""
    return {visible(k)[:SHOWN]: visible(v) if isinstance(v, str) else v for k, v in pairs}


def is_number(value) -> bool:
    """Return whether a value out of a JSON file is a number that can be compared."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def read_metrics(path: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Return the values of metrics.csv. Raises ValueError at the first line that is not `step,split,metric,value`."""
    lines = io.TextIOWrapper(io.BytesIO(read_bytes(path, MAX_CSV)), "utf-8", errors="replace")
    if lines.readline(MAX_ROW).rstrip("\n") != "step,split,metric,value":
        raise ValueError('its first line is not "step,split,metric,value"')
    series: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for number, line in enumerate(iter(lambda: lines.readline(MAX_ROW), ""), 2):
        try:
            step, split, metric, value = line.split(",")  # Run quotes nothing
            series.setdefault((split, metric), []).append((int(step), float(value)))
        except ValueError:
            raise ValueError(f'its line {number} is not "step,split,metric,value" with two numbers') from None
    return {(visible(split), visible(metric)): points for (split, metric), points in series.items()}


def defaults(source: str, preset: object = None) -> dict[str, object]:
    """Return the values that a train.py writes out in class Config, by name; the program is not run.

    If its PRESETS has a preset of this name, what is written there replaces them.
    """
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    fields = {}
    for node in (node for cls in body if isinstance(cls, ast.ClassDef) and cls.name == "Config" for node in cls.body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            fields[node.target.id] = node.value
    for node in body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PRESETS":
            fields |= entries(entries(node.value).get(preset))
    values = {}
    for name, node in fields.items():
        with suppress(ValueError, TypeError, RecursionError):  # no literal
            values[name] = ast.literal_eval(node)
    return values


def entries(node: ast.expr | None) -> dict[object, ast.expr]:
    """Return the values of a dict that is written out, by those of its keys that are plain."""
    pairs = zip(node.keys, node.values) if isinstance(node, ast.Dict) else []
    return {key.value: value for key, value in pairs if isinstance(key, ast.Constant)}


def list_files(folder: Folder) -> None:
    """Fill in the folder's files, and which of them a zip leaves out and why."""
    for parent, folders, names in os.walk(folder.path):
        names += [name for name in folders if name.startswith(".") or (Path(parent) / name).is_symlink()]
        folders[:] = sorted(name for name in folders if name not in names and name != "__pycache__")
        inside = Path(parent).relative_to(folder.path)
        if inside == Path("out"):
            folders[:] = [name for name in folders if name != "dry_run"]  # no run that anybody wants to see
        if folders and len(inside.parts) == MAX_DEPTH:
            folders.clear()
            if TOO_DEEP not in folder.problems:
                folder.problems.append(TOO_DEEP)
        for name in sorted(name for name in names if name != ".lock"):  # a run's own, and empty
            path = Path(parent) / name
            info = path.lstat()
            why = ""
            if name.startswith("."):
                why = "hidden"
            elif stat.S_ISLNK(info.st_mode):
                why = "a link"
            elif not stat.S_ISREG(info.st_mode):
                why = "not a plain file"
            elif name.endswith(".tmp"):
                why = "incomplete: the program that wrote it was stopped"
            elif not is_portable(path.relative_to(folder.path)):
                why = "its name means something else on Windows"
            elif not os.access(path, os.R_OK):
                why = "cannot be read"
            elif info.st_size > MAX_FILE:
                why = f"more than {size(MAX_FILE)}"
            elif len(folder.files) >= MAX_FILES:
                folder.problems.append(f"the folder has more than {MAX_FILES} files; the others are left out")
                return
            folder.files.append((path.relative_to(folder.path).as_posix(), info.st_size, why))


def is_portable(path: Path) -> bool:
    """Return whether a relative path means the same everywhere; "C:evil" and "CON" do not."""
    return bool(path.parts) and not any(NOT_PORTABLE.search(name) or visible(name) != name for name in path.parts)


def size(count: int) -> str:
    """Return a number of bytes in a readable form: "50 MB"."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB" if count >= 1e3 else f"{count} bytes"
