"""The `rampup` command, from outside: what it shows, what it refuses, and that a stranger's folder can do no harm."""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

from common import UserError
from common.cli import chart, commands, course, diff, folder, hint, home, judge, site
from common.cli.check import figure_flags, keep, printed
from common.cli.commits import read_commits
from common.cli.html import code_lines, diff_parts
from common.cli.review import write_review
from common.curriculum import EXERCISES, ROOT, find_exercise

import pytest
import warm
import yaml
from helpers import BUILT, load, numbers, one_sentence, train_py

RESULT = {
    "exercise": "ex04_softmax",
    "seed": 0,
    "config": {"steps": 1000, "learning_rate": 0.1, "eval_every": 10, "seed": 0, "out": "out"},
    "metrics": {"loss": 0.4706, "accuracy": 0.7512},
    "baselines": {"ln 3": 1.0986, "Bayes": 0.4705},
    "seconds": 0.6,
    "device": "cpu, 2 cores, x86_64",
    "versions": {"python": "3.11.7", "numpy": "2.4.6"},
    "commit": "abc123-dirty",
    "date": "2026-11-21T02:44:09+00:00",
}
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def rampup(*arguments: object, root: Path = ROOT, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run the command in a process of its own, on the checkout at `root`."""
    command = ["-m", "common.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(root), "COLUMNS": "100"}
    if root == ROOT:
        return warm.run(*command, env=environment, cwd=cwd or ROOT, timeout=120)
    command = [sys.executable, *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=cwd or root)


class Page(HTMLParser):
    """What is in a page: tags, attributes, text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(str(html))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.text += " " * (tag in ("td", "th"))
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data

    def values(self, *names: str) -> list[str]:
        return [value for name, value in self.attributes if name in names]


def assert_harmless(html: str) -> Page:
    """Check that nothing of a page runs or is fetched but its own script."""
    page = Page(html)
    assert page.tags.count("script") <= 1
    assert html.count("alert(1)") == html.count("&lt;script&gt;alert(1)&lt;/script&gt;")
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:image/") for value in page.values("src"))
    assert all(value.startswith("#") for value in page.values("href"))
    assert not {"iframe", "object", "embed", "base", "link", "form"} & set(page.tags)
    return page


@pytest.fixture
def mine(tmp_path):
    """Return a learner's copy of exercise 4 with a run in it."""
    path = tmp_path / "my_ex04"
    (path / "out").mkdir(parents=True)
    shutil.copy(train_py(4), path)
    shutil.copy(train_py(4).parent / "loss.png", path / "out")
    (path / "out" / "result.json").write_text(json.dumps(RESULT))
    rows = "".join(f"{step},train,loss,{1.1 - step / 1000}\n" for step in range(500))
    (path / "out" / "metrics.csv").write_text("step,split,metric,value\n" + rows)
    return path


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Return a checkout of its own, under git, with exercises 1 to 4 and a result in the fourth."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "common", root / "common", ignore=shutil.ignore_patterns("__pycache__"))
    for exercise in EXERCISES[:4]:
        shutil.copytree(ROOT / exercise.folder, root / exercise.folder, ignore=shutil.ignore_patterns("out"))
    (root / ".gitignore").write_text("out/\n__pycache__/\n")
    git = ["git", "-C", str(root), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run(git + command, check=True)
    out = root / "ex04_softmax" / "out"
    out.mkdir()
    (out / "result.json").write_text(json.dumps(RESULT))
    return root


# the course


def test_list(checkout):
    result = rampup("list", root=checkout)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert " 4  ex04_softmax  PyTorch  loss 0.4706, accuracy 75.12 % (2026-11-21)" in lines
    assert "numpy  not run" in next(line for line in lines if "ex01" in line)
    assert lines.index("├─  8  ex08_mnist_adam  to come") < lines.index("└─ 11  ex11_shakespeare_ffn  to come")
    assert [e.number for e, _, _ in course.walk()] == [*range(1, 11), 14, 15, 11, 12, 13, 16, 17]
    assert all(e.sentence.split()[0] in result.stdout for e in EXERCISES)


def test_list_of_this_checkout():
    result = rampup("list")
    assert result.returncode == 0, result.stderr
    assert "JAX, optax" in result.stdout
    assert all(exercise.folder in result.stdout for exercise in EXERCISES)


def test_find():
    for name in ("9", "09", "ex09", "ex09_mnist_cnn", "ex09_mnist_cnn/", "/a/b/ex09_mnist_cnn"):
        assert course.find(name).number == 9
    for name in ("", "0", "18", "-1", "9.5", "ex", "²", "ex99_x", "x" * 1000):
        with pytest.raises(UserError, match="there is no exercise"):
            course.find(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("mnist_cn", "ex09_mnist_cnn"),
        ("ex04_sofmax", "ex04_softmax"),
        ("RESNET", "resnet"),
    ],
)
def test_unknown_exercise_is_told_the_nearest_names(name, near):
    result = rampup("review", name)
    one_sentence(result, f"there is no exercise '{name}': did you mean", near)
    assert result.returncode == 1


def test_exercise_that_is_not_there_yet(checkout):
    one_sentence(rampup("diff", 9, root=checkout), "exercise 9, ex09_mnist_cnn, is not in this checkout")


def test_no_exercises(tmp_path):
    shutil.copytree(ROOT / "common", tmp_path / "common")
    one_sentence(rampup("list", root=tmp_path), "there are no exercises in", "pip install -e .")


@pytest.mark.parametrize("exercise", BUILT, ids=lambda exercise: exercise.folder)
def test_expected_figure_is_found_in_the_readme(exercise):
    text = (ROOT / exercise.folder / "README.md").read_text(encoding="utf-8")
    figures = course.expected(exercise)
    assert figures or exercise.number > 14  # those may have no figure yet: their runs take days
    for figure in figures:
        assert f"**{figure.text}**" in text.partition("\n## What to expect")[2]
        assert figure.margin > 0


def test_expected_figures_are_read_right():
    assert [(f.metric, f.mean) for f in course.expected(find_exercise(4))] == [("loss", 0.4809), ("accuracy", 0.8003)]
    (accuracy,) = course.expected(find_exercise(8))
    assert (accuracy.metric, accuracy.text) == ("test_accuracy", "98.50 ± 0.07 %")
    assert accuracy.margin == pytest.approx(2.4 * 0.0007)  # of ten seeds
    assert course.expected(find_exercise(10))[0].margin == pytest.approx(3.1 * 0.0004)  # of five
    assert course.expected(find_exercise(14))[0].margin == pytest.approx(3.1 * 0.0003)  # which agree by chance
    assert course.expected(find_exercise(17))[0].margin == pytest.approx(5 * 0.009)  # of three
    assert accuracy.shown(0.98504) == "98.50 %"
    assert accuracy.excess(0.98) == pytest.approx(-0.005)
    (loss,) = course.expected(find_exercise(12))
    assert loss.excess(4.0) == pytest.approx(0.185)  # a lower loss is better


def test_framework():
    frameworks = {e.number: course.framework(train_py(e.number).read_text(encoding="utf-8")) for e in BUILT}
    assert frameworks[1] == "numpy"
    assert frameworks[7] == frameworks[13] == "PyTorch"
    assert frameworks[8] == frameworks[14] == "JAX, optax"


@pytest.mark.parametrize("command", [("list",), ("diff", "9"), ("diff", "--stat"), ("hint", "4", "--most")])
def test_start_is_light(command):
    code = f"import sys; sys.argv = ['rampup', *{command!r}]; from common.cli import commands; commands.main(); "
    code += "heavy = {'torch', 'jax', 'matplotlib', 'numpy', 'jinja2', 'pygments.lexers.python'} & set(sys.modules); "
    code += "sys.exit(', '.join(heavy) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.returncode == 0, result.stderr


# the diff


@pytest.mark.parametrize("exercise", [e for e in BUILT if e.parent], ids=lambda exercise: exercise.folder)
def test_diff_hides_nothing(exercise):
    old, new = (train_py(n).read_text(encoding="utf-8") for n in (exercise.parent, exercise.number))
    rows = diff.compare(old, new)
    assert [row.old for row in rows if row.old is not None] == old.splitlines()
    assert [row.new for row in rows if row.new is not None] == new.splitlines()
    assert [row.old_number for row in rows if row.old_number] == list(range(1, len(old.splitlines()) + 1))
    assert [row.new_number for row in rows if row.new_number] == list(range(1, len(new.splitlines()) + 1))
    for row in rows:
        for line, pieces in zip((row.old, row.new), diff.words(row)):
            assert "".join(text for text, _ in pieces) == (line or "")
    for folded, stretch in diff.stretches(rows):
        assert not folded or all(row.kind == "same" for row in stretch)
    assert [row for _, stretch in diff.stretches(rows) for row in stretch] == rows


def test_words_and_pairs():
    rows = diff.compare("a = 1\nx = f(y)\nz = 3\n", "a = 1\nnew(line)\n  x = f(w)\n")
    assert [row.kind for row in rows] == ["same", "added", "changed", "removed"]
    old, new = diff.words(rows[2])
    assert old == [("x = f(", False), ("y", True), (")", False)]
    assert new == [("  ", True), ("x = f(", False), ("w", True), (")", False)]
    assert [row.kind for row in diff.compare("a\n    b", "a\nb")] == ["same", "changed"]  # indented anew
    assert [row.kind for row in diff.compare("", "")] == ["same"]


def test_diff_on_the_screen():
    result = rampup("diff", 2)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "ex01_linreg_numpy/train.py → ex02_linreg_torch/train.py"
    assert re.fullmatch(r"\d+ changed lines, budget 40 \(added and removed, .*\)", lines[1])
    assert any(re.fullmatch(r" +\d+ \+ import torch", line) for line in lines)
    assert any(re.fullmatch(r" *\d+ +- def backward\(x, prediction, y\):", line) for line in lines)
    assert any("⋮" in line and "unchanged lines" in line for line in lines)
    assert "\x1b" not in result.stdout  # no colours in a pipe
    assert rampup("diff", "ex02_linreg_torch").stdout == result.stdout


def test_diff_of_any_two():
    result = rampup("diff", 7, 13)
    assert result.stdout.startswith("ex07_mnist_mlp/train.py → ex13_transformer/train.py\n")
    assert "budget" not in result.stdout.splitlines()[1]
    one_sentence(rampup("diff"), "takes one exercise or two")
    one_sentence(rampup("diff", 1, 2, 3), "takes one exercise or two")
    one_sentence(rampup("diff", 1), "ex01_linreg_numpy has no parent")


def test_diff_stat():
    lines = rampup("diff", "--stat").stdout.splitlines()[1:]
    assert len(lines) == len(BUILT) - 1
    assert lines[0].startswith(" 1 →  2  ")
    assert all(re.search(r" \d+ changed lines, budget \d+$", line) for line in lines)


def test_diff_page(tmp_path):
    assert rampup("diff", 3, "--html", tmp_path / "diff.html").stdout == f"{tmp_path / 'diff.html'}\n"
    page = assert_harmless((tmp_path / "diff.html").read_text(encoding="utf-8"))
    assert {"ins", "del", "details"} <= set(page.tags)
    for line in train_py(3).read_text(encoding="utf-8").splitlines():
        assert line in page.text
    rampup("diff", 13, "--html", tmp_path / "diff.html")
    page = assert_harmless((tmp_path / "diff.html").read_text(encoding="utf-8"))
    assert [title in page.text for title in ("1. A transformer in place", "4. See what it looks at")] == [True, True]
    assert page.text.index("4. See what it looks at") < page.text.index("The whole change at once")
    one_sentence(rampup("diff", 3, "--html", tmp_path / "no" / "diff.html"), "cannot write", "No such file")


# the review


def review(number: int, path: Path | None, tmp_path: Path) -> str:
    """Return the page that a review writes, in this process."""
    assert write_review(find_exercise(number), path, tmp_path / "review.html", False) == tmp_path / "review.html"
    return (tmp_path / "review.html").read_text(encoding="utf-8")


def test_review(mine, tmp_path):
    source = (mine / "train.py").read_text(encoding="utf-8")
    assert "    eval_every: int = 10 " in source
    (mine / "train.py").write_text(source.replace("    eval_every: int = 10 ", "    eval_every: int = 50 "))
    (mine / "out" / "samples.txt").write_text("--- step 0\nROMEO:\n")
    html = review(4, mine, tmp_path)
    page = assert_harmless(html)
    text = " ".join(page.text.split())
    assert find_exercise(4).sentence in text
    assert "loss 0.4706, expected 0.4809 ± 0.0085" in text
    assert "accuracy 75.12 %, expected 80.03 ± 0.75 %: too low by 4.91 points" in text
    assert "loss 0.4706 against the baseline ln 3, 1.099" in text
    assert "first loss 1.1, ln 3 is 1.099" in text
    assert "Changes from exercise 3" in text
    assert "Beside the reference solution 2 changed lines" in text
    assert "cpu, 2 cores, x86_64" in text
    assert "abc123-dirty" in text
    assert "ROMEO:" in text
    assert "data:image/png;base64,iVBORw0KGgo" in html
    assert re.findall(r">(\w+)</th><td><mark", html) == []  # the run has the reference's settings
    for i, line in enumerate((mine / "train.py").read_text(encoding="utf-8").splitlines(), 1):
        assert f'id="L{i}"' in html
        assert line in page.text
    assert page.values("contenteditable") == ["true"] * (i + 1)  # and the overall remark
    assert str(tmp_path) not in html  # nothing of this machine
    assert str(ROOT) not in html
    assert len(re.findall("Content-Security-Policy", html)) == 1
    assert "default-src 'none'" in html


def test_review_begins_with_name_and_question(mine, tmp_path):
    asked = "It trains, but <b>why</b> does it jump?"
    rampup("review", 4, "--folder", mine, "--html", tmp_path / "a.html", "--from", "Ada & Co", "--note", asked)
    text = " ".join(assert_harmless((tmp_path / "a.html").read_text(encoding="utf-8")).text.split())
    assert text.index("from Ada & Co") < text.index(asked) < text.index("expected 0.4809")


def test_review_marks_what_is_not_the_references(mine, tmp_path):
    """A learning rate that was changed in train.py as well as one that came by flag; neither seed nor out."""
    source = (mine / "train.py").read_text(encoding="utf-8")
    (mine / "train.py").write_text(source.replace("learning_rate: float = 0.1 ", "learning_rate: float = 0.5 "))
    config = RESULT["config"] | {"learning_rate": 0.5, "steps": 60, "seed": 7, "out": "elsewhere"}
    (mine / "out" / "result.json").write_text(json.dumps(RESULT | {"config": config}))
    marked = re.findall(r">(\w+)</th><td><mark[^>]*>([^<]*)</mark>", review(4, mine, tmp_path))
    assert marked == [
        ("steps", "60 (reference 1000, by flag)"),
        ("learning_rate", "0.5 (reference 0.1, changed in train.py)"),
    ]


def test_review_begins_with_what_is_wrong(mine, tmp_path):
    """First the worst finding and what became of the loss, then what differs, then the curves, then the rest."""
    losses = [1.1 - 0.006 * min(step, 100) + 0.004 * max(0, step - 100) for step in range(200)]
    rows = "".join(f"{step},train,loss,{loss}\n" for step, loss in enumerate(losses))
    (mine / "out" / "metrics.csv").write_text(f"step,split,metric,value\n{rows}")
    source = (mine / "train.py").read_text(encoding="utf-8")
    (mine / "train.py").write_text(source.replace("                    param.grad = None", "                    pass"))
    (mine / "out" / "result.json").write_text(
        json.dumps(RESULT | {"metrics": {"loss": 0.9, "accuracy": 0.72}, "program": 64 * "0"})
    )
    html = review(4, mine, tmp_path)
    text = " ".join(assert_harmless(html).text.split())
    wanted = [
        "train.py was changed after this run",
        "train loss from 1.1 to 0.858 (mean of the last 20 steps), after 0.538 in between",
        "200 of 1,000 steps",
        "train.py changed since the run",
        "2 changed lines",
        "loss of a batch",
        "this run 0.8",
        "reference 0.4",
        "loss 0.9000, expected 0.4809",
    ]
    places = [text.index(words) for words in wanted]
    assert places == sorted(places)
    shown = re.search(r'class="diff unified".*?</div>', html, re.S)[0]
    assert shown.count('<tr class="removed">') == shown.count('<tr class="added">') == 1
    assert 'data-comment="118"' in shown


def test_review_of_a_program_from_nothing(mine, tmp_path):
    (mine / "train.py").write_text("import numpy as np\nfor i in range(10):\n    print('loss', 1 / (i + 1))\n")
    html = review(4, mine, tmp_path)
    assert html.index("was not made from the reference") < html.index('id="program"') < html.index('id="parent"')


def test_curves():
    """What is drawn of a run is what was recorded: means of training losses, evaluations as they are."""
    points = [(step, 1 / (1 + step)) for step in range(5000)]
    few = chart.thin(points, True)
    assert len(few) <= chart.MOST + 1
    assert few[0] == points[0]
    assert all(abs(value - 1 / (1 + step)) < 0.2 / (1 + step) for step, value in few)
    assert chart.thin(points, False)[-1] == points[-1]
    assert set(chart.thin(points, False)) <= set(points)
    assert chart.thin([(0, 1.0), (1, math.nan)], True) == [(0, 1.0)]
    series = {("train", "loss"): points, ("all", "loss"): points[::100], ("all", "accuracy"): [(0, 0.5)]}
    drawn = chart.charts(series, {("all", "loss"): [(0, 2.0), (10, 1.0)]}, {"ln 3": 1.0986, "Bayes": 0.4})
    assert [re.search(r'title">([^<]*)', d)[1] for d in drawn] == ["loss of all samples", "accuracy of all samples"]
    assert "ln 3 1.099, reference 1, this run 0.000204" in drawn[0]
    assert chart.charts({}, series, {}) == []
    wild = {("train", "loss"): [(0, 1e-9), (1, 1e300), (2, -1e300), (3, 0.0)]}
    assert "nan" not in str(chart.charts(wild, {}, {"<b>": 2.0}))
    assert "<b>" not in str(chart.charts(wild, {}, {"<b>": 2.0}))


@pytest.mark.parametrize("number", [int(path.stem) for path in sorted(chart.CURVES.glob("*.csv"))])
def test_committed_curves(number):
    """The reference's curve ends at the figure of the lesson, and is of the whole run."""
    curves = chart.reference_curves(number)
    for figure in course.expected(find_exercise(number)):
        split, _, metric = figure.metric.rpartition("_")
        assert abs(figure.excess(curves[split or "all", metric][-1][1])) <= figure.margin
    assert (chart.CURVES / f"{number:02}.csv").stat().st_size < 10_000


def test_comments_of_a_saved_page(tmp_path):
    page = tmp_path / "saved.html"
    page.write_text(
        '<h1>Exercise 4: mine, from <b>Ada</b></h1><table><tr id="L41"><td class="number"><a>41</a></td><td><code>'
        '    w <span>-=</span> g &lt; 1</code></td><td><div contenteditable data-line="41">why?<div>two<br>lines'
        '</div></div></td></tr><tr id="L42"><td><code>x</code></td><td><div data-line="42"> </div></td></tr></table>'
        '<div data-line="0">Well \x1b[31mdone</div>'
    )
    shown = rampup("comments", page)
    assert shown.stdout.splitlines() == [
        "Exercise 4: mine, from Ada",
        "",
        "    Well \\x1b[31mdone",
        "",
        "train.py:41: why?",
        "    two",
        "    lines",
        "    > w -= g < 1",
    ]
    page.write_text(page.read_text().partition('<div data-line="0">')[0])  # without a remark on all
    assert rampup("comments", page).stdout.splitlines()[1:3] == ["", "train.py:41: why?"]
    page.write_text("<h1>no review</h1>")
    one_sentence(rampup("comments", page), "is no page of `rampup review`")
    page.write_text('<tr id="L1"><code>x</code></tr><div data-line="0"></div>')
    one_sentence(rampup("comments", page), "holds no comment")
    one_sentence(rampup("comments", tmp_path / "none.html"), "cannot read", "the page that your mentor saved")
    one_sentence(rampup("comments", tmp_path), "cannot read")


def test_review_of_a_program_that_was_changed_after_its_run(mine, tmp_path):
    said = "train.py was changed after this run"
    result = json.loads((mine / "out" / "result.json").read_text())
    digest = hashlib.sha256((mine / "train.py").read_bytes()).hexdigest()
    for program, outdated in ((None, False), (digest, False), (64 * "0", True)):
        (mine / "out" / "result.json").write_text(json.dumps(result | {"program": program}))
        rampup("review", 4, "--folder", mine, "--html", tmp_path / "page.html")
        assert (said in (tmp_path / "page.html").read_text(encoding="utf-8")) == outdated


def test_review_of_the_reference(checkout, tmp_path):
    path = checkout / "ex04_softmax" / "train.py"
    source = path.read_text(encoding="utf-8")
    result = rampup("review", 4, root=checkout, cwd=tmp_path)
    assert result.stdout == "review_ex04_softmax.html\n", result.stderr
    page = Page((tmp_path / "review_ex04_softmax.html").read_text(encoding="utf-8"))
    assert "This train.py is the reference solution, to the letter." in page.text
    assert re.search(r"changed since the last commit\s*nothing", page.text)
    try:
        path.write_text(source + "# mine\n")
        rampup("review", "ex04_softmax", "--html", tmp_path / "mine.html", root=checkout)
    finally:
        path.write_text(source)
    page = Page((tmp_path / "mine.html").read_text(encoding="utf-8"))
    assert "Beside the reference solution" in page.text
    assert "1 changed line (" in page.text
    assert re.search(r"changed since the last commit\s*train.py", page.text)


def test_review_without_a_run(mine, tmp_path):
    shutil.rmtree(mine / "out")
    page = assert_harmless(review(4, mine, tmp_path))
    assert "Not run yet." in page.text
    assert "python my_ex04/train.py" in page.text
    assert "Changes from exercise" not in Page(review(1, None, tmp_path)).text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "recursion"),
        ('{"metrics": 3}', '"metrics" is not a JSON object'),
        ('{"metrics": {}}', 'has no "metrics"'),
        ('{"metrics": {"loss": "low"}}', '"loss" in "metrics" is not a finite number'),
        ('{"metrics": {"loss": NaN}}', "not a finite number"),
        ('{"metrics": {"loss": 1' + "0" * 400 + "}}", "not a finite number"),
        ('{"metrics": {"loss": ' + "9" * 5000 + "}}", "out/result.json cannot be read"),
        ('{"metrics": {"loss": true}}', "not a finite number"),
        ("a\0b", "out/result.json cannot be read"),
    ],
)
def test_review_with_a_broken_result(mine, tmp_path, text, reason):
    (mine / "out" / "result.json").write_text(text)
    page = assert_harmless(review(4, mine, tmp_path))
    assert "out/result.json cannot be read" in page.text
    assert reason in page.text
    assert "or its result cannot be read" in page.text


