"""What a run's files say about it, compared with the expected figure, the baseline, and healthy losses."""

import math
import re
from dataclasses import dataclass, replace

from common.cli.course import Exercise, Expected, expected
from common.cli.folder import SHOWN, Folder, defaults, visible

LOSSES = ("test_loss", "validation_loss", "loss")
ACCURACIES = ("test_accuracy", "validation_accuracy", "accuracy")
FLOORS = {"noise floor": "noise floor", "Bayes": "Bayes loss"}  # baselines of 1 to 6 that no program beats
MEASURED = {  # flags of the run that the README's figure is of, where they are not the defaults of every machine
    15: {"data": "imagenet_sample", "steps": 800, "eval_every": 100, "weight_decay": 0.03, "area": 0.2},
    16: {"preset": "nanogpt-cpu"},
    17: {"data": "openwebtext_sample", "preset": "laptop"},
}
NO_DIFFERENCE = {  # flags that say where, how fast, or how often is looked, and not what is trained
    *("seed", "out", "device", "workers", "compile", "micro_batch", "timeout", "resume", "overwrite", "eval_every"),
    *("profile", "prompt", "max_new_tokens", "temperature", "top_k", "top_p"),
    "epochs",  # the record has them in steps, too
}
CLASSES = {4: 3, 5: 3, 6: 3, **dict.fromkeys((7, 8, 9, 10, 14), 10)}  # of the exercises' data
SHAPES = "prediction and target must have one shape: (B,) minus (B, 1) is (B, B), whose best answer is the mean"
MOST_FLAGS = 5  # of a run that differ from the figure's, and are named


@dataclass(frozen=True)
class Finding:
    """One line of a review or of a check."""

    mark: str  # "ok", "short" (something to mend), or "note"
    text: str
    hint: str = ""  # where to look


def judge(exercise: Exercise, folder: Folder) -> list[Finding]:
    """Return the findings about the run in a folder; none if there was no run."""
    if wrong := impossible(folder):
        return [wrong, *first_loss(folder)]  # the other figures mean nothing then
    if folder.interrupted:
        text = "the run was interrupted or has not ended yet: there are no final figures"
        hint = "run it again" + ", with --resume" * ("resume" in folder.result.get("config", {}))
        return [Finding("short", text, hint), *first_loss(folder), *last_losses(folder)]
    figures = expected(exercise) if folder.result else []
    if figures and (other := other_flags(exercise, folder)):
        measured = " ".join(flag(name, value) for name, value in MEASURED.get(exercise.number, {}).items())
        text = f"not compared with the expected {figures[0].text}, which is of {measured or 'the default flags'}"
        findings = [Finding("note", f"{text}: this run has {other}")]
    elif on_floor := at_the_floor(folder, figures):
        findings = [on_floor]
    else:
        findings = [compare_with(exercise, figure, folder.result["metrics"]) for figure in figures]
        if short := [i for i, finding in enumerate(findings) if finding.mark == "short" and not finding.hint]:
            hint = f"for what may be wrong: rampup hint {exercise.number}"
            findings[short[-1]] = replace(findings[short[-1]], hint=hint)  # it is said once
    if folder.result and not findings:
        findings.append(Finding("note", "the exercise's README gives no figure to compare with yet"))
    return [*findings, *baseline(exercise, folder), *first_loss(folder), *last_losses(folder)]


def judge_printed(exercise: Exercise, folder: Folder) -> list[Finding]:
    """Return the findings about losses that a program printed, of which nothing else is known."""
    if wrong := impossible(folder):
        return [wrong]
    values = [value for _, value in folder.series["all", "loss"]]
    text = f"the losses that it prints go from {values[0]:.4g} to {values[-1]:.4g}"
    findings = []
    for figure in expected(exercise):
        if figure.metric in folder.result["metrics"]:
            found = compare_with(exercise, figure, folder.result["metrics"])
            if abs(figure.excess(folder.result["metrics"][figure.metric])) < 0.05 * figure.mean:  # of other noise
                found = Finding("ok", found.text)
            elif found.mark == "short":
                hint = likely_fault(exercise, folder.source, values) or "is it of the data that the lesson describes?"
                found = Finding("short", found.text, hint)
            findings.append(found)
    findings += other_classes(exercise, values[0])
    if len(values) < 3:
        return findings or [Finding("note", text)]
    # A printed loss may be that of one batch, and two batches may differ so much.
    return [course_of(text, values[0], min(values), values[-1], risen=1.5), *findings]


def likely_fault(exercise: Exercise, source: str, losses: list[float]) -> str:
    """Return a fault that a loss which ended too high points to, as a question; nothing if none is likely."""
    classes = CLASSES.get(exercise.number)
    if exercise.number < 4 and losses[-1] > 0.3 * losses[0]:
        return SHAPES
    least = math.log1p((classes - 1) / math.e) if classes else 0.0  # the cross-entropy of the "logits" (1, 0, …, 0)
    twice = re.search(r"cross_?entropy", source, re.I) and re.search(r"\bsoftmax\(", source, re.I)
    if classes and twice and losses[-1] > 0.98 * least:
        return f"is there a softmax before cross_entropy, which has its own? Then no loss is below {least:.3f}"
    return ""


