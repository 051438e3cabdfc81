"""The last step of a conversion in place: what may be replaced, and the replacement itself.

The steps before it, and who holds what when the power goes: `backups.back_up` copies the take, `patching.stage`
makes the result beside it, whole and verified; until `commit` the stem at the DAW's path is the take, and from
then on the result. One rename decides, so there is no state between.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from rvcd import disk
from rvcd.errors import Code, RvcdError
from rvcd.fingerprints import Fingerprint

STORE_NAME = ".rvcd"
"""The folder within a root that holds its backups and what is being staged."""


@dataclass(frozen=True)
class Staged:
    """A converted stem that waits on the volume of its original, verified and flushed."""

    path: Path
    gain_db: float
    """Below 0 where an integer format could not hold the peak and the whole stem was lowered."""
    digest: str
    """sha256 of the staged file, hexadecimal."""
    frames: int
    fingerprint: Fingerprint
    """Of the staged file. A rename keeps it, so it is also what the path will have after the commit."""


def check_replaceable(path: Path, root: Path) -> Path:
    """The real path of a stem that may be replaced, for everything that follows.

    A symbolic link is followed as long as it stays within the root.

    Raises `RvcdError`: `not_found`, `not_allowed` (outside of the root, one of our own files, hard-linked, on
    another volume than the root), `permission_denied` (locked or read-only), `unreadable_stem` (no regular file).
    """
    real, real_root = _resolved(path), _resolved(root)
    if not real.is_relative_to(real_root):
        raise RvcdError(Code.NOT_ALLOWED, f"{path} leads to {real}, which is outside of {root}.")
    if STORE_NAME in real.relative_to(real_root).parts:
        raise RvcdError(Code.NOT_ALLOWED, f"{path} is one of rvcd's own files; `rvcd undo` restores a backup.")
    status = real.stat()
    if not stat.S_ISREG(status.st_mode):
        raise RvcdError(Code.UNREADABLE_STEM, f"{path} is no regular file.")
    if status.st_nlink > 1:
        raise RvcdError(
            Code.NOT_ALLOWED,
            f"{path} has {status.st_nlink} names (hard links), and replacing it would part them; "
            "convert a copy of it, or to a sibling file.",
        )
    if status.st_dev != real_root.stat().st_dev:
        raise RvcdError(
            Code.NOT_ALLOWED, f"{path} lies on another volume than {root}; make its own folder a hot folder."
        )
    # A read-only file could be replaced all the same; whoever locked it does not want that.
    if not status.st_mode & 0o222 or not os.access(real.parent, os.W_OK):
        raise RvcdError(Code.PERMISSION_DENIED, f"{path} or its folder is read-only; unlock it and try again.")
    return real


def commit(staged: Staged, original: Path, expected: Fingerprint) -> None:
    """Put a staged stem in the place of its original, if that still has the fingerprint it was read with.

    `original` is a path that `check_replaceable` gave. What tells our own output from a new bounce
    (`staged.fingerprint`) must be on record before this is called.

    Raises `RvcdError`: `changed_underneath` (a newer bounce is there, or nothing; the staged file is kept),
    `permission_denied`, `not_writable`, `not_found` (the staged file is gone).
    """
    try:
        disk.replace_file(original, staged.path, expected)
    except OSError as error:
        raise disk.disk_error(error, original) from error


def _resolved(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except FileNotFoundError:
        raise RvcdError(Code.NOT_FOUND, f"There is no file {path}.") from None
    except RuntimeError as error:  # a loop of links, up to Python 3.12
        raise RvcdError(Code.NOT_FOUND, f"{path} leads nowhere: {error}.") from error
    except OSError as error:
        raise disk.disk_error(error, path) from error
