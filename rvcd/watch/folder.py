"""One hot folder: the scanner says what is there, the gate when it is finished, the ledger whether it is new."""

import logging
import math
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from rvcd.errors import Code, RvcdError
from rvcd.fingerprints import Fingerprint
from rvcd.watch import gate as gates
from rvcd.watch.doorbell import Doorbell
from rvcd.watch.gate import Gate, HeaderComplete, Holds, Refused, Settled
from rvcd.watch.ledger import Kind, Ledger
from rvcd.watch.scanner import Changes, Scanner
from rvcd.watch.volumes import is_network_volume

log = logging.getLogger(__name__)

_QUIET_SCAN_SECONDS = 30.0
_DEAF_SCAN_SECONDS = 3.0  # without a doorbell
_SCAN_REST = 250  # a scan is followed by this many times the processor time that it took
_ROOT_CHECK_SECONDS = 2.0
_REARM_SECONDS = 30.0
_BREATH_SECONDS = 0.05  # between steps that events ask for: a bounce being written rings hundreds of times a second
_BREATH_SHARE = 4  # times the processor time of the step before
_POSTPONE_SECONDS = 5.0


@dataclass(frozen=True)
class Ready:
    """A finished bounce, to be converted. Answer with `HotFolder.take` or `HotFolder.postpone`."""

    path: Path
    fingerprint: Fingerprint
    subfolder: PurePath
    """Where below the root it lies; `.` for the root itself."""


@dataclass(frozen=True)
class Counts:
    """What a hot folder holds."""

    stems: int = 0
    pending: int = 0
    """Bounces that nobody took yet, refused ones included."""
    offered: int = 0
    """Stems that were there when the folder was first seen, and are converted only when somebody asks."""
    is_there: bool = False
    """Whether the root exists."""
    is_armed: bool = False
    """Whether events tell of changes; without them the folder is polled."""


@dataclass
class _Inbox:
    """What other threads have to say, until the next step hears it."""

    touched: set[Path] = field(default_factory=set)
    closed: set[Path] = field(default_factory=set)
    taken: list[Ready] = field(default_factory=list)
    postponed: list[Ready] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.touched or self.closed or self.taken or self.postponed)


