"""Where the samples lie in an audio file, told from its headers alone.

Formats: WAV (RIFF and RIFX, WAVE_FORMAT_EXTENSIBLE, Broadcast Wave), RF64 and BW64 (EBU Tech 3306, ITU-R BS.2088),
Sony Wave64, AIFF and AIFF-C (Apple, 1991), CAF (Apple's specification), FLAC (RFC 9639). Nothing but `struct`:
the watcher asks this of every bounce, and a bounce that is still being written is the common case, not the
exception.
"""

import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn

from rvcd.errors import Code, RvcdError

Container = Literal["WAV", "RF64", "W64", "AIFF", "AIFC", "CAF", "FLAC"]
SampleType = Literal["signed", "unsigned", "float"]
Endian = Literal["little", "big"]

FLAC_STREAMINFO = b"\0\0\0\0"
_MAX_CHUNKS = 4096
_UNKNOWN_32 = 0xFFFFFFFF
_DATALESS = 0x40000000  # SF_DATALESS of macOS: the file's contents are in the cloud
_FORM_SIZE_SLACK = 8  # some writers count the first eight bytes in the size of the form
_PCM_TAG, _FLOAT_TAG, _EXTENSIBLE_TAG = 1, 3, 0xFFFE
_SUBFORMAT_TAILS = (
    bytes.fromhex("000000001000800000aa00389b71"),  # KSDATAFORMAT_SUBTYPE_*
    bytes.fromhex("00002107d3118644c8c1ca000000"),  # the same for ambisonic B-format
)
_WAVE64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_WAVE64_WAVE = bytes.fromhex("77617665f3acd3118cd100c04f8edb8a")
_AIFC_FORMATS: dict[bytes, tuple[SampleType, Endian, int | None]] = {
    # compression type: sample type, byte order, bits (None: as the COMM chunk says)
    b"NONE": ("signed", "big", None),
    b"twos": ("signed", "big", None),
    b"sowt": ("signed", "little", None),
    b"raw ": ("unsigned", "big", 8),
    b"in24": ("signed", "big", 24),
    b"in32": ("signed", "big", 32),
    b"42ni": ("signed", "little", 24),
    b"23ni": ("signed", "little", 32),
    b"42n1": ("signed", "little", 24),  # libsndfile's spelling
    b"23n1": ("signed", "little", 32),
    b"fl32": ("float", "big", 32),
    b"FL32": ("float", "big", 32),
    b"fl64": ("float", "big", 64),
    b"FL64": ("float", "big", 64),
}
_COMPRESSED = {b"OggS": "Ogg", b"ID3\3": "MP3", b"ID3\4": "MP3", b"wvpk": "WavPack"}


@dataclass(frozen=True)
class Chunk:
    """One named piece of a file."""

    id: bytes
    """Four characters; of a Wave64 chunk the first four bytes of its GUID, of a FLAC block its type as four bytes."""
    offset: int
    """Where its header begins, in bytes from the start of the file."""
    header_size: int
    size: int
    """Bytes of its body as the header tells them, whether or not the file holds so many."""

    @property
    def body(self) -> int:
        """Where its body begins."""
        return self.offset + self.header_size

    @property
    def end(self) -> int:
        """Where its body ends, before any padding."""
        return self.body + self.size


@dataclass(frozen=True)
class SampleFormat:
    """How one sample is stored."""

    kind: SampleType
    width: int
    """Bytes per sample."""
    bits: int
    """Bits that count, in the upper part of the width."""
    endian: Endian


@dataclass(frozen=True)
class Layout:
    """Where everything lies in a file, as its headers tell; `is_complete` says whether to believe them yet."""

    container: Container
    sample_format: SampleFormat
    channels: int
    sample_rate: float
    """Hz."""
    frames: int
    """0 while the writer has not told yet."""
    payload_offset: int
    payload_size: int
    """Bytes of sample data; 0 while the writer has not told yet. For FLAC, all that follows the metadata."""
    chunks: tuple[Chunk, ...]
    end: int
    """The size that the headers imply for the whole file, without padding behind the last chunk."""
    sealed: bool
    """Whether a chunk follows the samples within the form's own size: a writer is done with them by then."""

    @property
    def frame_size(self) -> int:
        """Bytes of one frame of uncompressed samples."""
        return self.sample_format.width * self.channels


