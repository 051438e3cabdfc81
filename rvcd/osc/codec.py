"""OSC 1.0 packets to plain messages and back.

Reading strictly means looking at every size, tag and string, and that is decoding already: so the guard and the
decoder are one. The usual library hangs on a bundle with a negative size, recurses without bound and cuts a string
at an embedded NUL. Here the work is linear in the packet, nothing is raised, and one bad message in a bundle
does not drop its neighbours.

Source: The Open Sound Control 1.0 Specification (Wright, 2002), with the types of 1.1. Time tags are ignored:
everything is meant immediately.
"""

import struct
from typing import NamedTuple

from rvcd.errors import Code, RvcdError

MAX_PACKET_BYTES = 8192
MAX_BUNDLE_DEPTH = 4
MAX_ELEMENTS = 64
MAX_ADDRESS_BYTES = 255
MAX_ARGUMENTS = 256

Argument = int | float | str | bytes | bool | None

_BUNDLE = b"#bundle\0"
_BUNDLE_HEADER_BYTES = 16  # the name and the time tag
_NUMBERS = {tag: struct.Struct(form) for tag, form in {"i": ">i", "f": ">f", "h": ">q", "d": ">d", "t": ">Q"}.items()}
_CONSTANTS: dict[str, Argument] = {"T": True, "F": False, "N": None, "I": float("inf")}
_FOUR_BYTES = "crm"  # a character, a colour, MIDI: nothing here takes them, so they stay bytes
_SIZE = _NUMBERS["i"]


class Message(NamedTuple):
    """One OSC message."""

    address: str
    args: tuple[Argument, ...] = ()


class Malformed(NamedTuple):
    """What could not be read, with its address if that much was readable."""

    address: str
    reason: str


class _Refusal(Exception):  # noqa: N818  (never leaves this file)
    """Why a message is malformed."""


def decode(packet: bytes) -> list[Message | Malformed]:
    """Messages of a packet in their order, bundles flattened. Never raises."""
    if not packet or len(packet) > MAX_PACKET_BYTES or len(packet) % 4:
        reason = f"a packet has 4 to {MAX_PACKET_BYTES} bytes, a multiple of 4, not {len(packet)}"
        return [Malformed("", reason)]
    reader = _PacketReader(packet)
    reader.read(0, len(packet), depth=0)
    return reader.found


def encode(address: str, *args: float | str) -> bytes:
    """Packet of one message with the tags that every peer knows: int is `i`, float is `f`, str is `s`.

    Raises `RvcdError`: `bad_request` for what OSC cannot carry (an integer beyond 32 bits, a NUL, over 8 KiB).
    """
    tags, data = ",", b""
    for arg in args:
        tag, piece = _encoded(address, arg)
        tags += tag
        data += piece
    packet = _padded(address.encode("ascii")) + _padded(tags.encode("ascii")) + data
    if len(packet) > MAX_PACKET_BYTES:
        raise RvcdError(
            Code.BAD_REQUEST, f"A message to {address} would have {len(packet)} bytes; OSC here ends at 8192."
        )
    return packet


class _PacketReader:
    def __init__(self, packet: bytes) -> None:
        self.found: list[Message | Malformed] = []
        self._packet = packet
        self._elements = 0

    def read(self, start: int, end: int, depth: int) -> None:
        if not self._packet.startswith(_BUNDLE, start, end):
            self.found.append(_message(self._packet[start:end]))
        elif end - start < _BUNDLE_HEADER_BYTES:
            self.found.append(Malformed("", "a bundle ends within its time tag"))
        elif depth == MAX_BUNDLE_DEPTH:
            self.found.append(Malformed("", f"bundles are nested deeper than {MAX_BUNDLE_DEPTH}"))
        else:
            self._read_elements(start + _BUNDLE_HEADER_BYTES, end, depth + 1)

    def _read_elements(self, offset: int, end: int, depth: int) -> None:
        while offset < end:
            (size,) = _SIZE.unpack_from(self._packet, offset)
            offset += 4
            if not 4 <= size <= end - offset or size % 4:
                self.found.append(Malformed("", f"an element of a bundle claims {size} of {end - offset} bytes"))
                return
            self._elements += 1
            if self._elements > MAX_ELEMENTS:
                if self._elements == MAX_ELEMENTS + 1:
                    self.found.append(Malformed("", f"a packet has more than {MAX_ELEMENTS} elements"))
                return
            self.read(offset, offset + size, depth)
            offset += size


