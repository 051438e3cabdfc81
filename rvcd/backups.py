"""Takes that were converted in place, kept so that each can be had back bit for bit, years later.

A backup is a file `<root>/.rvcd/backup/<date>/<job>-<name>` on the volume of its original, and a sidecar of the
same name and `.json` with all that is needed to put it back: no journal, no daemon. The sidecar is written first
and the audio gets its name last, so a file with a sidecar is whole, and a sidecar without a file is a backup that
never was. Files without a sidecar are neither listed nor ever deleted.

Restoring loses nothing either: what lies at the path is first put aside itself. Undoing a path again goes one take
further back; what was put aside that way comes back by the path of its backup.
"""

import contextlib
import json
import os
import secrets
import time
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from rvcd import disk
from rvcd.errors import Code, RvcdError
from rvcd.fingerprints import Fingerprint
from rvcd.replacing import STORE_NAME, check_replaceable

_FORMAT = 1
_MAX_NAME_BYTES = 255
_UNFINISHED = ".unfinished"
_STALE_SECONDS = 86_400

Kind = Literal["take", "undone", "replaced"]
"""take: it was converted. undone: our own conversion, which a restored backup replaced; it can be made again.
replaced: anything else that a restored backup replaced, such as a newer bounce."""


@dataclass(frozen=True)
class Backup:
    """One file that was put aside."""

    path: Path
    original: Path
    """Where it came from, and where it is restored to: relative to the root on disk, so that a root may move."""
    sha256: str
    """Hexadecimal."""
    size: int
    """Bytes."""
    mtime_ns: int
    """When the original was last written, in nanoseconds since 1970."""
    made: float
    """Unix seconds."""
    job: int
    voice: str
    """What the original was converted with."""
    kind: Kind
    result: str = ""
    """sha256 of what it was converted to, once `note_result` was told."""


@dataclass(frozen=True)
class Restored:
    """What an undo did."""

    path: Path
    backup: Backup
    replaced: Backup | None
    """What lay at the path before, kept; None if nothing did or it was the same."""


@dataclass(frozen=True)
class Pruned:
    """What pruning did."""

    removed: tuple[Backup, ...]
    kept_back: tuple[tuple[Backup, str], ...]
    """Backups that were due, each with the reason why it stays, as a sentence."""


def stage_folder(root: Path) -> Path:
    """Where conversions of stems under a root are staged: on its volume, hidden from its watcher."""
    return root / STORE_NAME / "stage"


def back_up(original: Path, root: Path, job_id: int, *, voice: str = "", now: float | None = None) -> Backup:
    """Put a verified, flushed copy of a stem aside; asked again for the same job and audio, give the same backup.

    original: a path that `check_replaceable` gave for this root.

    Raises `RvcdError`: `disk_full` (less than twice the stem's size is free: room for this and for the result),
    `changed_underneath`, `permission_denied`, `not_writable`, `not_found`.
    """
    return _back_up(original, root.resolve(), "take", job_id, voice, time.time() if now is None else now)


def note_result(backup: Backup, root: Path, digest: str) -> None:
    """Add the sha256 of a take's conversion to its sidecar, so that the conversion is never mistaken for a take.

    Raises `RvcdError`: `disk_full`, `permission_denied`, `not_writable`.
    """
    try:
        _write_sidecar(replace(backup, result=digest), root.resolve())
    except OSError as error:
        raise disk.disk_error(error, backup.path) from error


def list_backups(root: Path) -> list[Backup]:
    """Every backup of a root, the newest first; none if there is no store. Raises `RvcdError`: `permission_denied`."""
    root = root.resolve()
    try:
        found = [_load(sidecar, root) for sidecar in _store(root).glob("*/*.json")]
    except OSError as error:
        raise disk.disk_error(error, root) from error
    return sorted((backup for backup in found if backup), key=lambda backup: (backup.made, backup.job), reverse=True)


def restore(
    which: Path | int,
    root: Path,
    *,
    before_replace: Callable[[Path, Fingerprint], None] = lambda _path, _fingerprint: None,
    now: float | None = None,
) -> Restored:
    """Put a backup back under its path, bit for bit; what lies there now is kept as another backup.

    which: a job (its take), a stem (its newest take; if what is there is itself a take, the one before it), or a
    backup (this one). before_replace: told the path and the fingerprint it will
    have, just before the replacement, so that a watcher can know its own work.

    Raises `RvcdError`: `no_backup`, `hash_mismatch` (the backup was damaged), `not_allowed` (its path leads out of
    the root), `changed_underneath`, `disk_full`, `permission_denied`, `not_writable`.
    """
    root = root.resolve()
    try:
        backups = list_backups(root)
        backup = _find(which, backups, root)
        target = _target_of(backup, root)
        expected, replaced = None, None
        if target.exists():
            current = disk.sha256(target)
            if current == backup.sha256:
                return Restored(target, backup, None)
            kind: Kind = "undone" if any(each.result == current for each in backups) else "replaced"
            expected = Fingerprint.of(target)
            replaced = _back_up(target, root, kind, backup.job, backup.voice, time.time() if now is None else now)
        _put_back(backup, target, root, expected, before_replace)
    except OSError as error:
        raise disk.disk_error(error, root) from error
    return Restored(target, backup, replaced)


