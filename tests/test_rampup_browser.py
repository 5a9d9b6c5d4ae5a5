"""The pages of `rampup` in a real browser: nothing is fetched or broken, and everybody can read and reach it."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

from common.cli.chart import reference_curves
from common.cli.comments import comments
from common.cli.html import diff_parts, render
from common.cli.review import write_review
from common.cli.site import LIVE, PLOTTED, STILL, write_site
from common.curriculum import Exercise, find_exercise

import numpy as np
import optax
import pytest
import torch
from bench import live as bench
from helpers import BUILT, load, train_py
from playwright.sync_api import Error, expect, sync_playwright

BROWSERS = ("chromium", "google-chrome")
PHONE, DESKTOP = {"width": 360, "height": 800}, {"width": 1280, "height": 900}

# Returns the texts whose contrast with what is behind them is below WCAG's AA: 4.5, or 3 where they are large.
LOW_CONTRAST = """() => {
  const numbers = (colour) => {  // "rgba(34, 37, 42, 0.5)", and of a mixture "color(srgb 0.13 0.14 0.16 / 0.5)"
    const all = colour.match(/[\\d.]+(e-?\\d+)?/g).map(Number);
    return colour.startsWith("color(") ? [...all.slice(0, 3).map((x) => 255 * x), ...all.slice(3)] : all;
  };
  const light = ([r, g, b]) => [r, g, b].map((x) => x / 255)
    .map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const grounds = new Map();  // a page has 20,000 texts, on few grounds
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    if (!grounds.has(element)) {
      const [r, g, b, share = 1] = numbers(getComputedStyle(element).backgroundColor);
      const under = share < 1 ? behind(element.parentElement) : [0, 0, 0];
      grounds.set(element, [r, g, b].map((x, i) => share * x + (1 - share) * under[i]));
    }
    return grounds.get(element);
  };
  const seen = new Set();
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement, style = getComputedStyle(element);
    const looks = [style.color, behind(element), style.fontSize, style.fontWeight].join();
    if (seen.has(looks)) continue;
    if (!node.data.trim() || !element.checkVisibility() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const [a, b] = [light(numbers(style.color)), light(behind(element))].sort((x, y) => y - x);
    seen.add(looks);
    const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < (large ? 3 : 4.5)) low.push(`${contrast.toFixed(2)} ${element.tagName}: ${node.data.slice(0, 40)}`);
  }
  return [low, light([255, 255, 255])];
}"""
WIDER_THAN_THE_SCREEN = "document.documentElement.scrollWidth > innerWidth"


@pytest.fixture(scope="module")
def browser():
    """Return Chromium, the system's or playwright's own; with neither the test is skipped, or fails if it must not."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as driver:
        try:
            chromium = driver.chromium.launch(executable_path=path)
        except Error as error:
            reason = (
                f"no Chromium: install the system's, or `playwright install chromium` ({str(error).splitlines()[0]})"
            )
            if os.environ.get("RAMPUP_REQUIRE_DATA"):
                pytest.fail(f"RAMPUP_REQUIRE_DATA is set, but there is {reason}")
            pytest.skip(reason)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """Return a function that opens a file; after the test nothing may have gone wrong in it, nor left this machine."""
    wrong, contexts = [], []

    def request(request):
        if not request.url.startswith(("file://", "data:")):
            wrong.append(f"request: {request.url}")

    def opened(path: Path, anchor: str = "", **options):
        contexts.append(browser.new_context(**{"viewport": DESKTOP} | options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.accept()))
        page.on("request", request)
        page.goto(path.as_uri() + anchor)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return the site's pages, a diff and two reviews, one of a run that falls short, one of a folder without a run."""
    folder = tmp_path_factory.mktemp("pages")
    write_site(folder / "site")
    texts = [train_py(number).read_text(encoding="utf-8") for number in (9, 10)]
    (folder / "diff.html").write_text(
        render("diff.html", commits=[], names=["9", "10"], stat="", parts=diff_parts(*texts)), encoding="utf-8"
    )
    write_review(find_exercise(10), None, folder / "without_a_run.html", False)
    mine = folder / "mine"
    (mine / "out").mkdir(parents=True)
    evil = "<script>alert(1)</script>"
    source = train_py(4).read_text(encoding="utf-8").replace("x @ w", "x @ (2 * w)")
    (mine / "train.py").write_text(source + f'"{evil}"\n# {"long" * 80}\n', encoding="utf-8")
    shutil.copy(train_py(4).parent / "loss.png", mine / "out")
    result = {"config": {"steps": 7}, "metrics": {"loss": 0.4, "accuracy": 0.5}, "baselines": {"ln 3": 1.1, evil: 1}}
    (mine / "out" / "result.json").write_text(json.dumps(result))
    (mine / "out" / "samples.txt").write_text(f"{evil}\n" * 100)
    write_review(find_exercise(4), mine, folder / "review.html", False)
    return folder


