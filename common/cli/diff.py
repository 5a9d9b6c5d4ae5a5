"""The difference between two programs: rows of old and new lines side by side, with the changed words marked."""

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

from rich.console import Console
from rich.text import Text

CONTEXT = 3  # unchanged lines shown around a change
COUNTED = "added and removed, without docstring and indentation"  # what `stat` counts
MOST_PAIRS = 100_000  # pairs of lines that are compared; takes a second
ALIKE = 0.5  # two lines stand side by side if they share so much of their words


@dataclass(frozen=True)
class Row:
    """One line of a side-by-side view: an old line, the new one that took its place, or both where they are alike."""

    old: str | None
    new: str | None
    old_number: int | None  # counted from 1
    new_number: int | None

    @property
    def kind(self) -> str:
        """Return "same", "changed", "removed" or "added"."""
        if self.old is None or self.new is None:
            return "added" if self.old is None else "removed"
        return "same" if self.old == self.new else "changed"


def compare(old: str, new: str) -> list[Row]:
    """Return all lines of two texts as rows. A line that was only indented anew counts as changed."""
    old_lines, new_lines = old.rstrip("\n").split("\n"), new.rstrip("\n").split("\n")
    stripped = [line.strip() for line in old_lines], [line.strip() for line in new_lines]
    rows = []
    for kind, i, i_end, j, j_end in SequenceMatcher(None, *stripped).get_opcodes():
        if kind == "equal":
            pairs = zip(range(i, i_end), range(j, j_end))
        else:
            pairs = align(stripped[0][i:i_end], stripped[1][j:j_end], i, j)
        for a, b in pairs:
            texts = None if a is None else old_lines[a], None if b is None else new_lines[b]
            rows.append(Row(*texts, None if a is None else a + 1, None if b is None else b + 1))
    return rows


def align(old: list[str], new: list[str], i: int, j: int) -> list[tuple[int | None, int | None]]:
    """Return the indices, from i and j on, of the lines that belong side by side, in order, and None beside the others.

    Of all ways to pair them up, the one whose pairs are most alike; no pairs if there are too many to try.
    """
    if len(old) * len(new) > MOST_PAIRS:
        return [(i + a, None) for a in range(len(old))] + [(None, j + b) for b in range(len(new))]
    bags = [[Counter(re.findall(r"\w+|[^\w\s]", line)) for line in lines] for lines in (old, new)]
    best = [[0.0] * (len(new) + 1) for _ in range(len(old) + 1)]  # best[a][b]: of old[a:] and new[b:]
    alike = {}
    for a in reversed(range(len(old))):
        for b in reversed(range(len(new))):
            shared = 2 * (bags[0][a] & bags[1][b]).total() / max(1, bags[0][a].total() + bags[1][b].total())
            alike[a, b] = shared if shared >= ALIKE else -1.0
            best[a][b] = max(best[a + 1][b], best[a][b + 1], best[a + 1][b + 1] + alike[a, b])
    pairs, a, b = [], 0, 0
    while a < len(old) or b < len(new):
        if a < len(old) and b < len(new) and alike[a, b] > 0 and best[a][b] == best[a + 1][b + 1] + alike[a, b]:
            pairs.append((i + a, j + b))
            a, b = a + 1, b + 1
        elif a < len(old) and (b == len(new) or best[a][b] == best[a + 1][b]):
            pairs.append((i + a, None))
            a += 1
        else:
            pairs.append((None, j + b))
            b += 1
    return pairs


def words(row: Row) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Return the old and the new line of a row in pieces, each with whether it was changed."""
    if row.kind != "changed" or len(row.old) + len(row.new) > 2000:
        return [(row.old or "", False)], [(row.new or "", False)]
    sides = [re.findall(r"\w+|\s+|[^\w\s]", line) for line in (row.old, row.new)]
    pieces = [], []
    for kind, i, i_end, j, j_end in SequenceMatcher(None, *sides, autojunk=False).get_opcodes():
        for side, piece in zip(pieces, ("".join(sides[0][i:i_end]), "".join(sides[1][j:j_end]))):
            if piece:
                side.append((piece, kind != "equal"))
    return pieces


def stretches(rows: list[Row], context: int = CONTEXT) -> Iterator[tuple[bool, list[Row]]]:
    """Yield the rows in stretches, each with whether it is far from any change, and long enough to be folded."""
    changes = [i for i, row in enumerate(rows) if row.kind != "same"]
    near = {i for change in changes for i in range(change - context, change + context + 1)}
    for far, group in groupby(range(len(rows)), key=lambda i: i not in near):
        stretch = [rows[i] for i in group]
        yield far and len(stretch) > CONTEXT, stretch


def stat(old: str, new: str, budget: int | None = None) -> str:
    """Return the stat line: the course's count of changed lines, and the budget of the step where there is one."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of a learner's "\d"
            count = changed_lines(old, new)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "the changed lines cannot be counted: one of the two is not valid Python"
    text = f"{count} changed line{'s' * (count != 1)}"
    return text if budget is None else f"{text}, budget {budget}"


def alike(old: str, new: str) -> float:
    """Return which share of the lines of two programs they have in common, empty ones left out."""
    before, after = (Counter(line.strip() for line in text.splitlines() if line.strip()) for text in (old, new))
    return 2 * (before & after).total() / max(1, before.total() + after.total())


def changed_lines(parent: str, child: str) -> int:
    """Count the lines added and removed between two programs, module docstrings and indentation left out."""
    before, after = _code_lines(parent), _code_lines(child)
    blocks = SequenceMatcher(None, before, after).get_matching_blocks()
    return len(before) + len(after) - 2 * sum(block.size for block in blocks)


def _code_lines(source: str) -> list[str]:
    return [line.strip() for line in source.splitlines()[docstring_end(source) :]]


def docstring_end(source: str) -> int:
    """Return the number of the line that ends a program's docstring; 0 without one. Raises SyntaxError, ValueError."""
    first = next(iter(ast.parse(source).body), None)
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return first.end_lineno if has_docstring else 0


def without_docstrings(rows: list[Row], old: str, new: str) -> list[Row]:
    """Return the rows below both programs' docstrings; all of them where one is not valid Python."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of a learner's "\d"
            ends = docstring_end(old), docstring_end(new)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return rows
    return [row for row in rows if (row.old_number or 0) > ends[0] or (row.new_number or 0) > ends[1]]


def print_diff(console: Console, rows: list[Row]) -> None:
    """Print the changes with three lines around each: old ones in red with -, new ones in green with +."""
    width = len(str(len(rows)))
    for far, stretch in stretches(rows):
        if far:
            console.print(Text(f"{'⋮':>{width}}  {len(stretch)} unchanged lines", "dim"))
            continue
        for same, group in groupby(stretch, key=lambda row: row.kind == "same"):
            group = list(group)
            if same:
                for row in group:
                    console.print(
                        Text.assemble((f"{row.old_number:{width}} {row.new_number:{width}}   ", "dim"), row.new)
                    )
                continue
            for row in group:
                if row.old is not None:
                    print_line(console, f"{row.old_number:{width}} {'':{width}} - ", words(row)[0], "red")
            for row in group:
                if row.new is not None:
                    print_line(console, f"{'':{width}} {row.new_number:{width}} + ", words(row)[1], "green")


def print_line(console: Console, start: str, pieces: list[tuple[str, bool]], colour: str) -> None:
    """Print a changed line, its changed words reversed."""
    marked = [(piece, f"{colour} reverse" if changed else colour) for piece, changed in pieces]
    console.print(Text.assemble((start, colour), *marked))
