"""All lessons as a static site: the READMEs with their maths as MathML, the pictures, the diffs."""

import base64
import json
import re
import shutil
from html import escape
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from common import UserError
from common.cli import home, questions
from common.cli.course import built, find, train_py
from common.cli.diff import COUNTED, stat
from common.cli.html import STYLE, TEMPLATES, code_lines, commit_parts, diff_parts, indent, render
from common.curriculum import EXERCISES, ROOT, Exercise

import numpy as np
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup
from plotly.offline import get_plotlyjs

PAGES = Path(__file__).parent / "pages"
LIVE = Path(__file__).parent / "live"  # data of the interactive pictures, by tests/bench/live.py
# What each interactive picture shows without a script.
STILL = {1: "landscape", 5: "regions", 8: "optimizers", 9: "features", 12: "", 13: "attention"}
PLOTTED = (1, 5, 8, 12)  # those that plotly draws
BREAK = '<h2 id="break-it-yourself">'  # before it the interactive picture stands
MATHS = re.compile(r"\$\$(.+?)\$\$|\$(?!\s)([^$]+?)(?<!\s)\$", re.DOTALL)
HEADING = re.compile(r'<h2 id="([^"]+)">(.*?)<a class="anchor"')
CODE = re.compile(r"(<code.*?</code>)|(<[^>]*>)|[^<]+", re.DOTALL)  # or another tag, or text between tags
FLAG = re.compile(r"(?<![\w-])--?[a-z][\w-]*")
FOLD = re.compile(r"^ *(<details><summary>[^<>]*</summary>|</details>) *$", re.M)


