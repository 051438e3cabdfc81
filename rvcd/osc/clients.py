"""Who talks to us: leases, sequence numbers, resends, and how much one source may ask.

A client is where answers go: the source of its messages, or the reply port that it named in `/rvcd/hello`. What a
source may do (its token, its rate) belongs to the source alone, so that nobody inherits rights by naming another's
port. Liveness comes from leases: sending to a UDP port that is gone tells nothing.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from rvcd.osc.codec import Message, encode
from rvcd.osc.messages import outgoing, string_form

if TYPE_CHECKING:
    import asyncio

TOPICS = frozenset({"jobs", "models", "watch", "server"})
ACK, STRING_EVENTS = "ack", "string-events"
CAPABILITIES = (ACK, STRING_EVENTS)
RESEND_SECONDS = (0.25, 1.0, 3.0)
MAX_CLIENTS = 512
MAX_SOURCES = 1024
MAX_UNACKED = 256
MESSAGES_PER_SECOND = 500.0
MESSAGES_AT_ONCE = 1000.0
_MAX_SEQ = 2**31 - 1


class Endpoint(NamedTuple):
    """Where packets come from and go to. As text it is the `client` of a `JobRequest`."""

    transport: str
    """udp or tcp."""
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.transport}:{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Endpoint from its text, None if the text is no endpoint."""
        transport, _, rest = text.partition(":")
        host, _, port = rest.rpartition(":")
        if transport not in ("udp", "tcp") or not host or not port.isdecimal():
            return None
        return cls(transport, host, int(port))


@dataclass
class _Unacked:
    packet: bytes
    sent: float
    resends: int = 0


@dataclass(eq=False)
class Client:
    """One receiver of answers and events."""

    id: int
    endpoint: Endpoint
    seen: float
    """Time of its last message."""
    name: str = ""
    capabilities: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()
    wants_lines: bool = False
    lease_seconds: float = 0.0
    lease_until: float = -math.inf
    work: "set[asyncio.Task[None]]" = field(default_factory=set)
    """Accepted commands that are not done."""
    unacked: dict[int, _Unacked] = field(default_factory=dict)
    _seq: int = 0

    def has_lease(self, now: float) -> bool:
        """Whether it still wants events."""
        return now < self.lease_until

    def subscribe(self, seconds: float, topics: frozenset[str], *, lines: bool, now: float) -> None:
        """Tell it of these topics for so long; any message renews."""
        self.topics, self.wants_lines = topics, lines or STRING_EVENTS in self.capabilities
        self.lease_seconds, self.lease_until = seconds, now + seconds

    def unsubscribe(self) -> None:
        """Tell it no more than how its own jobs end."""
        self.lease_until = -math.inf

    def touch(self, now: float) -> None:
        """It is alive."""
        if self.has_lease(now):
            self.lease_until = now + self.lease_seconds
        self.seen = now

    def next_seq(self) -> int:
        """Count an event: 1, 2, … and after the last int32 1 again."""
        self._seq = self._seq % _MAX_SEQ + 1
        return self._seq


@dataclass(eq=False)
class Source:
    """One sender of messages."""

    endpoint: Endpoint
    client: Client
    authorized: bool = False
    lane: "asyncio.Task[None] | None" = None
    """The last of its requests that had to wait."""
    waiting: int = 0
    """How many of its requests stand in the lane."""
    _allowance: float = MESSAGES_AT_ONCE
    _filled: float = -math.inf
    _complained: float = -math.inf

    def may_ask(self, now: float) -> bool:
        """Spend one message of the allowance, if there is one."""
        self._allowance = min(MESSAGES_AT_ONCE, self._allowance + (now - self._filled) * MESSAGES_PER_SECOND)
        self._filled = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def may_be_told_off(self, now: float) -> bool:
        """Whether it is a second since it last heard that it asks too much."""
        if now - self._complained < 1:
            return False
        self._complained = now
        return True


