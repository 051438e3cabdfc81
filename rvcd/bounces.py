"""The hot folders at work: each is stepped in a thread when it is due, and what is ready becomes a job."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rvcd.completeness import header_complete
from rvcd.config import Config, Folder
from rvcd.errors import Code, RvcdError
from rvcd.jobs import JobRequest
from rvcd.watch.folder import HotFolder, Ready
from rvcd.watch.gate import Holds, Refused
from rvcd.watch.ledger import Kind, Ledger

log = logging.getLogger(__name__)

_LONGEST_SLEEP_SECONDS = 60.0
_AFTER_TROUBLE_SECONDS = 5.0
_CURABLE = (Code.BUSY, Code.SHUTTING_DOWN, Code.DISK_FULL, Code.NOT_WRITABLE)
"""Why a bounce cannot become a job just now."""


@dataclass
class Watched:
    """A hot folder, its configuration, and the task that steps it."""

    folder: Folder
    hot: HotFolder
    wake: asyncio.Event
    task: asyncio.Task[None] | None = field(default=None)


class Bounces:
    """All hot folders. `submit` makes a job of a request, or raises `RvcdError`."""

    def __init__(self, ledger: Ledger, holds: Holds, submit: Callable[[JobRequest], object]) -> None:
        self._ledger, self._holds, self._submit = ledger, holds, submit
        self.watched: list[Watched] = []
        self.paused = False

    async def follow(self, config: Config) -> None:
        """Watch the configured folders from now on; those that stay the same are not disturbed."""
        for gone in [w for w in self.watched if w.folder not in config.folders]:
            await self._stop(gone)
        known = [w.folder for w in self.watched]
        for folder in config.folders:
            if folder not in known:
                self._start(folder)

    async def close(self) -> None:
        """Stop watching."""
        for watched in list(self.watched):
            await self._stop(watched)

    def find(self, folder: Folder | None) -> Watched | None:
        """The watch over a configured folder."""
        return next((w for w in self.watched if w.folder == folder), None)

    def resume(self) -> None:
        """Step again."""
        self.paused = False
        for watched in self.watched:
            watched.wake.set()

    def _start(self, folder: Folder) -> None:
        with contextlib.suppress(OSError):
            folder.path.mkdir(parents=True, exist_ok=True)
        loop, wake = asyncio.get_running_loop(), asyncio.Event()

        def ring() -> None:
            with contextlib.suppress(RuntimeError):  # the loop may have ended
                loop.call_soon_threadsafe(wake.set)

        hot = HotFolder(
            folder.path,
            self._ledger,
            self._holds,
            header_complete,
            settle_seconds=folder.settle_seconds,
            convert_present=folder.convert_existing,
            wake=ring,
        )
        watched = Watched(folder, hot, wake)
        watched.task = loop.create_task(self._watch(watched))
        self.watched.append(watched)

    async def _stop(self, watched: Watched) -> None:
        self.watched.remove(watched)
        if watched.task is not None:
            watched.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watched.task
        watched.hot.close()

    async def _watch(self, watched: Watched) -> None:
        while True:
            pause = watched.hot.next_wakeup() - time.monotonic()
            pause = _LONGEST_SLEEP_SECONDS if self.paused else min(pause, _LONGEST_SLEEP_SECONDS)
            if pause > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await watched.wake.wait()
            watched.wake.clear()
            if self.paused or watched.hot.next_wakeup() > time.monotonic():
                continue
            try:
                reports = await asyncio.to_thread(watched.hot.step, time.monotonic())
                for report in reports:
                    self._act(watched, report)
            except RvcdError as error:
                log.warning("%s cannot be watched just now: %s", watched.folder.path, error)
                await asyncio.sleep(_AFTER_TROUBLE_SECONDS)
            except Exception:
                log.exception("%s cannot be watched just now", watched.folder.path)
                await asyncio.sleep(_AFTER_TROUBLE_SECONDS)

    def _act(self, watched: Watched, report: Ready | Refused) -> None:
        if isinstance(report, Refused):
            log.warning("%s: %s", report.path, report.error)
            return
        if not watched.folder.recursive and report.subfolder.parts:
            watched.hot.take(report)
            return
        request = JobRequest(report.path, mode=watched.folder.mode, out=watched.folder.out, origin="watch")
        try:
            self._submit(request)
            # At once, not with the next step: whoever dies before that would take it twice.
            self._ledger.record(Kind.TAKEN, report.path, report.fingerprint)
        except RvcdError as error:
            if error.code in _CURABLE:
                log.info("%s waits: %s", report.path, error)
                watched.hot.postpone(report)
                return
            log.warning("%s is not converted: %s", report.path, error)
        watched.hot.take(report)