def write_site(directory: Path) -> Path:
    """Write the site into a directory and return its index.html. Raises UserError where it cannot be written there."""
    there = built()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "style.css").write_text(STYLE, encoding="utf-8")
        for name in ("site.js", "live.js", "convnet.js"):
            shutil.copyfile(TEMPLATES / name, directory / name)
        (directory / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
        for exercise in there:
            write_lesson(directory, exercise)
        for page in PAGES.glob("*.md"):
            text = page.read_text(encoding="utf-8")
            title = text.partition("\n")[0].removeprefix("# ")
            (directory / f"{page.stem}.html").write_text(
                render("page.html", title=title, content=to_html(text, directory, PAGES)), encoding="utf-8"
            )
        asked = [
            entry | {"guess": to_html(entry["guess"], directory, ROOT / entry["exercise"].folder)}
            for entry in questions.page()
        ]
        (directory / "questions.html").write_text(render("questions.html", questions=asked), encoding="utf-8")
        titles = {exercise.number: summary(exercise) for exercise in there}
        index = render(
            "index.html",
            wide=home.tree(there, wide=True),
            narrow=home.tree(there, wide=False),
            tracks=home.cards(directory, there, titles),
        )
        (directory / "index.html").write_text(index, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the site to {directory} ({error.strerror or error}): name another one") from None
    return directory / "index.html"


def write_lesson(directory: Path, exercise: Exercise) -> None:
    """Write the page of an exercise, and the pictures that it shows."""
    folder = ROOT / exercise.folder
    source = train_py(exercise).read_text(encoding="utf-8")
    content = to_html((folder / "README.md").read_text(encoding="utf-8"), directory, folder)
    head, end, content = content.partition(Markup("</h1>"))
    content = content.replace(BREAK, live(exercise, directory) + Markup(BREAK), 1)
    further = questions.questions(folder)
    change = changes(exercise, source)
    outline = [(anchor, Markup(name)) for anchor, name in HEADING.findall(content)]
    outline += [("changes", f"The change from exercise {exercise.parent}")] * bool(change["parts"])
    outline += [("program", "The whole program")] + [("questions", "The programs that go further")] * bool(further)
    text = render(
        "lesson.html",
        exercise=exercise,
        head=head + end,
        content=content,
        words=home.words(exercise.number),
        scripts=scripts(exercise),
        outline=outline,
        lines=code_lines(source),
        indents=[indent(line) for line in source.rstrip("\n").split("\n")],
        questions=[
            (path.name, questions.title(docstring), Markup("\n").join(code_lines(path.read_text(encoding="utf-8"))))
            for path, docstring in further.items()
        ],
        **home.neighbours(exercise, built()),
        **change,
    )
    (directory / f"{exercise.folder}.html").write_text(text, encoding="utf-8")


def live(exercise: Exercise, directory: Path) -> Markup:
    """Return the interactive picture of an exercise, with its data and the still one; nothing where it has none."""
    if exercise.number not in STILL:
        return Markup()
    text = (LIVE / f"{exercise.number:02}.json").read_text(encoding="utf-8").strip()
    data = json.loads(text)
    still = STILL[exercise.number]
    return Markup(
        render(
            "live.html",
            number=exercise.number,
            data=data,
            json=Markup(text.replace("<", "\\u003c")),  # so that no </script> can end it
            still=copy_picture(f"{still}.png", directory, ROOT / exercise.folder),
            plotted=exercise.number in PLOTTED,
            likeliest=likeliest(data["prompts"][0]) if exercise.number == 12 else [],
        )
    )


def likeliest(prompt: dict) -> list[tuple[str, float]]:
    """Return the ten likeliest next words of exercise 12's data, with their probabilities."""
    logits = np.frombuffer(base64.b64decode(prompt["logits"]), "<f2").astype(float)
    powers = np.exp(logits - logits.max())
    return [(word.replace("\n", "⏎"), p) for word, p in zip(prompt["words"][:10], powers / powers.sum())]


def scripts(exercise: Exercise) -> list[str]:
    """Return which scripts the page of an exercise needs, in order."""
    if exercise.number not in STILL:
        return []
    before = ["plotly.min.js"] * (exercise.number in PLOTTED) + ["convnet.js"] * (exercise.number == 9)
    return [*before, "live.js"]


def changes(exercise: Exercise, source: str) -> dict:
    """Return the stat line, the rows of the difference to the exercise's parent, and those of its commits, if any.

    Nothing for the first exercise.
    """
    if not exercise.parent:
        return {"stat": "", "parts": [], "commits": []}
    old = train_py(find(str(exercise.parent))).read_text(encoding="utf-8")
    return {
        "stat": f"{stat(old, source, exercise.budget)} ({COUNTED})",
        "parts": diff_parts(old, source),
        "commits": commit_parts(exercise),
    }


def summary(exercise: Exercise) -> str:
    """Return the last part of a README's title: "Exercise 9: a convnet" is "A convnet"."""
    title = (ROOT / exercise.folder / "README.md").read_text(encoding="utf-8").partition("\n")[0]
    name = title.partition(": ")[2] or exercise.folder
    return name[0].upper() + name[1:]


def to_html(text: str, directory: Path, folder: Path) -> Markup:
    """Return a README as HTML: its maths as MathML, its raw HTML escaped but for folded answers, its links mended.

    A link to another folder's README leads to that exercise's page, one to train.py to the program on the page itself;
    pictures are copied into `directory`. `folder` is where the README lies.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.inline.ruler.before("escape", "maths", maths_rule)
    markdown.add_render_rule("maths", lambda _, tokens, i, *rest: to_mathml(tokens[i].content, bool(tokens[i].info)))
    tokens = markdown.parse(FOLD.sub(r"\n\1\n", text))  # <details> becomes a paragraph of its own, found again below
    for heading, inside in pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", questions.anchor(inside.content))
            if heading.tag != "h1":
                link = Token("html_inline", "", 0)
                link.content = (
                    f'<a class="anchor" href="#{heading.attrGet("id")}" aria-label="link to this section">#</a>'
                )
                inside.children.append(link)
    for token in (child for block in tokens for child in block.children or []):
        if token.type == "image":
            token.attrSet("src", copy_picture(unquote(token.attrGet("src")), directory, folder))
        elif token.type == "link_open":
            token.attrSet("href", page_of(token.attrGet("href")))
    html = markdown.renderer.render(tokens, markdown.options, {})
    html = re.sub(r'<img src="([^"]+)"[^>]*>', r'<a class="picture" href="\1">\g<0></a>', html)  # to be seen large
    html = re.sub(
        r"<p>&lt;details&gt;&lt;summary&gt;(.*?)&lt;/summary&gt;</p>", r"<details><summary>\1</summary>", html
    )
    html = html.replace("<p>&lt;/details&gt;</p>", "</details>")
    html = html.replace("<table>", '<div class="wide" tabindex="0"><table>').replace("</table>", "</table></div>")
    return Markup(CODE.sub(unbroken, html))


def unbroken(found: re.Match) -> str:
    """Return a piece of HTML in which no line ends within a flag of code, or a figure of a text."""
    return FLAG.sub(r'<span class="flag">\g<0></span>', found[1]) if found[1] else found[2] or home.together(found[0])


def maths_rule(state, silent: bool) -> bool:
    """Take $…$ or $$…$$ out of the text before anything in it is read as Markdown (a rule of markdown-it)."""
    match = MATHS.match(state.src, state.pos) if state.src[state.pos] == "$" else None
    if match and not silent:
        token = state.push("maths", "math", 0)
        token.content, token.info = match[1] or match[2], "block" if match[1] else ""
    state.pos = match.end() if match else state.pos
    return bool(match)


def to_mathml(latex: str, block: bool) -> str:
    """Return a formula as MathML, one of a block in parts that may stand below each other where the page is narrow.

    What cannot be converted is shown as it was written, and so are links, which may lead to scripts.
    """
    parts = latex.split(r"\qquad") if block else [latex]
    if any(part.count("{") != part.count("}") for part in parts):
        parts = [latex]
    try:
        if r"\href" in latex:
            raise ValueError
        # latex2mathml escapes nothing within \text{}: without < and > no tag can come out of it.
        parts = [part.replace("<", r"\lt ").replace(">", r"\gt ") for part in parts]
        maths = "".join(convert(part, display="block" if block else "inline") for part in parts)
    except Exception:  # it raises many kinds
        maths = f"<code>{escape(latex)}</code>"
    return f'<span class="maths">{maths}</span>' if block else maths


def page_of(address: str) -> str:
    """Return where a README's link leads on the site: other hosts and anchors stay."""
    if address.startswith("#") or "://" in address:
        return address
    path, _, anchor = address.partition("#")
    name = next((exercise.folder for exercise in EXERCISES if exercise.folder in Path(path).parts), None)
    page = f"{name}.html" if name else "index.html" if path.endswith("README.md") else ""
    if (PAGES / Path(path).name).is_file():
        page = f"{Path(path).stem}.html"
    return page + (f"#{anchor}" if anchor else "#program" if path.endswith("train.py") else "")


def copy_picture(name: str, directory: Path, folder: Path) -> str:
    """Copy a picture of the checkout into the site and return its address there."""
    source = (folder / name).resolve()
    if not source.is_relative_to(ROOT) or source.suffix not in (".png", ".jpg") or not source.is_file():
        return ""  # the text beside it is shown in its place
    target = Path("pictures") / f"{source.parent.name}_{source.name}"
    (directory / "pictures").mkdir(exist_ok=True)
    shutil.copyfile(source, directory / target)
    return target.as_posix()
