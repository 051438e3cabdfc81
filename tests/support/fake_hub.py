"""A model hub on this machine, over real HTTP, that can be told to misbehave."""

import hashlib
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Seen:
    """A request as it arrived; an absent header is None."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    user_agent: str | None


@dataclass(frozen=True)
class Fault:
    """What one answer does wrong.

    `truncate` and `stall` send `after_bytes` of the body, then hang up or fall silent; `status` answers
    with `status`; `ignore_range` sends the whole file to a request for its rest.
    """

    kind: Literal["truncate", "stall", "status", "ignore_range"]
    after_bytes: int = 0
    status: int = 500


class FakeHub:
    """Serves files at the hub's addresses and remembers every request."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.stalled = threading.Event()
        self.redirect_to: str | None = None
        """Address of another server that every download is redirected to."""
        self._files: dict[str, bytes] = {}
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._closing = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def put(self, repo: str, path: str, body: bytes) -> None:
        """Publish a file."""
        self._files[_address(repo, path)] = body

    def misbehave(self, repo: str, path: str, *faults: Fault) -> None:
        """Let the next downloads of a file go wrong, one fault each; those after them go well."""
        self._faults[_address(repo, path)].extend(faults)

    def downloads(self) -> list[Seen]:
        """The requests for bytes, in order."""
        return [seen for seen in self.seen if seen.method == "GET"]

    def body(self, address: str) -> bytes | None:
        return self._files.get(address)

    def next_fault(self, address: str) -> Fault | None:
        faults = self._faults[address]
        return faults.popleft() if faults else None

    def hold(self) -> None:
        """Keep a stalled connection open until the hub closes."""
        self.stalled.set()
        self._closing.wait()

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """A hub that is gone when the block ends."""
    hub = FakeHub()
    try:
        yield hub
    finally:
        hub.close()


def _address(repo: str, path: str) -> str:
    return f"/{repo}/resolve/main/{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._note()
        body = self.hub.body(self._address())
        if body is None:
            self._refuse(404)
            return
        self._start(200, body, len(body))

    def do_GET(self) -> None:
        self._note()
        address = self._address()
        body = self.hub.body(address)
        if self.hub.redirect_to is not None:
            self.send_response(302)
            self.send_header("Location", self.hub.redirect_to + address)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        fault = self.hub.next_fault(address)
        if fault is not None and fault.kind == "status":
            self._refuse(fault.status)
        elif body is None:
            self._refuse(404)
        else:
            self._send(body, fault)

    def _send(self, body: bytes, fault: Fault | None) -> None:
        asked = self.headers.get("Range")
        first = 0
        if asked and not (fault and fault.kind == "ignore_range"):
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            if first >= len(body):
                self._refuse(416)
                return
        rest = body[first:]
        self._start(206 if first else 200, body, len(rest), first)
        if fault is None or fault.kind == "ignore_range":
            self.wfile.write(rest)
            return
        self.wfile.write(rest[: fault.after_bytes])
        self.wfile.flush()
        if fault.kind == "stall":
            self.hub.hold()
        self.close_connection = True

    def _start(self, status: int, body: bytes, content_length: int, first: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(content_length))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        self.end_headers()

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _address(self) -> str:
        return urlsplit(self.path).path  # a proxy is asked with the whole address

    def _note(self) -> None:
        headers = self.headers
        self.hub.seen.append(
            Seen(self.command, self.path, headers.get("Range"), headers.get("Authorization"), headers.get("User-Agent"))
        )

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client may give up on a stalled answer
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass
