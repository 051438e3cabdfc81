import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wavinfo

from rvcd import backups, disk
from rvcd.backups import Backup, back_up, list_backups, note_result, prune, restore
from rvcd.errors import Code, RvcdError
from rvcd.fingerprints import Fingerprint
from tests.support.audio_files import broadcast_wave, pcm24, wave_format

REPOSITORY = Path(__file__).parents[1]
DAY = 86_400.0
NOW = 1_800_000_000.0


def error_of(action: Any, *arguments: Any, **options: Any) -> RvcdError:
    with pytest.raises(RvcdError) as caught:
        action(*arguments, **options)
    return caught.value


def take(seed: int) -> bytes:
    return broadcast_wave(pcm24(301, seed), fmt=wave_format())


def stem(root: Path, content: bytes, name: str = "lead.wav") -> Path:
    path = root / name
    path.write_bytes(content)
    return path


def convert(path: Path, root: Path, job: int, result: bytes, now: float = NOW) -> Backup:
    """What the daemon does, with the result given: backup, note, replacement."""
    backup = back_up(path, root, job, voice="sage", now=now)
    stem(root, result, "staged").replace(path)
    note_result(backup, root, disk.sha256(path))
    return backup


def test_a_backup_tells_all_that_is_needed_to_restore_it(tmp_path: Path) -> None:
    path = stem(tmp_path, take(1))
    path.chmod(0o640)
    os.setxattr(path, "user.tag", b"red")
    os.utime(path, ns=(10**18, 10**18))
    backup = back_up(path, tmp_path, 12, voice="sage", now=NOW)
    assert backup.path.parent.parent == tmp_path / ".rvcd" / "backup"
    assert backup.path.parent.name in ("2027-01-14", "2027-01-15", "2027-01-16")
    assert backup.path.name == "12-lead.wav"
    assert backup.path.read_bytes() == path.read_bytes()
    assert backup.path.stat().st_mode & 0o777 == 0o640
    assert os.getxattr(backup.path, "user.tag") == b"red"
    assert backup.path.stat().st_ino != path.stat().st_ino
    sidecar = json.loads(Path(f"{backup.path}.json").read_text())
    assert sidecar == {
        "format": 1,
        "original": "lead.wav",
        "sha256": disk.sha256(path),
        "size": path.stat().st_size,
        "mtime_ns": 10**18,
        "made": NOW,
        "job": 12,
        "voice": "sage",
        "kind": "take",
        "result": "",
    }
    assert list_backups(tmp_path) == [backup]


@pytest.mark.parametrize("by", ["job", "stem", "backup"])
def test_undo_is_bit_for_bit_and_keeps_the_conversion(tmp_path: Path, by: str) -> None:
    path = stem(tmp_path, take(1))
    backup = convert(path, tmp_path, 12, take(2))
    converted = path.stat()
    which: Path | int = {"job": 12, "stem": path, "backup": backup.path}[by]
    told = []
    restored = restore(which, tmp_path, before_replace=lambda *about: told.append(about), now=NOW + 5)
    assert path.read_bytes() == take(1)
    assert list(wavinfo.WavInfoReader(str(path)).walk()) == list(wavinfo.WavInfoReader(str(backup.path)).walk())
    assert path.stat().st_mtime_ns > converted.st_mtime_ns
    assert told == [(path, Fingerprint.of(path))]
    assert restored.replaced is not None
    assert (restored.replaced.kind, restored.replaced.path.read_bytes()) == ("undone", take(2))
    assert not list((tmp_path / ".rvcd" / "stage").iterdir())
    restore(restored.replaced.path, tmp_path, now=NOW + 9)
    assert path.read_bytes() == take(2)


def test_undoing_a_path_again_goes_one_take_further_back_and_stops_at_the_first(tmp_path: Path) -> None:
    path = stem(tmp_path, take(1))
    convert(path, tmp_path, 1, take(2), now=NOW)
    convert(path, tmp_path, 2, take(3), now=NOW + 1)
    restore(path, tmp_path, now=NOW + 2)
    assert path.read_bytes() == take(2)
    restore(path, tmp_path, now=NOW + 3)
    assert path.read_bytes() == take(1)
    assert error_of(restore, path, tmp_path).code == Code.NO_BACKUP
    convert(path, tmp_path, 3, take(4), now=NOW + 4)
    restore(path, tmp_path, now=NOW + 5)
    assert path.read_bytes() == take(1)
    assert error_of(restore, path, tmp_path).code == Code.NO_BACKUP
    restore(2, tmp_path, now=NOW + 6)
    assert path.read_bytes() == take(2)


