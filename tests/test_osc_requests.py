"""Every request over real UDP, asked by python-osc."""

import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rvcd.errors import Code, RvcdError
from rvcd.jobs import JobRequest, JobState
from rvcd.osc.control import FolderState, ModelState, ServerState
from rvcd.osc.messages import SENT
from rvcd.osc.methods import METHODS
from rvcd.osc.requests import Requests
from rvcd.osc.server import OscServer
from tests.support.osc_peer import FakeDaemon, Peer, Served, make_job, message, serving


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def peer(served: Served) -> Iterator[Peer]:
    with served.peer() as peer:
        yield peer


def test_hello_introduces_both(served: Served, peer: Peer) -> None:
    address, args = peer.ask("/rvcd/hello", "REAPER", 1, 0)
    assert address == "/rvcd/hello.reply"
    assert args == ["0.3.0", 1, 1, served.server.instance, "ack,string-events", 60]


@pytest.mark.parametrize("address", ["/rvcd/ping", "/ping"])
def test_ping_echoes(peer: Peer, address: str) -> None:
    peer.send(address, 7, 0.5, "ä", 2**40, True, None, types="ifshTN")
    assert peer.receive() == ("/rvcd/pong", [7, 0.5, "ä", str(2**40), 1, ""], "ifssis")


def test_version_and_status_keep_their_order_of_arguments(peer: Peer) -> None:
    peer.send("/rvcd/version")
    assert peer.receive() == ("/rvcd/version.reply", ["0.3.0", 1, "test", "mlx cpu", "abc"], "sisss")
    peer.send("/rvcd/status", 1.0)  # as a surface sends a button
    args = ["idle", 0, 0, 3, 4, 1, "Ana", 77, 61.5, "no default voice"]
    assert peer.receive() == ("/rvcd/status.reply", args, "siiiiisifs")


def test_convert_becomes_a_request(served: Served, peer: Peer) -> None:
    options = ["model", "Ana", "pitch", -3, "f0", "yin", "index_rate", 0.5, "protect", 0, "loudness", 1.0]
    options += ["speaker", 2.0, "seed", 2**40, "stereo", "per-channel", "priority", 5.0, "backup", False, "dry_run", 1]
    options += ["out", "/music/out.wav", "x-colour", "red"]
    assert peer.ask("/rvcd/convert", "r1", "/music/Don't ä.wav", *options) == ("/rvcd/accepted", ["r1", 1, 0])
    ((_, request),) = served.daemon.calls
    settings = {"semitones": -3.0, "f0_method": "yin", "index_rate": 0.5, "protect": 0.0, "loudness": 1.0}
    assert request == JobRequest(
        path=Path("/music/Don't ä.wav"),
        voice="Ana",
        settings=settings | {"speaker_id": 2, "seed": 2**40, "stereo": "per-channel"},
        mode="out",
        out=Path("/music/out.wav"),
        priority=5,
        backup=False,
        dry_run=True,
        client=f"udp:127.0.0.1:{peer.port}",
        req="r1",
    )


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), "bad_request", "req, path"),
        (("r",), "bad_request", "not 1 arguments"),
        (("r", 5), "bad_request", "path must be a string, not 5"),
        ((5, "/a.wav"), "bad_request", "req must be a string"),
        (("r" * 65, "/a.wav"), "bad_request", "64 bytes"),
        (("r", "a.wav"), "bad_request", "'a.wav'"),
        (("r", "/a.wav", "pitch"), "bad_request", "'pitch', has no value"),
        (("r", "/a.wav", "pich", 1), "bad_request", "'pich'"),
        (("r", "/a.wav", 3, 1), "bad_request", "3 is not an option"),
        (("r", "/a.wav", "pitch", "high"), "bad_request", "'high'"),
        (("r", "/a.wav", "pitch", float("nan")), "bad_request", "nan"),
        (("r", "/a.wav", "pitch", 99), "bad_setting", "99"),
        (("r", "/a.wav", "speaker", 1.5), "bad_request", "1.5"),
        (("r", "/a.wav", "f0", "crepe"), "bad_setting", "crepe"),
        (("r", "/a.wav", "mode", "overwrite"), "bad_request", "'overwrite'"),
        (("r", "/a.wav", "mode", "out"), "bad_request", "out is None"),
        (("r", "/a.wav", "mode", "sibling", "out", "/b.wav"), "bad_request", "/b.wav"),
        (("r", "/a.wav", "out", "b.wav"), "bad_request", "'b.wav'"),
    ],
)
def test_what_convert_cannot_do_is_said(
    served: Served, peer: Peer, args: tuple[Any, ...], code: str, says: str
) -> None:
    address, (what, req, found, sentence) = peer.ask("/rvcd/convert", *args)
    assert (address, what, found) == ("/rvcd/fail", "/rvcd/convert", code)
    assert req == (args[0] if args and isinstance(args[0], str) else "")
    assert says in sentence
    assert served.daemon.calls == []


