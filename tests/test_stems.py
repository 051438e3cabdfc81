import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rvcd.errors import Code, RvcdError
from rvcd.stems import Stem, output_suffix, read_stem, write_stem

LOSSLESS = [
    ("WAV", "PCM_U8", ".wav", "FILE"),
    ("WAV", "PCM_16", ".wav", "FILE"),
    ("WAV", "PCM_24", ".wav", "FILE"),
    ("WAV", "PCM_32", ".wav", "FILE"),
    ("WAV", "FLOAT", ".wav", "FILE"),
    ("WAV", "DOUBLE", ".wav", "FILE"),
    ("WAVEX", "PCM_24", ".wav", "FILE"),
    ("RF64", "PCM_24", ".wav", "FILE"),
    ("W64", "PCM_24", ".w64", "FILE"),
    ("AIFF", "PCM_S8", ".aif", "FILE"),
    ("AIFF", "PCM_16", ".aif", "LITTLE"),
    ("AIFF", "PCM_24", ".aiff", "FILE"),
    ("AIFF", "FLOAT", ".aiff", "FILE"),
    ("CAF", "PCM_32", ".caf", "LITTLE"),
    ("FLAC", "PCM_16", ".flac", "FILE"),
    ("FLAC", "PCM_24", ".flac", "FILE"),
]


def full_range_samples(subtype: str, channels: int = 2, frames: int = 3000) -> np.ndarray:
    """Values over the whole range of the subtype, with both extremes, as libsndfile wants them."""
    random = np.random.default_rng(7)
    if subtype in ("FLOAT", "DOUBLE"):
        samples = random.normal(0, 2, (frames, channels))
        return samples if subtype == "DOUBLE" else samples.astype(np.float32)
    integers = random.integers(-(2**31), 2**31, (frames, channels)).astype(np.int32)
    integers[0, :] = -(2**31)
    integers[1, :] = 2**31 - 1
    return integers


def quiet_stem(frames: int = 4000, channels: int = 1, subtype: str = "PCM_16") -> Stem:
    samples = np.random.default_rng(3).normal(0, 0.1, (frames, channels)).astype(np.float32)
    return Stem(samples, 44_100, "WAV", subtype, "FILE")


def code_of(action: object, *arguments: object) -> RvcdError:
    with pytest.raises(RvcdError) as caught:
        action(*arguments)  # type: ignore[operator]
    return caught.value


@pytest.mark.parametrize(("container", "subtype", "suffix", "endian"), LOSSLESS)
def test_untouched_samples_are_written_back_bit_for_bit(
    tmp_path: Path, container: str, subtype: str, suffix: str, endian: str
) -> None:
    original, copy = tmp_path / f"lead{suffix}", tmp_path / f"copy{suffix}"
    soundfile.write(original, full_range_samples(subtype), 44_100, subtype, endian, container)
    stem = read_stem(original)
    assert write_stem(copy, stem.samples, stem) == 0
    before, after = soundfile.info(original), soundfile.info(copy)
    assert (after.format, after.subtype, after.endian, after.samplerate, after.channels) == (
        before.format,
        before.subtype,
        before.endian,
        before.samplerate,
        before.channels,
    )
    dtype = "float64" if subtype in ("FLOAT", "DOUBLE") else "int32"
    np.testing.assert_array_equal(soundfile.read(copy, dtype=dtype)[0], soundfile.read(original, dtype=dtype)[0])


@pytest.mark.parametrize("subtype", ["ALAC_16", "ALAC_24"])
def test_alac_becomes_pcm_of_the_same_depth(tmp_path: Path, subtype: str) -> None:
    samples = np.sin(np.arange(5000) * 0.05)[:, None] * 0.5
    soundfile.write(tmp_path / "lead.caf", samples, 48_000, subtype, format="CAF")
    stem = read_stem(tmp_path / "lead.caf")
    write_stem(tmp_path / "copy.caf", stem.samples, stem)
    assert soundfile.info(tmp_path / "copy.caf").subtype == subtype.replace("ALAC", "PCM")
    np.testing.assert_array_equal(
        soundfile.read(tmp_path / "copy.caf", dtype="int32")[0], soundfile.read(tmp_path / "lead.caf", dtype="int32")[0]
    )


