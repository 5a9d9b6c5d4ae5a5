"""One HTML file with all that a mentor needs to review an exercise; nothing in the folder is run to make it."""

import subprocess
import zipfile
from datetime import date
from pathlib import Path

from common import UserError
from common.cli.chart import charts, reference_curves
from common.cli.course import find, train_py
from common.cli.diff import CONTEXT, COUNTED, alike, compare, stat, without_docstrings
from common.cli.folder import SHOWN, Folder, defaults, is_portable, read_folder, size, visible
from common.cli.html import code_lines, data_uri, indent, parts_of, render
from common.cli.judge import Finding, judge
from common.cli.questions import answered
from common.cli.start import marked
from common.curriculum import ROOT, Exercise

SAMPLE = 6000  # characters of samples.txt that are shown, the last ones
RUN = ("seed", "seconds", "device", "date")  # what is shown of result.json beside its tables
SAME = ("seed", "out", "dry_run", "overwrite", "resume", "profile")  # flags whose change needs no mark
ROWS = 100  # of a table
WORST_FIRST = ("short", "note", "ok")
FROM_NOTHING = 0.3  # a program that shares fewer of its lines with the reference was not made from it


def write_review(
    exercise: Exercise, path: Path | None, html: Path, with_folder: bool, by: str = "", note: str = ""
) -> Path:
    """Write the review of an exercise's folder, or of a learner's own at `path`, and return where it went.

    `by` and `note` are the learner's name and question, which stand first. With `with_folder` it is a zip beside `html`
    that holds the page and the folder. Raises UserError if the folder cannot be read or the file cannot be written.
    """
    folder = read_folder(exercise, path)
    page = review_page(exercise, folder, with_folder, by, note).encode()
    target = html.with_suffix(".zip") if with_folder else html
    try:
        if not with_folder:
            target.write_bytes(page)
            return target
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            archive.writestr(html.name, page)
            root = folder.path.name if is_portable(Path(folder.path.name)) else exercise.folder
            for name, _, why in folder.files:
                if not why and (folder.path / name).resolve() != target.resolve():
                    archive.write(folder.path / name, f"{root}/{name}")
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror or error}): name another with --html FILE") from None
    return target


def review_page(exercise: Exercise, folder: Folder, with_folder: bool = False, by: str = "", note: str = "") -> str:
    """Return the review as HTML. Of this machine's paths it names only the last part of the exercise's folder."""
    own = folder.path.samefile(ROOT / exercise.folder)
    parent = train_py(find(str(exercise.parent))) if exercise.parent else None
    reference = committed(exercise) if own else train_py(exercise).read_text(encoding="utf-8")
    result = folder.result
    found = [*outdated(folder), *judge(exercise, folder)] if result or folder.series else []
    worst = sorted(found, key=lambda finding: WORST_FIRST.index(finding.mark))[:1]
    if worst and worst[0].mark == "short":  # what became of the loss says most about why
        worst += [finding for finding in found if finding.mark == "short" and finding.text.startswith("train loss")]
    config = settings(folder, defaults(train_py(exercise).read_text(encoding="utf-8")))
    commit = [("commit of the run", shown(result.get("commit")), False)] if result else []
    if own:
        commit.append(("changed since the last commit", uncommitted(exercise), False))
    tables = [
        ("Metrics", [(name, f"{value:.6g}", False) for name, value in pairs(result, "metrics")]),
        ("Baselines", [(name, f"{value:.6g}", False) for name, value in pairs(result, "baselines")]),
        ("History", history(folder)),
        ("Settings", config),
        ("Run", [(name, shown(result[name]), False) for name in RUN if name in result]),
        ("Versions", [(name, shown(value), False) for name, value in pairs(result, "versions")]),
        ("Code", commit),
    ]
    return render(
        "review.html",
        exercise=exercise,
        folder_name=visible(folder.path.name),
        own=own,
        started=bool(marked(folder.path)),
        by=visible(by),
        note=visible(note),
        verdict=worst,
        findings=[finding for finding in found if finding not in worst],
        chips=chips(folder) if result else [],
        charts=charts(folder.series, reference_curves(exercise.number), result.get("baselines", {})),
        result=result,
        problems=folder.problems,
        questions=answered(folder.path),
        tables=tables,
        changed=[(name, value) for name, value, changed in config if changed],
        pictures=[(name, data_uri(kind, data)) for name, kind, data in folder.pictures],
        samples=folder.samples[-SAMPLE:],
        parent=parent and compared(parent, parent.read_text(encoding="utf-8"), folder, exercise.budget),
        reference=None if reference in (None, folder.source) else compared(train_py(exercise), reference, folder),
        known=reference is not None,
        from_nothing=reference is not None and alike(reference, folder.source) < FROM_NOTHING,
        lines=code_lines(folder.source),
        indents=[indent(line) for line in folder.source.rstrip("\n").split("\n")],
        files=[(visible(name), size(count), why) for name, count, why in folder.files],
        zip=with_folder,
        today=date.today(),
    )