@pytest.mark.parametrize("text", ["", "step,split\n", "HEAD1,train,loss\n", "HEADx,a,b,1\n", "HEAD1,a,b,c\n"])
def test_review_with_broken_metrics(mine, tmp_path, text):
    (mine / "out" / "metrics.csv").write_text(text.replace("HEAD", "step,split,metric,value\n"))
    page = assert_harmless(review(4, mine, tmp_path))
    assert "out/metrics.csv cannot be read: its" in page.text
    assert "expected 0.4809" in page.text


def test_stranger(tmp_path):
    """Everything that a folder can hold comes out as text, and nothing outside the folder comes out at all."""
    (tmp_path / "secret.txt").write_text("a secret")
    path = tmp_path / "my \"ex\" <b>'s' ü"
    (path / "out").mkdir(parents=True)
    source = f'"""{EVIL}"""\nx = "\x1b[31m \u202e \u2066 <!-- ]]> {{{{ 7 * 7 }}}} </code></table>"\n# </script>\n'
    (path / "train.py").write_text(source + "from pathlib import Path\nPath('ran').touch()\n")
    (path / "README.md").write_text(EVIL)
    (path / "größe <i>.txt").write_text("ü")
    (path / ".env").write_text("PASSWORD=1")
    (path / "link.txt").symlink_to(tmp_path / "secret.txt")
    (path / "out" / "samples.txt").symlink_to(tmp_path / "secret.txt")
    (path / "out" / "metrics.csv").write_text(f"step,split,metric,value\n0,{EVIL.replace(chr(34), '')},loss,1\n")
    (path / "out" / "result.json").write_text(
        json.dumps(
            RESULT | {name: {EVIL: 0.5, "loss": 0.5} for name in ("metrics", "baselines", "versions", "config")}
        ).replace('"device": "cpu', '"device": "\\ud800 \\u202e cpu')
    )
    (path / "out" / "loss.png").write_bytes(b"<svg onload=alert(1)>")
    os.mkfifo(path / "out" / "pipe.png")
    (path / "out" / "link.png").symlink_to("/dev/zero")
    with open(path / "out" / "log.txt", "wb") as log:
        log.truncate(50 * 10**6)
    html = review(4, path, tmp_path)
    page = assert_harmless(html)
    assert EVIL in page.text
    assert "a secret" not in html
    assert "PASSWORD" not in html
    assert "{{ 7 * 7 }}" in page.text
    assert not re.search("[\x1b\u202e\u2066]", html)
    assert "\\x1b[31m \\u202e \\u2066" in page.text
    text = " ".join(page.text.split())
    assert "out/samples.txt cannot be read: it is a link" in text
    assert "out/loss.png is not shown: it is neither a PNG nor a JPEG" in text
    assert "out/pipe.png is not shown: it is not a plain file" in text
    assert re.search(r"out/log.txt 50.0 MB more than 10.0 MB", text)
    assert ".env 10 bytes hidden" in text
    assert "größe <i>.txt 2 bytes" in text
    assert not (path / "ran").exists()
    assert not (ROOT / "ran").exists()


