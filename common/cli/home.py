"""What the site's home page shows: the tree of the exercises as a drawing, and a card for each."""

import re
from html import escape
from pathlib import Path

from common.cli.course import find, train_py, walk
from common.cli.diff import changed_lines
from common.curriculum import EXERCISES, ROOT, Exercise

from markupsafe import Markup
from PIL import Image, ImageOps

TRACKS = ("Foundations", "Vision", "Language")  # the trunk of the tree, and its branches
FACTS = ("idea", "framework", "data", "time", "result")  # columns of the README's table of exercises
TELLING = {  # a card's picture, the first that there is, and the part of it to show: left, top, right, bottom in pixels
    "features": (0, 40, 1090, 624),
    "attention": (0, 20, 720, 425),
    "regions": (85, 60, 715, 660),
    "optimizers": (75, 15, 835, 475),
    "gradients": (75, 35, 895, 500),
    "loss": (75, 75, 835, 540),  # the panel at the left, without the sentence above it
    "landscape": (70, 30, 590, 466),
}
SIZE, RADIUS = (480, 290), 17  # of a card's picture, of an exercise in the drawing


def together(text: str) -> str:
    """Return a text in which a line does not end within "98.3 ± 0.4 %"."""
    return re.sub(r"(?<=\d) (?=±|%)|(?<=±) ", "\u00a0", text)


def facts() -> dict[int, dict[str, str]]:
    """Return what the README's table says of each exercise by its number: idea, framework, data, time, result."""
    found, names = {}, []
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [together(cell.strip()) for cell in line.strip("|").split("|")]
        if set(FACTS) <= set(cells):
            names = cells
        elif not line.startswith("|"):
            names = []
        elif names and cells[0].isdigit():
            row = {name: cell for name, cell in zip(names, cells) if name in FACTS}
            above = next(reversed(found.values()), {})
            found[int(cells[0])] = {
                name: above.get(name, cell) if cell == "the same" else cell for name, cell in row.items()
            }
    return found


def children(exercise: Exercise) -> list[Exercise]:
    """Return the exercises that grew from one."""
    return [child for child in EXERCISES if child.parent == exercise.number]


def tracks() -> list[list[Exercise]]:
    """Return the exercises up to the one where the course divides, and then each of its branches."""
    order = [exercise for exercise, *_ in walk()]
    fork = next(exercise for exercise in order if len(children(exercise)) > 1)
    parts = [order[: order.index(fork) + 1]]
    for exercise in order[len(parts[0]) :]:
        if exercise.parent == fork.number:
            parts.append([])
        parts[-1].append(exercise)
    return parts


def neighbours(exercise: Exercise, there: list[Exercise]) -> dict:
    """Return what lies before and after an exercise in the tree, and at a branch's end the head of the next one."""
    order = [e for e, *_ in walk() if e in there]
    after = order[order.index(exercise) + 1 :]
    grown = [child for child in children(exercise) if child in there]
    return {
        "parent": next((e for e in there if e.number == exercise.parent), None),
        "children": grown,
        "other": after[0] if after and not grown else None,
    }


def tree(there: list[Exercise], wide: bool) -> Markup:
    """Return the tree as an SVG drawing with links: in one line with two branches, or, for a phone, in three rows."""
    trunk, *branches = tracks()
    across, down = (88, 84) if wide else (50, 62)
    row = (len(branches) - 1) / 2 if wide else 0  # of the trunk
    places = {e.number: (i, row) for i, e in enumerate(trunk)}  # (column, row)
    for k, branch in enumerate(branches):
        places |= {e.number: (len(trunk) + i if wide else i + 1, k if wide else k + 1) for i, e in enumerate(branch)}
    spots = {number: (across * (i + 0.5), RADIUS + 8 + down * j) for number, (i, j) in places.items()}
    lines, nodes = [], []
    for exercise in EXERCISES:
        x, y = spots[exercise.number]
        if exercise.parent:
            x0, y0 = spots[exercise.parent]
            if y0 == y:
                path = f"M{x0} {y0}H{x}"
            elif wide:
                path = f"M{x0} {y0}C{(x0 + x) / 2} {y0} {(x0 + x) / 2} {y} {x} {y}"
            else:  # back to the left, and into the row from there
                path = f"M{x0} {y0}V{y0 + down / 2}H{across / 2}V{y}H{x}"
            lines.append(f'<path d="{path}"/>')
        name = escape(exercise.folder[5:])
        mark = f'<circle cx="{x}" cy="{y}" r="{RADIUS}"/><text x="{x}" y="{y + 5}">{exercise.number}</text>'
        if wide:
            words = name.split("_", 1)
            mark += "".join(
                f'<text class="word" x="{x}" y="{y + 33 + 14 * i}">{word.replace("_", " ")}</text>'
                for i, word in enumerate(words)
            )
        if exercise in there:
            mark = f'<a href="{exercise.folder}.html" aria-label="{exercise.number}: {name}">{mark}</a>'
        nodes.append(mark)
    size = max(x for x, _ in spots.values()) + across / 2, max(y for _, y in spots.values()) + (54 if wide else 26)
    head = f'<svg class="tree {"broad" if wide else "narrow"}" viewBox="0 0 {size[0]:g} {size[1]:g}" role="group" '
    return Markup(f'{head}aria-label="the tree of the exercises">{"".join(lines + nodes)}</svg>')


def cards(directory: Path, there: list[Exercise], titles: dict[int, str]) -> list[tuple[str, list[dict]]]:
    """Return for each track its name and a card for each exercise in it, whose picture is written into `directory`."""
    known = facts()
    return [
        (
            name,
            [
                {
                    "exercise": exercise,
                    "title": titles[exercise.number],
                    "facts": known.get(exercise.number, {}),
                    "changed": changed(exercise),
                    "picture": thumbnail(exercise, directory),
                }
                for exercise in track
                if exercise in there
            ],
        )
        for name, track in zip(TRACKS, tracks())
    ]


def changed(exercise: Exercise) -> int:
    """Return how many lines an exercise changes in its parent; 0 for the first one."""
    if not exercise.parent:
        return 0
    return changed_lines(*(train_py(e).read_text(encoding="utf-8") for e in (find(str(exercise.parent)), exercise)))


def thumbnail(exercise: Exercise, directory: Path) -> str:
    """Write the middle of an exercise's most telling picture, small, and return its address; "" where there is none."""
    paths = {ROOT / exercise.folder / f"{name}.png": part for name, part in TELLING.items()}
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return ""
    target = Path("pictures") / f"{exercise.folder}_small.webp"
    (directory / "pictures").mkdir(exist_ok=True)
    with Image.open(path) as image:
        small = ImageOps.fit(image.convert("RGB").crop(paths[path]), SIZE)
        small.save(directory / target, quality=82)
    return target.as_posix()


def words(number: int) -> list[str]:
    """Return how good, how long, in what, on what: the line below a lesson's title."""
    known = facts().get(number, {})
    shown = {name: known[name] for name in ("result", "time", "framework", "data") if name in known}
    return [f"{text} on two CPU cores" if name == "time" else text for name, text in shown.items()]