def other_classes(exercise: Exercise, first: float) -> list[Finding]:
    """Return that a first loss is that of guessing among more classes than there are; nothing if it is not."""
    wanted = CLASSES.get(exercise.number)
    near = round(math.exp(min(first, 9.0)))
    if not wanted or near <= wanted or near > 1000 or abs(first - math.log(near)) > 0.003:
        return []
    hint = f"the data have {wanted} classes: has the last layer {near} outputs?"
    return [Finding("short", f"the first loss that it prints, {first:.4g}, is ln {near}", hint)]


def impossible(folder: Folder) -> Finding | None:
    """Return that a loss is below 0, or far below the floor of the run's own data; None if none is."""
    value = final_loss(folder)
    losses = [loss for (_, metric), points in folder.series.items() if metric == "loss" for _, loss in points]
    least = min([*losses, *([] if value is None else [value])], default=0.0)
    if least < 0:
        hint = "is the minus missing? the loss is the mean of minus the logarithm of the right class's probability"
        return Finding("short", f"a loss of {least:.4g}, but none of this course's losses can be below 0", hint)
    name, floor = floor_of(folder)
    if value is not None and value < 0.8 * floor:
        hint = "does the loss have a factor, as a half? is the target among the inputs?"
        return Finding("short", f"loss {value:.4g} is far below the {name} of its own data, {floor:.4g}", hint)
    return None


def at_the_floor(folder: Folder, figures: list[Expected]) -> Finding | None:
    """Return that a run reached the floor of its own data, where these are others than the figures'; else None."""
    value, (name, floor) = final_loss(folder), floor_of(folder)
    theirs = next((figure for figure in figures if figure.metric in LOSSES), None)
    if not floor or value is None or value > 1.02 * floor or not theirs or value <= theirs.mean + theirs.margin:
        return None
    text = f"loss {value:.4g} is at the {name} of its own data, {floor:.4g}: no program can do better"
    return Finding("ok", text, f"the expected {theirs.text} is of other data")


def final_loss(folder: Folder) -> float | None:
    """Return the final loss of a run, on the test set if there is one; None if it has none."""
    metrics = folder.result.get("metrics", {})
    return next((metrics[name] for name in LOSSES if name in metrics), None)


def floor_of(folder: Folder) -> tuple[str, float]:
    """Return name and value of the loss that no program goes below, as the run itself reports it; 0.0 without one."""
    baselines = folder.result.get("baselines", {})
    return next(((FLOORS[name], baselines[name]) for name in FLOORS if name in baselines), ("", 0.0))


def other_flags(exercise: Exercise, folder: Folder) -> str:
    """Return the flags of a run that make it another one than the figure's, "--steps 10"; nothing if none does."""
    measured, config = MEASURED.get(exercise.number, {}), folder.result["config"]
    flags = []
    for name, value in (defaults(folder.source, measured.get("preset")) | measured).items():
        there = config.get(name)
        same = str(there).endswith(value) if name in measured and name == "data" else there == value
        known = name in config or name == "data"
        if known and not same and name not in NO_DIFFERENCE:
            flags.append(flag(name, there))
    more = len(flags) - MOST_FLAGS
    return ", ".join(flags[:MOST_FLAGS]) + (f" and {more} more" if more > 0 else "")


def flag(name: str, value: object) -> str:
    """Return a flag as it is typed, "--batch-size 128"."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"no --{name}" if value is None else f"--{name} {visible(str(value))[:SHOWN]}"


def compare_with(exercise: Exercise, figure: Expected, metrics: dict[str, float]) -> Finding:
    """Return how a metric compares with the figure that the exercise's README expects."""
    name = figure.metric.replace("_", " ")
    if figure.metric not in metrics:
        hint = f"expected {figure.text}: run.finish({figure.metric}=…)"
        return Finding("short", f"{name} is not in result.json", hint)
    value = metrics[figure.metric]
    excess = figure.excess(value)
    text = f"{name} {figure.shown(value)}, expected {figure.text}"
    difference = figure.shown(abs(excess)).replace("%", "points")
    if excess < -figure.margin:
        how = "too low" if "accuracy" in figure.metric else "too high"
        return Finding("short", f"{text}: {how} by {difference}")
    if excess > figure.margin:
        other = "other data than the reference's?" if exercise.number < 7 else "or the test data took part in training"
        return Finding("note", f"{text}: better by {difference}", f"well done, {other}")
    return Finding("ok", text)