def prune(
    root: Path,
    *,
    keep_days: float = 30,
    max_bytes: int | None = None,
    last_copies: bool = False,
    now: float | None = None,
) -> Pruned:
    """Delete backups older than `keep_days`, then the oldest until the rest takes at most `max_bytes`.

    Nothing younger than a day is touched. What is neither our own conversion nor held elsewhere, at its path or in
    another backup, stays and is told with the reason; `last_copies` deletes it too. Leftovers of interrupted backups
    are swept. Raises `RvcdError` like `list_backups`.
    """
    now = time.time() if now is None else now
    root = root.resolve()
    remaining = list_backups(root)[::-1]
    conversions = {backup.result for backup in remaining if backup.result != backup.sha256}
    removed: list[Backup] = []
    kept_back: list[tuple[Backup, str]] = []
    try:
        for backup in list(remaining):
            reason = _due(backup, remaining, keep_days, max_bytes, now)
            if reason is None:
                continue
            if last_copies or backup.sha256 in conversions or not _is_last_copy(backup, remaining):
                remaining.remove(backup)
                removed.append(backup)
                _delete(backup)
            else:
                where = "no longer holds it" if backup.original.exists() else "is gone"
                kept_back.append((backup, f"It is {reason}, but {backup.original} {where}: it is the last copy."))
        _sweep(root, now)
    except OSError as error:
        raise disk.disk_error(error, root) from error
    return Pruned(tuple(removed), tuple(kept_back))


def _back_up(original: Path, root: Path, kind: Kind, job: int, voice: str, now: float) -> Backup:
    try:
        before = Fingerprint.of(original)
        folder = _store(root) / datetime.fromtimestamp(now).date().isoformat()
        folder.mkdir(parents=True, exist_ok=True)
        disk.check_room(folder, 2 * before.size)
        digest = disk.sha256(original)
        backup = Backup(folder, original, digest, before.size, before.mtime_ns, now, job, voice, kind)
        return _save(backup, folder, root, before)
    except OSError as error:
        raise disk.disk_error(error, original) from error


def _store(root: Path) -> Path:
    return root / STORE_NAME / "backup"


def _sidecar_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _save(backup: Backup, folder: Path, root: Path, before: Fingerprint) -> Backup:
    """Copy, verify, flush, describe, name: in this order, so that a name means a whole backup."""
    number = 1
    while (path := folder / _name(backup, number)).exists() or path.is_symlink():
        known = _load(_sidecar_of(path), root)
        if known and known.original == backup.original and known.sha256 == backup.sha256 == disk.sha256(path):
            return known
        number += 1
    draft = folder / f".{secrets.token_hex(8)}{_UNFINISHED}"
    try:
        disk.clone_file(backup.original, draft)
        disk.flush_file(draft)
        if disk.sha256(draft) != backup.sha256 or Fingerprint.of(backup.original) != before:
            raise RvcdError(
                Code.CHANGED_UNDERNEATH, f"{backup.original} was written to while it was backed up; convert it again."
            )
        backup = replace(backup, path=path)
        _write_sidecar(backup, root)
        draft.rename(path)
    finally:
        disk.discard(draft)
    for made in (folder, *folder.parents[:3]):
        disk.flush_folder(made)
    return backup


def _name(backup: Backup, number: int) -> str:
    """`<job>-<name>`, short enough for a file system; the sidecar holds the whole name."""
    prefix = f"{backup.job}" if backup.kind == "take" else f"{backup.job}-{backup.kind}"
    prefix += f".{number}-" if number > 1 else "-"
    room = _MAX_NAME_BYTES - len(".json") - len(prefix) - len(os.fsencode(backup.original.suffix))
    stem = os.fsencode(backup.original.stem)
    if len(stem) > room:
        return prefix + stem[:room].decode("utf-8", "ignore") + backup.original.suffix
    return prefix + backup.original.name


def _write_sidecar(backup: Backup, root: Path) -> None:
    fields = {**asdict(backup), "format": _FORMAT, "original": str(backup.original.relative_to(root))}
    del fields["path"]
    sidecar = _sidecar_of(backup.path)
    draft = sidecar.with_name(f".{secrets.token_hex(8)}{_UNFINISHED}")
    try:
        # ASCII, so that names in whatever encoding survive as escapes.
        draft.write_text(json.dumps(fields, indent=1), encoding="ascii")
        disk.flush_file(draft)
        draft.replace(sidecar)
    finally:
        disk.discard(draft)