def test_review_zip(mine, tmp_path):
    (mine / "notes ü.txt").write_text("mine")
    (mine / "__pycache__").mkdir()
    (mine / "__pycache__" / "x.pyc").write_text("")
    (mine / "secret").symlink_to("/etc/passwd")
    with open(mine / "out" / "log.txt", "wb") as log:
        log.truncate(50 * 10**6)
    result = rampup("review", 4, "--folder", mine, "--zip", cwd=tmp_path)
    assert result.stdout == "review_ex04_softmax.zip\n"
    with zipfile.ZipFile(tmp_path / "review_ex04_softmax.zip") as archive:
        names = set(archive.namelist())
        assert "out/log.txt" in archive.read("review_ex04_softmax.html").decode()
    assert names == {
        "review_ex04_softmax.html",
        "my_ex04/train.py",
        "my_ex04/notes ü.txt",
        *(f"my_ex04/out/{name}" for name in ("loss.png", "metrics.csv", "result.json")),
    }


def test_review_refuses(mine, tmp_path):
    one_sentence(rampup("review", 4, "--folder", tmp_path / "nowhere"), "there is no folder", "--folder PATH")
    one_sentence(rampup("review", 4, "--folder", tmp_path), "no train.py in", "--folder PATH")
    one_sentence(rampup("review", 4, "--html", tmp_path), "cannot write", "name another with --html FILE")
    (mine / "train.py").write_bytes(b"\x7fELF\0\0")
    one_sentence(rampup("review", 4, "--folder", mine), "it is a binary file of 6 bytes")
    (mine / "train.py").write_text("\n" * 300_000)
    one_sentence(rampup("review", 4, "--folder", mine), "it has 300.0 kB, and at most 200.0 kB are shown")
    (mine / "train.py").unlink()
    (mine / "train.py").symlink_to("/etc/passwd")
    one_sentence(rampup("review", 4, "--folder", mine), "it is a link")


