"""The questions of a folder: programs beside train.py whose docstring's first line is a question. None of them is run.

Each writes what it measured to out/<its name>.json (see `answer` in common/record.py).
"""

import ast
import json
import re
from contextlib import suppress
from itertools import islice
from pathlib import Path

from common.cli.course import built
from common.cli.folder import MAX_SOURCE, MAX_TEXT, is_number, read_bytes, read_text, reason, visible_pairs
from common.curriculum import ROOT
from common.record import in_words

from rich.console import Console
from rich.text import Text

MOST = 50  # questions of a folder, and numbers of an answer, that are shown
GUESS = re.compile(r"(\*\*Guess first:\*\* .*?)\n\n", re.DOTALL)
SECONDS = re.compile(r"(\d+) CPU seconds")


def questions(folder: Path) -> dict[Path, str]:
    """Return the docstring of each question's program in a folder, by its path."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        with suppress(OSError, ValueError, SyntaxError, RecursionError, MemoryError):
            docstring = ast.get_docstring(ast.parse(read_text(path, MAX_SOURCE))) or ""
            if path.name != "train.py" and title(docstring).endswith("?") and len(found) < MOST:
                found[path] = docstring
    return found


def title(docstring: str) -> str:
    """Return the question, which is the docstring's first line."""
    return docstring.partition("\n")[0]


def read_answer(program: Path) -> list[tuple[str, str, str, bool | None]]:
    """Return what a question's last run has measured: each number's name, value, prediction, and whether it held.

    Raises FileNotFoundError if it has not been run, ValueError if the file is not one that `answer` writes.
    """
    path = program.parent / "out" / f"{program.stem}.json"
    rows = []
    try:
        numbers = json.loads(read_bytes(path, MAX_TEXT), object_pairs_hook=visible_pairs)["numbers"]
        for name, entry in islice(numbers.items(), MOST):
            value, (least, most), held = entry["value"], entry["predicted"], entry["held"]
            if not all(end is None or is_number(end) for end in (least, most)) or not isinstance(held, bool | None):
                raise ValueError
            rows.append((name, f"{value:.4g}" if is_number(value) else "?", in_words(least, most), held))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is not what answer() writes"
        raise ValueError(f"out/{path.name} cannot be read: {why}") from None
    return rows


def told(program: Path) -> Text:
    """Return in a few words what the last run of a question has shown."""
    try:
        wrong = [f"{name}={value}" for name, value, _, held in read_answer(program) if held is False]
    except FileNotFoundError:
        return Text("not run", "dim")
    except ValueError as error:
        return Text(str(error), "red")
    return Text(f"no: {', '.join(wrong)}", "yellow") if wrong else Text("yes", "green")


def print_questions(console: Console) -> None:
    """Print all questions of the course: program, CPU seconds, and whether what was predicted held in its last run."""
    for exercise in built():
        for path, docstring in questions(ROOT / exercise.folder).items():
            seconds = SECONDS.search(docstring)
            line = Text.assemble((f"{exercise.number:2}  "), (f"{exercise.folder}/{path.name}", "bold"))
            line.append(f"  {seconds[1]} s  " if seconds else "  ", "cyan")
            console.print(line.append_text(told(path)))
            console.print(Text(f"    {title(docstring)}", "dim"))


def answered(folder: Path) -> list[dict]:
    """Return, for a review, the questions of a folder that have been run: question, program, rows or what is wrong."""
    shown = []
    for path, docstring in questions(folder).items():
        with suppress(FileNotFoundError):
            try:
                shown.append({"title": title(docstring), "name": path.name, "rows": read_answer(path), "problem": ""})
            except ValueError as error:
                shown.append({"title": title(docstring), "name": path.name, "rows": [], "problem": str(error)})
    return shown


def page() -> list[dict]:
    """Return, for the site, all questions of the course: exercise, title, where its lesson has it, what to guess."""
    entries = []
    for exercise in built():
        folder = ROOT / exercise.folder
        lesson = (folder / "README.md").read_text(encoding="utf-8")
        for docstring in questions(folder).values():
            guess = GUESS.search(lesson.partition(f"### {title(docstring)}\n")[2])
            entries.append(
                {
                    "exercise": exercise,
                    "title": title(docstring),
                    "link": f"{exercise.folder}.html#{anchor(title(docstring))}",
                    "guess": guess[1] if guess else "",
                }
            )
    return entries


def anchor(heading: str) -> str:
    """Return the id of a heading, made as GitHub makes it: "What is x?" is what-is-x."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
