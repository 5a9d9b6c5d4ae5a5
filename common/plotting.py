"""The pictures that a run leaves behind; loss.png is drawn from its files alone."""

import csv
import json
import math
import textwrap
from itertools import cycle
from pathlib import Path

from common import UserError
from common.curriculum import find_exercise
from common.text import shorten

import numpy as np
from tyro.conf import Positional

TRAIN, EVALUATION, BASELINE = "#4878a8", "#d1495b", "#555555"
CLASSES = ("#4878a8", "#e8963a", "#5a9e6f", "#b05fa3", "#8c6d4f", "#d1495b", "#6fb7c4", "#a3a33c", "#777777", "#29335c")
SAFE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # colour-blind people tell these apart
LABELS = {"all": "all samples", "test": "test set", "validation": "validation set"}


def draw(outs: Positional[tuple[Path, ...]], picture: Path | None = None, tensorboard: bool = False) -> None:
    """Draw the loss.png of each run, finished or not, in its folder; or, with --picture, all runs in one picture.

    With --tensorboard write what TensorBoard shows. For the command line: `python -m common.plotting OUT`. Raises
    UserError as the functions that it calls do.
    """
    if picture is not None:
        plot_runs(outs, picture)
    for out in outs if picture is None else ():
        if tensorboard:
            write_tensorboard(out)
        else:
            plot_loss(out, "")
        print(out / ("tensorboard" if tensorboard else "loss.png"))


