"""Stage a converted stem: a clone of the original in which only the samples are new.

The result has the same format and length as the original, so its samples take exactly the same bytes; whatever
else is in the file (Broadcast Wave, iXML, markers, loops, chunks of vendors, even garbage) stays bit for bit.
Only what was computed from the old audio is invalidated: chunks of peaks and digests are renamed to filler, the
loudness of a Broadcast Wave is unset. A payload that is equal to the old one changes nothing at all.
"""

import hashlib
import math
import os
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rvcd import disk, flac, stems
from rvcd.containers import Chunk, Layout, SampleFormat, read_layout
from rvcd.errors import Code, RvcdError
from rvcd.fingerprints import Fingerprint
from rvcd.replacing import Staged

_DERIVED = (b"PEAK", b"peak", b"levl", b"MD5 ", b"ovvw")
_FILLER = {"CAF": b"free", "W64": b"junk"}  # elsewhere JUNK
_BEXT_VERSION_OFFSET = 346  # EBU Tech 3285: five 16-bit loudness fields since version 2, unset as 7FFF hex
_BEXT_LOUDNESS_OFFSET = 412
_LOUDNESS_UNSET = b"\xff\x7f" * 5
_BLOCK_BYTES = 1 << 20

_Range = tuple[int, int]
_Edit = tuple[int, bytes]


def stage(original: Path, samples: np.ndarray, stage_path: Path, *, seed: int) -> Staged:
    """Make the file that shall replace `original`, on the same volume, and verify it; `original` is only read.

    original: WAV, RF64, BW64, W64, AIFF, AIFF-C or CAF with uncompressed samples, or FLAC, which is encoded anew
    and keeps its metadata blocks. samples: (frames,) or (frames, channels) as in the original, full scale ±1.
    Reduction to 16 bits or fewer is dithered from `seed`, as `rvcd.stems.write_stem` does it; float formats keep
    peaks over full scale, integer formats have the whole stem lowered (`Staged.gain_db`). A file left at
    `stage_path` by an earlier run is replaced; missing folders are made.

    Raises `RvcdError`: `unsupported_format` (only a sibling can be written), `unreadable_stem`, `file_unstable`,
    `not_finite`, `changed_underneath`, `disk_full`, `permission_denied`, `not_writable`, `not_found`.
    """
    layout = read_layout(original)
    samples = samples.reshape(len(samples), -1)
    try:
        before = Fingerprint.of(original)
        samples = _as_stored(samples, layout)
        _check_fit(original, layout, samples, before.size)
        stage_path.parent.mkdir(parents=True, exist_ok=True)
        stage_path.unlink(missing_ok=True)
        write = _write_flac if layout.container == "FLAC" else _write_patched
        gain = write(original, layout, samples, stage_path, seed)
        # DAWs know their peak caches to be stale by this time alone.
        now_ns = max(time.time_ns(), before.mtime_ns + 1)
        os.utime(stage_path, ns=(now_ns, now_ns))
        disk.flush_file(stage_path)
        _check_unchanged(original, before)
        return Staged(
            path=stage_path,
            gain_db=20 * math.log10(gain),
            digest=disk.sha256(stage_path),
            frames=layout.frames,
            fingerprint=Fingerprint.of(stage_path),
        )
    except OSError as error:
        disk.discard(stage_path)
        raise disk.disk_error(error, stage_path) from error
    except BaseException:
        disk.discard(stage_path)
        raise


def _as_stored(samples: np.ndarray, layout: Layout) -> np.ndarray:
    """In the precision of a float format, where a huge double becomes infinite and is then refused."""
    if layout.sample_format.kind != "float":
        return samples
    with np.errstate(over="ignore"):
        return samples.astype(f"f{layout.sample_format.width}", copy=False)


def _check_fit(original: Path, layout: Layout, samples: np.ndarray, file_size: int) -> None:
    if layout.payload_offset + layout.payload_size > file_size:
        raise RvcdError(Code.UNREADABLE_STEM, f"{original.name} is cut short; export it again.")
    if samples.shape != (layout.frames, layout.channels):
        frames, channels = samples.shape
        raise RvcdError(
            Code.CHANGED_UNDERNEATH,
            f"{original} has {layout.frames} frames of {layout.channels} channels and the conversion {frames} of "
            f"{channels}: it was written to in between. Convert it again.",
        )
    stems._check_finite(original, samples, int(layout.sample_rate))


def _check_unchanged(original: Path, before: Fingerprint) -> None:
    if Fingerprint.of(original) != before:
        raise RvcdError(Code.CHANGED_UNDERNEATH, f"{original} was written to while it was converted.")


def _write_patched(original: Path, layout: Layout, samples: np.ndarray, stage_path: Path, seed: int) -> float:
    """Clone, patch and verify; the gain that was applied."""
    gain = 1.0
    if layout.sample_format.kind != "float":
        gain = stems._safe_gain(samples, layout.sample_format.bits)
    disk.clone_file(original, stage_path)
    payload = (layout.payload_offset, layout.payload_offset + layout.frames * layout.frame_size)
    digest = hashlib.sha256()
    edits: list[_Edit] = []
    with stage_path.open("r+b") as file:
        changed = False
        offset = payload[0]
        for block in _encoded(samples, layout.sample_format, gain, seed):
            digest.update(block)
            changed |= _overwrite(file, offset, block)
            offset += len(block)
        if changed:
            edits = list(_invalidations(file, layout))
            for offset, data in edits:
                _overwrite(file, offset, data)
    _verify_patched(original, layout, stage_path, edits, digest.digest())
    return gain


