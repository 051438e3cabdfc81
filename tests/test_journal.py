import json
import os
import random
import sqlite3
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rvcd import journal_file
from rvcd.errors import Code, RvcdError
from rvcd.jobs import Finished, Job, JobEvent, JobRequest, JobState, Progressed, Queued, Started
from rvcd.journal import Journal
from tests.support.journal_child import STEPS_OF_STATE

ROOT = Path(__file__).parents[1]
NOW = 1_700_000_000.0


@pytest.fixture
def told() -> list[JobEvent]:
    return []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.db"


@pytest.fixture
def journal(path: Path, told: list[JobEvent]) -> Iterator[Journal]:
    journal = Journal(path, announce=told.append)
    yield journal
    journal.close()


def request(path: str | Path = "/music/lead.wav", **changes: Any) -> JobRequest:
    return JobRequest(path=Path(path), **changes)


def staged(journal: Journal, path: str | Path = "/music/lead.wav", **changes: Any) -> Job:
    job = journal.submit(request(path, **changes), NOW)
    journal.start(job.id, NOW)
    return journal.stage(job.id, Path("/music/.rvcd/stage/1"), Path("/music/.rvcd/backup/1"), (1, 2, 3, 2**60))


def code_of(act: Callable[[], object]) -> Code:
    with pytest.raises(RvcdError) as caught:
        act()
    return caught.value.code


# The life of a job.


def test_a_job_goes_from_queued_to_committed_and_each_step_is_told(journal: Journal, told: list[JobEvent]) -> None:
    job = journal.submit(request(settings={"semitones": 3.5}, client="c", req="r"), NOW)
    journal.start(job.id, NOW + 1, device="cpu", seconds_of_audio=12.5)
    journal.progress(job.id, 0.25, "pitch", seconds_left=4.0)
    journal.stage(job.id, Path("/s"), Path("/b"), (1, 2, 3, 4))
    done = journal.commit(job.id, NOW + 9, result=Path("/music/lead.wav"))
    assert [type(event) for event in told] == [Queued, Started, Progressed, Finished]
    assert told[0] == Queued(job, 0)
    assert told[-1] == Finished(done)
    assert journal.job(job.id) == done
    assert done == Job(
        id=job.id,
        request=job.request,
        state=JobState.COMMITTED,
        created=NOW,
        started=NOW + 1,
        finished=NOW + 9,
        fraction=1.0,
        stage="pitch",
        attempts=1,
        backup=Path("/b"),
        staged=Path("/s"),
        expected=(1, 2, 3, 4),
        result=Path("/music/lead.wav"),
        seconds_of_audio=12.5,
    )


def test_a_change_is_on_disk_before_it_is_told(path: Path) -> None:
    def seen_by_others(event: JobEvent) -> None:
        with sqlite3.connect(path) as other:
            seen.append(other.execute("SELECT state FROM jobs WHERE id = ?", (event.job.id,)).fetchone()[0])
        other.close()

    seen: list[str] = []
    journal = Journal(path, announce=seen_by_others)
    job = journal.submit(request(), NOW)
    journal.start(job.id, NOW)
    journal.fail(job.id, NOW, Code.GPU_ERROR, "The GPU gave up.")
    journal.close()
    assert seen == ["queued", "running", "failed"]


def test_what_was_written_is_read_back_by_the_next_process(path: Path, journal: Journal) -> None:
    """Even a name that is no text, and a number that no float32 holds."""
    odd = Path(os.fsdecode(b"/music/\xff\n'\xf0\x9f\x8e\xa4'.wav"))
    job = journal.submit(request(odd, mode="out", out=Path("/out/\u00e4.wav"), req="\ud800", priority=-3), NOW + 0.125)
    journal.close()
    again = Journal(path)
    assert again.job(job.id) == job
    again.close()


