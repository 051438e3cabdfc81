"""The gate with its clock and its disk in hand, and the names that it is asked about."""

from pathlib import Path

import pytest

from rvcd.errors import Code, RvcdError
from rvcd.fingerprints import Fingerprint
from rvcd.watch.gate import MAX_SETTLE_SECONDS, UNSTABLE_SECONDS, Gate, Holds, Refused, Settled, admit
from rvcd.watch.names import STEM_SUFFIXES, fold, is_hidden, is_stem

LEAD = Path("/hot/lead.wav")


def fingerprint(size: int, mtime_ns: int = 1) -> Fingerprint:
    return Fingerprint(dev=1, ino=1, size=size, mtime_ns=mtime_ns)


class Desk:
    """A gate whose clock is moved by hand and whose files are numbers."""

    def __init__(self, settle_seconds: float = 2.0) -> None:
        self.complete = True
        self.error: RvcdError | None = None
        self.headers_read = 0
        self.holds = Holds()
        self.gate = Gate(self._header_complete, self.holds, settle_seconds)
        self.now = 100.0

    def _header_complete(self, path: Path, size: int) -> bool:
        self.headers_read += 1
        if self.error:
            raise self.error
        return self.complete

    def see(self, seconds_later: float, size: int, path: Path = LEAD) -> list[Settled | Refused]:
        self.now += seconds_later
        self.gate.observe(path, fingerprint(size), self.now)
        return self.gate.decide(self.now)

    def patience(self, size: int) -> float:
        """Seconds of stillness until the headers are read, in tenths."""
        self.see(0, size)
        read = self.headers_read
        for tenths in range(1, 1000):
            self.see(0.1, size)
            if self.headers_read > read:
                return tenths / 10
        raise AssertionError("never settled")


def test_a_bounce_is_settled_after_two_equal_samples_spanning_the_settle_time() -> None:
    desk = Desk()
    assert desk.see(0, 1000) == []
    assert desk.see(1.9, 1000) == []
    assert desk.see(0.1, 1000) == [Settled(LEAD, fingerprint(1000))]


def test_time_alone_settles_nothing() -> None:
    desk = Desk()
    desk.see(0, 1000)
    desk.now += 60
    assert desk.gate.decide(desk.now) == []


def test_a_change_starts_the_wait_anew() -> None:
    desk = Desk()
    desk.see(0, 1000)
    assert desk.see(1.9, 2000) == []
    assert desk.see(1.9, 2000) == []
    assert desk.see(0.1, 2000) == [Settled(LEAD, fingerprint(2000))]


def test_a_rewrite_of_the_same_length_is_a_change() -> None:
    desk = Desk()
    desk.see(0, 1000)
    desk.gate.observe(LEAD, fingerprint(1000, mtime_ns=2), desk.now + 2)
    assert desk.gate.decide(desk.now + 2) == []


def test_a_settled_bounce_is_told_once_and_again_in_another_state() -> None:
    desk = Desk()
    desk.see(0, 1000)
    assert len(desk.see(2, 1000)) == 1
    assert desk.see(60, 1000) == []
    desk.see(0, 3000)
    assert desk.see(60, 3000) == [Settled(LEAD, fingerprint(3000))]


def test_patience_doubles_with_each_relapse_up_to_a_minute() -> None:
    desk = Desk()
    desk.complete = False
    waits = [desk.patience(1000 * burst) for burst in range(1, 8)]
    assert waits == pytest.approx([2, 4, 8, 16, 32, MAX_SETTLE_SECONDS, MAX_SETTLE_SECONDS], abs=0.11)


def test_growing_is_no_relapse() -> None:
    desk = Desk()
    for burst in range(1, 50):
        desk.see(0.5, 1000 * burst)
    assert desk.patience(1000 * 49) == pytest.approx(2, abs=0.11)


def test_a_closed_file_needs_a_quarter_of_the_patience() -> None:
    desk = Desk()
    desk.see(0, 1000)
    desk.gate.note_closed(LEAD, desk.now)
    assert desk.gate.next_wakeup() <= desk.now + 0.5
    assert desk.see(0.4, 1000) == []
    assert desk.see(0.1, 1000) == [Settled(LEAD, fingerprint(1000))]


def test_a_close_counts_for_nothing_once_the_file_changed_again() -> None:
    desk = Desk()
    desk.see(0, 1000)
    desk.gate.note_closed(LEAD, desk.now)
    desk.see(0.1, 2000)
    assert desk.see(1.9, 2000) == []
    assert len(desk.see(0.1, 2000)) == 1


def test_incomplete_headers_keep_a_still_file_waiting() -> None:
    desk = Desk()
    desk.complete = False
    for _ in range(100):
        assert desk.see(1, 1000) == []
    desk.complete = True
    assert desk.see(1, 1000) == [Settled(LEAD, fingerprint(1000))]


def test_an_empty_file_is_never_settled_whatever_its_headers_say() -> None:
    desk = Desk()
    desk.see(0, 0)
    assert desk.see(2, 0) == []
    assert desk.headers_read == 0


def test_ten_still_minutes_without_complete_headers_are_told_once_and_not_forgotten() -> None:
    desk = Desk()
    desk.complete = False
    desk.see(0, 1000)
    verdicts = [verdict for _ in range(int(UNSTABLE_SECONDS) + 200) for verdict in desk.see(1, 1000)]
    (refused,) = verdicts
    assert isinstance(refused, Refused)
    assert refused.error.code is Code.FILE_UNSTABLE
    assert str(LEAD) in refused.error.sentence
    assert desk.gate.refusals == {LEAD: refused.error}
    desk.complete = True
    assert desk.see(30, 1000) == [Settled(LEAD, fingerprint(1000))]
    assert desk.gate.refusals == {}