@pytest.mark.parametrize(
    "source",
    ["def (", "", "\n\n", "é = 'ü'\r\ny = 2\r\n", "# \udcff", "-" * 5000 + "1", "\tx\x0cy\x85z", "f(x)\n" * 3000],
)
def test_review_of_any_text(mine, tmp_path, source):
    (mine / "train.py").write_bytes(source.encode(errors="surrogateescape"))
    page = assert_harmless(review(4, mine, tmp_path))
    assert page.values("contenteditable")


def test_code_lines_are_those_of_the_text():
    for exercise in BUILT:
        source = train_py(exercise.number).read_text(encoding="utf-8")
        lines = code_lines(source)
        assert ["".join(Page(line).text) for line in lines] == source.splitlines()
    assert code_lines("<" * 10**5 + "\nif") == ["&lt;" * 10**5, "if"]  # without colours: it would take seconds
    assert code_lines("<\nif") != ["&lt;", "if"]


# the hints


def code_of(source: str) -> list[str]:
    """Return the lines of a program that are code, longer than 25 characters, without what is said beside them."""
    lines = (line.split("  # ")[0].strip() for line in source.splitlines())
    return [line for line in lines if len(line) > 25 and re.search(r"[=(\[]", line)]


@pytest.mark.parametrize("exercise", BUILT, ids=lambda exercise: exercise.folder)
def test_hints_of(exercise):
    """Three or more, each a symptom, a nudge and what to look at, and neither holds a line of the solution."""
    hints = hint.read_hints(exercise)
    assert 3 <= len(hints) <= 6
    assert len({one.symptom for one in hints}) == len(hints)
    text = (hint.HINTS / f"{exercise.number:02}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# Exercise {exercise.number}\n\n## ")
    assert text.count("\n\nMore:\n\n") == text.count("More:") == len(hints)
    assert max(map(len, text.splitlines())) <= 120
    lines = code_of(train_py(exercise.number).read_text(encoding="utf-8"))
    assert len(lines) > 40
    for one in hints:
        assert len(one.symptom) <= 80
        assert 40 <= len(one.nudge) <= 400
        assert 100 <= len(one.more) <= 900
        assert "?" in one.nudge  # it asks
        assert [line for line in lines if line in one.nudge + one.more] == []


def test_hint_on_the_screen(monkeypatch, capsys):
    """Three steps, each with all of the one before, and each says how to get the next."""
    monkeypatch.setenv("COLUMNS", "100")
    shown = []
    for flags in ({}, {"more": True}, {"most": True}):
        monkeypatch.setattr(commands, "console", commands.Console(highlight=False, soft_wrap=True))
        commands.hint("4", **flags)
        shown.append(" ".join(capsys.readouterr().out.split()))
    hints = hint.read_hints(find_exercise(4))
    assert all(one.symptom in text and one.nudge in text for one in hints for text in shown)
    assert [[one.more in text for one in hints] for text in shown] == [[False] * len(hints)] + [[True] * len(hints)] * 2
    line = "return -log_probs[torch.arange(len(y)), y].mean() # ()"
    assert [line in text for text in shown] == [False, False, True]
    for text, command in zip(shown, ("hint 4 --more", "hint 4 --most", "diff 4")):
        assert f"`rampup {command}`" in text
    assert str(hint.FAULTS) in shown[1]
    assert hint.FAULTS.exists()


def test_the_last_hint_shows_what_is_new(capsys):
    """Every line of it is in the exercise's program, and none of them is a line of its docstring or of its parent."""
    commands.hint("5", most=True)
    old, new = (train_py(n).read_text(encoding="utf-8").splitlines() for n in (4, 5))
    numbered = [re.fullmatch(r" *(\d+)  (.*)", line) for line in capsys.readouterr().out.splitlines()]
    lines = [(int(match[1]), match[2]) for match in numbered if match]
    assert len(lines) > 15
    assert all(new[number - 1] == line for number, line in lines)
    assert lines[0] == (18, "from itertools import pairwise")
    assert not {line for _, line in lines} & set(old)


