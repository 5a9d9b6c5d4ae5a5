"""The command line of `rampup`, one function per command."""

import os
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Annotated

from common import UserError, cli
from common.cli import course
from common.cli.folder import read_result, visible
from common.program import clean_exit

import tyro
from rich.console import Console
from rich.text import Text
from tyro.extras import SubcommandApp

# The other modules are imported by the commands that need them, so that each starts at once.


app = SubcommandApp()
console = Console(highlight=False, soft_wrap=True)
Name = Annotated[str, tyro.conf.arg(metavar="EXERCISE")]  # of an exercise: 9, ex09_mnist_cnn, a path that ends so
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]


@app.command(name="list")
def list_exercises(questions: bool = False) -> None:
    """Show the tree of exercises: number, folder, framework, the last run in its out/, the curriculum's sentence.

    Args:
        questions: show the questions that go further instead, and whether what was predicted held when you ran them
    """
    if questions:
        from common.cli.questions import print_questions

        return print_questions(console)
    there = course.built()
    width = min(shutil.get_terminal_size().columns, 120)
    for exercise, branch, below in course.walk():
        line = Text.assemble((branch, "dim"), f"{exercise.number:2}  ", (exercise.folder, "bold"))
        if exercise in there:
            source = course.train_py(exercise).read_text(encoding="utf-8")
            line.append(f"  {course.framework(source)}", "cyan").append("  ").append_text(last_run(exercise))
        else:
            line.append("  to come", "dim")
        console.print(line)
        for words in textwrap.wrap(exercise.sentence, max(30, width - len(below) - 4)):
            console.print(Text.assemble((f"{below}    {words}", "dim")))


def last_run(exercise: course.Exercise) -> Text:
    """Return what result.json in the exercise's out/ says: its figure and its date."""
    try:
        result = read_result(course.ROOT / exercise.folder / "out" / "result.json")
    except FileNotFoundError:
        interrupted = (course.ROOT / exercise.folder / "out" / "run.json").exists()
        return Text("interrupted", "yellow") if interrupted else Text("not run", "dim")
    except (OSError, ValueError, RecursionError):
        return Text("out/result.json cannot be read", "red")
    figures = [figure for figure in course.expected(exercise) if figure.metric in result["metrics"]]
    shown = [f"{f.metric.replace('_', ' ')} {f.shown(result['metrics'][f.metric])}" for f in figures]
    return Text(f"{', '.join(shown) or 'run'} ({visible(str(result.get('date', 'no date')))[:10]})", "green")


@app.command
def diff(
    exercises: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="[EXERCISE [EXERCISE]]")]] = (),
    html: File = None,
    stat: bool = False,
) -> None:
    """Show what an exercise changed in its parent's program, or compare two exercises.

    Args:
        exercises: one exercise, to compare it with its parent, or two exercises
        html: write the comparison to this file, as a page with the two side by side
        stat: show only how many lines each step changed, and its budget
    """
    from common.cli import diff as difference

    if not stat and len(exercises) not in (1, 2):
        raise UserError("rampup diff takes one exercise or two, for example `rampup diff 9`, or --stat")
    found = [course.find(name) for name in exercises]
    steps = [(course.find(str(e.parent)), e) for e in found or course.built() if e.parent]
    if len(found) == 2:
        steps = [tuple(found)]
    if not steps:
        raise UserError(f"{found[0].folder} has no parent: name two exercises, for example `rampup diff 1 2`")
    if stat:
        console.print(f"changed lines of train.py ({difference.COUNTED})")
    for old, new in steps:
        names = [f"{exercise.folder}/train.py" for exercise in (old, new)]
        texts = [visible(course.train_py(exercise).read_text(encoding="utf-8")) for exercise in (old, new)]
        counted = difference.stat(*texts, new.budget if new.parent == old.number else None)
        counted_how = f"{counted} ({difference.COUNTED})"
        if stat:
            console.print(f"{old.number:2} → {new.number:2}  {counted}")
        elif html:
            from common.cli.html import diff_parts, render

            write(html, render("diff.html", names=names, stat=counted_how, parts=diff_parts(*texts)))
        else:
            console.print(Text.assemble((f"{names[0]} → {names[1]}\n", "bold"), f"{counted_how}\n"))
            difference.print_diff(console, difference.compare(*texts))


@app.command
def hint(exercise: tyro.conf.Positional[Name], more: bool = False, most: bool = False) -> None:
    """Help with an exercise, in three steps: a nudge, what to look at, the lines of the solution.

    Args:
        exercise: the exercise that you are at
        more: say what to look at, too
        most: say that, and show the lines that the solution adds to the program before it
    """
    from common.cli.hint import print_hints

    print_hints(console, course.find(exercise), more, most)


@app.command
def review(
    exercise: tyro.conf.Positional[Name],
    folder: Folder = None,
    html: File = None,
    zip: bool = False,
    by: Annotated[str, tyro.conf.arg(name="from", metavar="NAME")] = "",
    note: str = "",
) -> None:
    """Write one HTML file with all that a mentor needs to review an exercise. Nothing in the folder is run.

    Args:
        exercise: the exercise that the folder solves
        folder: your own folder, wherever it is; without it, the working directory if it has a train.py, else the
            checkout's
        html: the file to write; without it, review_exNN_name.html in the working directory
        zip: write a zip file that holds the page and the folder
        by: your name, for the head of the page
        note: a sentence or a question to your mentor, which stands first
    """
    from common.cli.review import write_review

    found = course.find(exercise)
    print(write_review(found, folder, html or Path(f"review_{found.folder}.html"), zip, by, note))


@app.command
def check(exercise: tyro.conf.Positional[Name], folder: Folder = None, dry_run: bool = False) -> None:
    """Run a train.py, with --dry-run and then in full, and say line by line what is right and what falls short.

    A program that does not know --dry-run is run as it is, and judged by the losses that it prints. The exit code is 1
    if anything falls short.

    Args:
        exercise: the exercise that the program solves
        folder: your own folder, wherever it is; without it, the working directory if it has a train.py, else the
            checkout's
        dry_run: only --dry-run, not the run in full
    """
    from common.cli.check import check as check_folder

    if not check_folder(console, course.find(exercise), folder, dry_run):
        sys.exit(1)


@app.command
def site(directory: tyro.conf.Positional[Path]) -> None:
    """Write all lessons as a static site, which needs no server and loads nothing from other hosts.

    Args:
        directory: the folder to write index.html and the other pages to; files with the same names are overwritten
    """
    from common.cli.site import write_site

    print(write_site(directory))


def write(path: Path, text: str) -> None:
    """Write a text to a file and print the path. Raises UserError if that fails."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error}): name another file") from None
    print(path)


def main() -> None:
    """Run the command line; an error that the user can fix ends it with one sentence and exit code 1."""
    if sys.stdout is None:  # closed, by `>&-` for instance
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    with clean_exit():
        app.cli(prog="rampup", description=cli.__doc__, config=(tyro.conf.FlagCreatePairsOff,))