class Clients:
    """All clients and sources, bounded: the ones silent for longest are forgotten first."""

    def __init__(self, deliver: Callable[[Endpoint, bytes], None], clock: Callable[[], float]) -> None:
        self._deliver = deliver
        self._clock = clock
        self._clients: dict[Endpoint, Client] = {}
        self._sources: OrderedDict[Endpoint, Source] = OrderedDict()
        self._last_id = 0

    def source(self, endpoint: Endpoint) -> Source:
        """Sender at an endpoint, known or new."""
        source = self._sources.get(endpoint)
        if source is None:
            source = self._sources[endpoint] = Source(endpoint, self._client(endpoint))
            if len(self._sources) > MAX_SOURCES:
                self._sources.popitem(last=False)
        self._sources.move_to_end(endpoint)
        return source

    def redirect(self, source: Source, reply_port: int) -> Client:
        """Answer a source at another port of its host; 0 is the port that it sends from."""
        endpoint = source.endpoint._replace(port=reply_port) if reply_port else source.endpoint
        if source.endpoint.transport == "udp":
            source.client = self._client(endpoint)
        return source.client

    def requester(self, key: str) -> Client | None:
        """Client by the text of its endpoint, even after a restart; None where there can be none."""
        endpoint = Endpoint.parse(key)
        if endpoint is None or (endpoint.transport == "tcp" and endpoint not in self._clients):
            return None
        return self._client(endpoint)

    def subscribers(self, topic: str | None = None) -> list[Client]:
        """Clients with a lease, for a topic or for any."""
        now = self._clock()
        return [c for c in self._clients.values() if c.has_lease(now) and (topic is None or topic in c.topics)]

    def forget(self, endpoint: Endpoint) -> None:
        """Drop the client of a connection that is closed."""
        self._sources.pop(endpoint, None)
        self._clients.pop(endpoint, None)

    def send(self, client: Client, message: Message) -> None:
        """Send a message that `outgoing` made."""
        self._deliver(client.endpoint, _packet(message))

    def tell(self, client: Client, address: str, *values: Any, must_arrive: bool = False) -> None:
        """Send an event with the client's next sequence number, in the form that it asked for."""
        seq = client.next_seq()
        event = outgoing(address, seq, *values)
        packet = _packet(string_form(event) if client.wants_lines else event)
        if must_arrive and ACK in client.capabilities and len(client.unacked) < MAX_UNACKED:
            client.unacked[seq] = _Unacked(packet, self._clock())
        self._deliver(client.endpoint, packet)

    def resend(self) -> bool:
        """Send what is due of what was not acknowledged; say whether anything is still open."""
        now = self._clock()
        waiting = [client for client in self._clients.values() if client.unacked]
        for client in waiting:
            self._resend(client, now)
        return any(client.unacked for client in waiting)

    def _resend(self, client: Client, now: float) -> None:
        for seq, unacked in list(client.unacked.items()):
            if now - unacked.sent >= RESEND_SECONDS[unacked.resends]:
                self._deliver(client.endpoint, unacked.packet)
                unacked.resends += 1
                if unacked.resends == len(RESEND_SECONDS):
                    del client.unacked[seq]

    def _client(self, endpoint: Endpoint) -> Client:
        client = self._clients.get(endpoint)
        if client is None:
            self._make_room()
            self._last_id += 1
            client = self._clients[endpoint] = Client(self._last_id, endpoint, seen=self._clock())
        return client

    def _make_room(self) -> None:
        if len(self._clients) < MAX_CLIENTS:
            return
        now = self._clock()
        oldest = min(self._clients.values(), key=lambda client: (client.has_lease(now), client.seen))
        del self._clients[oldest.endpoint]


def _packet(message: Message) -> bytes:
    return encode(message.address, *_sendable(message))


def _sendable(message: Message) -> Iterator[float | str]:
    for arg in message.args:
        assert isinstance(arg, (int, float, str)), message
        yield arg