def test_undoing_what_is_undone_already_does_nothing(tmp_path: Path) -> None:
    path = stem(tmp_path, take(1))
    convert(path, tmp_path, 1, take(2))
    restore(1, tmp_path)
    before = Fingerprint.of(path)
    assert restore(1, tmp_path).replaced is None
    assert Fingerprint.of(path) == before
    assert len(list_backups(tmp_path)) == 2


def test_a_newer_bounce_is_kept_when_an_older_take_is_restored(tmp_path: Path) -> None:
    path = stem(tmp_path, take(1))
    convert(path, tmp_path, 1, take(2))
    path.write_bytes(take(3))
    restored = restore(path, tmp_path, now=NOW + 1)
    assert path.read_bytes() == take(1)
    assert restored.replaced is not None
    assert (restored.replaced.kind, restored.replaced.path.read_bytes()) == ("replaced", take(3))
    pruned = prune(tmp_path, now=NOW + 99 * DAY)
    assert [backup.sha256 for backup, _ in pruned.kept_back] == [restored.replaced.sha256]


def test_a_stem_and_its_folder_that_are_gone_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "song" / "vocals"
    folder.mkdir(parents=True)
    path = stem(folder, take(1))
    backup = back_up(path, tmp_path, 4)
    shutil.rmtree(tmp_path / "song")
    assert restore(path, tmp_path).replaced is None
    assert path.read_bytes() == take(1)
    assert backup.path.exists()


def test_a_root_may_move_and_be_reached_by_a_link(tmp_path: Path) -> None:
    root = tmp_path / "old"
    root.mkdir()
    path = stem(root, take(1))
    convert(path, root, 1, take(2))
    root.rename(tmp_path / "new")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    restore(tmp_path / "link" / "lead.wav", tmp_path / "link")
    assert (tmp_path / "new" / "lead.wav").read_bytes() == take(1)


