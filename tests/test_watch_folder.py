"""Hot folders with real files and real events. The clock is moved by hand unless an event is what is waited for."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

import pytest

from rvcd.containers import is_complete, read_layout
from rvcd.errors import Code, RvcdError
from rvcd.fingerprints import Fingerprint
from rvcd.watch import Holds, HotFolder, Kind, Ledger, Ready, Refused
from rvcd.watch import folder as folders
from rvcd.watch import scanner as scanners
from rvcd.watch.doorbell import Doorbell
from tests.support import slow_writer

SETTLE_SECONDS = 2.0


def header_complete(path: Path, size: int) -> bool:
    return is_complete(read_layout(path), size)


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for what another thread or process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.01)


class Watch:
    """A hot folder, the clock it lives by, and a restart."""

    def __init__(self, root: Path, state: Path) -> None:
        self.root = root
        self.state = state
        self.holds = Holds()
        self.now = 1000.0
        self.wakes = threading.Event()
        self.ledger = Ledger(state)
        self.start()

    def start(self, *, convert_present: bool = False) -> None:
        self.folder = HotFolder(
            self.root, self.ledger, self.holds, header_complete, convert_present=convert_present, wake=self.wakes.set
        )

    def stop(self) -> None:
        self.folder.close()
        self.ledger.close()

    def restart(self, *, convert_present: bool = False) -> None:
        self.stop()
        self.ledger = Ledger(self.state)
        self.start(convert_present=convert_present)

    def step(self) -> list[Ready | Refused]:
        return self.folder.step(self.now)

    def live(self, seconds: float, *, bell: bool = True) -> list[Ready | Refused]:
        """Step whenever it is due, for that long on the clock; it outruns real events, so the bell is rung by hand."""
        if bell:
            self.folder.rescan()
        reports = self.step()
        end = self.now + seconds
        while (due := self.folder.next_wakeup()) <= end:
            self.now = max(due, self.now + 0.001)
            reports += self.step()
        self.now = end
        return reports

    def convert(self, ready: Ready) -> None:
        """What the daemon does with a bounce, in short: journal it, write elsewhere, enter it, rename."""
        self.folder.take(ready)
        stage = self.root / ".rvcd" / "stage" / "1.wav"
        stage.parent.mkdir(parents=True, exist_ok=True)
        stage.write_bytes(slow_writer.finished(1, sample=-5))
        self.ledger.record(Kind.OURS, ready.path, Fingerprint.of(stage))
        stage.replace(ready.path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "hot"
    root.mkdir()
    return root


@pytest.fixture
def watch(root: Path, tmp_path: Path) -> Iterator[Watch]:
    watch = Watch(root, tmp_path / "ledger.sqlite3")
    assert watch.step() == []
    yield watch
    watch.stop()


def bounce(path: Path, bursts: int = 1, sample: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(slow_writer.finished(bursts, sample))
    return path


def ready_paths(reports: list[Ready | Refused]) -> list[Path]:
    assert all(isinstance(report, Ready) for report in reports), reports
    return [report.path for report in reports]


def test_a_bounce_is_told_once_with_its_subfolder(watch: Watch, root: Path) -> None:
    lead, harmony = bounce(root / "lead.wav"), bounce(root / "Alto" / "takes" / "harmony.wav")
    told = watch.live(60)
    assert {(ready.path, ready.subfolder) for ready in told if isinstance(ready, Ready)} == {
        (lead, PurePath()),
        (harmony, PurePath("Alto/takes")),
    }
    assert watch.live(60) == []


class SlowWriter:
    """A process that writes a bounce, one order at a time."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, slow_writer.__file__, os.fspath(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer("open")

    def __enter__(self) -> "SlowWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def order(self, order: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        self._answer("closed" if order == "close" else order)

    def _answer(self, expected: str) -> None:
        assert self._process.stdout
        assert self._process.stdout.readline().strip() == expected


def test_a_slow_bounce_is_taken_once_after_it_is_closed(watch: Watch, root: Path) -> None:
    path = root / "lead.wav"
    with SlowWriter(path) as writer:
        assert watch.live(7) == []  # headers that promise nothing, and nothing behind them
        for pause in (0.5, 3, 7, 20, 0.1):
            writer.order("burst")
            assert watch.live(pause) == []
            assert watch.folder.counts.pending == 1
        writer.order("close")
    (ready,) = watch.live(120)
    assert isinstance(ready, Ready)
    assert ready.fingerprint == Fingerprint.of(path)
    assert path.read_bytes() == slow_writer.finished(5)
    watch.folder.take(ready)
    assert watch.live(120) == []


