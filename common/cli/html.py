"""What all pages share: the templates, the style sheet, coloured code, the rows of a diff."""

import base64
import hashlib
import re
from collections import deque
from pathlib import Path

from common.cli.commits import read_commits
from common.cli.diff import CONTEXT, Row, compare, stretches, words
from common.curriculum import Exercise

import jinja2
from markupsafe import Markup, escape
from pygments.lexers.python import PythonLexer
from pygments.token import STANDARD_TYPES

TEMPLATES = Path(__file__).parent / "templates"
STYLE = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
# Classes of pygments that the sheet gives a colour: the others would only make the pages heavier.
COLOURED = set(re.findall(r"\w+", " ".join(re.findall(r"^((?:\.\w\w?(?:, | ))+){", STYLE, re.M))))
MOST_COLOURED = 60_000  # characters of a program, twice the longest exercise; 200,000 brackets take seconds
SCRIPT = Markup((TEMPLATES / "comments.js").read_text(encoding="utf-8"))

# Everything put into a template is escaped, but for Markup that was made here.
environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values) -> str:
    """Return the page that a template makes of the values."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()  # so that no other script can run
    return environment.get_template(template).render(style=STYLE, script=SCRIPT, script_hash=digest, **values)


def code_lines(source: str) -> list[Markup]:
    """Return the lines of a Python program as HTML, coloured, with everything in them escaped."""
    lines = tokens(source.rstrip("\n").split("\n"))
    return [coloured(line, [("".join(text for _, text in line), False)], "") for line in lines]


def diff_parts(old: str, new: str) -> list[tuple[bool, list]]:
    """Return stretches for the template diff.html: whether to fold it, and its rows with both lines as HTML."""
    return parts_of(compare(old, new), CONTEXT)


def commit_parts(exercise: Exercise) -> list[dict]:
    """Return title, body, number of lines and diff of each commit of an exercise; none if it is one idea."""
    return [
        {"title": c.title, "body": c.body, "lines": c.lines, "parts": diff_parts(c.before, c.after)}
        for c in read_commits(exercise)
    ]


def parts_of(rows: list[Row], context: int) -> list[tuple[bool, list]]:
    """Return the same of rows, with so many unchanged lines around a change."""
    old, new = (
        iter(tokens([line for line in lines if line is not None])) for lines in zip(*((r.old, r.new) for r in rows))
    )
    shown = {}
    for row in rows:
        before, after = words(row)
        shown[row] = (
            Markup() if row.old is None else coloured(next(old), before, "del"),
            Markup() if row.new is None else coloured(next(new), after, "ins"),
        )
    return [(far, [(row, *shown[row]) for row in stretch]) for far, stretch in stretches(rows, context)]


def tokens(lines: list[str]) -> list[list[tuple[str, str]]]:
    """Return the tokens of each line of a Python program: the class of the style sheet, "" for none, and the text.

    The lines of a program that is longer than any that people read are one token each, without a colour.
    """
    if sum(map(len, lines)) > MOST_COLOURED:
        return [[("", line)] for line in lines]
    found = [[]]
    for kind, text in PythonLexer(stripnl=False, ensurenl=False).get_tokens("\n".join(lines)):
        for i, part in enumerate(text.split("\n")):
            if i:
                found.append([])
            if part:
                found[-1].append((STANDARD_TYPES[kind] if STANDARD_TYPES.get(kind) in COLOURED else "", part))
    return found


def coloured(line: list[tuple[str, str]], pieces: list[tuple[str, bool]], tag: str) -> Markup:
    """Return a line as HTML, its tokens coloured and its changed pieces in an element of their own."""
    html, waiting = [], deque(line)
    for piece, changed in pieces:
        inside, at = [], 0
        while at < len(piece) and waiting:
            kind, text = waiting.popleft()
            text, rest = text[: len(piece) - at], text[len(piece) - at :]
            if rest:
                waiting.appendleft((kind, rest))
            at += len(text)
            inside.append(f'<span class="{kind}">{escape(text)}</span>' if kind else escape(text))
        inside.append(escape(piece[at:]))  # what the lexer left out, if ever
        html.append("".join(inside) if not changed else f"<{tag}>{''.join(inside)}</{tag}>")
    return Markup("".join(html))


def indent(text: str) -> int:
    """Return how far a line of code is indented, for the style sheet: what does not fit on it hangs below its start."""
    return min(40, len(text) - len(text.lstrip(" ")))


environment.filters["indent"] = indent


def data_uri(kind: str, data: bytes) -> str:
    """Return a picture as an address that holds it whole."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