@pytest.mark.parametrize(("suffix", "container", "subtype"), [(".ogg", "OGG", "VORBIS"), (".mp3", "MP3", None)])
def test_a_lossy_stem_becomes_a_24_bit_wav(tmp_path: Path, suffix: str, container: str, subtype: str | None) -> None:
    source = tmp_path / f"lead{suffix}"
    soundfile.write(source, np.sin(np.arange(20_000) * 0.05) * 0.5, 44_100, subtype, format=container)
    stem = read_stem(source)
    assert output_suffix(source) == ".wav"
    write_stem(tmp_path / "lead.wav", stem.samples, stem)
    info = soundfile.info(tmp_path / "lead.wav")
    assert (info.format, info.subtype, info.frames) == ("WAV", "PCM_24", len(stem.samples))


def test_a_suffix_of_another_container_chooses_that_container(tmp_path: Path) -> None:
    stem = quiet_stem(subtype="FLOAT")
    write_stem(tmp_path / "lead.flac", stem.samples, stem)
    write_stem(tmp_path / "lead.aif", stem.samples, stem)
    flac, aiff = soundfile.info(tmp_path / "lead.flac"), soundfile.info(tmp_path / "lead.aif")
    assert (flac.format, flac.subtype) == ("FLAC", "PCM_24")
    assert (aiff.format, aiff.subtype) == ("AIFF", "FLOAT")


@pytest.mark.parametrize("name", ["lead.mp3", "lead.ogg", "lead"])
def test_lossy_and_unknown_outputs_are_refused_by_name(tmp_path: Path, name: str) -> None:
    error = code_of(write_stem, tmp_path / name, quiet_stem().samples, quiet_stem())
    assert error.code == Code.BAD_SETTING
    assert name in error.sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("frames", "channels", "subtype"), [(1, 1, "PCM_24"), (1, 1, "PCM_16"), (500, 8, "PCM_24"), (500, 2, "DOUBLE")]
)
def test_one_sample_eight_channels_and_doubles_are_fine(
    tmp_path: Path, frames: int, channels: int, subtype: str
) -> None:
    soundfile.write(
        tmp_path / "lead.wav", full_range_samples(subtype, channels, max(frames, 2))[:frames], 96_000, subtype
    )
    stem = read_stem(tmp_path / "lead.wav")
    assert stem.samples.shape == (frames, channels)
    assert stem.samples.dtype == (np.float64 if subtype == "DOUBLE" else np.float32)
    write_stem(tmp_path / "copy.wav", stem.samples, stem)
    np.testing.assert_array_equal(read_stem(tmp_path / "copy.wav").samples, stem.samples)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "PCM_U8"])