def _load(sidecar: Path, root: Path) -> Backup | None:
    """The backup that a sidecar describes, if its audio is there and we understand it."""
    path = sidecar.with_suffix("")
    try:
        fields: dict[str, Any] = json.loads(sidecar.read_text("ascii"))
        if fields["format"] != _FORMAT or fields["kind"] not in get_args(Kind) or not path.is_file():
            return None
        return Backup(
            path=path,
            original=root / str(fields["original"]),
            sha256=str(fields["sha256"]),
            size=int(fields["size"]),
            mtime_ns=int(fields["mtime_ns"]),
            made=float(fields["made"]),
            job=int(fields["job"]),
            voice=str(fields["voice"]),
            kind=fields["kind"],
            result=str(fields["result"]),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _find(which: Path | int, backups: list[Backup], root: Path) -> Backup:
    takes = [backup for backup in backups if backup.kind == "take"]
    if isinstance(which, int):
        found = next((backup for backup in takes if backup.job == which), None)
        what = f"job {which}"
    elif which.resolve().is_relative_to(_store(root)):
        found = next((backup for backup in backups if backup.path == which.resolve()), None)
        what = str(which)
    else:
        found = _take_before(_takes_of(which.resolve(), takes), which)
        what = f"{which} that differs from what is there"
    if found is None:
        raise RvcdError(Code.NO_BACKUP, f"There is no backup of {what}; `rvcd backups` lists what there is.")
    return found


def _takes_of(path: Path, takes: list[Backup]) -> list[Backup]:
    """Takes of one path; in whatever Unicode normalisation, if none is spelt the same."""

    def folded(name: Path) -> str:
        return unicodedata.normalize("NFC", str(name))

    same = [take for take in takes if take.original == path]
    return same or [take for take in takes if folded(take.original) == folded(path)]


def _take_before(takes: list[Backup], path: Path) -> Backup | None:
    """The newest of these takes, or, if the path holds one of them, the one before the first time it was one."""
    current = disk.sha256(path) if path.is_file() else ""
    first = max((number for number, take in enumerate(takes, start=1) if take.sha256 == current), default=0)
    return next(iter(takes[first:]), None)


def _target_of(backup: Backup, root: Path) -> Path:
    """Where a backup goes: within the root, whatever a sidecar says, and never through a link out of it."""
    target = backup.original
    if target.exists():
        return check_replaceable(target, root)
    if not target.resolve().is_relative_to(root.resolve()):
        raise RvcdError(Code.NOT_ALLOWED, f"The backup {backup.path} belongs to {target}, outside of {root}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _put_back(
    backup: Backup,
    target: Path,
    root: Path,
    expected: Fingerprint | None,
    before_replace: Callable[[Path, Fingerprint], None],
) -> None:
    folder = stage_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f"undo-{secrets.token_hex(8)}"
    try:
        disk.clone_file(backup.path, staged)
        os.utime(staged)  # DAWs know their peak caches to be stale by the time of writing alone
        disk.flush_file(staged)
        if disk.sha256(staged) != backup.sha256:
            raise RvcdError(
                Code.HASH_MISMATCH, f"The backup {backup.path} is damaged: its bytes are not those that were saved."
            )
        before_replace(target, Fingerprint.of(staged))
        disk.replace_file(target, staged, expected)
    finally:
        disk.discard(staged)


def _due(backup: Backup, remaining: list[Backup], keep_days: float, max_bytes: int | None, now: float) -> str | None:
    """Why a backup is to be deleted, if it is."""
    if backup.made > now - _STALE_SECONDS:
        return None  # its job may be about to replace the stem that still holds the same audio
    if backup.made < now - keep_days * 86_400:
        return f"older than {keep_days:g} days"
    if max_bytes is not None and sum(each.size for each in remaining) > max_bytes:
        return f"over the limit of {max_bytes / 1e6:.0f} MB"
    return None


def _is_last_copy(backup: Backup, remaining: list[Backup]) -> bool:
    if backup.kind == "undone" or any(other.sha256 == backup.sha256 for other in remaining if other != backup):
        return False
    at_path = backup.original
    return not (at_path.is_file() and at_path.stat().st_size == backup.size and disk.sha256(at_path) == backup.sha256)


def _delete(backup: Backup) -> None:
    backup.path.unlink(missing_ok=True)
    _sidecar_of(backup.path).unlink(missing_ok=True)


def _sweep(root: Path, now: float) -> None:
    """Remove what interrupted backups left, and empty folders."""
    for draft in _store(root).glob(f"*/.*{_UNFINISHED}"):
        if draft.stat().st_ctime < now - _STALE_SECONDS:
            draft.unlink(missing_ok=True)
    for sidecar in _store(root).glob("*/*.json"):
        if not sidecar.with_suffix("").exists() and sidecar.stat().st_ctime < now - _STALE_SECONDS:
            sidecar.unlink(missing_ok=True)
    for folder in _store(root).glob("*"):
        with contextlib.suppress(OSError):  # not empty, or no folder
            folder.rmdir()
