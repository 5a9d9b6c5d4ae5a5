"""Small shared helpers of the ramp-up course: nothing in here is what a learner came to learn."""

import os
import signal
import sys
from pathlib import Path


class UserError(Exception):
    """Something the user can fix; the message is one sentence: what is wrong, what was expected, what to do."""


def leave_at_once(*_) -> None:
    """End on Ctrl-C while a program imports torch or JAX, before clean_exit() is there."""
    os._exit(130)


def _on_error(kind, error, traceback) -> None:
    if kind is KeyboardInterrupt:
        leave_at_once()
    sys.__excepthook__(kind, error, traceback)


sys.excepthook = _on_error
_main = getattr(sys.modules["__main__"], "__file__", None)
_ours = bool(_main) and Path(__file__).resolve().parent.parent in Path(_main).resolve().parents
if _ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave_at_once)  # an exception is lost when it comes in a callback of JAX's
