"""Whether a stem is all there, and how long it is: what its headers alone tell."""

from pathlib import Path

from rvcd.containers import is_complete, read_layout
from rvcd.errors import Code, RvcdError


def header_complete(path: Path, size: int) -> bool:
    """Whether a stem's headers promise just what is there; formats without a promise pass."""
    try:
        return is_complete(read_layout(path), size)
    except RvcdError as error:
        if error.code is Code.UNSUPPORTED_FORMAT:
            return True
        raise


def seconds_of(path: Path) -> float:
    """Length of a stem; 0 where its headers do not tell.

    Raises `RvcdError`: `file_unstable` if they promise another length than is there, `not_found`, and what else
    `read_layout` raises.
    """
    try:
        layout = read_layout(path)
        if is_complete(layout, path.stat().st_size):
            return layout.frames / layout.sample_rate
    except OSError as error:
        raise RvcdError(Code.NOT_FOUND, f"There is no file {path}: {error.strerror or error}.") from error
    except RvcdError as error:
        if error.code is Code.UNSUPPORTED_FORMAT:
            return 0.0
        raise
    raise RvcdError(Code.FILE_UNSTABLE, f"{path} is still being written, or was cut short.")
