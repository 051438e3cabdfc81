import itertools
import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from rvcd.containers import Layout, is_complete, read_layout
from rvcd.errors import Code, RvcdError
from tests.support.audio_files import broadcast_wave, chunk, extensible_format, pcm24, rf64, wave, wave_format

SUFFIXES = {"WAV": "wav", "WAVEX": "wav", "RF64": "rf64", "W64": "w64", "AIFF": "aif", "CAF": "caf", "FLAC": "flac"}
SUBTYPES = ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")
FORMATS = [
    (container, subtype, endian)
    for container, subtype, endian in itertools.product(SUFFIXES, SUBTYPES, ("FILE", "LITTLE", "BIG"))
    if soundfile.check_format(container, subtype, endian)
]


def written(folder: Path, container: str = "WAV", subtype: str = "PCM_24", endian: str = "FILE") -> Path:
    path = folder / f"lead.{SUFFIXES[container]}"
    samples = np.random.default_rng(0).normal(0, 0.1, (101, 3))
    soundfile.write(path, samples, 44_100, subtype, endian, container)
    return path


def saved(folder: Path, content: bytes) -> Path:
    path = folder / "lead.wav"
    path.write_bytes(content)
    return path


def complete(path: Path) -> bool:
    return is_complete(read_layout(path), path.stat().st_size)


def code_of(path: Path) -> Code:
    with pytest.raises(RvcdError) as caught:
        read_layout(path)
    assert path.name in caught.value.sentence
    return caught.value.code


def payload_as_soundfile_reads_it(layout: Layout, path: Path) -> np.ndarray:
    """Decode the payload by the layout alone, full scale ±1."""
    form = layout.sample_format
    order = ">" if form.endian == "big" else "<"
    data = path.read_bytes()[layout.payload_offset :][: layout.frames * layout.frame_size]
    if form.kind == "float":
        return np.frombuffer(data, f"{order}f{form.width}").reshape(-1, layout.channels)
    octets = np.frombuffer(data, np.uint8).reshape(-1, form.width)
    octets = octets[:, ::-1] if order == "<" else octets
    octets = octets ^ 0x80 if form.kind == "unsigned" else octets
    high_first = np.pad(octets, ((0, 0), (0, 4 - form.width)))
    return (high_first.copy().view(">i4") / 2.0**31).reshape(-1, layout.channels)


@pytest.mark.parametrize(("container", "subtype", "endian"), FORMATS)
def test_every_uncompressed_format_of_libsndfile_is_laid_out_as_it_reads_it(
    tmp_path: Path, container: str, subtype: str, endian: str
) -> None:
    path = written(tmp_path, container, subtype, endian)
    layout = read_layout(path)
    assert is_complete(layout, path.stat().st_size)
    assert (layout.frames, layout.channels, layout.sample_rate) == (101, 3, 44_100)
    if container != "FLAC":
        expected = soundfile.read(path, dtype="float64", always_2d=True)[0]
        np.testing.assert_array_equal(payload_as_soundfile_reads_it(layout, path), expected)


@pytest.mark.parametrize("container", SUFFIXES)
def test_no_beginning_of_a_file_is_complete_and_none_crashes(tmp_path: Path, container: str) -> None:
    """A FLAC file does not tell its size, so only its headers count."""
    path = written(tmp_path, container)
    whole = path.read_bytes()
    layout = read_layout(path)
    for size in range(layout.payload_offset + 1 if container == "FLAC" else layout.end):
        path.write_bytes(whole[:size])
        try:
            verdict: bool | Code = complete(path)
        except RvcdError as error:
            verdict = error.code
        assert verdict in (False, Code.FILE_UNSTABLE), size


def test_a_bounce_that_is_still_written_is_not_complete(tmp_path: Path) -> None:
    """Sizes as libsndfile leaves them until it closes the file, and as streams leave them for ever."""
    fmt = wave_format()
    for form_size, data_size in ((36, 0), (36, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0, 0), (4, 300)):
        head = struct.pack("<4sI4s", b"RIFF", form_size, b"WAVE") + chunk(b"fmt ", fmt)
        path = saved(tmp_path, head + struct.pack("<4sI", b"data", data_size) + pcm24(50))
        assert not complete(path), (form_size, data_size)


@pytest.mark.parametrize("container", ["RF64", "W64", "AIFF", "CAF", "FLAC"])
def test_sizes_that_are_not_told_yet_are_not_complete_in_any_container(tmp_path: Path, container: str) -> None:
    path = written(tmp_path, container)
    content = bytearray(path.read_bytes())
    mark, distance, value = {
        "RF64": (b"ds64", 16, bytes(8)),
        "W64": (b"data", 16, struct.pack("<Q", 24)),
        "AIFF": (b"COMM", 10, bytes(4)),
        "CAF": (b"data", 4, struct.pack(">q", -1)),
        "FLAC": (b"fLaC", 22, bytes(4)),
    }[container]
    at = content.index(mark) + distance
    content[at : at + len(value)] = value
    path.write_bytes(content)
    assert not complete(path)


