"""The daemon and its engine, killed: no stem is lost, none is converted twice, every job ends once."""

import os
import random
import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from rvcd import backups
from rvcd.errors import RvcdError
from rvcd.osc.client import OscClient
from tests.support.daemon import Daemon, bounce, digest, endings, is_alive, wait_for

STEPS = [
    (method, when) for method in ("submit", "start", "stage", "_put_in_place", "commit") for when in ("before", "after")
]
RANDOM_ROUNDS = 5


def kill_engine(daemon: Daemon) -> int:
    pid = daemon.engine_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def states_by_stem(daemon: Daemon) -> dict[str, list[str]]:
    """States of all jobs in the journal, by the name of their stem."""
    with closing(sqlite3.connect(daemon.home / "journal.db")) as journal:
        rows = journal.execute("SELECT state, json_extract(document, '$.request.path') FROM jobs ORDER BY id")
        found: dict[str, list[str]] = {}
        for state, path in rows:
            found.setdefault(Path(path).name, []).append(state)
    return found


# The engine.


def test_a_job_survives_one_death_of_its_engine(daemon: Daemon) -> None:
    daemon.start("gated").until("idle")
    stem = daemon.stems / "lead.wav"
    with daemon.client() as client:
        client.subscribe("jobs")
        bounce(stem)
        wait_for((daemon.home / "converting").exists)
        (daemon.home / "converting").unlink()
        slowest, pause = 0.0, threading.Event()
        killed = kill_engine(daemon)
        with OscClient(daemon.port, patience_seconds=5.0) as pinger:
            while not (daemon.home / "converting").exists():
                begun = time.monotonic()
                pinger.ask("/rvcd/status")
                slowest = max(slowest, time.monotonic() - begun)
                pause.wait(0.02)  # who asks too often is not answered
        assert slowest < 1
        assert daemon.engine_pid != killed
        (daemon.home / "go").touch()
        assert [end for end, _ in endings(client, 1)] == ["done"]
    assert states_by_stem(daemon) == {"lead.wav": ["committed"]}


def test_a_job_fails_when_its_engine_dies_twice(daemon: Daemon) -> None:
    daemon.start("gated").until("idle")
    stem = daemon.stems / "lead.wav"
    with daemon.client() as client:
        client.subscribe("jobs")
        original = bounce(stem)
        for _ in range(2):
            wait_for((daemon.home / "converting").exists)
            (daemon.home / "converting").unlink()
            kill_engine(daemon)
        assert [end for end, _ in endings(client, 1)] == ["failed"]
    assert daemon.jobs()[0][3] == "engine_died"
    assert stem.read_bytes() == original
    (daemon.home / "go").touch()
    bounce(daemon.stems / "next.wav")
    assert daemon.ended(2)[0][1] == "committed"


def test_an_engine_that_cannot_start_is_given_up(daemon: Daemon) -> None:
    daemon.start("broken")
    status = daemon.until("degraded")
    assert "died 3 times" in status["detail"]
    starts = daemon.home / "starts"
    assert len(starts.read_text()) == 3
    bounce(daemon.stems / "lead.wav")
    assert daemon.ended(1)[0][3] == "engine_died"
    with daemon.client() as client, pytest.raises(RvcdError):
        client.command("/rvcd/model/load", "anna", wait_seconds=20)
    daemon.until("degraded")
    assert len(starts.read_text()) == 6, "a load tries again, a job does not"


def test_killed_engine_at_random_points(daemon: Daemon) -> None:
    daemon.start().until("idle")
    stems = [daemon.stems / f"{number}.wav" for number in range(12)]
    originals = {stem: bounce(stem, 0.5, seed=number) for number, stem in enumerate(stems)}
    chance = random.Random(7)
    for _ in range(4):
        wait_for(lambda: daemon.engine_pid is not None and daemon.status()["state"] == "busy")
        threading.Event().wait(chance.uniform(0, 0.3))
        if daemon.engine_pid is not None:
            kill_engine(daemon)
    daemon.ended(len(stems))
    for stem, original in originals.items():
        judge(daemon, stem, original)


# The supervisor.


def judge(daemon: Daemon, stem: Path, original: bytes) -> None:
    """The stem is the take or its conversion, whole; a conversion was made of the take, once."""
    takes = [each for each in backups.list_backups(daemon.stems) if each.original == stem]
    assert {each.path.read_bytes() for each in takes} <= {original}, "converted twice"
    if stem.read_bytes() != original:
        assert digest(stem) in {each.result for each in takes}, "neither the take nor its conversion"


