"""Leases, sequence numbers, resends and throttling, with a clock that the test moves."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from rvcd.jobs import Finished, JobRequest, JobState, Progressed, Queued, Started
from rvcd.osc.control import ModelState
from tests.support.osc_peer import FakeClock, Peer, Served, make_job, serving

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def served(clock: FakeClock) -> Iterator[Served]:
    with serving(clock=clock) as served:
        yield served


@pytest.fixture
def peer(served: Served) -> Iterator[Peer]:
    with served.peer() as peer:
        yield peer


def subscribed(peer: Peer, topics: str = "", lease: int = 60) -> Peer:
    address, args = peer.ask("/rvcd/notify", 1, lease, topics)
    assert (address, args[0], args[3]) == ("/rvcd/done", "/rvcd/notify", lease)
    return peer


def heard(peer: Peer) -> list[tuple[str, list[Any]]]:
    """What came but heartbeats, which come whenever the clock was moved far enough."""
    return [message for message in peer.heard() if message[0] != "/rvcd/heartbeat"]


def ended(job_id: int, client: str = "", **changes: Any) -> Finished:
    values = {"state": JobState.COMMITTED, "started": 2.0, "finished": 5.5} | changes
    return Finished(make_job(job_id, JobRequest(Path("/music/a b.wav"), client=client), **values))


def test_a_job_is_told_from_queue_to_end(served: Served, peer: Peer) -> None:
    subscribed(peer)
    job = make_job(3)
    running = make_job(3, state=JobState.RUNNING, fraction=0.25, stage="voice")
    served.publish(Queued(job, 1), Started(job, "gpu"), Progressed(running, 8.0))
    served.publish(ended(3, backup=Path("/b.wav"), result=Path("/music/a b.rvcd.wav")))
    assert [peer.receive() for _ in range(4)] == [
        ("/rvcd/job/queued", [1, 3, "/music/3.wav", 1], "iisi"),
        ("/rvcd/job/started", [2, 3, "/music/3.wav", "Ana", "gpu"], "iisss"),
        ("/rvcd/job/progress", [3, 3, 0.25, "voice", 8.0], "iifsf"),
        ("/rvcd/job/done", [4, 3, "/music/a b.rvcd.wav", "/b.wav", 3.5], "iissf"),
    ]


def test_failures_say_whether_a_retry_helps_and_cancellations_why(served: Served, peer: Peer) -> None:
    subscribed(peer)
    served.publish(ended(1, state=JobState.FAILED, code="gpu_error", message="It hung."))
    served.publish(ended(2, state=JobState.FAILED, code="unreadable_stem", message="N\0o."))
    served.publish(ended(3, state=JobState.CANCELLED, code="superseded"), ended(4, state=JobState.CANCELLED))
    assert [peer.receive() for _ in range(4)] == [
        ("/rvcd/job/failed", [1, 1, "gpu_error", "It hung.", 1], "iissi"),
        ("/rvcd/job/failed", [2, 2, "unreadable_stem", "N o.", 0], "iissi"),
        ("/rvcd/job/cancelled", [3, 3, "superseded"], "iis"),
        ("/rvcd/job/cancelled", [4, 4, "cancelled"], "iis"),
    ]


def test_topics_choose(served: Served, peer: Peer) -> None:
    subscribed(peer, "models")
    served.publish(Queued(make_job(1), 0), ModelState("Ana", "warm"))
    assert heard(peer) == [("/rvcd/model/state", [1, "Ana", "warm"])]
    assert peer.ask("/rvcd/notify", 1, 60, "jobs,weather")[1][2] == "bad_request"


def test_the_requester_hears_the_end_without_a_lease_and_once_with_one(served: Served, peer: Peer) -> None:
    client = f"udp:127.0.0.1:{peer.port}"
    served.publish(Queued(make_job(1, JobRequest(Path("/a"), client=client)), 0), ended(1, client))
    assert [address for address, _ in heard(peer)] == ["/rvcd/job/done"]
    subscribed(peer)
    served.publish(ended(2, client))
    assert [address for address, _ in heard(peer)] == ["/rvcd/job/done"]


@pytest.mark.parametrize("client", ["", "spool:x", "tcp:127.0.0.1:9", "udp:127.0.0.1:x"])
def test_a_job_of_nobody_ends_quietly(served: Served, peer: Peer, client: str) -> None:
    subscribed(peer)
    served.publish(ended(1, client))
    assert [address for address, _ in heard(peer)] == ["/rvcd/job/done"]


def test_each_subscriber_counts_for_itself(served: Served, peer: Peer) -> None:
    subscribed(peer)
    served.publish(ended(1))
    with served.peer() as late:
        subscribed(late)
        served.publish(ended(2))
        assert [args[:2] for _, args in heard(late)] == [[1, 2]]
    assert [args[:2] for _, args in heard(peer)] == [[1, 1], [2, 2]]


def test_after_the_last_int32_counting_starts_again(served: Served, peer: Peer) -> None:
    subscribed(peer)
    (client,) = served.do(served.server._clients.subscribers)
    client._seq = 2**31 - 2
    served.publish(ended(1), ended(2))
    assert [args[:2] for _, args in heard(peer)] == [[2**31 - 1, 1], [1, 2]]


def test_a_newcomer_is_told_the_live_jobs(served: Served, peer: Peer) -> None:
    known, unknown, waiting = make_job(1), make_job(2, state=JobState.STAGED, fraction=1.0), make_job(3)
    served.daemon.all_jobs = {1: known, 2: unknown, 3: waiting, 4: ended(4).job}
    served.publish(Started(known, "gpu"))
    subscribed(peer)
    assert heard(peer) == [
        ("/rvcd/job/started", [1, 1, "/music/1.wav", "Ana", "gpu"]),
        ("/rvcd/job/progress", [2, 2, 1.0, "", -1.0]),
        ("/rvcd/job/queued", [3, 3, "/music/3.wav", -1]),
    ]


def test_a_lease_ends_and_any_message_renews_it(served: Served, peer: Peer, clock: FakeClock) -> None:
    subscribed(peer, lease=10)
    clock.now += 9
    assert peer.ask("/ping")[0] == "/rvcd/pong"
    clock.now += 9
    with served.peer() as other:
        served.publish(ended(1))
        clock.now += 10
        served.publish(ended(2))
        other.ask("/ping")
    assert [args[1] for _, args in heard(peer)] == [1]
    served.publish(ended(3))
    assert heard(peer) == []  # a message does not bring back a lease that is over


def test_a_lease_is_an_hour_at_most_and_can_be_given_back(served: Served, peer: Peer) -> None:
    assert peer.ask("/rvcd/notify", 1, 99999, "")[1][3] == 3600
    assert peer.ask("/rvcd/notify", 1)[1][3] == 60
    assert peer.ask("/rvcd/notify", 0)[1][3] == 0
    served.publish(ended(1))
    assert heard(peer) == []


def test_progress_comes_ten_times_a_second_and_the_latest_is_never_lost(
    served: Served, peer: Peer, clock: FakeClock
) -> None:
    subscribed(peer)

    def progress(fraction: float) -> None:
        served.publish(Progressed(make_job(1, state=JobState.RUNNING, fraction=fraction), -1.0))

    def fractions() -> list[float]:
        served.tick()
        return [args[2] for _, args in heard(peer)]

    progress(0.0)
    progress(0.25)
    progress(0.5)
    assert fractions() == [0.0]
    clock.now += 0.11
    assert fractions() == [0.5]
    clock.now += 1.9
    assert fractions() == []
    clock.now += 0.2
    assert fractions() == [0.5]  # a sign of life
    progress(0.75)
    served.publish(ended(1))
    clock.now += 3
    served.tick()
    assert [address for address, _ in heard(peer)] == ["/rvcd/job/done"]


def test_heartbeats_go_to_subscribers(served: Served, peer: Peer, clock: FakeClock) -> None:
    with served.peer() as stranger:
        stranger.ask("/ping")
        subscribed(peer)
        clock.now += 5
        served.tick()
        served.tick()
        assert peer.heard() == [("/rvcd/heartbeat", [1, 0, 0, 77])]
        assert stranger.heard() == []


def test_endings_are_resent_until_they_are_acknowledged(served: Served, peer: Peer, clock: FakeClock) -> None:
    peer.ask("/rvcd/hello", "x", 1, 0, "capabilities", "ack")
    subscribed(peer)
    served.publish(Queued(make_job(1), 0), ended(1), ended(2))

    def resent(seconds: float) -> list[Any]:
        clock.now += seconds
        served.tick()
        return [args[:2] for _, args in heard(peer)]

    assert resent(0.2) == [[1, 1], [2, 1], [3, 2]]
    assert resent(0.1) == [[2, 1], [3, 2]]
    peer.send("/rvcd/ack", 2)
    assert resent(0.5) == []
    assert resent(0.3) == [[3, 2]]
    assert resent(1.8) == []
    assert resent(0.2) == [[3, 2]]
    assert resent(60) == []


def test_the_string_form_holds_everything_in_one_line(served: Served, peer: Peer, clock: FakeClock) -> None:
    subscribed(peer, "event")
    job = make_job(1, JobRequest(Path("/music/ä =\n%.wav"), voice="Ana"))
    served.publish(Queued(job, 0), Progressed(make_job(1, fraction=0.3, stage="pitch"), 2.5), ended(1))
    served.publish(ModelState("Ana B", "warm"))
    clock.now += 5
    served.tick()
    messages = [peer.receive() for _ in range(5)]
    assert {(address, tags) for address, _, tags in messages} == {("/rvcd/event", "s")}
    lines = [args[0] for _, args, _ in messages]
    assert lines == [
        "v=1 seq=1 job=1 ev=queued path=/music/%C3%A4%20%3D%0A%25.wav position=0",
        "v=1 seq=2 job=1 ev=progress f=0.3 stage=pitch eta=2.5",
        "v=1 seq=3 job=1 ev=done f=1.0 path=/music/a%20b.wav backup= elapsed=3.5",
        "v=1 seq=4 ev=model model=Ana%20B state=warm",
        "v=1 seq=5 ev=heartbeat queued=0 running=0 uptime=77",
    ]
    assert unquote(lines[0].split("path=")[1].split()[0]) == "/music/ä =\n%.wav"


def test_the_string_form_can_be_a_capability(served: Served, peer: Peer) -> None:
    peer.ask("/rvcd/hello", "x", 1, 0, "capabilities", "string-events, ack")
    subscribed(peer, "jobs")
    served.publish(ended(1))
    assert peer.receive()[0] == "/rvcd/event"


@pytest.mark.parametrize("topics", ["", "event"])
def test_no_path_is_too_long_or_too_odd_to_tell(served: Served, peer: Peer, topics: str) -> None:
    subscribed(peer, topics)
    long = Path("/" + "ä" * 4000)
    served.publish(ended(1, result=long, backup=long), ended(2, result=Path("/odd\udcff.wav")))
    first, second = peer.receive(), peer.receive()
    if topics:
        assert first[1] == ["v=1 seq=1 job=1 ev=done f=1.0 elapsed=3.5"]
        assert "path=/odd%3F.wav" in second[1][0]
    else:
        assert first[1][2] == str(long)[: len(first[1][2])]
        assert second[1][2] == "/odd?.wav"


def test_job_repeats_the_latest_event(served: Served, peer: Peer) -> None:
    served.daemon.all_jobs = {1: make_job(1, state=JobState.RUNNING), 2: ended(2).job}
    served.publish(Started(served.daemon.all_jobs[1], "gpu"))
    assert peer.ask("/rvcd/job", "r", 1) == ("/rvcd/job/started", [1, 1, "/music/1.wav", "Ana", "gpu"])
    assert peer.ask("/rvcd/job", "r", 2) == ("/rvcd/job/done", [2, 2, "/music/a b.wav", "", 3.5])
    assert peer.ask("/rvcd/job", "r", 3)[1] == ["/rvcd/job", "r", "not_found", "There is no job 3."]


def test_one_client_dies_and_the_other_goes_on(served: Served, peer: Peer, clock: FakeClock) -> None:
    command = [sys.executable, "-m", "tests.support.osc_peer", str(served.port)]
    doomed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert doomed.stdout is not None
    assert doomed.stdout.readline().strip().isdecimal()
    subscribed(peer)
    assert len(served.do(served.server._clients.subscribers)) == 2
    doomed.kill()
    doomed.wait()
    doomed.stdout.close()
    for job_id in range(50):
        served.publish(ended(job_id))
        assert peer.receive()[1][:2] == [job_id + 1, job_id]
    clock.now += 59
    peer.ask("/ping")
    clock.now += 2
    assert len(served.do(served.server._clients.subscribers)) == 1
    peer.send("/rvcd/status")
    assert [address for address, _ in heard(peer)] == ["/rvcd/status.reply"]


def test_publishing_what_cannot_be_told_raises_nothing(served: Served, peer: Peer) -> None:
    subscribed(peer)
    served.publish(ended(2**31), ended(7))
    assert peer.receive()[1][1] == 7


def test_clients_and_sources_are_bounded_and_leases_outlive_strangers(clock: FakeClock) -> None:
    from rvcd.osc.clients import MAX_CLIENTS, MAX_SOURCES, TOPICS, Clients, Endpoint

    clients = Clients(lambda endpoint, packet: None, clock)
    keeper = clients.source(Endpoint("udp", "127.0.0.1", 1)).client
    keeper.subscribe(3600, TOPICS, lines=False, now=clock.now)
    for port in range(2, 3 * MAX_SOURCES):
        clock.now += 0.001
        clients.source(Endpoint("udp", "127.0.0.1", port))
    assert clients.subscribers() == [keeper]
    assert len(clients._clients) == MAX_CLIENTS
    assert len(clients._sources) == MAX_SOURCES


def test_retries_are_remembered_for_ten_minutes(clock: FakeClock) -> None:
    from rvcd.osc.retries import MAX_REMEMBERED, Retries

    retries = Retries(clock)
    retries.begin(("me", "r1"))
    clock.now += 599
    assert retries.recall(("me", "r1")) == []
    clock.now += 2
    assert retries.recall(("me", "r1")) is None
    for index in range(2 * MAX_REMEMBERED):
        assert retries.recall(("me", str(index))) is None
        retries.begin(("me", str(index)))
    assert len(retries._requests) <= MAX_REMEMBERED