def everything(pages: Path, lessons: list[Exercise]) -> list[Path]:
    """Return all pages, of the lessons only some."""
    names = [f"{exercise.folder}.html" for exercise in lessons]
    site = [path for path in (pages / "site").glob("*.html") if path.name[:2] != "ex" or path.name in names]
    return [*pages.glob("*.html"), *site]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_page_can_be_read(pages, open_page, scheme, viewport):
    first = scheme == "light" and viewport == PHONE  # all lessons once: they have one sheet, but each its own widths
    for path in everything(pages, BUILT if first else [BUILT[0], BUILT[7], BUILT[12]]):
        page = open_page(path, "#L12" if path.name == "review.html" else "", color_scheme=scheme, viewport=viewport)
        page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
        low, white = page.evaluate(LOW_CONTRAST)
        assert white == pytest.approx(1)
        assert low == [], path.name
        assert not page.evaluate(WIDER_THAN_THE_SCREEN), path.name
        assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)"), path.name
        assert page.locator("h1").count() == 1


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_maths_is_drawn_and_can_be_reached(pages, open_page, viewport):
    for number in (1, 9, 11):
        page = open_page(pages / "site" / f"{find_exercise(number).folder}.html", viewport=viewport)
        page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
        for formula in page.locator("math").all():
            box = formula.bounding_box()
            assert box["width"] > 3
            assert box["height"] > 5
        # A formula that is wider than the page can be scrolled: nothing of it is cut off at its left or for ever.
        cut = page.evaluate("""[...document.querySelectorAll('.maths')].filter((box) =>
            [...box.children].some((maths) => {
            const [outer, inner] = [box.getBoundingClientRect(), maths.getBoundingClientRect()];
            return inner.left < outer.left - 1 || inner.right > outer.left + box.scrollWidth + 1; })).length""")
        assert cut == 0


def test_diff_rows_are_aligned(pages, open_page):
    page = open_page(pages / "diff.html")
    for details in page.locator("details").all():
        details.evaluate("element => element.open = true")
    edges = page.evaluate("""[...document.querySelectorAll('.diff tbody tr')].map((row) => [...row.cells].map((cell) =>
        { const box = cell.getBoundingClientRect(); return [box.left, box.right, box.top, box.bottom]; }))""")
    assert len(edges) > 200
    for cells in edges:
        assert [cell[:2] for cell in cells] == [cell[:2] for cell in edges[0]]  # the same columns in all stretches
        assert len({tuple(cell[2:]) for cell in cells}) == 1  # old and new line at one height
    left, right = edges[0][1], edges[0][3]
    assert left[1] - left[0] == pytest.approx(right[1] - right[0], abs=1)  # two sides of equal width
    assert page.locator("del").count() > 10
    assert page.locator("ins").count() > 10


def test_diff_on_a_phone_is_one_column(pages, open_page):
    page = open_page(pages / "diff.html", viewport=PHONE)
    changed = page.locator("tr.changed").first
    old, new = changed.locator(".old").bounding_box(), changed.locator(".new").bounding_box()
    assert new["y"] >= old["y"] + old["height"] - 1
    assert old["x"] == new["x"]
    same = page.locator("tr.same:visible").first
    assert not same.locator(".old").is_visible()
    assert same.locator(".new").is_visible()


