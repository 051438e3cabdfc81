"""One daemon per user: a lock, and a note that tells clients where it listens."""

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from rvcd import paths
from rvcd.errors import Code, RvcdError, write_error


@dataclass(frozen=True)
class Note:
    """Where a daemon can be found."""

    pid: int
    host: str
    port: int
    token_file: str = ""


def note_file() -> Path:
    """The note of the running daemon; absent while none runs."""
    return paths.home() / "daemon.json"


class Instance:
    """Holds the lock from its making to `release`, or to the end of the process, however that comes."""

    def __init__(self) -> None:
        """Raises `RvcdError`: `already_running`, `not_writable`."""
        file = paths.home() / "daemon.lock"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._lock: TextIO = file.open("a")
        except OSError as error:
            raise write_error(error, file) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise RvcdError(
                Code.ALREADY_RUNNING,
                f"rvcd is running already{_by_whom()}; `rvcd status` shows it, `rvcd stop` ends it.",
            ) from None

    def tell(self, note: Note) -> None:
        """Write the note, whole or not at all. Raises `RvcdError`: `not_writable`, `disk_full`."""
        draft = note_file().with_suffix(".part")
        try:
            draft.write_text(json.dumps(asdict(note)))
            draft.replace(note_file())
        except OSError as error:
            raise write_error(error, note_file()) from error

    def release(self) -> None:
        """Remove the note and let go."""
        note_file().unlink(missing_ok=True)
        self._lock.close()


def _by_whom() -> str:
    with contextlib.suppress(OSError, ValueError, KeyError):
        return f" (process {json.loads(note_file().read_text())['pid']})"
    return ""


def is_alive(pid: int) -> bool:
    """Whether a process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
