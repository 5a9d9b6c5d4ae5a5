"""Small shared helpers of the ramp-up course: nothing in here is what a learner came to learn."""

import os
import sys


class UserError(Exception):
    """Something the user can fix; the message is one sentence: what is wrong, what was expected, what to do."""


def _on_error(kind, error, traceback) -> None:
    if kind is KeyboardInterrupt:  # while a program imports torch or JAX; later clean_exit() is there
        os._exit(130)
    sys.__excepthook__(kind, error, traceback)


sys.excepthook = _on_error
