"""How a program starts and ends: the ranges of its flags, its device, and a clean exit in every case."""

import errno
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import pairwise
from typing import Annotated, Literal

from common import UserError, leave_at_once

from tyro.constructors import PrimitiveConstructorSpec

LARGEST = (2 - 2**-23) * 2.0**127  # of float32, 3.4e38
LARGEST_INT = 2**53  # every library takes it
# No machine holds so wide a square matrix, and XLA aborts at 10**9; no deeper network was ever trained.
LARGEST_NETWORK = {"channels": 10**6, "hidden": 10**6, "layers": 10**4, "blocks": 10**4}
OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory", "size calculation overflowed", "is too big")
NO_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # why a print fails


def _resume_from(words: list[str]) -> str:
    if len(words) > 1 or not set(words) <= {"yes", "no", "auto"}:
        raise ValueError("give yes, no or auto, or no value for yes")
    return words[0] if words else "yes"


# The flag --resume, which can be given without a value.
Resume = Annotated[
    Literal["no", "yes", "auto"],
    PrimitiveConstructorSpec("*", "[yes|no|auto]", _resume_from, lambda value: isinstance(value, str), lambda v: [v]),
]


class Terminated(BaseException):
    """SIGTERM was received: a cluster wants the machine back, or `docker stop` or `kill` ends the program."""


_sigterm = {"came": False, "asked for": False}
_exit = {"code": 1}


def terminated() -> bool:
    """Return whether SIGTERM was received.

    Once a program has asked, SIGTERM no longer ends it at once: it saves what it has and raises Terminated itself.
    """
    _sigterm["asked for"] = True
    return _sigterm["came"]


def _on_sigterm(number, frame) -> None:
    _sigterm["came"] = True
    if not _sigterm["asked for"] and not _comes_again(number, frame):
        raise Terminated


def _on_sigint(number, frame) -> None:
    if not _comes_again(number, frame):
        raise KeyboardInterrupt


def _comes_again(number: int, frame) -> bool:
    """Return whether the garbage collector, which ignores exceptions, has called JAX; then the signal comes again."""
    ignored = frame is not None and frame.f_code.co_name == "_xla_gc_callback"
    if ignored:
        send = signal.raise_signal if os.name == "nt" else partial(os.kill, os.getpid())  # which there ends the program
        threading.Timer(0.05, send, (number,)).start()
    return ignored


@contextmanager
def clean_exit() -> Iterator[None]:
    """End the program with one sentence and exit code 1 on what the user can fix; with 130 on Ctrl-C, 143 on SIGTERM.

    If the output cannot be written (a full disk), the sentence says so; if its reader has gone, there is none.
    """
    _sigterm.update({"came": False, "asked for": False})
    signal.signal(signal.SIGTERM, _on_sigterm)
    if signal.getsignal(signal.SIGINT) in (leave_at_once, signal.default_int_handler):  # else it is ignored
        signal.signal(signal.SIGINT, _on_sigint)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without "±" is no reason to stop
    if shutil.get_terminal_size().columns < 40:
        os.environ["COLUMNS"] = "40"  # in fewer than 8 tyro's --help never ends
    code, message = 0, ""
    try:
        try:
            yield
        except SystemExit as end:
            if end.code == 2:  # tyro has refused a flag, and said so
                print(_spelling(sys.argv[1:]), end="", file=sys.stderr)
            raise
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where an error can still be reported
    except UserError as error:
        code, message = 1, f"error: {error}"
    except (MemoryError, RuntimeError, ValueError) as error:  # torch's and JAX's own are RuntimeErrors, numpy's may be
        if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in OUT_OF_MEMORY):
            raise
        reason = (str(error).splitlines() or ["no details"])[0]
        flags = getattr(getattr(sys.modules["__main__"], "Config", None), "__dataclass_fields__", {})
        first = next((flag for flag in ("micro_batch", "batch_size") if flag in flags), "").replace("_", "-")
        code, message = 1, f"error: out of memory ({reason}): lower the sizes{first and f', --{first} first'}"
    except OSError as error:
        if error.errno not in NO_OUTPUT or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer goes nowhere
        gone = error.errno == errno.EPIPE
        code, message = 1, "" if gone else f"error: cannot write the output ({error.strerror}): free some space"
    except KeyboardInterrupt:
        code = 130
    except Terminated:
        code = 143
    _exit["code"] = code
    if message:
        print(message, file=sys.stderr)
    if code > 1:  # at once: JAX, when it compiles in other threads, crashes at Python's own end
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def _spelling(arguments: list[str]) -> str:
    """Return how to write a flag that is accepted in another form only."""
    for flag, value in pairwise([*arguments, ""]):
        name, _, given = flag.partition("=")
        if name.startswith("--") and (given or value).lower() in ("true", "false"):
            return f"write {name} for yes, and --no-{name[2:]} for no\n"
        if flag.startswith("--") and not given and re.match("-[^-0-9.]", value):
            return f"write a value that begins with - after an equals sign: {flag}={value}\n"
    return ""


