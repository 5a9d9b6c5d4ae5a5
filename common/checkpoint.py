"""Files that are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write bytes to, which takes the name `path` when it is complete and on the disk.

    Until then, and for good where something is raised, whatever had that name keeps it. The bytes lie beside it under
    a name that ends in .tmp; what a killed process left there is replaced. Raises OSError where the disk takes no more.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as file:  # x: never through a link that somebody put there
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the new name, too, must outlive a loss of power; Windows cannot open a folder
        folder = os.open(path.parent, os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)
