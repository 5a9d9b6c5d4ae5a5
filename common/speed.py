"""How fast a training is: tokens per second, MFU, the peak of the chip, and a compiled model where that works."""

import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

# TFLOP/s of dense matrix products in bfloat16 (V100, P100, T4: float16) with sums in float32, by a part of the name.
# B200, H200, H100 and A100 are from NVIDIA's data sheets. The others were written down without looking there: for
# GeForce cards twice the rate of float32. A laptop's chip has the name of a faster one, and is left out.
PEAKS = {
    **{"B200": 2250, "GH200": 989, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312},
    **{"MI300X": 1307, "L40S": 362, "L40": 181, "L4": 121, "A10": 125, "T4": 65, "V100-PCIE": 112, "V100": 125},
    **{"P100-PCIE": 18.7, "P100": 21.2, "RTX 5090": 209.5, "RTX 5080": 112.6, "RTX 5070 Ti": 87.9, "RTX 5070": 61.7},
    **{"RTX 5060 Ti": 47.4, "RTX 5060": 38.4, "RTX 4090": 165, "RTX 4080 SUPER": 104.4, "RTX 4080": 97.5},
    **{"RTX 4070 Ti SUPER": 88.2, "RTX 4070 Ti": 80.2, "RTX 4070 SUPER": 71, "RTX 4070": 58.3, "RTX 4060 Ti": 44.1},
    **{"RTX 4060": 30.2, "RTX 3090 Ti": 80, "RTX 3090": 71},
}

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def precision(device, wanted: str):
    """Return the torch dtype of matrix products: the wanted one, or with "auto" the fastest that the device has.

    That is bfloat16 where the hardware multiplies it, float16 on older NVIDIA cards, and float32 on all others.
    """
    import torch

    if wanted != "auto":
        return getattr(torch, wanted)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    native = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16")
    return torch.bfloat16 if native else torch.float32


def compiled(model, loss_of):
    """Return the compiled model; where compiling fails, print one line that says why and return the model as it is.

    `loss_of(model)` returns a loss like those of the training. The compiled model is tried with it once; that changes
    nothing.
    """
    import torch

    compiled_model = torch.compile(model)
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # dropout's draws here do not count
            loss_of(compiled_model).backward()
    except torch.OutOfMemoryError:
        raise  # it would not fit uncompiled either
    except Exception as error:  # no C++ compiler, a GPU that Triton does not know, and many more
        print(f"not compiled, so slower ({(str(error).strip() or repr(error)).splitlines()[0]})", file=sys.stderr)
        compiled_model = model
    model.zero_grad()
    return compiled_model


def clock(device) -> float:
    """Wait until the device has finished all its work, and return the time in seconds."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def describe(tokens_per_second: float, flops_per_token: int, device, devices: int = 1) -> str:
    """Return a line with the speed of a training and its MFU: the share of the GPUs' peak that it used."""
    name, peak = chip(device)
    rate = tokens_per_second * flops_per_token / 1e12
    mfu = f"{rate / peak / devices:.1%} of {peak} TFLOP/s" if peak else "unknown chip"
    name = name if devices == 1 else f"{devices} × {name}"
    return f"speed: {tokens_per_second:,.0f} tokens/s, {rate:.3g} TFLOP/s; MFU: {mfu} ({name})"


def progress(
    steps: int, left: int, tokens: int, seconds: float, flops_per_token: int, device, devices: int = 1
) -> dict:
    """Return the speed for the progress line: `steps` steps of `tokens` tokens took `seconds`, and `left` are left."""
    import torch

    rate = steps * tokens / seconds
    _, peak = chip(device)
    shown = {"tokens/s": rate, "hours left": left * tokens / rate / 3600}
    shown |= {"MFU %": rate * flops_per_token / 1e10 / peak / devices} if peak else {}
    return shown | ({"GB": torch.cuda.max_memory_allocated() / 1e9} if device.type == "cuda" else {})


def profiled(run, steps: Iterable[int]) -> Iterator[int]:
    """Yield the steps; of `run.config.profile` of them, from the third on, write a trace to trace.json.gz in `run.out`.

    torch.profiler makes it or, in a program that imports JAX, jax.profiler; ui.perfetto.dev opens it.
    """
    steps, count = iter(steps), 0 if run.quiet else run.config.profile
    yield from islice(steps, 2 if count else 0)  # in which memory is allocated, and kernels are chosen
    if count and hasattr(sys.modules[type(run.config).__module__], "jax"):
        import jax

        with TemporaryDirectory() as folder:
            with jax.profiler.trace(folder, create_perfetto_trace=True):
                yield from islice(steps, count)
                jax.block_until_ready(jax.live_arrays())  # what was handed to the device belongs to the trace
            (trace,) = Path(folder).rglob("perfetto_trace.json.gz")
            shutil.move(trace, run.out / "trace.json.gz")
    elif count:
        import torch

        with torch.profiler.profile() as trace:
            yield from islice(steps, count)
        trace.export_chrome_trace(str(run.out / "trace.json.gz"))
    yield from steps


def chip(device) -> tuple[str, float | None]:
    """Return the name of a device, and its peak in TFLOP/s where PEAKS has it."""
    import torch

    name = torch.cuda.get_device_name() if device.type == "cuda" else f"a {device.type}"
    parts = [part for part in PEAKS if re.search(rf"\b{part}\b", name)]  # an A100 is no RTX A1000
    return name, PEAKS[parts[0]] if parts and "Laptop" not in name else None


def fitting(micro_batch: int) -> int:
    """Return a micro-batch that needs up to 32 GB, halved until it fits the free memory of this process's GPU."""
    import torch

    free, _ = torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return max(1, micro_batch >> max(0, math.ceil(math.log2(32e9 / max(free, 1)))))


def free_bytes(device) -> float:
    """Return how many bytes of a JAX device's memory are free for this program; infinite where that is not known."""
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else math.inf


def convolutions(program) -> str:
    """Return the number formats in which a program that JAX has compiled really computes its convolutions."""
    lines = [
        line for line in (program.as_text() or "").splitlines() if re.search(r"\bconvolution\(|__cudnn\$conv", line)
    ]
    found = {match[1] for line in lines if (match := re.search(r"= \(?(\w+)\[", line))}
    names = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
    return " and ".join(sorted(names.get(name, name) for name in found)) or "an unknown format"
