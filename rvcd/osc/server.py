"""The sockets, and the clock that drives them: UDP first, TCP for large lists."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

from rvcd.errors import Code, RvcdError
from rvcd.osc.clients import Clients, Endpoint
from rvcd.osc.control import Control, Event
from rvcd.osc.dispatch import Dispatcher
from rvcd.osc.reporter import Reporter
from rvcd.osc.requests import Requests
from rvcd.osc.tcp import SlipProtocol

_RECEIVE_BUFFER_BYTES = 1 << 20
"""A DAW may name hundreds of stems at once; what finds no room here is lost."""

log = logging.getLogger(__name__)


class OscServer:
    """Answers requests out of a `Control`, and tells events to whom they concern. Belongs to one event loop.

    With a `token`, whatever changes what others see wants it in `/rvcd/hello` first. `instance` tells one
    run of the daemon from the next.
    """

    def __init__(self, control: Control, *, token: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self.instance = secrets.token_hex(4)
        self._clients = Clients(self._deliver, clock)
        self._reporter = Reporter(self._clients, control.status, clock, self.instance)
        requests = Requests(control, self._clients, self._reporter, clock, self.instance, token)
        self._dispatcher = Dispatcher(self._clients, requests, clock)
        self._udp: dict[bool, asyncio.DatagramTransport] = {}  # by whether the address is IPv6
        self._tcp: list[asyncio.Server] = []
        self._connections: dict[Endpoint, SlipProtocol] = {}
        self._has_news = asyncio.Event()
        self._ticking: asyncio.Task[None] | None = None

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> tuple[str, int]:
        """Listen for UDP on a loopback address, 127.0.0.1 and ::1 once each; return what was bound.

        Raises `RvcdError`: `bad_configuration` for a name or an address of the network, `already_running`.
        """
        bound = _bind(host, port, socket.SOCK_DGRAM)
        address: tuple[str, int] = bound.getsockname()[:2]
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: _UdpProtocol(self._dispatcher.take), sock=bound)
        self._udp[":" in host] = transport
        self._start_ticking()
        return address

    async def listen_tcp(self, host: str = "127.0.0.1", port: int = 0) -> tuple[str, int]:
        """Listen for OSC 1.1 over TCP; else like `listen`."""
        bound = _bind(host, port, socket.SOCK_STREAM)
        address: tuple[str, int] = bound.getsockname()[:2]
        server = await asyncio.get_running_loop().create_server(self._accept, sock=bound)
        self._tcp.append(server)
        self._start_ticking()
        return address

    def publish(self, event: Event) -> None:
        """Tell an event. Never raises: a job does not fail because it could not be told of."""
        try:
            self._reporter.publish(event)
        except Exception:
            log.exception("%s could not be told", type(event).__name__)
        self._has_news.set()

    def tick(self) -> None:
        """Do what is due by the clock."""
        try:
            self._reporter.tick()
        except Exception:
            log.exception("the tick broke")

    async def close(self) -> None:
        """Stop listening; what was sent before is sent."""
        if self._ticking is not None:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking
        for server in self._tcp:
            server.close()
        await self._dispatcher.close()
        for connection in list(self._connections.values()):
            connection.close()
        for transport in self._udp.values():
            transport.close()

    def _start_ticking(self) -> None:
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().create_task(self._tick_for_ever())

    async def _tick_for_ever(self) -> None:
        while True:
            # Not `wait_for`, which can lose a cancellation up to Python 3.11.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._reporter.seconds_to_next_tick()):
                    await self._has_news.wait()
            self._has_news.clear()
            self.tick()

    def _accept(self) -> SlipProtocol:
        return SlipProtocol(self._connections, self._dispatcher.take, self._clients.forget)

    def _deliver(self, endpoint: Endpoint, packet: bytes) -> None:
        if endpoint.transport == "tcp":
            connection = self._connections.get(endpoint)
            if connection is not None:
                connection.send(packet)
            return
        transport = self._udp.get(":" in endpoint.host)
        if transport is not None and not transport.is_closing():
            transport.sendto(packet, (endpoint.host, endpoint.port))


class _UdpProtocol(asyncio.DatagramProtocol):
    def __init__(self, take: Callable[[Endpoint, bytes], None]) -> None:
        self._take = take

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self._take(Endpoint("udp", addr[0], addr[1]), data)

    def error_received(self, exc: Exception) -> None:
        log.debug("a datagram could not be sent: %s", exc)


def _bind(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise RvcdError(
            Code.BAD_CONFIGURATION,
            f"rvcd listens on 127.0.0.1 or ::1 only, not on {host!r}: a name may mean either, and a network is open.",
        )
    bound = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, kind)
    try:
        if address.version == 6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        if kind == socket.SOCK_STREAM:  # else a connection of the last run keeps the port for a minute
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise RvcdError(
                Code.ALREADY_RUNNING,
                f"Port {port} of {host} is taken: rvcd is running already, or another program has it; "
                "`rvcd status` tells, --port chooses another.",
            ) from error
        raise RvcdError(
            Code.BAD_CONFIGURATION, f"{host} port {port} cannot be listened on: {error.strerror}."
        ) from error
    return bound
