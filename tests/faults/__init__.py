"""The fault campaign: what the programs do when they are killed, starved of disk or network, or fed with rubbish.

    python -m tests.faults                            the short one, which CI runs part by part (tests/test_faults.py)
    python -m tests.faults --full                     all of it, at most an hour on two cores
    python -m tests.faults kill disk --full --seed 3  some parts, with other random places
    python -m tests.faults --losses                   write losses.json anew, after a change that is meant to move them

Each part is a module with a function `cases(full, rng, folder)`, which yields a Case for each thing that it tried.
"""

import os

# Before torch and JAX are imported: one thread gives the same numbers every time, and is what a forked program can
# take over. torchrun would else keep the addresses of processes that it has buried (common/distributed.py).
os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
os.environ |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