def read_layout(path: Path) -> Layout:
    """Read the headers of an audio file.

    Raises `RvcdError`: `file_unstable` (its headers are not all there yet), `unsupported_format` (compressed, or
    samples of a kind that cannot be replaced in place), `unreadable_stem` (no audio, or headers that contradict
    themselves), `offline_file`, `permission_denied`, `not_found`.
    """
    try:
        _check_regular(path)
        # O_NONBLOCK: what became a pipe since it was checked must not hang the caller.
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            return _parse(_Headers(file, path.name, os.fstat(file.fileno()).st_size))
    except FileNotFoundError:
        raise RvcdError(Code.NOT_FOUND, f"There is no file {path}.") from None
    except PermissionError as error:
        raise RvcdError(Code.PERMISSION_DENIED, f"rvcd may not read {path}: {error.strerror}.") from error
    except OSError as error:
        raise RvcdError(Code.UNREADABLE_STEM, f"{path} cannot be read: {error.strerror or error}.") from error


def is_complete(layout: Layout, file_size: int) -> bool:
    """Whether a file of that many bytes holds all that its headers promise, and its writer is done with it.

    A header that tells no samples, or 2³² - 1 bytes of them, belongs to a file still being written; so does a file
    longer than its headers say, unless a chunk behind the samples shows that they are closed. The headers of a
    FLAC file do not tell its size: for them only the number of frames counts.
    """
    if layout.frames == 0:
        return False
    padding = 7 if layout.container == "W64" else 1
    return 0 <= file_size - layout.end <= padding or (layout.sealed and file_size > layout.end)


class _Headers:
    """Bounded reads from one file, and the errors that name it."""

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self._file = file
        self.name = name
        self.size = size

    def read(self, offset: int, count: int) -> bytes:
        if offset + count > self.size:
            self.unfinished()
        self._file.seek(offset)
        data = self._file.read(count)
        if len(data) < count:
            self.unfinished()
        return data

    def body(self, chunk: Chunk, count: int) -> bytes:
        """The first `count` bytes of a chunk that must have as many."""
        if chunk.size < count:
            self.broken(f"its {chunk.id.decode('latin-1').strip()!r} chunk has only {chunk.size} bytes")
        return self.read(chunk.body, count)

    def unfinished(self) -> NoReturn:
        raise RvcdError(
            Code.FILE_UNSTABLE, f"{self.name} ends within its headers; it is still being written or was cut short."
        )

    def broken(self, why: str) -> NoReturn:
        raise RvcdError(Code.UNREADABLE_STEM, f"{self.name} is damaged: {why}; export it again.")

    def unsupported(self, what: str) -> NoReturn:
        raise RvcdError(
            Code.UNSUPPORTED_FORMAT,
            f"{self.name} holds {what}, which cannot be replaced in place; bounce to PCM WAV, AIFF or CAF, "
            "or convert it to a sibling file.",
        )


