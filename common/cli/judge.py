"""What a run's files say about it, compared with the expected figure, the baseline, and healthy losses."""

from dataclasses import dataclass

from common.cli.course import Exercise, Expected, expected
from common.cli.folder import SHOWN, Folder, defaults, visible

LOSSES = ("test_loss", "validation_loss", "loss")
MEASURED = {  # flags of the run that the README's figure is of, where they are not the defaults of every machine
    15: {"data": "imagenet_sample", "steps": 800, "eval_every": 100},
    16: {"preset": "nanogpt-cpu"},
    17: {"data": "openwebtext_sample", "preset": "laptop"},
}
NO_DIFFERENCE = {  # flags that say where, how fast, or how often is looked, and not what is trained
    *("seed", "out", "device", "workers", "compile", "micro_batch", "timeout", "resume", "overwrite", "eval_every"),
    *("prompt", "max_new_tokens", "temperature", "top_k", "top_p"),
    "epochs",  # the record has them in steps, too
}
MOST_FLAGS = 5  # of a run that differ from the figure's, and are named


@dataclass(frozen=True)
class Finding:
    """One line of a review or of a check."""

    mark: str  # "ok", "short" (something to mend), or "note"
    text: str
    hint: str = ""  # where to look


def judge(exercise: Exercise, folder: Folder) -> list[Finding]:
    """Return the findings about the run in a folder; none if there was no run."""
    if folder.interrupted:
        text = "the run was interrupted or has not ended yet: there are no final figures"
        hint = "run it again" + ", with --resume" * ("resume" in folder.result.get("config", {}))
        return [Finding("short", text, hint), *first_loss(folder), *last_losses(folder)]
    figures = expected(exercise) if folder.result else []
    if figures and (other := other_flags(exercise, folder)):
        measured = " ".join(flag(name, value) for name, value in MEASURED.get(exercise.number, {}).items())
        text = f"not compared with the expected {figures[0].text}, which is of {measured or 'the default flags'}"
        findings = [Finding("note", f"{text}: this run has {other}")]
    else:
        findings = [compare_with(exercise, figure, folder.result["metrics"]) for figure in figures]
    if folder.result and not findings:
        findings.append(Finding("note", "the exercise's README gives no figure to compare with yet"))
    return [*findings, *baseline(folder), *first_loss(folder), *last_losses(folder)]


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
        return Finding(
            "short", f"{name} is not in result.json", f"expected {figure.text}: run.finish({figure.metric}=…)"
        )
    value = metrics[figure.metric]
    excess = figure.excess(value)
    text = f"{name} {figure.shown(value)}, expected {figure.text}"
    difference = f"{100 * abs(excess):.{figure.decimals}f} points" if figure.percent else figure.shown(abs(excess))
    if excess < -figure.margin:
        hint = f"`rampup hint {exercise.number}` asks what may be wrong"
        return Finding("short", f"{text}: short by {difference}", hint)
    if excess > figure.margin:
        return Finding("note", f"{text}: better by {difference}", "well done, or the test data took part in training")
    return Finding("ok", text)


def baseline(folder: Folder) -> list[Finding]:
    """Return whether the final loss beats the first baseline, what one gets without training."""
    baselines = folder.result.get("baselines", {})
    loss = next((name for name in LOSSES if name in folder.result.get("metrics", {})), None)
    if not folder.result:
        return []
    if not baselines or not loss:
        return [
            Finding(
                "short", "result.json has no baseline or no loss", "say what a run must beat: Run(config, baselines)"
            )
        ]
    value, (name, least) = folder.result["metrics"][loss], next(iter(baselines.items()))
    text = f"{loss.replace('_', ' ')} {value:.4g} against the baseline {name}, {least:.4g}"
    if value < least:
        return [Finding("ok", text)]
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
    if first < 0.75 * uniform:
        return [Finding("note", text, "it knows the answer before training: is the label among the inputs?")]
    return [Finding("ok", text)]


def last_losses(folder: Folder) -> list[Finding]:
    """Return whether the training loss fell, and whether the other one has risen since its minimum."""
    findings = []
    losses = [value for _, value in folder.series.get(("train", "loss"), [])]
    tail = losses[-max(1, len(losses) // 10) :]
    if len(losses) >= 100:
        mean = sum(tail) / len(tail)
        text = f"train loss from {losses[0]:.4g} to {mean:.4g} (mean of the last {len(tail)} steps)"
        if mean < 0.95 * losses[0]:
            findings.append(Finding("ok", text))
        else:
            hint = (
                "it hardly falls: overfit one batch first; print the gradients' norms; raise or lower --learning-rate"
            )
            findings.append(Finding("short", text, hint))
    for split in ("test", "validation"):
        points = folder.series.get((split, "loss"), [])
        if len(points) >= 5 and points[-1][1] > 1.05 * (least := min(value for _, value in points)):
            step = next(step for step, value in points if value == least)
            text = f"the {split} loss was least at step {step:,}, {least:.4g}, and is {points[-1][1]:.4g} at the end"
            findings.append(Finding("note", text, "it overfits from there on"))
    return findings
