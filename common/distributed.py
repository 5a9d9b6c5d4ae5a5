"""The processes of torchrun: how they begin, agree and end together."""

import atexit
import os
import sys
from datetime import timedelta
from pathlib import Path

from common import UserError
from common.program import terminated


def find_place(device) -> tuple[int, int, object]:
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


def init_distributed(device, seconds: int) -> None:
    """Let the processes of torchrun meet; raises UserError where they have not within so many seconds.

    Tensors of the CPU travel by gloo, those of GPUs by NCCL. torchrun keeps the store where they meet when it starts
    again, with the old addresses in it, unless an environment variable forbids it
    (github.com/pytorch/pytorch/issues/135712).
    """
    import torch.distributed as dist

    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    advice = "start all of them, with the same address, or give them longer with --timeout"
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        advice = "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, else it mixes up its attempts"
    try:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
    except RuntimeError as error:  # torch's DistError is one
        raise UserError(
            f"process {os.environ.get('RANK')} did not meet the others at {address} within {seconds} seconds "
            f"({type(error).__name__}): {advice}"
        ) from None


def check_same_step(step: int, out: Path) -> None:
    """Raise UserError where processes begin with different steps, as they do if not all see the same checkpoint."""
    import torch.distributed as dist

    if dist.is_initialized():
        steps = [None] * dist.get_world_size()
        dist.all_gather_object(steps, step)
        if len(set(steps)) > 1:
            raise UserError(f"not all processes find the same checkpoint in {out}: let --out be a folder of all hosts")


def any_terminated() -> bool:
    """Return whether SIGTERM has come to any of the processes (program.terminated): all get the same answer.

    It travels between the CPUs, so that none waits for its GPU.
    """
    import torch
    import torch.distributed as dist

    came = torch.tensor(int(terminated()))  # ()
    if dist.is_initialized():
        dist.all_reduce(came, dist.ReduceOp.MAX)
    return bool(came)


def shutdown(exit_code: int = 0) -> None:
    """Wait for the other processes, and take leave of them. All but the first end at once where Python would tidy up.

    gloo's threads may still hold a tensor, and abort the process when they let go of it after Python has ended.
    """
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    dist.all_reduce(torch.zeros(1))  # on the CPU: nobody leaves while another still writes
    dist.destroy_process_group()
    if int(os.environ.get("RANK", 0)):
        atexit.register(os._exit, exit_code)
