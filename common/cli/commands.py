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
from common.cli.start import marked
from common.curriculum import find_exercise
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
Maybe = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="[EXERCISE]")]]  # left out in a folder of `start`


@app.command(name="list")
def list_exercises(questions: bool = False) -> None:
    """Show the tree of exercises, with the last run of each, and your own folders in the working directory.

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
            line.append(f"  {course.framework(source)}", "cyan").append("  ")
            line.append_text(last_run(exercise, course.ROOT / exercise.folder))
        else:
            line.append("  to come", "dim")
        console.print(line)
        for words in textwrap.wrap(exercise.sentence, max(30, width - len(below) - 4)):
            console.print(Text.assemble((f"{below}    {words}", "dim")))
    for place in sorted(Path().glob("*/.exercise"))[:100]:
        if exercise := find_exercise(marked(place.parent)):
            line = Text.assemble("yours: ", (visible(place.parent.name), "bold"), f"  exercise {exercise.number}  ")
            console.print(line.append_text(last_run(exercise, place.parent)))


def last_run(exercise: course.Exercise, folder: Path) -> Text:
    """Return what result.json in the out/ of an exercise's folder says: its figure and its date."""
    try:
        result = read_result(folder / "out" / "result.json")
    except FileNotFoundError:
        interrupted = (folder / "out" / "run.json").exists()
        return Text("interrupted", "yellow") if interrupted else Text("not run", "dim")
    except (OSError, ValueError, RecursionError):
        return Text("out/result.json cannot be read", "red")
    figures = [figure for figure in course.expected(exercise) if figure.metric in result["metrics"]]
    shown = [f"{f.metric.replace('_', ' ')} {f.shown(result['metrics'][f.metric])}" for f in figures]
    return Text(f"{', '.join(shown) or 'run'} ({visible(str(result.get('date', 'no date')))[:10]})", "green")


@app.command(name="start")
def start_exercise(
    exercise: tyro.conf.Positional[Name],
    folder: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="[FOLDER]")]] = None,
    program: File = None,
    commit: Annotated[int, tyro.conf.arg(metavar="K")] = 0,
) -> None:
    """Make a folder of your own to begin an exercise in: the program before it, the tasks, and small checks.

    Args:
        exercise: the exercise to begin
        folder: the folder to make; without it, my_exNN_name in the working directory
        program: your own train.py of the exercise before it, to begin with in place of the course's
        commit: begin with the program after this commit of the exercise, the first steps being made
    """
    from common.cli.start import start

    found = course.find(exercise)
    target = folder or Path(f"my_{found.folder}")
    start(found, target, program, commit)
    print(f"{target} has train.py, with your tasks at its head, task.md and check_it.py. To begin:\n")
    print(f"    cd {target}\n    python check_it.py")


def which(exercise: str, folder: Path | None = None) -> course.Exercise:
    """Return the exercise of that name; without a name, the one that the folder, or the working directory, began with.

    Raises UserError if neither says which.
    """
    place = (folder or Path()).resolve()
    place = place.parent if place.name == "train.py" else place
    if not exercise and not marked(place):
        raise UserError("which exercise? Give its number (rampup check 4), or work in a folder of `rampup start`")
    return course.find(exercise or marked(place))


@app.command
def diff(
    exercises: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="[EXERCISE [EXERCISE]]")]] = (),
    commit: Annotated[int, tyro.conf.arg(metavar="K")] = 0,
    html: File = None,
    stat: bool = False,
) -> None:
    """Show what an exercise changed in its parent's program, or compare two exercises.

    Where an exercise holds several ideas, its commits are listed first, each one idea.

    Args:
        exercises: one exercise, to compare it with its parent, or two exercises
        commit: show this commit alone, 1 being the first
        html: write the comparison to this file, as a page with the two side by side
        stat: show only how many lines each step changed, and its budget
    """
    from common.cli import diff as difference

    if not stat and len(exercises) not in (1, 2):
        raise UserError("rampup diff takes one exercise or two, for example `rampup diff 9`, or --stat")
    found = [course.find(name) for name in exercises]
    if commit:
        if len(found) != 1:
            raise UserError("--commit is of one exercise, for example `rampup diff 7 --commit 2`")
        show_commit(found[0], commit, html)
        return
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
            from common.cli.html import commit_parts, diff_parts, render

            commits = commit_parts(new) if new.parent == old.number else []
            about = {"names": names, "stat": f"{counted_how}.", "commits": commits}
            write(html, render("diff.html", **about, parts=diff_parts(*texts)))
        else:
            console.print(Text.assemble((f"{names[0]} → {names[1]}\n", "bold"), f"{counted_how}\n"))
            if new.parent == old.number:
                list_commits(new)
            difference.print_diff(console, difference.compare(*texts))