def test_an_empty_file_and_one_without_samples_are_not_complete(tmp_path: Path) -> None:
    assert code_of(saved(tmp_path, b"")) == Code.FILE_UNSTABLE
    assert not complete(saved(tmp_path, wave(b"", fmt=wave_format())))


def test_a_file_that_outgrew_its_header_is_not_complete_until_a_chunk_seals_its_samples(tmp_path: Path) -> None:
    plain = wave(pcm24(50), fmt=wave_format())
    sealed = wave(pcm24(50), fmt=wave_format(), after=[chunk(b"LIST", b"INFO")])
    assert complete(saved(tmp_path, plain))
    assert not complete(saved(tmp_path, plain + pcm24(3000)))
    assert complete(saved(tmp_path, sealed + b"TAG trailing garbage"))
    assert not complete(saved(tmp_path, sealed[:-1]))


def test_chunks_behind_the_samples_that_are_announced_but_missing_are_waited_for(tmp_path: Path) -> None:
    whole = wave(pcm24(50), fmt=wave_format(), after=[chunk(b"iXML", bytes(400))])
    assert complete(saved(tmp_path, whole))
    assert not complete(saved(tmp_path, whole[: whole.index(b"iXML")]))


@pytest.mark.parametrize("error", [-8, 0, 8])
def test_a_form_size_that_is_off_by_its_own_header_is_forgiven(tmp_path: Path, error: int) -> None:
    content = bytearray(wave(pcm24(50), fmt=wave_format()))
    content[4:8] = struct.pack("<I", len(content) - 8 + error)
    assert complete(saved(tmp_path, bytes(content)))


def test_chunks_of_odd_size_are_found_with_and_without_their_padding(tmp_path: Path) -> None:
    for pad in (True, False):
        odd = chunk(b"LGWV", bytes(range(33)), pad=pad)
        path = saved(tmp_path, wave(pcm24(51), fmt=wave_format(), before=[odd], after=[chunk(b"cue ", bytes(4))]))
        layout = read_layout(path)
        assert [each.id for each in layout.chunks] == [b"fmt ", b"LGWV", b"data", b"cue "]
        content = path.read_bytes()
        assert content[layout.payload_offset :][: layout.payload_size] == pcm24(51)
        assert [content[each.offset :][:4] for each in layout.chunks] == [each.id for each in layout.chunks]
        assert complete(path)


def test_a_broadcast_wave_is_listed_whole(tmp_path: Path) -> None:
    layout = read_layout(saved(tmp_path, broadcast_wave(pcm24(51), fmt=wave_format())))
    names = [b"fmt ", b"JUNK", b"bext", b"LGWV", b"data", b"cue ", b"LIST", b"LIST", b"iXML"]
    assert [each.id for each in layout.chunks] == names
    assert layout.sealed


