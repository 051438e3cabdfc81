"""When a bounce is finished: its size and time stood still for the settle time and its headers are complete.

A file that a DAW is still writing has its final name from the first byte, pauses for seconds, and looks
like a valid empty one until it is closed. So stillness alone says nothing, and neither does a header.
Nothing here reads the clock or lists the disk: both are arguments.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rvcd.errors import Code, RvcdError
from rvcd.fingerprints import Fingerprint
from rvcd.watch.names import fold

HeaderComplete = Callable[[Path, int], bool]
"""Whether the headers of a file of that many bytes promise just what is there; may raise `RvcdError`."""

LOCAL_SETTLE_SECONDS = 2.0
NETWORK_SETTLE_SECONDS = 6.0
MAX_SETTLE_SECONDS = 60.0
UNSTABLE_SECONDS = 600.0
MAX_HOLD_SECONDS = 3600.0
_MAX_HOLDS = 10_000
_CLOSED_SHARE = 0.25  # of the settle time, once the writer closed the file
_SAMPLE_SECONDS = 0.2
_SLOW_SAMPLE_SECONDS = 1.0  # while complete headers are awaited
_RECHECK_SECONDS = 30.0  # of a refused bounce
_SAMPLES_PER_SECOND = 5000  # at most, over all bounces
_CHECKS_PER_DECISION = 64  # headers read in one go
_HOPELESS = (Code.UNSUPPORTED_FORMAT, Code.PERMISSION_DENIED, Code.OFFLINE_FILE)
"""What time alone does not cure."""


@dataclass(frozen=True)
class Settled:
    """A bounce that is finished."""

    path: Path
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Refused:
    """A stem or folder that cannot be used as it is. Told once, and again after it changed."""

    path: Path
    error: RvcdError


class Holds:
    """Paths that somebody says are still being written, each until a time. Any thread may ask and tell.

    Paths are absolute and resolved; how a name is spelled (case, composed characters) does not matter.
    """

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def hold(self, path: Path, ttl_seconds: float, now: float) -> None:
        """Keep `path` from being taken for some seconds, 3600 at most. Raises `RvcdError` (`busy`): too many holds."""
        if len(self._until) >= _MAX_HOLDS:
            self._until = {name: until for name, until in self._until.copy().items() if until > now}
        if len(self._until) >= _MAX_HOLDS:
            raise RvcdError(Code.BUSY, f"{path} cannot be held: {_MAX_HOLDS} files are; release some first.")
        self._until[fold(path)] = now + min(ttl_seconds, MAX_HOLD_SECONDS)

    def release(self, path: Path) -> None:
        """`path` is finished. Unknown paths are no error."""
        self._until.pop(fold(path), None)

    def is_held(self, path: Path, now: float) -> bool:
        """Whether `path` must not be taken yet."""
        return bool(self._until) and self._until.get(fold(path), -math.inf) > now


def admit(path: Path, fingerprint: Fingerprint, header_complete: HeaderComplete) -> None:
    """Let an explicit request pass: it need not settle, but its headers must be complete.

    Raises `RvcdError`: `file_unstable`, or what `header_complete` raises.
    """
    if fingerprint.size == 0 or not header_complete(path, fingerprint.size):
        raise RvcdError(
            Code.FILE_UNSTABLE, f"{path} is still being written, or was cut short: its headers promise another length."
        )


@dataclass
class _Bounce:
    fingerprint: Fingerprint
    since: float
    """When the fingerprint was first seen."""
    sampled: float
    """When it was last seen."""
    next_sample: float
    relapses: int = 0
    closed: bool = False
    judged: bool = False
    """It stood still for long enough to have its headers read."""
    next_check: float = -math.inf
    """infinity: settled, and told so."""
    refused: RvcdError | None = None


class Gate:
    """Tells which of the observed bounces are finished."""

    def __init__(self, header_complete: HeaderComplete, holds: Holds, settle_seconds: float) -> None:
        self._header_complete = header_complete
        self._holds = holds
        self._settle_seconds = settle_seconds
        self._bounces: dict[Path, _Bounce] = {}

    def __contains__(self, path: Path) -> bool:
        return path in self._bounces

    def __len__(self) -> int:
        return len(self._bounces)

    @property
    def refusals(self) -> dict[Path, RvcdError]:
        """Bounces that were refused and are still there."""
        return {path: bounce.refused for path, bounce in self._bounces.items() if bounce.refused}

    def observe(self, path: Path, fingerprint: Fingerprint, now: float) -> None:
        """A sample: `path` looks like this now."""
        bounce = self._bounces.get(path)
        if bounce is None:
            self._bounces[path] = _Bounce(fingerprint, now, now, now + self._sample_seconds())
        elif bounce.fingerprint != fingerprint:
            relapses = bounce.relapses + bounce.judged
            self._bounces[path] = _Bounce(fingerprint, now, now, now + self._sample_seconds(), relapses)
        else:
            bounce.sampled = now
            bounce.next_sample = self._next_sample(bounce, now)

    def note_closed(self, path: Path, now: float) -> None:
        """The writer closed `path` after its last observed change, so less patience will do."""
        bounce = self._bounces.get(path)
        if bounce is not None:
            bounce.closed = True
            bounce.next_sample = min(bounce.next_sample, max(now, self._due(bounce)))

    def forget(self, path: Path) -> None:
        """`path` is gone, or is no bounce."""
        self._bounces.pop(path, None)

    def take(self, path: Path, fingerprint: Fingerprint) -> None:
        """Somebody took `path` in this state; a newer bounce of that name stays."""
        bounce = self._bounces.get(path)
        if bounce is not None and bounce.fingerprint == fingerprint:
            del self._bounces[path]

    def postpone(self, path: Path, fingerprint: Fingerprint, until: float) -> None:
        """Nobody could take `path` in this state: tell of it again then."""
        bounce = self._bounces.get(path)
        if bounce is not None and bounce.fingerprint == fingerprint:
            bounce.next_check = bounce.next_sample = until

    def to_sample(self, now: float) -> list[Path]:
        """Which bounces should be observed now."""
        return [path for path, bounce in self._bounces.items() if bounce.next_sample <= now]

    def next_wakeup(self) -> float:
        """When the next bounce should be observed; infinity if none should."""
        return min((bounce.next_sample for bounce in self._bounces.values()), default=math.inf)

    def decide(self, now: float) -> list[Settled | Refused]:
        """Tell of each bounce that is finished, or cannot be used, and was not told of before."""
        verdicts: list[Settled | Refused] = []
        checks_left = _CHECKS_PER_DECISION
        for path, bounce in self._bounces.items():
            if bounce.sampled < self._due(bounce) or now < bounce.next_check or self._holds.is_held(path, now):
                continue
            if checks_left == 0:
                bounce.next_sample = now
                continue
            checks_left -= 1
            verdict = self._judge(path, bounce, now)
            if verdict is not None:
                verdicts.append(verdict)
        return verdicts

    def _judge(self, path: Path, bounce: _Bounce, now: float) -> Settled | Refused | None:
        bounce.judged = True
        try:
            admit(path, bounce.fingerprint, self._header_complete)
        except RvcdError as error:
            return self._doubt(path, bounce, error, now)
        bounce.refused = None
        bounce.next_check = bounce.next_sample = math.inf
        return Settled(path, bounce.fingerprint)

    def _doubt(self, path: Path, bounce: _Bounce, error: RvcdError, now: float) -> Refused | None:
        """Wait for complete headers, or refuse the bounce and keep looking from time to time."""
        if error.code not in _HOPELESS:
            if now - bounce.since < UNSTABLE_SECONDS:
                bounce.next_check = bounce.next_sample = now + _SLOW_SAMPLE_SECONDS
                return None
            minutes = round(UNSTABLE_SECONDS / 60)
            error = RvcdError(
                Code.FILE_UNSTABLE, f"{error.sentence} Nothing changed for {minutes} minutes; export it again."
            )
        bounce.next_check = bounce.next_sample = now + _RECHECK_SECONDS
        if bounce.refused is not None:
            return None
        bounce.refused = error
        return Refused(path, error)

    def _due(self, bounce: _Bounce) -> float:
        """From when on an unchanged sample counts as settled."""
        patience = min(self._settle_seconds * 2.0**bounce.relapses, MAX_SETTLE_SECONDS)
        return bounce.since + patience * (_CLOSED_SHARE if bounce.closed else 1.0)

    def _next_sample(self, bounce: _Bounce, now: float) -> float:
        if bounce.next_check > now:
            return bounce.next_check
        due = self._due(bounce)
        return min(due, now + self._sample_seconds()) if due > now else now + self._sample_seconds()

    def _sample_seconds(self) -> float:
        return max(_SAMPLE_SECONDS, len(self._bounces) / _SAMPLES_PER_SECOND)
