"""Audio files built byte by byte, with what DAWs and field recorders put beside the samples."""

import struct
from collections.abc import Sequence

import numpy as np

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
SUBTYPE_TAIL = bytes.fromhex("000000001000800000aa00389b71")


def chunk(name: bytes, body: bytes, *, pad: bool = True) -> bytes:
    return struct.pack("<4sI", name, len(body)) + body + (b"\0" if pad and len(body) % 2 else b"")


def wave_format(channels: int = 1, bits: int = 24, rate: int = 48_000, tag: int = PCM) -> bytes:
    width = (bits + 7) // 8
    return struct.pack("<HHIIHH", tag, channels, rate, rate * channels * width, channels * width, bits)


def extensible_format(channels: int, bits: int, valid_bits: int, tag: int = PCM) -> bytes:
    plain = wave_format(channels, bits, tag=EXTENSIBLE)
    return plain + struct.pack("<HHIH", 22, valid_bits, 0, tag) + SUBTYPE_TAIL


def wave(payload: bytes, *, fmt: bytes, before: Sequence[bytes] = (), after: Sequence[bytes] = ()) -> bytes:
    body = b"".join((b"WAVE", chunk(b"fmt ", fmt), *before, chunk(b"data", payload), *after))
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def rf64(
    payload: bytes, *, fmt: bytes, after: Sequence[bytes] = (), magic: bytes = b"RF64", size: int | None = None
) -> bytes:
    """`size` tells more payload than is given, for a file that is made long (and sparse) afterwards."""
    size = len(payload) if size is None else size
    head = struct.pack("<4sI", b"data", 0xFFFFFFFF)
    extra = sum(map(len, after))
    form = 4 + 36 + 8 + len(fmt) + 8 + size + size % 2 + extra
    ds64 = chunk(b"ds64", struct.pack("<QQQI", form, size, 0, 0))
    start = struct.pack("<4sI4s", magic, 0xFFFFFFFF, b"WAVE") + ds64 + chunk(b"fmt ", fmt) + head
    return start + payload + (b"\0" if len(payload) % 2 else b"") + b"".join(after)


def bext(version: int = 1, loudness: Sequence[int] = (0, 0, 0, 0, 0)) -> bytes:
    body = struct.pack(
        "<256s32s32s10s8sQH64s", b"lead", b"DAW", b"REF1", b"2026-01-02", b"03:04:05", 123456, version, b"u"
    )
    return chunk(b"bext", body + struct.pack("<5h", *loudness) + bytes(180) + b"A=PCM,F=48000\r\n")


def broadcast_wave(payload: bytes, *, fmt: bytes, bext_version: int = 1) -> bytes:
    """A bounce with everything: Broadcast Wave, a vendor's chunk of odd size, filler, markers, labels, iXML."""
    cue = struct.pack("<I", 1) + struct.pack("<II4sIII", 1, 0, b"data", 0, 0, 5)
    adtl = (
        b"adtl" + chunk(b"labl", struct.pack("<I", 1) + b"verse\0") + chunk(b"note", struct.pack("<I", 1) + b"loud\0")
    )
    ixml = (
        b'<?xml version="1.0" encoding="UTF-8"?><BWFXML><PROJECT>song</PROJECT><SCENE>1</SCENE><TAKE>3</TAKE>'
        b"<TRACK_LIST><TRACK_COUNT>1</TRACK_COUNT><TRACK><CHANNEL_INDEX>1</CHANNEL_INDEX><INTERLEAVE_INDEX>1"
        b"</INTERLEAVE_INDEX><NAME>Lead</NAME></TRACK></TRACK_LIST></BWFXML>"
    )
    info = b"INFO" + chunk(b"INAM", b"Lead vocal\0") + chunk(b"IART", b"Singer\0")
    return wave(
        payload,
        fmt=fmt,
        before=[chunk(b"JUNK", bytes(28)), bext(bext_version), chunk(b"LGWV", bytes(range(33)))],
        after=[chunk(b"cue ", cue), chunk(b"LIST", adtl), chunk(b"LIST", info), chunk(b"iXML", ixml)],
    )


def pcm24(frames: int, seed: int = 1) -> bytes:
    samples = np.random.default_rng(seed).normal(0, 2**20, frames).astype("<i4")
    return samples.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def flac_block(kind: int, body: bytes, *, last: bool = False) -> bytes:
    return struct.pack(">I", (kind | (0x80 if last else 0)) << 24 | len(body)) + body


def flac_with(encoded: bytes, blocks: Sequence[tuple[int, bytes]]) -> bytes:
    """A FLAC file with these metadata blocks instead of its own, behind STREAMINFO."""
    offset = 4
    while True:
        (word,) = struct.unpack_from(">I", encoded, offset)
        offset += 4 + (word & 0xFFFFFF)
        if word >> 31:
            break
    parts = [flac_block(kind, body, last=number == len(blocks)) for number, (kind, body) in enumerate(blocks, 1)]
    return encoded[:4] + flac_block(0, encoded[8:42]) + b"".join(parts) + encoded[offset:]
