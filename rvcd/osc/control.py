"""What the OSC room asks of the daemon, and what the daemon tells it."""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, TypeVar

from rvcd.jobs import Job, JobEvent, JobRequest

JobFilter = Literal["active", "recent", "failed"]
WatchAction = Literal["pause", "resume", "rescan"]
DaemonState = Literal["idle", "busy", "paused", "loading", "draining", "degraded"]
VoiceState = Literal["cold", "loading", "warm", "bad"]


@dataclass(frozen=True)
class About:
    """What is running, and where."""

    version: str
    platform: str
    backend: str
    """What the engine computes on, "" until it is known."""
    build: str = ""


@dataclass(frozen=True)
class Status:
    """How the daemon is."""

    state: DaemonState
    queued: int
    running: int
    done: int
    failed: int
    models_warm: int
    active_model: str
    uptime_seconds: int
    memory_megabytes: float
    detail: str = ""
    """Why it is degraded: one sentence, "" if it is not."""


@dataclass(frozen=True)
class ModelInfo:
    """One voice, as the library knows it."""

    name: str
    state: VoiceState
    sample_rate: int
    """Hz."""
    megabytes: float


@dataclass(frozen=True)
class FolderInfo:
    """One hot folder."""

    path: Path
    state: str
    """watching, paused, missing, ..."""
    pending: int
    """Bounces that are not settled, or were there at the start and wait to be asked for."""
    unreadable: int
    voice: str = ""


@dataclass(frozen=True)
class Accepted:
    """A request became a job; position 0 is next."""

    job_id: int
    position: int


@dataclass(frozen=True)
class ModelState:
    """A voice became cold, loading, warm or bad."""

    model: str
    state: str


@dataclass(frozen=True)
class FolderState:
    """A hot folder is watched, paused or gone."""

    path: Path
    state: str


@dataclass(frozen=True)
class ServerState:
    """The daemon starts or goes."""

    state: Literal["startup", "draining", "shutdown"]


Event = JobEvent | ModelState | FolderState | ServerState

_Result = TypeVar("_Result")
Soon: TypeAlias = _Result | Awaitable[_Result]
"""A method may be plain, if it returns within a millisecond, or `async`."""


class Control(Protocol):
    """The daemon, seen from the OSC room.

    Any method may raise `RvcdError`, which is told to the asker. Questions are answered from memory. Commands may
    take their time; the answers to one client keep the order of its requests.
    """

    def about(self) -> About:
        """What is running."""
        ...

    def status(self) -> Status:
        """How it is."""
        ...

    def job(self, job_id: int) -> Job:
        """A job, also one that ended long ago. Raises `RvcdError`: `not_found`."""
        ...

    def jobs(self, which: JobFilter, limit: int) -> Sequence[Job]:
        """Live jobs in the order of the queue, or ended ones, the latest first."""
        ...

    def models(self) -> Sequence[ModelInfo]:
        """All voices."""
        ...

    def folders(self) -> Sequence[FolderInfo]:
        """All hot folders."""
        ...

    def submit(self, request: JobRequest) -> Soon[Accepted]:
        """Queue a job, or refuse at once. The path is absolute; whether it is allowed is judged here."""
        ...

    def cancel(self, job_id: int | None, client: str) -> Soon[None]:
        """Cancel a job, or all that `client` asked for. The event follows when it is true."""
        ...

    def watch(self, action: WatchAction) -> Soon[None]:
        """Pause or resume taking bounces, or look through all hot folders now."""
        ...

    def hold(self, path: Path, seconds: float) -> Soon[None]:
        """Leave a path alone until it is released or the time is over."""
        ...

    def release(self, path: Path) -> Soon[None]:
        """The path is finished: no more settle time."""
        ...

    async def restore(self, target: int | Path) -> None:
        """Put the original of a job, or of a path, back."""
        ...

    async def load_model(self, model: str) -> None:
        """Warm a voice; returns when it is warm."""
        ...

    async def unload_model(self, model: str) -> None:
        """Let a voice go cold."""
        ...