def test_killed_at_every_step_and_at_random(daemon: Daemon) -> None:
    """The supervisor kills itself around each step of a job, then is killed wherever it is; each run picks up."""
    originals: dict[Path, bytes] = {}
    chance = random.Random(11)
    for number in range(len(STEPS) + RANDOM_ROUNDS):
        stem = daemon.stems / f"{number}.wav"
        step = STEPS[number] if number < len(STEPS) else None
        daemon.start(*(("kill", *step, stem.name) if step else ()))
        wait_for(lambda: daemon.engine_pid is not None)
        if number:  # only what comes after the first sight of the folder is a bounce
            wait_for(lambda: not daemon.jobs("active"))
        daemon.until("idle")
        engine = daemon.engine_pid
        originals[stem] = bounce(stem, seed=number)
        assert daemon.process is not None
        if step is None:
            threading.Event().wait(chance.uniform(0.2, 0.7))
            daemon.process.kill()
        assert daemon.process.wait(20) == -signal.SIGKILL
        assert engine is not None
        wait_for(lambda engine=engine: not is_alive(engine))
        judge(daemon, stem, originals[stem])
    daemon.start()
    daemon.until("idle")
    wait_for(lambda: len(states_by_stem(daemon)) == len(originals) and not daemon.jobs("active"))
    for stem, original in originals.items():
        judge(daemon, stem, original)
        assert stem.read_bytes() != original, stem
    for name, states in states_by_stem(daemon).items():
        assert states.count("committed") == 1, (name, states)
        assert set(states) <= {"committed", "cancelled"}, (name, states)
    assert not list((daemon.stems / ".rvcd" / "stage").iterdir())


def test_a_sibling_survives_a_kill(daemon: Daemon) -> None:
    for number, when in enumerate(("before", "after")):
        stem = daemon.home / "elsewhere" / f"{number}.wav"
        original = bounce(stem)
        daemon.start("kill", "_put_in_place", when, f"{number}.anna.wav").until("idle")
        daemon.convert(stem, "model", "anna", "mode", "sibling")
        assert daemon.process is not None
        assert daemon.process.wait(20) == -signal.SIGKILL
        daemon.start().until("idle")
        assert [row[1] for row in daemon.ended(number + 1)] == ["committed"] * (number + 1)
        assert len(stem.with_name(f"{number}.anna.wav").read_bytes()) == len(original)
        assert stem.read_bytes() == original
        assert daemon.stop() == 143
    assert not [path for path in (daemon.home / "elsewhere").iterdir() if path.name.startswith(".rvcd-")]


def test_an_answered_job_file_is_not_done_again(daemon: Daemon) -> None:
    """Killed between the end of a job and the answer, the next run answers and converts nothing."""
    stem = daemon.home / "elsewhere" / "lead.wav"
    bounce(stem)
    daemon.start("kill", "commit", "after", stem.name).until("idle")
    file = daemon.home / "spool" / "job.json"
    # The answer is written within the commit; what is lost in a kill is put back by hand.
    text = f'{{"path": "{stem}", "voice": "anna"}}'
    file.write_text(text)
    kept = file.with_suffix(".kept")
    os.link(file, kept)
    assert daemon.process is not None
    assert daemon.process.wait(20) == -signal.SIGKILL
    answer = daemon.home / "spool" / "job.done.json"
    answer.unlink()
    kept.rename(file)
    converted = stem.read_bytes()
    daemon.start().until("idle")
    wait_for(answer.exists)
    assert '"committed"' in answer.read_text()
    assert not file.exists()
    assert stem.read_bytes() == converted
    assert len(daemon.jobs()) == 1


def test_a_full_disk_is_told_and_nothing_is_lost(daemon: Daemon) -> None:
    """A limit on file sizes stands for the disk: the backup cannot be written."""
    import resource

    stem = daemon.home / "elsewhere" / "long.wav"
    original = bounce(stem, 20.0)
    daemon.start().until("idle")
    assert daemon.engine_pid is not None
    resource.prlimit(daemon.engine_pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    job = daemon.run(stem, "model", "anna")
    assert job[1::2] == ("failed", "disk_full"), daemon.log()
    assert stem.read_bytes() == original
