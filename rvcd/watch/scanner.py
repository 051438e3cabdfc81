"""The truth about a hot folder: which stems it holds, and which of them changed since the last look.

Every look reads the size and time of each stem. Folders whose own time stands still are not skipped:
a DAW that bounces over an existing stem changes the file and leaves the folder as it was.
"""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rvcd.errors import Code, RvcdError
from rvcd.fingerprints import Fingerprint
from rvcd.watch.names import is_hidden, is_stem

MAX_STEMS = 200_000
_SF_DATALESS = 0x40000000  # macOS, sys/stat.h: the content is in the cloud, and opening the file fetches it

_Row = tuple[int, int, int, int, bool]
"""dev, ino, size in bytes, mtime in ns, offline."""


@dataclass
class Changes:
    """What one look found different from the looks before."""

    changed: dict[Path, Fingerprint] = field(default_factory=dict)
    """Stems that are new or no longer as they were."""
    offline: set[Path] = field(default_factory=set)
    """Those of `changed` whose content is not on this machine."""
    gone: set[Path] = field(default_factory=set)
    cpu_seconds: float = 0.0


@dataclass
class _Listing:
    stems: dict[str, _Row]
    folders: set[str]


class Scanner:
    """Walks a resolved root and remembers what it saw. Symbolic links below the root are not followed."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)
        self._listings: dict[str, _Listing] = {}
        self._count = 0
        self.problems: dict[Path, RvcdError] = {}
        """Folders that could not be listed at the last look, and why."""

    def __len__(self) -> int:
        return self._count

    def scan(self) -> Changes:
        """Look at everything."""
        self.problems = {}
        return self._look([self._root], deep=True)

    def look(self, touched: Iterable[Path]) -> Changes:
        """Look at some stems and folders only.

        A stem known by that very name costs one system call. Anything else is found by listing the nearest
        known folder: events may spell a name differently from its folder, and the folder's spelling counts.
        """
        changes = Changes()
        folders: dict[str, None] = {}
        for path in touched:
            folder, name = os.path.split(path)
            listing = self._listings.get(folder)
            if listing is not None and name in listing.stems:
                self._look_at_stem(folder, name, listing, changes)
            else:
                folders[self._nearest_known(os.fspath(path))] = None
        found = self._look(folders, deep=False)
        found.changed |= changes.changed
        found.offline |= changes.offline
        found.gone |= changes.gone
        return found

    def fingerprint(self, path: Path) -> Fingerprint | None:
        """How a stem looked at the last look; None if there was none."""
        listing = self._listings.get(os.fspath(path.parent))
        row = listing.stems.get(path.name) if listing else None
        return Fingerprint(*row[:4]) if row else None

    def forget(self) -> None:
        """Know nothing any more: the next look reports every stem."""
        self._listings.clear()
        self.problems = {}
        self._count = 0

    def _nearest_known(self, folder: str) -> str:
        while folder not in self._listings and len(folder) > len(self._root):
            folder = os.path.dirname(folder)  # noqa: PTH120
        return folder if folder in self._listings else self._root

    def _look_at_stem(self, folder: str, name: str, listing: _Listing, changes: Changes) -> None:
        path = Path(folder, name)
        try:
            row = _row(path.lstat())
        except OSError:
            del listing.stems[name]
            self._count -= 1
            changes.gone.add(path)
            return
        if row != listing.stems[name]:
            listing.stems[name] = row
            _note(changes, path, row)

    def _look(self, folders: Iterable[str], *, deep: bool) -> Changes:
        """List these folders and every new one below; if `deep`, every one below."""
        started = time.thread_time()
        changes = Changes()
        waiting = list(folders)
        while waiting:
            folder = waiting.pop()
            known = self._listings.get(folder)
            listing = self._list(folder)
            if listing is None:
                self._drop(folder, changes)
                continue
            self._listings[folder] = listing
            self._count += len(listing.stems) - (len(known.stems) if known else 0)
            self._compare(folder, known, listing, changes)
            new = listing.folders if deep or known is None else listing.folders - known.folders
            waiting.extend(os.path.join(folder, name) for name in new)  # noqa: PTH118
        changes.cpu_seconds = time.thread_time() - started
        return changes

    def _compare(self, folder: str, known: _Listing | None, listing: _Listing, changes: Changes) -> None:
        before = known.stems if known else {}
        if before != listing.stems:
            for name, row in listing.stems.items():
                if before.get(name) != row:
                    _note(changes, Path(folder, name), row)
            changes.gone.update(Path(folder, name) for name in before.keys() - listing.stems.keys())
        for name in known.folders - listing.folders if known else ():
            self._drop(os.path.join(folder, name), changes)  # noqa: PTH118

    def _drop(self, folder: str, changes: Changes) -> None:
        below = folder + os.sep
        for known in [known for known in self._listings if known == folder or known.startswith(below)]:
            stems = self._listings.pop(known).stems
            self._count -= len(stems)
            changes.gone.update(Path(known, name) for name in stems)

    def _list(self, folder: str) -> _Listing | None:
        """What a folder holds, or None if it cannot be told."""
        path = Path(folder)
        self.problems.pop(path, None)
        stems: dict[str, _Row] = {}
        folders: set[str] = set()
        try:
            with os.scandir(folder) as entries:
                for entry in _visible(entries):
                    if entry.is_dir(follow_symlinks=False):
                        folders.add(entry.name)
                    elif is_stem(entry.name) and entry.is_file(follow_symlinks=False):
                        self._list_stem(entry, stems)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.problems[path] = unlistable(path, error)
            return None
        if self._count + len(stems) > MAX_STEMS and folder not in self._listings:
            self.problems[path] = RvcdError(
                Code.BAD_CONFIGURATION,
                f"{path} is not watched: {self._root} holds more than {MAX_STEMS} stems; watch a smaller folder.",
            )
            return None
        return _Listing(stems, folders)

    @staticmethod
    def _list_stem(entry: "os.DirEntry[str]", stems: dict[str, _Row]) -> None:
        try:
            stems[entry.name] = _row(entry.stat(follow_symlinks=False))
        except FileNotFoundError:
            return  # deleted while we listed


def is_offline(stat: os.stat_result) -> bool:
    """Whether the content of a file is in the cloud only (macOS: iCloud and other file providers)."""
    return bool(getattr(stat, "st_flags", 0) & _SF_DATALESS)


def unlistable(folder: Path, error: OSError) -> RvcdError:
    """Say in our words why a folder could not be listed."""
    code = Code.PERMISSION_DENIED if isinstance(error, PermissionError) else Code.NOT_FOUND
    return RvcdError(code, f"{folder} cannot be listed: {error.strerror or error}; allow rvcd to read it.")


def _visible(entries: "Iterator[os.DirEntry[str]]") -> "Iterator[os.DirEntry[str]]":
    return (entry for entry in entries if not is_hidden(entry.name))


def _row(stat: os.stat_result) -> _Row:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, is_offline(stat)


def _note(changes: Changes, path: Path, row: _Row) -> None:
    changes.changed[path] = Fingerprint(*row[:4])
    if row[4]:
        changes.offline.add(path)
