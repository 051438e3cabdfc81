"""The daemon's log: one format, files that rotate, and how they are read.

Only the supervisor writes; the engine process hands its records over. launchd and journald catch what
the interpreter itself prints when it dies, nothing else.
"""

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

from rvcd import paths

MAX_BYTES = 10_000_000
FILES = 5
_NAME = "rvcd.log"


def log_file() -> Path:
    """The file that is written now; older ones end in `.1` to `.4`."""
    return paths.logs_dir() / _NAME


def set_up(*, foreground: bool, level: int = logging.INFO, max_bytes: int = MAX_BYTES) -> None:
    """Log to the rotating file, and to stderr as well in the foreground. May be called again.

    A log that cannot be written (full disk, no permission) never stops the daemon.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler() if foreground else logging.NullHandler()]
    with contextlib.suppress(OSError):
        log_file().parent.mkdir(parents=True, exist_ok=True)
        handlers.append(_File(log_file(), max_bytes))
    logger = logging.getLogger("rvcd")
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(_Format())
        logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


class _File(RotatingFileHandler):
    def __init__(self, path: Path, max_bytes: int) -> None:
        super().__init__(
            path, maxBytes=max_bytes, backupCount=FILES - 1, encoding="utf-8", errors="backslashreplace", delay=True
        )

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A full disk is no reason to print a traceback per line."""


class _Format(logging.Formatter):
    """`2026-11-22 07:44:01.123 INFO daemon: text`, local time; a line break in a name cannot fake a line."""

    def __init__(self) -> None:
        super().__init__("{asctime}.{msecs:03.0f} {levelname} {room}: {message}", "%Y-%m-%d %H:%M:%S", style="{")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.room = record.name.removeprefix("rvcd.")
        record.message = record.message.replace("\r", "\\r").replace("\n", "\\n")
        return super().formatMessage(record)


def read(count: int, pause: Callable[[], object] | None = None) -> Iterator[str]:
    """The last `count` lines; then, if there is a `pause` to call whenever nothing is new, every further one for ever.

    Older files are read as far as needed. No line is lost or told twice when files rotate meanwhile, even
    several times during one pause.
    """
    files = _open_all()
    newest = files.pop() if files else None
    text = newest.read() if newest else ""
    for file in reversed(files):
        with file:
            text = file.read() + text if text.count("\n") < count else text
    *whole, begun = text.split("\n")
    try:
        yield from whole[-count:] if count else []
        while pause is not None:
            # Looked up before the rest is read: a file that has a successor is complete.
            following = _following(newest)
            if newest is not None:
                *whole, begun = (begun + newest.read()).split("\n")
                yield from whole
            if following is None:
                pause()
                continue
            if newest is not None:
                newest.close()
            newest = following
    finally:
        if newest is not None:
            newest.close()


def _following(file: IO[str] | None) -> IO[str] | None:
    """The file that was begun after this one; None while this one is the newest."""
    files = _open_all()
    known = [_identity(other) for other in files]
    place = known.index(_identity(file)) + 1 if file is not None and _identity(file) in known else 0
    for unwanted in itertools.chain(files[:place], files[place + 1 :]):
        unwanted.close()
    return files[place] if place < len(files) else None


def _open_all() -> list[IO[str]]:
    """All log files, oldest first."""
    current = log_file()
    files: dict[tuple[int, int], IO[str]] = {}
    # Newest first: a rotation in the middle makes us meet a file twice, never miss one.
    for path in (current, *(current.with_name(f"{_NAME}.{number}") for number in range(1, FILES))):
        with contextlib.suppress(FileNotFoundError):
            file = path.open(encoding="utf-8", errors="replace", newline="\n")
            if files.setdefault(_identity(file), file) is not file:
                file.close()
    return list(files.values())[::-1]


def _identity(file: IO[str]) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino
