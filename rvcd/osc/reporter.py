"""Events out: to whom each one goes, how often, and what a newcomer is told first."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from rvcd.errors import Code
from rvcd.jobs import Finished, Job, JobEvent, JobState, Progressed, Queued, Started
from rvcd.osc.clients import Client, Clients
from rvcd.osc.control import Event, FolderState, ModelState, ServerState, Status

HEARTBEAT_SECONDS = 5.0
MIN_PROGRESS_SECONDS = 0.1
MAX_PROGRESS_SECONDS = 2.0
TICK_SECONDS = 0.05

_RETRYABLE = frozenset(
    {
        *(Code.BUSY, Code.FILE_UNSTABLE, Code.FILE_IN_USE, Code.CHANGED_UNDERNEATH, Code.OFFLINE_FILE, Code.DISK_FULL),
        *(Code.GPU_ERROR, Code.OUT_OF_MEMORY, Code.ENGINE_DIED, Code.SHUTTING_DOWN),
    }
)


class _Telling(NamedTuple):
    """An event as it is sent, without its sequence number."""

    topic: str
    address: str
    values: tuple[Any, ...]


@dataclass
class _LiveJob:
    latest: JobEvent
    progress_sent: float
    is_held_back: bool = False


class Reporter:
    """Tells subscribers what happens, and requesters how their jobs end.

    Time comes from the clock that it is given; `tick` does what is due, so nothing here waits.
    """

    def __init__(
        self, clients: Clients, status: Callable[[], Status], clock: Callable[[], float], instance: str
    ) -> None:
        self._clients = clients
        self._status = status
        self._clock = clock
        self._instance = instance
        self._live: dict[int, _LiveJob] = {}
        self._next_heartbeat = clock() + HEARTBEAT_SECONDS
        self._has_unacked = False

    def publish(self, event: Event) -> None:
        """Tell an event; progress at most ten times a second, the latest of it."""
        if isinstance(event, (Queued, Started, Progressed, Finished)) and not self._note(event):
            return
        self._tell(event)

    def latest(self, job: Job) -> JobEvent:
        """Last event of a job, made up from the job if it was not published here."""
        live = self._live.get(job.id)
        return live.latest if live else _event_of(job)

    def tell_one(self, client: Client, event: JobEvent) -> None:
        """Tell a job's event to one client only."""
        telling = _telling(event, self._instance)
        self._clients.tell(client, telling.address, *telling.values)

    def tick(self) -> None:
        """Do what is due: held-back progress, signs of life, resends, heartbeats."""
        now = self._clock()
        for live in list(self._live.values()):
            quiet_seconds = now - live.progress_sent
            is_due = quiet_seconds >= (MIN_PROGRESS_SECONDS if live.is_held_back else MAX_PROGRESS_SECONDS)
            if isinstance(live.latest, Progressed) and is_due:
                live.progress_sent, live.is_held_back = now, False
                self._tell(live.latest)
        self._has_unacked = self._clients.resend()
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_SECONDS
            self._heartbeat()

    def seconds_to_next_tick(self) -> float:
        """How long nothing is due unless something is published."""
        is_awake = self._has_unacked or any(isinstance(live.latest, Progressed) for live in self._live.values())
        return TICK_SECONDS if is_awake else max(self._next_heartbeat - self._clock(), 0.0)

    def _note(self, event: JobEvent) -> bool:
        """Remember where a job stands; say whether to tell it now."""
        now = self._clock()
        if isinstance(event, Finished):
            self._live.pop(event.job.id, None)
            return True
        live = self._live.setdefault(event.job.id, _LiveJob(event, progress_sent=now - MAX_PROGRESS_SECONDS))
        live.latest = event
        live.is_held_back = isinstance(event, Progressed) and now - live.progress_sent < MIN_PROGRESS_SECONDS
        if isinstance(event, Progressed) and not live.is_held_back:
            live.progress_sent = now
        return not live.is_held_back

    def _tell(self, event: Event) -> None:
        telling = _telling(event, self._instance)
        receivers = self._clients.subscribers(telling.topic)
        is_last = isinstance(event, Finished)
        if isinstance(event, Finished):
            requester = self._clients.requester(event.job.request.client)
            if requester is not None and requester not in receivers:
                receivers.append(requester)
            self._has_unacked = True
        for client in receivers:
            self._clients.tell(client, telling.address, *telling.values, must_arrive=is_last)

    def _heartbeat(self) -> None:
        subscribers = self._clients.subscribers()
        if not subscribers:
            return
        status = self._status()
        for client in subscribers:
            self._clients.tell(client, "/rvcd/heartbeat", status.queued, status.running, status.uptime_seconds)


def _event_of(job: Job) -> JobEvent:
    if job.state.is_final:
        return Finished(job)
    return Queued(job, position=-1) if job.state is JobState.QUEUED else Progressed(job, seconds_left=-1.0)


def _telling(event: Event, instance: str) -> _Telling:
    match event:
        case ModelState(model, state):
            return _Telling("models", "/rvcd/model/state", (model, state))
        case FolderState(path, state):
            return _Telling("watch", "/rvcd/watch/state", (path, state))
        case ServerState(state):
            return _Telling("server", "/rvcd/server", (instance, state))
        case _:
            return _Telling("jobs", *_job_telling(event))


def _job_telling(event: JobEvent) -> tuple[str, tuple[Any, ...]]:
    job = event.job
    match event:
        case Queued(_, position):
            return "/rvcd/job/queued", (job.id, job.request.path, position)
        case Started(_, device):
            return "/rvcd/job/started", (job.id, job.request.path, job.voice or job.request.voice or "", device)
        case Progressed(_, seconds_left):
            return "/rvcd/job/progress", (job.id, job.fraction, job.stage, seconds_left)
        case Finished(_):
            return _ending(job)


def _ending(job: Job) -> tuple[str, tuple[Any, ...]]:
    if job.state is JobState.COMMITTED:
        path = job.result or job.request.path
        return "/rvcd/job/done", (job.id, path, job.backup or "", elapsed_seconds(job))
    if job.state is JobState.CANCELLED:
        return "/rvcd/job/cancelled", (job.id, job.code or Code.CANCELLED)
    return "/rvcd/job/failed", (job.id, job.code, job.message, job.code in _RETRYABLE)


def elapsed_seconds(job: Job) -> float:
    """Time that a job ran, or has run so far."""
    if job.started is None:
        return 0.0
    return max((job.finished or time.time()) - job.started, 0.0)
