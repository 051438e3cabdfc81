"""The journal: every job, what became of it, and the queue, in one sqlite file.

Every change of state is on disk before it is announced, and each change is one transaction: a kill at any
instruction leaves a journal that opens and in which every job stands in exactly one state. The queue is no second
thing beside it: it is the jobs whose state is `queued`, the higher priority first, then the older.

Progress lives in memory, for it is worth nothing after a restart. One thread owns a `Journal`.
"""

import json
import math
import os
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rvcd.errors import Code, RvcdError
from rvcd.jobs import Finished, Job, JobEvent, JobRequest, JobState, Progressed, Queued, Started
from rvcd.journal_file import JournalFile

MAX_ATTEMPTS = 2
"""A job whose engine died is tried once more."""

_MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset(set(JobState) - {JobState.RUNNING}),
    JobState.STAGED: frozenset({JobState.QUEUED, JobState.COMMITTED, JobState.FAILED, JobState.CANCELLED}),
}


class Journal:
    """The jobs of one user. Making it opens the file; follow with `recover`.

    `announce` is called with each event after its change is on disk, and with `Finished` once per job. It must not
    raise, and must not call the journal back.

    All methods that take a job's id raise `RvcdError`: `not_found` for an id that is not in the journal, `bad_request`
    for a change that the job's state forbids, `disk_full` or `not_writable` if the change cannot be written. After
    an error nothing has changed. `now` is in unix seconds throughout.
    """

    def __init__(
        self, path: Path, *, queue_bound: int = 1000, announce: Callable[[JobEvent], object] = lambda _: None
    ) -> None:
        self.queue_bound = queue_bound
        """How many jobs may wait."""
        self._announce = announce
        self._file = JournalFile(path, check_row=_job)
        self._running: dict[int, Job] = {}
        """The jobs that the engine has, with their progress."""

    @property
    def notice(self) -> str:
        """That a damaged file was moved aside, and where it is now; empty if all is well."""
        return self._file.notice

    def close(self) -> None:
        """Close the file; everything is in it already."""
        self._file.close()

    # The life of a job, in order.

    def submit(self, request: JobRequest, now: float) -> Job:
        """Accept a request: write its job down and let it wait.

        A job that waits to make the same of the same stem ends `cancelled` with the code `superseded`.

        Raises `RvcdError`: `busy` when the queue is full.
        """
        with self._file.transaction() as db:
            older = [self._supersede(job, now) for job in self._waiting_twins(request)]
            if not older and self._count("state = 'queued'") >= self.queue_bound:
                raise RvcdError(
                    Code.BUSY, f"The queue is full: {self.queue_bound} stems wait. Try again when some are done."
                )
            job = Job(id=0, request=request, state=JobState.QUEUED, created=now)
            row = db.execute(
                "INSERT INTO jobs (state, priority, twins, document) VALUES (?, ?, ?, ?)",
                (job.state, request.priority, _key(request), _document(job)),
            )
            assert row.lastrowid is not None
            job = replace(job, id=row.lastrowid)
            self._file.reserve(job.id)
        self._tell(*older, job)
        return job

    def next_queued(self) -> Job | None:
        """The job whose turn it is."""
        waiting = self._select("WHERE state = 'queued' ORDER BY priority DESC, id LIMIT 1")
        return waiting[0] if waiting else None

    def position(self, job: Job) -> int:
        """How many waiting jobs go before this one."""
        return self._count(
            "state = 'queued' AND (priority > ? OR priority = ? AND id < ?)",
            (job.request.priority, job.request.priority, job.id),
        )

    def start(self, job_id: int, now: float, device: str = "", seconds_of_audio: float = 0.0, voice: str = "") -> Job:
        """Note that the engine has the job: one attempt more."""
        with self._file.transaction():
            job = self.job(job_id)
            job = self._move(
                job,
                JobState.RUNNING,
                started=now,
                attempts=job.attempts + 1,
                seconds_of_audio=seconds_of_audio,
                voice=voice,
            )
        self._running[job_id] = job
        self._announce(Started(job, device))
        return job

    def progress(self, job_id: int, fraction: float, stage: str, seconds_left: float = -1.0) -> None:
        """Note how far a running job is, in memory. The fraction never falls, not even in a second attempt.

        A job that does not run (any more) is left alone: the engine may speak on for a moment after a cancel.
        """
        job = self._running.get(job_id)
        if job is None:
            return
        fraction = job.fraction if math.isnan(fraction) else min(1.0, max(job.fraction, fraction))
        self._running[job_id] = job = replace(job, fraction=fraction, stage=stage)
        self._announce(Progressed(job, seconds_left))

    def stage(self, job_id: int, staged: Path, backup: Path | None, expected: tuple[int, ...]) -> Job:
        """Note that the result is verified and lies at `staged`, and what the stem must still be when it is replaced.

        From here on a crash can be rolled forward. It is no event: nothing is told.
        """
        with self._file.transaction():
            job = self._move(self.job(job_id), JobState.STAGED, staged=staged, backup=backup, expected=expected)
        self._running.pop(job_id, None)
        return job

    def commit(self, job_id: int, now: float, result: Path | None = None) -> Job:
        """Note that the result is in its place; only a dry run may skip being staged."""
        with self._file.transaction():
            job = self._move(self.job(job_id), JobState.COMMITTED, finished=now, fraction=1.0, result=result)
        self._tell(job)
        return job

    def fail(self, job_id: int, now: float, code: Code, message: str) -> Job:
        """Note why the job will not be done."""
        with self._file.transaction():
            job = self._move(self.job(job_id), JobState.FAILED, finished=now, code=str(code), message=message)
        self._tell(job)
        return job

    def cancel(self, job_id: int, now: float, code: Code = Code.CANCELLED, message: str = "") -> Job:
        """Note that somebody took the job back, or (`superseded`) that a newer bounce made it pointless."""
        with self._file.transaction():
            job = self._move(self.job(job_id), JobState.CANCELLED, finished=now, code=str(code), message=message)
        self._tell(job)
        return job

    def retry(self, job_id: int, now: float, code: Code, message: str) -> Job:
        """Let a job wait again after its engine died; fail it with `code` when that was its last attempt."""
        with self._file.transaction():
            job = self._wait_again_or_fail(self.job(job_id), now, code, message)
        self._tell(job)
        return job

    def put_back(self, job_id: int, now: float) -> Job:
        """Let a running or staged job wait again through no fault of its own; the attempt does not count.

        For a clean stop, and for a stem that changed underneath. If a newer job for the same stem waits already, this
        one ends as superseded.
        """
        with self._file.transaction():
            job = self.job(job_id)
            job = self._wait_again(job, now, attempts=max(0, job.attempts - 1))
        self._tell(job)
        return job

    def recover(self, now: float) -> list[Job]:
        """Sort out what the last process left unfinished, oldest first; call it once, before anything else.

        Returns each such job as it stands now:

        - `queued`: it ran and waits again;
        - `failed`: it ran and that was its last attempt; `cancelled`: a newer job for the stem waits;
        - `staged`: for the caller to finish. If `staged` lies no more where it was and the stem is there, the
          replacement had happened: `commit`. If it lies there and the stem still has the fingerprint `expected`,
          replace and `commit`. Otherwise drop it and `put_back`.
        """
        with self._file.transaction():
            left = [
                job
                if job.state is JobState.STAGED
                else self._wait_again_or_fail(
                    job, now, Code.ENGINE_DIED, f"rvcd died {job.attempts} times while it converted this stem."
                )
                for job in self._select("WHERE state IN ('running', 'staged') ORDER BY id")
            ]
        self._tell(*left)
        return left

    # Questions.

    def job(self, job_id: int) -> Job:
        """One job, with its progress."""
        for job in self._select("WHERE id = ?", (job_id,)):
            return job
        raise RvcdError(Code.NOT_FOUND, f"There is no job {job_id}.")

    def active(self) -> list[Job]:
        """What is not over: the jobs that the engine has, then those that wait, in the order of the queue."""
        return self._select("WHERE finished IS NULL ORDER BY state = 'queued', priority DESC, id")

    def recent(self, limit: int) -> list[Job]:
        """The jobs that ended last, the latest first."""
        return self._select("WHERE finished IS NOT NULL ORDER BY finished DESC, id DESC LIMIT ?", (limit,))

    def failed(self, limit: int) -> list[Job]:
        """The jobs that failed last, the latest first."""
        return self._select("WHERE state = 'failed' ORDER BY finished DESC, id DESC LIMIT ?", (limit,))

    def counts(self) -> dict[JobState, int]:
        """How many jobs the journal holds in each state."""
        found = dict(self._file.db.execute("SELECT state, count(*) FROM jobs GROUP BY state"))
        return {state: found.get(state, 0) for state in JobState}

    # Housekeeping.

    def prune(self, before: float) -> int:
        """Forget the jobs that ended before this time, and say how many.

        A job that names a backup can be undone, and stays.
        """
        with self._file.transaction() as db:
            return db.execute(
                "DELETE FROM jobs WHERE finished < ? AND json_extract(document, '$.backup') IS NULL", (before,)
            ).rowcount

    def forget_backup(self, job_id: int) -> Job:
        """Note that the backup of a job that is over is gone: it cannot be undone any more."""
        with self._file.transaction():
            job = self.job(job_id)
            if not job.state.is_final:
                raise RvcdError(Code.BAD_REQUEST, f"Job {job_id} is {job.state}; its backup is needed.")
            job = replace(job, backup=None)
            self._write(job)
        return job

    # Below, everything that touches the file happens within a transaction of the caller.

    def _move(self, job: Job, state: JobState, **changes: Any) -> Job:
        _check_move(job, state)
        moved = replace(job, state=state, **changes)
        self._write(moved)
        return moved

    def _write(self, job: Job) -> None:
        self._file.db.execute(
            "UPDATE jobs SET state = ?, finished = ?, document = ? WHERE id = ?",
            (job.state, job.finished, _document(job), job.id),
        )

    def _wait_again_or_fail(self, job: Job, now: float, code: Code, message: str) -> Job:
        if job.attempts >= MAX_ATTEMPTS:
            return self._move(job, JobState.FAILED, finished=now, code=str(code), message=message)
        return self._wait_again(job, now, attempts=job.attempts)

    def _wait_again(self, job: Job, now: float, attempts: int) -> Job:
        _check_move(job, JobState.QUEUED)
        if self._waiting_twins(job.request):
            return self._supersede(job, now)
        return self._move(job, JobState.QUEUED, attempts=attempts, staged=None, backup=None, expected=(), stage="")

    def _supersede(self, job: Job, now: float) -> Job:
        message = f"A newer request for {job.request.path} took its place."
        return self._move(job, JobState.CANCELLED, finished=now, code=str(Code.SUPERSEDED), message=message)

    def _waiting_twins(self, request: JobRequest) -> list[Job]:
        alike = self._select("WHERE state = 'queued' AND twins = ?", (_key(request),))
        return [job for job in alike if _is_same_stem(job.request.path, request.path)]

    def _count(self, condition: str, values: tuple[Any, ...] = ()) -> int:
        (count,) = self._file.db.execute(  # the conditions are ours
            f"SELECT count(*) FROM jobs WHERE {condition}",  # noqa: S608
            values,
        ).fetchone()
        return int(count)

    def _select(self, clause: str, values: tuple[Any, ...] = ()) -> list[Job]:
        rows = self._file.db.execute(  # the clauses are ours
            f"SELECT id, state, document FROM jobs {clause}",  # noqa: S608
            values,
        ).fetchall()
        return [self._running.get(row[0]) or _job(row) for row in rows]

    def _tell(self, *jobs: Job) -> None:
        """Announce where jobs went that do not run (any more); that one is staged is no news."""
        for job in jobs:
            self._running.pop(job.id, None)
            if job.state.is_final:
                self._announce(Finished(job))
            elif job.state is JobState.QUEUED:
                self._announce(Queued(job, self.position(job)))


