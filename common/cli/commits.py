"""The commits of an exercise: a series of patches, one idea each, from the parent's train.py to its own."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from common import UserError
from common.cli.course import find, train_py
from common.cli.diff import changed_lines
from common.curriculum import ROOT, Exercise

HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
NAME = re.compile(r"(\d+)-[a-z0-9-]+")
MOST = 60  # changed lines of a commit
MOST_OF_A_MODEL = 110  # of one that brings a new architecture, or another library
LARGE = {(8, 1), (10, 2), (10, 4), (13, 1)}  # exercise and number of those


@dataclass(frozen=True)
class Commit:
    """One step of a series: what its patch is called, says, and makes of the program before it."""

    name: str  # "2-fused-attention"
    message: str  # the first line is its title
    before: str
    after: str

    @property
    def title(self) -> str:
        """Return the first line of the message."""
        return self.message.partition("\n")[0]

    @property
    def body(self) -> str:
        """Return the message below its title, in one paragraph."""
        return " ".join(self.message.partition("\n")[2].split())

    @property
    def lines(self) -> int:
        """Return how many lines it changes, as the course counts them."""
        return changed_lines(self.before, self.after)


def folder_of(exercise: Exercise) -> Path:
    """Return where the patches of an exercise lie."""
    return ROOT / exercise.folder / "commits"


def parent_source(exercise: Exercise) -> str:
    """Return the program that a series begins with."""
    return train_py(find(str(exercise.parent))).read_text(encoding="utf-8") if exercise.parent else ""


def read_commits(exercise: Exercise) -> list[Commit]:
    """Return the commits of an exercise in order; none if it is one idea. Raises UserError if a patch does not fit."""
    before, commits = parent_source(exercise), []
    for path in sorted(folder_of(exercise).glob("*.patch"), key=lambda path: int(path.name.partition("-")[0])):
        message, patch = split_message(path.read_text(encoding="utf-8"))
        try:
            after = apply(before, patch)
        except ValueError as error:
            hint = f"see `rampup commits {exercise.number} --split`, and the README's section Changing a program"
            raise UserError(f"{exercise.folder}/commits/{path.name} {error}: {hint}") from None
        commits.append(Commit(path.stem, message, before, after))
        before = after
    return commits


def commit_of(exercise: Exercise, number: int) -> Commit:
    """Return a commit of an exercise, 1 being the first. Raises UserError if it has none of that number."""
    commits = read_commits(exercise)
    if not 1 <= number <= len(commits):
        there = f"commits 1 to {len(commits)}" if commits else "no commits: it is one idea"
        raise UserError(f"{exercise.folder} has {there}")
    return commits[number - 1]


def split_message(text: str) -> tuple[str, str]:
    """Return the message and the diff of a patch file."""
    head, _, patch = text.partition("\n---\n")
    return re.sub(r"^Subject: \[.*?\] ", "", head).strip(), patch


def apply(source: str, patch: str) -> str:
    """Return what a unified diff makes of a source. Raises ValueError where a line is not what the diff says."""
    old, new, place = source.split("\n"), [], 0
    lines = patch.split("\n")
    start = next((i for i, line in enumerate(lines) if HUNK.match(line)), len(lines))
    for line in lines[start:]:
        if hunk := HUNK.match(line):
            first = int(hunk[1]) - 1
            new += old[place:first]
            place = first
        elif line[:1] in (" ", "-"):
            if place >= len(old) or old[place] != line[1:]:
                raise ValueError(f"does not fit: line {place + 1} is not {line[1:].strip()[:60]!r}")
            new += [line[1:]] * (line[0] == " ")
            place += 1
        elif line.startswith("+"):
            new.append(line[1:])
    return "\n".join(new + old[place:])


def check_commits(exercise: Exercise) -> list[str]:
    """Return what is wrong with the series of an exercise, in sentences."""
    commits = read_commits(exercise)
    if not commits:
        return []
    wrong = []
    if commits[-1].after != train_py(exercise).read_text(encoding="utf-8"):
        wrong.append(f"the patches of {exercise.folder} do not end at its train.py")
    for number, commit in enumerate(commits, 1):
        if not NAME.fullmatch(commit.name) or int(commit.name.partition("-")[0]) != number:
            wrong.append(f"{commit.name}: the name of a patch is its number in the series and a word or two")
        limit = MOST_OF_A_MODEL if (exercise.number, number) in LARGE else MOST
        if commit.lines > limit:
            wrong.append(f"{commit.name} changes {commit.lines} lines, at most {limit} are one idea")
        if not 3 <= len(commit.message.split("\n")) <= 10:
            wrong.append(f"{commit.name}: the message has a title, an empty line, and three to eight more")
    return wrong


def split(exercise: Exercise, folder: Path) -> list[Path]:
    """Write the program after each commit, with its message, into folders to be edited; return them."""
    commits = read_commits(exercise)
    if not commits:
        raise UserError(f"{exercise.folder} has no commits: it is one idea")
    folders = []
    for commit in commits:
        path = folder / commit.name
        try:
            path.mkdir(parents=True)
            (path / "train.py").write_text(commit.after, encoding="utf-8")
            (path / "message.txt").write_text(commit.message + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror or error}): name a new folder") from None
        folders.append(path)
    return folders


def join(exercise: Exercise, folder: Path) -> list[Path]:
    """Make the patches of an exercise of the programs in a folder that `split` wrote; return them."""
    names = sorted((path.name for path in folder.glob("*-*/") if NAME.fullmatch(path.name)), key=number_of)
    if not names:
        raise UserError(
            f"{folder} holds no folders such as 1-name with a train.py: see `rampup commits N --split FOLDER`"
        )
    before, texts = parent_source(exercise), {}
    for i, name in enumerate(names, 1):
        try:
            after, message = (
                (folder / name / file).read_text(encoding="utf-8") for file in ("train.py", "message.txt")
            )
        except OSError as error:
            raise UserError(f"cannot read {folder / name} ({error.strerror or error})") from None
        texts[f"{name}.patch"] = as_patch(before, after, f"[{i}/{len(names)}] {message.strip()}")
        before = after
    if before != train_py(exercise).read_text(encoding="utf-8"):
        raise UserError(
            f"the last program, {folder / names[-1]}/train.py, is not {exercise.folder}/train.py: make it so"
        )
    target = folder_of(exercise)
    target.mkdir(exist_ok=True)
    for path in target.glob("*.patch"):
        path.unlink()
    for name, text in texts.items():
        (target / name).write_text(text, encoding="utf-8")
    return [target / name for name in texts]


def number_of(name: str) -> int:
    """Return the number that a commit's name begins with."""
    return int(name.partition("-")[0])


def as_patch(before: str, after: str, message: str) -> str:
    """Return a patch file: the message, and the difference in the form that `git apply` takes."""
    lines = [text.splitlines(keepends=True) for text in (before, after)]
    diff = "".join(difflib.unified_diff(*lines, "a/train.py", "b/train.py"))
    return f"Subject: {message}\n---\n{diff}"
