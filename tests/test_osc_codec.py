"""Packets: against python-osc as another implementation, and against whatever a socket can bring."""

import random
import struct
import time
from typing import Any

import pytest
from pythonosc.osc_bundle_builder import OscBundleBuilder
from pythonosc.osc_message import OscMessage
from pythonosc.osc_message_builder import OscMessageBuilder

from rvcd.errors import RvcdError
from rvcd.osc.codec import MAX_ELEMENTS, MAX_PACKET_BYTES, Malformed, Message, decode, encode
from tests.support.osc_peer import message, read, tags_of

BUNDLE = b"#bundle\0" + struct.pack(">Q", 1)


def element(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


def reasons(packet: bytes) -> list[str]:
    return [found.reason for found in decode(packet) if isinstance(found, Malformed)]


@pytest.mark.parametrize(
    ("types", "args"),
    [
        ("", ()),
        ("iii", (0, -1, 2**31 - 1)),
        ("ff", (0.5, -(2.0**90))),
        ("ss", ("Gesang ä 🎤", "")),
        ("sss", ("abc", "abcd", "newline\nand 'quotes'")),
        ("h", (2**60,)),
        ("d", (0.1,)),
        ("b", (b"12345",)),
        ("TFN", (True, False, None)),
    ],
)
def test_what_python_osc_writes_is_read(types: str, args: tuple[Any, ...]) -> None:
    assert decode(message("/rvcd/x", *args, types=types)) == [Message("/rvcd/x", args)]


@pytest.mark.parametrize("args", [(), (0, -(2**31), 2**31 - 1), (0.5, -3.0), ("", "abc", "abcd", "ä 🎤\n")])
def test_what_we_write_is_read_by_python_osc(args: tuple[Any, ...]) -> None:
    packet = encode("/rvcd/x", *args)
    assert read(packet) == ("/rvcd/x", list(args))
    assert tags_of(packet) == "".join({int: "i", float: "f", str: "s"}[type(arg)] for arg in args)
    assert decode(packet) == [Message("/rvcd/x", args)]


@pytest.mark.parametrize(
    "arg", [2**31, -(2**31) - 1, 1e39, "a\0b", "\udc80", True, None, b"x", (1, 2, 3, 4), "x" * 9000]
)
def test_what_osc_cannot_carry_is_refused(arg: Any) -> None:
    with pytest.raises(RvcdError) as refusal:
        encode("/rvcd/x", arg)
    assert refusal.value.code == "bad_request"


def test_bundles_are_flattened_in_order_and_time_tags_ignored() -> None:
    inner = OscBundleBuilder(time.time() + 3600)
    for value in (1, 2):
        builder = OscMessageBuilder("/a")
        builder.add_arg(value)
        inner.add_content(builder.build())
    outer = OscBundleBuilder(time.time() + 3600)
    outer.add_content(inner.build())
    outer.add_content(OscMessageBuilder("/b").build())
    assert decode(outer.build().dgram) == [Message("/a", (1,)), Message("/a", (2,)), Message("/b")]


def test_a_bad_message_does_not_drop_its_neighbours() -> None:
    bad = b"/b\0\0,s\0\0\xff\xfe\0\0"
    found = decode(BUNDLE + element(encode("/a")) + element(bad) + element(encode("/c")))
    assert found == [Message("/a"), Malformed("/b", "a string is not UTF-8"), Message("/c")]


def test_a_message_without_tags_has_no_arguments() -> None:
    assert decode(b"/ping\0\0\0") == [Message("/ping")]


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", "4 to 8192 bytes"),
        (b"/a\0", "multiple of 4"),
        (b"/a\0\0" * 2049, "4 to 8192 bytes"),
        (BUNDLE + struct.pack(">i", -4), "claims -4 of 0"),
        (BUNDLE + struct.pack(">i", 0), "claims 0 of 0"),
        (BUNDLE + struct.pack(">i", 6) + b"/a\0\0,\0\0\0", "claims 6 of 8"),
        (BUNDLE + struct.pack(">i", 2**31 - 1) + b"/a\0\0", "claims 2147483647 of 4"),
        (b"#bundle\0\0\0\0\1", "within its time tag"),
        (b"abcd", "does not end"),
        (b"abc\0", "starts with /"),
        (b"/" + b"a" * 260 + b"\0\0\0", "at most 255"),
        (b"/\xc3\xa4\0", "plain ASCII"),
        (b"/a b\0\0\0\0", "plain ASCII"),
        (b"/a\0b", "after a NUL"),
        (b"/a\0\0i\0\0\0\0\0\0\1", "start with a comma"),
        (b"/a\0\0,i\0\0", "4 bytes does not fit into the 0"),
        (b"/a\0\0,h\0\0\0\0\0\0", "8 bytes does not fit into the 4"),
        (b"/a\0\0,b\0\0\xff\xff\xff\xff", "-1 bytes does not fit"),
        (b"/a\0\0,b\0\0\x7f\xff\xff\xff", "does not fit"),
        (b"/a\0\0,s\0\0abcd", "does not end"),
        (b"/a\0\0,s\0\0a\0b\0", "after a NUL"),
        (b"/a\0\0,\0\0\0abcd", "4 bytes follow"),
        (b"/a\0\0,[i]\0\0\0\0\0\0\0\1", "'['"),
        (b"/a\0\0,?\0\0", "'?'"),
        (b"/a\0\0," + b"T" * 260 + b"\0\0\0", "at most 256"),
    ],
)
def test_what_is_not_osc_is_named(packet: bytes, reason: str) -> None:
    (found,) = reasons(packet)
    assert reason in found