def test_folded_lines_open_by_the_keyboard(pages, open_page):
    page = open_page(pages / "diff.html")
    summary = page.locator("summary").first
    row = page.locator("details tr").first
    assert not row.is_visible()
    summary.focus()
    page.keyboard.press("Enter")
    assert row.is_visible()


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_anchor_opens_its_line(pages, open_page, viewport):
    page = open_page(pages / "review.html", "#L90", viewport=viewport)
    row = page.locator("#L90")
    assert row.evaluate(
        "row => { const box = row.getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight; }"
    )
    plain = page.locator("#L92").evaluate("row => getComputedStyle(row).backgroundColor")
    assert row.evaluate("row => getComputedStyle(row).backgroundColor") != plain


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_comments_by_the_keyboard(pages, open_page, viewport):
    page = open_page(pages / "review.html", viewport=viewport)
    page.locator("#L12 .number a").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement?.role === 'textbox'")
    page.keyboard.type("why <b>12</b>?")
    page.locator("#L20 .number a").click()
    page.wait_for_function("document.activeElement?.closest('tr')?.id === 'L20'")
    page.keyboard.type("good")
    page.locator("#copy").focus()
    page.keyboard.press("Enter")
    lines = (pages / "mine" / "train.py").read_text(encoding="utf-8").splitlines()
    mail = f"train.py:12: why <b>12</b>?\n    > {lines[11].strip()}\n\ntrain.py:20: good\n    > {lines[19].strip()}\n"
    assert page.locator("#mail").input_value() == mail
    assert page.locator("#copy").inner_text() == "Copied"
    assert page.locator(".comment b").count() == 0


def test_comments_go_back_to_the_learner(pages, open_page, tmp_path):
    """Written below a line of the comparison, kept over a reload, saved in a copy, listed in the terminal."""
    page = open_page(pages / "review.html")
    number = page.locator(".unified tr.added [data-comment]").first.get_attribute("data-comment")
    link = page.locator(f".unified [data-comment='{number}']")
    place = page.evaluate("scrollY")
    link.click()
    assert abs(page.evaluate("scrollY") - place) < 100  # no jump to the program far below
    page.keyboard.type("where does the 2 come from?")
    page.keyboard.press("Enter")
    page.keyboard.type("see line 3")
    page.locator("[data-line='0']").fill("Well done")
    assert page.locator("#count").inner_text() == "2 comments"
    assert page.locator(f"#L{number} .comment").inner_text().strip() == "where does the 2 come from?\nsee line 3"
    page.locator("#copy").click()
    page.reload()
    assert page.locator(f"#L{number} .comment").inner_text().strip() == "where does the 2 come from?\nsee line 3"
    assert page.locator("tr.below").count() == 1
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "review_comments.html"
    download.value.save_as(tmp_path / "saved.html")
    lines = (pages / "mine" / "train.py").read_text(encoding="utf-8").splitlines()
    assert comments(tmp_path / "saved.html").splitlines() == [
        "Exercise 4: mine",
        "",
        "    Well done",
        "",
        f"train.py:{number}: where does the 2 come from?",
        "    see line 3",
        f"    > {lines[int(number) - 1].strip()}",
    ]
    saved = open_page(tmp_path / "saved.html")  # in a browser that has never seen the review
    assert saved.locator("#count").inner_text() == "2 comments"
    assert "see line 3" in saved.locator("tr.below").inner_text()