def test_bits_that_count_are_told_apart_from_the_bytes_that_hold_them(tmp_path: Path) -> None:
    form = read_layout(saved(tmp_path, wave(bytes(32), fmt=extensible_format(2, 32, 24)))).sample_format
    assert (form.width, form.bits) == (4, 24)


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
def test_beyond_4_gib_the_long_sizes_count(tmp_path: Path, magic: bytes) -> None:
    """The file is sparse and takes no room."""
    size = 5 * 2**30 + 6
    tail = chunk(b"LIST", b"INFO")
    start = rf64(b"", fmt=wave_format(channels=2), magic=magic, size=size, after=[tail])[: -len(tail)]
    path = saved(tmp_path, start)
    with path.open("r+b") as file:
        file.truncate(len(start) + size)
    assert not complete(path)
    with path.open("ab") as file:
        file.write(tail)
    layout = read_layout(path)
    assert is_complete(layout, path.stat().st_size)
    assert (layout.container, layout.frames, layout.payload_size) == ("RF64", size // 6, size)
    assert layout.chunks[-1].offset == path.stat().st_size - len(tail)


COMPRESSED = [
    ("lead.wav", "WAV", "IMA_ADPCM"),
    ("lead.wav", "WAV", "ULAW"),
    ("lead.aif", "AIFF", "ULAW"),
    ("lead.caf", "CAF", "ALAC_24"),
    ("lead.ogg", "OGG", "VORBIS"),
    ("lead.mp3", "MP3", None),
]


@pytest.mark.parametrize(("name", "container", "subtype"), COMPRESSED)
def test_compressed_audio_is_refused_by_name(tmp_path: Path, name: str, container: str, subtype: str | None) -> None:
    path = tmp_path / name
    soundfile.write(path, np.sin(np.arange(9000) * 0.05) * 0.5, 44_100, subtype, format=container)
    assert code_of(path) == Code.UNSUPPORTED_FORMAT


HOSTILE = {
    "no channels": wave(bytes(60), fmt=wave_format(channels=0, bits=0)),
    "no bits": wave(bytes(60), fmt=wave_format(bits=0)),
    "odd frames": wave(bytes(60), fmt=struct.pack("<HHIIHH", 1, 2, 44_100, 0, 7, 24)),
    "12-bit float": wave(bytes(60), fmt=wave_format(bits=12, tag=3)),
    "short fmt": wave(bytes(60), fmt=b"\1\0"),
    "more valid bits than bits": wave(bytes(60), fmt=extensible_format(1, 16, 24)),
    "no data": struct.pack("<4sI4s", b"RIFF", 28, b"WAVE") + chunk(b"fmt ", wave_format()) + bytes(40),
    "RF64 without ds64": b"RF64" + wave(bytes(60), fmt=wave_format())[4:],
    "ds64 with 4 billion entries": rf64(bytes(60), fmt=wave_format()).replace(
        struct.pack("<QI", 0, 0) + b"fmt ", struct.pack("<QI", 0, 2**32 - 1) + b"fmt "
    ),
    "200000 chunks": wave(bytes(60), fmt=wave_format(), before=[chunk(b"JUNK", b"")] * 200_000),
    "CAF chunk of negative size": b"caff\0\1\0\0desc" + struct.pack(">q", -(2**63)) + bytes(64),
    "CAF without channels": b"caff\0\1\0\0desc"
    + struct.pack(">qd4sIIIII", 32, 44_100, b"lpcm", 0, 2, 1, 0, 16)
    + b"data"
    + struct.pack(">q", 24)
    + bytes(24),
    "Wave64 chunk smaller than its header": bytes.fromhex("726966662e91cf11a5d628db04c10000")
    + struct.pack("<Q", 64)
    + bytes.fromhex("77617665f3acd3118cd100c04f8edb8a")
    + b"fmt "
    + bytes(20),
    "AIFF whose samples begin behind them": b"FORM"
    + struct.pack(">I4s", 60, b"AIFF")
    + b"COMM"
    + struct.pack(">IHIHHQ", 18, 1, 5, 16, 16398, 44_100 << 48)
    + b"SSND"
    + struct.pack(">III", 18, 4000, 0)
    + bytes(10),
    "FLAC without STREAMINFO": b"fLaC\x84\0\0\2" + bytes(20),
    "text": b"no audio at all" * 10,
    "zeros": bytes(200),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_headers_that_contradict_themselves_are_refused(tmp_path: Path, what: str) -> None:
    assert code_of(saved(tmp_path, HOSTILE[what])) in (Code.UNREADABLE_STEM, Code.UNSUPPORTED_FORMAT)


@pytest.mark.parametrize("container", SUFFIXES)
def test_damaged_headers_never_cause_anything_but_our_own_error(tmp_path: Path, container: str) -> None:
    path = written(tmp_path, container)
    whole = path.read_bytes()
    dice = random.Random(container)
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(dice.randint(1, 6)):
            content[dice.randrange(min(150, len(content)))] = dice.choice((0, 0xFF, 0x7F, 0x80, dice.randrange(256)))
        path.write_bytes(content)
        try:
            layout = read_layout(path)
        except RvcdError:
            continue
        assert layout.frames >= 0
        assert layout.payload_offset > 0
        assert layout.channels > 0


def test_what_is_no_file_is_told_apart_and_a_pipe_does_not_hang(tmp_path: Path) -> None:
    assert code_of(tmp_path / "gone.wav") == Code.NOT_FOUND
    assert code_of(tmp_path) == Code.UNREADABLE_STEM
    os.mkfifo(tmp_path / "pipe.wav")
    assert code_of(tmp_path / "pipe.wav") == Code.UNREADABLE_STEM


def test_a_file_in_the_cloud_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS marks it so; opening it would start a download."""
    path = written(tmp_path)
    status = SimpleNamespace(st_mode=path.stat().st_mode, st_flags=0x40000040)
    monkeypatch.setattr(Path, "stat", lambda self: status)
    monkeypatch.setattr(os, "open", None)
    assert code_of(path) == Code.OFFLINE_FILE


def test_the_supervisors_side_loads_no_heavy_package() -> None:
    modules = "rvcd.containers, rvcd.fingerprints, rvcd.disk, rvcd.replacing, rvcd.backups"
    program = f"import sys, {modules}; print(sorted({{'numpy', 'soundfile', 'scipy', 'mlx'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