def _check_move(job: Job, state: JobState) -> None:
    skips_staging = job.state is JobState.RUNNING and state is JobState.COMMITTED and not job.request.dry_run
    if skips_staging or state not in _MOVES.get(job.state, ()):
        raise RvcdError(Code.BAD_REQUEST, f"Job {job.id} is {job.state} and cannot become {state}.")


def _key(request: JobRequest) -> str:
    """What jobs have in common that make the same of the same stem, however its name is composed or capitalised."""
    stem = unicodedata.normalize("NFC", os.path.realpath(request.path)).casefold()
    voice = request.voice if request.mode == "sibling" else None  # it is part of a sibling's name
    return json.dumps([stem, request.mode, request.out, voice, request.dry_run], default=os.fspath)


def _is_same_stem(one: Path, other: Path) -> bool:
    """Whether two names with the same key are one file; the volume decides if they differ in composition or case."""
    if one == other:
        return True
    try:
        return one.samefile(other)
    except OSError:
        return unicodedata.normalize("NFC", str(one)) == unicodedata.normalize("NFC", str(other))


def _document(job: Job) -> str:
    """All of a job but its id and state as ASCII, whatever bytes its paths hold."""
    fields = asdict(job)
    del fields["id"], fields["state"]
    return json.dumps(fields, default=os.fspath)


def _job(row: tuple[int, str, str]) -> Job:
    """Raises `ValueError`, `TypeError` or `KeyError` for a row that is not ours."""
    job_id, state, document = row
    fields = json.loads(document)
    request = fields.pop("request")
    for owner, names in ((request, ("path", "out")), (fields, ("backup", "staged", "result"))):
        owner.update({name: None if owner[name] is None else Path(owner[name]) for name in names})
    fields["expected"] = tuple(fields["expected"])
    return Job(id=job_id, state=JobState(state), request=JobRequest(**request), **fields)
