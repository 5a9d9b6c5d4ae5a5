"""The curves of a run beside those of the reference run, as a small drawing in a page."""

import math
from itertools import groupby
from pathlib import Path

from common.cli.folder import read_metrics

from markupsafe import Markup, escape

CURVES = Path(__file__).parent / "curves"  # of a reference run of each exercise, thinned: NN.csv, as metrics.csv is
MOST = 120  # points of a curve
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 500, 250, 54, 140, 26, 24
Points = list[tuple[int, float]]
Series = dict[tuple[str, str], Points]


def thin(points: Points, mean: bool) -> Points:
    """Return at most MOST points: means of neighbours, in ranges that grow with the step, or some of them.

    Steps are few at first and many at the end, since the axis is logarithmic.
    """
    points = [(step, value) for step, value in points if math.isfinite(value)]
    if len(points) <= MOST or not mean:
        return points if len(points) <= MOST else points[:: len(points) // MOST + 1] + points[-1:]
    last = math.log1p(points[-1][0])
    thinned = []
    for _, group in groupby(points, key=lambda point: min(MOST - 1, int(MOST * math.log1p(point[0]) / last))):
        steps, values = zip(*group)
        thinned.append((round(sum(steps) / len(steps)), sum(values) / len(values)))
    return thinned


def thinned(series: Series) -> Series:
    """Return the losses and accuracies of a metrics.csv, thinned."""
    kinds = ("loss", "accuracy")
    return {(s, m): thin(points, s == "train") for (s, m), points in series.items() if m in kinds}


def as_csv(series: Series) -> str:
    """Return curves in the form of a metrics.csv, in five digits."""
    rows = [f"{step},{s},{m},{value:.5g}\n" for (s, m), points in series.items() for step, value in points]
    return "".join(["step,split,metric,value\n", *rows])


def reference_curves(number: int) -> Series:
    """Return the thinned curves of the reference run of an exercise; none where they are not known."""
    path = CURVES / f"{number:02}.csv"
    return read_metrics(path) if path.exists() else {}


def charts(mine: Series, reference: Series, baselines: dict[str, float]) -> list[Markup]:
    """Return a drawing of the losses and one of the accuracies, as far as there are any."""
    mine, drawn = thinned(mine), []
    evaluated = next((s for s in ("test", "validation", "all") if (s, "loss") in mine), "")
    for metric in ("loss", "accuracy"):
        curves = []  # (class, label, points), the later ones on top
        for who, series in (("theirs", reference), ("yours", mine)):
            if metric == "loss":
                curves.append((f"{who} faint", "", series.get(("train", metric), [])))
            shown = series.get((evaluated, metric)) or (series.get(("train", metric), []) if metric == "loss" else [])
            curves.append((who, "reference" if who == "theirs" else "this run", shown))
        curves = [curve for curve in curves if curve[2]]
        if any(kind.startswith("yours") for kind, _, _ in curves):
            line = next(iter(baselines.items()), None) if metric == "loss" else None
            what = {"all": "all samples", "": "a batch"}.get(evaluated, f"the {evaluated} set")
            drawn.append(draw(f"{metric} of {what}", curves, line, evaluated))
    return drawn


def draw(title: str, curves: list[tuple[str, str, Points]], line: tuple[str, float] | None, evaluated: str) -> Markup:
    """Return curves over steps as an SVG drawing, each with its name and its last value at its end."""
    values = [value for _, _, points in curves for _, value in points] + ([line[1]] if line else [])
    theirs = [value for kind, _, points in curves if kind.startswith("theirs") for _, value in points]
    low, high = min(values), max(values)
    if theirs:  # a run that diverged leaves the drawing above
        high = min(high, max(3 * max(theirs), 3 * (line[1] if line else 0)))
    logarithmic = low > 0 and high > 20 * low
    scale = math.log if logarithmic else float
    low, high = scale(low), scale(max(high, low + 1e-9))
    span = (high - low) or 1.0
    last = math.log1p(max((points[-1][0] for _, _, points in curves), default=1) or 1)

    def across(step: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log1p(step) / last

    def down(value: float) -> float:
        place = (scale(value) - low) / span if value > 0 or not logarithmic else 0.0
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(1.02, max(0.0, place)))

    parts = [f'<text x="0" y="14" class="title">{escape(title)}</text>']
    if evaluated:
        parts.append(f'<text x="{WIDTH}" y="14" text-anchor="end">pale: training batches</text>' * ("loss" in title))
    inverse = math.exp if logarithmic else float
    for share in (0.0, 0.5, 1.0):
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{inverse(low + share * span):.3g}</text>')
    for power in range(7):
        if (step := 10**power) <= math.expm1(last) * 1.0001:
            parts.append(f'<text x="{across(step):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{step:,}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT + 24}" y="{HEIGHT - 6}">steps</text>')
    ends = []  # (y, class, text) of the labels
    if line:
        y = down(line[1])
        parts.append(f'<line class="baseline" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        ends.append((y, "", f"{escape(line[0][:16])} {line[1]:.4g}"))
    for kind, label, points in curves:
        place = " ".join(f"{across(step):.1f},{down(value):.1f}" for step, value in points)
        if len(points) == 1:
            x, y = place.split(",")
            parts.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="3"/>')
        parts.append(f'<polyline class="{kind}" points="{place}"/>')
        if label:
            ends.append((down(points[-1][1]), kind, f"{label} {points[-1][1]:.4g}"))
    y = 0.0
    for i, (wanted, kind, text) in enumerate(sorted(ends)):
        lowest = HEIGHT - BOTTOM - 14 * (len(ends) - 1 - i)  # labels that would lie over each other, or over the steps,
        y = max(min(wanted + 4, lowest), y + 14)  # move
        parts.append(f'<text class="{kind}" x="{WIDTH - RIGHT + 6}" y="{y:.1f}">{text}</text>')
    what = escape(f"{title}: " + ", ".join(text for _, _, text in ends))
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{what}">'
    return Markup(f"{head}{''.join(parts)}</svg>")
