"""The processes of torchrun: how they begin, agree and end together."""

import atexit
import os
import sys
from datetime import timedelta
from pathlib import Path

from common import UserError
from common.program import exit_code, terminated

_groups = []  # never freed


def find_place(device) -> tuple[int, int, object]:
    """Return the rank of this process, the world size and its device, from torchrun's environment variables.

    Only rank 0 prints from here on. Raises UserError if the machine has fewer GPUs than processes, or if the device
    is a Mac's GPU, which torch.distributed cannot use.
    """
    import torch

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for as long as the process lives
    if world > 1 and device.type == "mps":
        raise UserError(f"--device mps works with one process only, not with {world}: use --device cpu")
    if world > 1 and device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise UserError(f"--nproc-per-node is more than the {torch.cuda.device_count()} GPUs here: lower it")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    return rank, world, device


def init_distributed(device, seconds: int) -> None:
    """Connect the processes of torchrun; raises UserError if that takes more than so many seconds.

    CPU tensors are sent by gloo, GPU tensors by NCCL. When torchrun restarts the processes, it reuses the store through
    which they find each other, with the old addresses in it, unless an environment variable forbids it
    (github.com/pytorch/pytorch/issues/135712).
    """
    import torch.distributed as dist

    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    advice = "start all of them, with the same address, or raise --timeout"
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        advice = "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, so that it does not reuse old addresses"
    try:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
        # gloo's threads may still hold a tensor at the end. If Python frees the group when it exits, it waits for
        # them while they wait for Python, or they abort the process. So the group is kept, and Python exits at once.
        _groups.append(dist.group.WORLD)
        atexit.register(lambda: os._exit(exit_code()))
    except RuntimeError as error:  # torch's DistError is one
        raise UserError(
            f"process {os.environ.get('RANK')} could not connect to the others at {address} within {seconds} seconds "
            f"({type(error).__name__}): {advice}"
        ) from None


def check_same_step(step: int, out: Path) -> None:
    """Raise UserError if the processes start at different steps, because not all of them see the same checkpoint."""
    import torch.distributed as dist

    if dist.is_initialized():
        steps = [None] * dist.get_world_size()
        dist.all_gather_object(steps, step)
        if len(set(steps)) > 1:
            raise UserError(f"the processes find different checkpoints in {out}: give an --out that all hosts share")


def any_terminated() -> bool:
    """Return whether any process has received SIGTERM (program.terminated); all processes get the same answer.

    The CPUs exchange it, so that no process waits for its GPU.
    """
    import torch
    import torch.distributed as dist

    came = torch.tensor(int(terminated()))  # ()
    if dist.is_initialized():
        dist.all_reduce(came, dist.ReduceOp.MAX)
    return bool(came)


def shutdown() -> None:
    """Wait for the other processes, then close the process group."""
    import torch.distributed as dist

    if dist.is_initialized():
        any_terminated()  # a barrier: no process leaves while another still writes
        dist.destroy_process_group()
