"""What tells one state of a file from another, without reading it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Fingerprint:
    """Identity, size and time of the last write: equal for a file that nobody touched, and kept by a rename."""

    dev: int
    ino: int
    size: int
    """Bytes."""
    mtime_ns: int
    """Nanoseconds since 1970."""

    @classmethod
    def of(cls, path: Path) -> Self:
        """Fingerprint of what lies at `path`; a symbolic link is not followed. Raises `OSError`."""
        return cls.from_stat(path.lstat())

    @classmethod
    def from_stat(cls, stat: os.stat_result) -> Self:
        """Fingerprint in a `stat` that was taken already, as a scan of a folder gives it."""
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