def test_hint_of_the_first_exercise(capsys):
    commands.hint("1", most=True)
    text = " ".join(capsys.readouterr().out.split())
    number = train_py(1).read_text(encoding="utf-8").splitlines().index("def backward(x, prediction, y):") + 1
    assert f"Read the function `backward` in ex01_linreg_numpy/train.py, from line {number} on" in text


def test_hint_refuses():
    one_sentence(rampup("hint", 18), "there is no exercise '18': they are 1 to 17, see `rampup list`")
    one_sentence(rampup("hint", "ex09_mnist_cn"), "did you mean ex09_mnist_cnn")


# the check


def check(path: Path, *flags: str) -> tuple[int, str]:
    """Return exit code and output of `rampup check` for a learner's exercise 1."""
    result = rampup("check", 1, "--folder", path, *flags)
    assert "Traceback" not in result.stdout + result.stderr
    return result.returncode, result.stdout


@pytest.fixture
def first(tmp_path):
    """Return a function that writes a learner's exercise 1, the reference with pieces replaced."""

    def write(*replacements: tuple[str, str]) -> Path:
        source = train_py(1).read_text(encoding="utf-8")
        for old, new in replacements:
            assert old in source
            source = source.replace(old, new)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "train.py").write_text(source, encoding="utf-8")
        return tmp_path / "mine"

    return write


def test_check_of_a_right_program(first):
    path = first()
    code, output = check(path)
    assert code == 0
    assert "ok    the same seed gives the same metrics.csv" in output
    assert re.search(r"^result: loss=0.01", output, re.M)  # the run itself is seen
    assert re.search(r"^ok    loss 0.01\d+, expected 0.01001 ± 0.00004$", output, re.M)
    assert "short" not in output
    assert sorted(p.name for p in path.iterdir()) == ["out", "train.py"]  # the run is kept, and nothing else
    assert "loss 0.01" in rampup("review", 1, cwd=path).stdout + (path / "review_ex01_linreg_numpy.html").read_text()
    before = (path / "out" / "result.json").read_bytes()
    assert check(path)[0] == 0
    assert (path / "out" / "result.json").read_bytes() == before  # an earlier run is not replaced


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "np.random.default_rng(config.seed)",
            "np.random.default_rng()",
            "the same seed gives another metrics.csv",
        ),
        ("np.random.default_rng(config.seed)", "np.random.default_rng(0)", "another seed gives the same metrics.csv"),
        ("steps: int = 1_000", "steps: int = 3", "too high by"),
        ("learning_rate: float = 0.1", "learning_rate: float = 1e-7", "it hardly falls"),
        ("def main(", "def mein(", "--dry-run ends with exit code 1"),
        ("run.finish(", "dict(", "it does not write result.json"),
    ],
)
def test_check_of_a_wrong_program(first, old, new, said):
    code, output = check(first((old, new)))
    assert code == 1
    assert said in output
    assert "short " in output


def test_check_dry_run(first):
    code, output = check(first(("steps: int = 1_000", "steps: int = 3")), "--dry-run")
    assert code == 0
    assert "expected" not in output


IMAGES = """
import dataclasses, sys
from pathlib import Path
from common.program import clean_exit
from common.record import Run
import tyro

@dataclasses.dataclass
class Config:
    data: Path = Path("imagenette")
    steps: int | None = None
    eval_every: int = 10
    seed: int = 0
    out: Path = Path("out")
    dry_run: bool = False

def main(config):
    with Run(config, {"ln 10": 2.3}) as run:
        run.record(0, "train", loss=2.3 + config.seed)
        run.finish(validation_accuracy=ACCURACY, validation_loss=1.6)
    (run.out / "loss.png").write_bytes(b"\\x89PNG\\r\\n\\x1a\\n")

if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config))
"""


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        (0.664, "ok    validation accuracy 66.4 %, expected 66.4 ± 0.9 %"),
        (0.2, "short validation accuracy 20.0 %, expected 66.4 ± 0.9 %: too low by 46.4 points"),
    ],
)
def test_check_runs_what_was_measured(tmp_path, monkeypatch, accuracy, said):
    """Exercise 15 is run on the data of the README's figure, which are there, and so can be compared with it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.py").write_text(IMAGES.replace("ACCURACY", str(accuracy)))
    monkeypatch.setenv("RAMPUP_DATA", str(tmp_path / "data"))
    mine, sample = folder.read_folder(find_exercise(15), tmp_path / "mine"), tmp_path / "data" / "imagenet_sample"
    assert figure_flags(find_exercise(15), mine) == ["--steps", "800", "--eval-every", "100"]  # else on the default's
    sample.mkdir(parents=True)
    result = rampup("check", 15, "--folder", tmp_path / "mine")
    assert result.stderr == ""
    assert f"\nthe run in full: --data {sample} --steps 800 --eval-every 100\n" in result.stdout
    assert f"\n{said}\n" in result.stdout
    assert result.returncode == said.startswith("short"), result.stdout


FREE = """
import numpy as np
rng = np.random.default_rng(3)
x = rng.uniform(0, 100, 10000)
x = (x - x.mean()) / x.std()
y = 3 * x + 2 + 0.1 * rng.standard_normal(10000)
w, b = 0.0, 0.0
for step in range(500):
    i = rng.integers(0, 10000, 500)
    e = w * x[i] + b - y[i]
    w -= 0.1 * 2 * (e * x[i]).mean()
    b -= 0.1 * 2 * e.mean()
    if step % 50 == 0:
        print("step", step, "loss:", (e**2).mean())
print("final loss", ((w * x + b - y) ** 2).mean())
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("", "", None),
        ("w -= 0.1", "w += 0.1", "it rises: does the update subtract the gradient"),
        ("0.1 * 2", "2.5 * 2", "lower the rate; is the gradient a sum and not a mean, or is there a logarithm of 0"),
        ("0.1 * 2", "1e-9 * 2", "it hardly falls"),
        ("(e**2).mean()", "-(e**2).mean()", "none of this course's losses can be below 0"),
        ("import numpy as np", "import numpy as np\nimport torch", "it is in PyTorch; this exercise is in numpy"),
        ("loss", "value", "it prints no loss that can be read"),
        ("w, b = 0.0, 0.0", "w, b = 0.0, None", "the program ends with exit code 1"),
        ("e = w", "e, w, b = 0, 0, 1 / 0 if step > 300 else 0.0; e = w", "ZeroDivisionError"),
    ],
)
def test_check_of_a_program_of_ones_own_making(tmp_path, old, new, said):
    """Without Run, flags or functions: what it prints is judged, and its fault is named."""
    (tmp_path / "train.py").write_text(FREE.replace(old, new) if old else FREE)
    result = rampup("check", 1, cwd=tmp_path)
    assert result.stdout.startswith(f"checking {tmp_path / 'train.py'} as exercise 1\n")
    if said:
        assert said in result.stdout
        assert result.returncode == 1
    else:
        assert "ok    the losses that it prints go from 1" in result.stdout
        assert re.search(r"^ok    loss 0.0\d+, expected 0.01001", result.stdout, re.M)
        assert "short" not in result.stdout
        assert result.returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["train.py"]


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        ("notebook", 2, "prediction and target must have one shape: (B,) minus (B, 1) is (B, B)"),
        ("classes", 4, "the data have 3 classes: has the last layer 5 outputs?"),
        ("prints_everything", 1, "is the gradient a sum and not a mean"),
        ("shows_plots", 3, "are the gradients zeroed before every backward()?"),
        ("crashes_at_the_end", 4, "is there a softmax before cross_entropy, which has its own?"),
        ("crashes_at_the_end", 4, "FileNotFoundError: [Errno 2] No such file or directory: 'results/no/such/folder"),
        ("right", 4, None),
    ],
)
def test_check_names_the_fault_of_a_solution_as_they_are_found(tmp_path, name, number, said):
    """Programs in the styles that are found in public: each but the last has one typical fault."""
    source = (ROOT / "tests" / "solutions" / f"{'classes' if name == 'right' else name}.py").read_text()
    (tmp_path / "train.py").write_text(source if said else source.replace("n_classes=5", "n_classes=3"))
    result = rampup("check", number, cwd=tmp_path)
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) < 20
    if said:
        assert said in result.stdout
        assert result.returncode == 1
    else:
        assert "short" not in result.stdout
        assert result.returncode == 0


