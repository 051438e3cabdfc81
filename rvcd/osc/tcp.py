"""OSC 1.1 over TCP: SLIP frames, an END before and after each packet.

Source: RFC 1055 (SLIP) and the OSC 1.1 paper (Freed and Schmeder, 2009), "double-ENDed SLIP".
"""

import asyncio
from collections.abc import Callable
from typing import cast

from rvcd.osc.clients import Endpoint
from rvcd.osc.codec import MAX_PACKET_BYTES

MAX_UNSENT_BYTES = 1 << 20
"""A client that reads slower than this is dropped."""
MAX_CONNECTIONS = 64

_END, _ESC, _ESC_END, _ESC_ESC = 0xC0, 0xDB, 0xDC, 0xDD


def slip(packet: bytes) -> bytes:
    """Frame of a packet."""
    escaped = packet.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc")
    return b"\xc0" + escaped + b"\xc0"


class SlipDecoder:
    """Packets out of a stream that arrives in pieces.

    One END between packets does, as do many. Too long a packet raises `ValueError`, as does an ESC before
    something else than what it may escape: such a stream cannot be trusted any more.
    """

    def __init__(self) -> None:
        self._packet = bytearray()
        self._is_escaped = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the packets that are complete now."""
        packets = []
        for byte in data:
            if self._is_escaped:
                self._append_escaped(byte)
            elif byte == _END:
                if self._packet:
                    packets.append(bytes(self._packet))
                self._packet.clear()
            elif byte == _ESC:
                self._is_escaped = True
            else:
                self._packet.append(byte)
            if len(self._packet) > MAX_PACKET_BYTES:
                raise ValueError("a packet is too long")
        return packets

    def _append_escaped(self, byte: int) -> None:
        if byte not in (_ESC_END, _ESC_ESC):
            raise ValueError("an escape stands before a byte that needs none")
        self._packet.append(_END if byte == _ESC_END else _ESC)
        self._is_escaped = False


class SlipProtocol(asyncio.Protocol):
    """One connection: known in `connections` while it is open. The methods are asyncio's."""

    def __init__(
        self,
        connections: "dict[Endpoint, SlipProtocol]",
        take: Callable[[Endpoint, bytes], None],
        forget: Callable[[Endpoint], None],
    ) -> None:
        self._connections = connections
        self._take = take
        self._forget = forget
        self._decoder = SlipDecoder()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast("asyncio.Transport", transport)
        host, port = transport.get_extra_info("peername")[:2]
        self._endpoint = Endpoint("tcp", host, port)
        if len(self._connections) >= MAX_CONNECTIONS:
            self._transport.abort()
        else:
            self._connections[self._endpoint] = self

    def data_received(self, data: bytes) -> None:  # noqa: D102
        try:
            packets = self._decoder.feed(data)
        except ValueError:
            self._transport.abort()
            return
        for packet in packets:
            self._take(self._endpoint, packet)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102, ARG002
        self._connections.pop(self._endpoint, None)
        self._forget(self._endpoint)

    def send(self, packet: bytes) -> None:
        """Send a packet, or drop the connection if its client does not read."""
        if self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self._transport.abort()
        else:
            self._transport.write(slip(packet))

    def close(self) -> None:
        """Close after what is left to send."""
        self._transport.close()