def baseline(exercise: Exercise, folder: Folder) -> list[Finding]:
    """Return whether the final loss beats the first baseline, what one gets without training."""
    if not folder.result:
        return []
    baselines, value = folder.result.get("baselines", {}), final_loss(folder)
    if not baselines or value is None:
        hint = "say what a run must beat: Run(config, baselines)"
        return [Finding("short", "result.json has no baseline or no loss", hint)]
    name, least = next(iter(baselines.items()))
    text = f"loss {value:.4g} against the baseline {name}, {least:.4g}"
    if value < 0.97 * least:
        return [Finding("ok", text)]
    steps, wanted = folder.result["config"].get("steps"), defaults(folder.source).get("steps")
    if isinstance(steps, int) and isinstance(wanted, int) and steps < wanted / 2:
        return [Finding("note", text, f"these are {steps:,} of the {wanted:,} steps: train to the end")]
    metrics = folder.result["metrics"]
    accuracy = next((metrics[name] for name in ACCURACIES if name in metrics), 0.0)
    chance = math.exp(-max(0.0, least))  # of K classes 1 / K are right by chance, and the baseline is ln K
    if 1 >= accuracy > (1 + chance) / 2:
        hint = f"an accuracy of {accuracy:.0%} is far from chance: it is sure and wrong now and then; does it diverge?"
    elif exercise.number < 4:
        hint = SHAPES
    else:
        hint = "no better than no training: do the labels belong to their inputs? does the update reach the parameters?"
    return [Finding("short", text, hint)]


def first_loss(folder: Folder) -> list[Finding]:
    """Return whether an untrained classifier starts near ln K, as it does if all classes are about equally likely."""
    chance = [item for item in folder.result.get("baselines", {}).items() if item[0].startswith("ln ")]
    losses = folder.series.get(("train", "loss"))
    if not chance or not losses or losses[0][0] != 0:
        return []
    (name, uniform), first = chance[0], losses[0][1]
    text = f"first loss {first:.4g}, {name} is {uniform:.4g}"
    if first > 1.25 * uniform:
        hint = "check the last layer's initialisation (logits should start near 0), and whether the loss has a factor"
        return [Finding("note", text, hint)]
    if abs(first + uniform) < 0.25 * uniform:
        return [Finding("short", text, f"it is minus {name}: the loss lacks its minus")]
    if first < 0.75 * uniform:
        return [Finding("note", text, "it knows the answer before training: is the label among the inputs?")]
    return [Finding("ok", text)]


def last_losses(folder: Folder) -> list[Finding]:
    """Return whether the training loss fell, and whether the other ones have risen since their least."""
    findings = []
    losses = [value for _, value in folder.series.get(("train", "loss"), [])]
    if len(losses) >= 100:
        evaluated = [value for _, value in folder.series.get(("all", "loss"), [])]
        findings.append(way_of(losses, min(evaluated, default=losses[0])))
    said = any(finding.mark == "short" for finding in findings)
    for split in (*(() if said else ("all",)), "test", "validation"):
        points = folder.series.get((split, "loss"), [])
        if len(points) >= 5 and points[-1][1] > 1.05 * (least := min(value for _, value in points)):
            step = next(step for step, value in points if value == least)
            of = "loss of all samples" if split == "all" else f"{split} loss"
            text = f"the {of} was least at step {step:,}, {least:.4g}, and is {points[-1][1]:.4g} at the end"
            hint = "it diverges or jumps about: look at the update" if split == "all" else "it overfits from there on"
            findings.append(Finding("note", text, hint))
    return findings


def way_of(losses: list[float], evaluated: float) -> Finding:
    """Return whether at least 100 training losses fell, rose, stood still, or came down and went up again.

    `evaluated` is the least loss on all samples, which says that it came down where batches are too noisy to say so.
    """
    width = len(losses) // 10
    means = [sum(losses[i : i + width]) / width for i in range(len(losses) % width, len(losses), width)]
    first, least, last = losses[0], min(*means, evaluated), means[-1]
    text = f"train loss from {first:.4g} to {last:.4g} (mean of the last {width} steps)"
    return course_of(text, first, least, last, risen=1.05)


def course_of(text: str, first: float, least: float, last: float, risen: float) -> Finding:
    """Return whether a loss came down and went up again, rose `risen`-fold, stood still, or fell."""
    if least < 0.8 * first and last > 1.5 * least and last - least > 0.05 * (first - least):
        hint = "it diverges or jumps about: are the gradients zeroed before every backward()? else lower the rate"
        return Finding("short", f"{text}, after {least:.4g} in between", hint)
    if last > risen * first:
        hint = "it rises: does the update subtract the gradient, and has the loss its sign? else lower the rate"
        return Finding("short", text, hint)
    if last > 0.95 * first:
        hint = "it hardly falls: learn one batch by heart first, print all shapes, print the gradients' norms"
        return Finding("short", text, hint)
    return Finding("ok", text)