def test_a_writer_that_died_is_told_and_stays_visible_until_the_bounce_is_whole(watch: Watch, root: Path) -> None:
    path = root / "lead.wav"
    with SlowWriter(path) as writer:
        writer.order("burst")
    (refused,) = watch.live(1200)
    assert isinstance(refused, Refused)
    assert refused.error.code is Code.FILE_UNSTABLE
    assert watch.folder.refusals == {path: refused.error}
    assert watch.folder.counts.pending == 1
    bounce(path)
    assert ready_paths(watch.live(60)) == [path]
    assert watch.folder.refusals == {}


def test_200_stems_at_once_are_each_taken_once(watch: Watch, root: Path) -> None:
    names = [bounce(root / f"part {number % 7}" / f"{number}.wav") for number in range(200)]
    told = watch.live(SETTLE_SECONDS + 5)
    assert sorted(ready_paths(told)) == sorted(names)
    for ready in told:
        assert isinstance(ready, Ready)
        watch.convert(ready)
    assert watch.live(120) == []
    assert watch.folder.counts.pending == 0
    watch.restart()
    assert watch.live(120) == []


def test_our_own_output_is_no_bounce_wherever_it_appears(watch: Watch, root: Path) -> None:
    lead = bounce(root / "lead.wav")
    (ready,) = watch.live(10)
    assert isinstance(ready, Ready)
    watch.convert(ready)
    assert watch.live(60) == []
    lead.rename(root / "Lead.wav")
    assert watch.live(60) == []
    (root / "later").mkdir()
    (root / "Lead.wav").rename(root / "later" / "renamed.wav")
    assert watch.live(60) == []


@pytest.mark.parametrize("answered", ["before", "after"])
def test_a_bounce_over_a_bounce_in_work_is_one_more_and_the_newest(watch: Watch, root: Path, answered: str) -> None:
    lead = bounce(root / "lead.wav")
    (first,) = watch.live(10)
    assert isinstance(first, Ready)
    if answered == "before":
        watch.folder.take(first)
    bounce(lead, bursts=2)
    bounce(lead, bursts=3)
    watch.step()
    if answered == "after":
        watch.folder.take(first)
    (second,) = watch.live(60)
    assert isinstance(second, Ready)
    assert second.fingerprint == Fingerprint.of(lead)
    watch.convert(second)
    assert watch.live(60) == []


def test_a_bounce_in_place_is_seen_without_any_event(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "Doorbell", Deaf)
    watch = Watch(root, tmp_path / "ledger.sqlite3")
    lead = bounce(root / "lead.wav")
    assert watch.live(40, bell=False) == []  # it was there first
    with lead.open("r+b") as file:
        file.write(slow_writer.finished(1, sample=7))
    os.utime(lead, ns=(1, 1))
    assert ready_paths(watch.live(40, bell=False)) == [lead]
    watch.stop()


class Deaf(Doorbell):
    """An observer that looks alive and has lost all its events."""

    def arm(self) -> bool:
        return True

    def is_alive(self) -> bool:
        return True


def test_lost_events_cost_time_and_no_stem(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "Doorbell", Deaf)
    watch = Watch(root, tmp_path / "ledger.sqlite3")
    watch.live(100, bell=False)
    stems = [bounce(root / f"{number}.wav") for number in range(20)]
    stems.append(bounce(root / "new" / "folder" / "lead.wav"))
    assert sorted(ready_paths(watch.live(30 + SETTLE_SECONDS + 1, bell=False))) == sorted(stems)
    watch.stop()


def test_a_killed_observer_is_replaced_and_nothing_missed(watch: Watch, root: Path) -> None:
    watch.live(100)
    watch.folder._doorbell.disarm()
    lead = bounce(root / "lead.wav")
    assert ready_paths(watch.live(30, bell=False)) == [lead]
    assert watch.folder.counts.is_armed
    bounce(root / "second.wav")
    until(lambda: ring(watch, "second.wav"))


def ring(watch: Watch, name: str) -> bool:
    """Whether the folder heard of a stem without the clock moving on."""
    watch.step()
    return watch.root / name in watch.folder._gate


