"""What the check_it.py of a folder uses, which `rampup start` writes: it tries the parts of a learner's train.py."""

import contextlib
import importlib.util
import io
import math
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from common.cli.course import find, train_py
from common.cli.folder import read_metrics


def run_checks(names: dict[str, object]) -> None:
    """Run the functions whose names begin with test_, in their order, and say of each whether it holds.

    `names` are those of check_it.py, globals(). Exits with 1 if any does not hold.
    """
    wrong = 0
    for test in [value for name, value in names.items() if name.startswith("test_")]:
        reason = attempt(test)
        wrong += bool(reason)
        print(f"short  {test.__doc__}\n       {reason}" if reason else f"ok     {test.__doc__}", flush=True)
    print(f"{wrong} to go" if wrong else "all parts are right: now run train.py, and then `rampup check`")
    sys.exit(min(wrong, 1))


def attempt(test: Callable[[], None]) -> str:
    """Return why a check does not hold; nothing if it does."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            test()
    except AssertionError as error:
        return str(error) or f"an assert does not hold ({line_of(error)})"
    except NotImplementedError as error:
        return f"not written yet ({line_of(error)})"
    except AttributeError as error:
        missing = getattr(error.obj, "__name__", "") == "train"
        return f"train.py has no {error.name} yet" if missing else described(error)
    except SystemExit:
        return f"train.py ended: {(output.getvalue().strip().splitlines() or ['without a word'])[-1][:200]}"
    except Exception as error:
        return described(error)
    return ""


def described(error: Exception) -> str:
    """Return an exception's type, first line and place."""
    text = (str(error).strip().splitlines() or [""])[0][:300]
    if "NoneType" in text:
        text += ": is a return missing?"
    if field := re.fullmatch(r"Config\.__init__\(\) got an unexpected keyword argument '(\w+)'", text):
        return f"Config has no field {field[1]} yet"
    if isinstance(error, TypeError) and "argument" in text:
        text += f"; it is called so: {last_frame(error).line}"
    return f"{type(error).__name__}: {text} ({line_of(error)})"


def line_of(error: Exception) -> str:
    """Return where an exception was raised, as far as it is in the learner's folder: "train.py, line 41"."""
    frame = last_frame(error)
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def last_frame(error: Exception) -> traceback.FrameSummary:
    """Return the innermost line of an exception that is in the learner's folder, or anywhere."""
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if frame.filename != __file__]
    own = [frame for frame in frames if Path(frame.filename).name in ("train.py", "check_it.py")]
    return (own or frames)[-1]


def program(number: int) -> ModuleType:
    """Return the course's own program of an exercise that comes before this one, to compare with."""
    path = train_py(find(str(number)))
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.parent.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def run_main(train: ModuleType, **flags) -> tuple[dict[str, float], list[float], list[str]]:
    """Run a program's main with these flags in an empty folder; return its metrics, training losses and files."""
    with tempfile.TemporaryDirectory() as out:
        metrics = train.main(train.Config(out=Path(out), **flags))
        written = Path(out, "dry_run") if flags.get("dry_run") else Path(out)
        series = read_metrics(written / "metrics.csv")
        return metrics, [loss for _, loss in series["train", "loss"]], [path.name for path in written.iterdir()]


def has_shape(what: str, array, *wanted: int) -> None:
    """Assert that an array has a shape."""
    assert tuple(array.shape) == wanted, f"{what}: the shape is {tuple(array.shape)}, expected {wanted}"


def is_near(what: str, value: float, wanted: float, within: float) -> None:
    """Assert that a number is what it should be, or nearly so."""
    shape = tuple(getattr(value, "shape", ()))
    assert math.prod(shape) == 1, f"{what}: the shape is {shape}, expected a number"
    assert abs(value - wanted) <= within, f"{what} is {value:.6g}, expected {wanted:.6g} (± {within:.2g})"


def are_equal(what: str, values, wanted, within: float) -> None:
    """Assert that two arrays of one shape agree in every number."""
    has_shape(what, values, *wanted.shape)
    difference = float(abs(values - wanted).max())
    assert difference <= within, f"{what} differ by up to {difference:.3g}, expected at most {within:.2g}"