def outdated(folder: Folder) -> list[Finding]:
    """Return that the program has been changed since its run; nothing if it has not, or if nobody knows."""
    if folder.result.get("program") in (None, folder.sha256):
        return []
    hint = "the figures below are of the program as it was: run it again"
    return [Finding("short", "train.py was changed after this run", hint)]


def chips(folder: Folder) -> list[str]:
    """Return what a mentor wants to know of a run at a glance: how long it was, on what, and of which program."""
    result, made = folder.result, []
    steps, series = result["config"].get("steps"), folder.series.get(("train", "loss"))
    if series and isinstance(steps, int):
        made.append(f"{series[-1][0] + 1:,} of {steps:,} steps")
    if isinstance(result.get("seconds"), int | float):
        made.append(f"{result['seconds']:,.0f} s" if result["seconds"] >= 10 else f"{result['seconds']:.1f} s")
    made += [shown(result["device"])] if "device" in result else []
    if result.get("program"):
        made.append(f"train.py {'un' * (result['program'] == folder.sha256)}changed since the run")
    return made


def compared(path: Path, old: str, folder: Folder, budget: int | None = None) -> dict:
    """Return what the template shows of the difference between an older program and the folder's."""
    rows = compare(visible(old), folder.source)
    return {
        "name": path.relative_to(ROOT).as_posix(),
        "stat": f"{stat(old, folder.source, budget)} ({COUNTED})",
        "parts": parts_of(rows, CONTEXT),
        "code": parts_of(without_docstrings(rows, visible(old), folder.source), 1),  # without docstrings, and short
    }


def pairs(result: dict, name: str) -> list[tuple[str, object]]:
    """Return the entries of one part of result.json."""
    return list(result.get(name, {}).items())[:ROWS]


def settings(folder: Folder, reference: dict[str, object]) -> list[tuple[str, str, bool]]:
    """Return the run's flags, and for those that are not the reference's, what they are there and who changed them."""
    own, rows = defaults(folder.source), []
    for name, value in pairs(folder.result, "config"):
        changed = name not in SAME and reference.get(name, value) != value
        how = "changed in train.py" if own.get(name) == value else "by flag"
        rows.append((name, shown(value) + f" (reference {shown(reference.get(name))}, {how})" * changed, changed))
    return rows


def shown(value: object) -> str:
    """Return a value of result.json as text of bounded length."""
    return "none" if value is None else visible(str(value))[:SHOWN]


def history(folder: Folder) -> list[tuple[str, str, bool]]:
    """Return, for each series of metrics.csv, where it began, where it ended, and the least and the largest value."""
    rows = []
    for (split, metric), points in folder.series.items():
        values = [value for _, value in points]
        text = f"{values[0]:.4g} to {values[-1]:.4g}, between {min(values):.4g} and {max(values):.4g}"
        rows.append((f"{split} {metric}"[:SHOWN], text, False))
    return rows[:ROWS]


def committed(exercise: Exercise) -> str | None:
    """Return the train.py of this checkout's last commit; None if git has none."""
    return git("show", f"HEAD:./{exercise.folder}/train.py")


def uncommitted(exercise: Exercise) -> str:
    """Return which files of the exercise's folder differ from the last commit."""
    text = git("status", "--porcelain", "--", exercise.folder)
    if text is None:
        return "not known: this checkout is not under git"
    return ", ".join(line[3:].removeprefix(f"{exercise.folder}/") for line in text.splitlines()) or "nothing"


def git(*arguments: str) -> str | None:
    """Return what git says about this checkout, which is the reader's own; None where it fails."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return visible(result.stdout.decode(errors="replace")) if result.returncode == 0 else None