def write_tensorboard(out: Path) -> None:
    """Write out/metrics.csv to out/tensorboard as TensorBoard's events, in place of those written before.

    Raises UserError if there is no such run, or if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is not installed: pip install tensorboard") from None
    try:
        series = _read_metrics(out / "metrics.csv")
    except FileNotFoundError as error:
        raise UserError(f"there is no {error.filename}: give the --out of a run, finished or interrupted") from None
    for events in out.glob("tensorboard/events.out.tfevents.*"):
        events.unlink()
    with SummaryWriter(out / "tensorboard") as writer:
        for (split, metric), rows in series.items():
            for step, value in zip(*rows):
                writer.add_scalar(f"{metric}/{split}", value, step)


def plot_loss(out: Path, unit: str, log: str = "") -> None:
    """Draw out/loss.png from out/metrics.csv and out/result.json: loss over steps and, where recorded, error rate,
    gradient norm and learning rate.

    For an interrupted run, out/run.json is read instead of result.json. `unit` names what the loss is measured in;
    `log` says which axes are logarithmic: "", "x", "y" or "xy". The training
    loss of every batch is faint with a smoothed line over it, evaluations are points, the baselines are dashed lines.
    Raises UserError if there is no such run, or if the picture cannot be written.
    """
    try:
        series, result = _read_metrics(out / "metrics.csv"), _read_result(out)
    except FileNotFoundError as error:
        raise UserError(f"there is no {error.filename}: give the --out of a run, finished or interrupted") from None
    names = [name for name in ("loss", "grad_norm", "accuracy") if any(name == metric for _, metric in series)]
    figure, axes = panels(*[""] * len(names), height=5, widths=(7,) * len(names))
    for ax, name in zip(axes, names):
        for (split, metric), (steps, values) in series.items():
            if metric == name:
                _draw_split(ax, split, steps, 100 * (1 - values) if name == "accuracy" else values)
        if name == "loss":
            _draw_baselines(ax, result["baselines"])
            _mark_overfitting(ax, series.get(("validation", "loss")))
            ax.set_ylabel(f"loss ({unit})" if unit else "loss")
            ax.set_yscale("log" if "y" in log else "linear")
        elif name == "grad_norm":
            ax.set(ylabel="norm of the gradient, before clipping", yscale="log")
            if ("train", "lr") in series:  # a learner's own program may record the one without the other
                right = ax.twinx()
                right.plot(*series["train", "lr"], color=EVALUATION, linewidth=1.2)
                right.set_ylabel("learning rate", color=EVALUATION)
                right.set_ylim(bottom=0)
        else:
            ax.set_ylabel("error (% of samples)")
            if all(values.max() < 1 for (_, metric), (_, values) in series.items() if metric == name):
                _log_percent(ax)  # which cannot show an error of 0
        if "x" in log:
            ax.set_xscale("symlog", linthresh=1)  # logarithmic, but with a place for step 0
            ax.set_xlim(left=0)
            ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlabel(f"steps of gradient descent ({result['config'].get('batch_size', '?')} samples each)")
        ax.legend(frameon=False)
    figure.suptitle(_title(result, width=70 * len(names)), fontsize=11)
    save(figure, out / "loss.png")


def plot_runs(outs: tuple[Path, ...], picture: Path) -> None:
    """Draw runs of any exercises in one picture, each with its folder's name: training loss, smoothed, and evaluation.

    The evaluation is the error where all runs have an accuracy, else the loss. For the command line: `python -m
    common.plotting runs/adam runs/sgd --picture optimizers.png`. Raises UserError where a folder holds no run, or the
    picture cannot be written.
    """
    runs = []
    for out in outs:
        try:
            series = _read_metrics(out / "metrics.csv")
            evaluations = {metric: values for (split, metric), values in series.items() if split in LABELS}
            if "loss" not in evaluations:
                raise KeyError("loss")
            runs.append((out.name, *series["train", "loss"], evaluations))
        except (OSError, KeyError):
            raise UserError(f"{out} holds no metrics.csv of a run: give the --out of a run") from None
    metric = "accuracy" if all("accuracy" in evaluations for *_, evaluations in runs) else "loss"
    figure, (left, right) = panels("", "", height=5, widths=(7, 7))
    for color, (name, steps, losses, evaluations) in zip(cycle(CLASSES), runs):
        left.plot(steps, _smooth(losses, max(1, len(losses) // 100)), color=color, linewidth=1.4, label=name)
        steps, values = evaluations[metric]
        right.plot(
            steps, 100 * (1 - values) if metric == "accuracy" else values, color=color, linewidth=1.4, label=name
        )
    left.set(ylabel="training loss, smoothed", yscale="log")
    right.set(ylabel="error of the evaluation (% of samples)" if metric == "accuracy" else "loss of the evaluation")
    _log_percent(right)
    for ax in (left, right):
        ax.set_xlabel("steps of gradient descent")
        ax.legend(frameon=False)
    save(figure, picture)


def plot_regions(out: Path, predict, x: np.ndarray, y: np.ndarray) -> None:
    """Draw out/regions.png: the class that `predict` gives to every point of the plane, with some samples x (N, D).

    `predict` maps points (400², D) to classes (400²,). The plane is that of the first two features; the others are 0.
    """
    result = _read_result(out)
    x, y = np.asarray(x[:1500]), np.asarray(y[:1500])
    reach = np.abs(x[:, :2]).max() * 1.05
    axis = np.linspace(-reach, reach, 400)
    plane = np.zeros((axis.size**2, x.shape[1]))  # (400², D)
    plane[:, 0], plane[:, 1] = (grid.ravel() for grid in np.meshgrid(axis, axis))
    classes = np.asarray(predict(plane)).reshape(axis.size, axis.size)

    figure = _figure(6, 6)
    ax = figure.subplots()
    levels = np.arange(classes.max() + 2) - 0.5
    colors = [CLASSES[k % len(CLASSES)] for k in range(len(levels) - 1)]
    ax.contourf(axis, axis, classes, levels, colors=colors, alpha=0.3)
    ax.scatter(x[:, 0], x[:, 1], s=6, c=[CLASSES[k % len(CLASSES)] for k in y])
    ax.set(
        aspect="equal",
        xlabel="feature 0 (standard deviations)",
        ylabel="feature 1 (standard deviations)",
        title="\n".join(textwrap.wrap(_final(result), 56)),
    )
    save(figure, out / "regions.png")


def plot_features(out: Path, filters: np.ndarray, image: np.ndarray, maps: np.ndarray) -> None:
    """Draw out/features.png: a convolution's first sixteen filters, an image, and what each filter makes of it.

    `filters` has shape (k, k, C), `image` (H, W), `maps` (h, w, C). Filters are red where they ask for ink and blue
    where they ask for paper, all on one scale; maps are white at 0. Raises UserError where it cannot be written.
    """
    filters, maps = np.asarray(filters), np.asarray(maps)
    figure = _figure(14, 5.2)
    left, middle, right = figure.subfigures(1, 3, width_ratios=(5, 4, 5))
    reach = abs(filters).max()
    for part, title, pictures, style in (
        (left, "filters: red asks for ink, blue for paper", filters, {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}),
        (middle, "a digit of the test set", np.asarray(image)[..., None], {"cmap": "gray_r"}),
        (right, "its feature maps", maps, {"cmap": "gray_r", "vmin": 0, "vmax": maps.max()}),
    ):
        part.suptitle(title)
        side = math.ceil(min(pictures.shape[-1], 16) ** 0.5)
        axes = part.subplots(side, side, squeeze=False).ravel()
        for ax in axes:
            ax.axis("off")
        for ax, picture in zip(axes, np.moveaxis(pictures, -1, 0)):
            ax.imshow(picture, **style)
    save(figure, out / "features.png")


def plot_attention(out: Path, weights: list[np.ndarray], tokens: list[str]) -> None:
    """Draw out/attention.png: how much each of T tokens attends to each, in every head of every layer.

    `weights` holds an array (A, T, T) for each layer: a row for each query token, a column for each key token.
    Raises UserError if the picture cannot be written.
    """
    labels, fonts, note = _labels(tokens)
    layers, heads = len(weights), len(weights[0])
    figure = _figure(3.6 * heads, 3.8 * layers, dpi=100)
    for layer, row in enumerate(figure.subplots(layers, heads, squeeze=False)):
        for head, ax in enumerate(row):
            ax.imshow(np.asarray(weights[layer][head]), cmap="Blues", vmin=0, vmax=1)
            ax.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=9)
            ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7, family=fonts)
            ax.set_yticks(range(len(labels)), labels, fontsize=7, family=fonts)
    figure.suptitle(f"each row: where the word at its left looks{note}")
    save(figure, out / "attention.png")


def _labels(tokens: list[str]) -> tuple[list[str], list[str], str]:
    """Return tokens as labels, the fonts that have their characters, and a note on those that no font here has."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import findfont, fontManager, get_font

    labels = [shorten(repr(token)[1:-1], 20) for token in tokens]  # a line break as \n
    own = get_data_path()  # where matplotlib keeps fonts of its own; all but the first are for formulas
    system = [font for font in fontManager.ttflist if not font.fname.startswith(own) and Path(font.fname).exists()]
    fonts = ["DejaVu Sans"]
    missing = set("".join(labels)).difference(map(chr, get_font(findfont(*fonts)).get_charmap()))
    for font in system if missing else []:
        if found := missing.intersection(map(chr, get_font(font.fname).get_charmap())):
            fonts, missing = [*fonts, font.name], missing - found
    labels = ["".join("□" if char in missing else char for char in label) for label in labels]
    return labels, fonts, "\n□: a character that no font here has" if missing else ""