def test_a_refusal_of_the_daemon_is_passed_on(served: Served, peer: Peer) -> None:
    served.daemon.error = RvcdError(Code.NOT_ALLOWED, "/etc is outside.")
    answer = peer.ask("/rvcd/convert", "r1", "/etc/passwd")
    assert answer == ("/rvcd/fail", ["/rvcd/convert", "r1", "not_allowed", "/etc is outside."])


def test_a_broken_handler_is_told_and_logged_once(served: Served, peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    served.daemon.error = KeyError("oops")
    with caplog.at_level(logging.WARNING):
        address, args = peer.ask("/rvcd/convert", "r1", "/a.wav")
    assert (address, args[:3]) == ("/rvcd/fail", ["/rvcd/convert", "r1", "internal"])
    assert [record.getMessage() for record in caplog.records] == ["/rvcd/convert broke"]
    assert peer.ask("/ping") == ("/rvcd/pong", [])


def test_the_same_request_again_gets_the_same_answer_and_no_second_job(served: Served, peer: Peer) -> None:
    first = peer.ask("/rvcd/convert", "r1", "/a.wav")
    assert peer.ask("/rvcd/convert", "r1", "/a.wav") == first
    assert len(served.daemon.all_jobs) == 1
    with served.peer() as other:
        assert other.ask("/rvcd/convert", "r1", "/a.wav") == ("/rvcd/accepted", ["r1", 2, 1])
    assert peer.ask("/rvcd/convert", "", "/a.wav") != peer.ask("/rvcd/convert", "", "/a.wav")


def test_a_retry_while_the_first_is_undecided_makes_no_second_job(served: Served, peer: Peer) -> None:
    served.daemon.slow_submit = True
    for _ in range(3):
        peer.send("/rvcd/convert", "r1", "/a.wav")
    with served.peer() as other:
        other.ask("/ping")
    served.do(served.daemon.gate.set)
    assert [args for _, args in peer.heard()] == [["r1", 1, 0]] * 3
    assert len(served.daemon.all_jobs) == 1


def test_two_sources_of_one_client_ask_once(served: Served, peer: Peer) -> None:
    served.daemon.slow_submit = True
    with served.peer() as one, served.peer() as two:
        for source in (one, two):
            source.send("/rvcd/hello", "oscsend", 1, peer.port)
            source.send("/rvcd/convert", "r1", "/a.wav")
            assert peer.receive()[0] == "/rvcd/hello.reply"
        served.do(served.daemon.gate.set)
        assert peer.receive()[:2] == ("/rvcd/accepted", ["r1", 1, 0])
    assert peer.heard() == []
    assert len(served.daemon.all_jobs) == 1


def test_answers_keep_the_order_of_requests_while_others_are_served(served: Served, peer: Peer) -> None:
    served.daemon.slow_submit = True
    peer.send("/rvcd/convert", "r1", "/a.wav")
    peer.send("/rvcd/cancel", "r2", 1)
    peer.send("/nonsense")
    peer.send("/rvcd/sync", "s")
    with served.peer() as other:
        assert other.ask("/rvcd/ping", 1) == ("/rvcd/pong", [1])
    assert served.daemon.calls == []
    served.do(served.daemon.gate.set)
    answers = [peer.receive()[:2] for _ in range(4)]
    assert [address for address, _ in answers] == ["/rvcd/accepted", "/rvcd/done", "/rvcd/fail", "/rvcd/synced"]
    assert answers[1][1] == ["/rvcd/cancel", "r2"]
    assert served.daemon.calls[1] == ("cancel", 1, f"udp:127.0.0.1:{peer.port}")


def test_a_flood_behind_a_slow_request_is_bounded(served: Served, peer: Peer) -> None:
    served.daemon.slow_submit = True
    peer.send("/rvcd/convert", "r1", "/a.wav")
    ping = message("/ping")
    bundle = b"#bundle\0" + struct.pack(">Q", 1) + 60 * (struct.pack(">i", len(ping)) + ping)
    for _ in range(5):
        peer.send_packet(bundle)
    address, args = peer.receive()[:2]
    assert (address, args[2]) == ("/rvcd/fail", "busy")
    served.do(served.daemon.gate.set)
    assert [peer.receive()[0] for _ in range(257)] == ["/rvcd/accepted"] + ["/rvcd/pong"] * 256


def test_slow_commands_are_accepted_at_once_and_sync_waits_for_them(served: Served, peer: Peer) -> None:
    peer.send("/rvcd/model/load", "r1", "Ana")
    peer.send("/rvcd/model/load", "r2", "Bob")
    peer.send("/rvcd/restore", "r3", 12)
    peer.send("/rvcd/restore", "r4", "/a.wav")
    peer.send("/rvcd/sync", "all")
    accepted = peer.heard()
    assert accepted == [("/rvcd/accepted", [req, job, 0]) for req, job in [("r1", 0), ("r2", 0), ("r3", 12), ("r4", 0)]]
    served.do(served.daemon.gate.set)
    ends = [peer.receive()[:2] for _ in range(5)]
    assert sorted(ends[:4]) == [
        ("/rvcd/done", ["/rvcd/model/load", "r1"]),
        ("/rvcd/done", ["/rvcd/restore", "r3"]),
        ("/rvcd/done", ["/rvcd/restore", "r4"]),
        ("/rvcd/fail", ["/rvcd/model/load", "r2", "unknown_voice", "There is no voice Bob."]),
    ]
    assert ends[4] == ("/rvcd/synced", ["all"])
    assert ("restore", Path("/a.wav")) in served.daemon.calls
    assert peer.ask("/rvcd/sync", "none") == ("/rvcd/synced", ["none"])


def test_a_slow_command_that_breaks_is_told(peer: Peer) -> None:
    assert peer.ask("/rvcd/model/unload", "r1", "Ana")[0] == "/rvcd/accepted"
    assert peer.receive()[1][:3] == ["/rvcd/model/unload", "r1", "internal"]


def test_only_so_many_slow_commands_are_accepted(peer: Peer) -> None:
    for index in range(65):
        peer.send("/rvcd/model/load", f"r{index}", "Ana")
    answers = peer.heard()
    assert [address for address, _ in answers] == ["/rvcd/accepted"] * 64 + ["/rvcd/fail"]
    assert answers[-1][1][2] == "busy"


def test_short_commands(served: Served, peer: Peer) -> None:
    assert peer.ask("/rvcd/cancel", "r1", -1.0) == ("/rvcd/done", ["/rvcd/cancel", "r1"])
    assert peer.ask("/rvcd/watch", "r2", "pause") == ("/rvcd/done", ["/rvcd/watch", "r2"])
    assert peer.ask("/rvcd/hold", "r3", "/a.wav", 30) == ("/rvcd/done", ["/rvcd/hold", "r3"])
    assert peer.ask("/rvcd/release", "r4", "/a.wav") == ("/rvcd/done", ["/rvcd/release", "r4"])
    assert peer.ask("/rvcd/watch", "r5", "sleep")[1][2] == "bad_request"
    me = f"udp:127.0.0.1:{peer.port}"
    path = Path("/a.wav")
    assert served.daemon.calls == [("cancel", None, me), ("watch", "pause"), ("hold", path, 30.0), ("release", path)]


def test_lists_end_with_their_count(served: Served, peer: Peer) -> None:
    running = {"state": JobState.RUNNING, "fraction": 0.5, "stage": "voice", "started": 1.0, "seconds_of_audio": 9.0}
    served.daemon.all_jobs = {
        1: make_job(1, state=JobState.FAILED, code="disk_full", started=2.0, finished=5.0),
        2: make_job(2, **running, finished=3.0),
    }
    peer.send("/rvcd/jobs", "q", "active", 10)
    info = ["q", 2, "running", "/music/2.wav", 0.5, "", "voice", -1.0, 2.0, 9.0, "Ana"]
    assert peer.receive() == ("/rvcd/job/info", info, "sissfssfffs")
    assert peer.receive()[:2] == ("/rvcd/jobs.end", ["q", 1])
    assert peer.ask("/rvcd/jobs", "q", "failed")[1][:6] == ["q", 1, "failed", "/music/1.wav", 0.0, "disk_full"]
    assert peer.receive()[:2] == ("/rvcd/jobs.end", ["q", 1])
    assert peer.ask("/rvcd/jobs", "q", "recent", 0) == ("/rvcd/jobs.end", ["q", 0])
    assert peer.ask("/rvcd/jobs", "q", "all")[1][2] == "bad_request"
    assert peer.ask("/rvcd/models", "m") == ("/rvcd/model/info", ["m", "Ana", "warm", 40000, 55.5])
    assert peer.receive()[:2] == ("/rvcd/models.end", ["m", 1])
    assert peer.ask("/rvcd/watch", "w", "list") == (
        "/rvcd/watch/info",
        ["w", "/music/in", "watching", 2, 1, "Ana"],
    )
    assert peer.receive()[:2] == ("/rvcd/watch.end", ["w", 1])


def test_methods_lists_the_table(peer: Peer) -> None:
    peer.send("/rvcd/methods", "m")
    rows = [peer.receive()[:2] for _ in METHODS]
    assert [args[:2] for _, args in rows] == [[method.address, method.signature] for method in METHODS]
    assert peer.receive()[:2] == ("/rvcd/methods.end", ["m", len(METHODS)])


def test_patterns_ask_and_never_command(served: Served, peer: Peer) -> None:
    peer.send("/rvcd/*")
    addresses = {address for address, _ in peer.heard()}
    assert addresses >= {"/rvcd/pong", "/rvcd/version.reply", "/rvcd/status.reply"}
    assert "/rvcd/fail" not in addresses  # /rvcd/job matches, but a question without its arguments is none
    peer.send("/rvcd/*", "r1", "/a.wav")
    peer.heard()
    assert peer.ask("/rvcd/{convert,cancel}", "r1", "/a.wav")[1][2] == "not_allowed"
    assert peer.ask("/rvcd/model/*", "r1", "Ana")[1][2] == "not_allowed"
    assert peer.ask("/live/*")[1][2] == "unknown_address"
    assert served.daemon.calls == []


def test_an_unknown_address_is_answered_but_an_answer_is_not(peer: Peer) -> None:
    assert peer.ask("/live/tempo", 120.0)[1][:3] == ["/live/tempo", "", "unknown_address"]
    for address in SENT:
        peer.send(address, "x")
    assert peer.heard() == []


@pytest.mark.parametrize(
    "packet",
    [
        b"#bundle\0" + struct.pack(">Qi", 1, -4),
        b"/rvcd/status\0\0\0\0,s\0\0\xff\xfe\0\0",
        b"/" + b"*a" * 9 + b"\0" * 1 + b",\0\0\0",
        b"\0" * 60_000,
        b"x",
    ],
)
def test_hostile_packets_are_answered_with_fail(peer: Peer, packet: bytes) -> None:
    peer.send_packet(packet)
    assert peer.receive()[0] == "/rvcd/fail"
    assert peer.ask("/rvcd/ping", 1) == ("/rvcd/pong", [1])


def test_a_bundle_for_later_is_done_now(peer: Peer) -> None:
    ping = message("/rvcd/ping", 1)
    peer.send_packet(b"#bundle\0" + struct.pack(">Q", 2**63) + struct.pack(">i", len(ping)) + ping)
    assert peer.receive()[:2] == ("/rvcd/pong", [1])


def test_every_row_of_the_table_has_its_handler_and_no_handler_is_left_over() -> None:
    handlers = {name for name in vars(Requests) if not name.startswith("_") and name != "check_authorized"}
    named = {m.address.removeprefix("/rvcd").removeprefix("/").replace("/", "_") for m in METHODS}
    assert named == handlers


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.address)
def test_every_method_takes_numbers_of_any_type_and_refuses_too_few(peer: Peer, method: Any) -> None:
    examples = {"s": "active", "i": 1.0, "f": 1, "*": 1.0}
    values = {"/rvcd/watch": ["r", "list"], "/rvcd/hold": ["r", "/a", 1], "/rvcd/release": ["r", "/a"]}
    args = values.get(method.address, [examples[kind] for kind in method.types])
    if method.address == "/rvcd/convert":
        args = ["r", "/a"]
    elif method.address in ("/rvcd/hello", "/rvcd/notify"):
        args = args[:1] if method.address == "/rvcd/hello" else [1.0, True, "jobs"]
    peer.send(method.address, *args)
    assert not any(args[2] == "bad_request" for address, args in peer.heard() if address == "/rvcd/fail")
    if len(method.types) > len(method.defaults):
        assert peer.ask(method.address)[1][2] == "bad_request"


