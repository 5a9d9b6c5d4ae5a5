"""What long runs in torch need: checkpoints, a compiled model where there can be one, how fast they are."""

import atexit
import os
import pickle
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from datetime import timedelta
from pathlib import Path

from common import UserError

RUN_ID = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # torchrun's --rdzv-id; with --standalone it draws one
SHAPE = ("layers", "heads", "channels", "block_size", "bias", "muon")  # flags that fit a checkpoint, or not
PEAKS = {  # TFLOP/s of dense bfloat16 matrix products, from NVIDIA's data sheets, by a part of the GPU's name
    **{"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312},
    **{"L40S": 362, "L40": 181, "L4": 121, "RTX 4090": 165, "RTX 3090": 71},
}


def save(run, step: int, vocab: list[str] | None, model, *optimizers) -> None:
    """Write checkpoint.pt into the run's folder; best.pt, too, where the last validation loss is the least so far.

    It holds all that `resume` needs: the flags, the state of model, optimizers and random numbers, and how far the
    run's other files had come.
    """
    import torch

    flags = {name: value for name, value in asdict(run.config).items() if name != "out"}  # which may have another name
    flags |= {name: str(flags[name]) for name in ("text", "data") if flags.get(name)}
    state = {"config": flags, "step": step, "run": run.state(), "vocab": vocab}
    state |= {"model": model.state_dict(), "optimizers": [each.state_dict()["state"] for each in optimizers]}
    state |= {"rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all(), "torchrun": RUN_ID}
    best = run.latest["validation loss"] == run.least["validation loss"]
    for name in ["best.pt"] * best + ["checkpoint.pt"]:
        write(state, run.config.out / name)


def write(state: dict, path: Path) -> None:
    """Write a checkpoint; one that is there stays until the new one is whole. Raises UserError where it cannot be."""
    import torch

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".tmp"), "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path.with_suffix(".tmp"), path)
    except (OSError, RuntimeError) as error:  # the second is torch's own
        path.with_suffix(".tmp").unlink(missing_ok=True)
        raise UserError(f"cannot write {path} ({str(error).splitlines()[0]}): make room, or choose another") from None


def load(kind, path: Path) -> dict:
    """Return what `save` wrote, on the CPU, with the flags that it knows as a config of the dataclass `kind`.

    Raises UserError where there is no such file, or where it is damaged, of another program, or a pickle that would run
    code: torch reads tensors and plain values alone.
    """
    try:
        state = _read(path)
        saved = {"text": None} | state["config"]  # exercise 17 has no such flag
        flags = {field.name: saved[field.name] for field in fields(kind) if field.name != "out"}
        paths = {name: Path(flags[name]) for name in ("text", "data") if flags.get(name)}
        state["config"] = kind(**flags | paths)
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{path} is damaged, or no checkpoint of this exercise, and was not used") from None
    return state


def _read(path: Path) -> dict:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}: train without --resume first, or name another") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{path} is damaged, or no checkpoint of this exercise, and was not used") from None


def load_config(kind, out: Path, preset: str):
    """Return the flags of the checkpoint in `out`, of the dataclass `kind`; UserError where its preset is another."""
    config = load(kind, out / "checkpoint.pt")["config"]
    if preset not in ("auto", config.preset):
        raise UserError(f"--resume: the checkpoint in {out} is of --preset {config.preset}, not {preset}")
    return replace(config, out=out)


def goes_on(resume: str, out: Path) -> bool:
    """Return whether to go on from the checkpoint in `out`; "auto": if the same torchrun wrote it, which starts again.

    How often it has done that is not asked: every host counts for itself.
    """
    auto = resume == "auto" and RUN_ID != "none" and (out / "checkpoint.pt").exists()
    return resume == "yes" or (auto and _read(out / "checkpoint.pt").get("torchrun") == RUN_ID)


def agree(first: int, out: Path) -> None:
    """Raise UserError where processes begin with different steps, as they do if not all see the same checkpoint."""
    import torch.distributed as dist

    if dist.is_initialized():
        firsts = [None] * dist.get_world_size()
        dist.all_gather_object(firsts, first)
        if len(set(firsts)) > 1:
            raise UserError(f"not all processes find the same checkpoint in {out}: let --out be a folder of all hosts")


