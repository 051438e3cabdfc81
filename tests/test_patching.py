import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import wavinfo

from rvcd import disk, patching
from rvcd.containers import Layout, is_complete, read_layout
from rvcd.errors import Code, RvcdError
from rvcd.fingerprints import Fingerprint
from rvcd.patching import stage
from rvcd.replacing import Staged, check_replaceable, commit
from rvcd.stems import read_stem
from tests.support.audio_files import (
    bext,
    broadcast_wave,
    chunk,
    extensible_format,
    flac_with,
    pcm24,
    rf64,
    wave,
    wave_format,
)
from tests.test_containers import FORMATS, SUFFIXES

PATCHED = [form for form in FORMATS if form[0] != "FLAC"]


def new_samples(frames: int, channels: int = 1, seed: int = 5, peak: float = 0.9) -> np.ndarray:
    samples = np.random.default_rng(seed).uniform(-1, 1, (frames, channels))
    return samples * (peak / np.abs(samples).max())


def staged(original: Path, samples: np.ndarray | None = None, seed: int = 0) -> Staged:
    samples = read_stem(original).samples if samples is None else samples
    return stage(original, samples, original.parent / "stage" / original.name, seed=seed)


def error_of(action: Any, *arguments: Any) -> RvcdError:
    with pytest.raises(RvcdError) as caught:
        action(*arguments)
    return caught.value


def saved(folder: Path, content: bytes, name: str = "lead.wav") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def outside(path: Path) -> bytes:
    """Every byte of a file that is no sample."""
    layout, content = read_layout(path), path.read_bytes()
    return content[: layout.payload_offset] + content[layout.payload_offset + layout.frames * layout.frame_size :]


@pytest.mark.parametrize(("container", "subtype", "endian"), PATCHED)
def test_the_same_samples_leave_every_byte_and_new_ones_only_change_theirs(
    tmp_path: Path, container: str, subtype: str, endian: str
) -> None:
    path = tmp_path / f"lead.{SUFFIXES[container]}"
    full_range = np.random.default_rng(7).integers(-(2**31), 2**31, (1001, 3)).astype(np.int32)
    soundfile.write(path, full_range, 44_100, subtype, endian, container)
    assert staged(path).path.read_bytes() == path.read_bytes()

    info = soundfile.info(path)
    result = staged(path, new_samples(1001, 3))
    after = soundfile.info(result.path)
    assert (after.format, after.subtype, after.endian) == (info.format, info.subtype, info.endian)
    assert (after.frames, after.channels, after.samplerate) == (1001, 3, 44_100)
    step = {"PCM_S8": 2**-7, "PCM_U8": 2**-7, "PCM_16": 2**-15, "PCM_24": 2**-23}.get(subtype, 2**-24)
    read = soundfile.read(result.path, dtype="float64")[0]
    np.testing.assert_allclose(read, new_samples(1001, 3), rtol=0, atol=1.51 * step)
    before, now = outside(path), outside(result.path)
    assert now in (before, before.replace(b"PEAK", b"JUNK", 1), before.replace(b"peak", b"free", 1))
    assert is_complete(read_layout(result.path), result.path.stat().st_size)


def test_all_that_a_daw_put_beside_the_samples_stays(tmp_path: Path) -> None:
    original = saved(tmp_path, broadcast_wave(pcm24(501), fmt=wave_format()) + b"TAG garbage")
    result = staged(original, new_samples(501))
    assert outside(result.path) == outside(original)
    before, after = wavinfo.WavInfoReader(str(original)), wavinfo.WavInfoReader(str(result.path))
    told = list(before.walk())
    assert ("bext", "originator", "DAW") in told
    assert ("ixml", "project", "song") in told
    assert ("cues", 1, {"frame": 5, "label": "verse", "note": "loud"}) in told
    assert list(after.walk()) == told