NAMES = [
    "Don't.wav",
    "Gesang ä.wav",
    "Gesang a\u0308.wav",
    "\U0001f3a4.wav",
    "two\nlines.wav",
    "-leading.wav",
    "ü" * 125 + ".wav",
    "x" * 251 + ".wav",
    os.fsdecode(b"latin\xe4.wav"),
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_is_backed_up_and_restored(tmp_path: Path, name: str) -> None:
    path = stem(tmp_path, take(1), name)
    convert(path, tmp_path, 123, take(2))
    (backup,) = list_backups(tmp_path)
    assert backup.original == path
    assert backup.path.suffix == ".wav"
    restore(path, tmp_path)
    assert path.read_bytes() == take(1)


def test_a_name_in_the_other_unicode_form_finds_its_take(tmp_path: Path) -> None:
    """macOS gives and takes both forms for one file; here they are two, so the path is made anew."""
    path = stem(tmp_path, take(1), "Gesang a\u0308.wav")
    convert(path, tmp_path, 1, take(2))
    assert restore(tmp_path / "Gesang ä.wav", tmp_path).path == path
    assert path.read_bytes() == take(1)


def test_the_same_job_and_audio_are_backed_up_once_and_other_audio_beside_it(tmp_path: Path) -> None:
    path = stem(tmp_path, take(1))
    first = back_up(path, tmp_path, 7, now=NOW)
    assert back_up(path, tmp_path, 7, now=NOW + 1) == first
    path.write_bytes(take(2))
    second = back_up(path, tmp_path, 7, now=NOW + 2)
    assert (first.path.read_bytes(), second.path.read_bytes()) == (take(1), take(2))
    (tmp_path / "b").mkdir()
    other = back_up(stem(tmp_path / "b", take(1)), tmp_path, 7, now=NOW + 3)
    assert other.original == tmp_path / "b" / "lead.wav"
    assert len(list_backups(tmp_path)) == 3


def test_a_damaged_backup_is_not_restored(tmp_path: Path) -> None:
    path = stem(tmp_path, take(1))
    backup = convert(path, tmp_path, 1, take(2))
    content = bytearray(take(1))
    content[-1] ^= 1
    backup.path.write_bytes(content)
    assert error_of(restore, 1, tmp_path).code == Code.HASH_MISMATCH
    assert path.read_bytes() == take(2)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    assert list_backups(tmp_path) == []
    for which in (3, tmp_path / "lead.wav", tmp_path / ".rvcd" / "backup" / "x.wav"):
        assert error_of(restore, which, tmp_path).code == Code.NO_BACKUP
    assert error_of(back_up, tmp_path / "gone.wav", tmp_path, 1).code == Code.NOT_FOUND


@pytest.mark.parametrize("original", ["../out.wav", "link/out.wav", "/tmp/../out.wav"])
def test_a_sidecar_cannot_lead_out_of_the_root(tmp_path: Path, original: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    backup = back_up(stem(root, take(1)), root, 1)
    sidecar = Path(f"{backup.path}.json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "original": original}))
    assert error_of(restore, 1, root).code == Code.NOT_ALLOWED
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 2}', "null", "\xff"])
def test_audio_whose_sidecar_is_damaged_is_neither_listed_nor_deleted(tmp_path: Path, content: str) -> None:
    backup = back_up(stem(tmp_path, take(1)), tmp_path, 1, now=NOW)
    Path(f"{backup.path}.json").write_text(content, encoding="latin-1")
    assert list_backups(tmp_path) == []
    prune(tmp_path, last_copies=True, max_bytes=0, now=NOW + 999 * DAY)
    assert backup.path.read_bytes() == take(1)


def test_pruning_by_age_keeps_last_copies_and_says_so(tmp_path: Path) -> None:
    undone, converted, gone = (stem(tmp_path, take(number), f"{number}.wav") for number in (1, 2, 3))
    for job, path in enumerate((undone, converted, gone), start=1):
        convert(path, tmp_path, job, take(10 + job), now=NOW)
    restore(undone, tmp_path, now=NOW)
    gone.unlink()
    recent = convert(stem(tmp_path, take(4), "4.wav"), tmp_path, 4, take(14), now=NOW + 20 * DAY)
    assert prune(tmp_path, now=NOW + 29 * DAY) == backups.Pruned((), ())
    pruned = prune(tmp_path, now=NOW + 31 * DAY)
    assert sorted((backup.kind, backup.original.name) for backup in pruned.removed) == [
        ("take", "1.wav"),
        ("undone", "1.wav"),
    ]
    reasons = {backup.original.name: reason for backup, reason in pruned.kept_back}
    assert sorted(reasons) == ["2.wav", "3.wav"]
    assert "no longer holds it" in reasons["2.wav"]
    assert "is gone" in reasons["3.wav"]
    assert {backup.job for backup in list_backups(tmp_path)} == {2, 3, 4}
    pruned = prune(tmp_path, now=NOW + 31 * DAY, last_copies=True)
    assert {backup.job for backup in pruned.removed} == {2, 3}
    assert list_backups(tmp_path) == [Backup(**{**vars(recent), "result": disk.sha256(tmp_path / "4.wav")})]
    assert len(list((tmp_path / ".rvcd" / "backup").iterdir())) == 1


def test_of_two_equal_takes_the_newer_stays(tmp_path: Path) -> None:
    path = stem(tmp_path, take(1))
    convert(path, tmp_path, 1, take(2), now=NOW)
    path.write_bytes(take(1))
    convert(path, tmp_path, 2, take(3), now=NOW + 1)
    pruned = prune(tmp_path, now=NOW + 99 * DAY)
    assert [backup.job for backup in pruned.removed] == [1]
    assert [backup.job for backup, _ in pruned.kept_back] == [2]


def test_a_conversion_that_was_converted_again_is_no_take_to_keep(tmp_path: Path) -> None:
    path = stem(tmp_path, take(1))
    convert(path, tmp_path, 1, take(2), now=NOW)
    convert(path, tmp_path, 2, take(3), now=NOW + 1)
    pruned = prune(tmp_path, now=NOW + 99 * DAY)
    assert [backup.job for backup in pruned.removed] == [2]
    assert [backup.job for backup, _ in pruned.kept_back] == [1]


def test_a_conversion_equal_to_its_take_does_not_make_the_take_deletable(tmp_path: Path) -> None:
    path = stem(tmp_path, take(1))
    convert(path, tmp_path, 1, take(1), now=NOW)
    path.unlink()
    assert prune(tmp_path, now=NOW + 99 * DAY).removed == ()


def test_a_backup_whose_job_may_still_run_is_never_pruned(tmp_path: Path) -> None:
    """Until the stem is replaced it holds the same audio, and the backup is no last copy yet."""
    backup = back_up(stem(tmp_path, take(1), "1.wav"), tmp_path, 1, now=NOW)
    assert prune(tmp_path, max_bytes=0, last_copies=True, now=NOW + 3600) == backups.Pruned((), ())
    assert backup.path.exists()
    assert prune(tmp_path, max_bytes=0, now=NOW + 2 * DAY).removed == (backup,)


def test_pruning_by_size_deletes_the_oldest_first(tmp_path: Path) -> None:
    for job in (1, 2, 3):
        back_up(stem(tmp_path, take(job), f"{job}.wav"), tmp_path, job, now=NOW + job)
    pruned = prune(tmp_path, max_bytes=2 * len(take(1)), now=NOW + 2 * DAY)
    assert [backup.job for backup in pruned.removed] == [1]
    assert prune(tmp_path, max_bytes=2 * len(take(1)), now=NOW + 2 * DAY) == backups.Pruned((), ())


def test_pruning_sweeps_old_leftovers_only(tmp_path: Path) -> None:
    back_up(stem(tmp_path, take(1)), tmp_path, 1)
    folder = next((tmp_path / ".rvcd" / "backup").iterdir())
    leftovers = [folder / ".abc.unfinished", folder / "9-x.wav.json"]
    for leftover in leftovers:
        leftover.write_text("{}")
    status = leftovers[0].stat()
    prune(tmp_path, now=status.st_ctime + 60)
    assert all(leftover.exists() for leftover in leftovers)
    prune(tmp_path, now=status.st_ctime + 2 * DAY)
    assert not any(leftover.exists() for leftover in leftovers)
    assert len(list_backups(tmp_path)) == 1


def test_a_disk_without_room_for_backup_and_result_is_told_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stem(tmp_path, take(1))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 0, 2 * len(take(1)) + (32 << 20) - 1))
    assert error_of(back_up, path, tmp_path, 1).code == Code.DISK_FULL
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 0, 2 * len(take(1)) + (32 << 20)))
    assert back_up(path, tmp_path, 1).path.exists()


