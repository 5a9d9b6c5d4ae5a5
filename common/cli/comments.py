"""The comments in a saved review, as lines for the terminal."""

import re
from html.parser import HTMLParser
from pathlib import Path

from common import UserError
from common.cli.folder import visible

LARGEST = 4 * 10**7  # bytes of a page that is read


class Page(HTMLParser):
    """What a saved review holds: its title, the code of each line, the comment on each; line 0 is the remark on all."""

    def __init__(self):
        super().__init__()
        self.title, self.code, self.comments = "", {}, {}
        self.line = 0  # of the program, whose row this is
        self.into = None  # the text that is being read: a dict and its key
        self.depth = 0  # of elements within it

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if self.into:
            self.add("\n" * (tag in ("br", "div", "p")))
            self.depth += tag not in ("br", "img", "wbr", "hr")  # which have no end
        elif tag == "tr" and (attributes.get("id") or "").startswith("L"):
            self.line = number(attributes["id"][1:])
        elif tag == "code" and self.line and self.line not in self.code:
            self.into = self.code, self.line
        elif tag == "div" and "data-line" in attributes:
            self.into = self.comments, number(attributes["data-line"])
        elif tag == "h1" and not self.title:
            self.into = vars(self), "title"

    def handle_endtag(self, tag):
        if self.into and self.depth:
            self.depth -= 1
        elif self.into:
            self.into = None
        elif tag == "tr":
            self.line = 0

    def handle_data(self, data):
        if self.into:
            self.add(data)

    def add(self, text):
        there, key = self.into
        there[key] = there.get(key, "") + text


def number(text: str | None) -> int:
    """Return the number of a line; 0 if it is none."""
    return int(text) if text and text.isdecimal() and len(text) < 8 else 0


def comments(path: Path) -> str:
    """Return the comments of a review that was saved with them, `train.py:41: …`, each above the line that it is on.

    Raises UserError if the file cannot be read, is no review, or has no comment.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than any review: name the page that your mentor saved")
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror or error}): name the page that your mentor saved"
        ) from None
    page = Page()
    page.feed(text)
    if not page.code:
        raise UserError(f"{path} is no page of `rampup review`: name the one that your mentor saved")
    said = {line: visible(comment).strip() for line, comment in sorted(page.comments.items()) if comment.strip()}
    if not said:
        raise UserError(f"{path} holds no comment: your mentor saves them with the button at the foot of the page")
    title = visible(" ".join(page.title.split()))[:200]
    parts = [title]
    for line, comment in said.items():
        comment = re.sub(r"\n+", "\n    ", comment)  # indented, so that none looks like another line's comment
        code = f"\n    > {visible(page.code.get(line, '')).strip()}"
        parts.append(f"\ntrain.py:{line}: {comment}{code}" if line else f"\n    {comment}")
    return "\n".join(parts)
