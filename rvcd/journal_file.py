"""The file under the journal: opened, brought to the present schema, set aside if damaged; and the ids it gives out.

Beside the database lies a small file with the highest id that may have been given out, rounded up to blocks, so that
ids go on rising even when the database is lost.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rvcd.errors import Code, RvcdError, write_error

MAX_ID = 2**31 - 1
"""Ids travel as OSC integers."""

_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # The columns are what is searched by; the document holds the rest of a job as JSON.
        f"""CREATE TABLE jobs (
            id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id BETWEEN 1 AND {MAX_ID}),
            state TEXT NOT NULL,
            priority INTEGER NOT NULL,
            twins TEXT NOT NULL,
            finished REAL,
            document TEXT NOT NULL
        ) STRICT""",
        "CREATE INDEX jobs_by_turn ON jobs (state, priority DESC, id)",
        "CREATE INDEX jobs_by_end ON jobs (finished, id)",
    ),
)
"""Statements that lead from each schema version to the next; the version is how many were applied."""

_ID_BLOCK = 100
_DAMAGED = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_ERROR,
)  # the last: tables are not as they were


class _DamagedError(Exception):
    """The file cannot serve as a journal; says why."""


class JournalFile:
    """An open database of jobs.

    Raises `RvcdError`: `not_writable` or `disk_full` when the file cannot be made or written.
    """

    def __init__(self, path: Path, check_row: Callable[[tuple[int, str, str]], object]) -> None:
        """Open or make the file; `check_row` raises `ValueError`, `TypeError` or `KeyError` for an unreadable job."""
        self.path = path
        self.notice = ""
        """What became of a file that could not be used."""
        self._marks = path.with_name(f"{path.name}.ids")
        self._reserved = _read_mark(self._marks)
        with _write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.db = _open(path, self._reserved, check_row)
            except _DamagedError as damage:
                aside = _set_aside(path)
                highest = max(self._reserved, _highest_id(aside))
                self.db = _open(path, highest, check_row)
                self.notice = f"The journal {path} {damage}; it was moved to {aside} and a new one was begun."

    def close(self) -> None:
        """Close the database."""
        self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is written within is on disk at the end, or nothing is."""
        with _write_errors(self.path):
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back by itself
                    self.db.execute("ROLLBACK")
                raise

    def reserve(self, job_id: int) -> None:
        """Make sure, before an id is committed, that it is never given out again."""
        if job_id > self._reserved:
            mark = min(MAX_ID, job_id + _ID_BLOCK - 1)
            _write_mark(self._marks, mark)
            self._reserved = mark


def _open(path: Path, last_id: int, check_row: Callable[[tuple[int, str, str]], object]) -> sqlite3.Connection:
    """Open the database, or make one whose first id follows `last_id`."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        _prepare(db, last_id, check_row)
    except Exception as error:
        db.close()
        if isinstance(error, (ValueError, TypeError, KeyError)) or _result_code(error) in _DAMAGED:
            raise _DamagedError(f"is damaged ({error})") from error
        raise
    return db


def _prepare(db: sqlite3.Connection, last_id: int, check_row: Callable[[tuple[int, str, str]], object]) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA checkpoint_fullfsync = ON")  # macOS's fsync alone does not order writes
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _DamagedError(f"is damaged ({verdict})")
    _migrate(db, last_id)
    for row in db.execute("SELECT id, state, document FROM jobs WHERE finished IS NULL"):
        check_row(row)


def _result_code(error: Exception) -> int | None:
    """SQLite's primary result code. Text that is not text has none, and is damage."""
    if not isinstance(error, sqlite3.DatabaseError):
        return None
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code & 0xFF


def _migrate(db: sqlite3.Connection, last_id: int) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == len(_MIGRATIONS):
        return
    if version > len(_MIGRATIONS):
        raise _DamagedError(f"was written by a newer rvcd (its schema is {version}, ours {len(_MIGRATIONS)})")
    db.execute("BEGIN IMMEDIATE")
    for statements in _MIGRATIONS[version:]:
        for statement in statements:
            db.execute(statement)
    if version == 0:
        db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('jobs', ?)", (last_id,))
    db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
    db.execute("COMMIT")


def _set_aside(path: Path) -> Path:
    """Rename a database and its companions to a name that is free.

    The companions go first: an old write-ahead log must never lie beside a new database.
    """
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def _highest_id(damaged: Path) -> int:
    """The highest id that can still be read from a damaged database."""
    try:
        with contextlib.closing(sqlite3.connect(f"{damaged.absolute().as_uri()}?mode=ro", uri=True)) as db:
            (highest,) = db.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
    except sqlite3.Error:
        return 0
    return highest if isinstance(highest, int) and 0 <= highest < MAX_ID else 0


def _read_mark(path: Path) -> int:
    try:
        mark = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
    return mark if 0 <= mark < MAX_ID else 0


def _write_mark(path: Path, mark: int) -> None:
    draft = path.with_name(f"{path.name}.new")
    with draft.open("w", encoding="ascii") as file:
        file.write(f"{mark}\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if _result_code(error) == sqlite3.SQLITE_FULL:
            raise RvcdError(
                Code.DISK_FULL, f"The disk of {path.parent} is full; free some room and try again."
            ) from error
        raise RvcdError(Code.NOT_WRITABLE, f"The journal {path} cannot be written: {error}.") from error
    except OSError as error:
        raise write_error(error, path) from error