def run_python(program: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def attempt(action: str, first: str = "") -> str:
    """A program that does something first, then the action, and prints the code it was refused with."""
    return f"""
import os, resource
from pathlib import Path
from rvcd.backups import back_up, restore
from rvcd.errors import RvcdError
from rvcd.replacing import check_replaceable
{first}
try:
    {action}
except RvcdError as error:
    print(error.code)
"""


def test_a_volume_that_fills_up_meanwhile_leaves_no_half_backup(tmp_path: Path) -> None:
    """A limit on file size stands in for the disk: the system refuses the write all the same."""
    path = stem(tmp_path, bytes(300_000) + take(1))
    action = f"back_up(Path({str(path)!r}), Path({str(tmp_path)!r}), 1)"
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))"
    assert run_python(attempt(action, first=limit)) == "disk_full"
    assert list_backups(tmp_path) == []
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]


@pytest.fixture
def locked_folder() -> Iterator[Path]:
    """A stem in a folder that may be read and not written to, by a user who is not root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = stem(folder, take(1))
        path.chmod(0o644)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


@pytest.mark.parametrize("action", ["back_up({stem}, {root}, 1)", "check_replaceable({stem}, {root})"])
def test_a_read_only_folder_is_told_and_left_alone(locked_folder: Path, action: str) -> None:
    names = {"stem": f"Path({str(locked_folder / 'lead.wav')!r})", "root": f"Path({str(locked_folder)!r})"}
    become_nobody = "os.geteuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534))"
    assert run_python(attempt(action.format(**names), first=become_nobody)) == "permission_denied"
    assert [path.name for path in locked_folder.iterdir()] == ["lead.wav"]


@pytest.mark.parametrize("what", ["convert", "undo"])
def test_killed_at_any_line_the_stem_is_whole_and_so_is_its_backup(tmp_path: Path, what: str) -> None:
    program = REPOSITORY / "tests" / "support" / "crashes.py"
    done = subprocess.run(
        [sys.executable, str(program), what, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 100