def test_keyboard_reaches_everything(pages, open_page):
    for path in (pages / "review.html", pages / "site" / "index.html", pages / "site" / f"{BUILT[8].folder}.html"):
        page = open_page(path)
        wanted = page.evaluate("""() => {
            window.seen = new Set();
            addEventListener('focusin', (event) => seen.add(event.target));
            const all = [...document.querySelectorAll('a[href], button, summary')];
            return all.filter((element) => element.checkVisibility()).length;
        }""")
        for i in range(wanted + 40):
            page.keyboard.press("Tab")
            if i == 0:
                assert page.evaluate("document.activeElement.className") == "skip"
                assert page.locator(".skip").bounding_box()["x"] >= 0  # it shows once it has the focus
            if page.evaluate("document.activeElement === document.body"):
                break
        reached = page.evaluate("[...seen].filter((e) => e.matches('a[href], button, summary')).length")
        assert reached == wanted, path.name
        outline = page.evaluate("""() => { const a = document.querySelector('main a'); a.focus();
            return getComputedStyle(a).outlineWidth; }""")
        assert outline == "3px"


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_code_is_copied(pages, open_page, viewport):
    page = open_page(pages / "site" / f"{BUILT[3].folder}.html", viewport=viewport)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.get_by_role("button", name="Copy the program")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == train_py(BUILT[3].number).read_text(encoding="utf-8")
    page.get_by_role("button", name="Copy this code").first.click()
    assert page.evaluate("navigator.clipboard.readText()").startswith("diff ex03_vector_regression/train.py")


def test_contents_list(pages, open_page):
    path = pages / "site" / f"{BUILT[3].folder}.html"
    page = open_page(path)
    links = page.locator(".outline a")
    assert links.first.is_visible()
    links.nth(2).click()
    assert page.url.endswith("#the-maths")
    assert abs(page.locator("#the-maths").bounding_box()["y"]) < 60
    assert links.nth(2).is_visible()  # it stays beside the text
    page = open_page(path, viewport=PHONE)
    assert not page.locator(".outline a").first.is_visible()
    page.locator(".outline summary").click()
    assert page.locator(".outline a").first.is_visible()


def test_pictures_can_be_enlarged_and_are_dark_in_the_dark(pages, open_page):
    path = pages / "site" / f"{BUILT[3].folder}.html"
    page = open_page(path, viewport=PHONE, color_scheme="dark")
    assert "invert" in page.locator(".prose img").first.evaluate("image => getComputedStyle(image).filter")
    page.locator(".prose a.picture").first.click()
    assert page.url.endswith("pictures/ex04_softmax_loss.png")
    page = open_page(path, color_scheme="light")
    assert page.locator(".prose img").first.evaluate("image => getComputedStyle(image).filter") == "none"


def test_tree_on_a_phone_can_be_tapped(pages, open_page):
    page = open_page(pages / "site" / "index.html", viewport=PHONE)
    assert page.locator("svg.tree:visible").count() == 1
    circle = page.locator("svg.narrow circle").nth(12)
    assert circle.bounding_box()["width"] >= 24  # WCAG's least size of a target
    circle.click()
    assert page.url.endswith("ex13_transformer.html")


def test_print(pages, open_page):
    for name in ("review.html", f"site/{BUILT[8].folder}.html"):
        page = open_page(pages / name, viewport={"width": 720, "height": 1000})  # A4 less its margins
        page.emulate_media(media="print")
        assert not page.evaluate(WIDER_THAN_THE_SCREEN)
        assert not page.locator("nav").first.is_visible()
        assert page.pdf(format="A4").startswith(b"%PDF")
        if name == "review.html":
            assert page.locator("#L12 .comment").is_visible()  # room for a pen
            old, new = (page.locator(f"tr.changed {side}").first.bounding_box() for side in (".old", ".new"))
            assert old["y"] == new["y"]  # side by side on paper
        else:
            assert page.locator(".prose details p").first.bounding_box()["height"] > 10  # answers are printed, too


def test_nothing_of_a_stranger_runs(pages, browser):
    page = browser.new_page()
    page.goto((pages / "review.html").as_uri())
    assert page.locator("script").count() == 1
    assert page.get_by_text("<script>alert(1)</script>").count() >= 3
    # Even a script that got in would be stopped by the page's own policy.
    page.evaluate("""() => {
        const script = document.createElement('script');
        script.textContent = 'window.ran = true';
        document.body.append(script);
    }""")
    assert page.evaluate("window.ran") is None
    page.close()


# the interactive pictures


@pytest.fixture
def live(pages, open_page):
    """Return a function that opens the lesson of a number at its interactive picture."""
    return lambda number, **options: open_page(
        pages / "site" / f"{find_exercise(number).folder}.html", "#try-it", **options
    )


