"""The command line as a client: a real server over real UDP, and at the end the daemon itself."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rvcd import backups, paths
from rvcd.cli import main
from rvcd.commands.screen import duration, printable
from rvcd.errors import Code, RvcdError
from rvcd.instance import Note, is_alive, note_file
from rvcd.jobs import Finished, Job, JobRequest, JobState, Progressed, Started
from rvcd.journal import Journal
from rvcd.osc.control import Status
from rvcd.watch.ledger import Kind, Ledger
from tests.support.osc_peer import PATIENCE_SECONDS, Served, make_job, serving

Capture = pytest.CaptureFixture[str]
RVCD = [sys.executable, "-m", "rvcd"]
DEGRADED = "No default voice."


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RVCD_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def served(home: Path) -> Iterator[Served]:
    with serving() as served:
        note(served)
        yield served


@pytest.fixture
def nobody(home: Path) -> None:
    """A daemon that was killed: its note is there, it is not."""
    with serving() as served:
        note(served)


def note(served: Served, token_file: str = "") -> None:
    note_file().write_text(json.dumps(asdict(Note(os.getpid(), "127.0.0.1", served.port, token_file))))


def set_status(served: Served, **changes: Any) -> None:
    facts: dict[str, Any] = dict.fromkeys(("queued", "running", "models_warm"), 0)
    facts |= {"state": "idle", "active_model": "", "done": 3, "failed": 4}
    facts |= {"uptime_seconds": 3720, "memory_megabytes": 61.5}
    served.daemon.status = lambda: Status(**facts | changes)  # type: ignore[method-assign]


def ended(job_id: int, **changes: Any) -> Job:
    return make_job(
        job_id, **{"state": JobState.COMMITTED, "started": 100.0, "finished": 105.0, "seconds_of_audio": 50.0} | changes
    )


def document(capsys: Capture) -> Any:
    return json.loads(capsys.readouterr().out)


# status


def test_status_tells_everything(served: Served, capsys: Capture) -> None:
    set_status(served, state="busy", queued=5, running=1, detail=DEGRADED)
    running = make_job(7, state=JobState.RUNNING, started=1.0, fraction=0.5, stage="voice")
    served.daemon.all_jobs = {job.id: job for job in (running, make_job(8), ended(6))}
    assert main(["status"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"rvcd 0.3.0 is busy, up 1 h 2 min, 62 MB\n  {DEGRADED}\n")
    for line in (
        "  device  mlx cpu on test",
        "  voices  Ana (warm); 1 in the library",
        "  queue   5 waiting, 1 running, 3 done, 4 failed",
        "  folder  /music/in for Ana: watching, 2 pending, 1 unreadable",
        "  job     7  7.wav -> Ana",
        "          [############............]  50 %  voice",
        "  next    8  8.wav",
        "  last    6  6.wav  committed  50 s of audio in 5 s, real-time factor 0.10",
    ):
        assert f"{line}\n" in text


def test_status_as_json(served: Served, capsys: Capture) -> None:
    served.daemon.all_jobs = {1: ended(1), 2: make_job(2)}
    assert main(["status", "--json"]) == 0
    told = document(capsys)
    assert (told["is_running"], told["version"], told["detail"]) == (True, "0.3.0", "no default voice")
    assert told["voices"] == [{"name": "Ana", "state": "warm", "sample_rate": 40000, "megabytes": 55.5}]
    assert told["folders"][0]["pending"] == 2
    assert [row["job"] for row in told["active"]] == [2]
    assert told["recent"][0]["realtime_factor"] == pytest.approx(0.1)


def test_status_of_nobody_ends_with_3(nobody: None, capsys: Capture) -> None:
    assert main(["status"]) == 3
    assert capsys.readouterr().err.startswith("rvcd: not_running: No rvcd answers on 127.0.0.1 port ")
    assert main(["status", "--json"]) == 3
    told = document(capsys)
    assert (told["is_running"], told["error"]["code"]) == (False, "not_running")


@pytest.mark.parametrize("command", [["jobs"], ["send", "a.wav"], ["cancel", "1"], ["cancel", "--all"]])
def test_other_commands_to_nobody_end_with_1(nobody: None, command: list[str], capsys: Capture) -> None:
    assert main(command) == 1
    assert capsys.readouterr().err.startswith("rvcd: not_running: ")


def test_without_a_note_the_configured_port_is_asked(served: Served, capsys: Capture) -> None:
    note_file().unlink()
    paths.config_file().write_text(f"[osc]\nport = {served.port}\nmistake = 1\n")
    assert main(["status"]) == 0
    note_file().write_text("{half")
    assert main(["status"]) == 0


def test_the_token_is_said(home: Path, capsys: Capture) -> None:
    secret = home / "token"
    secret.write_text("open sesame\n")
    with serving(token="open sesame") as served:
        note(served, str(secret))
        assert main(["status"]) == 0
        assert main(["send", "a.wav"]) == 0
        secret.write_text("wrong")
        assert main(["send", "a.wav"]) == 1
        assert "unauthorized" in capsys.readouterr().err
        secret.unlink()
        assert main(["send", "a.wav"]) == 1
        assert "permission_denied" in capsys.readouterr().err


def test_a_name_cannot_command_the_terminal(served: Served, capsys: Capture) -> None:
    evil = Path("/music/\x1b[2Jlead\n.wav")
    served.daemon.all_jobs = {1: ended(1, request=JobRequest(evil, voice="\x1b[2J"))}
    for command in (["status"], ["jobs"]):
        assert main(command) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "\\x1b[2Jlead\\n.wav" in out


# status --watch


class Watching:
    """`rvcd status --watch` as a process."""

    def __init__(self, out: int) -> None:
        self.process = subprocess.Popen([*RVCD, "status", "--watch"], stdout=out, stderr=subprocess.PIPE, text=True)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> int:
        _, self.said = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode


def test_watching_from_a_pipe_prints_a_line_for_each_change(served: Served) -> None:
    set_status(served)
    watching = Watching(subprocess.PIPE)
    lines = watching.process.stdout
    assert lines is not None
    assert lines.readline() == "idle: 0 waiting, 0 running, 3 done, 4 failed\n"
    job = make_job(7, state=JobState.RUNNING, fraction=0.25, stage="pitch")
    served.do(lambda: served.daemon.all_jobs.update({7: job}))
    set_status(served, state="busy", running=1, uptime_seconds=3721)
    served.publish(Started(job, "cpu"))
    line = "busy: 0 waiting, 1 running, 3 done, 4 failed; job 7 7.wav 25 % pitch\n"
    assert lines.readline() == line
    assert watching.interrupt() == 130
    assert watching.said == "rvcd: interrupted\n"


def test_watching_ends_with_3_when_the_daemon_goes(home: Path) -> None:
    with serving() as served:
        note(served)
        watching = Watching(subprocess.PIPE)
        assert watching.process.stdout is not None
        watching.process.stdout.readline()
    assert watching.end() == 3
    assert watching.said.startswith("rvcd: not_running: ")


def test_watching_on_a_terminal_draws_in_place(served: Served) -> None:
    set_status(served)
    mine, its = pty.openpty()
    termios.tcsetwinsize(its, (6, 30))
    watching = Watching(its)
    os.close(its)
    drawn = read_until(mine, b"\x1b[J")
    lines = drawn.removesuffix(b"\x1b[J").split(b"\x1b[K\r\n")[:-1]
    assert lines[0] == b"\rrvcd 0.3.0 is idle, up 1 h 2 "
    assert len(lines) == 5, "what is taller than the terminal cannot be drawn over"
    set_status(served, state="paused")
    served.publish(Finished(ended(1)))
    assert read_until(mine, b"\x1b[J").startswith(b"\r\x1b[5Arvcd 0.3.0 is paused")
    assert watching.interrupt() == 130
    os.close(mine)


def read_until(terminal: int, end: bytes) -> bytes:
    found = b""
    while not found.endswith(end):
        found += os.read(terminal, 1)
    return found


def test_watching_and_json_exclude_each_other(home: Path, capsys: Capture) -> None:
    assert main(["status", "--watch", "--json"]) == 2


# jobs and cancel


def test_jobs_are_listed_with_the_reason_of_a_failure(served: Served, capsys: Capture) -> None:
    failed = ended(1, state=JobState.FAILED, code="gpu_error", message="The GPU hung.")
    served.daemon.all_jobs = {1: failed, 2: ended(2), 3: make_job(3)}
    assert main(["jobs"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["job", "state", "voice", "audio", "time", "stem"]
    assert [row.split()[:3] for row in (rows[0], rows[1], rows[3])] == [
        ["3", "queued", "Ana"],
        ["1", "failed", "Ana"],
        ["2", "committed", "Ana"],
    ]
    assert rows[1].endswith("/music/1.wav  gpu_error")
    assert rows[2].strip() == "The GPU hung."


@pytest.mark.parametrize(
    ("options", "jobs"), [(["--active"], [3]), (["--recent"], [1, 2]), (["--recent", "--limit", "1"], [1])]
)
def test_jobs_by_filter(served: Served, options: list[str], jobs: list[int], capsys: Capture) -> None:
    served.daemon.all_jobs = {1: ended(1), 2: ended(2), 3: make_job(3)}
    assert main(["jobs", *options, "--json"]) == 0
    assert [row["job"] for row in document(capsys)] == jobs


def test_a_limit_that_the_daemon_would_not_keep_is_refused(served: Served, capsys: Capture) -> None:
    assert main(["jobs", "--limit", "201"]) == 2
    assert main(["jobs", "--limit", "0"]) == 2


def test_cancel_names_jobs(served: Served, capsys: Capture) -> None:
    assert main(["cancel", "4", "5"]) == 0
    assert [call[:2] for call in served.daemon.calls] == [("cancel", 4), ("cancel", 5)]


def test_cancel_all_means_those_of_other_clients_too(served: Served, capsys: Capture) -> None:
    served.daemon.all_jobs = {job_id: make_job(job_id) for job_id in (4, 5)} | {6: ended(6)}
    assert main(["cancel", "--all", "--json"]) == 0
    assert document(capsys)["cancelled"] == [5, 4]


def test_a_refused_cancel_does_not_stop_the_rest(served: Served, capsys: Capture) -> None:
    def cancel(job_id: int | None, client: str) -> None:
        if job_id == 4:
            raise RvcdError(Code.NOT_FOUND, "There is no job 4.")

    served.daemon.cancel = cancel  # type: ignore[method-assign]
    assert main(["cancel", "4", "5"]) == 1
    said = capsys.readouterr()
    assert said.out == "Cancelled 5.\n"
    assert said.err == "rvcd: not_found: job 4: There is no job 4.\n"


# send


def requests(served: Served) -> list[JobRequest]:
    return [request for what, request in served.daemon.calls if what == "submit"]


def test_send_says_what_was_given_and_nothing_else(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--voice", "Ana", "--semitones", "-3", "--speaker", "2", "--stereo", "per-channel", "--priority", "5"]
    assert main(["send", "Don't.wav", *options]) == 0
    assert main(["send", "sub/../b.wav", "--mode", "sibling"]) == 0
    first, second = requests(served)
    assert (first.path, first.voice, first.priority) == (tmp_path / "Don't.wav", "Ana", 5)
    assert first.settings == {"semitones": -3.0, "speaker_id": 2, "stereo": "per-channel"}
    assert (second.path, second.voice, second.mode, second.settings) == (tmp_path / "b.wav", None, "sibling", {})
    assert capsys.readouterr().out == f"{tmp_path}/Don't.wav: job 1\n{tmp_path}/b.wav: job 2, 1 before it\n"


def test_every_setting_of_send_reaches_the_daemon(served: Served, capsys: Capture) -> None:
    given = {"index_rate": 0.5, "protect": 0.25, "loudness": 1.0, "seed": 7}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    assert main(["send", "a.wav", "--f0", "yin", *options]) == 0
    assert requests(served)[0].settings == {**given, "f0_method": "yin"}


def test_results_go_where_out_says(served: Served, tmp_path: Path, capsys: Capture) -> None:
    assert main(["send", "a.wav", "b.wav", "--out", str(tmp_path)]) == 0
    assert main(["send", "a.wav", "--out", str(tmp_path / "c.wav")]) == 0
    assert [request.out for request in requests(served)] == [tmp_path / name for name in ("a.wav", "b.wav", "c.wav")]
    for stems in (["a.wav", "x/a.wav", "--out", str(tmp_path)], ["a.wav", "b.wav", "--out", str(tmp_path / "c.wav")]):
        assert main(["send", *stems]) == 2
        assert capsys.readouterr().err.startswith("rvcd: bad_setting: ")


def test_a_bad_setting_is_bad_usage(served: Served, capsys: Capture) -> None:
    assert main(["send", "a.wav", "--protect", "0.6"]) == 2
    assert requests(served) == []


def test_a_refused_stem_does_not_stop_the_rest(served: Served, capsys: Capture) -> None:
    submit = served.daemon.submit

    def picky(request: JobRequest) -> Any:
        if request.path.name == "a.wav":
            raise RvcdError(Code.FILE_UNSTABLE, "It is being written.")
        return submit(request)

    served.daemon.submit = picky  # type: ignore[method-assign]
    assert main(["send", "/a.wav", "/b.wav", "--json"]) == 1
    refused, queued = document(capsys)
    assert (refused["state"], refused["code"], refused["job"]) == ("refused", "file_unstable", 0)
    assert (queued["state"], queued["code"], queued["job"]) == ("queued", "", 1)


def finishing(served: Served, *ends: Job) -> threading.Thread:
    """End jobs, each after some progress, once all of them were submitted."""

    def finish() -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(served.daemon.all_jobs) < len(ends) and time.monotonic() < deadline:
            served.do(lambda: None)
        for end in ends:
            job = served.daemon.all_jobs[end.id]
            running = make_job(end.id, job.request, state=JobState.RUNNING, fraction=0.5, stage="voice")
            served.publish(Started(running, "cpu"), Progressed(running, 3.0))
            over = replace(end, request=job.request)
            served.do(lambda over=over: served.daemon.all_jobs.update({over.id: over}))
            served.publish(Finished(over))

    thread = threading.Thread(target=finish)
    thread.start()
    return thread


def test_waiting_tells_how_each_job_ends(served: Served, capsys: Capture) -> None:
    ends = (
        ended(1, backup=Path("/music/.rvcd/backup/1-a.wav")),
        ended(2, state=JobState.FAILED, code="gpu_error", message="The GPU hung."),
        ended(3, state=JobState.CANCELLED, code="superseded"),
    )
    thread = finishing(served, *ends)
    assert main(["send", "/a.wav", "/b.wav", "/c.wav", "--wait", "--json"]) == 1
    thread.join()
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert [(each["state"], each["code"]) for each in told] == [
        ("committed", ""),
        ("failed", "gpu_error"),
        ("cancelled", "superseded"),
    ]
    assert told[0]["backup"] == "/music/.rvcd/backup/1-a.wav"
    assert told[1]["message"] == "The GPU hung."


def test_waiting_shows_stages_and_succeeds(served: Served, capsys: Capture) -> None:
    thread = finishing(served, ended(1))
    assert main(["send", "/a.wav", "--wait"]) == 0
    thread.join()
    assert capsys.readouterr().out.startswith("/a.wav: job 1 done in ")


# undo and backups


@pytest.fixture
def stem(home: Path) -> Path:
    """A stem of the configured hot folder that was converted by job 12."""
    folder = paths.hot_folder()
    folder.mkdir()
    stem = folder / "lead.wav"
    convert(stem, job=12)
    return stem


def convert(stem: Path, job: int, **how: Any) -> backups.Backup:
    stem.write_bytes(f"take {job}".encode())
    backup = backups.back_up(stem, stem.parent, job, voice="Ana", **how)
    stem.write_bytes(f"converted {job}".encode())
    return backup


@pytest.mark.parametrize("named", ["12", "path", "backup"])
def test_undo_needs_no_daemon(nobody: None, stem: Path, named: str, capsys: Capture) -> None:
    [backup] = backups.list_backups(stem.parent)
    assert main(["undo", {"path": str(stem), "backup": str(backup.path)}.get(named, named)]) == 0
    assert stem.read_bytes() == b"take 12"
    assert capsys.readouterr().out == f"Restored {stem}.\n"


def test_a_restored_take_is_no_bounce_to_the_next_daemon(nobody: None, stem: Path) -> None:
    assert main(["undo", str(stem)]) == 0
    ledger = Ledger(paths.home() / "ledger.db")
    assert ledger.kind_of(stem, backups.Fingerprint.of(stem)) is Kind.OURS
    ledger.close()


def test_undo_finds_what_is_configured_no_more(nobody: None, tmp_path: Path, capsys: Capture) -> None:
    """Years later, in a copy of the old folder, from within it."""
    album = tmp_path / "old album"
    (album / "songs").mkdir(parents=True)
    stem = album / "songs" / "lead.wav"
    stem.write_bytes(b"take")
    backups.back_up(stem, album, 3)
    stem.write_bytes(b"converted")
    assert main(["undo", str(stem), "--json"]) == 0
    assert document(capsys) == {"restored": str(stem)}
    assert stem.read_bytes() == b"take"


def test_undo_of_a_job_outside_of_all_roots_is_found_through_the_journal(nobody: None, tmp_path: Path) -> None:
    stem = tmp_path / "project" / "lead.wav"
    stem.parent.mkdir()
    journal = Journal(paths.journal_file())
    job = journal.submit(JobRequest(stem, voice="Ana"), 1.0)
    backup = convert(stem, job.id)
    journal.start(job.id, 2.0)
    journal.stage(job.id, stem.parent / "staged", backup.path, ())
    journal.commit(job.id, 3.0, stem)
    journal.close()
    assert main(["undo", str(job.id)]) == 0
    assert stem.read_bytes() == b"take 1"


def test_a_job_number_that_was_given_twice_is_not_guessed(nobody: None, stem: Path, capsys: Capture) -> None:
    other = stem.parents[1] / "other"
    other.mkdir()
    convert(other / "lead.wav", job=12)
    folders = "".join(f"[[folder]]\npath = '{folder}'\n" for folder in (stem.parent, other))
    paths.config_file().write_text(folders)
    assert main(["undo", "12"]) == 1
    assert "name the path" in capsys.readouterr().err
    assert stem.read_bytes() == b"converted 12"


def test_undo_of_nothing_known_fails(nobody: None, stem: Path, capsys: Capture) -> None:
    for target in ("13", str(stem.parent / "other.wav")):
        assert main(["undo", target]) == 1
        assert capsys.readouterr().err.startswith("rvcd: no_backup: ")


def test_a_running_daemon_is_asked_to_undo(served: Served, stem: Path, capsys: Capture) -> None:
    served.do(served.daemon.gate.set)
    served.daemon.all_jobs = {12: ended(12)}
    assert main(["undo", str(stem)]) == 0
    assert main(["undo", "12"]) == 0
    assert served.daemon.calls == [("restore", stem), ("restore", 12)]
    assert capsys.readouterr().out == f"Restored {stem}.\nRestored /music/12.wav.\n"
    assert stem.read_bytes() == b"converted 12", "the command line went behind the daemon's back"


@pytest.mark.parametrize(("code", "restored"), [(Code.NOT_ALLOWED, True), (Code.DISK_FULL, False)])
def test_what_the_daemon_has_nothing_to_do_with_is_undone_here(
    served: Served, stem: Path, code: Code, restored: bool, capsys: Capture
) -> None:
    async def restore(target: int | Path) -> None:
        raise RvcdError(code, "No.")

    served.daemon.restore = restore  # type: ignore[method-assign]
    assert main(["undo", str(stem)]) == (0 if restored else 1)
    assert stem.read_bytes() == (b"take 12" if restored else b"converted 12")


def test_backups_are_listed(stem: Path, capsys: Capture) -> None:
    assert main(["backups"]) == 0
    head, row, total = capsys.readouterr().out.splitlines()
    assert head.split() == ["made", "job", "kind", "size", "voice", "stem", "backup"]
    assert row.split()[2:5] == ["12", "take", "7"]
    assert str(stem) in row
    assert total == "1 backups, 7 bytes"
    assert main(["backups", "--json"]) == 0
    [told] = document(capsys)
    assert (told["job"], told["original"], told["voice"]) == (12, str(stem), "Ana")


def test_pruning_keeps_last_copies_and_says_so(stem: Path, capsys: Capture) -> None:
    old = convert(stem.with_name("old.wav"), job=3, now=1e9)
    again = convert(stem.with_name("again.wav"), job=4, now=1e9)
    again.original.write_bytes(b"take 4")
    assert main(["backups", "--prune"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Kept {old.path}: It is older than 30 days, but {old.original} no longer holds it")
    assert said.endswith("Removed 1 backups, 6 bytes.\n")
    assert (old.path.exists(), again.path.exists()) == (True, False)
    assert main(["backups", "--prune", "--last-copies", "--json"]) == 0
    assert [each["job"] for each in document(capsys)["removed"]] == [3]
    assert [backup.job for backup in backups.list_backups(stem.parent)] == [12]


def test_pruning_follows_the_configuration(stem: Path, capsys: Capture) -> None:
    old = convert(stem.with_name("old.wav"), job=3, now=1e9)
    old.original.write_bytes(b"take 3")
    paths.config_file().write_text(f"[backups]\nkeep_days = 1e6\n[[folder]]\npath = '{stem.parent}'\n")
    assert main(["backups", "--prune"]) == 0
    assert old.path.exists()
    assert main(["backups", "--prune", "--keep-days", "7"]) == 0
    assert not old.path.exists()


@pytest.mark.parametrize("options", [["--keep-days", "3"], ["--last-copies"], ["--prune", "--max-gb", "-1"]])
def test_limits_without_sense_are_bad_usage(stem: Path, options: list[str], capsys: Capture) -> None:
    assert main(["backups", *options]) == 2


# the real daemon


@pytest.fixture
def daemon(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    with running_daemon() as process:
        yield process


class running_daemon:  # noqa: N801  (a context manager)
    def __enter__(self) -> "subprocess.Popen[bytes]":
        self.process = subprocess.Popen([*RVCD, "run", "--port", "0"], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not note_file().exists():
            assert self.process.poll() is None, "the daemon ended"
            assert time.monotonic() < deadline, "the daemon never said where it listens"
            os.sched_yield()
        return self.process

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def test_the_daemon_is_asked_and_stopped(daemon: "subprocess.Popen[bytes]", capsys: Capture) -> None:
    assert main(["status", "--json"]) == 0
    told = document(capsys)
    assert told["state"] == "degraded"
    assert "rvcd fetch" in told["detail"]
    assert main(["cancel", "1"]) == 1
    assert main(["jobs", "--json"]) == 0
    assert main(["stop", "--dry-run"]) == 0
    assert is_alive(daemon.pid)
    assert main(["stop"]) == 0
    assert f"Stopped rvcd (process {daemon.pid})." in capsys.readouterr().out
    assert daemon.wait(PATIENCE_SECONDS) == 128 + signal.SIGTERM
    assert main(["status"]) == 3


def test_stop_never_ends_a_process_that_took_the_number_of_a_killed_daemon(
    daemon: "subprocess.Popen[bytes]", capsys: Capture
) -> None:
    daemon.kill()
    daemon.wait()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        left = json.loads(note_file().read_text())
        note_file().write_text(json.dumps(left | {"pid": bystander.pid}))
        assert main(["stop"]) == 1
        assert "not_running" in capsys.readouterr().err
        assert bystander.poll() is None
        bystander.communicate(b"\n")


def test_a_port_beyond_reason_is_bad_usage(home: Path) -> None:
    assert main(["run", "--port", "65536"]) == 2


# small things


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (11520, "3 h 12 min"), (180_000, "2 d 2 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_printable_text_stays() -> None:
    assert printable("Gesang ä 🎤.wav") == "Gesang ä 🎤.wav"
    assert printable("a\x1b\x07\u202e\udc80") == "a\\x1b\\x07\\u202e\\udc80"


def test_status_loads_nothing_heavy(served: Served) -> None:
    program = (
        "import sys; from rvcd.cli import main; code = main(['status']);"
        "heavy = {'asyncio', 'sqlite3', 'tomllib', 'rich', 'numpy', 'logging', 'subprocess', 'mlx'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or code)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
