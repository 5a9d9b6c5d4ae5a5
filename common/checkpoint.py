"""Files that are written whole or not at all, and checkpoints of torch and JAX: all of a run that --resume needs.

A checkpoint is a zip file with checksums, in torch's or numpy's format. No code in it is run, the checksums are
verified, and what does not fit the program that reads it is refused with one sentence.
"""

import json
import math
import os
import pickle
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import BinaryIO

from common import UserError

import numpy as np

CHECKPOINTS = ("best.pt", "checkpoint.pt", "checkpoint.npz")
RUN_ID = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # torchrun's --rdzv-id; with --standalone it draws one
SIZES = ("layers", "heads", "channels", "block_size")  # flags that a checkpoint has in any case
SHAPE = (*SIZES, "bias", "vocab_size", "muon")  # flags that must be the checkpoint's
MOMENTS = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum_buffer"}}  # what each keeps
WRONG = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, EOFError, OSError)
DAMAGED = (
    *WRONG,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    SyntaxError,
    tokenize.TokenError,
)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write bytes to, which gets the name `path` when it is complete and on the disk.

    Until then, and also if anything is raised, an old file of that name stays. The bytes are written to a file beside
    it whose name ends in .tmp; one that a killed process left is replaced. Raises OSError if the disk is full.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as file:  # x: never through a link that somebody put there
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the new name, too, must outlive a loss of power; Windows cannot open a folder
        folder = os.open(path.parent, os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)


# For torch


def save_torch(run, step: int, vocab: list[str] | None, model, optimizers, scaler) -> None:
    """Write checkpoint.pt into the run's folder: all that `resume_torch` needs. UserError where the disk is full."""
    import torch

    state = {**_notes(run, step), "vocab": vocab, "model": model.state_dict()}
    state |= {"optimizers": [each.state_dict()["state"] for each in optimizers], "scaler": scaler.state_dict()}
    state |= {"rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all()}
    write_torch(state, run.out / "checkpoint.pt")


def save_best(run, step: int, vocab: list[str] | None, model) -> None:
    """Write the model to best.pt in the run's folder if its validation loss is the least so far."""
    if run.latest["validation loss"] == run.least["validation loss"]:
        write_torch({**_notes(run, step), "vocab": vocab, "model": model.state_dict()}, run.out / "best.pt")


def write_torch(state: dict, path: Path) -> None:
    """Write a state to a torch file; an old one stays until the new one is complete. UserError if that fails."""
    import torch

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            torch.save(state, file.name)  # by name: Ctrl-C in a file of Python's looks like a full disk to torch
    except (OSError, RuntimeError) as error:  # the second is torch's own
        raise _cannot_write(path, error) from None


def read_torch(kind, path: Path) -> dict:
    """Return what a checkpoint holds, on the CPU, its flags as a config of the dataclass `kind`, and as they are.

    Raises UserError if there is no such file, or if it is damaged or was written by another program.
    """
    state = _read_torch(path)
    try:
        model, vocab = state["model"], state["vocab"]
        if not all(isinstance(name, str) and value.isfinite().all() for name, value in model.items()):
            raise ValueError("a number that is not finite")
        if vocab is not None and not (isinstance(vocab, list) and all(isinstance(word, str) for word in vocab)):
            raise ValueError("not a vocabulary")
        return state | {"config": _config(kind, state["config"]), "flags": state["config"]}
    except WRONG:
        raise _damaged(path) from None


def load_flags(kind, path: Path, preset: str = "auto"):
    """Return the flags of a checkpoint as the dataclass `kind`; raises UserError if it has another preset."""
    try:
        config = _config(kind, _read_notes(path)["config"])
    except WRONG:
        raise _damaged(path) from None
    if preset not in ("auto", getattr(config, "preset", "auto")):
        raise UserError(f"the checkpoint {path} has --preset {config.preset}, not {preset}: leave --preset out")
    config.out = path.parent
    return config


def should_resume(resume: str, path: Path) -> bool:
    """Return whether to resume from the checkpoint `path`; "auto": if this torchrun wrote it before a restart.

    The number of restarts is ignored, because each host has its own count.
    """
    auto = resume == "auto" and RUN_ID != "none" and path.exists()
    return resume == "yes" or (auto and _read_notes(path).get("torchrun") == RUN_ID)


def resume_torch(config, vocab: list[str] | None, model, optimizers, scaler) -> tuple[int, dict]:
    """Load the checkpoint in `config.out`; return its step, and what `Run` needs to continue from there.

    The optimizers' settings come from the flags, not from the checkpoint. Ends the program if nothing is left to do.
    Raises UserError as `read_torch` does, and if model, vocabulary or number of steps do not fit.
    """
    import torch

    path = config.out / "checkpoint.pt"
    _refuse_dry_run(config)
    state = read_torch(type(config), path)
    for name in SHAPE:
        was, now = (getattr(each, name, None) for each in (state["config"], config))
        if was != now:
            flag = f"--{name.replace('_', '-')} {was}, not {now}"
            raise UserError(f"the checkpoint {path} has a model with {flag}: give its flags, or start a new run")
    if state["vocab"] != vocab:
        advice = "give the --text it had, or start a new run"
        if None in (state["vocab"], vocab):
            advice = "exercise 16 trains on characters, exercise 17 on GPT-2's tokens"
        raise UserError(f"the checkpoint {path} is for another vocabulary: {advice}")
    if "optimizers" not in state:
        advice = "ex16_gpu_nanogpt/pretrained.py --save makes a checkpoint of it to start from"
        raise UserError(f"the checkpoint {path} holds a model alone, not the state of a run: {advice}")
    try:
        step, run = _progress(config, state)
        ours = {name: value.shape for name, value in model.state_dict().items()}
        if {name: value.shape for name, value in state["model"].items()} != ours:
            raise ValueError("parameters of other shapes")
        model.load_state_dict(state["model"])
        for optimizer, moments in zip(optimizers, state["optimizers"], strict=True):
            _check_moments(optimizer, moments, step if moments or not scaler.is_enabled() else 0)
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments, "param_groups": groups})
        scale = state.get("scaler") or scaler.state_dict()  # empty or missing where the run was not in float16
        if not all(math.isfinite(value) and value >= 0 for value in scale.values()):
            raise ValueError("not a gradient scaler's")
        scaler.load_state_dict(scale)
        torch.set_rng_state(state["rng"])
        torch.cuda.set_rng_state_all(state["cuda_rng"][: torch.cuda.device_count()])
    except WRONG:
        raise _damaged(path) from None
    _end_if_finished(config, step)
    return step, run