def _message(data: bytes) -> Message | Malformed:
    address = ""
    try:
        candidate, offset = _string(data, 0)
        _check_address(candidate)
        address = candidate
        if offset == len(data):  # clients older than 1.0 leave out the tags of a message without arguments
            return Message(address)
        tags, offset = _string(data, offset)
        return Message(address, _arguments(data, offset, tags))
    except _Refusal as refusal:
        return Malformed(address, str(refusal))


def _check_address(address: str) -> None:
    if not address.startswith("/") or len(address) > MAX_ADDRESS_BYTES:
        raise _Refusal(f"an address starts with / and has at most {MAX_ADDRESS_BYTES} characters")
    if not all("!" <= char <= "~" and char != "#" for char in address):
        raise _Refusal("an address is plain ASCII without spaces and #")


def _arguments(data: bytes, offset: int, tags: str) -> tuple[Argument, ...]:
    if not tags.startswith(",") or len(tags) > MAX_ARGUMENTS + 1:
        raise _Refusal(f"type tags start with a comma and are at most {MAX_ARGUMENTS}")
    args = []
    for tag in tags[1:]:
        arg, offset = _argument(data, offset, tag)
        args.append(arg)
    if offset != len(data):
        raise _Refusal(f"{len(data) - offset} bytes follow the last argument")
    return tuple(args)


def _argument(data: bytes, offset: int, tag: str) -> tuple[Argument, int]:
    if tag in _CONSTANTS:
        return _CONSTANTS[tag], offset
    if tag in "sS":
        return _string(data, offset)
    if tag == "b":
        (size,) = _SIZE.unpack(_take(data, offset, 4))
        return _take(data, offset + 4, size), offset + 4 + size + -size % 4
    if tag in _FOUR_BYTES:
        return _take(data, offset, 4), offset + 4
    if tag not in _NUMBERS:
        raise _Refusal(f"the type tag {tag!r} is not taken here")
    number = _NUMBERS[tag]
    (value,) = number.unpack(_take(data, offset, number.size))
    return value, offset + number.size


def _take(data: bytes, offset: int, size: int) -> bytes:
    if not 0 <= size <= len(data) - offset:
        raise _Refusal(f"an argument of {size} bytes does not fit into the {max(len(data) - offset, 0)} that are left")
    return data[offset : offset + size]


def _string(data: bytes, offset: int) -> tuple[str, int]:
    end = data.find(b"\0", offset)
    if end < 0:
        raise _Refusal("a string does not end")
    next_offset = end + 4 - end % 4
    if data[end:next_offset].strip(b"\0"):
        raise _Refusal("a string goes on after a NUL")
    try:
        return data[offset:end].decode(), next_offset
    except UnicodeDecodeError:
        raise _Refusal("a string is not UTF-8") from None


def _encoded(address: str, arg: float | str) -> tuple[str, bytes]:
    try:
        if type(arg) is int:
            return "i", _SIZE.pack(arg)
        if type(arg) is float:
            return "f", _NUMBERS["f"].pack(arg)
        if type(arg) is str and "\0" not in arg:
            return "s", _padded(arg.encode())
    except (struct.error, OverflowError, UnicodeEncodeError):
        pass
    raise RvcdError(Code.BAD_REQUEST, f"{arg!r} cannot be sent to {address} as an OSC integer, float or string.")


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (4 - len(data) % 4)