def test_check_keeps_a_run_in_the_place_of_none_or_of_a_broken_one(tmp_path):
    run, out, console = tmp_path / "run", tmp_path / "out", commands.console
    run.mkdir()
    (run / "result.json").write_text("new")
    keep(console, run, out)
    assert (out / "result.json").read_text() == "new"
    (out / "result.json").rename(out / "run.json")  # as a run leaves it that ended in an error
    keep(console, run, out)
    assert sorted(path.name for path in out.iterdir()) == ["result.json"]
    (out / "result.json").write_text("mine")
    keep(console, run, out)
    assert (out / "result.json").read_text() == "mine"


def test_printed_losses():
    lines = "step 5 loss: 0.5\ntrain_loss=1e-3 acc 0.9\nLoss is tensor(-.25, grad)\nloss [nan]\nepoch 3, loss = inf\n"
    lines += "loss after 100 steps\nloss inferior to 3\nlosses 4\n"
    found = printed(lines, "loss")
    assert found[:3] + found[4:] == [0.5, 0.001, -0.25, math.inf]
    assert math.isnan(found[3])
    assert printed(lines, r"acc\w*") == [0.9]


def test_figures_of_a_stranger_are_no_trouble():
    for value in (-1e299, 1e299):
        found = findings_of(4, {"loss": 1e299, "accuracy": 1e299}, {"ln 3": value, "Bayes": value})
        assert all(len(finding) + len(hint) < 400 for finding, hint in found.items())


def test_check_says_that_it_runs_the_reference(tmp_path):
    first_line = rampup("check", 1, "--dry-run", cwd=tmp_path).stdout.splitlines()[0]
    assert first_line.endswith(" as exercise 1, the reference solution (--folder PATH: your own)")


def test_the_page_about_what_check_reads(tmp_path):
    """Its program runs and leaves what it says; its files can be read; its names are those of the lessons' figures."""
    text = (site.PAGES / "what-check-reads.md").read_text(encoding="utf-8")
    program, csv, result = (re.search(rf"```{kind}\n(.*?)```", text, re.S)[1] for kind in ("python", "csv", "json"))
    (tmp_path / "train.py").write_text(program, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, tmp_path / "train.py"], capture_output=True, text=True, timeout=120, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    losses = folder.read_metrics(tmp_path / "out" / "metrics.csv")["train", "loss"]
    assert [step for step, _ in losses] == list(range(100))
    record = folder.read_result(tmp_path / "out" / "result.json")
    assert record["metrics"]["loss"] < 1 < record["baselines"]["answer 0"]
    assert ran.stdout.splitlines()[-1].startswith("result: loss=0.954 answer=")
    (tmp_path / "metrics.csv").write_text(csv, encoding="utf-8")
    (tmp_path / "result.json").write_text(result, encoding="utf-8")
    shown = folder.read_metrics(tmp_path / "metrics.csv")
    assert shown["train", "loss"] == [(step, round(loss, 3)) for step, loss in losses[:3]]
    assert folder.read_result(tmp_path / "result.json")["baselines"] == {"answer 0": 25.476}
    rows = re.findall(r"^\| ([\d, ]+) \| (.*) \|$", text, re.M)
    names = {int(n): re.findall(r"`(\w+)`", named) for numbers, named in rows for n in numbers.split(",")}
    assert set(names) == {exercise.number for exercise in EXERCISES}
    for exercise in BUILT:
        assert {figure.metric for figure in course.expected(exercise)} <= set(names[exercise.number])
        assert set(names[exercise.number]) & set(judge.LOSSES)


def test_check_refuses(tmp_path):
    one_sentence(rampup("check", 1, "--folder", tmp_path), "no train.py in")


def judged(series: dict, **result) -> dict[str, str]:
    """Return what is found in a made-up run of exercise 8, hints by mark and text."""
    record = RESULT | {"metrics": {"test_loss": 0.08, "test_accuracy": 0.985}, "baselines": {"ln 10": 2.3026}} | result
    made = folder.Folder(ROOT, "", result=record, series=series)
    return {f"{finding.mark} {finding.text}": finding.hint for finding in judge.judge(find_exercise(8), made)}


def compared(number: int, source: str, flags: dict) -> str:
    """Return what is said about the expected figure to a run of an exercise that learned nothing."""
    metric = course.expected(find_exercise(number))[0].metric
    record = RESULT | {"metrics": {metric: 0.0 if "accuracy" in metric else 99.0}, "config": flags}
    findings = judge.judge(find_exercise(number), folder.Folder(ROOT, source, result=record, series={}))
    return next(f"{finding.mark} {finding.text}" for finding in findings if "expected" in finding.text)


def measured_flags(number: int) -> dict:
    """Return the flags of the run that an exercise's figure is of, as result.json records them."""
    ex = load(number)
    config = ex.Config()
    if number in (16, 17):
        config = ex.defaults(device="cpu")  # with the values of its preset
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(config).items()}
    if number == 15:
        flags |= {"data": "data/imagenet_sample", "steps": 800, "epochs": 800 / 7, "weight_decay": 0.03, "area": 0.2}
    return flags | ({"data": "openwebtext_sample"} if number == 17 else {})


@numbers
def test_a_run_with_the_measured_flags_is_compared(number):
    source, flags = train_py(number).read_text(encoding="utf-8"), measured_flags(number)
    assert compared(number, source, flags).startswith("short ")
    other = {"seed": 7, "out": "elsewhere", "device": "cuda", "eval_every": 7}  # which change nothing
    assert compared(number, source, flags | other).startswith("short ")
    assert compared(number, "", {} if number < 15 else flags).startswith("short ")  # a program that says no more


@numbers
def test_a_run_with_other_flags_is_not_compared(number):
    source, flags = train_py(number).read_text(encoding="utf-8"), measured_flags(number)
    found = compared(number, source, flags | {"steps": 10})
    assert found.startswith("note not compared with the expected ")
    assert found.endswith(" which is of the default flags: this run has --steps 10" if number < 15 else "--steps 10")
    found = compared(number, source, flags | {"learning_rate": 0.123, "batch_size": 3})
    assert found.endswith(": this run has --batch-size 3, --learning-rate 0.123")
    found = compared(number, source, {name: -1 for name in flags})
    assert not re.search("--(seed|out|device)", found)
    assert ("more" in found) == (len(re.findall(r"--\S+ -1", found)) == judge.MOST_FLAGS)


def test_a_run_of_other_data_or_of_another_size_is_not_compared():
    found = {n: compared(n, "", measured_flags(n) | {"data": "mine", "preset": "best"}) for n in (15, 16, 17)}
    of = "--data imagenet_sample --steps 800 --eval-every 100 --weight-decay 0.03 --area 0.2: this run has --data mine"
    assert found[15] == f"note not compared with the expected 66.4 ± 0.9 %, which is of {of}"
    assert found[16].endswith(" which is of --preset nanogpt-cpu: this run has --preset best")
    of = "--data openwebtext_sample --preset laptop: this run has --data mine, --preset best"
    assert found[17].endswith(f" which is of {of}")
    source = train_py(17).read_text(encoding="utf-8")
    assert compared(17, source, measured_flags(17) | {"data": None}).endswith("this run has no --data")
    assert compared(17, source, measured_flags(17) | {"muon": True}).endswith("this run has --muon")
    assert compared(17, source, measured_flags(17) | {"precision": "float32"}).endswith("has --precision float32")