def test_a_bounce_that_grows_for_an_hour_is_not_unstable() -> None:
    desk = Desk()
    desk.complete = False
    assert [verdict for minute in range(60) for verdict in desk.see(60, 1000 + minute)] == []


@pytest.mark.parametrize("code", [Code.UNSUPPORTED_FORMAT, Code.PERMISSION_DENIED, Code.OFFLINE_FILE])
def test_what_time_does_not_cure_is_refused_at_once_and_looked_at_again(code: Code) -> None:
    desk = Desk()
    desk.error = RvcdError(code, "so it is.")
    desk.see(0, 1000)
    assert desk.see(2, 1000) == [Refused(LEAD, desk.error)]
    assert desk.see(60, 1000) == []
    desk.error = None
    assert desk.see(30, 1000) == [Settled(LEAD, fingerprint(1000))]


def test_a_held_bounce_waits_for_its_release_or_the_end_of_the_hold() -> None:
    desk = Desk()
    desk.holds.hold(LEAD, 50, desk.now)
    desk.see(0, 1000)
    assert desk.see(10, 1000) == []
    assert desk.gate.next_wakeup() <= desk.now + 0.2
    desk.holds.release(LEAD)
    assert desk.see(0.1, 1000) == [Settled(LEAD, fingerprint(1000))]
    desk.holds.hold(LEAD, 50, desk.now)
    desk.see(0, 2000)
    assert desk.see(49, 2000) == []
    assert len(desk.see(1, 2000)) == 1


def test_a_hold_knows_a_path_in_any_spelling_and_ends_within_an_hour() -> None:
    holds = Holds()
    holds.hold(Path("/hot/Gesang a\u0308.WAV"), 1e9, now=0)
    assert holds.is_held(Path("/hot/gesang ä.wav"), now=3599)
    assert not holds.is_held(Path("/hot/gesang ä.wav"), now=3600)
    assert not holds.is_held(Path("/hot/other.wav"), now=0)


def test_holds_are_bounded_and_ended_ones_make_room() -> None:
    holds = Holds()
    for number in range(10_000):
        holds.hold(Path(f"/hot/{number}.wav"), 10, now=0)
    with pytest.raises(RvcdError, match="cannot be held") as caught:
        holds.hold(LEAD, 10, now=5)
    assert caught.value.code is Code.BUSY
    holds.hold(LEAD, 10, now=10)
    assert holds.is_held(LEAD, now=11)


def test_an_explicit_request_needs_complete_headers_only() -> None:
    admit(LEAD, fingerprint(1000), lambda path, size: size == 1000)
    for size, complete in ((1000, False), (0, True)):
        with pytest.raises(RvcdError) as caught:
            admit(LEAD, fingerprint(size), lambda path, size, complete=complete: complete)  # type: ignore[misc]
        assert caught.value.code is Code.FILE_UNSTABLE


def test_a_postponed_bounce_is_told_again() -> None:
    desk = Desk()
    desk.see(0, 1000)
    assert len(desk.see(2, 1000)) == 1
    desk.gate.postpone(LEAD, fingerprint(1000), desk.now + 5)
    assert desk.see(4, 1000) == []
    assert len(desk.see(1, 1000)) == 1


def test_taking_an_older_state_leaves_the_newer_bounce() -> None:
    desk = Desk()
    desk.see(0, 1000)
    desk.see(2, 1000)
    desk.see(0, 2000)
    desk.gate.take(LEAD, fingerprint(1000))
    assert desk.see(60, 2000) == [Settled(LEAD, fingerprint(2000))]
    desk.gate.take(LEAD, fingerprint(2000))
    assert LEAD not in desk.gate


def test_many_bounces_settle_in_portions_and_none_is_left_out() -> None:
    desk = Desk()
    paths = [Path(f"/hot/{number}.wav") for number in range(200)]
    for now in (0.0, 2.0):
        for path in paths:
            desk.gate.observe(path, fingerprint(1000), now)
    portions = []
    while portion := desk.gate.decide(2.0):
        portions.append(portion)
    assert len(portions) > 1
    assert sorted(settled.path for portion in portions for settled in portion) == sorted(paths)


@pytest.mark.parametrize("suffix", sorted(STEM_SUFFIXES | {".WAV", ".Aiff"}))
def test_audio_files_are_stems(suffix: str) -> None:
    assert is_stem(f"lead vocal{suffix}")


@pytest.mark.parametrize(
    "name",
    [
        *(".lead.wav", "._lead.wav", "~lead.wav", "lead.wav.tmp", "lead.wav.part", "lead.wav.partial"),
        *("lead.wav.crdownload", "lead.wav.filepart", "lead.wav.reapeaks", "lead.wav.asd", "lead.pkf", "lead.dup"),
        *(".DS_Store", "Icon\r", "wav", ".wav", "lead.mp3", "lead.wav.json", "lead.wav "),
    ],
)
def test_drafts_caches_and_foreign_files_are_not(name: str) -> None:
    assert not is_stem(name)


def test_our_own_folder_is_hidden() -> None:
    assert is_hidden(".rvcd")
    assert not is_hidden("rvcd")


def test_folding_joins_case_and_composition_and_keeps_other_names_apart() -> None:
    assert fold(Path("/hot/Gesang a\u0308.wav")) == fold(Path("/HOT/gesang \u00c4.WAV"))
    assert fold(Path("/hot/gesang a.wav")) != fold(Path("/hot/gesang ä.wav"))
    assert fold(Path("/hot/\udcff.wav")) != fold(Path("/hot/\udcfe.wav"))