def _read_torch(path: Path, tensors: bool = True) -> dict:
    """Verify the checksums of a file and return what torch reads from it; without `tensors` only those of the notes."""
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if tensors or not name.partition("/")[2].startswith("data/"):
                    with archive.open(name) as file:
                        while file.read(2**20):  # to its end, where the checksum is compared
                            pass
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=not tensors)
        if not isinstance(state, dict):
            raise TypeError("not a dictionary")
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}: train without --resume first, or name another file") from None
    except DAMAGED:
        raise _damaged(path) from None
    return state


def _check_moments(optimizer, moments: dict, step: int) -> None:
    """Raise ValueError unless an optimizer's state has what it needs for every parameter."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if set(moments) != set(range(len(params)) if step else ()):
        raise ValueError("not of these parameters")
    for i, found in moments.items():
        if set(found) != MOMENTS[type(optimizer).__name__]:
            raise ValueError("not of this optimizer")
        for name, value in found.items():
            if value.shape != (() if name == "step" else params[i].shape) or not value.isfinite().all():
                raise ValueError("of another shape, or not finite")


# For JAX


def save_jax(run, step: int, state) -> None:
    """Write checkpoint.npz into the run's folder: the arrays of a pytree, the flags, and how far the run had come.

    Raises UserError if the disk is full; the previous checkpoint stays.
    """
    path, notes = run.out / "checkpoint.npz", json.dumps(_notes(run, step))
    try:
        with whole_file(path) as file:
            np.savez(file, notes=notes, **{name: np.asarray(leaf) for name, leaf in _leaves(state).items()})
    except OSError as error:
        raise _cannot_write(path, error) from None


def resume_jax(config, state) -> tuple[object, int, dict]:
    """Return the arrays of the checkpoint in `config.out` as a pytree like `state`, its step, and what `Run` needs.

    Each gets the dtype of its leaf in `state`. Ends the program if nothing is left to do. Raises UserError if there
    is no checkpoint, or if it is damaged, has another architecture, or has more steps.
    """
    import jax

    path = config.out / "checkpoint.npz"
    _refuse_dry_run(config)
    arrays, notes = _read_arrays(path)
    ours = _leaves(state)
    for name in {**ours, **arrays}:
        there, here = (found[name].shape if name in found else "none" for found in (arrays, ours))
        if there != here:
            reason = f"{name} has shape {there} in it, but {here} with your flags"
            raise UserError(
                f"the checkpoint {path} has another architecture ({reason}): give its flags, or start a new run"
            )
    try:
        step, run = _progress(config, notes)
        leaves = [arrays[name].astype(leaf.dtype, casting="same_kind") for name, leaf in ours.items()]
        if not all(np.isfinite(leaf).all() for leaf in leaves):
            raise ValueError("a number that is not finite")
    except WRONG:
        raise _damaged(path) from None
    _end_if_finished(config, step)
    return jax.tree.unflatten(jax.tree.structure(state), leaves), step, run


def _read_arrays(path: Path, names: list[str] | None = None) -> tuple[dict[str, np.ndarray], dict]:
    """Return the arrays of a checkpoint.npz, all or those of these names, and its notes; numpy verifies checksums."""
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in names or file.files}
        if any(isinstance(array, bytes) for array in arrays.values()):  # whose file in it does not begin as an array's
            raise ValueError("something else than an array")
        notes = json.loads(str(arrays.pop("notes")))
        return arrays, {name: notes[name] for name in ("config", "step", "run")} | {"torchrun": notes.get("torchrun")}
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}: train without --resume first, or give its --out") from None
    except DAMAGED:
        raise _damaged(path) from None


def _leaves(state) -> dict:
    """Return the arrays of a pytree by names such as 0.stages.1.0.conv1.w, in its own order."""
    import jax

    found = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in found}


# For both


def _read_notes(path: Path) -> dict:
    """Return what a checkpoint holds beside its arrays."""
    return _read_torch(path, tensors=False) if path.suffix == ".pt" else _read_arrays(path, ["notes"])[1]


def _notes(run, step: int) -> dict:
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(run.config).items()}
    del flags["out"]  # the folder may be renamed later
    return {"config": flags, "step": step, "run": run.state(), "torchrun": RUN_ID}


def _config(kind, flags: dict):
    """Return saved flags as the dataclass `kind`; raises ValueError or KeyError where one is missing or wrong."""
    values = {}
    for field in fields(kind):
        if field.name in ("out", "resume", "overwrite", "profile"):  # of the new command
            continue
        if field.name not in flags and field.name not in SIZES:  # newer than the checkpoint, or of one exercise alone
            continue
        value, default = flags[field.name], field.default
        if isinstance(default, Path) or (default is None and isinstance(value, str)):
            value = Path(value)
        like = field.type if default is None else type(default)
        like = like | int if like in (float, float | None) else like
        if not isinstance(value, like) or (isinstance(value, bool) and not isinstance(default, bool)):
            raise ValueError(f"{field.name} is {value!r}")
        values[field.name] = value
    return kind(**values)


def _progress(config, notes: dict) -> tuple[int, dict]:
    """Return a checkpoint's step and its run's state; ValueError, TypeError or KeyError if they are invalid."""
    step, run = notes["step"], notes["run"]
    counts = [step, *run["sizes"].values()]
    measured = [*run["latest"].values(), *run["least"].values(), run["seconds"]]
    if not all(isinstance(count, int) and count >= 0 for count in counts) or not all(map(math.isfinite, measured)):
        raise ValueError("invalid numbers")
    if step > config.steps:
        there = f"the checkpoint in {config.out} has {step} steps, more than --steps {config.steps}"
        raise UserError(f"{there}: give a larger --steps, or start a new run in another --out")
    return step, run


def _end_if_finished(config, step: int) -> None:
    """End the program, with exit code 0, if a run has made all its steps and written all its files."""
    if step == config.steps and all((config.out / name).exists() for name in ("result.json", "loss.png")):
        print(f"the run is complete: it has made all {step} steps, and its result is in {config.out / 'result.json'}")
        print(
            "to continue it, give a larger --steps; to start a new run, give another --out (torchrun: a new --rdzv-id)"
        )
        sys.exit(0)


def _refuse_dry_run(config) -> None:
    if config.dry_run:
        raise UserError(
            "--resume and --dry-run cannot be combined (a dry run always starts at step 0): leave one of them out"
        )


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path} is damaged, or it is not a checkpoint of this exercise: name another file, or start a new run"
    )


def _cannot_write(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or "the disk may be full"  # torch's own message does not help
    stays = "; the previous checkpoint is kept: continue from it with --resume" if path.exists() else ""
    return UserError(f"cannot write {path} ({reason}): free some space, or choose another folder{stays}")