def test_with_a_token_changes_want_it_from_the_same_source() -> None:
    with serving(token="secret ä") as served, served.peer() as peer, served.peer() as other:
        for method in METHODS:
            if method.needs_token:
                args = ["r", "/a.wav", 1.0][: len(method.types)]
                args = ["r", 1] if method.address == "/rvcd/cancel" else args
                assert peer.ask(method.address, *args)[1][2] == "unauthorized", method.address
        assert peer.ask("/rvcd/hello", "x", 1, 0, "token", "wrong")[1][2] == "unauthorized"
        assert peer.ask("/rvcd/status")[0] == "/rvcd/status.reply"
        assert served.daemon.calls == []
        assert peer.ask("/rvcd/hello", "x", 1, 0, "token", "secret ä")[1][4] == "ack,string-events,token"
        assert peer.ask("/rvcd/convert", "r2", "/a.wav")[0] == "/rvcd/accepted"
        other.send("/rvcd/hello", "thief", 1, peer.port)
        assert peer.receive()[0] == "/rvcd/hello.reply"
        other.send("/rvcd/cancel", "r3", 1)
        assert peer.receive()[1][2] == "unauthorized"


def test_answers_go_to_the_reply_port_of_each_source(served: Served, peer: Peer) -> None:
    with served.peer() as surface:
        peer.send("/rvcd/hello", "surface", 1, surface.port)
        assert surface.receive()[0] == "/rvcd/hello.reply"
        peer.send("/rvcd/status")
        assert surface.receive()[0] == "/rvcd/status.reply"
        with served.peer() as other:
            assert other.ask("/rvcd/status")[0] == "/rvcd/status.reply"
        peer.send("/rvcd/hello", "surface", 1, 0)
        assert peer.receive()[0] == "/rvcd/hello.reply"
    assert peer.ask("/rvcd/hello", "surface", 1, 70000)[1][2] == "bad_request"