def test_no_watches_left_means_polling(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_watches() -> None:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr("rvcd.watch.doorbell.Observer", no_watches)
    watch = Watch(root, tmp_path / "ledger.sqlite3")
    watch.live(1)
    assert not watch.folder.counts.is_armed
    lead = bounce(root / "lead.wav")
    assert ready_paths(watch.live(3 + SETTLE_SECONDS + 0.5, bell=False)) == [lead]
    watch.stop()


def test_a_network_volume_is_polled_and_given_more_patience(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "is_network_volume", lambda path: True)
    watch = Watch(root, tmp_path / "ledger.sqlite3")
    watch.live(1)
    assert not watch.folder.counts.is_armed
    lead = bounce(root / "lead.wav")
    assert watch.live(5.5, bell=False) == []
    assert ready_paths(watch.live(4, bell=False)) == [lead]
    watch.stop()


def test_events_tell_of_bounces_at_once_and_of_their_closing(watch: Watch, root: Path) -> None:
    until(lambda: watch.folder.counts.is_armed)
    bounce(root / "lead.wav")
    until(lambda: ring(watch, "lead.wav"))
    until(lambda: watch.folder._gate._bounces[root / "lead.wav"].closed or watch.step())
    assert ready_paths(watch.live(SETTLE_SECONDS / 4, bell=False)) == [root / "lead.wav"]
    (root / "Alto").mkdir()
    bounce(root / "Alto" / "lead.wav")
    until(lambda: ring(watch, "Alto/lead.wav"))
    assert watch.wakes.is_set()


ODD_NAMES = [
    *("Don't.wav", 'say "hi".wav', "Gesang \u00e4.wav", "Gesang a\u0308.wav", "🎤 lead.wav", "two\nlines.wav"),
    *("-rf.wav", "$(touch x).wav", "`id`.wav", "a;b|c&d.wav", " .wav", "x" * 251 + ".wav", "Lead.WAV", "lead.wav"),
]


def test_names_are_opened_as_they_are_spelled(watch: Watch, root: Path) -> None:
    for name in ODD_NAMES:
        bounce(root / name)
    told = watch.live(60)
    assert sorted(path.name for path in ready_paths(told)) == sorted(ODD_NAMES)
    assert all(path.read_bytes() == slow_writer.finished(1) for path in ready_paths(told))
    for ready in told:
        assert isinstance(ready, Ready)
        watch.convert(ready)
    watch.restart()
    assert watch.live(60) == []


def test_what_was_there_first_is_offered_and_never_told(root: Path, tmp_path: Path) -> None:
    stems = [bounce(root / f"{number}.wav") for number in range(5)]
    watch = Watch(root, tmp_path / "ledger.sqlite3")
    assert watch.live(120) == []
    assert watch.folder.counts.offered == 5
    stems[0].unlink()
    bounce(stems[1], bursts=2)
    assert ready_paths(watch.live(60)) == [stems[1]]
    assert watch.folder.counts.offered == 3
    watch.folder.take(watch.folder.admit(stems[2], watch.now))
    watch.live(1)
    assert watch.folder.counts.offered == 2
    watch.restart()
    assert ready_paths(watch.live(60)) == [stems[1]]  # nobody took it before
    assert watch.folder.counts.offered == 2
    watch.stop()


def test_what_was_there_first_is_taken_if_wanted(root: Path, tmp_path: Path) -> None:
    stem = bounce(root / "lead.wav")
    watch = Watch(root, tmp_path / "ledger.sqlite3")
    assert watch.live(60) == []
    watch.restart(convert_present=True)
    (ready,) = watch.live(60)
    assert isinstance(ready, Ready)
    assert ready.path == stem
    watch.convert(ready)
    watch.step()
    watch.restart(convert_present=True)
    assert watch.live(60) == []
    watch.stop()


def test_a_bounce_that_was_waiting_when_we_died_is_a_bounce_at_the_next_start(watch: Watch, root: Path) -> None:
    old = bounce(root / "lead.wav")
    until(lambda: ring(watch, "lead.wav"))
    watch.restart()
    bounce(root / "while we were away.wav")
    (ready,) = watch.live(60)
    assert isinstance(ready, Ready)
    assert ready.path == old
    assert watch.folder.counts.offered == 1
    watch.folder.take(ready)
    watch.step()
    watch.restart()
    assert watch.live(60) == []
    assert watch.folder.counts.offered == 1


def test_a_postponed_bounce_comes_again(watch: Watch, root: Path) -> None:
    lead = bounce(root / "lead.wav")
    (ready,) = watch.live(20)
    assert isinstance(ready, Ready)
    watch.folder.postpone(ready)
    assert watch.live(4) == []
    assert ready_paths(watch.live(2)) == [lead]


def test_a_held_bounce_waits_for_its_release(watch: Watch, root: Path) -> None:
    lead = root / "lead.wav"
    watch.holds.hold(lead, 600, watch.now)
    bounce(lead)
    assert watch.live(60) == []
    with pytest.raises(RvcdError) as caught:
        watch.folder.admit(lead, watch.now)
    assert caught.value.code is Code.FILE_IN_USE
    watch.holds.release(lead)
    watch.folder.note_closed(lead)
    assert ready_paths(watch.live(1)) == [lead]


def test_an_explicit_request_need_not_settle_but_must_be_complete(watch: Watch, root: Path) -> None:
    lead = root / "Alto" / "lead.wav"
    lead.parent.mkdir()
    with SlowWriter(lead) as writer:
        writer.order("burst")
        with pytest.raises(RvcdError) as caught:
            watch.folder.admit(lead, watch.now)
        assert caught.value.code is Code.FILE_UNSTABLE
        writer.order("close")
    watch.step()
    ready = watch.folder.admit(lead, watch.now)
    assert ready == Ready(lead, Fingerprint.of(lead), PurePath("Alto"))
    watch.folder.take(ready)
    assert watch.live(60) == []
    with pytest.raises(RvcdError) as caught:
        watch.folder.admit(root / "none.wav", watch.now)
    assert caught.value.code is Code.NOT_FOUND


def test_a_root_deleted_and_made_anew_is_watched_again(watch: Watch, root: Path) -> None:
    watch.live(5)
    root.rmdir()
    (refused,) = watch.live(10)
    assert isinstance(refused, Refused)
    assert refused.error.code is Code.NOT_FOUND
    assert not watch.folder.counts.is_there
    assert watch.live(100) == []
    lead = bounce(root / "lead.wav")
    assert ready_paths(watch.live(10)) == [lead]
    assert watch.folder.counts.is_armed
    assert watch.folder.refusals == {}
    bounce(root / "second.wav")
    until(lambda: ring(watch, "second.wav"))


def test_a_root_renamed_away_and_back_brings_its_new_bounces_only(watch: Watch, root: Path) -> None:
    bounce(root / "taken.wav")
    (ready,) = watch.live(10)
    assert isinstance(ready, Ready)
    watch.convert(ready)
    away = root.rename(root.parent / "away")
    watch.live(10)
    bounce(away / "new.wav")
    assert watch.live(60) == []
    away.rename(root)
    assert ready_paths(watch.live(60)) == [root / "new.wav"]


def test_a_root_swapped_for_another_between_two_looks_is_noticed(watch: Watch, root: Path) -> None:
    watch.live(5)
    root.rename(root.parent / "old")
    root.mkdir()
    lead = bounce(root / "lead.wav")
    assert ready_paths(watch.live(5)) == [lead]
    bounce(root / "second.wav")
    until(lambda: ring(watch, "second.wav"))


def test_a_root_that_comes_late_is_met_like_one_that_was_there(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "late", tmp_path / "ledger.sqlite3")
    assert [type(report) for report in watch.live(10)] == [Refused]
    bounce(tmp_path / "late" / "old.wav")
    assert watch.live(10) == []
    assert watch.folder.counts.offered == 1
    watch.stop()


def test_a_root_behind_a_link_is_resolved_and_links_below_it_are_left_alone(root: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(root)
    outside = bounce(tmp_path / "outside" / "secret.wav")
    watch = Watch(link, tmp_path / "ledger.sqlite3")
    watch.step()
    (root / "secret.wav").symlink_to(outside)
    (root / "outside").symlink_to(outside.parent)
    lead = bounce(root / "lead.wav")
    assert ready_paths(watch.live(60)) == [lead]
    watch.stop()


def test_an_offline_bounce_is_told_and_taken_once_it_is_here(
    watch: Watch, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(scanners, "is_offline", lambda stat: True)
        lead = bounce(root / "lead.wav")
        (refused,) = watch.live(120)
    assert isinstance(refused, Refused)
    assert refused.error.code is Code.OFFLINE_FILE
    assert watch.folder.refusals == {lead: refused.error}
    assert ready_paths(watch.live(60)) == [lead]
    assert watch.folder.refusals == {}


def test_a_ledger_that_fails_loses_no_bounce(watch: Watch, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RvcdError(Code.NOT_WRITABLE, "The ledger cannot be used.")

    lead = bounce(root / "lead.wav")
    watch.folder.rescan()
    with monkeypatch.context() as patch:
        patch.setattr(watch.ledger, "kind_of", fail)
        with pytest.raises(RvcdError, match="ledger"):
            watch.step()
    assert ready_paths(watch.live(60)) == [lead]


def test_a_quiet_folder_wakes_rarely(watch: Watch, root: Path) -> None:
    bounce(root / "lead.wav")
    for ready in watch.live(60):
        assert isinstance(ready, Ready)
        watch.folder.take(ready)
    steps = 0
    end = watch.now + 600
    while watch.now < end:
        watch.step()
        steps += 1
        watch.now = watch.folder.next_wakeup()
    assert steps <= 600 / 2 + 600 / 30 + 2


def test_a_storm_of_events_wakes_once_and_is_heard_in_one_step(watch: Watch, root: Path) -> None:
    watch.live(10)
    watch.folder.close()
    watch.step()
    watch.wakes.clear()
    stems = [bounce(root / f"{number}.wav") for number in range(50)]
    watch.folder.note_touched(stems[0])
    assert watch.wakes.is_set()
    assert watch.now < watch.folder.next_wakeup() <= watch.now + 1
    watch.wakes.clear()
    for stem in stems[1:]:
        watch.folder.note_touched(stem)
    assert not watch.wakes.is_set()
    watch.step()
    assert watch.folder.counts.pending == 50
