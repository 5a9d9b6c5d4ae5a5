"""A folder to begin an exercise in: the program before it, the task, and small checks of the parts to write."""

import ast
import re
import textwrap
from pathlib import Path

from common import UserError
from common.cli.commits import commit_of
from common.cli.course import Exercise, find, train_py
from common.cli.diff import docstring_end
from common.curriculum import ROOT

STARTS = Path(__file__).parent / "starts"
MARK = ".exercise"  # the file that says which exercise a folder is of
GAP = "derive the gradient on paper, then write it here: see task.md"


def start(exercise: Exercise, path: Path, own: Path | None = None, commit: int = 0) -> None:
    """Write the folder to begin an exercise in; `own` is the learner's program of the exercise before it.

    With `commit` the program is the one after that many of the exercise's commits.

    Raises UserError if one of its files exists already, or if something cannot be read or written.
    """
    folder = path.absolute()
    files = {
        "train.py": first_program(exercise, own, commit),
        "check_it.py": checks(exercise),
        "task.md": task(exercise),
    }
    files[MARK] = exercise.folder + "\n"
    if there := [name for name in files if (folder / name).exists()]:
        raise UserError(f"{path} has a {there[0]} already, which stays as it is: name a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with open(folder / name, "x", encoding="utf-8") as file:  # never over a file that has come in between
                file.write(text)
    except OSError as error:
        raise UserError(f"cannot write to {path} ({error.strerror or error}): name another folder") from None


def to_do(exercise: Exercise) -> tuple[str, str]:
    """Return the list of what to do in an exercise, and the program that checks it. Raises UserError without one."""
    try:
        text = (STARTS / f"{exercise.number:02}.py").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"there is no start for {exercise.folder}: copy the program of its parent") from None
    _, docstring, code = text.split('"""', 2)
    return docstring.removeprefix("To do:\n").strip(), code.lstrip("\n")


def checks(exercise: Exercise) -> str:
    """Return check_it.py."""
    title = f"Small checks of exercise {exercise.number}, in the order of its tasks. They call what train.py defines."
    return f'"""{title}\n\n    python check_it.py\n"""\n\n{to_do(exercise)[1]}'


def first_program(exercise: Exercise, own: Path | None = None, commit: int = 0) -> str:
    """Return the train.py to begin with: the parent's, or for exercise 1 its own with a gap; and what is to be done.

    Raises UserError if the learner's `own` program cannot be read.
    """
    parent = find(str(exercise.parent)) if exercise.parent else exercise
    source, end = read_program(own or train_py(parent))
    so_far = f"So far this is the program of exercise {parent.number}."
    if commit:
        made = commit_of(exercise, commit)
        source, end = made.after, docstring_end(made.after)
        so_far = f"So far {commit} of its commits are made, up to: {made.title}. Some of this is done already."
    elif own:
        so_far = f"So far this is {own.name} as you wrote it."
    elif not exercise.parent:
        so_far = "This program is whole but for the gradient."
    lines = source.splitlines(keepends=True)[end:]
    code = "".join(lines) if exercise.parent or own or commit else with_gap(source, "backward")
    sentence = "\n".join(textwrap.wrap(f'Exercise {exercise.number}: "{exercise.sentence}"', 116))
    return f'''"""{sentence}

{so_far} To do:
{to_do(exercise)[0]}

    python train.py        run it
    python check_it.py     try its parts
    rampup check           run it, and see what falls short
    rampup hint            a nudge (--more: what to look at)

What is asked in full is in task.md.
"""

{code.lstrip()}'''


def read_program(path: Path) -> tuple[str, int]:
    """Return a program, and the number of the line that ends its docstring, 0 without one."""
    try:
        source = path.read_text(encoding="utf-8")
        return source, docstring_end(source)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "it is no Python program"
        raise UserError(f"cannot begin with {path} ({reason}): name the train.py of the exercise before") from None


def with_gap(source: str, name: str) -> str:
    """Return a program without its docstring, and with the body of a function taken out, all but its docstring."""
    function = next(node for node in ast.parse(source).body if getattr(node, "name", "") == name)
    lines = source.splitlines(keepends=True)
    gap = f'    raise NotImplementedError("{GAP}")\n'
    before = lines[docstring_end(source) : function.body[0].end_lineno]
    return "".join([*before, gap, *lines[function.end_lineno :]])


def task(exercise: Exercise) -> str:
    """Return task.md: what the lesson asks, and where to read."""
    readme = ROOT / exercise.folder / "README.md"
    asked = re.compile(r"^## Your task\n(.*?)^(?:## |\*\*What to expect)", re.M | re.S)
    text = asked.search(readme.read_text(encoding="utf-8"))[1]
    text = text.replace(f"Begin with `rampup start {exercise.number}`. ", "")
    text = (
        text.replace("the folded hints below", "the lesson's folded hints")
        .replace("](../", f"]({ROOT.as_uri()}/")
        .strip()
    )
    return f"""# Exercise {exercise.number}: {exercise.folder[5:]}

> {exercise.sentence}

{text}

## Where to read

- The lesson, with the maths in folded hints: {readme}. Its program, the solution, lies beside it.
- Terms: {ROOT / "common" / "cli" / "pages" / "glossary.md"}.
- When nothing is learnt: {ROOT / "common" / "cli" / "pages" / "it-does-not-learn.md"}.
"""


def marked(folder: Path) -> str:
    """Return which exercise a folder was started for; nothing if it does not say."""
    try:
        text = (folder / MARK).read_text(encoding="utf-8")[:100].strip()
    except (OSError, ValueError):
        return ""
    return text if re.fullmatch(r"ex\d\d_\w+", text) else ""
