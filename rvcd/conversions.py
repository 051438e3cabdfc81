"""From the queue to the engine and back: one job at a time, whatever happens to the engine.

Everything runs on the event loop; what may take long (the replacement of a file) runs in a thread. A job is in the
journal before it is anywhere else.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rvcd import places, replacing, voices
from rvcd.completeness import seconds_of
from rvcd.config import Config
from rvcd.disk import discard
from rvcd.effective import effective_settings
from rvcd.engine_link import EngineLink, Report
from rvcd.errors import Code, RvcdError, write_error
from rvcd.fingerprints import Fingerprint
from rvcd.jobs import Job, JobRequest, JobState
from rvcd.journal import Journal
from rvcd.osc.control import VoiceState
from rvcd.settings import Settings
from rvcd.watch.ledger import Kind, Ledger

log = logging.getLogger(__name__)

EngineState = Literal["absent", "starting", "ready", "released"]

_CANCEL_SECONDS = 3.0
_STARTS_IN_A_ROW = 3
"""An engine that dies this often while it starts is given up until its models change or a voice is loaded."""


class Conversions:
    """The pump between the journal and the engine.

    on_model: told a voice's path and its state (cold, loading, warm).
    """

    def __init__(
        self, config: Config, journal: Journal, ledger: Ledger, on_model: Callable[[str, VoiceState, float], None]
    ) -> None:
        self.config = config
        self._journal, self._ledger, self._on_model = journal, ledger, on_model
        self._link = EngineLink(self._on_report, self._on_death)
        self.state: EngineState = "released"
        self.problem: RvcdError | None = None
        """Why there is no engine."""
        self.device = ""
        self.engine_mb = 0.0
        self.current: Job | None = None
        self.paused = False
        self._draining = False
        self._is_outdated = False
        self._tried: Report = {}
        self._deaths_while_starting = 0
        self._cancelling: set[int] = set()
        self._idle_since = time.monotonic()
        self._warm: set[str] = set()
        self._loads: dict[str, list[asyncio.Future[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # The engine.

    async def start_engine(self) -> None:
        """Start the engine with the base models and the default voices; without models, say what is missing."""
        if self._draining:
            return
        self._forget_voices()
        try:
            configuration = self._engine_configuration()
            self.state, self.problem, self._is_outdated = "starting", None, False
            self._tried = _inventory(configuration)
            await self._link.start(configuration)
        except RvcdError as error:
            self._give_up(error)
        except OSError as error:
            self._give_up(RvcdError(Code.ENGINE_DIED, f"The engine cannot be started: {error}."))

    async def restart_engine(self) -> None:
        """Have the engine follow a changed configuration, between two jobs."""
        self._is_outdated = True
        if self.current is None and self.state in ("ready", "absent"):
            await self.start_engine()

    async def drain(self) -> None:
        """Put the running job back into the queue and end the engine."""
        self._draining = True
        self._fail_loads(RvcdError(Code.SHUTTING_DOWN, "rvcd is ending; ask again when it runs."))
        await self._link.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._link.stop()  # one that was just being started
        if self.current is not None:
            with contextlib.suppress(RvcdError):
                self._wait_again(self.current)
            self.current = None

    def _wait_again(self, job: Job) -> None:
        if job.id in self._cancelling:
            self._journal.cancel(job.id, time.time())
        else:
            self._journal.put_back(job.id, time.time())

    def _give_up(self, error: RvcdError) -> None:
        log.error("there is no engine: %s", error)
        self.state, self.problem = "absent", error
        self._fail_loads(error)

    def _forget_voices(self) -> None:
        """No engine, no warm voices."""
        for path in self._warm:
            self._on_model(path, "cold", 0.0)
        self._warm.clear()

    def _engine_configuration(self) -> Report:
        default = [self.config.defaults.voice, *(folder.voice for folder in self.config.folders)]
        warm = []
        for name in dict.fromkeys(name for name in default if name):
            try:
                warm.append(str(voices.find_voice(name)))
            except RvcdError as error:
                log.warning("the voice %s cannot be kept warm: %s", name, error)
        pitch = None
        try:
            pitch = str(voices.find_model("pitch"))
        except RvcdError as error:
            log.warning("%s", error)
        return {
            "content_encoder": str(voices.find_model("content-encoder")),
            "pitch": pitch,
            "precision": self.config.engine.precision,
            "budget_mb": self.config.engine.warm_megabytes,
            "voices": warm,
        }

    async def _on_death(self, status: int) -> None:
        log.error("the engine died (status %d)", status)
        self._forget_voices()
        self._fail_loads(RvcdError(Code.ENGINE_DIED, "The engine died."))
        job, self.current = self.current, None
        if job is not None:
            with contextlib.suppress(RvcdError):  # it was staged, and its replacement goes on
                self._survive(job, status)
        self._cancelling.clear()
        self._deaths_while_starting += self.state == "starting"
        if self._deaths_while_starting >= _STARTS_IN_A_ROW:
            sentence = f"The engine died {_STARTS_IN_A_ROW} times while it started; `rvcd doctor` may tell why."
            self._give_up(RvcdError(Code.ENGINE_DIED, sentence))
        else:
            await self.start_engine()

    def _survive(self, job: Job, status: int) -> None:
        if self._journal.job(job.id).state is JobState.STAGED:
            self.current = job
        elif job.id in self._cancelling:
            self._journal.cancel(job.id, time.time())
        else:
            cause = "was killed, perhaps for want of memory" if status == -9 else f"died (status {status})"
            self._journal.retry(job.id, time.time(), Code.ENGINE_DIED, f"The engine {cause} while it converted.")

    # The queue.

    def pump(self) -> None:
        """Give the engine its next job, if there is one and the engine is free. Call it whenever either may be true."""
        if self.current is not None or self.paused or self._draining:
            return
        job = self._journal.next_queued()
        if job is None:
            return
        self._idle_since = time.monotonic()
        try:
            if not self._has_engine():
                return
            order = self.order(job)
            self._check_wanted(job)
            seconds = seconds_of(job.request.path)
        except RvcdError as error:
            self._end(job, error)
        else:
            self._begin(job, order, seconds)
        if self.current is None:
            asyncio.get_running_loop().call_soon(self.pump)  # not at once: others may have something to say

    def _has_engine(self) -> bool:
        """Whether the engine can take a job; if there is none, one is started.

        Raises `RvcdError`: `missing_model`, or why the engine was given up, if there cannot be one.
        """
        if self.state == "absent":
            inventory = _inventory(self._engine_configuration())
            if self.problem is not None and inventory == self._tried:
                raise self.problem
            self._deaths_while_starting = 0
        if self.state in ("absent", "released") or (self.state == "ready" and self._is_outdated):
            self.state = "starting"
            self._spawn(self.start_engine())
        return self.state == "ready"

    def _check_wanted(self, job: Job) -> None:
        """Raise `RvcdError("superseded")` for a bounce that was converted, or undone, since it was seen."""
        if job.request.origin != "watch":
            return
        path = job.request.path.resolve()
        with contextlib.suppress(OSError):
            if self._ledger.is_ours(path, Fingerprint.of(path)):
                raise RvcdError(Code.SUPERSEDED, f"{path} was converted or restored by an earlier job.")

    def _begin(self, job: Job, order: Report, seconds: float) -> None:
        started = self._journal.start(job.id, time.time(), self.device, seconds, order["voice_name"])
        if job.request.dry_run:
            self._journal.commit(job.id, time.time())
        else:
            self.current = started
            self._link.send(order)

    def _end(self, job: Job, error: RvcdError) -> None:
        """End a job that cannot be done.

        A bounce that changed meanwhile comes again as a new one, when it has settled. What somebody asked for by
        name is tried once more.
        """
        now, comes_again = time.time(), job.request.origin == "watch"
        if job.id in self._cancelling or error.code is Code.CANCELLED:
            self._journal.cancel(job.id, now)
        elif error.code is Code.SUPERSEDED:
            self._journal.cancel(job.id, now, error.code, error.sentence)
        elif comes_again and error.code in (Code.CHANGED_UNDERNEATH, Code.FILE_UNSTABLE):
            sentence = f"{job.request.path} is being written again; the new bounce will be another job."
            self._journal.cancel(job.id, now, Code.SUPERSEDED, sentence)
        elif error.code is Code.CHANGED_UNDERNEATH:
            self._journal.retry(job.id, now, error.code, error.sentence)
        else:
            self._journal.fail(job.id, now, error.code, error.sentence)

    def order(self, job: Job) -> Report:
        """What the engine is told to do for a job. Raises `RvcdError` if it cannot be done."""
        request = job.request
        voice, settings = self.resolve(request)
        target = places.target_of(self.config, request, voice)
        root = places.root_of(self.config, request.path)
        if request.mode == "replace":
            replacing.check_replaceable(request.path, root)
        return {
            "do": "convert",
            "job": job.id,
            "path": str(request.path),
            "voice": str(voices.find_voice(voice)),
            "voice_name": voice,
            "settings": asdict(settings),
            "mode": request.mode,
            "target": str(target),
            "root": str(root),
            "backup": request.backup,
        }

    def resolve(self, request: JobRequest) -> tuple[str, Settings]:
        """Voice and settings of a request. Raises `RvcdError`: `unknown_voice`, `bad_setting`, `bad_configuration`."""
        folder = places.folder_of(self.config, request.path)
        named = None
        if folder is not None:
            below = request.path.resolve().parent.relative_to(folder.path.resolve())
            named = places.subfolder_voice(below, (entry.name for entry in voices.list_voices()))
        return effective_settings(self.config, folder, named, request)

    def cancel(self, job: Job) -> None:
        """End a job that nobody wants any more; a running one ends within a few seconds."""
        if self.current is not None and job.id == self.current.id:
            self._cancelling.add(job.id)
            self._link.send({"do": "cancel", "job": job.id})
            asyncio.get_running_loop().call_later(_CANCEL_SECONDS, self._make_sure_it_ends, job.id)
        elif job.state is JobState.QUEUED:
            self._journal.cancel(job.id, time.time())
        else:
            raise RvcdError(Code.BAD_REQUEST, f"Job {job.id} is {job.state} and cannot be cancelled.")

    def _make_sure_it_ends(self, job_id: int) -> None:
        if self.current is not None and self.current.id == job_id and job_id in self._cancelling:
            self._link.kill()

    async def release_if_idle(self) -> None:
        """Give the engine's memory back after a long time without a job."""
        limit = self.config.engine.idle_release_seconds
        if limit and self.state == "ready" and self.current is None and time.monotonic() - self._idle_since > limit:
            self.state = "released"
            self._forget_voices()
            await self._link.stop()

    # Voices.

    async def load(self, path: Path) -> None:
        """Warm a voice. Raises `RvcdError` with what is wrong with it, `missing_model`, `engine_died`."""
        if self.state in ("absent", "released"):
            self._deaths_while_starting = 0
            await self.start_engine()
        if self.state == "absent" and self.problem is not None:
            raise self.problem
        if self._draining:
            raise RvcdError(Code.SHUTTING_DOWN, "rvcd is ending; ask again when it runs.")
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loads.setdefault(str(path), []).append(waiting)
        self._link.send({"do": "load", "voice": str(path)})
        await waiting

    def unload(self, path: Path) -> None:
        """Let a voice go cold."""
        self._link.send({"do": "unload", "voice": str(path)})

    def _fail_loads(self, error: RvcdError, path: str | None = None) -> None:
        """Tell those who wait for a voice, or for any, that it will not come."""
        for voice in [path] if path else list(self._loads):
            for waiting in self._loads.pop(voice, []):
                if not waiting.done():
                    waiting.set_exception(error)

    # Reports.

    def _on_report(self, report: Report) -> None:
        self.engine_mb = report.get("mb", self.engine_mb)
        if self._draining:
            return
        try:
            getattr(self, f"_report_{report['is']}")(report)
        except RvcdError as error:
            log.warning("a report of the engine came too late: %s", error)
        self.pump()

    def _report_ready(self, report: Report) -> None:
        self.state, self.device, self._deaths_while_starting = "ready", report["device"], 0

    def _report_model(self, report: Report) -> None:
        if report["state"] != "warm":
            self._warm.discard(report["voice"])
        else:
            self._warm.add(report["voice"])
            for waiting in self._loads.pop(report["voice"], []):
                if not waiting.done():
                    waiting.set_result(None)
        self._on_model(report["voice"], report["state"], report["size_mb"])

    def _report_progress(self, report: Report) -> None:
        job = self._current(report)
        if job is not None and job.started is not None:
            fraction = report["fraction"]
            elapsed = time.time() - job.started
            left = elapsed * (1 - fraction) / fraction if fraction > 0.02 else -1.0
            self._journal.progress(job.id, fraction, report["stage"], left)

    def _report_failed(self, report: Report) -> None:
        error = RvcdError(Code(report["code"]), report["message"])
        if report["do"] == "configure":
            self._give_up(error)
            self._spawn(self._link.stop())
        elif report["do"] == "load":
            self._fail_loads(error, report["voice"])
        job = self._current(report)
        if job is not None:
            self._done()
            self._end(job, error)

    def _report_staged(self, report: Report) -> None:
        job = self._current(report)
        if job is None:
            return
        staged = _staged(report["staged"])
        expected = Fingerprint(**report["expected"]) if report["expected"] else None
        backup = Path(report["backup"]) if report["backup"] else None
        self._journal.stage(job.id, staged.path, backup, tuple(asdict(expected).values()) if expected else ())
        self._spawn(self._finish(job, staged, Path(report["target"]), expected))

    async def _finish(self, job: Job, staged: replacing.Staged, target: Path, expected: Fingerprint | None) -> None:
        """Put a staged result in its place."""
        try:
            await asyncio.to_thread(self._put_in_place, staged, target, expected)
            self._journal.commit(job.id, time.time(), target)
        except RvcdError as error:
            discard(staged.path)
            with contextlib.suppress(RvcdError):  # a journal that cannot be written; the next start sorts it out
                self._end(job, error)
        finally:
            self._done()
        self.pump()

    def _put_in_place(self, staged: replacing.Staged, target: Path, expected: Fingerprint | None) -> None:
        """Let a result appear under its name, known as ours before it is there."""
        self._ledger.record(Kind.OURS, target.parent.resolve() / target.name, staged.fingerprint)
        if expected is not None:
            replacing.commit(staged, target, expected)
            return
        try:
            staged.path.replace(target)
        except OSError as error:
            raise write_error(error, target) from error

    def recover(self) -> None:
        """Finish what the last process left behind; call once, before the first pump."""
        for job in self._journal.recover(time.time()):
            if job.state is JobState.STAGED and job.staged is not None:
                try:
                    target = self._recover_staged(job, job.staged)
                except (RvcdError, OSError) as error:
                    log.warning("job %d is done again: %s", job.id, error)
                    discard(job.staged)
                    self._journal.put_back(job.id, time.time())
                else:
                    self._journal.commit(job.id, time.time(), target)

    def _recover_staged(self, job: Job, staged: Path) -> Path:
        """Put a staged result in its place, if that did not happen yet; return the place."""
        if job.request.mode == "replace":
            target, expected = job.request.path.resolve(), Fingerprint(*job.expected)
        else:
            target, expected = places.target_of(self.config, job.request, self.resolve(job.request)[0]), None
        if staged.exists():
            fingerprint = Fingerprint.of(staged)
            self._put_in_place(replacing.Staged(staged, 0.0, "", 0, fingerprint), target, expected)
        elif not target.exists():
            raise RvcdError(Code.NOT_FOUND, f"Neither {staged} nor {target} is there.")
        return target

    def _current(self, report: Report) -> Job | None:
        return self.current if self.current is not None and self.current.id == report.get("job") else None

    def _done(self) -> None:
        self.current = None
        self._idle_since = time.monotonic()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _staged(fields: dict[str, Any]) -> replacing.Staged:
    return replacing.Staged(
        path=Path(fields["path"]),
        gain_db=fields["gain_db"],
        digest=fields["digest"],
        frames=fields["frames"],
        fingerprint=Fingerprint(**fields["fingerprint"]),
    )


def _inventory(configuration: Report) -> Report:
    """A configuration with the times of its files: the same means that nothing changed."""
    files = [configuration["content_encoder"], configuration["pitch"], *configuration["voices"]]
    return {**configuration, "times": [Path(file).stat().st_mtime_ns for file in files if file]}