def test_midi_and_other_four_bytes_stay_bytes() -> None:
    assert decode(b"/a\0\0,m\0\0\1\2\3\4") == [Message("/a", (b"\1\2\3\4",))]


def test_nesting_ends_at_four() -> None:
    packet = encode("/a")
    for _ in range(4):
        packet = BUNDLE + element(packet)
    assert decode(packet) == [Message("/a")]
    assert reasons(BUNDLE + element(packet)) == ["bundles are nested deeper than 4"]


def test_a_deep_nest_is_refused_before_it_is_walked() -> None:
    packet = BUNDLE
    while len(packet) < MAX_PACKET_BYTES - 20:
        packet = BUNDLE + element(packet)
    assert decode(packet) == [Malformed("", "bundles are nested deeper than 4")]
    while len(packet) < 60_000:
        packet = BUNDLE + element(packet)
    assert decode(packet) == [Malformed("", f"a packet has 4 to 8192 bytes, a multiple of 4, not {len(packet)}")]


def test_elements_are_counted_over_all_bundles() -> None:
    def bundle_of(count: int) -> bytes:
        return BUNDLE + element(b"/a\0\0") * count

    assert len(decode(bundle_of(MAX_ELEMENTS))) == MAX_ELEMENTS
    found = decode(BUNDLE + element(bundle_of(40)) + element(bundle_of(40)))
    assert len(found) == MAX_ELEMENTS - 2 + 1
    assert found[-1] == Malformed("", "a packet has more than 64 elements")


def test_no_packet_raises_or_reads_what_python_osc_reads_differently() -> None:
    """Seeded noise, and valid packets with a few bytes changed, cut or repeated."""
    random_source = random.Random(7)
    seeds = [
        message("/rvcd/convert", "r1", "/music/lead ä.wav", "pitch", 2.5, "priority", 3),
        message("/a", b"blob", 2**40, 0.1, None, True, types="bhdNT"),
        BUNDLE + element(encode("/a", 1)) + element(BUNDLE + element(encode("/b", "x", 0.5))),
    ]
    agreed = 0
    for _ in range(20_000):
        packet = mutated(random_source, random_source.choice(seeds))
        for found in decode(packet):
            assert isinstance(found, Malformed) or found.address.startswith("/")
        if not packet.startswith(b"#") and isinstance(found, Message) and b"," in packet:
            theirs = OscMessage(packet)
            assert theirs.address == found.address
            assert repr(list(theirs.params)) == repr(list(found.args)) or has_tag(packet, b"tcrmIS")
            agreed += 1
    assert agreed > 1000


def has_tag(packet: bytes, tags: bytes) -> bool:
    return any(tag in tags for tag in tags_of(packet).encode())


def mutated(source: random.Random, packet: bytes) -> bytes:
    data = bytearray(packet)
    for _ in range(source.randint(1, 3)):
        kind = source.randrange(4)
        at = source.randrange(len(data)) if data else 0
        if kind == 0 and data:
            data[at] = source.randrange(256)
        elif kind == 1:
            del data[at : at + 4]
        elif kind == 2:
            data[at:at] = data[at : at + source.choice((4, 8))]
        else:
            data[at:at] = source.randbytes(4)
    return bytes(data)