def test_a_peak_over_full_scale_lowers_the_whole_file_and_is_reported(tmp_path: Path, subtype: str) -> None:
    stem = quiet_stem(subtype=subtype)
    loud = stem.samples / np.abs(stem.samples).max() * 1.7
    gain_db = write_stem(tmp_path / "loud.wav", loud, stem)
    written = read_stem(tmp_path / "loud.wav").samples
    step = 2.0 ** (1 - {"PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 31}[subtype])
    assert gain_db == pytest.approx(20 * np.log10(1 / 1.7), abs=0.3)
    np.testing.assert_allclose(written, loud * 10 ** (gain_db / 20), atol=2 * step + 1e-7)
    assert 1 - 5 * step - 1e-6 < np.abs(written).max() < 1


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_float_files_keep_their_overs(tmp_path: Path, subtype: str) -> None:
    stem = quiet_stem(subtype=subtype)
    assert write_stem(tmp_path / "loud.wav", stem.samples * 30, stem) == 0
    np.testing.assert_array_equal(read_stem(tmp_path / "loud.wav").samples, stem.samples * 30)


def test_16_bit_is_dithered_by_seed_and_silence_stays_silent(tmp_path: Path) -> None:
    stem = quiet_stem(frames=50_000)
    samples = np.full_like(stem.samples, 0.3 / 2**15)  # below half a step: only dither can carry it
    samples[20_000:30_000] = 0
    written = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_stem(tmp_path / f"{name}.wav", samples, stem, seed=seed)
        written.append((tmp_path / f"{name}.wav").read_bytes())
    assert written[0] == written[1] != written[2]
    result = read_stem(tmp_path / "a.wav").samples * 2**15
    assert not result[20_000:30_000].any()
    assert result[:20_000].mean() == pytest.approx(0.3, abs=0.03)
    assert set(np.unique(result)) <= {-1.0, 0.0, 1.0}


def test_24_bit_is_rounded_not_dithered(tmp_path: Path) -> None:
    stem = quiet_stem(subtype="PCM_24")
    write_stem(tmp_path / "a.wav", stem.samples, stem)
    np.testing.assert_array_equal(read_stem(tmp_path / "a.wav").samples * 2**23, np.rint(stem.samples * 2**23))


@pytest.mark.parametrize("container", ["WAV", "AIFF", "CAF"])
def test_float_files_hold_no_time_of_writing(tmp_path: Path, container: str) -> None:
    stem = Stem(quiet_stem().samples, 44_100, container, "FLOAT", "FILE")
    target = tmp_path / f"a.{container.lower()[:4]}"
    write_stem(target, stem.samples, stem)
    assert b"peak" not in target.read_bytes().lower()


def test_a_file_beyond_4_gb_becomes_rf64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rvcd.stems._MAX_RIFF_BYTES", 4000)
    stem = quiet_stem(frames=2001)
    write_stem(tmp_path / "a.wav", stem.samples, stem)
    assert soundfile.info(tmp_path / "a.wav").format == "RF64"


def patched_header(path: Path, offset: int, value: bytes) -> Path:
    soundfile.write(path, np.zeros(100), 44_100, "PCM_16")
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("rate", [0, 1, 7_999, 192_001, 2**31 - 1])
def test_absurd_sample_rates_are_refused(tmp_path: Path, rate: int) -> None:
    error = code_of(read_stem, patched_header(tmp_path / "lead.wav", 24, struct.pack("<I", rate)))
    assert error.code == Code.BAD_SAMPLE_RATE
    assert str(rate) in error.sentence


@pytest.mark.parametrize("rate", [8_000, 192_000])
def test_the_limits_of_sample_rate_are_inside(tmp_path: Path, rate: int) -> None:
    assert read_stem(patched_header(tmp_path / "lead.wav", 24, struct.pack("<I", rate))).sample_rate == rate


def test_an_empty_stem_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "lead.wav", np.zeros((0, 2)), 44_100)
    assert code_of(read_stem, tmp_path / "lead.wav").code == Code.EMPTY_STEM


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_sample_that_is_no_number_is_named_by_time(tmp_path: Path, value: float) -> None:
    samples = np.zeros((600_000, 2), np.float32)
    samples[500_000, 1] = samples[550_000, 0] = value
    soundfile.write(tmp_path / "lead.wav", samples, 40_000, "FLOAT")
    error = code_of(read_stem, tmp_path / "lead.wav")
    assert error.code == Code.NOT_FINITE
    assert "12.500 s" in error.sentence


def test_twelve_hours_are_refused_by_the_header_alone(tmp_path: Path) -> None:
    """The file is sparse: reading its samples would take gigabytes of memory."""
    frames = 12 * 3600 * 8000
    path = patched_header(tmp_path / "lead.wav", 24, struct.pack("<I", 8000))
    with path.open("r+b") as file:
        file.seek(40)
        file.write(struct.pack("<I", 2 * frames))
        file.truncate(44 + 2 * frames)
    error = code_of(read_stem, path)
    assert error.code == Code.STEM_TOO_LONG
    assert "12.0 hours" in error.sentence
    assert "split" in error.sentence


def test_a_missing_stem_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    assert code_of(read_stem, tmp_path / "gone.wav").code == Code.NOT_FOUND
    assert code_of(read_stem, tmp_path).code == Code.UNREADABLE_STEM


@pytest.mark.parametrize("name", ["lead.wav", "lead.raw", "lead.mp3"])
def test_what_is_not_audio_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no audio at all" * 10)
    assert code_of(read_stem, tmp_path / name).code == Code.UNREADABLE_STEM


@pytest.mark.parametrize("suffix", [".flac", ".mp3"])
def test_a_truncated_compressed_stem_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"lead{suffix}"
    soundfile.write(path, np.random.default_rng(1).normal(0, 0.2, 50_000), 44_100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert code_of(read_stem, path).code == Code.UNREADABLE_STEM


def test_samples_that_are_no_numbers_are_never_written(tmp_path: Path) -> None:
    stem = quiet_stem()
    assert code_of(write_stem, tmp_path / "a.wav", stem.samples * np.nan, stem).code == Code.NOT_FINITE
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_none_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    stem = quiet_stem()
    for folder in ("file", "gone"):
        error = code_of(write_stem, tmp_path / folder / "a.wav", stem.samples, stem)
        assert error.code == Code.NOT_WRITABLE
        assert folder in error.sentence


def test_a_format_that_cannot_hold_the_stem_is_named(tmp_path: Path) -> None:
    stem = quiet_stem(channels=9)
    error = code_of(write_stem, tmp_path / "a.flac", stem.samples, stem)
    assert error.code == Code.BAD_SETTING
    assert "9 channels" in error.sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_full_disk_leaves_the_old_file_and_no_draft(tmp_path: Path, suffix: str) -> None:
    """A limit on file size stands in for the disk: the system refuses the write all the same."""
    target = tmp_path / f"lead{suffix}"
    target.write_bytes(b"the old take")
    program = f"""
import resource, numpy as np
from pathlib import Path
from rvcd.errors import RvcdError
from rvcd.stems import Stem, write_stem
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
samples = np.random.default_rng(0).normal(0, 0.1, (200_000, 1))
try:
    write_stem(Path({str(target)!r}), samples, Stem(samples, 44_100, "WAV", "PCM_24", "FILE"))
except RvcdError as error:
    print(error.code, error.sentence)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("disk_full The disk of")
    assert done.stderr == ""
    assert target.read_bytes() == b"the old take"
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


def test_an_interrupt_while_writing_leaves_the_old_file_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libsndfile's callbacks swallow exceptions; the interrupt must come through all the same."""

    def interrupted(fd: int, data: bytes) -> int:
        raise KeyboardInterrupt

    (tmp_path / "lead.wav").write_bytes(b"the old take")
    stem = quiet_stem()
    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_stem(tmp_path / "lead.wav", stem.samples, stem)
    monkeypatch.undo()
    assert (tmp_path / "lead.wav").read_bytes() == b"the old take"
    assert [p.name for p in tmp_path.iterdir()] == ["lead.wav"]


def test_a_draft_that_does_not_read_back_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network disks accept what they then lose."""
    (tmp_path / "lead.wav").write_bytes(b"the old take")
    stem = quiet_stem()
    write = os.write
    for lost_after_bytes in (0, 500):
        written = 0

        def forgetful(fd: int, data: bytes, limit: int = lost_after_bytes) -> int:
            nonlocal written
            written += len(data)
            return write(fd, data) if written <= limit else len(data)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", forgetful)
            assert code_of(write_stem, tmp_path / "lead.wav", stem.samples, stem).code == Code.NOT_WRITABLE
        assert (tmp_path / "lead.wav").read_bytes() == b"the old take"
        assert [p.name for p in tmp_path.iterdir()] == ["lead.wav"]


def test_a_replaced_file_keeps_its_mode_and_a_new_one_follows_the_umask(tmp_path: Path) -> None:
    (tmp_path / "old.wav").write_bytes(b"")
    (tmp_path / "old.wav").chmod(0o640)
    stem = quiet_stem()
    umask = os.umask(0o022)
    try:
        write_stem(tmp_path / "old.wav", stem.samples, stem)
        write_stem(tmp_path / "new.wav", stem.samples, stem)
    finally:
        os.umask(umask)
    assert (tmp_path / "old.wav").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "new.wav").stat().st_mode & 0o777 == 0o644
