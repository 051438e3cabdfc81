"""The supervisor: OSC, hot folders, spool, journal and the engine process, wired together.

It answers within milliseconds whatever the engine does, because nothing that takes long runs on its event loop. It
is the `Control` that the OSC room asks.
"""

import asyncio
import contextlib
import logging
import os
import platform
import resource
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rvcd import __version__, backups, logs, paths, places, voices
from rvcd.bounces import Bounces, Watched
from rvcd.completeness import header_complete
from rvcd.config import Config, load
from rvcd.conversions import Conversions
from rvcd.errors import Code, RvcdError
from rvcd.fingerprints import Fingerprint
from rvcd.instance import Instance, Note
from rvcd.jobs import Finished, Job, JobEvent, JobRequest, JobState, Queued
from rvcd.journal import Journal
from rvcd.mlx_engine.weights import read_header
from rvcd.osc.control import (
    About,
    Accepted,
    DaemonState,
    FolderInfo,
    FolderState,
    JobFilter,
    ModelInfo,
    ModelState,
    ServerState,
    Status,
    VoiceState,
    WatchAction,
)
from rvcd.osc.server import OscServer
from rvcd.service.notify import notify, watchdog_seconds
from rvcd.spool import Spool
from rvcd.watch import gate
from rvcd.watch.ledger import Kind, Ledger

log = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
_KEEP_JOBS_SECONDS = 90 * 86400.0
_HOUSEKEEPING_SECONDS = 3600.0
_RECENT_JOBS = 1000
TERMINATED = 128 + signal.SIGTERM


def main(config_path: Path | None, port: int | None, *, supervised: bool) -> int:
    """Run until told to end; return the exit status.

    A service manager sees 0 if another instance runs (there is nothing to restart) and 143 after SIGTERM.
    """
    logs.set_up(foreground=not supervised)
    try:
        instance = Instance()
    except RvcdError as error:
        print(f"rvcd: {error.code}: {error}", file=sys.stderr)  # noqa: T201, the terminal is all there is to tell
        return 0 if supervised else 1
    try:
        return asyncio.run(Daemon(instance, config_path, port).run())
    except RvcdError as error:
        log.critical("%s: %s", error.code, error)
        return 1
    finally:
        instance.release()


