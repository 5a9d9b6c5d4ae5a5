"""Hints for an exercise in three steps: a nudge, what to look at, the lines that the solution adds."""

import re
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path

from common import UserError
from common.cli.course import Exercise, find, train_py
from common.cli.diff import compare, docstring_end

from rich.console import Console
from rich.text import Text

HINTS = Path(__file__).parent / "hints"
FAULTS = Path(__file__).parent / "pages" / "it-does-not-learn.md"
WIDTH = 100  # of the text on a wide terminal


@dataclass(frozen=True)
class Hint:
    """What a learner sees or asks, where to look, and what to look at there."""

    symptom: str
    nudge: str
    more: str


def read_hints(exercise: Exercise) -> list[Hint]:
    """Return the hints of an exercise, from hints/NN.md. Raises UserError where there are none.

    Each begins with a line `## symptom`; a line `More:` stands between its two paragraphs.
    """
    try:
        text = (HINTS / f"{exercise.number:02}.md").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"there are no hints for {exercise.folder}: see {exercise.folder}/README.md") from None
    hints = []
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        symptom, _, rest = part.partition("\n")
        nudge, _, more = rest.partition("\nMore:\n")
        hints.append(Hint(symptom, *(" ".join(paragraph.split()) for paragraph in (nudge, more))))
    return hints


def print_hints(console: Console, exercise: Exercise, more: bool, most: bool) -> None:
    """Print the nudges, with what to look at, and with the lines of the solution; then how to get the next step."""
    hints = read_hints(exercise)
    console.print(Text.assemble((f"Exercise {exercise.number}: ", "bold"), exercise.sentence))
    for hint in hints:
        console.print(Text(f"\n{hint.symptom}", "bold cyan"))
        print_paragraph(console, hint.nudge)
        if more or most:
            print_paragraph(console, hint.more, "→ ")
    if most:
        print_lines(console, exercise)
    if most:
        last = f"`rampup diff {exercise.number}` shows what these lines replace" if exercise.parent else ""
    elif more:
        last = f"For any network that does not learn: {FAULTS}\n"
        last += f"The lines of the solution that are new in this exercise: `rampup hint {exercise.number} --most`"
    else:
        last = f"What to look at, for each of these: `rampup hint {exercise.number} --more`"
    if last:
        console.print(Text(f"\n{last}", "dim"))


def print_paragraph(console: Console, text: str, start: str = "") -> None:
    """Print a paragraph, indented, broken where the terminal or a readable line ends."""
    width = max(40, min(shutil.get_terminal_size().columns, WIDTH))
    indents = {"initial_indent": f"  {start}", "subsequent_indent": " " * (2 + len(start))}
    console.print(Text(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False, **indents)))


def print_lines(console: Console, exercise: Exercise) -> None:
    """Print the lines that an exercise adds to its parent's program, or where to look in a program without a parent."""
    source = train_py(exercise).read_text(encoding="utf-8")
    if not exercise.parent:
        number = source[: source.index("def backward(")].count("\n") + 1
        console.print(Text("\nThere is no program before this one", "bold cyan"))
        text = f"Read the function `backward` in {exercise.folder}/train.py, from line {number} on, and leave the rest."
        print_paragraph(console, text)
        return
    parent = find(str(exercise.parent))
    console.print(Text(f"\nThe lines that {exercise.folder}/train.py adds to {parent.folder}/train.py", "bold cyan"))
    previous = docstring_end(source)
    for row in compare(train_py(parent).read_text(encoding="utf-8"), source):
        if row.new and row.new.strip() and row.kind != "same" and row.new_number > previous:
            if row.new_number > previous + 1:
                console.print(Text("   ⋮", "dim"))
            console.print(Text.assemble((f"{row.new_number:4}  ", "dim"), (row.new, "green")))
            previous = row.new_number