def choose(page, **values) -> dict | list:
    """Set what a person can set in a picture; return what it then shows."""
    for name, value in values.items():
        page.locator(f".live [name='{name}']").evaluate(
            "(field, value) => { field.value = value; field.dispatchEvent(new Event('input', { bubbles: true })); }",
            value,
        )
    return json.loads(page.locator(".live").get_attribute("data-result"))


def data_of(number: int) -> dict:
    return json.loads((LIVE / f"{number:02}.json").read_text(encoding="utf-8"))


def test_every_interactive_picture_shows_itself_or_the_still_one(pages, open_page, browser):
    for number in STILL:
        path = pages / "site" / f"{find_exercise(number).folder}.html"
        page = open_page(path, "#try-it")
        assert page.locator(".live .play").is_visible()
        assert not page.locator(".live .still").is_visible()
        assert page.locator(".live .told").inner_text()
        assert page.locator(".live .plot .main-svg").count() > 0 or number not in PLOTTED
        without = browser.new_page(java_script_enabled=False)
        without.goto(path.as_uri())
        assert not without.locator(".live .play").is_visible()
        still = without.locator(".live .still img, .live .still td").first
        assert still.bounding_box()["height"] > 10
        without.close()


@pytest.mark.parametrize("steps", [1000, 37])
def test_path_ends_where_exercise_1_does(live, tmp_path, steps):
    page, ex01 = live(1), load(1)
    for power in (-2, -1, -0.3):
        shown = choose(page, rate=power, steps=steps)
        metrics = ex01.main(ex01.Config(learning_rate=10**power, steps=steps, out=tmp_path))
        assert shown == pytest.approx([metrics[name] for name in ("slope", "intercept", "loss")], rel=1e-8)
    choose(page, rate=0.1, steps=1000)
    assert "diverged" in page.locator(".told").inner_text()


def test_regions_are_those_of_exercise_5(live):
    page, frames = live(5), data_of(5)["frames"]
    again = bench.regions((0, 100))["frames"]
    assert [frame["classes"] for frame in again] == [frame["classes"] for frame in frames[:2]]
    for i, frame in enumerate(frames):
        assert choose(page, frame=i)["accuracy"] == frame["accuracy"]
        assert page.locator("output").inner_text() == str(frame["step"])
    drawn = page.evaluate("document.querySelector('.plot').data[0].z.flat().join('')")
    assert drawn == frames[-1]["classes"]
    curve = dict(reference_curves(5)["all", "accuracy"])
    assert frames[-1]["accuracy"] == pytest.approx(curve[5000], abs=1e-3)  # another machine's last digits


def test_optimizers_walk_as_optax_does(live):
    page, powers = live(8), {"sgd": -1.5, "momentum": -1.9, "adam": -0.5}
    shown = choose(page, **powers)
    makers = {"sgd": optax.sgd, "momentum": partial(optax.sgd, momentum=0.9), "adam": optax.adam}
    for name, make in makers.items():
        optimizer, x = make(10 ** powers[name]), np.array(data_of(8)["start"], np.float32)
        state = optimizer.init(x)
        for _ in range(60):
            updates, state = optimizer.update(np.array([1, 20], np.float32) * x, state)
            x = optax.apply_updates(x, updates)
        assert shown[name] == pytest.approx(x.tolist(), abs=2e-4)