def resume(config, vocab: list[str] | None, model, *optimizers) -> tuple[int, dict]:
    """Put the checkpoint in `config.out` back; return its step, and what `Run` needs to go on from there.

    What the flags say of the optimizers holds, not what they were. Raises UserError as `load` does, where the model or
    the vocabulary is another one, or where all steps are already made.
    """
    import torch

    state = load(type(config), config.out / "checkpoint.pt")
    if config.dry_run:
        raise UserError("--resume: neither with --dry-run nor after it is there anything to go on with")
    for name in SHAPE:
        was = getattr(state["config"], name, None)
        if was != getattr(config, name, None):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"--resume: the checkpoint in {config.out} is of a model of {flag} {was}")
    if state["vocab"] != vocab:
        raise UserError(f"--resume: the checkpoint in {config.out} is of a text with another vocabulary")
    if state["step"] >= config.steps:
        raise UserError(f"--resume: all {state['step']} steps are made: ask for more with --steps")
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"]):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": saved, "param_groups": groups})
    torch.set_rng_state(state["rng"])
    torch.cuda.set_rng_state_all(state["cuda_rng"][: torch.cuda.device_count()])
    return state["step"], state["run"]


def place(device) -> tuple[int, int, object]:
    """Return this process's number, how many there are, and its device, as torchrun says it in environment variables.

    All but the first process are silent from here on. Raises UserError where the machine has fewer GPUs than processes,
    or where it has a Mac's, which cannot talk to others.
    """
    import torch

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for as long as the process lives
    if world > 1 and device.type == "mps":
        raise UserError("--device mps is for one process: take --device cpu")
    if world > 1 and device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise UserError(f"--nproc-per-node is more than the {torch.cuda.device_count()} GPUs of this machine")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    return rank, world, device


def leave() -> None:
    """Take leave of the other processes. All but the first then end at once where Python would tidy up.

    gloo's threads may still hold a tensor, and abort the process when they let go of it after Python has ended.
    """
    import torch.distributed as dist

    dist.destroy_process_group()
    if int(os.environ.get("RANK", 0)):
        atexit.register(os._exit, 0)


@contextmanager
def meeting(seconds: int) -> Iterator[timedelta]:
    """Give what torch takes for a timeout, and raise UserError where the processes have not met by then.

    torchrun keeps the store where they meet when it starts again, with the old addresses in it, unless an environment
    variable forbids it (github.com/pytorch/pytorch/issues/135712).
    """
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    advice = "start all of them, with the same address, or give them longer with --timeout"
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        advice = "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, else it mixes up its attempts"
    try:
        yield timedelta(seconds=seconds)
    except RuntimeError as error:  # torch's DistError is one
        raise UserError(
            f"process {os.environ.get('RANK')} did not meet the others at {address} within {seconds} seconds "
            f"({type(error).__name__}): {advice}"
        ) from None


def has_bfloat16(device) -> bool:
    """Return whether the device itself multiplies matrices of bfloat16, which others only imitate, slowly."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def compiled(model, loss_of):
    """Return the model compiled, or as it is, with one line that says why, where this machine cannot do that.

    `loss_of` returns of a model a loss like those of the training. The compiled model is tried with one, which leaves
    nothing behind.
    """
    import torch

    fast = torch.compile(model)
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # dropout's draws here do not count
            loss_of(fast).backward()
    except torch.OutOfMemoryError:
        raise  # it would not fit uncompiled either
    except Exception as error:  # no C++ compiler, a GPU that Triton does not know, and many more
        print(f"not compiled, so slower ({(str(error).strip() or repr(error)).splitlines()[0]})", file=sys.stderr)
        fast = model
    model.zero_grad()
    return fast


def clock(device) -> float:
    """Return the time in seconds when the device has done all that it was asked to."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def speed(words_per_second: float, flops_per_word: int, device, devices: int = 1) -> str:
    """Return in words how fast a training was, and its MFU: the share of the GPUs' peak that it put to use."""
    name, peak = chip(device)
    rate = words_per_second * flops_per_word / 1e12
    mfu = f"{rate / peak / devices:.1%} of {peak} TFLOP/s" if peak else "unknown chip"
    name = name if devices == 1 else f"{devices} × {name}"
    return f"speed: {words_per_second:,.0f} words/s, {rate:.3g} TFLOP/s; MFU: {mfu} ({name})"


def progress(steps: int, left: int, words: int, seconds: float, flops_per_word: int, device, devices: int = 1) -> dict:
    """Return what the progress line says of a training's speed after so many steps of so many words and seconds."""
    import torch

    rate = steps * words / seconds
    _, peak = chip(device)
    shown = {"words/s": rate, "hours left": left * words / rate / 3600}
    shown |= {"MFU %": rate * flops_per_word / 1e10 / peak / devices} if peak else {}
    return shown | ({"GB": torch.cuda.max_memory_allocated() / 1e9} if device.type == "cuda" else {})


def chip(device) -> tuple[str, int | None]:
    """Return the name of a device, and its peak in TFLOP/s where PEAKS has it."""
    import torch

    name = torch.cuda.get_device_name() if device.type == "cuda" else f"a {device.type}"
    return name, next((peak for part, peak in PEAKS.items() if part in name), None)