class Daemon:
    """One run of the supervisor."""

    def __init__(self, instance: Instance, config_path: Path | None, port: int | None) -> None:
        self._instance, self._config_path, self._port = instance, config_path, port
        self._config_problem = ""
        self._token_problem = ""
        # What cannot be believed leads to no folder: the default one may not be meant.
        self._config = self._read_config() or Config(folders=())
        self._config_stamp = self._stamp()
        self._started = time.monotonic()
        self._stopping = asyncio.Event()
        self._exit_status = 0
        self._draining = False
        self._models: dict[str, tuple[VoiceState, float]] = {}
        self._osc = OscServer(self, token=self._token())
        self._ledger = Ledger(paths.home() / "ledger.db")
        self._journal = Journal(paths.journal_file(), queue_bound=self._config.queue.bound, announce=self._announce)
        self._conversions = Conversions(self._config, self._journal, self._ledger, self._on_model)
        self._holds = gate.Holds()
        self._bounces = Bounces(self._ledger, self._holds, self._accept)
        self._spool = Spool(self._submit_named)
        self._folder_states: dict[Path, str] = {}

    # Life.

    async def run(self) -> int:
        """Start everything in order, wait, and stop it in the reverse order."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop, number)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload_soon)
        wanted = self._config.osc
        host, port = await self._osc.listen(wanted.address, wanted.port if self._port is None else self._port)
        if wanted.tcp:
            await self._osc.listen_tcp(host, port)
        self._instance.tell(Note(os.getpid(), host, port, str(self._config.osc.token_file or "")))
        log.info("rvcd %s listens on %s:%d", __version__, host, port)
        notify("READY=1")
        self._resume()
        self._osc.publish(ServerState("startup"))
        await self._conversions.start_engine()
        await self._bounces.follow(self._config)
        self._conversions.pump()
        tasks = [asyncio.create_task(self._tick_for_ever()), asyncio.create_task(self._keep_house())]
        await self._stopping.wait()
        for task in tasks:
            task.cancel()
        await self._drain()
        return self._exit_status

    def _stop(self, number: int) -> None:
        self._exit_status = TERMINATED if number == signal.SIGTERM else 128 + number
        self._stopping.set()

    async def _drain(self) -> None:
        notify("STOPPING=1")
        self._draining = True
        self._osc.publish(ServerState("draining"))
        await self._bounces.close()
        await self._conversions.drain()
        self._osc.publish(ServerState("shutdown"))
        await self._osc.close()
        self._journal.close()
        self._ledger.close()
        log.info("rvcd ends")

    def _resume(self) -> None:
        if self._journal.notice:
            log.warning("%s", self._journal.notice)
        self._conversions.recover()
        for job in self._journal.active():
            self._osc.publish(Queued(job, self._journal.position(job)))
        for job in (*self._journal.active(), *self._journal.recent(_RECENT_JOBS)):
            self._spool.adopt(job)

    async def _tick_for_ever(self) -> None:
        next_watchdog = 0.0
        while True:
            for step in (self._spool.look, self._conversions.pump, self._tell_folders):
                try:
                    step()
                except Exception:
                    log.exception("a step of the daemon broke")
            try:
                await self._conversions.release_if_idle()
                if self._stamp() != self._config_stamp:
                    await self._reload()
            except Exception:
                log.exception("a step of the daemon broke")
            if watchdog_seconds() and time.monotonic() >= next_watchdog:
                next_watchdog = time.monotonic() + watchdog_seconds() / 3
                notify("WATCHDOG=1", f"STATUS={self.status().state}")
            await asyncio.sleep(_TICK_SECONDS)

    async def _keep_house(self) -> None:
        while True:
            try:
                for path in await asyncio.to_thread(self._prune_backups):
                    self._forget_backup(path)
                self._journal.prune(time.time() - _KEEP_JOBS_SECONDS)
            except Exception:
                log.exception("old backups and jobs could not be removed")
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)

    def _prune_backups(self) -> list[backups.Backup]:
        """Delete what the policy gives up, in another thread; return it."""
        policy = self._config.backups
        max_bytes = None if policy.max_gb is None else int(policy.max_gb * 1e9)
        removed: list[backups.Backup] = []
        for folder in self._config.folders:
            try:
                pruned = backups.prune(folder.path, keep_days=policy.keep_days, max_bytes=max_bytes)
            except RvcdError as error:
                log.warning("the backups of %s cannot be pruned: %s", folder.path, error)
                continue
            removed += pruned.removed
            if pruned.kept_back:
                log.info("%d old takes of %s stay: they are the only copies", len(pruned.kept_back), folder.path)
        return removed

    def _forget_backup(self, backup: backups.Backup) -> None:
        with contextlib.suppress(RvcdError):  # the job may be long forgotten
            if self._journal.job(backup.job).backup == backup.path:
                self._journal.forget_backup(backup.job)

    def _tell_folders(self) -> None:
        """Publish which hot folders came, went, paused or are watched again since the last time."""
        states = {info.path: info.state for info in self.folders()}
        for path, state in states.items():
            if self._folder_states.get(path) != state:
                self._osc.publish(FolderState(path, state))
        self._folder_states = states

    # Configuration.

    def _read_config(self) -> Config | None:
        """The configuration, or None if it cannot be believed; the daemon then goes on with what it has, degraded."""
        try:
            config = load(self._config_path)
        except RvcdError as error:
            log.warning("%s", error)
            self._config_problem = error.sentence
            return None
        self._config_problem = ""
        return config

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = (self._config_path or paths.config_file()).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size

    def _reload_soon(self) -> None:
        self._config_stamp = (0, 0)

    async def _reload(self) -> None:
        self._config_stamp = self._stamp()
        config = self._read_config()
        if config is None:
            return
        log.info("the configuration is read again")
        if config.osc != self._config.osc:
            log.warning("address, port and token change when rvcd is started again")
        engine_changed = config.engine != self._config.engine or config.defaults.voice != self._config.defaults.voice
        self._config = self._conversions.config = config
        self._journal.queue_bound = config.queue.bound
        await self._bounces.follow(config)
        if engine_changed:
            await self._conversions.restart_engine()

    def _token(self) -> str:
        file = self._config.osc.token_file
        if file is None:
            return ""
        try:
            token = file.expanduser().read_text().strip()
            self._token_problem = "" if token else f"The token file {file} is empty; write a secret into it."
        except (OSError, ValueError) as error:
            token = ""
            self._token_problem = f"The token file {file} cannot be read: {error}."
        # Without a token that somebody can know, nobody may change anything.
        return token or secrets.token_hex()

    # Events.

    def _announce(self, event: JobEvent) -> None:
        self._osc.publish(event)
        if isinstance(event, Finished):
            job = event.job
            log.info("job %d %s: %s %s", job.id, job.state.value, job.request.path, job.message)
            self._spool.finish(job)

    def _on_model(self, path: str, state: VoiceState, megabytes: float) -> None:
        self._models[path] = (state, megabytes)
        self._osc.publish(ModelState(_voice_name(path), state))

    # What the OSC room asks (see `rvcd.osc.control.Control`).

    def about(self) -> About:
        """What is running."""
        return About(__version__, f"{platform.system()} {platform.machine()}", self._conversions.device)

    def status(self) -> Status:
        """How it is."""
        counts = self._journal.counts()
        warm = [path for path, (state, _) in self._models.items() if state == "warm"]
        return Status(
            state=self._state(),
            queued=counts[JobState.QUEUED],
            running=counts[JobState.RUNNING] + counts[JobState.STAGED],
            done=counts[JobState.COMMITTED],
            failed=counts[JobState.FAILED],
            models_warm=len(warm),
            active_model=_voice_name(warm[-1]) if warm else "",
            uptime_seconds=int(time.monotonic() - self._started),
            memory_megabytes=_resident_megabytes() + self._conversions.engine_mb,
            detail=self._config_problem or self._token_problem or str(self._conversions.problem or ""),
        )

    def _state(self) -> DaemonState:
        if self._draining:
            return "draining"
        if self._config_problem or self._token_problem or self._conversions.state == "absent":
            return "degraded"
        if self._conversions.paused:
            return "paused"
        if self._conversions.state == "starting":
            return "loading"
        return "busy" if self._conversions.current is not None else "idle"

    def job(self, job_id: int) -> Job:
        """One job."""
        return self._journal.job(job_id)

    def jobs(self, which: JobFilter, limit: int) -> Sequence[Job]:
        """Some jobs."""
        if which == "active":
            return self._journal.active()[:limit]
        return self._journal.recent(limit) if which == "recent" else self._journal.failed(limit)

    def models(self) -> Sequence[ModelInfo]:
        """All voices."""
        infos = []
        for entry in voices.list_voices():
            state, megabytes = self._models.get(str(entry.path), ("cold", 0.0))
            rate = entry.config.sample_rate if entry.config else 0
            infos.append(ModelInfo(entry.name, "bad" if entry.problem else state, rate, megabytes))
        return infos

    def folders(self) -> Sequence[FolderInfo]:
        """All hot folders."""
        return [self._folder_info(watched) for watched in self._bounces.watched]

    def _folder_info(self, watched: Watched) -> FolderInfo:
        counts = watched.hot.counts
        state = "paused" if self._bounces.paused else "watching" if counts.is_there else "missing"
        pending = counts.pending + counts.offered
        return FolderInfo(watched.folder.path, state, pending, len(watched.hot.refusals), watched.folder.voice or "")

    def submit(self, request: JobRequest) -> Accepted:
        """Queue a job that somebody asked for."""
        job = self._submit_named(request)
        return Accepted(job.id, self._journal.position(job))

    def _submit_named(self, request: JobRequest) -> Job:
        """A stem that somebody names need not settle, but must lie in a root, be complete and have a voice."""
        places.check_allowed(self._config, request.path)
        if request.out is not None:
            places.check_allowed(self._config, request.out)
        voice, _ = self._conversions.resolve(request)
        voices.find_voice(voice)
        places.target_of(self._config, request, voice)
        path = Path(os.path.realpath(request.path))
        watched = self._bounces.find(places.folder_of(self._config, path))
        if watched is not None:
            ready = watched.hot.admit(path, time.monotonic())
            job = self._accept(request)
            watched.hot.take(ready)
            return job
        if self._holds.is_held(path, time.monotonic()):
            raise RvcdError(Code.FILE_IN_USE, f"{path} is held by the program that writes it; release it first.")
        try:
            fingerprint = Fingerprint.of(path)
        except OSError as error:
            raise RvcdError(Code.NOT_FOUND, f"There is no file {path}: {error.strerror or error}.") from error
        gate.admit(path, fingerprint, header_complete)
        return self._accept(request)

    def _accept(self, request: JobRequest) -> Job:
        """Make a job; a bounce that has no voice fails as one, so that everybody can see it."""
        if self._draining:
            raise RvcdError(Code.SHUTTING_DOWN, "rvcd is ending; ask again when it runs.")
        job = self._journal.submit(request, time.time())
        asyncio.get_running_loop().call_soon(self._conversions.pump)
        return job

    def cancel(self, job_id: int | None, client: str) -> None:
        """Cancel one job, or all of a client's."""
        if job_id is not None:
            self._conversions.cancel(self._journal.job(job_id))
            return
        for job in self._journal.active():
            if job.request.client == client:
                self._conversions.cancel(job)

    def watch(self, action: WatchAction) -> None:
        """Pause, resume, or look through all hot folders."""
        if action == "rescan":
            for watched in self._bounces.watched:
                watched.hot.rescan()
            return
        self._conversions.paused = self._bounces.paused = action == "pause"
        if action == "resume":
            self._bounces.resume()
            self._conversions.pump()

    def hold(self, path: Path, seconds: float) -> None:
        """Leave a path alone for a while."""
        places.check_allowed(self._config, path)
        self._holds.hold(Path(os.path.realpath(path)), seconds, time.monotonic())

    def release(self, path: Path) -> None:
        """The path is finished."""
        path = Path(os.path.realpath(path))
        self._holds.release(path)
        watched = self._bounces.find(places.folder_of(self._config, path))
        if watched is not None:
            watched.hot.note_closed(path)

    async def restore(self, target: int | Path) -> None:
        """Put the original of a job, or of a path, back."""
        path = self._journal.job(target).request.path if isinstance(target, int) else target
        places.check_allowed(self._config, path)
        root = places.root_of(self._config, path)

        def remember(original: Path, fingerprint: Fingerprint) -> None:
            self._ledger.record(Kind.OURS, original, fingerprint)

        await asyncio.to_thread(backups.restore, target, root, before_replace=remember)

    async def load_model(self, model: str) -> None:
        """Warm a voice."""
        await self._conversions.load(voices.find_voice(model))

    async def unload_model(self, model: str) -> None:
        """Let a voice go cold."""
        self._conversions.unload(voices.find_voice(model))


def _voice_name(path: str) -> str:
    with contextlib.suppress(RvcdError):
        return read_header(Path(path)).name
    return Path(path).stem


def _resident_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
