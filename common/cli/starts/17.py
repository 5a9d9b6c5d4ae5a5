"""To do:
1. Tokens by common.openwebtext, memory-mapped. read_samples(config, tokens, starts, device): (B, T) and (B, T), read
   when they are needed. make_data: the validation tokens alone.
2. Processes by common.distributed: rank r takes every world_size-th sequence of the step's batch, from the r-th on.
3. Gradient accumulation: a share that is larger than --micro-batch comes in micro-steps; the step is the same.
4. DistributedDataParallel; gradients are exchanged in the last micro-step only. Rank 0 alone writes.
5. evaluate: each process a share of the blocks, the sums over all. Print tokens per step and how they are split.
"""

from common.cli.check_it import are_equal, has_shape, is_near, run_checks, run_main

import numpy as np
import torch
import train

config = train.Config(layers=2, channels=32, heads=4, block_size=8, batch_size=4)


def test_samples():
    """a sample is T tokens from an offset on, its targets the same moved on by one"""
    x, y = train.read_samples(config, np.arange(100, dtype=np.uint16), torch.tensor([3, 50]), torch.device("cpu"))
    has_shape("the tokens", x, 2, 8)
    are_equal("the tokens", x[0], torch.arange(3, 11), 0)
    are_equal("their targets", y[1], torch.arange(51, 59), 0)


def test_validation():
    """each validation token is scored once"""
    tokens = np.arange(130, dtype=np.uint16)
    _, y = train.make_data(config, tokens[:100], tokens[100:], torch.device("cpu"))
    scored = sorted(y[y >= 0].tolist())
    assert scored == list(range(100, 130)), f"scored tokens: {scored}"


def test_gradient_accumulation():
    """micro-batches of one sequence and of all four make the same losses"""
    flags = {"layers": 1, "heads": 2, "channels": 16, "block_size": 8, "batch_size": 4, "max_new_tokens": 1}
    losses = [run_main(train, **flags, micro_batch=micro_batch, dry_run=True)[1] for micro_batch in (1, 4)]
    for mine, wanted in zip(*losses):
        is_near("a loss", mine, wanted, 1e-4)


if __name__ == "__main__":
    run_checks(globals())