def _log_percent(ax) -> None:
    least, most = ax.dataLim.intervaly
    if most < 3 * least:  # a logarithmic axis would have a label or two
        return
    ax.set_yscale("log")
    ax.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")


def _draw_split(ax, split: str, steps: np.ndarray, values: np.ndarray) -> None:
    if split != "train":
        label = LABELS.get(split, split)
        ax.plot(steps, values, "o-", color=EVALUATION, markersize=3, linewidth=1.2, label=label, zorder=3)
        return
    width = max(1, len(values) // 100)
    ax.plot(steps, values, color=TRAIN, alpha=0.25, linewidth=0.6, label="training batch")
    ax.plot(steps, _smooth(values, width), color=TRAIN, linewidth=1.6, label=f"smoothed over {width} batches")


def _draw_baselines(ax, baselines: dict[str, float]) -> None:
    # The first, which a run must beat, has room at the right, where the loss is low; a floor has it at the left.
    to_beat = next(iter(baselines.values()), 0.0)
    for label, value in baselines.items():
        right = value >= to_beat
        ax.axhline(value, color=BASELINE, linestyle="--", linewidth=1)
        ax.annotate(
            f"{label}: {value:.4g}",
            (0.99 if right else 0.01, value),
            xycoords=ax.get_yaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=9,
            color=BASELINE,
        )


def _mark_overfitting(ax, series: tuple[np.ndarray, np.ndarray] | None) -> None:
    """Mark where the validation loss is least, if it rises by more than 1 % after that."""
    if series is not None and series[1][-1] > 1.01 * series[1].min():
        steps, values = series
        label = f"least, {values.min():.4g} at step {steps[values.argmin()]}: overfits from here on"
        ax.axvline(steps[values.argmin()], color=EVALUATION, linestyle=":", label=label)


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Return a running mean (N,) that moves 1 / width of the way to each value, and further at the start."""
    smooth, mean = np.empty(len(values)), 0.0
    for step, value in enumerate(values):
        mean += (value - mean) / min(width, 1 + step // 10)
        smooth[step] = mean
    return smooth


def _title(result: dict, width: int) -> str:
    exercise = find_exercise(result["exercise"])
    head = f"Exercise {exercise.number}: {exercise.sentence}" if exercise else result["exercise"]
    return "\n".join([*textwrap.wrap(head, width), f"seed {result['seed']}: {_final(result)}"])


def _final(result: dict) -> str:
    if "metrics" not in result:
        return "not finished"
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in result["metrics"].items())


def _read_result(out: Path) -> dict:
    path = out / "result.json"
    return json.loads((path if path.exists() else out / "run.json").read_text(encoding="utf-8"))


def _read_metrics(path: Path) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Return steps and values, by split and name of the metric."""
    series: dict[tuple[str, str], list[tuple[int, float]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            series.setdefault((row["split"], row["metric"]), []).append((int(row["step"]), float(row["value"])))
    return {key: tuple(np.array(column) for column in zip(*rows)) for key, rows in series.items()}


def _figure(width: float, height: float, dpi: int = 120):
    from matplotlib.figure import Figure  # here, since it takes half a second that --help need not wait for

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def panels(*titles: str, height: float = 4.4, widths: tuple[float, ...] = ()) -> tuple:
    """Return a figure with a panel for each title beside one another, `widths` inches wide (5), and their axes."""
    widths = widths or (5.0,) * len(titles)
    figure = _figure(sum(widths), height)
    axes = list(figure.subplots(1, len(titles), squeeze=False, width_ratios=widths)[0])
    for ax, title in zip(axes, titles):
        ax.set_title(title, loc="left", fontsize=11)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def label(
    ax, x: float, y: float, text: str, color: str = "black", shift: tuple[float, float] = (5, 0), **style
) -> None:
    """Write a text beside the point (x, y) of a panel, `shift` points to the right and up."""
    ax.annotate(text, (x, y), xytext=shift, textcoords="offset points", color=color, fontsize=9, va="center", **style)


def save(figure, path: Path) -> None:
    """Write a figure to a PNG file; raises UserError, with the reason, where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}): choose another folder with --out DIR"
        ) from None


if __name__ == "__main__":
    from common.program import clean_exit

    import tyro

    with clean_exit():
        tyro.cli(draw)