def test_defaults():
    source = 'PRESETS = {"big": {"hidden": 9, **OTHER}, "small": OTHER, **OTHER, f(): 1}\n'
    source += "class Config:\n    hidden: int = 1\n    width: int = 2 * 3\n    flag: bool\n    x.y: int = 4\n"
    assert folder.defaults(source) == {"hidden": 1}
    assert folder.defaults(source, "big") == {"hidden": 9}
    assert folder.defaults(source, "small") == folder.defaults(source, "none") == {"hidden": 1}
    assert folder.defaults("class Config(") == folder.defaults("PRESETS = f()\n", "big") == {}


def test_hints():
    falling = [(step, 2.3 - step / 100) for step in range(200)]
    assert all(found.startswith("ok ") for found in judged({("train", "loss"): falling}))
    found = judged({("train", "loss"): [(0, 6.1), *falling[1:]]})
    assert "initialisation" in found["note first loss 6.1, ln 10 is 2.303"]
    found = judged({("train", "loss"): [(0, 0.1), *falling[1:]]})
    assert "among the inputs" in found["note first loss 0.1, ln 10 is 2.303"]
    found = judged({("train", "loss"): [(step, 2.3) for step in range(200)]})
    assert any("learn one batch by heart" in hint for hint in found.values())
    rising = {("train", "loss"): [(step, 2.3 + step / 100) for step in range(200)]}
    assert any("it rises: does the update subtract" in hint for hint in judged(rising).values())
    back = {("train", "loss"): [(step, 0.5 + 1.8 * abs(step - 100) / 100) for step in range(200)]}
    assert any("are the gradients zeroed" in hint for hint in judged(back).values())
    noisy = {("train", "loss"): [(step, 2.3 / (1 + step) * (0.6 + step % 7 / 8)) for step in range(200)]}
    assert not any(found.startswith("short train") for found in judged(noisy))
    found = judged({("all", "loss"): [(0, 2.3), (1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]})
    assert "look at the update" in found["note the loss of all samples was least at step 1, 0.1, and is 0.4 at the end"]
    found = judged({("test", "loss"): [(0, 2.3), (1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]})
    assert found["note the test loss was least at step 1, 0.1, and is 0.4 at the end"]
    found = judged({}, metrics={"test_loss": 2.5, "test_accuracy": 0.2})
    assert "do the labels belong" in found["short loss 2.5 against the baseline ln 10, 2.303"]
    assert "short test accuracy 20.00 %, expected 98.50 ± 0.07 %: too low by 78.50 points" in found
    found = judged({}, metrics={"test_loss": 2.5, "test_accuracy": 0.72})
    assert "72% is far from chance" in found["short loss 2.5 against the baseline ln 10, 2.303"]
    found = judged({}, metrics={"test_loss": 0.01, "test_accuracy": 0.999})
    assert "note test accuracy 99.90 %, expected 98.50 ± 0.07 %: better by 1.40 points" in found
    found = judged({}, metrics={"loss": 0.1}, baselines={})
    assert "short test accuracy is not in result.json" in found
    assert "short result.json has no baseline or no loss" in found


def test_a_loss_that_cannot_be():
    """A minus that is missing is no success, whatever else the figures say."""
    uphill = [(step, -2.3 - step / 100) for step in range(200)]
    found = judged({("train", "loss"): uphill}, metrics={"test_loss": -8.9, "test_accuracy": 0.99})
    assert len(found) == 2
    assert "is the minus missing" in found["short a loss of -8.9, but none of this course's losses can be below 0"]
    assert "lacks its minus" in found["short first loss -2.3, ln 10 is 2.303"]
    baselines = {"predict the mean": 9.0, "noise floor": 0.01}
    found = findings_of(1, {"loss": 0.005}, baselines)
    assert "have a factor" in found["short loss 0.005 is far below the noise floor of its own data, 0.01"]


def findings_of(number: int, metrics: dict, baselines: dict) -> dict[str, str]:
    """Return what is found in a made-up run of an exercise."""
    record = RESULT | {"metrics": metrics, "baselines": baselines, "config": {}}
    made = folder.Folder(ROOT, "", result=record, series={})
    return {f"{finding.mark} {finding.text}": finding.hint for finding in judge.judge(find_exercise(number), made)}


def test_a_run_at_the_floor_of_other_data():
    """A right exercise 4 with data of its own is right; one that stops above its floor is not."""
    baselines = {"ln 3": 1.0986, "Bayes": 0.5129}
    found = findings_of(4, {"loss": 0.5131, "accuracy": 0.784}, baselines)
    assert "ok loss 0.5131 is at the Bayes loss of its own data, 0.5129: no program can do better" in found
    assert not any(finding.startswith("short") for finding in found)
    found = findings_of(4, {"loss": 0.6, "accuracy": 0.75}, baselines)
    assert any(finding.startswith("short accuracy 75.00 %") for finding in found)


def test_a_target_of_another_shape():
    found = findings_of(2, {"loss": 9.1}, {"predict the mean": 9.01, "noise floor": 0.01})
    assert "(B,) minus (B, 1) is (B, B)" in found["short loss 9.1 against the baseline predict the mean, 9.01"]


def test_a_run_that_diverged_has_readable_figures():
    found = findings_of(1, {"loss": 5.4e162}, {"predict the mean": 9.01, "noise floor": 0.01})
    assert max(map(len, found)) < 120


# the site


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return the site's pages by name."""
    directory = tmp_path_factory.mktemp("site") / "new" / "site"
    result = rampup("site", directory)
    assert result.stdout == f"{directory / 'index.html'}\n", result.stderr
    return {path.name: path for path in directory.glob("*.html")}


def test_site_has_a_page_for_each(pages):
    others = {
        f"{name}.html" for name in ("index", "questions", "it-does-not-learn", "what-check-reads", "glossary", "errata")
    }
    assert set(pages) == {f"{e.folder}.html" for e in BUILT} | others
    index = Page(pages["index.html"].read_text(encoding="utf-8"))
    assert {f"{e.folder}.html" for e in BUILT} <= set(index.values("href"))
    for exercise in BUILT:
        text = " ".join(Page(pages[f"{exercise.folder}.html"].read_text(encoding="utf-8")).text.split())
        assert exercise.sentence in text
        assert "What to expect" in text
        assert "mean ± standard deviation" in text
        assert not exercise.parent or f"The change from exercise {exercise.parent}, line by line" in text


def test_glossary(pages):
    """Its terms are in order, each is in the lesson that it links to, and every page of the site links to it."""
    text = (site.PAGES / "glossary.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| **")]
    assert len(rows) >= 90
    assert all(len(row) == 3 for row in rows)
    names = [row[0].replace("*", "").casefold() for row in rows]
    assert names == sorted(set(names))
    assert all('href="glossary.html"' in path.read_text(encoding="utf-8") for path in pages.values())
    missing = []
    for terms, _, lessons in rows:
        links = re.findall(r"\[(\d+)\]\((\S+)\)", lessons)
        assert links
        for number, target in links:
            folder = find_exercise(int(number)).folder
            assert (site.PAGES / target).resolve() == ROOT / folder / "README.md"
            lesson = " ".join((ROOT / folder / "README.md").read_text(encoding="utf-8").split()).casefold()
            for term in re.findall(r"\*\*(.+?)\*\*", terms):
                if not re.search(rf"\b{re.escape(term.casefold())}", lesson):
                    missing.append(f"{term} ({number})")
    assert missing == []


def test_site_leads_nowhere_that_is_not_there(pages):
    for path in pages.values():
        page = Page(path.read_text(encoding="utf-8"))
        assert not any("://" in value for value in page.values("src"))
        for address in page.values("href", "src"):
            if "://" not in address and address != "ADDRESS_OF_THIS_REPOSITORY":
                target, _, anchor = address.partition("#")
                assert (path.parent / target).exists(), f"{path.name}: {address}"
                assert not anchor or f'id="{anchor}"' in (path.parent / (target or path.name)).read_text(
                    encoding="utf-8"
                )


def test_site_is_no_heavier_than_it_need_be(pages):
    folder = pages["index.html"].parent
    for path in pages.values():
        sources = {value for value in Page(path.read_text(encoding="utf-8")).values("src") if value[-3:] != ".js"}
        size = path.stat().st_size + sum((folder / source).stat().st_size for source in sources)
        assert size < 1_000_000, f"{path.name}: {size:,}"


def test_words_of_an_interactive_picture_are_no_script(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "LIVE", tmp_path)
    data = {"words": [f"</script>{EVIL}"], "weights": [[[[1.0]]]]}
    (tmp_path / "13.json").write_text(json.dumps(data))
    html = site.live(find_exercise(13), tmp_path)
    assert Page(html).tags.count("script") == 1
    assert json.loads(html.partition('id="live-data">')[2].partition("</script>")[0]) == data


def test_data_of_interactive_pictures(pages):
    """They are small, and each page has its own, and the scripts that it needs."""
    assert {int(path.stem) for path in site.LIVE.iterdir()} == set(site.STILL)
    for number in site.STILL:
        path = site.LIVE / f"{number:02}.json"
        assert path.stat().st_size <= 200_000
        html = pages[f"{find_exercise(number).folder}.html"].read_text(encoding="utf-8")
        inside = html.partition('id="live-data">')[2].partition("</script>")[0]
        assert "<" not in inside
        assert json.loads(inside) == json.loads(path.read_text(encoding="utf-8"))
        assert html.count("<script") == 2 + len(site.scripts(find_exercise(number)))


def test_published_site_names_its_repository(pages, tmp_path):
    """The workflow writes the pages by a command that exists, and fills in what only it can know."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "site.yml").read_text(encoding="utf-8"))
    steps = {step["name"]: step["run"] for step in workflow["jobs"]["build"]["steps"] if "run" in step}
    assert steps["Write the pages"] == "rampup site _site"
    torch = re.search(r"torch==[\d.]+", steps["Install, with PyTorch for the CPU"])[0]
    assert torch in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert workflow["jobs"]["build"]["steps"][-1]["with"]["path"] == "_site"
    shutil.copytree(pages["index.html"].parent, tmp_path / "_site")
    where = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "a/course"}
    command = ["bash", "-eo", "pipefail", "-c", steps["Name the repository in them"]]
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | where)
    index = (tmp_path / "_site" / "index.html").read_text(encoding="utf-8")
    assert "git clone https://github.com/a/course ramp-up" in index
    assert "https://github.com/a/course" in Page(index).values("href")
    assert not any("ADDRESS_OF" in path.read_text(encoding="utf-8") for path in (tmp_path / "_site").glob("*.html"))


def test_home_shows_every_exercise_with_its_figures(pages):
    html = pages["index.html"].read_text(encoding="utf-8")
    known = home.facts()
    assert list(known) == [exercise.number for exercise in EXERCISES]
    assert all(set(facts) == set(home.FACTS) for facts in known.values())
    assert "the same" not in (known[12]["result"], known[2]["data"], known[6]["data"])
    cards = html.partition('class="cards"')[2]
    for exercise in BUILT:
        assert cards.count(f'{exercise.folder}.html">') == 1
        assert cards.count(f"pictures/{exercise.folder}_small.webp") == 1
        assert html.count(f'href="{exercise.folder}.html"') == 3  # in the tree, wide and narrow, and on its card
        assert Page(f"<p>{known[exercise.number]['result']}").text in Page(cards).text
    assert [[e.number for e in track] for track in home.tracks()] == [
        [1, 2, 3, 4, 5, 6, 7],
        [8, 9, 10, 14, 15],
        [11, 12, 13, 16, 17],
    ]


def test_lessons_follow_the_tree(pages):
    for number, before, after in (
        (1, None, [2]),
        (7, 6, [8, 11]),
        (8, 7, [9]),
        (11, 7, [12]),
        (14, 10, [15]),
        (17, 16, []),
    ):
        html = pages[f"{find_exercise(number).folder}.html"].read_text(encoding="utf-8").partition("<main")[0]
        links = {kind: re.findall(rf'href="ex(\d+)\w+.html" rel="{kind}"', html) for kind in ("prev", "next")}
        assert links == {"prev": [f"{before:02}"] if before else [], "next": [f"{n:02}" for n in after]}
    assert "the other branch: 11" in pages[f"{find_exercise(15).folder}.html"].read_text(encoding="utf-8")


@numbers
def test_lesson_has_an_outline_and_its_commits(pages, number):
    exercise = find_exercise(number)
    html = pages[f"{exercise.folder}.html"].read_text(encoding="utf-8")
    outline = html.partition('class="outline"')[2].partition("</nav>")[0]
    headings = re.findall(r'<h2 id="([^"]+)"', html)
    assert re.findall(r'href="#([^"]+)"', outline) == headings
    commits = read_commits(exercise)
    assert re.findall(r'id="commit-(\d+)"', html) == [str(i + 1) for i in range(len(commits))]
    text = Page(html).text
    assert all(commit.title in text and commit.body in text for commit in commits)
    assert html.count('<div class="diff"') == (number > 1) + len(commits)  # the whole change, and each step


def test_diffs_are_coloured_and_say_what_the_programs_say():
    sources = [train_py(number).read_text(encoding="utf-8") for number in (7, 8)]
    rows = [row for _, stretch in diff_parts(*sources) for row in stretch]
    for side, source in zip((1, 2), sources):
        lines = [str(row[side]) for row in rows if (row[0].old, row[0].new)[side - 1] is not None]
        assert [Page(line).text for line in lines] == source.rstrip("\n").split("\n")
        plain = [re.sub(r"</?(del|ins)>", "", line) for line in lines]
        words = {
            kind: {Page(w).text for w in re.findall(rf'<span class="{kind}">(.*?)</span>', "\n".join(plain))}
            for kind in ("k", "kn")
        }
        assert {"def", "return", "for"} <= words["k"]
        assert {"import", "from"} <= words["kn"]
    evil = [f"x = {i}  # {EVIL}\n" for i in (1, 2)]
    assert_harmless("".join(old + new for _, stretch in diff_parts(*evil) for _, old, new in stretch))


def test_site_shows_all_maths(pages):
    for exercise in BUILT:
        text = (ROOT / exercise.folder / "README.md").read_text(encoding="utf-8")
        text = re.sub(r"```.*?```|`[^`]*`|^    .*?$", "", text, flags=re.S | re.M)
        html = pages[f"{exercise.folder}.html"].read_text(encoding="utf-8")
        assert html.count('display="inline"') == len(re.findall(r"(?<!\$)\$(?!\$)", text)) // 2
        assert html.count('class="maths"') == text.count("$$") // 2
        assert "$$" not in Page(html).text.partition("The whole program")[0]
        assert "\\frac" not in html


def test_headings_are_in_order(pages, mine, tmp_path):
    review(4, mine, tmp_path)
    for path in [*pages.values(), tmp_path / "review.html"]:
        page = Page(path.read_text(encoding="utf-8"))
        levels = [int(tag[1]) for tag in page.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b <= a + 1 for a, b in pairwise(levels))
        assert len(page.values("alt")) == page.tags.count("img")
        assert all(page.values("alt"))


def test_readme_of_a_stranger(tmp_path):
    text = f"# A title\n\n{EVIL}\n\n$\\text{{{EVIL}}}$ $<b>$ [x](javascript:alert) ![y](../../../etc/passwd) ![](http://a.b/c.png)\n"
    text += "\n<details><summary>Answer</summary>\n\nfolded\n</details>\n\n<details open onclick=x>\n"
    html = site.to_html(text, tmp_path, ROOT / "ex01_linreg_numpy")
    page = Page(html)
    assert set(page.tags) == {"h1", "p", "math", "mrow", "mtext", "mi", "mo", "img", "details", "summary"}
    assert page.values("src") == ["", ""]
    assert not page.values("href")
    assert "folded" in page.text
    assert EVIL in page.text


def test_site_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    one_sentence(rampup("site", tmp_path / "file"), "cannot write the site to", "name another one")
