"""The command line's client against a real server, a real nobody, and networks that lose messages."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rvcd.errors import RvcdError
from rvcd.jobs import Finished, JobRequest, JobState, Progressed, Queued
from rvcd.osc.client import OscClient
from rvcd.osc.codec import Message, decode, encode
from rvcd.osc.control import ModelInfo
from tests.support.osc_peer import PATIENCE_SECONDS, Served, make_job, serving

ROOT = Path(__file__).parents[1]


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[OscClient]:
    with OscClient(served.port, patience_seconds=5.0) as client:
        yield client


@contextmanager
def lossy(served: Served, passes: Callable[[bytes, bool], bool]) -> Iterator[OscClient]:
    """A client behind a relay that forwards what `passes` (packet, whether it comes from the server)."""
    inside, outside = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    outside.bind(("127.0.0.1", 0))
    inside.connect(("127.0.0.1", served.port))
    asker: list[Any] = []

    def relay(source: socket.socket, forward: Callable[[bytes], object], is_answer: bool) -> None:
        while True:
            packet, sender = source.recvfrom(65536)
            if packet == b"stop":
                return
            asker[:] = asker if is_answer else [sender]
            if passes(packet, is_answer):
                forward(packet)

    threads = [
        threading.Thread(target=relay, args=(outside, inside.send, False)),
        threading.Thread(target=relay, args=(inside, lambda packet: outside.sendto(packet, asker[0]), True)),
    ]
    for thread in threads:
        thread.start()
    try:
        with OscClient(outside.getsockname()[1], patience_seconds=0.1) as client:
            yield client
    finally:
        served.do(lambda: served.server._udp[False].sendto(b"stop", inside.getsockname()))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stopper:
            stopper.sendto(b"stop", outside.getsockname())
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        inside.close()
        outside.close()


def drop_first(address: str) -> Callable[[bytes, bool], bool]:
    """Lose the first packet of an address."""
    lost: list[str] = []

    def passes(packet: bytes, is_answer: bool) -> bool:
        if address in lost or decode(packet)[0].address != address:
            return True
        lost.append(address)
        return False

    return passes


def test_questions_are_answered(client: OscClient) -> None:
    assert client.hello("cli").args[0] == "0.3.0"
    assert client.ask("/rvcd/status").args[:2] == ("idle", 0)
    assert [row.args[1] for row in client.collect("/rvcd/models")] == ["Ana"]
    assert client.collect("/rvcd/methods")[0].args[0] == "/rvcd/hello"
    assert client.collect("/rvcd/jobs", "active", 10) == []
    assert [row.args[1] for row in client.collect("/rvcd/watch", "list")] == ["/music/in"]


def test_commands_are_given_and_refusals_raised(served: Served, client: OscClient) -> None:
    assert client.command("/rvcd/convert", "/a.wav", "pitch", 2.0).args[1] == 1
    assert client.command("/rvcd/cancel", 1).address == "/rvcd/done"
    with pytest.raises(RvcdError, match="'pich'") as refusal:
        client.command("/rvcd/convert", "/a.wav", "pich", 2.0)
    assert refusal.value.code == "bad_request"
    with pytest.raises(RvcdError) as refusal:
        client.ask("/rvcd/nonsense")
    assert refusal.value.code == "unknown_address"
    with pytest.raises(RvcdError, match="2147483648"):
        client.command("/rvcd/cancel", 2**31)


def test_slow_commands_can_be_waited_for(served: Served, client: OscClient) -> None:
    served.do(served.daemon.gate.set)
    assert client.command("/rvcd/model/load", "Ana", wait_seconds=10).address == "/rvcd/done"
    with pytest.raises(RvcdError, match="no voice Bob"):
        client.command("/rvcd/model/load", "Bob", wait_seconds=10)
    served.do(served.daemon.gate.clear)
    with pytest.raises(RvcdError, match="not done within"):
        client.command("/rvcd/model/load", "Ana", wait_seconds=0.01)


def test_a_token_opens_the_door() -> None:
    with serving(token="t") as served, OscClient(served.port, patience_seconds=5.0) as client:
        with pytest.raises(RvcdError, match="/rvcd/hello") as refusal:
            client.command("/rvcd/convert", "/a.wav")
        assert refusal.value.code == "unauthorized"
        client.hello("cli", "t")
        assert client.command("/rvcd/convert", "/a.wav").address == "/rvcd/accepted"


@pytest.mark.parametrize("is_silent", [True, False], ids=["a deaf port", "no port"])
def test_nobody_there(is_silent: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        if not is_silent:
            deaf.close()
        with OscClient(port, patience_seconds=0.01) as client:
            for act in (
                lambda: client.ask("/rvcd/status"),
                lambda: client.collect("/rvcd/jobs"),
                lambda: client.command("/rvcd/cancel", 1),
                client.subscribe,
            ):
                with pytest.raises(RvcdError, match=f"127.0.0.1 port {port}") as refusal:
                    act()
                assert refusal.value.code == "not_running"


@pytest.mark.parametrize("address", ["/rvcd/convert", "/rvcd/accepted"])
def test_a_lost_command_or_answer_makes_one_job(served: Served, address: str) -> None:
    with lossy(served, drop_first(address)) as client:
        assert client.command("/rvcd/convert", "/a.wav").args[1] == 1
    assert len(served.daemon.all_jobs) == 1


@pytest.mark.parametrize("address", ["/rvcd/jobs", "/rvcd/job/info", "/rvcd/jobs.end"])
def test_a_list_is_complete_or_asked_for_again(served: Served, address: str) -> None:
    served.daemon.all_jobs = {job_id: make_job(job_id) for job_id in range(1, 101)}
    with lossy(served, drop_first(address)) as client:
        assert [row.args[1] for row in client.collect("/rvcd/jobs")] == list(range(1, 101))


def test_a_list_that_is_never_complete_is_given_up(served: Served) -> None:
    def passes(packet: bytes, is_answer: bool) -> bool:
        return decode(packet)[0].address != "/rvcd/model/info"

    with lossy(served, passes) as client, pytest.raises(RvcdError, match="lost messages"):
        client.collect("/rvcd/models")


def test_a_job_is_followed_to_its_end(served: Served, client: OscClient) -> None:
    job = make_job(1, state=JobState.RUNNING)
    served.daemon.all_jobs = {1: job}
    client.subscribe("jobs")
    events = client.follow(1)
    assert [next(events).args[2] for _ in range(2)] == [0.0, 0.0]  # of the snapshot, and as asked for
    served.publish(Progressed(replace(job, fraction=0.5), 2.0), Queued(make_job(2), 0))
    assert next(events).args[2] == 0.5
    served.publish(Finished(make_job(1, state=JobState.FAILED, code="gpu_error", message="It hung.")))
    assert [event.args[2:4] for event in events] == [("gpu_error", "It hung.")]


def test_events_that_come_before_an_answer_are_kept(served: Served, client: OscClient) -> None:
    client.subscribe()
    served.publish(Queued(make_job(1), 0))
    client.ask("/rvcd/status")
    event = client.next_event(0)
    assert event is not None
    assert event.args[1] == 1
    assert client.next_event(0) is None


def test_a_job_that_ended_long_ago_is_followed_too(served: Served, client: OscClient) -> None:
    served.daemon.all_jobs = {4: make_job(4, state=JobState.CANCELLED)}
    assert [event.address for event in client.follow(4)] == ["/rvcd/job/cancelled"]
    with pytest.raises(RvcdError, match="no job 5") as refusal:
        list(client.follow(5))
    assert refusal.value.code == "not_found"


def test_a_lost_ending_is_asked_for_when_the_next_event_shows_the_gap(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rvcd.osc.client.QUIET_SECONDS", 1000.0)  # so that silence is not what gives it away
    job = make_job(1, state=JobState.RUNNING)
    served.daemon.all_jobs = {1: job}
    with lossy(served, drop_first("/rvcd/job/done")) as client:
        client.subscribe()
        events = client.follow(1)
        assert [next(events).args[0] for _ in range(2)] == [1, 2]  # of the snapshot, and as asked for
        served.daemon.all_jobs[1] = replace(job, state=JobState.COMMITTED)
        served.publish(Finished(served.daemon.all_jobs[1]), Queued(make_job(2), 0))
        assert [event.address for event in events] == ["/rvcd/job/done"]


def test_a_daemon_that_dies_while_it_is_followed_is_noticed() -> None:
    with serving() as served:
        served.daemon.all_jobs = {1: make_job(1)}
        client = OscClient(served.port, patience_seconds=0.01)
        events = client.follow(1)
        assert next(events).address == "/rvcd/job/queued"
    client._sent = 0.0  # long ago: the lease is to be renewed
    with client, pytest.raises(RvcdError) as refusal:
        next(events)
    assert refusal.value.code == "not_running"


def test_the_lease_is_renewed_while_events_are_awaited(served: Served) -> None:
    sent: list[str] = []

    def passes(packet: bytes, is_answer: bool) -> bool:
        if not is_answer:
            sent.append(decode(packet)[0].address)
        return True

    with lossy(served, passes) as client:
        client.subscribe()
        assert client.next_event(0.0) is None
        client._sent -= 15.0
        assert client.next_event(0.0) is None
        client.ask("/rvcd/status")
    assert sent == ["/rvcd/notify", "/rvcd/ping", "/rvcd/status"]


def test_noise_is_passed_over() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        with OscClient(server.getsockname()[1], patience_seconds=5.0) as client:
            place = client._socket.getsockname()
            server.sendto(b"noise", place)
            server.sendto(encode("/rvcd/fail", "/rvcd/convert", "other", "busy", "not yours"), place)
            server.sendto(encode("/rvcd/status.reply", "idle"), place)
            assert client.ask("/rvcd/status") == Message("/rvcd/status.reply", ("idle",))


def test_a_code_of_a_newer_daemon_is_internal() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        with OscClient(server.getsockname()[1]) as client:
            server.sendto(
                encode("/rvcd/fail", "/rvcd/status", "", "of_2030", "Ask later."), client._socket.getsockname()
            )
            with pytest.raises(RvcdError, match="Ask later") as refusal:
                client.ask("/rvcd/status")
    assert refusal.value.code == "internal"


def test_the_client_imports_little() -> None:
    program = (
        "import sys, rvcd.osc.client; heavy = {'asyncio', 'pythonosc', 'dataclasses', 'inspect', 'logging'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_models_may_be_many(served: Served, client: OscClient) -> None:
    served.daemon.voices = [ModelInfo(f"voice {index}", "cold", 40000, 1.0) for index in range(150)]
    assert len(client.collect("/rvcd/models")) == 150


def test_a_request_names_its_client(served: Served, client: OscClient) -> None:
    client.command("/rvcd/convert", "/a.wav")
    ((_, request),) = served.daemon.calls
    assert isinstance(request, JobRequest)
    assert request.client == f"udp:127.0.0.1:{client._socket.getsockname()[1]}"