def test_what_was_computed_from_the_old_audio_is_invalidated(tmp_path: Path) -> None:
    derived = [chunk(b"PEAK", bytes(16)), chunk(b"levl", bytes(130)), chunk(b"MD5 ", bytes(16))]
    others = [bext(2, loudness=(-2300, 500, -100, -1800, -2000)), chunk(b"LGWV", b"overview")]
    original = saved(tmp_path, wave(pcm24(500), fmt=wave_format(), before=[*derived, *others]))
    result = staged(original, new_samples(500))
    names = [each.id for each in read_layout(result.path).chunks]
    assert names == [b"fmt ", b"JUNK", b"JUNK", b"JUNK", b"bext", b"LGWV", b"data"]
    info = wavinfo.WavInfoReader(str(result.path)).bext
    assert info.description == "lead"
    assert info.loudness_value == info.loudness_range == info.max_true_peak == pytest.approx(327.67)
    assert info.max_momentary_loudness == info.max_shortterm_loudness == pytest.approx(327.67)
    expected = outside(original).replace(struct.pack("<5h", -2300, 500, -100, -1800, -2000), b"\xff\x7f" * 5)
    for name in (b"PEAK", b"levl", b"MD5 "):
        expected = expected.replace(name, b"JUNK")
    assert outside(result.path) == expected
    assert staged(original).path.read_bytes() == original.read_bytes()


def test_aiff_markers_caf_strings_rf64_tails_and_partial_frames_stay(tmp_path: Path) -> None:
    aiff = tmp_path / "lead.aif"
    soundfile.write(aiff, new_samples(400, 2, seed=1), 44_100, "PCM_24", format="AIFF")
    content = aiff.read_bytes() + b"MARK" + struct.pack(">IHhIB", 13, 1, 1, 7, 4) + b"here\0" + b"\0"
    aiff.write_bytes(b"FORM" + struct.pack(">I", len(content) - 8) + content[8:])
    caf = tmp_path / "lead.caf"
    soundfile.write(caf, new_samples(400, 2, seed=1), 44_100, "FLOAT")
    caf.write_bytes(caf.read_bytes() + b"info" + struct.pack(">qI", 14, 1) + b"tape\0four\0")
    long = saved(tmp_path, rf64(pcm24(800), fmt=wave_format(2), after=[chunk(b"axml", b"<x/>")]), "lead.rf64")
    partial = saved(tmp_path, wave(pcm24(800) + b"\1\2\3\4", fmt=wave_format(2), after=[chunk(b"LIST", b"INFO")]))
    for path, kept in ((aiff, b"here"), (caf, b"tape\0four"), (long, b"<x/>"), (partial, b"\1\2\3\4LIST")):
        result = staged(path, new_samples(400, 2))
        assert kept in result.path.read_bytes()
        assert outside(result.path) == outside(path).replace(b"peak", b"free")
        assert result.path.read_bytes() != path.read_bytes()


@pytest.mark.parametrize(("container_bits", "bits"), [(24, 20), (32, 24), (16, 12)])
def test_bits_that_do_not_count_stay_zero(tmp_path: Path, container_bits: int, bits: int) -> None:
    width = container_bits // 8
    original = saved(tmp_path, wave(bytes(300 * width), fmt=extensible_format(1, container_bits, bits)))
    result = staged(original, new_samples(300)).path.read_bytes()[-300 * width :]
    values = [int.from_bytes(result[at : at + width], "little", signed=True) for at in range(0, len(result), width)]
    assert not any(value % 2 ** (container_bits - bits) for value in values)
    np.testing.assert_allclose(
        np.array(values) / 2.0 ** (container_bits - 1), new_samples(300)[:, 0], rtol=0, atol=1.51 * 2.0 ** (1 - bits)
    )


def test_16_bit_is_dithered_by_seed_but_silence_and_what_fits_are_not(tmp_path: Path) -> None:
    original = saved(tmp_path, wave(bytes(80_000), fmt=wave_format(bits=16)))
    samples = np.full((40_000, 1), 0.3 / 2**15)  # below half a step: only dither can carry it
    samples[20_000:] = 0
    results = [staged(original, samples, seed).path.read_bytes() for seed in (1, 1, 2)]
    assert results[0] == results[1] != results[2]
    steps = np.frombuffer(results[0][44:], "<i2")
    assert steps[:20_000].mean() == pytest.approx(0.3, abs=0.03)
    assert not steps[20_000:].any()