class HotFolder:
    """Watches one root for bounces.

    `step` does all the work; call it when `next_wakeup` says so, from one thread at a time. Everything else may be
    called from any thread. The first step over thousands of stems takes a third of a second, and on a network volume
    any step can be as slow as the server: an event loop leaves it to another thread.
    """

    def __init__(
        self,
        root: Path,
        ledger: Ledger,
        holds: Holds,
        header_complete: HeaderComplete,
        *,
        settle_seconds: float | None = None,
        convert_present: bool = False,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """`settle_seconds` None: by the kind of volume. `wake` is called from any thread when a step is due sooner."""
        self.root = Path(os.path.realpath(root))
        """Resolved once: a hot folder may be a symbolic link to another disk."""
        self._ledger = ledger
        self._holds = holds
        self._header_complete = header_complete
        self._settle_seconds = settle_seconds
        self._convert_present = convert_present
        self._wake = wake
        self._scanner = Scanner(self.root)
        self._doorbell = Doorbell(self.root, self.note_touched, self.note_closed)
        self._is_network = False
        self._gate = self._new_gate()
        self._identity: tuple[int, int] | None = None
        self._known_dev: int | None = None
        self._is_first_sight = True
        self._offered: set[Path] = set()
        self._offline: dict[Path, RvcdError] = {}
        self._told: dict[Path, RvcdError] = {}
        self._next_root_check = self._next_scan = self._next_arming = self._next_hearing = -math.inf
        self._inbox = _Inbox()
        self._inbox_lock = threading.Lock()
        self.counts = Counts()
        """As of the last step."""
        self.refusals: dict[Path, RvcdError] = {}
        """Stems and folders that cannot be used as they are, as of the last step."""

    def step(self, now: float) -> list[Ready | Refused]:
        """Look where it is due and tell of finished bounces and of trouble, each once. `now`: monotonic seconds.

        Raises `RvcdError` if the ledger cannot be read; nothing is lost then, and the next step looks again.
        """
        started = time.thread_time()
        inbox = self._swap_inbox()
        self._hear_answers(inbox, now)
        if now >= self._next_root_check or self.root in inbox.touched:
            self._check_root(now)
        reports: list[Ready | Refused] = []
        if self._identity is not None:
            self._look(inbox.touched | inbox.closed, now)
            for path in inbox.closed:
                self._gate.note_closed(path, now)
            reports += [self._report(verdict) for verdict in self._gate.decide(now)]
        reports += self._news()
        self._count()
        self._next_hearing = now + max(_BREATH_SECONDS, _BREATH_SHARE * (time.thread_time() - started))
        return reports

    def next_wakeup(self) -> float:
        """When `step` is due, in its own seconds."""
        due = self._next_hearing if self._inbox else math.inf
        if self._identity is not None:
            due = min(due, self._next_scan, self._gate.next_wakeup())
        return min(due, self._next_root_check)

    def take(self, ready: Ready) -> None:
        """The bounce became a job and is safe in the journal: never tell of it again in this state."""
        self._hear(lambda inbox: inbox.taken.append(ready))

    def postpone(self, ready: Ready) -> None:
        """There is no room for the bounce now: tell of it again in a few seconds."""
        self._hear(lambda inbox: inbox.postponed.append(ready))

    def admit(self, path: Path, now: float) -> Ready:
        """A bounce that somebody names: it need not settle, but must be complete. Answer with `take`.

        Raises `RvcdError`: `not_found`, `file_in_use` (held), `file_unstable`, or what reading its headers raises.
        """
        if self._holds.is_held(path, now):
            raise RvcdError(Code.FILE_IN_USE, f"{path} is held by the program that writes it; release it first.")
        try:
            fingerprint = Fingerprint.of(path)
        except OSError as error:
            raise RvcdError(Code.NOT_FOUND, f"There is no file {path}: {error.strerror or error}.") from error
        gates.admit(path, fingerprint, self._header_complete)
        return Ready(path, fingerprint, self.subfolder(path))

    def subfolder(self, path: Path) -> PurePath:
        """Where below the root a stem lies. Raises `ValueError` if it does not."""
        return PurePath(path.parent.relative_to(self.root))

    def rescan(self) -> None:
        """Look at everything in the next step."""
        self.note_touched(self.root)

    def note_touched(self, path: Path) -> None:
        """Something happened to a stem or folder."""
        self._hear(lambda inbox: inbox.touched.add(path))

    def note_closed(self, path: Path) -> None:
        """The writer of a stem is done with it, as far as it knows."""
        self._hear(lambda inbox: inbox.closed.add(path))

    def close(self) -> None:
        """Stop listening; no step may follow."""
        self._doorbell.disarm()

    def _hear(self, put: Callable[[_Inbox], None]) -> None:
        with self._inbox_lock:
            is_first = not self._inbox
            put(self._inbox)
        if is_first:
            self._wake()

    def _swap_inbox(self) -> _Inbox:
        with self._inbox_lock:
            inbox, self._inbox = self._inbox, _Inbox()
        return inbox

    def _hear_answers(self, inbox: _Inbox, now: float) -> None:
        for ready in inbox.taken:
            self._gate.take(ready.path, ready.fingerprint)
            self._offered.discard(ready.path)
            try:
                self._remember(ready)
            except RvcdError as error:
                log.warning("%s might be converted again after a restart: %s", ready.path, error)
        for ready in inbox.postponed:
            self._gate.postpone(ready.path, ready.fingerprint, now + _POSTPONE_SECONDS)

    def _remember(self, ready: Ready) -> None:
        with self._ledger.batch():
            self._ledger.record(Kind.TAKEN, ready.path, ready.fingerprint)
            if ready.path not in self._gate:  # else a newer bounce of that name waits already
                self._ledger.drop_pending(ready.path)

    def _check_root(self, now: float) -> None:
        """Notice that the root vanished, came back or became another folder, and keep the doorbell armed."""
        self._next_root_check = now + _ROOT_CHECK_SECONDS
        identity = _identity(self.root)
        if identity != self._identity:
            self._doorbell.disarm()
            self._identity = identity
            self._scanner.forget()
            self._offered.clear()
            self._offline.clear()
            if identity is not None:
                self._arrive(identity)
            self._gate = self._new_gate()
        if identity is not None and not self._is_network and not self._doorbell.is_alive() and now >= self._next_arming:
            self._next_arming = now + _REARM_SECONDS
            self._doorbell.arm()
            self._next_scan = now  # for what happened while nobody listened

    def _arrive(self, identity: tuple[int, int]) -> None:
        """Another volume is met like the first: what it holds is offered. A folder made anew holds bounces."""
        self._is_first_sight = self._known_dev != identity[0]
        self._known_dev = identity[0]
        self._is_network = is_network_volume(self.root)
        self._next_arming = self._next_scan = -math.inf

    def _new_gate(self) -> Gate:
        seconds = gates.NETWORK_SETTLE_SECONDS if self._is_network else gates.LOCAL_SETTLE_SECONDS
        return Gate(self._header_complete, self._holds, self._settle_seconds or seconds)

    def _look(self, touched: set[Path], now: float) -> None:
        sampled = touched.union(self._gate.to_sample(now))
        if now >= self._next_scan or self.root in touched:
            changes = self._scanner.scan()
            pause = _QUIET_SCAN_SECONDS if self._doorbell.is_alive() else _DEAF_SCAN_SECONDS
            self._next_scan = now + max(pause, _SCAN_REST * changes.cpu_seconds)
        elif sampled:
            changes = self._scanner.look(sampled)
        else:
            return
        try:
            self._sort_all(changes, now)
        except RvcdError:
            self._scanner.forget()
            self._next_scan = now + _POSTPONE_SECONDS
            raise
        for path in sampled - changes.changed.keys():
            fingerprint = self._scanner.fingerprint(path)
            if fingerprint is not None and path in self._gate:
                self._gate.observe(path, fingerprint, now)

    def _sort_all(self, changes: Changes, now: float) -> None:
        if changes.changed or changes.gone:
            with self._ledger.batch():
                for path in changes.gone:
                    self._drop(path)
                for path, fingerprint in changes.changed.items():
                    self._sort(path, fingerprint, now, is_offline=path in changes.offline)
        self._is_first_sight = False

    def _sort(self, path: Path, fingerprint: Fingerprint, now: float, *, is_offline: bool) -> None:
        """Tell a new bounce from what is known, or was there first."""
        self._offline.pop(path, None)
        kind = self._ledger.kind_of(path, fingerprint)
        if kind is None and self._is_first_sight and not self._ledger.is_pending(path):
            kind = Kind.PRESENT
            self._ledger.record(kind, path, fingerprint)
        if kind is None or (kind is Kind.PRESENT and self._convert_present):
            self._offered.discard(path)
            if path not in self._gate:
                self._ledger.note_pending(path)
            if is_offline:
                self._gate.forget(path)
                self._offline[path] = RvcdError(
                    Code.OFFLINE_FILE, f"{path} is in the cloud, not on this disk; download it first."
                )
            else:
                self._gate.observe(path, fingerprint, now)
            return
        self._drop(path)
        if kind is Kind.PRESENT:
            self._offered.add(path)

    def _drop(self, path: Path) -> None:
        self._offered.discard(path)
        if self._offline.pop(path, None) or path in self._gate:
            self._gate.forget(path)
            self._ledger.drop_pending(path)

    def _report(self, verdict: Settled | Refused) -> Ready | Refused:
        if isinstance(verdict, Refused):
            return verdict
        return Ready(verdict.path, verdict.fingerprint, self.subfolder(verdict.path))

    def _news(self) -> list[Refused]:
        """Troubles outside of the gate that were not there at the last step."""
        troubles = self._scanner.problems | self._offline
        if self._identity is None:
            troubles[self.root] = RvcdError(
                Code.NOT_FOUND, f"The hot folder {self.root} is not there; create it, or mount its volume."
            )
        news = [Refused(path, error) for path, error in troubles.items() if path not in self._told]
        self._told = troubles
        self.refusals = troubles | self._gate.refusals
        return news

    def _count(self) -> None:
        self.counts = Counts(
            stems=len(self._scanner),
            pending=len(self._gate) + len(self._offline),
            offered=len(self._offered),
            is_there=self._identity is not None,
            is_armed=self._doorbell.is_alive(),
        )


def _identity(root: Path) -> tuple[int, int] | None:
    """Device and inode of a folder; None if there is none."""
    with suppress(OSError):
        found = root.stat()
        if stat.S_ISDIR(found.st_mode):
            return found.st_dev, found.st_ino
    return None