def test_a_source_that_asks_too_much_is_told_once_a_second_and_others_are_served() -> None:
    clock_time = [0.0]
    with serving(clock=lambda: clock_time[0]) as served, served.peer() as greedy, served.peer() as other:
        for _ in range(1000):
            assert greedy.ask("/ping")[0] == "/rvcd/pong"
        assert greedy.ask("/ping")[1][2] == "busy"
        greedy.send("/ping")
        assert other.ask("/ping")[0] == "/rvcd/pong"
        clock_time[0] = 0.5
        assert greedy.ask("/ping", "again") == ("/rvcd/pong", ["again"])


def test_events_of_all_kinds_reach_publish(served: Served, peer: Peer) -> None:
    peer.ask("/rvcd/notify", 1, 60, "models,watch,server")
    served.publish(ModelState("Ana", "loading"), FolderState(Path("/in"), "missing"), ServerState("draining"))
    assert peer.heard() == [
        ("/rvcd/model/state", [1, "Ana", "loading"]),
        ("/rvcd/watch/state", [2, "/in", "missing"]),
        ("/rvcd/server", [3, served.server.instance, "draining"]),
    ]


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "192.168.1.2", "::", ""])
def test_only_literal_loopback_addresses_are_listened_on(served: Served, host: str) -> None:
    with pytest.raises(RvcdError) as refusal:
        served.do_async(served.server.listen(host))
    assert refusal.value.code == "bad_configuration"
    assert repr(host) in refusal.value.sentence


def test_a_taken_port_says_that_rvcd_may_run_already(served: Served) -> None:
    second = OscServer(FakeDaemon())
    for listen, port in ((second.listen, served.port), (second.listen_tcp, served.tcp_port)):
        with pytest.raises(RvcdError) as refusal:
            served.do_async(listen("127.0.0.1", port))
        assert refusal.value.code == "already_running"
        assert str(port) in refusal.value.sentence


def test_both_loopback_addresses_can_be_served(served: Served, peer: Peer) -> None:
    host, port = served.do_async(served.server.listen("::1"))
    sixth = Peer(port, "::1")
    assert sixth.ask("/rvcd/ping", 6) == ("/rvcd/pong", [6])
    assert peer.ask("/rvcd/ping", 4) == ("/rvcd/pong", [4])
    sixth.close()
    assert host == "::1"
