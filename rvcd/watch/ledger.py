"""What is known about stems in hot folders, kept across restarts: our own output is never a new bounce.

One sqlite file. A commit survives the death of the process, not always the loss of power: what is lost then
is met again as "present at start", which is offered and never converted unasked.
"""

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from rvcd.errors import Code, RvcdError, write_error
from rvcd.fingerprints import Fingerprint
from rvcd.watch.names import fold

log = logging.getLogger(__name__)

MAX_ROWS = 200_000
_TRIM_EVERY = 1000  # rows written
_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS stems (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    path BLOB NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    dev INTEGER NOT NULL,
    ino INTEGER NOT NULL,
    UNIQUE (path, size, mtime_ns)
);
CREATE INDEX IF NOT EXISTS stems_by_inode ON stems (ino, dev);
CREATE TABLE IF NOT EXISTS pending (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE);
"""
_FIND = """
SELECT kind FROM stems WHERE path = :path AND size = :size AND mtime_ns = :mtime_ns
UNION ALL
SELECT kind FROM stems WHERE ino = :ino AND dev = :dev AND size = :size AND mtime_ns = :mtime_ns
LIMIT 1
"""
_RECORD = """
INSERT OR REPLACE INTO stems (kind, path, size, mtime_ns, dev, ino)
VALUES (:kind, :path, :size, :mtime_ns, :dev, :ino)
"""


class Kind(StrEnum):
    """Why a stem in this very state is no new bounce."""

    OURS = "ours"
    """We wrote it."""
    TAKEN = "taken"
    """It became a job."""
    PRESENT = "present"
    """It was there when the folder was first seen."""


class Ledger:
    """Fingerprints of stems that need no conversion. Any thread may use it.

    A stem is recognised by its path, size and time, because volumes get other device numbers when they are
    mounted again; or by its inode, size and time, because it may have been renamed.
    """

    def __init__(self, file: Path) -> None:
        """Open or create the ledger. Raises `RvcdError` (`not_writable`, `disk_full`)."""
        self._file = file
        self._lock = threading.RLock()
        self._written = 0
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._db = _open(file)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                _set_aside(file)
                self._db = _open(file)
        except OSError as error:
            raise write_error(error, file) from error
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Nothing may be asked or recorded afterwards."""
        with self._lock:
            self._db.close()

    def record(self, kind: Kind, path: Path, fingerprint: Fingerprint) -> None:
        """Remember a stem in this state; committed on return.

        What we write is recorded before it is renamed to `path`: a rename keeps the fingerprint.
        Raises `RvcdError` (`not_writable`, `disk_full`).
        """
        with self.batch():
            self._db.execute(_RECORD, {"kind": kind, **_columns(path, fingerprint)})
            self._written += 1
            if self._written % _TRIM_EVERY == 0:
                self._trim()

    def kind_of(self, path: Path, fingerprint: Fingerprint) -> Kind | None:
        """Why this stem is no new bounce, or None if it is one. Raises `RvcdError` if the ledger cannot be read."""
        with self._lock, self._failures():
            row = self._db.execute(_FIND, _columns(path, fingerprint)).fetchone()
        return Kind(row[0]) if row else None

    def is_ours(self, path: Path, fingerprint: Fingerprint) -> bool:
        """Whether we wrote what lies at `path`."""
        return self.kind_of(path, fingerprint) is Kind.OURS

    def note_pending(self, path: Path) -> None:
        """A bounce arrived at `path`; if we die before it settles, it is still one at the next start."""
        with self.batch():
            self._db.execute("INSERT OR IGNORE INTO pending (path) VALUES (?)", (_key(path),))

    def drop_pending(self, path: Path) -> None:
        """The bounce at `path` is gone."""
        with self.batch():
            self._db.execute("DELETE FROM pending WHERE path = ?", (_key(path),))

    def is_pending(self, path: Path) -> bool:
        """Whether a bounce arrived at `path` that nobody took."""
        with self._lock, self._failures():
            return self._db.execute("SELECT 1 FROM pending WHERE path = ?", (_key(path),)).fetchone() is not None

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Commit what is written within as one. Others wait meanwhile, so keep it short."""
        with self._lock, self._failures():
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # sqlite has rolled back itself when the disk is full
                    self._db.execute("ROLLBACK")
                raise

    def _trim(self) -> None:
        """Forget the oldest. A running watch still knows them; at the next start they are present and offered."""
        for table in ("stems", "pending"):
            self._db.execute(f"DELETE FROM {table} WHERE id <= (SELECT max(id) FROM {table}) - ?", (MAX_ROWS,))  # noqa: S608

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _failure(self, error: sqlite3.Error) -> RvcdError:
        is_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        code = Code.DISK_FULL if is_full else Code.NOT_WRITABLE
        return RvcdError(code, f"The ledger {self._file} cannot be used: {error}; free some room or repair its folder.")


def _open(file: Path) -> sqlite3.Connection:
    db = sqlite3.connect(file, timeout=5.0, isolation_level=None, check_same_thread=False)
    try:
        db.executescript(_SCHEMA)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _set_aside(file: Path) -> None:
    aside = file.with_name(file.name + ".damaged")
    log.warning("%s is damaged; it is kept as %s and a new one begun", file, aside.name)
    file.replace(aside)
    for extra in ("-wal", "-shm"):  # they belong to the damaged file
        file.with_name(file.name + extra).unlink(missing_ok=True)


def _columns(path: Path, fingerprint: Fingerprint) -> dict[str, bytes | int]:
    return {
        "path": _key(path),
        "size": fingerprint.size,
        "mtime_ns": fingerprint.mtime_ns,
        "dev": _signed(fingerprint.dev),
        "ino": _signed(fingerprint.ino),
    }


def _key(path: Path) -> bytes:
    return os.fsencode(fold(path))


def _signed(number: int) -> int:
    """Some filesystems use all 64 bits of an inode number; sqlite has 63 and a sign."""
    return number - 2**64 if number >= 2**63 else number