MOVES: dict[str, Callable[[Journal, int], object]] = {
    "start": lambda journal, job_id: journal.start(job_id, NOW),
    "stage": lambda journal, job_id: journal.stage(job_id, Path("/s"), None, ()),
    "commit": lambda journal, job_id: journal.commit(job_id, NOW),
    "fail": lambda journal, job_id: journal.fail(job_id, NOW, Code.INTERNAL, ""),
    "cancel": lambda journal, job_id: journal.cancel(job_id, NOW),
    "put_back": lambda journal, job_id: journal.put_back(job_id, NOW),
    "retry": lambda journal, job_id: journal.retry(job_id, NOW, Code.ENGINE_DIED, ""),
}
ALLOWED = {
    "queued": {"start", "fail", "cancel"},
    "running": {"stage", "fail", "cancel", "put_back", "retry"},
    "staged": {"commit", "fail", "cancel", "put_back", "retry"},
    "committed": set[str](),
    "failed": set[str](),
    "cancelled": set[str](),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("state", ALLOWED)
def test_only_the_moves_of_the_table_are_made(journal: Journal, told: list[JobEvent], state: str, move: str) -> None:
    job = journal.submit(request(), NOW)
    for step in STEPS_OF_STATE[state]:
        MOVES[step](journal, job.id)
    before = journal.job(job.id)
    told.clear()
    if move in ALLOWED[state]:
        MOVES[move](journal, job.id)
        assert journal.job(job.id).state != before.state
    else:
        assert code_of(lambda: MOVES[move](journal, job.id)) is Code.BAD_REQUEST
        assert journal.job(job.id) == before
        assert told == []


def test_a_dry_run_is_done_without_a_result(journal: Journal) -> None:
    job = journal.submit(request(dry_run=True), NOW)
    journal.start(job.id, NOW)
    assert journal.commit(job.id, NOW).state is JobState.COMMITTED


def test_an_unknown_job_is_refused_by_its_number(journal: Journal) -> None:
    with pytest.raises(RvcdError, match="job 77") as caught:
        journal.cancel(77, NOW)
    assert caught.value.code is Code.NOT_FOUND


def test_progress_never_falls_and_is_kept_in_memory(path: Path, journal: Journal, told: list[JobEvent]) -> None:
    job = journal.submit(request(), NOW)
    journal.progress(job.id, 0.9, "load")
    journal.start(job.id, NOW)
    for fraction in (0.5, 0.25, float("nan"), 7.0):
        journal.progress(job.id, fraction, "voice")
    fractions = [event.job.fraction for event in told if isinstance(event, Progressed)]
    assert fractions == [0.5, 0.5, 0.5, 1.0]
    assert journal.active()[0].fraction == 1.0
    with sqlite3.connect(path) as other:
        (document,) = other.execute("SELECT document FROM jobs").fetchone()
    other.close()
    assert json.loads(document)["fraction"] == 0.0


def test_a_second_attempt_starts_where_the_first_one_was_seen(journal: Journal, told: list[JobEvent]) -> None:
    job = journal.submit(request(), NOW)
    journal.start(job.id, NOW)
    journal.progress(job.id, 0.5, "voice")
    journal.retry(job.id, NOW, Code.ENGINE_DIED, "")
    journal.start(job.id, NOW)
    journal.progress(job.id, 0.1, "load")
    assert told[-1].job.fraction == 0.5


def test_the_engine_speaking_on_after_a_cancel_is_not_heard(journal: Journal, told: list[JobEvent]) -> None:
    job = journal.submit(request(), NOW)
    journal.start(job.id, NOW)
    journal.cancel(job.id, NOW)
    journal.progress(job.id, 0.5, "voice")
    assert isinstance(told[-1], Finished)
    assert journal.job(job.id).fraction == 0.0


# The queue.


def test_the_queue_goes_by_priority_and_then_by_arrival(journal: Journal) -> None:
    jobs = [journal.submit(request(f"/{n}.wav", priority=priority), NOW) for n, priority in enumerate((0, 5, 0, 5, -1))]
    turns = [1, 3, 0, 2, 4]
    assert [journal.position(jobs[n]) for n in turns] == [0, 1, 2, 3, 4]
    assert journal.active() == [jobs[n] for n in turns]
    order = []
    while job := journal.next_queued():
        order.append(job)
        journal.start(job.id, NOW)
    assert order == [jobs[n] for n in turns]


def test_a_full_queue_says_so_at_once_and_writes_nothing(journal: Journal, told: list[JobEvent]) -> None:
    journal.queue_bound = 2
    first, _ = (journal.submit(request(f"/{n}.wav"), NOW) for n in range(2))
    told.clear()
    assert code_of(lambda: journal.submit(request("/3.wav"), NOW)) is Code.BUSY
    assert (len(journal.active()), told) == (2, [])
    journal.submit(request("/1.wav"), NOW)
    assert len(journal.active()) == 2, "a newer request takes the place of the one that waits"
    journal.start(first.id, NOW)
    journal.submit(request("/3.wav"), NOW)


def test_a_newer_request_replaces_the_one_that_waits(journal: Journal, told: list[JobEvent]) -> None:
    older = journal.submit(request(voice="Anna"), NOW)
    newer = journal.submit(request(voice="Bob"), NOW + 1)
    assert journal.active() == [newer]
    ended = journal.job(older.id)
    assert (ended.state, ended.code, ended.finished) == (JobState.CANCELLED, "superseded", NOW + 1)
    assert told[1:] == [Finished(ended), Queued(newer, 0)]


def test_a_running_job_is_not_replaced_by_a_newer_request(journal: Journal) -> None:
    running = journal.submit(request(), NOW)
    journal.start(running.id, NOW)
    waiting = journal.submit(request(), NOW)
    assert [job.id for job in journal.active()] == [running.id, waiting.id]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"mode": "out", "out": Path("/a.wav")}, {"mode": "out", "out": Path("/b.wav")}),
        ({"mode": "sibling", "voice": "Anna"}, {"mode": "sibling", "voice": "Bob"}),
        ({"mode": "replace"}, {"mode": "sibling"}),
        ({"dry_run": True}, {"dry_run": False}),
    ],
)
def test_requests_for_different_results_of_one_stem_do_not_replace_each_other(
    journal: Journal, one: dict[str, Any], other: dict[str, Any]
) -> None:
    jobs = [journal.submit(request(**changes), NOW) for changes in (one, other)]
    assert journal.active() == jobs


