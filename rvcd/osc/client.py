"""The command line's side of OSC: ask, command, list and follow, over one UDP socket.

It imports the standard library and the codec only, because a DAW may start it for every stem.

Retries follow the health check of supriya (`HealthCheck` in its `osc.py`): a first patience, a factor, a number of
attempts.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from rvcd.errors import Code, RvcdError
from rvcd.osc import DEFAULT_PORT, PROTOCOL
from rvcd.osc.codec import Malformed, Message, decode, encode

FIRST_PATIENCE_SECONDS = 0.4
BACKOFF_FACTOR = 1.5
ATTEMPTS = 5
RENEW_SECONDS = 15.0
LEASE_SECONDS = 60
QUIET_SECONDS = 6.0
"""A subscriber hears a heartbeat every 5 s; silence beyond that is asked about."""

ENDINGS = ("/rvcd/job/done", "/rvcd/job/failed", "/rvcd/job/cancelled")
EVENTS = (
    *ENDINGS,
    *("/rvcd/job/queued", "/rvcd/job/started", "/rvcd/job/progress"),
    *("/rvcd/model/state", "/rvcd/watch/state", "/rvcd/server", "/rvcd/heartbeat"),
)


class OscClient:
    """A conversation with the daemon.

    Every method raises `RvcdError`: `not_running` if nobody answers, and the daemon's own code if it refuses.
    """

    def __init__(
        self, port: int = DEFAULT_PORT, host: str = "127.0.0.1", *, patience_seconds: float = FIRST_PATIENCE_SECONDS
    ) -> None:
        self._place = f"{host} port {port}"
        self._patience_seconds = patience_seconds
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # lists come in one go
        # Connected, so that the kernel says at once when nobody listens, and nobody else can answer.
        self._socket.connect((host, port))
        self._events: deque[Message] = deque()
        self._sent = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; the daemon forgets us when the lease ends."""
        self._socket.close()

    def hello(self, name: str, token: str = "") -> Message:
        """Say who we are, and the token if there is one; returns `/rvcd/hello.reply`."""
        return self.ask("/rvcd/hello", name, PROTOCOL, 0, *(("token", token) if token else ()))

    def ask(self, address: str, *args: float | str) -> Message:
        """Ask what is answered by one message, `ADDRESS.reply`."""
        for deadline in self._attempts(address, *args):
            while reply := self._answer(deadline):
                _raise_if_refused(reply, address)
                if reply.address == f"{address}.reply":
                    return reply
        raise self._nobody()

    def collect(self, address: str, *args: float | str) -> list[Message]:
        """Ask for a list; a list that lost messages on the way is asked for again."""
        was_answered = False
        for patience_seconds in self._patiences():
            req = new_req()
            self._send(address, req, *args)
            deadline = time.monotonic() + patience_seconds
            rows: list[Message] = []
            while reply := self._answer(deadline):
                was_answered = True
                _raise_if_refused(reply, address, req)
                if reply.address == f"{address}.end" and reply.args[0] == req:
                    if reply.args[1] == len(rows):
                        return rows
                    break
                if reply.args[:1] == (req,) or reply.address == "/rvcd/method":
                    rows.append(reply)
        if was_answered:
            raise RvcdError(Code.INTERNAL, f"{address} lost messages {ATTEMPTS} times; ask for fewer at once.")
        raise self._nobody()

    def command(self, address: str, *args: float | str, wait_seconds: float = 0.0) -> Message:
        """Give a command, once even if it has to be sent again; returns `/rvcd/accepted` or `/rvcd/done`.

        For commands that are accepted first and done later, `wait_seconds` says how long to wait for that.
        """
        req = new_req()
        for deadline in self._attempts(address, req, *args):
            while reply := self._answer(deadline):
                _raise_if_refused(reply, address, req)
                if reply.address == "/rvcd/done" and reply.args[:2] == (address, req):
                    return reply
                if reply.address == "/rvcd/accepted" and reply.args[0] == req:
                    return self._done(address, req, wait_seconds) if wait_seconds else reply
        raise self._nobody()

    def subscribe(self, topics: str = "") -> None:
        """Ask for events; the lease is renewed while they are read."""
        for deadline in self._attempts("/rvcd/notify", 1, LEASE_SECONDS, topics):
            while reply := self._answer(deadline):
                _raise_if_refused(reply, "/rvcd/notify")
                if reply.address == "/rvcd/done" and reply.args[0] == "/rvcd/notify":
                    return
        raise self._nobody()

    def next_event(self, timeout_seconds: float) -> Message | None:
        """Next event, None if there was none in time."""
        deadline = time.monotonic() + timeout_seconds
        while not self._events:
            now = time.monotonic()
            if now - self._sent >= RENEW_SECONDS:
                self._send("/rvcd/ping")
            message = self._receive(min(deadline, self._sent + RENEW_SECONDS))
            if message is not None and message.address in EVENTS:
                return message
            if message is not None:
                _raise_if_refused(message, "/rvcd/job")
            elif time.monotonic() >= deadline:
                return None
        return self._events.popleft()

    def follow(self, job: int) -> Iterator[Message]:
        """Events of a job, the last one included; what was lost on the way is asked for.

        `subscribe` first, to hear of its progress.
        """
        last_seq, silences = 0, 0
        self._send("/rvcd/job", new_req(), job)  # it may have ended long ago
        while silences <= ATTEMPTS:
            event = self.next_event(self._patience_seconds if silences else QUIET_SECONDS)
            if event is None:
                silences += 1
                self._send("/rvcd/job", new_req(), job)
                continue
            silences = 0
            seq = _int(event.args[0])
            if last_seq and seq > last_seq + 1:
                self._send("/rvcd/job", new_req(), job)
            last_seq = seq
            if event.address.startswith("/rvcd/job/") and event.args[1] == job:
                yield event
                if event.address in ENDINGS:
                    return
        raise self._nobody()

    def _done(self, address: str, req: str, wait_seconds: float) -> Message:
        deadline = time.monotonic() + wait_seconds
        while reply := self._answer(deadline):
            _raise_if_refused(reply, address, req)
            if reply.address == "/rvcd/done" and reply.args[:2] == (address, req):
                return reply
        raise RvcdError(Code.BUSY, f"{address} was accepted, but was not done within {wait_seconds:.0f} s.")

    def _attempts(self, address: str, *args: float | str) -> Iterator[float]:
        """Send again and again; each time, the time until which to wait for an answer."""
        for patience_seconds in self._patiences():
            self._send(address, *args)
            yield time.monotonic() + patience_seconds

    def _patiences(self) -> Iterator[float]:
        return (self._patience_seconds * BACKOFF_FACTOR**attempt for attempt in range(ATTEMPTS))

    def _answer(self, deadline: float) -> Message | None:
        """Next message that is no event; events are kept for `next_event`."""
        while message := self._receive(deadline):
            if message.address not in EVENTS:
                return message
            self._events.append(message)
        return None

    def _send(self, address: str, *args: float | str) -> None:
        packet = encode(address, *args)
        try:
            self._socket.send(packet)
        except ConnectionError:
            raise self._nobody() from None
        self._sent = time.monotonic()

    def _receive(self, deadline: float) -> Message | None:
        while (seconds := deadline - time.monotonic()) > 0:
            self._socket.settimeout(seconds)
            try:
                messages = decode(self._socket.recv(65536))
            except TimeoutError:
                return None
            except ConnectionError:
                raise self._nobody() from None
            if messages and not isinstance(messages[0], Malformed):
                return messages[0]
        return None

    def _nobody(self) -> RvcdError:
        return RvcdError(Code.NOT_RUNNING, f"No rvcd answers on {self._place}; start it with `rvcd run`.")


def new_req() -> str:
    """Name for a request that nobody had before."""
    return os.urandom(8).hex()


def _raise_if_refused(reply: Message, address: str, req: str | None = None) -> None:
    if reply.address != "/rvcd/fail":
        return
    failed_address, failed_req, code, sentence = reply.args[:4]
    if failed_address == address and (req is None or failed_req in (req, "")):
        raise RvcdError(Code(str(code)) if code in list(Code) else Code.INTERNAL, str(sentence))


def _int(arg: Any) -> int:
    assert isinstance(arg, int)
    return arg