def _check_regular(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise RvcdError(Code.UNREADABLE_STEM, f"{path} is no regular file.")
    if getattr(status, "st_flags", 0) & _DATALESS:
        raise RvcdError(Code.OFFLINE_FILE, f"{path} is in the cloud, not on this disk; download it first.")


def _parse(headers: _Headers) -> Layout:
    if headers.size < 12:
        headers.unfinished()
    start = headers.read(0, 12)
    magic, kind = start[:4], start[8:12]
    if magic in (b"RIFF", b"RIFX", b"RF64", b"BW64") and kind == b"WAVE":
        return _wave(headers, magic)
    if magic == b"FORM" and kind in (b"AIFF", b"AIFC"):
        return _aiff(headers, "AIFC" if kind == b"AIFC" else "AIFF")
    if magic == b"caff":
        return _caf(headers)
    if magic == b"riff":
        return _wave64(headers)
    if magic == b"fLaC":
        return _flac(headers)
    if start[4:8] == b"ftyp":
        headers.unsupported("MPEG-4 audio")
    if magic in _COMPRESSED or (magic[0] == 0xFF and magic[1] & 0xE0 == 0xE0):
        headers.unsupported(f"{_COMPRESSED.get(magic, 'MPEG')} audio")
    raise RvcdError(Code.UNREADABLE_STEM, f"{headers.name} is no audio file that rvcd knows.")


@dataclass(frozen=True)
class _Dialect:
    """How a container writes the header of a chunk."""

    header: str
    """`struct` format of the id and the size."""
    alignment: int
    counts_header: bool = False
    """Whether the size includes the header."""
    long_sizes: Mapping[bytes, int] = field(default_factory=dict)
    """Sizes of chunks whose 32-bit size says that it is told elsewhere."""

    def chunk_at(self, headers: _Headers, offset: int) -> Chunk | None:
        """The chunk at an offset, or None where no chunk header can be."""
        header_size = struct.calcsize(self.header)
        if offset + header_size > headers.size:
            return None
        name, size = struct.unpack(self.header, headers.read(offset, header_size))
        if not all(0x20 <= character < 0x7F for character in name[:4]):
            return None
        if size == _UNKNOWN_32:
            size = self.long_sizes.get(name, size)
        size -= header_size if self.counts_header else 0
        if size < 0 and (name, size) != (b"data", -1):  # CAF: data of -1 bytes runs to the end of the file
            headers.broken(f"its {name[:4].decode('latin-1').strip()!r} chunk has {size} bytes")
        return Chunk(name[:4], offset, header_size, headers.size if size == -1 else size)


def _walk(headers: _Headers, dialect: _Dialect, start: int, form_end: int | None) -> Iterator[Chunk]:
    """Chunks in their order, up to the end of the file or to what is no chunk."""
    offset: int | None = start
    samples_seen = False
    for _ in range(_MAX_CHUNKS):
        chunk = None if offset is None else dialect.chunk_at(headers, offset)
        if chunk is None:
            return
        outside = form_end is not None and chunk.offset >= form_end
        if outside and samples_seen and chunk.end > headers.size:
            return
        yield chunk
        samples_seen |= chunk.id in (b"data", b"SSND")
        offset = _next_offset(headers, dialect, chunk)
    headers.broken(f"it has more than {_MAX_CHUNKS} chunks")


def _next_offset(headers: _Headers, dialect: _Dialect, chunk: Chunk) -> int | None:
    """Where the next chunk begins: aligned, or, from writers that forget to pad, right behind."""
    aligned = chunk.end + -chunk.size % dialect.alignment
    if chunk.end > headers.size:
        return None
    forgot_padding = aligned != chunk.end and dialect.chunk_at(headers, aligned) is None
    return chunk.end if forgot_padding and dialect.chunk_at(headers, chunk.end) else aligned


def _layout(
    headers: _Headers,
    container: Container,
    chunks: list[Chunk],
    form_end: int | None,
    payload: tuple[int, int],
    about: tuple[SampleFormat, int, float],
) -> Layout:
    """Put together what was found; `payload` is offset and size, `about` is format, channels and rate."""
    sample_format, channels, sample_rate = about
    if channels == 0:
        headers.broken("its header gives no channels")
    offset, size = payload
    chunks_end = chunks[-1].end
    ends_later = form_end is not None and form_end > chunks_end + _FORM_SIZE_SLACK
    return Layout(
        container=container,
        sample_format=sample_format,
        channels=channels,
        sample_rate=sample_rate,
        frames=size // (sample_format.width * channels),
        payload_offset=offset,
        payload_size=size,
        chunks=tuple(chunks),
        end=form_end if ends_later and form_end is not None else chunks_end,
        sealed=form_end is not None and any(offset < chunk.offset and chunk.end <= form_end for chunk in chunks),
    )


def _find(headers: _Headers, chunks: list[Chunk], name: bytes) -> Chunk:
    found = next((chunk for chunk in chunks if chunk.id == name), None)
    if found is None and (not chunks or headers.size <= chunks[-1].end + chunks[-1].header_size + 7):
        headers.unfinished()  # within, or just before, the header of the next chunk
    if found is None:
        headers.broken(f"it has no {name.decode().strip()!r} chunk")
    return found


def _wave(headers: _Headers, magic: bytes) -> Layout:
    order = ">" if magic == b"RIFX" else "<"
    (form_size,) = struct.unpack(f"{order}I", headers.read(4, 4))
    long_sizes: dict[bytes, int] = {}
    if magic in (b"RF64", b"BW64"):
        form_size, long_sizes = _ds64(headers)
    form_end = None if form_size in (0, _UNKNOWN_32) else 8 + form_size
    chunks = list(_walk(headers, _Dialect(f"{order}4sI", 2, long_sizes=long_sizes), 12, form_end))
    about = _wave_format(headers, _find(headers, chunks, b"fmt "), order)
    data = _find(headers, chunks, b"data")
    size = 0 if data.size == _UNKNOWN_32 and not long_sizes else data.size
    container: Container = "RF64" if long_sizes else "WAV"
    return _layout(headers, container, chunks, form_end, (data.body, size), about)


def _ds64(headers: _Headers) -> tuple[int, dict[bytes, int]]:
    """Size of the form, and the sizes of chunks beyond 4 GiB, `data` always among them."""
    name, size = struct.unpack("<4sI", headers.read(12, 8))
    if name != b"ds64":
        headers.broken("it is an RF64 file without a ds64 chunk")
    chunk = Chunk(name, 12, 8, size)
    form_size, data_size, _, entries = struct.unpack("<QQQI", headers.body(chunk, 28))
    if 28 + 12 * entries > size or entries > _MAX_CHUNKS:
        headers.broken(f"its ds64 chunk promises {entries} entries")
    table = struct.iter_unpack("<4sQ", headers.read(chunk.body + 28, 12 * entries))
    return form_size, {**dict(table), b"data": data_size}


def _wave_format(headers: _Headers, chunk: Chunk, order: str) -> tuple[SampleFormat, int, float]:
    tag, channels, rate, _, block_size, bits = struct.unpack(f"{order}HHIIHH", headers.body(chunk, 16))
    valid_bits = bits
    if tag == _EXTENSIBLE_TAG:
        extension = headers.body(chunk, 40)[18:]
        valid_bits, tag = struct.unpack(f"{order}H4xH", extension[:8])
        if extension[8:] not in _SUBFORMAT_TAILS:
            headers.unsupported("audio of an unknown WAVE_FORMAT_EXTENSIBLE kind")
    if tag not in (_PCM_TAG, _FLOAT_TAG):
        headers.unsupported(f"compressed audio (WAVE format 0x{tag:04x})")
    width = (bits + 7) // 8
    if block_size != width * channels:
        headers.unsupported(f"frames of {block_size} bytes with {channels} samples of {bits} bits")
    kind: SampleType = "float" if tag == _FLOAT_TAG else "unsigned" if width == 1 else "signed"
    endian: Endian = "big" if order == ">" else "little"
    return _sample_format(headers, kind, width, valid_bits or bits, endian), channels, rate


def _sample_format(headers: _Headers, kind: SampleType, width: int, bits: int, endian: Endian) -> SampleFormat:
    widths = (4, 8) if kind == "float" else (1, 2, 3, 4)
    if width not in widths or not 0 < bits <= 8 * width or (kind == "float" and bits != 8 * width):
        headers.unsupported(f"samples of {bits} bits in {width} bytes")
    return SampleFormat(kind, width, bits, endian)


def _wave64(headers: _Headers) -> Layout:
    riff, form_end, wave = struct.unpack("<16sQ16s", headers.read(0, 40))
    if (riff, wave) != (_WAVE64_RIFF, _WAVE64_WAVE):
        headers.broken("it begins like Wave64 but is none")
    form_end = form_end if 0 < form_end < 2**63 else None
    chunks = list(_walk(headers, _Dialect("<16sQ", 8, counts_header=True), 40, form_end))
    about = _wave_format(headers, _find(headers, chunks, b"fmt "), "<")
    data = _find(headers, chunks, b"data")
    return _layout(headers, "W64", chunks, form_end, (data.body, data.size), about)


def _aiff(headers: _Headers, container: Literal["AIFF", "AIFC"]) -> Layout:
    (form_size,) = struct.unpack(">I", headers.read(4, 4))
    form_end = None if form_size in (0, _UNKNOWN_32) else 8 + form_size
    chunks = list(_walk(headers, _Dialect(">4sI", 2), 12, form_end))
    common = _find(headers, chunks, b"COMM")
    channels, frames, bits = struct.unpack(">HIH", headers.body(common, 8))
    rate = _extended(headers.body(common, 18)[8:])
    compression = headers.body(common, 22)[18:] if container == "AIFC" else b"NONE"
    if compression not in _AIFC_FORMATS:
        headers.unsupported(f"compressed audio (AIFF-C type {compression.decode('latin-1')!r})")
    kind, endian, own_bits = _AIFC_FORMATS[compression]
    bits = own_bits or bits
    about = _sample_format(headers, kind, (bits + 7) // 8, bits, endian), channels, rate
    sound = _find(headers, chunks, b"SSND")
    size = sound.size
    if 0 in (size, frames) or size == _UNKNOWN_32:
        return _layout(headers, container, chunks, form_end, (sound.body + 8, 0), about)
    (skip,) = struct.unpack(">I", headers.body(sound, 8)[:4])
    if skip > size - 8:
        headers.broken(f"its samples begin {skip} bytes into {size - 8}")
    return _layout(headers, container, chunks, form_end, (sound.body + 8 + skip, size - 8 - skip), about)


def _extended(data: bytes) -> float:
    """An 80-bit extended float of the 68881, as AIFF writes its sample rate; 0 for what is no rate."""
    exponent, mantissa = struct.unpack(">HQ", data)
    shift = exponent - 16383 - 63
    return mantissa * 2.0**shift if -127 < shift < 0 else 0.0


def _caf(headers: _Headers) -> Layout:
    chunks = list(_walk(headers, _Dialect(">4sq", 1), 8, None))
    rate, format_id, flags, packet_size, packet_frames, channels, bits = struct.unpack(
        ">d4sIIIII", headers.body(_find(headers, chunks, b"desc"), 32)
    )
    if format_id != b"lpcm" or packet_frames != 1:
        headers.unsupported(f"compressed audio (CAF format {format_id.decode('latin-1')!r})")
    kind: SampleType = "float" if flags & 1 else "signed"
    endian: Endian = "little" if flags & 2 else "big"
    about = _sample_format(headers, kind, packet_size // max(channels, 1), bits, endian), channels, rate
    data = _find(headers, chunks, b"data")
    told = data.size >= 4 and data.size != headers.size
    return _layout(headers, "CAF", chunks, None, (data.body + 4, data.size - 4 if told else 0), about)


def _flac(headers: _Headers) -> Layout:
    chunks = []
    offset, last = 4, False
    while not last:
        (word,) = struct.unpack(">I", headers.read(offset, 4))
        last = bool(word >> 31)
        chunks.append(Chunk(struct.pack(">I", word >> 24 & 0x7F), offset, 4, word & 0xFFFFFF))
        offset = chunks[-1].end
        if len(chunks) > _MAX_CHUNKS:
            headers.broken(f"it has more than {_MAX_CHUNKS} metadata blocks")
    if chunks[0].id != FLAC_STREAMINFO:
        headers.broken("its first block is no STREAMINFO")
    (word,) = struct.unpack(">Q", headers.body(chunks[0], 34)[10:18])
    rate, channels, bits, frames = word >> 44, (word >> 41 & 7) + 1, (word >> 36 & 31) + 1, word & (1 << 36) - 1
    if bits not in (8, 16, 24):
        headers.unsupported(f"FLAC samples of {bits} bits")
    if offset >= headers.size:
        headers.unfinished()
    return Layout(
        container="FLAC",
        sample_format=SampleFormat("signed", bits // 8, bits, "big"),
        channels=channels,
        sample_rate=rate,
        frames=frames,
        payload_offset=offset,
        payload_size=headers.size - offset,
        chunks=tuple(chunks),
        end=headers.size,
        sealed=False,
    )