def _encoded(samples: np.ndarray, form: SampleFormat, gain: float, seed: int) -> Iterator[bytes]:
    """The payload in blocks, as the file stores it."""
    order = ">" if form.endian == "big" else "<"
    if form.kind == "float":
        for block in stems._blocks(samples):
            yield block.astype(f"{order}f{form.width}").tobytes()
        return
    for block in stems._integer_blocks(samples, form.bits, gain, seed):
        octets = block.astype(f"{order}i4", order="C").view(np.uint8).reshape(-1, 4)
        octets = octets[:, : form.width] if form.endian == "big" else octets[:, 4 - form.width :]
        yield (octets ^ 0x80 if form.kind == "unsigned" else octets).tobytes()


def _overwrite(file: BinaryIO, offset: int, data: bytes) -> bool:
    """Write what differs, so that a clone goes on sharing the rest; say whether anything did."""
    file.seek(offset)
    if file.read(len(data)) == data:
        return False
    file.seek(offset)
    file.write(data)
    return True


def _invalidations(file: BinaryIO, layout: Layout) -> Iterator[_Edit]:
    """What has to be overwritten outside of the payload, now that the audio is another."""
    for chunk in layout.chunks:
        if chunk.id in _DERIVED:
            yield chunk.offset, _filler(layout)
        elif chunk.id == b"bext" and chunk.size >= _BEXT_LOUDNESS_OFFSET + len(_LOUDNESS_UNSET):
            file.seek(chunk.body + _BEXT_VERSION_OFFSET)
            (version,) = struct.unpack("<H", file.read(2))
            if version >= 2:
                yield chunk.body + _BEXT_LOUDNESS_OFFSET, _LOUDNESS_UNSET


def _filler(layout: Layout) -> bytes:
    return _FILLER.get(layout.container, b"JUNK")


def _verify_patched(original: Path, layout: Layout, staged: Path, edits: list[_Edit], payload: bytes) -> None:
    """Read back what was staged, from its headers to its last byte. Raises `RvcdError`: `not_writable`."""
    start, end = layout.payload_offset, layout.payload_offset + layout.frames * layout.frame_size
    blanked = {offset for offset, _ in edits}
    chunks = tuple(_renamed(chunk, layout) if chunk.offset in blanked else chunk for chunk in layout.chunks)
    new = sorted([(start, end), *((offset, offset + len(data)) for offset, data in edits)])
    kept = list(_between(new, original.stat().st_size))
    intact = (
        read_layout(staged) == replace(layout, chunks=chunks)
        and staged.stat().st_size == original.stat().st_size
        and _digest(staged, [(start, end)]) == payload
        and all(_digest(staged, [(at, at + len(data))]) == hashlib.sha256(data).digest() for at, data in edits)
        and _digest(staged, kept) == _digest(original, kept)
    )
    if not intact:
        raise _dropped(original)


def _renamed(chunk: Chunk, layout: Layout) -> Chunk:
    return replace(chunk, id=_filler(layout))


def _between(ranges: Iterable[_Range], size: int) -> Iterator[_Range]:
    """What lies before, between and behind ranges of a file."""
    position = 0
    for start, end in ranges:
        yield position, start
        position = end
    yield position, size


def _digest(path: Path, ranges: Iterable[_Range]) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for start, end in ranges:
            file.seek(start)
            while block := file.read(min(_BLOCK_BYTES, end - file.tell())):
                digest.update(block)
    return digest.digest()


def _dropped(original: Path) -> RvcdError:
    return RvcdError(
        Code.NOT_WRITABLE,
        f"The conversion of {original.name} did not read back as it was written and was dropped; check the disk.",
    )


def _write_flac(original: Path, layout: Layout, samples: np.ndarray, stage_path: Path, seed: int) -> float:
    """Encode anew, put the old metadata around it and verify; the gain that was applied."""
    encoded = stage_path.with_name(f"{stage_path.name}.encoded.flac")
    subtype = "PCM_S8" if layout.sample_format.bits == 8 else f"PCM_{layout.sample_format.bits}"
    try:
        like = stems.Stem(samples, int(layout.sample_rate), "FLAC", subtype, "FILE")
        gain_db = stems.write_stem(encoded, samples, like, seed=seed)
        disk.clone_file(original, stage_path)
        flac.splice(original, encoded, stage_path)
    finally:
        disk.discard(encoded)
    _verify_flac(original, layout, stage_path)
    return float(10 ** (gain_db / 20))


def _verify_flac(original: Path, layout: Layout, staged: Path) -> None:
    """Decode what was staged and compare its metadata. Raises `RvcdError`: `not_writable`."""
    after = read_layout(staged)
    same_blocks = all(
        old.id != new.id or flac.body_of(original, old) == flac.body_of(staged, new)
        for old, new in zip(layout.chunks[1:], after.chunks[1:], strict=False)
    )
    intact = (
        (after.frames, after.channels, after.sample_rate, after.sample_format)
        == (layout.frames, layout.channels, layout.sample_rate, layout.sample_format)
        and [(block.id, block.size) for block in after.chunks] == flac.kinds_after_splice(layout)
        and same_blocks
        and len(stems.read_stem(staged).samples) == layout.frames
    )
    if not intact:
        raise _dropped(original)
