"""What a look at real folders tells, and what kind of volume they lie on."""

import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from rvcd.errors import Code
from rvcd.fingerprints import Fingerprint
from rvcd.watch import scanner as scanners
from rvcd.watch.scanner import Scanner, is_offline
from rvcd.watch.volumes import filesystem_type, is_local, is_network_type, is_network_volume


def bounce(path: Path, content: bytes = b"take") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@contextmanager
def unprivileged() -> Iterator[None]:
    """Permissions bind everybody but root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(0)


def test_a_scan_tells_every_stem_once_and_then_only_what_changed(tmp_path: Path) -> None:
    lead, harmony = bounce(tmp_path / "lead.wav"), bounce(tmp_path / "alto" / "deep" / "harmony.aiff")
    bounce(tmp_path / "notes.txt")
    scanner = Scanner(tmp_path)
    assert scanner.scan().changed == {lead: Fingerprint.of(lead), harmony: Fingerprint.of(harmony)}
    assert len(scanner) == 2
    assert scanner.scan().changed == {}
    bounce(harmony, b"longer take")
    assert scanner.scan().changed == {harmony: Fingerprint.of(harmony)}


def test_a_stem_rewritten_in_place_is_seen_though_its_folder_did_not_change(tmp_path: Path) -> None:
    lead = bounce(tmp_path / "lead.wav")
    scanner = Scanner(tmp_path)
    scanner.scan()
    folder_time = tmp_path.stat().st_mtime_ns
    with lead.open("r+b") as file:
        file.write(b"TAKE")
    os.utime(lead, ns=(1, 1))
    assert tmp_path.stat().st_mtime_ns == folder_time
    assert list(scanner.scan().changed) == [lead]


def test_hidden_files_and_folders_are_never_entered(tmp_path: Path) -> None:
    for name in (".rvcd/stage/lead.wav", ".lead.wav", "~lead.wav", ".Trash/lead.wav"):
        bounce(tmp_path / name)
    assert Scanner(tmp_path).scan().changed == {}


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    outside = bounce(tmp_path / "outside" / "lead.wav")
    root = tmp_path / "hot"
    root.mkdir()
    (root / "lead.wav").symlink_to(outside)
    (root / "voice").symlink_to(outside.parent)
    (root / "loop").symlink_to(root)
    assert Scanner(root).scan().changed == {}


def test_a_folder_or_pipe_named_like_a_stem_is_none(tmp_path: Path) -> None:
    (tmp_path / "lead.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    assert Scanner(tmp_path).scan().changed == {}


def test_deleted_stems_and_folders_are_gone(tmp_path: Path) -> None:
    lead, harmony = bounce(tmp_path / "lead.wav"), bounce(tmp_path / "alto" / "deep" / "harmony.wav")
    scanner = Scanner(tmp_path)
    scanner.scan()
    lead.unlink()
    harmony.unlink()
    harmony.parent.rmdir()
    harmony.parent.parent.rmdir()
    assert scanner.scan().gone == {lead, harmony}
    assert len(scanner) == 0


def test_a_touched_stem_is_looked_at_alone(tmp_path: Path) -> None:
    lead, other = bounce(tmp_path / "lead.wav"), bounce(tmp_path / "other.wav")
    scanner = Scanner(tmp_path)
    scanner.scan()
    bounce(lead, b"longer take")
    bounce(other, b"longer take")
    assert list(scanner.look([lead]).changed) == [lead]
    lead.unlink()
    assert scanner.look([lead]).gone == {lead}
    assert scanner.fingerprint(lead) is None


def test_a_name_that_nobody_knows_is_found_by_listing_its_folder(tmp_path: Path) -> None:
    scanner = Scanner(tmp_path)
    scanner.scan()
    composed = bounce(tmp_path / "Gesang ä.wav")
    decomposed = tmp_path / "Gesang a\u0308.wav"
    assert list(scanner.look([decomposed]).changed) == [composed]


def test_a_new_folder_is_found_with_all_it_holds(tmp_path: Path) -> None:
    scanner = Scanner(tmp_path)
    scanner.scan()
    harmony = bounce(tmp_path / "alto" / "deep" / "harmony.wav")
    assert list(scanner.look([harmony.parent]).changed) == [harmony]


def test_a_renamed_folder_moves_its_stems(tmp_path: Path) -> None:
    harmony = bounce(tmp_path / "alto" / "deep" / "harmony.wav")
    scanner = Scanner(tmp_path)
    scanner.scan()
    (tmp_path / "alto").rename(tmp_path / "tenor")
    changes = scanner.look([tmp_path / "alto", tmp_path / "tenor"])
    assert changes.gone == {harmony}
    assert list(changes.changed) == [tmp_path / "tenor" / "deep" / "harmony.wav"]
    assert len(scanner) == 1


def test_an_unreadable_folder_is_a_problem_and_does_not_hide_the_others() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        root.chmod(0o755)
        lead, secret = bounce(root / "lead.wav"), bounce(root / "closed" / "secret.wav")
        secret.parent.chmod(0)
        scanner = Scanner(root)
        with unprivileged():
            assert list(scanner.scan().changed) == [lead]
        (problem,) = scanner.problems.items()
        assert problem[0] == secret.parent
        assert problem[1].code is Code.PERMISSION_DENIED
        secret.parent.chmod(0o755)
        assert list(scanner.scan().changed) == [secret]
        assert scanner.problems == {}


def test_names_of_any_bytes_come_back_as_they_are(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.wav"
    os.close(os.open(raw, os.O_CREAT | os.O_WRONLY))
    (path,) = Scanner(tmp_path).scan().changed
    assert os.fsencode(path) == raw


def test_more_stems_than_anybody_has_are_refused_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanners, "MAX_STEMS", 3)
    for number in range(3):
        bounce(tmp_path / f"{number}.wav")
        bounce(tmp_path / "more" / f"{number}.wav")
    scanner = Scanner(tmp_path)
    assert len(scanner.scan().changed) == 3
    (problem,) = scanner.problems.values()
    assert problem.code is Code.BAD_CONFIGURATION


def test_a_file_whose_content_is_in_the_cloud_is_offline() -> None:
    def flags(st_flags: int) -> os.stat_result:
        return cast("os.stat_result", SimpleNamespace(st_flags=st_flags))

    assert is_offline(flags(0x40000000 | 0x20))
    assert not is_offline(flags(0x20))


def test_coming_out_of_the_cloud_is_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lead = bounce(tmp_path / "lead.wav")
    scanner = Scanner(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(scanners, "is_offline", lambda stat: True)
        changes = scanner.scan()
        assert changes.offline == changes.changed.keys() == {lead}
    changes = scanner.scan()
    assert list(changes.changed) == [lead]
    assert changes.offline == set()


MOUNTS = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:50 / /mnt/My\040Share rw - cifs //nas/share rw
31 27 0:51 / /mnt/disk rw - nfs4 nas:/disk rw
32 27 8:1 / /mnt/disk rw - xfs /dev/sda1 rw
33 30 0:52 / /mnt/My\040Share/local rw - tmpfs tmpfs rw
""".strip()


