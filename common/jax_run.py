"""What long runs in JAX need: checkpoints that are whole or not there at all."""

import json
import os
import struct
import zipfile
import zlib
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from common import UserError

NAME = "checkpoint.npz"
ZIP = (zipfile.BadZipFile, zlib.error, struct.error)


def save(run, step: int, state) -> None:
    """Write checkpoint.npz into the run's folder: the arrays of a pytree, the flags, and how far the run had come.

    It takes its name when it is on the disk, and until then the last one stays. Raises UserError where the disk takes
    no more.
    """
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(run.config).items()}
    notes = {"config": flags, "step": step, "run": run.state()}
    path = run.config.out / NAME
    temporary = path.with_suffix(".tmp")
    try:
        for name in notes["run"]["sizes"]:  # a checkpoint that outlived its history in a loss of power would be useless
            with open(run.config.out / name, "rb") as file:
                os.fsync(file.fileno())
        with open(temporary, "wb") as file:
            np.savez(file, notes=json.dumps(notes), **{name: np.asarray(leaf) for name, leaf in _leaves(state).items()})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = error.strerror or error
        raise UserError(
            f"cannot write {path} ({reason}): the last whole checkpoint stays; make room, then go on with --resume"
        ) from None


def load(out: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Return the arrays that `save` wrote to a folder, by name, and its notes.

    Raises UserError where there is no checkpoint, or where it is damaged: all checksums are verified, and nothing in it
    is run.
    """
    path = out / NAME
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        notes = json.loads(str(arrays.pop("notes")))
        return arrays, {name: notes[name] for name in ("config", "step", "run")}
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}: train without --resume first, or give its --out") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError, ArithmeticError, *ZIP):
        raise UserError(f"{path} is damaged, or no checkpoint of this course, and was not used") from None


def load_config(kind, out: Path):
    """Return the flags of the checkpoint in a folder, as the dataclass `kind`; raises UserError as `load` does."""
    _, notes = load(out)
    try:
        flags = notes["config"] | {"out": out}
        return kind(
            **{
                field.name: field.type(flags[field.name]) if field.type is Path else flags[field.name]
                for field in fields(kind)
            }
        )
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{out / NAME} has not the flags of this program, and was not used") from None


def restore(config, state, whole) -> tuple[object, int, dict | None]:
    """Return the pytree of arrays to start from, on the devices, the step, and what Run needs to go on from there.

    With --resume they are those of the checkpoint in `config.out`; without, those of `state`, and 0 and None. `whole`
    is the sharding of each. Raises UserError as `load` does, where the checkpoint is of another
    architecture, and where all steps are made.
    """
    import jax

    if not config.resume:
        return jax.device_put(state, whole), 0, None
    arrays, notes = load(config.out)
    ours = _leaves(state)
    for name in {**ours, **arrays}:
        there, here = (found[name].shape if name in found else "none" for found in (arrays, ours))
        if there != here:
            raise UserError(
                f"--resume: {config.out / NAME} is of another architecture: {name} has shape {there} there, {here} here"
            )
    if notes["step"] >= config.steps:
        raise UserError(f"--resume: all {notes['step']} steps are made: ask for more with --steps")
    leaves = [jax.device_put(arrays[name].astype(leaf.dtype), whole) for name, leaf in ours.items()]
    return jax.tree.unflatten(jax.tree.structure(state), leaves), notes["step"], notes["run"]


def _leaves(state) -> dict:
    """Return the arrays of a pytree by names such as 0.blocks.3.conv1.w, in its own order."""
    import jax

    found = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in found}