def test_convnet_in_the_browser_answers_as_jax_does(live):
    page, ex09 = live(9), load(9)
    *_, x, y = ex09.make_data(ex09.Config())
    images = np.rint((x[:100] * 0.3081 + 0.1307) * 255).astype(int)
    expected = ex09.forward(bench.weights(data_of(9)), x[:100])
    call = "const params = parametersOf(JSON.parse(document.getElementById('live-data').textContent));"
    shown = page.evaluate(
        f"(images) => {{ {call} return images.map((image) => Array.from(convnet(params, image).logits)); }}",
        images.reshape(100, -1).tolist(),
    )
    assert np.abs(np.array(shown) - np.asarray(expected)).max() < 1e-4
    assert (np.array(shown).argmax(1) == y[:100]).mean() >= 0.98
    # MNIST's digits are scaled and centred: enlarged, moved, and brought into that form again, they are the same.
    again = page.evaluate(
        """(images) => images.map((image) => {
            const ink = new Float32Array(280 * 280);
            image.forEach((value, i) => {
                const at = (10 * Math.floor(i / 28) - 13) * 280 + 10 * (i % 28) + 7;
                for (let k = 0; k < 100; k++) if (value) ink[at + Math.floor(k / 10) * 280 + k % 10] = value;
            });
            return Array.from(shrink(ink, 280, true));
        })""",
        images.reshape(100, -1).tolist(),
    )
    assert np.abs(np.array(again) - images.reshape(100, -1)).max() < 1e-3


def test_a_drawn_digit_is_read(live):
    page = live(9)
    for digit in (2, 7):
        page.get_by_role("button", name=f"read the {digit} of the test set").click()
        assert choose(page)["digit"] == digit
    box = page.locator("canvas.draw").bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + 20)  # a small 1 in a corner
    page.mouse.down()
    page.mouse.move(box["x"] + 28, box["y"] + 90, steps=12)
    page.mouse.up()
    shown = choose(page)
    assert shown["digit"] == 1
    assert "It reads a 1" in page.locator(".told").inner_text()
    image = np.array(shown["image"]).reshape(28, 28)
    rows = np.flatnonzero(image.sum(1) > 1)
    assert rows[-1] - rows[0] + 1 in (20, 21)  # the longest side
    middle = (np.indices((28, 28)) * image).sum((1, 2)) / image.sum()
    assert middle == pytest.approx([14, 14], abs=0.6)
    page.locator("[name='normalise']").uncheck()
    corner = np.array(choose(page)["image"]).reshape(28, 28)
    assert corner[14:].sum() == corner[:, 14:].sum() == 0
    page.get_by_role("button", name="Clear").click()
    assert choose(page) is None


def test_next_words_are_what_exercise_12_draws_from(live, monkeypatch):
    page, ex12, drawn = live(12), load(12), []
    monkeypatch.setattr(ex12.torch, "multinomial", lambda probs, *_, **__: drawn.append(probs) or torch.tensor([0]))
    prompts = data_of(12)["prompts"]
    for prompt, temperature, k, p in ((0, 1, 0, 1), (1, 0.5, 0, 0.95), (2, 1.5, 7, 1), (3, 0.8, 40, 0.6)):
        shown = choose(page, prompt=prompt, temperature=temperature, k=k, p=p)
        logits = torch.cat([torch.zeros(1), torch.from_numpy(bench.from_halves(prompts[prompt]["logits"]))])
        ex12.draw(logits, ex12.Config(temperature=temperature, top_k=k, top_p=p), None)
        expected = drawn[-1] / drawn[-1].sum()
        assert shown["shares"] == pytest.approx(expected[:30].tolist(), abs=1e-5)
        assert shown["kept"] == pytest.approx((expected > 0).sum().item(), abs=1 if p < 1 else 0)
    assert page.evaluate("document.querySelector('.plot').data[0].x") == pytest.approx(
        [100 * share for share in shown["shares"][:15]]
    )


def test_attention_is_what_exercise_13_left(live):
    page, data = live(13), data_of(13)
    words = page.locator(".words button")
    assert words.count() == len(data["words"]) == 20
    for layer, head, word in ((1, 1, 19), (2, 3, 7), (3, 4, 12)):
        choose(page, layer=layer, head=head)
        words.nth(word).hover()
        weights = data["weights"][layer - 1][head - 1][word]
        assert choose(page) == weights
        assert sum(weights) == pytest.approx(1, abs=2e-3)
        assert weights[word + 1 :] == [0] * (19 - word)  # nothing looks ahead
        shown = [float(text) for text in words.locator("small").all_inner_texts() if text.strip()]
        assert shown == pytest.approx(weights[: word + 1], abs=0.0051)
    words.nth(3).focus()
    assert choose(page) == data["weights"][2][3][3]