@pytest.mark.parametrize(
    ("path", "filesystem"),
    [
        ("/home/me/hot", "ext4"),
        ("/mnt/My Share/hot", "cifs"),
        ("/mnt/My Share", "cifs"),
        ("/mnt/My Share/local/hot", "tmpfs"),
        ("/mnt/My Shares", "ext4"),
        ("/mnt/disk/hot", "xfs"),
    ],
)
def test_the_deepest_and_latest_mount_holds_a_path(path: str, filesystem: str) -> None:
    assert filesystem_type(Path(path), MOUNTS) == filesystem


def test_network_filesystems_are_told_from_local_ones(tmp_path: Path) -> None:
    assert all(map(is_network_type, ("nfs4", "cifs", "fuse.sshfs", "virtiofs")))
    assert not any(map(is_network_type, ("ext4", "apfs", "fuseblk", "tmpfs", "")))
    assert not is_network_volume(tmp_path)


def test_macos_says_in_its_flags_whether_a_volume_is_local() -> None:
    def statfs(flags: int) -> bytes:
        # bsize, iosize; blocks, bfree, bavail, files, ffree; fsid; owner, type, flags, subtype; names
        return struct.pack("=Ii5QiiIIII", 4096, 1 << 20, 1, 2, 3, 4, 5, 6, 7, 501, 26, flags, 0) + bytes(2096)

    assert is_local(statfs(0x1000 | 0x200000))
    assert not is_local(statfs(0x200000))