def exit_code() -> int:
    """Return the exit code that clean_exit() has ended with; 1 before that."""
    return _exit["code"]


def check_config(config, **ranges: float | tuple[float, float]) -> None:
    """Raise ValueError, which the command line shows as one sentence, unless every number in the config is in range.

    A number must be above 0 and fit into float32, a whole one below 2**53, a width at most 10**6; seed and profile may
    be 0. `ranges` gives, by name, another minimum, or a minimum and a maximum. A path must not be empty.
    """
    for name, value in vars(config).items():
        flag = "--" + name.replace("_", "-")
        if name == "out" and not value.name and not value.anchor:  # Path("") is the working directory's
            raise ValueError(f'{flag} is empty: name a folder, "$PWD" for the current one')
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        least = {"seed": 0, "profile": 0, **ranges}.get(name)
        most = LARGEST_INT if isinstance(value, int) else LARGEST
        most = LARGEST_NETWORK.get(name, most)
        if isinstance(least, tuple):
            least, most = least
        if least is None and not 0 < value <= most:
            raise ValueError(f"{flag} must be above 0 and at most {most:.2g}, not {value}")
        if least is not None and not least <= value <= most:
            raise ValueError(f"{flag} must be at least {least} and at most {most:.2g}, not {value}")


@cache
def _on_the_cpu(why: str) -> None:
    """Print, once, why a GPU is there and is not used."""
    print(f"{why}, so the CPU is used", file=sys.stderr, flush=True)


def has_code(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Return whether a build for these architectures (sm_86, compute_90, …) runs on a card of this capability (8, 9).

    Machine code (sm) runs on cards of its own major version that are not older, what is compiled on the spot (compute)
    on all that are not older. Where no architecture has such a name, as on AMD's cards, nothing is known against it.
    """
    found = [re.match(r"(sm|compute)_(\d+)(\d)", name) for name in architectures]
    builds = [(kind, int(major), int(minor)) for kind, major, minor in (match.groups() for match in found if match)]
    return not builds or any(
        (major, minor) <= capability and (kind == "compute" or major == capability[0]) for kind, major, minor in builds
    )


def torch_device(name: str):
    """Return the torch.device that a --device flag names; "auto" is the GPU where there is one that torch can use.

    Raises UserError if this machine has no such device, or if this build of torch has no code for it.
    """
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if present["cuda"] and name in ("auto", "cuda"):
        capability, builds = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
        if not has_code(capability, builds):
            card = f"{torch.cuda.get_device_name()} (sm_{capability[0]}{capability[1]})"
            why = f"torch {torch.__version__} has no code for the {card}, only for {', '.join(builds)}"
            if name == "cuda":
                raise UserError(f"--device cuda: {why}: install a build that has, or use --device cpu, or auto")
            _on_the_cpu(why)
            present["cuda"] = False
    if name == "auto":
        name = next(device for device in present if present[device])
    if not present[name]:
        raise UserError(f"--device {name}: torch finds no such device on this machine; use --device cpu, or auto")
    if name == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, for what is not in bfloat16; JAX has it by itself
    return torch.device(name)


def jax_device(name: str):
    """Return the JAX device that a --device flag names; "auto" is the GPU where there is one that JAX can use.

    Raises UserError if JAX finds no such device, because the device or its CUDA plugin is missing, or if the plugin's
    CUDA has no code for it: that of CUDA 13 begins at compute capability 7.5.
    """
    import jax

    try:
        device = jax.devices(None if name == "auto" else name)[0]
    except RuntimeError:
        raise UserError(
            f'--device {name}: JAX finds no such device on this machine (its CUDA plugin: pip install -e ".[cuda]"); '
            "use --device cpu, or auto"
        ) from None
    cuda = (
        re.search(r"cuda (\d+)", getattr(device.client, "platform_version", "")) if device.platform == "gpu" else None
    )
    if cuda and int(cuda[1]) >= 13_000 and is_older(device, 7.5):
        card = f"{device.device_kind} (compute capability {device.compute_capability})"
        why = f"JAX with CUDA 13 has no code for the {card}, only from 7.5 on"
        if name != "auto":
            raise UserError(f"--device {name}: {why}: install jax[cuda12], or use --device cpu, or auto")
        _on_the_cpu(why)
        device = jax.devices("cpu")[0]
    return device


def is_older(device, capability: float) -> bool:
    """Return whether a JAX device is an NVIDIA card of less than this compute capability: 8.0 is the first Ampere."""
    found = re.fullmatch(r"\d+\.\d+", str(getattr(device, "compute_capability", "")))
    return bool(found) and float(found[0]) < capability
