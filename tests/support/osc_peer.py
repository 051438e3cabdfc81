"""The other ends of the OSC room: a peer that speaks through python-osc, and a daemon of few words.

`python -m tests.support.osc_peer PORT` is a client in a process of its own: it subscribes, says so, and listens
until it is killed.
"""

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pythonosc.osc_message import OscMessage
from pythonosc.osc_message_builder import OscMessageBuilder

from rvcd.errors import Code, RvcdError
from rvcd.jobs import Job, JobRequest, JobState
from rvcd.osc.control import About, Accepted, Event, FolderInfo, JobFilter, ModelInfo, Status, WatchAction
from rvcd.osc.server import OscServer

PATIENCE_SECONDS = 10.0
_Result = TypeVar("_Result")


def message(address: str, *args: Any, types: str = "") -> bytes:
    """Packet as python-osc builds it; one type tag per argument, or its guesses."""
    builder = OscMessageBuilder(address=address)
    for index, arg in enumerate(args):
        builder.add_arg(arg, types[index] if types else None)
    return builder.build().dgram


class Peer:
    """A client on a UDP socket of its own; what it reads is read by python-osc."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind((host, 0))
        self.socket.settimeout(PATIENCE_SECONDS)
        self.port: int = self.socket.getsockname()[1]
        self.server = (host, port)

    def send(self, address: str, *args: Any, types: str = "") -> None:
        self.send_packet(message(address, *args, types=types))

    def send_packet(self, packet: bytes) -> None:
        self.socket.sendto(packet, self.server)

    def receive(self) -> tuple[str, list[Any], str]:
        """Next message: address, arguments and type tags. Fails if there is none."""
        packet, sender = self.socket.recvfrom(65536)
        assert sender[:2] == self.server
        return (*read(packet), tags_of(packet))

    def ask(self, address: str, *args: Any, types: str = "") -> tuple[str, list[Any]]:
        self.send(address, *args, types=types)
        return self.receive()[:2]

    def heard(self) -> list[tuple[str, list[Any]]]:
        """All that had come before a ping sent now was answered."""
        marker = f"marker {time.monotonic_ns()}"
        self.send("/rvcd/ping", marker)
        messages = []
        while (answer := self.receive()[:2]) != ("/rvcd/pong", [marker]):
            messages.append(answer)
        return messages

    def close(self) -> None:
        self.socket.close()


def read(packet: bytes) -> tuple[str, list[Any]]:
    parsed = OscMessage(packet)
    return parsed.address, list(parsed.params)


def tags_of(packet: bytes) -> str:
    start = packet.index(b",", packet.index(b"\0"))
    return packet[start + 1 : packet.index(b"\0", start)].decode()


class FakeClock:
    """Time that stands until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeDaemon:
    """A `Control` that keeps jobs in a dictionary and converts nothing."""

    all_jobs: dict[int, Job] = field(default_factory=dict)
    voices: list[ModelInfo] = field(default_factory=lambda: [ModelInfo("Ana", "warm", 40000, 55.5)])
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Closed: slow commands wait."""
    slow_submit: bool = False
    error: Exception | None = None

    def about(self) -> About:
        return About("0.3.0", "test", "mlx cpu", "abc")

    def status(self) -> Status:
        running = sum(job.state is JobState.RUNNING for job in self.all_jobs.values())
        return Status("idle", len(self.all_jobs) - running, running, 3, 4, 1, "Ana", 77, 61.5, "no default voice")

    def job(self, job_id: int) -> Job:
        if job_id not in self.all_jobs:
            raise RvcdError(Code.NOT_FOUND, f"There is no job {job_id}.")
        return self.all_jobs[job_id]

    def jobs(self, which: JobFilter, limit: int) -> Sequence[Job]:
        return [job for job in self.all_jobs.values() if job.state.is_final == (which != "active")][:limit]

    def models(self) -> Sequence[ModelInfo]:
        return self.voices

    def folders(self) -> Sequence[FolderInfo]:
        return [FolderInfo(Path("/music/in"), "watching", 2, 1, "Ana")]

    def submit(self, request: JobRequest) -> Any:
        if self.error:
            raise self.error
        return self._submit_slowly(request) if self.slow_submit else self._submit(request)

    def cancel(self, job_id: int | None, client: str) -> None:
        self.calls.append(("cancel", job_id, client))

    def watch(self, action: WatchAction) -> None:
        self.calls.append(("watch", action))

    def hold(self, path: Path, seconds: float) -> None:
        self.calls.append(("hold", path, seconds))

    def release(self, path: Path) -> None:
        self.calls.append(("release", path))

    async def restore(self, target: int | Path) -> None:
        await self.gate.wait()
        self.calls.append(("restore", target))

    async def load_model(self, model: str) -> None:
        await self.gate.wait()
        if model != "Ana":
            raise RvcdError(Code.UNKNOWN_VOICE, f"There is no voice {model}.")
        self.calls.append(("load", model))

    async def unload_model(self, model: str) -> None:
        raise ZeroDivisionError(model)

    def _submit(self, request: JobRequest) -> Accepted:
        job = make_job(len(self.all_jobs) + 1, request)
        self.all_jobs[job.id] = job
        self.calls.append(("submit", request))
        return Accepted(job.id, len(self.all_jobs) - 1)

    async def _submit_slowly(self, request: JobRequest) -> Accepted:
        await self.gate.wait()
        return self._submit(request)


def make_job(job_id: int, request: JobRequest | None = None, **changes: Any) -> Job:
    request = request or JobRequest(Path(f"/music/{job_id}.wav"), voice="Ana")
    return replace(Job(id=job_id, request=request, state=JobState.QUEUED, created=1.0), **changes)


class Served:
    """An `OscServer` whose loop runs in a thread, and what a test does to it from outside."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: OscServer, daemon: FakeDaemon) -> None:
        self.loop = loop
        self.server = server
        self.daemon = daemon
        self.port = self.tcp_port = 0

    def do(self, action: Callable[[], _Result]) -> _Result:
        """Do something in the loop and return its result."""

        async def run() -> _Result:
            return action()

        return self.do_async(run())

    def do_async(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_SECONDS)

    def publish(self, *events: Event) -> None:
        for event in events:
            self.do(lambda event=event: self.server.publish(event))

    def tick(self) -> None:
        self.do(self.server.tick)

    @contextmanager
    def peer(self) -> Iterator[Peer]:
        peer = Peer(self.port)
        try:
            yield peer
        finally:
            peer.close()


@contextmanager
def serving(**options: Any) -> Iterator[Served]:
    """Start a server on a free port, over UDP and TCP."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE_SECONDS)

    async def start() -> Served:
        daemon = FakeDaemon()
        served = Served(loop, OscServer(daemon, **options), daemon)
        served.port = (await served.server.listen())[1]
        served.tcp_port = (await served.server.listen_tcp())[1]
        return served

    served = run(start())
    try:
        yield served
    finally:
        run(served.server.close())
        run(loop.shutdown_asyncgens())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


if __name__ == "__main__":
    subscriber = Peer(int(sys.argv[1]))
    subscriber.ask("/rvcd/hello", "doomed", 1, 0)
    subscriber.ask("/rvcd/notify", 1, 60, "")
    print(subscriber.port, flush=True)
    while True:
        subscriber.receive()
