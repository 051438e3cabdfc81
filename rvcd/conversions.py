"""From the queue to the engine and back: one job at a time, whatever happens to the engine.

Everything runs on the event loop; what may take long (the replacement of a file) runs in a thread. A job is in the
journal before it is anywhere else.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rvcd import places, replacing, voices
from rvcd.config import Config
from rvcd.disk import discard
from rvcd.effective import effective_settings
from rvcd.engine_link import EngineLink, Report
from rvcd.errors import Code, RvcdError
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
"""An engine that dies this often while it starts is given up until something changes."""


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
        self.problem = ""
        """Why there is no engine, as a sentence."""
        self.device = ""
        self.engine_mb = 0.0
        self.current: Job | None = None
        self.paused = False
        self._draining = False
        self._deaths_while_starting = 0
        self._cancelling: set[int] = set()
        self._idle_since = time.monotonic()
        self._loads: dict[str, list[asyncio.Future[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # The engine.

    async def start_engine(self) -> None:
        """Start the engine with the base models and the default voices; without models, say what is missing."""
        try:
            configuration = self._engine_configuration()
        except RvcdError as error:
            self.state, self.problem = "absent", error.sentence
            return
        self.state, self.problem = "starting", ""
        await self._link.start(configuration)

    async def restart_engine(self) -> None:
        """Have the engine follow a changed configuration, between two jobs."""
        if self.current is None and self.state in ("ready", "absent"):
            await self._link.stop()
            await self.start_engine()

    async def drain(self) -> None:
        """Put the running job back into the queue and end the engine."""
        self._draining = True
        await self._link.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.current is not None:
            self._journal.put_back(self.current.id, time.time())
            self.current = None

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
        self._deaths_while_starting += self.state == "starting"
        self._fail_loads(RvcdError(Code.ENGINE_DIED, "The engine died."))
        job, self.current = self.current, None
        if job is not None:
            if job.id in self._cancelling:
                self._journal.cancel(job.id, time.time())
            else:
                cause = "was killed, perhaps for want of memory" if status == -9 else f"died (status {status})"
                self._journal.retry(job.id, time.time(), Code.ENGINE_DIED, f"The engine {cause} while it converted.")
        self._cancelling.clear()
        if self._deaths_while_starting >= _STARTS_IN_A_ROW:
            self.state = "absent"
            self.problem = f"The engine died {_STARTS_IN_A_ROW} times while it started; `rvcd doctor` may tell why."
            return
        await self.start_engine()

    # The queue.

    def pump(self) -> None:
        """Give the engine its next job, if there is one and the engine is free. Call it whenever either may be true."""
        while self.current is None and not (self.paused or self._draining):
            job = self._journal.next_queued()
            if job is None:
                return
            self._idle_since = time.monotonic()
            try:
                if not self._has_engine():
                    return
                self._begin(job)
            except RvcdError as error:
                self._journal.fail(job.id, time.time(), error.code, error.sentence)

    def _has_engine(self) -> bool:
        """Whether the engine can take a job; if there is none, one is started.

        Raises `RvcdError`: `missing_model`, `engine_died`, if there cannot be one.
        """
        if self.state == "absent":
            if self._deaths_while_starting >= _STARTS_IN_A_ROW:
                raise RvcdError(Code.ENGINE_DIED, self.problem)
            self._engine_configuration()  # perhaps the models were installed meanwhile
        if self.state in ("absent", "released"):
            self.state = "starting"
            self._spawn(self.start_engine())
        return self.state == "ready"

    def _begin(self, job: Job) -> None:
        order = self.order(job)
        self.current = self._journal.start(job.id, time.time(), self.device)
        if job.request.dry_run:
            self._done()
            self._journal.commit(job.id, time.time())
        else:
            self._link.send(order)

    def order(self, job: Job) -> Report:
        """What the engine is told to do for a job. Raises `RvcdError` if it cannot be done."""
        request = job.request
        voice, settings = self.resolve(request)
        target = _target(request, voice, self.config)
        root = places.root_of(self.config, request.path)
        if request.mode == "replace":
            replacing.check_replaceable(request.path, root)
        return {
            "do": "convert",
            "job": job.id,
            "path": str(request.path),
            "voice": str(voices.find_voice(voice)),
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
            below = Path(request.path.parent).resolve().relative_to(folder.path.resolve())
            named = places.subfolder_voice(below, (entry.name for entry in voices.list_voices()))
        return effective_settings(self.config, folder, named, request)

    def cancel(self, job: Job) -> None:
        """End a job that nobody wants any more; a running one ends within a few seconds."""
        if self.current is not None and job.id == self.current.id:
            self._cancelling.add(job.id)
            self._link.send({"do": "cancel", "job": job.id})
            self._spawn(self._make_sure_it_ends(job.id))
        elif job.state is JobState.QUEUED:
            self._journal.cancel(job.id, time.time())
        else:
            raise RvcdError(Code.BAD_REQUEST, f"Job {job.id} is {job.state} and cannot be cancelled.")

    async def _make_sure_it_ends(self, job_id: int) -> None:
        await asyncio.sleep(_CANCEL_SECONDS)
        if self.current is not None and self.current.id == job_id:
            self._link.kill()

    async def release_if_idle(self) -> None:
        """Give the engine's memory back after a long time without a job."""
        limit = self.config.engine.idle_release_seconds
        if limit and self.state == "ready" and self.current is None and time.monotonic() - self._idle_since > limit:
            self.state = "released"
            await self._link.stop()

    # Voices.

    async def load(self, path: Path) -> None:
        """Warm a voice. Raises `RvcdError` with what is wrong with it, `missing_model`, `engine_died`."""
        if self.state == "released":
            await self.start_engine()
        if self.state == "absent":
            raise RvcdError(Code.MISSING_MODEL, self.problem)
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loads.setdefault(str(path), []).append(waiting)
        self._link.send({"do": "load", "voice": str(path)})
        await waiting

    def unload(self, path: Path) -> None:
        """Let a voice go cold."""
        self._link.send({"do": "unload", "voice": str(path)})

    def _fail_loads(self, error: RvcdError) -> None:
        for waiting in [future for futures in self._loads.values() for future in futures if not future.done()]:
            waiting.set_exception(error)
        self._loads.clear()

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
        if report["state"] == "warm":
            for waiting in self._loads.pop(report["voice"], []):
                if not waiting.done():
                    waiting.set_result(None)
        self._on_model(report["voice"], report["state"], report["mb"])

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
            self.state, self.problem = "absent", error.sentence
        elif report["do"] == "load":
            self._fail_loads(error)
        job = self._current(report)
        if job is None:
            return
        self._done()
        if error.code is Code.CANCELLED:
            self._journal.cancel(job.id, time.time())
        elif error.code is Code.CHANGED_UNDERNEATH:
            self._journal.put_back(job.id, time.time())
        else:
            self._journal.fail(job.id, time.time(), error.code, error.sentence)

    def _report_written(self, report: Report) -> None:
        job = self._current(report)
        if job is not None:
            target = Path(report["target"])
            self._journal.stage(job.id, target, None, ())
            self._journal.commit(job.id, time.time(), target)
            self._done()

    def _report_staged(self, report: Report) -> None:
        job = self._current(report)
        if job is None:
            return
        staged = _staged(report["staged"])
        expected = Fingerprint(**report["expected"])
        backup = Path(report["backup"]) if report["backup"] else None
        self._journal.stage(job.id, staged.path, backup, tuple(asdict(expected).values()))
        self._spawn(self.finish(job.id, staged, Path(report["original"]), expected))

    async def finish(self, job_id: int, staged: replacing.Staged, original: Path, expected: Fingerprint) -> None:
        """Put a staged result in its place; a stem that changed underneath is converted again."""

        def replace() -> None:
            self._ledger.record(Kind.OURS, original, staged.fingerprint)
            replacing.commit(staged, original, expected)

        try:
            await asyncio.to_thread(replace)
            self._journal.commit(job_id, time.time(), original)
        except RvcdError as error:
            discard(staged.path)
            if error.code is Code.CHANGED_UNDERNEATH:
                self._journal.put_back(job_id, time.time())
            else:
                self._journal.fail(job_id, time.time(), error.code, error.sentence)
        if self.current is not None and self.current.id == job_id:
            self._done()
        if not self._draining:
            self.pump()

    def recover(self) -> None:
        """Finish what the last process left behind; call once, before the first pump."""
        for job in self._journal.recover(time.time()):
            if job.state is JobState.STAGED and job.staged is not None:
                self._recover_staged(job, job.staged)

    def _recover_staged(self, job: Job, staged: Path) -> None:
        now = time.time()
        if not job.expected:  # a sibling, which appears whole under its name
            self._journal.commit(job.id, now, staged)
            return
        original = Path(job.request.path).resolve()
        expected = Fingerprint(*job.expected)
        try:
            if not staged.exists():
                self._journal.commit(job.id, now, original)
            elif Fingerprint.of(original) == expected:
                fingerprint = Fingerprint.of(staged)
                self._ledger.record(Kind.OURS, original, fingerprint)
                replacing.commit(replacing.Staged(staged, 0.0, "", 0, fingerprint), original, expected)
                self._journal.commit(job.id, now, original)
            else:
                discard(staged)
                self._journal.put_back(job.id, now)
        except (RvcdError, OSError) as error:
            log.warning("job %d could not be finished: %s", job.id, error)
            self._journal.put_back(job.id, now)

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


def _target(request: JobRequest, voice: str, config: Config) -> Path:
    """Where the result goes; for an `out` that is a folder, under the sibling's name."""
    if request.mode == "replace":
        return request.path
    # Lossy containers are read but not written: their sibling is a WAV.
    suffix = ".wav" if request.path.suffix.lower() in (".mp3", ".ogg", ".oga", ".opus") else request.path.suffix
    sibling = f"{request.path.stem}.{voice.replace('/', '_')}{suffix}"
    if request.mode == "sibling":
        return request.path.with_name(sibling)
    folder = places.folder_of(config, request.path)
    out = request.out or (folder.out if folder else None)
    if out is None:
        raise RvcdError(Code.BAD_REQUEST, 'With mode "out" the request must say where: give `out`.')
    return out if out.suffix else out / sibling
