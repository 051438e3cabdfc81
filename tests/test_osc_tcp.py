"""OSC 1.1 over TCP: SLIP, and the same answers as over UDP."""

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pythonosc.slip import decode as their_decode
from pythonosc.slip import encode as their_encode

from rvcd.jobs import Finished, JobRequest, JobState
from rvcd.osc.codec import MAX_PACKET_BYTES
from rvcd.osc.tcp import MAX_CONNECTIONS, SlipDecoder, slip
from tests.support.osc_peer import PATIENCE_SECONDS, Served, make_job, message, read, serving

HARD = b"/a\xc0\xdb\xc0\xc0\xdb\xdb\xdc\xdd"


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as served:
        yield served


class Stream:
    """A TCP client that frames with python-osc."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.pending: list[bytes] = []
        self.decoder = SlipDecoder()

    def send(self, *packets: bytes) -> None:
        self.connection.sendall(b"".join(their_encode(packet) for packet in packets))

    def receive(self) -> tuple[str, list[Any]]:
        while not self.pending:
            data = self.connection.recv(65536)
            assert data, "the connection was closed"
            self.pending += self.decoder.feed(data)
        return read(self.pending.pop(0))


@contextmanager
def connected(served: Served) -> Iterator[Stream]:
    with socket.create_connection(("127.0.0.1", served.tcp_port), PATIENCE_SECONDS) as connection:
        yield Stream(connection)


def test_frames_are_those_of_python_osc() -> None:
    assert slip(HARD) == their_encode(HARD)
    assert their_decode(slip(HARD)) == HARD


@pytest.mark.parametrize("ends", [b"\xc0\xc0", b"\xc0", b"\xc0\xc0\xc0\xc0"])
def test_packets_come_out_of_any_pieces(ends: bytes) -> None:
    source = random.Random(3)
    packets = [HARD, b"/b", source.randbytes(1000)]
    stream = ends.join(slip(packet).strip(b"\xc0") for packet in packets) + ends
    for size in (1, 2, 3, 7, len(stream)):
        decoder = SlipDecoder()
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [packet for piece in pieces for packet in decoder.feed(piece)] == packets


def test_a_complete_packet_does_not_wait_for_the_next() -> None:
    assert SlipDecoder().feed(slip(b"/a") + b"\xc0/b") == [b"/a"]


@pytest.mark.parametrize("stream", [b"\xc0" + b"a" * (MAX_PACKET_BYTES + 1), b"\xdba", b"\xdb\xc0"])
def test_a_stream_that_is_no_slip_is_refused(stream: bytes) -> None:
    with pytest.raises(ValueError, match=r"packet|escape"):
        SlipDecoder().feed(stream)


def test_requests_and_events_go_over_one_connection(served: Served) -> None:
    with connected(served) as stream:
        stream.send(message("/rvcd/hello", "TouchOSC", 1, 9999), message("/rvcd/notify", 1, 60, ""))
        assert stream.receive()[0] == "/rvcd/hello.reply"
        assert stream.receive()[0] == "/rvcd/done"
        stream.send(message("/rvcd/convert", "r1", "/ä.wav"))
        assert stream.receive() == ("/rvcd/accepted", ["r1", 1, 0])
        ((_, request),) = served.daemon.calls
        served.publish(Finished(make_job(1, request, state=JobState.COMMITTED)))
        assert stream.receive() == ("/rvcd/job/done", [1, 1, "/ä.wav", "", 0.0])


def test_a_broken_stream_is_closed_and_its_client_forgotten(served: Served) -> None:
    with connected(served) as stream:
        stream.send(message("/rvcd/notify", 1, 60, ""))
        assert stream.receive()[0] == "/rvcd/done"
        (client,) = served.do(served.server._clients.subscribers)
        stream.connection.sendall(b"\xdbx")
        with pytest.raises((ConnectionError, AssertionError)):
            stream.receive()
    assert served.do(served.server._clients.subscribers) == []
    request = JobRequest(Path("/a.wav"), client=str(client.endpoint))
    served.publish(Finished(make_job(1, request, state=JobState.COMMITTED)))
    assert served.do(lambda: served.server._clients.requester(request.client)) is None


def test_a_client_that_does_not_read_is_dropped_and_others_are_served(served: Served) -> None:
    with connected(served) as stream, connected(served) as other:
        stream.send(message("/rvcd/notify", 1, 60, ""))
        assert stream.receive()[0] == "/rvcd/done"
        long = JobRequest(Path("/" + "x" * 6000))

        def flood() -> int:
            for _ in range(2000):
                served.server.publish(Finished(make_job(1, long, state=JobState.COMMITTED)))
            return len(served.server._clients.subscribers())

        served.do(flood)
        other.send(message("/ping"))
        assert other.receive() == ("/rvcd/pong", [])
        assert served.do(served.server._clients.subscribers) == []


def test_connections_are_bounded(served: Served) -> None:
    sockets = [
        socket.create_connection(("127.0.0.1", served.tcp_port), PATIENCE_SECONDS) for _ in range(MAX_CONNECTIONS)
    ]
    try:
        last = Stream(sockets[-1])
        last.send(message("/ping"))
        assert last.receive()[0] == "/rvcd/pong"
        with connected(served) as extra, pytest.raises((ConnectionError, AssertionError)):
            extra.receive()
    finally:
        for connection in sockets:
            connection.close()
