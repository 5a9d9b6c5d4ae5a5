"""How fast a training is: tokens per second, MFU, the peak of the chip, and a compiled model where that works."""

import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

PEAKS = {  # TFLOP/s of dense bfloat16 matrix products, from NVIDIA's data sheets, by a part of the GPU's name
    **{"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312},
    **{"L40S": 362, "L40": 181, "L4": 121, "RTX 4090": 165, "RTX 3090": 71},
}


def has_bfloat16(device) -> bool:
    """Return whether the device multiplies bfloat16 matrices in hardware; others only emulate it, slowly."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


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


def chip(device) -> tuple[str, int | None]:
    """Return the name of a device, and its peak in TFLOP/s where PEAKS has it."""
    import torch

    name = torch.cuda.get_device_name() if device.type == "cuda" else f"a {device.type}"
    return name, next((peak for part, peak in PEAKS.items() if part in name), None)