def test_overs_lower_an_integer_file_and_stay_in_a_float_file(tmp_path: Path) -> None:
    integer = saved(tmp_path, wave(bytes(3000), fmt=wave_format()))
    loud = new_samples(1000, peak=2.0)
    result = staged(integer, loud)
    assert result.gain_db == pytest.approx(-6.02, abs=0.01)
    read = soundfile.read(result.path, always_2d=True)[0]
    np.testing.assert_allclose(read, loud * 10 ** (result.gain_db / 20), atol=2**-23)
    floats = saved(tmp_path, wave(bytes(4000), fmt=wave_format(bits=32, tag=3)), "float.wav")
    result = staged(floats, loud)
    assert result.gain_db == 0
    np.testing.assert_array_equal(soundfile.read(result.path, always_2d=True)[0], loud.astype(np.float32))


VENDOR, PICTURE, CUESHEET, COMMENTS, SEEKTABLE, PADDING = 2, 6, 5, 4, 3, 1


def tagged_flac(folder: Path, subtype: str) -> Path:
    path = folder / "lead.flac"
    soundfile.write(path, new_samples(9000, 2, seed=1), 44_100, subtype)
    tag = "TITLE=Gesang ä".encode()
    comments = struct.pack("<I", 4) + b"mine" + struct.pack("<II", 1, len(tag)) + tag
    picture = struct.pack(">II", 3, 9) + b"image/png" + struct.pack(">IIIIII", 0, 1, 1, 24, 0, 4) + b"\x89PNG"
    cuesheet = bytes(128) + bytes(8) + b"\1" + bytes(258) + b"\1" + bytes(8) + b"\xaa" + bytes(27)
    seekpoint = struct.pack(">QQH", 0, 0, 4096)
    blocks = [(COMMENTS, comments), (SEEKTABLE, seekpoint), (VENDOR, b"riffLGWV" + bytes(40))]
    path.write_bytes(
        flac_with(path.read_bytes(), [*blocks, (CUESHEET, cuesheet), (PICTURE, picture), (PADDING, bytes(9))])
    )
    return path


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_flac_is_encoded_anew_and_keeps_its_metadata_byte_for_byte(tmp_path: Path, subtype: str) -> None:
    original = tagged_flac(tmp_path, subtype)
    same = staged(original)
    np.testing.assert_array_equal(read_stem(same.path).samples, read_stem(original).samples)
    result = staged(original, new_samples(9000, 2))
    info = soundfile.info(result.path)
    assert (info.format, info.subtype, info.frames, info.channels) == ("FLAC", subtype, 9000, 2)
    with soundfile.SoundFile(result.path) as sound:
        assert sound.title == "Gesang ä"
        np.testing.assert_allclose(sound.read(), new_samples(9000, 2), atol=2.0**-6 if "8" in subtype else 2.0**-14)
    bodies = []
    for path in (original, result.path):
        content = path.read_bytes()
        bodies.append([(each.id[3], content[each.body : each.end]) for each in read_layout(path).chunks])
    assert [kind for kind, _ in bodies[1]] == [0, COMMENTS, PADDING, VENDOR, CUESHEET, PICTURE, PADDING]
    assert bodies[1][3:] == bodies[0][3:]
    assert bodies[1][1] == bodies[0][1]
    assert bodies[1][2] == (PADDING, bytes(len(bodies[0][2][1])))
    assert sorted(path.name for path in result.path.parent.iterdir()) == ["lead.flac"]


@pytest.mark.parametrize("name", ["lead.wav", "lead.flac"])
def test_mode_and_extended_attributes_stay_and_the_time_of_writing_does_not(tmp_path: Path, name: str) -> None:
    original = tmp_path / name
    soundfile.write(original, new_samples(500), 44_100, "PCM_24")
    original.chmod(0o640)
    os.setxattr(original, "user.tag", b"red")
    os.utime(original, ns=(10**18, 10**18))
    result = staged(original, new_samples(500))
    assert result.path.stat().st_mode & 0o777 == 0o640
    assert os.getxattr(result.path, "user.tag") == b"red"
    assert result.path.stat().st_mtime_ns > 10**18
    assert original.stat().st_mtime_ns == 10**18
    assert (result.fingerprint, result.digest, result.frames) == (
        Fingerprint.of(result.path),
        disk.sha256(result.path),
        500,
    )


def test_a_stem_that_changed_its_length_is_not_filled_with_other_audio(tmp_path: Path) -> None:
    original = saved(tmp_path, wave(pcm24(500), fmt=wave_format()))
    error = error_of(staged, original, new_samples(501))
    assert error.code == Code.CHANGED_UNDERNEATH
    assert "501" in error.sentence
    assert not list(tmp_path.glob("stage/*"))


