"""Where takes are kept: the roots whose `.rvcd` holds backups, found with and without a daemon."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rvcd import backups, paths
from rvcd.config import Config, read
from rvcd.errors import Code, RvcdError
from rvcd.fingerprints import Fingerprint
from rvcd.journal import Journal
from rvcd.replacing import STORE_NAME
from rvcd.watch.ledger import Kind, Ledger


def configuration() -> Config:
    """The configuration as far as it can be read: a take must be had back even if it has a mistake."""
    file = paths.config_file()
    return read(file)[0] if file.exists() else Config()


def known_roots() -> list[Path]:
    """Every root that is configured, or that a job of the journal kept its take in."""
    noted: list[Path] = []
    if paths.journal_file().exists():
        with contextlib.closing(Journal(paths.journal_file())) as journal:
            jobs = journal.recent(limit=-1)
        noted = [root for job in jobs if job.backup and (root := _root_of_backup(job.backup))]
    roots = [root.resolve() for root in (*configuration().allowed_roots, *noted)]
    return [root for root in dict.fromkeys(roots) if _has_store(root)]


def roots_above(path: Path) -> list[Path]:
    """The folders around a path that keep takes, the nearest first: also where nothing is configured any more."""
    return [folder for folder in path.resolve().parents if _has_store(folder)]


def restore(target: Path | int) -> backups.Restored:
    """Put a take back without a daemon, known to a later one as no bounce.

    Raises `RvcdError` like `rvcd.backups.restore`; `bad_request` for a job that may be one of two.
    """
    roots = roots_above(target) if isinstance(target, Path) else _roots_of_job(target)
    for root in roots:
        try:
            return backups.restore(target, root, before_replace=_remember)
        except RvcdError as error:
            if error.code is not Code.NO_BACKUP:
                raise
    what = f"job {target}" if isinstance(target, int) else target
    raise RvcdError(Code.NO_BACKUP, f"There is no backup of {what}; `rvcd backups` lists what there is.")


def _remember(original: Path, fingerprint: Fingerprint) -> None:
    with contextlib.closing(Ledger(paths.home() / "ledger.db")) as ledger:
        ledger.record(Kind.OURS, original, fingerprint)


def _roots_of_job(job: int) -> list[Path]:
    """Where the take of a job is kept; a number may have been given twice if a journal was lost."""
    roots = [root for root in known_roots() if job in _takes(root)]
    if len(roots) > 1:
        places = " and ".join(map(str, roots))
        raise RvcdError(Code.BAD_REQUEST, f"Takes of a job {job} lie in {places}; name the path of the stem instead.")
    return roots


def _takes(root: Path) -> Iterator[int]:
    return (backup.job for backup in backups.list_backups(root) if backup.kind == "take")


def _root_of_backup(backup: Path) -> Path | None:
    """`ROOT` of `ROOT/.rvcd/backup/DATE/NAME`."""
    return next((folder.parent for folder in backup.parents if folder.name == STORE_NAME), None)


def _has_store(root: Path) -> bool:
    return (root / STORE_NAME / "backup").is_dir()
