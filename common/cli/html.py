"""What all pages share: the templates, the style sheet, coloured code, the rows of a diff."""

import base64
import hashlib
from pathlib import Path

from common.cli.diff import CONTEXT, Row, compare, stretches, words

import jinja2
from markupsafe import Markup
from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexers.python import PythonLexer

TEMPLATES = Path(__file__).parent / "templates"
STYLE = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
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
    lexer = PythonLexer(stripnl=False, ensurenl=False)
    html = highlight(source.rstrip("\n"), lexer, HtmlFormatter(nowrap=True))
    return [Markup(line) for line in html.removesuffix("\n").split("\n")]


def diff_parts(old: str, new: str) -> list[tuple[bool, list]]:
    """Return stretches for the template diff.html: whether to fold it, and its rows with their words."""
    return parts_of(compare(old, new), CONTEXT)


def parts_of(rows: list[Row], context: int) -> list[tuple[bool, list]]:
    """Return the same of rows, with so many unchanged lines around a change."""
    return [(far, [(row, *words(row)) for row in stretch]) for far, stretch in stretches(rows, context)]


def indent(text: str) -> int:
    """Return how far a line of code is indented, for the style sheet: what does not fit on it hangs below its start."""
    return min(40, len(text) - len(text.lstrip(" ")))


environment.filters["indent"] = indent


def data_uri(kind: str, data: bytes) -> str:
    """Return a picture as an address that holds it whole."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