@pytest.mark.parametrize(
    ("content", "samples", "code"),
    [
        (wave(pcm24(500), fmt=wave_format()), new_samples(500) * np.nan, Code.NOT_FINITE),
        (wave(bytes(2000), fmt=wave_format(bits=32, tag=3)), new_samples(500) * 1e300, Code.NOT_FINITE),
        (wave(pcm24(500), fmt=wave_format())[:-9], new_samples(500), Code.UNREADABLE_STEM),
        (b"OggS" + bytes(100), new_samples(500), Code.UNSUPPORTED_FORMAT),
        (b"", new_samples(500), Code.FILE_UNSTABLE),
    ],
)
def test_what_cannot_be_staged_is_refused_and_leaves_nothing(
    tmp_path: Path, content: bytes, samples: np.ndarray, code: Code
) -> None:
    original = saved(tmp_path, content)
    assert error_of(staged, original, samples).code == code
    assert original.read_bytes() == content
    assert not list(tmp_path.glob("stage/*"))


def test_a_stem_that_vanished_is_told(tmp_path: Path) -> None:
    assert error_of(staged, tmp_path / "gone.wav", new_samples(5)).code == Code.NOT_FOUND


def test_a_stage_folder_that_is_none_is_told(tmp_path: Path) -> None:
    original = saved(tmp_path, wave(pcm24(500), fmt=wave_format()))
    saved(tmp_path, b"", "stage")
    assert error_of(staged, original, new_samples(500)).code == Code.NOT_WRITABLE


def test_a_write_during_staging_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = saved(tmp_path, wave(pcm24(500), fmt=wave_format()))

    def clone_then_bounce(source: Path, target: Path) -> None:
        clone(source, target)
        saved(tmp_path, wave(pcm24(600), fmt=wave_format()))

    clone = disk.clone_file
    monkeypatch.setattr(disk, "clone_file", clone_then_bounce)
    assert error_of(staged, original, new_samples(500)).code in (Code.CHANGED_UNDERNEATH, Code.NOT_WRITABLE)
    assert not list(tmp_path.glob("stage/*"))


