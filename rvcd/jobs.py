"""What is asked, what a job is, and what is told about it: plain frozen values that all rooms share."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

Mode = Literal["replace", "sibling", "out"]
Origin = Literal["osc", "watch", "spool"]
Stage = Literal["load", "analysis", "pitch", "voice", "output", "write"]


class JobState(StrEnum):
    """Where a job stands. The last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    STAGED = "staged"
    """Converted and verified in the stage folder; only the replacement is left."""
    COMMITTED = "committed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen."""
        return self in (JobState.COMMITTED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class JobRequest:
    """One stem to convert, as somebody asked for it."""

    path: Path
    voice: str | None = None
    """None: the default voice of the hot folder or the configuration."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Changes to the settings that would hold otherwise, by the names of `rvcd.settings.Settings`."""
    mode: Mode = "replace"
    out: Path | None = None
    priority: int = 0
    """Higher goes first."""
    backup: bool = True
    dry_run: bool = False
    """Check everything, convert nothing."""
    origin: Origin = "osc"
    client: str = ""
    """Who asked: an opaque key that the asker's room can answer to."""
    req: str = ""
    """The asker's own name for the request, echoed."""


@dataclass(frozen=True)
class Job:
    """A request that was accepted."""

    id: int
    request: JobRequest
    state: JobState
    created: float
    """Unix seconds."""
    started: float | None = None
    finished: float | None = None
    fraction: float = 0.0
    stage: str = ""
    attempts: int = 0
    code: str = ""
    message: str = ""
    backup: Path | None = None
    """The copy of the take, once there is one."""
    staged: Path | None = None
    """The verified result before it takes its place; kept in later states as a note of where it was."""
    expected: tuple[int, ...] = ()
    """Fingerprint that the stem must still have when the staged result replaces it."""
    result: Path | None = None
    """Where the converted stem is: the request's path, a sibling, or `out`."""
    seconds_of_audio: float = 0.0
    voice: str = ""
    """The one that converts it, once that is decided."""


@dataclass(frozen=True)
class Queued:
    """The job waits; position 0 is next."""

    job: Job
    position: int


@dataclass(frozen=True)
class Started:
    """The engine took the job."""

    job: Job
    device: str


@dataclass(frozen=True)
class Progressed:
    """The job went on; `job.fraction` never falls."""

    job: Job
    seconds_left: float
    """-1: not known."""


@dataclass(frozen=True)
class Finished:
    """The job ended; its state is committed, failed or cancelled. Exactly one of these is told per job."""

    job: Job


JobEvent = Queued | Started | Progressed | Finished
