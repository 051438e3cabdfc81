"""The ledger on disk: what it recognises, what it survives."""

import contextlib
import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rvcd.errors import Code, RvcdError
from rvcd.fingerprints import Fingerprint
from rvcd.watch import ledger as ledgers
from rvcd.watch.ledger import Kind, Ledger

LEAD = Path("/hot/lead.wav")
STATE = Fingerprint(dev=5, ino=77, size=1000, mtime_ns=1_700_000_000_123_456_789)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "state" / "ledger.sqlite3")
    yield ledger
    ledger.close()


def test_a_stem_is_recognised_in_the_state_that_was_recorded(ledger: Ledger) -> None:
    assert ledger.kind_of(LEAD, STATE) is None
    ledger.record(Kind.OURS, LEAD, STATE)
    assert ledger.is_ours(LEAD, STATE)


@pytest.mark.parametrize("change", [{"size": 1001}, {"mtime_ns": STATE.mtime_ns + 1}])
def test_a_new_bounce_of_the_same_name_is_not(ledger: Ledger, change: dict[str, int]) -> None:
    ledger.record(Kind.OURS, LEAD, STATE)
    assert ledger.kind_of(LEAD, dataclasses.replace(STATE, **change)) is None


def test_a_volume_mounted_again_has_other_numbers(ledger: Ledger) -> None:
    ledger.record(Kind.OURS, LEAD, STATE)
    assert ledger.is_ours(LEAD, dataclasses.replace(STATE, dev=6, ino=78))


def test_a_renamed_stem_is_the_same_and_a_copy_is_not(ledger: Ledger) -> None:
    ledger.record(Kind.TAKEN, LEAD, STATE)
    assert ledger.kind_of(Path("/hot/alto/other.wav"), STATE) is Kind.TAKEN
    assert ledger.kind_of(Path("/hot/copy.wav"), dataclasses.replace(STATE, ino=78)) is None


def test_spelling_does_not_matter(ledger: Ledger) -> None:
    ledger.record(Kind.OURS, Path("/hot/Gesang ä.wav"), STATE)
    assert ledger.is_ours(Path("/hot/gesang a\u0308.WAV"), dataclasses.replace(STATE, ino=78))


def test_names_of_any_bytes_and_inodes_of_64_bits_are_kept(ledger: Ledger) -> None:
    odd = Path(os.fsdecode(b"/hot/\xff\n'.wav"))
    state = dataclasses.replace(STATE, dev=2**64 - 1, ino=2**63)
    ledger.record(Kind.OURS, odd, state)
    assert ledger.is_ours(odd, state)
    assert ledger.is_ours(LEAD, state)


def test_pending_bounces_are_remembered_until_dropped(ledger: Ledger) -> None:
    ledger.note_pending(LEAD)
    ledger.note_pending(LEAD)
    assert ledger.is_pending(LEAD)
    ledger.drop_pending(LEAD)
    assert not ledger.is_pending(LEAD)


def test_a_batch_that_fails_leaves_nothing(ledger: Ledger) -> None:
    with contextlib.suppress(KeyError), ledger.batch():
        ledger.record(Kind.OURS, LEAD, STATE)
        raise KeyError
    assert ledger.kind_of(LEAD, STATE) is None


def test_what_was_recorded_survives_sigkill(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite3"
    program = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from rvcd.fingerprints import Fingerprint\nfrom rvcd.watch import Kind, Ledger\n"
        f"ledger = Ledger(Path(sys.argv[1]))\nledger.record(Kind.OURS, Path({str(LEAD)!r}), {STATE!r})\n"
        "ledger._db.execute('BEGIN IMMEDIATE')\n"
        f"ledger.record(Kind.TAKEN, Path('/hot/unfinished.wav'), {dataclasses.replace(STATE, ino=1)!r})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", program, str(file)], cwd=Path(__file__).parents[1], check=False)
    assert run.returncode == -signal.SIGKILL
    ledger = Ledger(file)
    assert ledger.is_ours(LEAD, STATE)
    assert ledger.kind_of(Path("/hot/unfinished.wav"), dataclasses.replace(STATE, ino=1)) is None
    ledger.close()


def test_a_damaged_ledger_is_set_aside(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite3"
    file.write_bytes(b"no ledger at all" * 1000)
    ledger = Ledger(file)
    ledger.record(Kind.OURS, LEAD, STATE)
    assert ledger.is_ours(LEAD, STATE)
    ledger.close()
    assert (tmp_path / "ledger.sqlite3.damaged").read_bytes().startswith(b"no ledger")


def test_a_ledger_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RvcdError) as caught:
        Ledger(tmp_path / "file" / "ledger.sqlite3")
    assert caught.value.code is Code.NOT_WRITABLE
    (tmp_path / "folder.sqlite3").mkdir()
    with pytest.raises(RvcdError) as caught:
        Ledger(tmp_path / "folder.sqlite3")
    assert caught.value.code is Code.NOT_WRITABLE


def test_a_full_disk_is_told_before_anything_is_renamed(ledger: Ledger, tmp_path: Path) -> None:
    ledger._db.execute("PRAGMA max_page_count = 1")  # the smallest that sqlite grants: the size it has

    def fill() -> None:
        for number in range(10_000):
            ledger.record(Kind.OURS, Path(f"/hot/{number}.wav"), STATE)

    with pytest.raises(RvcdError) as caught:
        fill()
    assert caught.value.code is Code.DISK_FULL
    assert ledger.is_ours(LEAD, STATE)


def test_the_oldest_rows_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "MAX_ROWS", 50)
    monkeypatch.setattr(ledgers, "_TRIM_EVERY", 10)
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    states = [dataclasses.replace(STATE, ino=number, mtime_ns=number) for number in range(1, 201)]
    for state in states:
        ledger.record(Kind.TAKEN, Path(f"/hot/{state.ino}.wav"), state)
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as db:
        (rows,) = db.execute("SELECT count(*) FROM stems").fetchone()
    db.close()
    assert rows == 50