@pytest.mark.parametrize("position", [0, 30, 60, 1550])
def test_a_disk_that_loses_what_it_accepted_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    """One byte, in a header, in the samples or behind them, is another when the file is read back."""
    original = saved(tmp_path, wave(pcm24(500), fmt=wave_format(), after=[chunk(b"LIST", b"INFO")]))

    def read_from_a_bad_disk(path: Path) -> Layout:
        if path != original:
            content = bytearray(path.read_bytes())
            content[position] ^= 1
            path.write_bytes(content)
        return read_layout(path)

    monkeypatch.setattr(patching, "read_layout", read_from_a_bad_disk)
    with pytest.raises(RvcdError):
        staged(original, new_samples(500))
    assert not list(tmp_path.glob("stage/*"))


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_full_volume_leaves_the_stem_and_no_stage(tmp_path: Path, suffix: str) -> None:
    """A limit on file size stands in for the disk: the system refuses the write all the same."""
    original = tmp_path / f"lead{suffix}"
    soundfile.write(original, new_samples(100_000), 44_100, "PCM_24")
    before = original.read_bytes()
    program = f"""
import resource, numpy as np
from pathlib import Path
from rvcd.errors import RvcdError
from rvcd.patching import stage
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
samples = np.random.default_rng(0).normal(0, 0.1, (100_000, 1))
try:
    stage(Path({str(original)!r}), samples, Path({str(tmp_path)!r}) / "stage" / "lead{suffix}", seed=0)
except RvcdError as error:
    print(error.code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("disk_full\n", "")
    assert original.read_bytes() == before
    assert not list(tmp_path.glob("stage/*"))


def test_commit_replaces_and_keeps_the_fingerprint_of_the_staged_file(tmp_path: Path) -> None:
    original = saved(tmp_path, wave(pcm24(500), fmt=wave_format()))
    expected = Fingerprint.of(original)
    result = staged(original, new_samples(500))
    content = result.path.read_bytes()
    commit(result, original, expected)
    assert original.read_bytes() == content
    assert Fingerprint.of(original) == result.fingerprint != expected
    assert not result.path.exists()


def test_a_newer_bounce_or_none_is_never_replaced(tmp_path: Path) -> None:
    original = saved(tmp_path, wave(pcm24(500), fmt=wave_format()))
    expected = Fingerprint.of(original)
    result = staged(original, new_samples(500))
    newer = wave(pcm24(500, seed=9), fmt=wave_format())
    original.write_bytes(newer)
    assert error_of(commit, result, original, expected).code == Code.CHANGED_UNDERNEATH
    assert original.read_bytes() == newer
    original.unlink()
    assert error_of(commit, result, original, expected).code == Code.CHANGED_UNDERNEATH
    assert not original.exists()
    assert result.path.exists()
    expected = Fingerprint.of(saved(tmp_path, newer))
    result.path.unlink()
    assert error_of(commit, result, original, expected).code == Code.NOT_FOUND
    assert original.read_bytes() == newer


def test_a_link_is_followed_within_the_root_only(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    inner = saved(root, b"x", "inner.wav")
    (root / "link.wav").symlink_to(inner)
    assert check_replaceable(root / "link.wav", root) == inner
    (tmp_path / "hot").symlink_to(root)
    assert check_replaceable(tmp_path / "hot" / "inner.wav", tmp_path / "hot") == inner
    (root / "out.wav").symlink_to(saved(elsewhere, b"x"))
    (root / "folder").symlink_to(elsewhere)
    (root / "loop.wav").symlink_to(root / "loop.wav")
    for name, code in (
        ("out.wav", Code.NOT_ALLOWED),
        ("folder/lead.wav", Code.NOT_ALLOWED),
        ("../elsewhere/lead.wav", Code.NOT_ALLOWED),
        ("gone.wav", Code.NOT_FOUND),
    ):
        assert error_of(check_replaceable, root / name, root).code == code, name
    with pytest.raises(RvcdError):
        check_replaceable(root / "loop.wav", root)


def test_hard_links_locked_files_folders_and_our_own_files_are_not_replaced(tmp_path: Path) -> None:
    stem = saved(tmp_path, b"x")
    (tmp_path / "twin.wav").hardlink_to(stem)
    assert error_of(check_replaceable, stem, tmp_path).code == Code.NOT_ALLOWED
    (tmp_path / "twin.wav").unlink()
    assert check_replaceable(stem, tmp_path) == stem
    stem.chmod(0o444)
    assert error_of(check_replaceable, stem, tmp_path).code == Code.PERMISSION_DENIED
    assert error_of(check_replaceable, tmp_path, tmp_path).code == Code.UNREADABLE_STEM
    (tmp_path / ".rvcd").mkdir()
    assert error_of(check_replaceable, saved(tmp_path / ".rvcd", b"x"), tmp_path).code == Code.NOT_ALLOWED


def test_a_clone_keeps_holes_as_holes(tmp_path: Path) -> None:
    """5 GiB of nothing cost no time and no room."""
    source, target = tmp_path / "a", tmp_path / "b"
    with source.open("wb") as file:
        file.write(b"head")
        file.seek(3 * 2**30)
        file.write(b"middle")
        file.truncate(5 * 2**30)
    disk.clone_file(source, target)
    assert target.stat().st_size == 5 * 2**30
    assert target.stat().st_blocks * 512 < 2**20
    with target.open("rb") as file:
        assert file.read(4) == b"head"
        file.seek(3 * 2**30)
        assert file.read(8) == b"middle\0\0"


def test_a_clone_never_overwrites(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        disk.clone_file(saved(tmp_path, b"x", "a"), saved(tmp_path, b"y", "b"))
    assert (tmp_path / "b").read_bytes() == b"y"


class FakeLibc:
    """copyfile(3) of macOS: refuses to overwrite, clones with attributes when asked by the right flags."""

    def copyfile(self, source: bytes, target: bytes, state: None, flags: Any) -> int:
        assert flags.value == 1 << 24 | 1 << 18
        if os.path.exists(target):  # noqa: PTH110
            return -1
        Path(os.fsdecode(target)).write_bytes(Path(os.fsdecode(source)).read_bytes())
        return 0


def test_on_macos_the_system_clones(tmp_path: Path) -> None:
    source = saved(tmp_path, b"x", "a")
    disk._copyfile(FakeLibc(), source, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"x"
    with pytest.raises(OSError, match=r"."):
        disk._copyfile(FakeLibc(), source, tmp_path / "b")