def list_commits(exercise: course.Exercise) -> None:
    """Print the commits of an exercise, a line each; nothing where it is one idea."""
    from common.cli.commits import read_commits

    commits = read_commits(exercise)
    for number, commit in enumerate(commits, 1):
        console.print(Text.assemble((f"{number:3}  {commit.title}", "bold"), (f"  {commit.lines} lines", "dim")))
    if commits:
        console.print(Text(f"each alone: `rampup diff {exercise.number} --commit 1`, and so on\n", "dim"))


def show_commit(exercise: course.Exercise, number: int, html: Path | None) -> None:
    """Print one commit of an exercise, or write it as a page. Raises UserError where there is no such commit."""
    from common.cli import diff as difference
    from common.cli.commits import commit_of

    commit = commit_of(exercise, number)
    counted = f"{commit.lines} changed lines ({difference.COUNTED})"
    if html:
        from common.cli.html import diff_parts, render

        names = [f"{exercise.folder} {number - 1}", f"{exercise.folder} {number}: {commit.title}"]
        parts = diff_parts(commit.before, commit.after)
        write(html, render("diff.html", names=names, stat=f"{commit.body} {counted}.", commits=[], parts=parts))
        return
    console.print(Text.assemble((f"{commit.title}\n", "bold"), f"\n{commit.body}\n\n", (f"{counted}\n", "dim")))
    difference.print_diff(console, difference.compare(commit.before, commit.after))


@app.command
def commits(
    exercise: tyro.conf.Positional[Name],
    check: bool = False,
    split: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    join: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
) -> None:
    """List the commits of an exercise: the steps, one idea each, from its parent's program to its own.

    Args:
        exercise: the exercise
        check: say whether the patches lead from the parent's program to this one; the exit code is 1 if they do not
        split: write the program after each commit into this folder, to edit them
        join: make the patches anew of the edited programs in this folder
    """
    from common.cli import commits as series

    found = course.find(exercise)
    if check:
        wrong = series.check_commits(found)
        print("\n".join(wrong) or f"the commits of {found.folder} lead from its parent's train.py to its own")
        sys.exit(bool(wrong))
    if split or join:
        print(*(series.split(found, split) if split else series.join(found, join)), sep="\n")
    elif series.folder_of(found).exists():
        list_commits(found)
    else:
        print(f"{found.folder} is one commit: rampup diff {found.number}")


@app.command
def hint(exercise: Maybe = "", more: bool = False, most: bool = False) -> None:
    """Help with an exercise, in three steps: a nudge, what to look at, the lines of the solution.

    Args:
        exercise: the exercise that you are at; in a folder that `rampup start` made it need not be named
        more: say what to look at, too
        most: say that, and show the lines that the solution adds to the program before it
    """
    from common.cli.hint import print_hints

    print_hints(console, which(exercise), more, most)


@app.command
def review(
    exercise: Maybe = "",
    folder: Folder = None,
    html: File = None,
    zip: bool = False,
    by: Annotated[str, tyro.conf.arg(name="from", metavar="NAME")] = "",
    note: str = "",
) -> None:
    """Write one HTML file with all that a mentor needs to review an exercise. Nothing in the folder is run.

    Args:
        exercise: the exercise that the folder solves; one that `rampup start` made says so itself
        folder: your own folder, wherever it is; without it, the working directory if it has a train.py, else the
            checkout's
        html: the file to write; without it, review_exNN_name.html in the working directory
        zip: write a zip file that holds the page and the folder
        by: your name, for the head of the page
        note: a sentence or a question to your mentor, which stands first
    """
    from common.cli.review import write_review

    found = which(exercise, folder)
    print(write_review(found, folder, html or Path(f"review_{found.folder}.html"), zip, by, note))


@app.command
def comments(page: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="PAGE")]]) -> None:
    """List the comments of a review that your mentor saved and sent back.

    Args:
        page: the saved page
    """
    from common.cli.comments import comments as read_comments

    print(read_comments(page))


@app.command
def check(exercise: Maybe = "", folder: Folder = None, dry_run: bool = False) -> None:
    """Run a train.py, with --dry-run and then in full, and say line by line what is right and what falls short.

    A program that does not know --dry-run is run as it is, and judged by the losses that it prints. The exit code is 1
    if anything falls short.

    Args:
        exercise: the exercise that the program solves; a folder that `rampup start` made says so itself
        folder: your own folder, wherever it is; without it, the working directory if it has a train.py, else the
            checkout's
        dry_run: only --dry-run, not the run in full
    """
    from common.cli.check import check as check_folder

    if not check_folder(console, which(exercise, folder), folder, dry_run):
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
