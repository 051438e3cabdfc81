"""Put the metadata of one FLAC file around the audio of another, block by block (RFC 9639, section 8)."""

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

from rvcd.containers import FLAC_STREAMINFO, Chunk, Layout, read_layout

_PADDING, _SEEKTABLE = b"\0\0\0\1", b"\0\0\0\3"
_LAST = 0x80


def splice(original: Path, encoded: Path, target: Path) -> None:
    """Fill `target` anew: STREAMINFO and audio of `encoded`, every other block of `original`, byte for byte.

    `target` may be an existing file, whose attributes stay. A seek table points into audio that is no more: it
    becomes padding of its size. Raises `OSError`, `RvcdError` as `read_layout` does.
    """
    kept, audio = read_layout(original), read_layout(encoded)
    blocks = [(0, body_of(encoded, audio.chunks[0])), *_foreign_blocks(original, kept)]
    with target.open("wb") as writer, encoded.open("rb") as reader:
        writer.write(b"fLaC")
        for number, (kind, body) in enumerate(blocks, start=1):
            is_last = _LAST if number == len(blocks) else 0
            writer.write(struct.pack(">I", (kind | is_last) << 24 | len(body)) + body)
        reader.seek(audio.payload_offset)
        shutil.copyfileobj(reader, writer)


def kinds_after_splice(layout: Layout) -> list[tuple[bytes, int]]:
    """Type and size of the blocks that a file with this layout has once it is spliced."""
    return [(_PADDING if block.id == _SEEKTABLE else block.id, block.size) for block in layout.chunks]


def body_of(path: Path, block: Chunk) -> bytes:
    """The body of one metadata block. Raises `OSError`."""
    with path.open("rb") as file:
        file.seek(block.body)
        return file.read(block.size)


def _foreign_blocks(path: Path, layout: Layout) -> Iterator[tuple[int, bytes]]:
    for block in layout.chunks:
        if block.id == _SEEKTABLE:
            yield _PADDING[3], bytes(block.size)
        elif block.id != FLAC_STREAMINFO:
            yield block.id[3], body_of(path, block)