def test_a_stem_is_the_same_by_another_name(journal: Journal, tmp_path: Path) -> None:
    """Through a symbolic link, and composed otherwise where the volume has no file that could tell."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "lead.wav").touch()
    names = [tmp_path / "real" / "lead.wav", tmp_path / "link" / "lead.wav"]
    composed = [tmp_path / unicodedata.normalize(form, "Gesang \u00e4.wav") for form in ("NFC", "NFD")]
    for pair in (names, composed):
        _, newer = (journal.submit(request(name), NOW) for name in pair)
        assert journal.active()[-1] == newer
    assert len(journal.active()) == 2


def test_two_files_whose_names_differ_in_case_or_composition_are_two_stems(journal: Journal, tmp_path: Path) -> None:
    names = ["lead.wav", "LEAD.wav", *(unicodedata.normalize(form, "\u00e4.wav") for form in ("NFC", "NFD"))]
    for name in names:
        (tmp_path / name).touch()
        journal.submit(request(tmp_path / name), NOW)
    assert len(journal.active()) == len(list(tmp_path.glob("*.wav")))


# Attempts, and what a crash leaves.


def test_a_job_whose_engine_died_is_retried_once(journal: Journal, told: list[JobEvent]) -> None:
    job = journal.submit(request(), NOW)
    journal.submit(request("/later.wav"), NOW)
    journal.start(job.id, NOW)
    assert journal.retry(job.id, NOW, Code.GPU_ERROR, "no").state is JobState.QUEUED
    assert journal.next_queued() == journal.job(job.id), "it keeps its turn"
    journal.start(job.id, NOW)
    failed = journal.retry(job.id, NOW + 5, Code.GPU_ERROR, "The GPU gave up twice.")
    assert (failed.state, failed.code, failed.attempts) == (JobState.FAILED, "gpu_error", 2)
    assert told[-1] == Finished(failed)


def test_a_job_that_is_put_back_has_its_attempts_left(journal: Journal) -> None:
    job = staged(journal)
    for _ in range(5):
        job = journal.put_back(job.id, NOW)
        assert (job.state, job.attempts, job.staged, job.expected) == (JobState.QUEUED, 0, None, ())
        journal.start(job.id, NOW)


@pytest.mark.parametrize("again", ["retry", "put_back"])
def test_a_job_does_not_wait_again_beside_a_newer_one_for_its_stem(journal: Journal, again: str) -> None:
    job = journal.submit(request(), NOW)
    journal.start(job.id, NOW)
    newer = journal.submit(request(), NOW)
    MOVES[again](journal, job.id)
    assert journal.active() == [newer]
    assert journal.job(job.id).code == "superseded"


def test_recovery_sorts_out_what_a_dead_process_left(path: Path, journal: Journal, told: list[JobEvent]) -> None:
    ran, ran_twice, ready, outdated, waiting, over = (journal.submit(request(f"/{n}.wav"), NOW) for n in range(6))
    for job in (ran, ran_twice, ready, outdated, over):
        journal.start(job.id, NOW)
    journal.retry(ran_twice.id, NOW, Code.ENGINE_DIED, "")
    journal.start(ran_twice.id, NOW)
    ready = journal.stage(ready.id, Path("/s"), Path("/b"), (1, 2, 3))
    newer = journal.submit(request(outdated.request.path), NOW)
    journal.fail(over.id, NOW, Code.GPU_ERROR, "")
    told.clear()
    journal.close()

    journal = Journal(path, announce=told.append)
    left = journal.recover(NOW + 60)
    assert {job.id: job.state for job in left} == {
        ran.id: JobState.QUEUED,
        ran_twice.id: JobState.FAILED,
        ready.id: JobState.STAGED,
        outdated.id: JobState.CANCELLED,
    }
    assert left[2] == ready
    assert journal.job(ran_twice.id).code == "engine_died"
    assert [type(event) for event in told] == [Queued, Finished, Finished]
    assert [job.id for job in journal.active()] == [ready.id, ran.id, waiting.id, newer.id]
    assert journal.recover(NOW + 61) == [ready], "only the staged one is still the caller's"
    journal.close()


def test_a_kill_at_any_instruction_loses_and_doubles_nothing(path: Path) -> None:
    """Children work on one journal, one after another, and each is killed while it does."""
    dice = random.Random(4)
    announced: dict[int, list[str]] = {}
    highest = 0
    for round_number in range(12):
        lines = run_and_kill(path, seed=round_number, after_lines=dice.randrange(1, 120))
        new = {job_id for kind, job_id, _ in lines if kind == "submitted"}
        assert not new or min(new) > highest
        highest = max(new, default=highest)
        for kind, job_id, state in lines:
            announced.setdefault(job_id, []).append(state)
            assert kind != "Finished" or [JobState(s).is_final for s in announced[job_id]].count(True) == 1
        journal = Journal(path)
        assert journal.notice == ""
        jobs = {job.id: job for job in [*journal.active(), *journal.recent(10**6)]}
        journal.close()
        assert announced.keys() <= jobs.keys()
        for job_id, states in announced.items():
            assert not JobState(states[-1]).is_final or jobs[job_id].state == states[-1]
        names = [job.request.req for job in jobs.values()]
        assert len(names) == len(set(names)) == sum(journal_counts(path).values())
    assert highest > 30, "the children had something to do"


def run_and_kill(path: Path, seed: int, after_lines: int) -> list[tuple[str, int, str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.support.journal_child", str(path), str(seed)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    with child, child.stdout as output:
        text = "".join(output.readline() for _ in range(after_lines))
        child.kill()
        text += output.read()
    assert text, "the child died by itself"
    whole = text[: text.rindex("\n")].splitlines()
    return [(kind, int(job_id), state) for kind, job_id, state in map(str.split, whole)]


def journal_counts(path: Path) -> dict[JobState, int]:
    journal = Journal(path)
    counts = journal.counts()
    journal.close()
    return counts


# Questions and housekeeping.


def test_questions_are_answered_from_the_journal(journal: Journal) -> None:
    jobs = [journal.submit(request(f"/{n}.wav"), NOW) for n in range(5)]
    journal.fail(jobs[1].id, NOW + 2, Code.GPU_ERROR, "")
    journal.fail(jobs[3].id, NOW + 4, Code.GPU_ERROR, "")
    journal.cancel(jobs[2].id, NOW + 3)
    assert [job.id for job in journal.recent(2)] == [jobs[3].id, jobs[2].id]
    assert [job.id for job in journal.failed(9)] == [jobs[3].id, jobs[1].id]
    assert [job.id for job in journal.active()] == [jobs[0].id, jobs[4].id]
    assert journal.counts() == dict.fromkeys(JobState, 0) | {"queued": 2, "failed": 2, "cancelled": 1}


def test_pruning_forgets_old_jobs_but_none_that_can_be_undone(path: Path, journal: Journal) -> None:
    undoable = staged(journal)
    journal.commit(undoable.id, NOW)
    old, young, active = (journal.submit(request(f"/{n}.wav"), NOW) for n in range(3))
    journal.cancel(old.id, NOW)
    journal.cancel(young.id, NOW + 100)
    assert journal.prune(NOW + 50) == 1
    assert {job.id for job in [*journal.active(), *journal.recent(9)]} == {undoable.id, young.id, active.id}
    assert journal.forget_backup(undoable.id).backup is None
    assert journal.prune(NOW + 500) == 2
    assert [job.id for job in journal.active()] == [active.id]
    assert code_of(lambda: journal.forget_backup(active.id)) is Code.BAD_REQUEST


# The file.


def test_ids_are_never_given_out_again_not_even_after_pruning(path: Path) -> None:
    given = []
    for _ in range(3):
        journal = Journal(path)
        for _ in range(2):
            job = journal.submit(request(), NOW)
            journal.cancel(job.id, NOW)
            given.append(job.id)
        journal.prune(NOW + 1)
        journal.close()
    assert given == [1, 2, 3, 4, 5, 6]


def overwrite_header(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 400)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def scramble_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:] = random.Random(1).randbytes(len(content) - 100)
    path.write_bytes(content)


def drop_table(path: Path) -> None:
    edit(path, "DROP TABLE jobs")


def spoil_job(path: Path) -> None:
    edit(path, "UPDATE jobs SET document = '{' WHERE id = 105")


def come_from_the_future(path: Path) -> None:
    edit(path, "PRAGMA user_version = 99")


def edit(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute(statement)
    database.close()


DAMAGES = [overwrite_header, truncate, scramble_pages, drop_table, spoil_job, come_from_the_future]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("marks_lost", [False, True])
def test_a_damaged_file_is_set_aside_and_ids_go_on(
    path: Path, damage: Callable[[Path], None], marks_lost: bool
) -> None:
    journal = Journal(path)
    last = [journal.submit(request(f"/{n}.wav"), NOW) for n in range(105)][-1]
    journal.close()
    damage(path)
    damaged = path.read_bytes()
    if marks_lost:
        path.with_name("journal.db.ids").unlink()

    journal = Journal(path)
    aside = path.with_name("journal.db.damaged-1")
    assert aside.read_bytes() == damaged
    assert str(aside) in journal.notice
    assert journal.active() == []
    if not marks_lost or damage in (spoil_job, come_from_the_future):
        assert journal.submit(request("/next.wav"), NOW).id > last.id
    journal.close()
    journal = Journal(path)
    assert journal.notice == "", "the new file is sound"
    journal.close()


def test_a_second_damaged_file_does_not_overwrite_the_first(path: Path) -> None:
    for n in (1, 2):
        Journal(path).close()
        path.write_bytes(b"damage number %d" % n * 100)
        Journal(path).close()
        assert path.with_name(f"journal.db.damaged-{n}").read_bytes() == b"damage number %d" % n * 100


def test_the_write_ahead_log_leaves_with_its_damaged_database(path: Path) -> None:
    """A log beside a database that it does not belong to would be played into it."""
    journal = Journal(path)
    for n in range(105):
        journal.submit(request(f"/{n}.wav"), NOW)
    journal.close()
    journal = Journal(path)
    journal.submit(request(), NOW)
    log = path.with_name("journal.db-wal").read_bytes()
    journal.close()
    scramble_pages(path)
    path.with_name("journal.db-wal").write_bytes(log)
    journal = Journal(path)
    assert path.with_name("journal.db.damaged-1").exists()
    assert journal.active() == []
    assert journal.submit(request(), NOW).id > 106
    journal.close()


def test_a_lost_database_does_not_bring_old_ids_back(path: Path) -> None:
    journal = Journal(path)
    last = journal.submit(request(), NOW)
    journal.close()
    path.unlink()
    journal = Journal(path)
    assert journal.submit(request(), NOW).id > last.id
    journal.close()


def test_a_file_of_an_older_schema_is_brought_to_the_present(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    job = journal.submit(request(), NOW)
    journal.close()
    newer = (*journal_file._MIGRATIONS, ("ALTER TABLE jobs ADD COLUMN colour TEXT DEFAULT 'red'",))
    monkeypatch.setattr(journal_file, "_MIGRATIONS", newer)
    for _ in range(2):
        journal = Journal(path)
        assert journal.notice == ""
        assert journal.active() == [job]
        journal.close()
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT colour FROM jobs").fetchall() == [("red",)]
    database.close()


def test_a_journal_that_cannot_be_made_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "journal.db").mkdir()
    for path in (tmp_path / "file" / "journal.db", tmp_path / "journal.db"):
        with pytest.raises(RvcdError, match=r"journal\.db") as caught:
            Journal(path)
        assert caught.value.code is Code.NOT_WRITABLE


def test_a_change_that_cannot_be_written_is_not_told(path: Path, journal: Journal, told: list[JobEvent]) -> None:
    """The disk is as full as a database that may not grow."""
    job = journal.submit(request(), NOW)
    told.clear()
    journal._file.db.execute("PRAGMA max_page_count = 1")
    huge = request("/huge.wav", settings={"x": "y" * 100_000})
    assert code_of(lambda: journal.submit(huge, NOW)) is Code.DISK_FULL
    assert told == []
    assert journal.active() == [job]
    journal._file.db.execute("PRAGMA max_page_count = 100000")
    assert journal.submit(replace(huge, settings={}), NOW).id == job.id + 1
