"""A second implementation: `oscsend` and `oscdump` of liblo, as processes."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from rvcd.jobs import Finished, JobRequest, JobState, Progressed
from tests.support.osc_peer import Served, make_job, serving

pytestmark = pytest.mark.peers


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as served:
        yield served


def tool(name: str) -> str:
    path = shutil.which(name)
    assert path, f"{name} is missing; install the package liblo-tools (Debian) or liblo (Homebrew)."
    return path


def oscsend(port: int, *args: str) -> None:
    subprocess.run([tool("oscsend"), "127.0.0.1", str(port), *args], check=True, timeout=10)


@contextmanager
def oscdump() -> Iterator[tuple[int, Iterator[str]]]:
    """A port on which oscdump listens, and the lines that it prints, without the time tags."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dump = subprocess.Popen([tool("oscdump"), "-L", str(port)], stdout=subprocess.PIPE, text=True)
    assert dump.stdout is not None
    try:
        wait_until_taken(port)
        yield port, (line.split(" ", 1)[1].strip() for line in dump.stdout)
    finally:
        dump.kill()
        dump.wait()
        dump.stdout.close()


def wait_until_taken(port: int) -> None:
    """Knock until nobody refuses: the kernel tells a connected socket while no one listens."""
    deadline = time.monotonic() + 20
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as knocker:
        knocker.connect(("127.0.0.1", port))
        knocker.settimeout(0.05)
        while time.monotonic() < deadline:
            try:
                knocker.send(b"")
                knocker.recv(1)
            except ConnectionRefusedError:
                continue
            except TimeoutError:
                return
    raise AssertionError("oscdump does not listen")


def test_oscdump_hears_what_oscsend_asked_for(served: Served) -> None:
    """oscsend leaves from a new port each time and hears nothing; oscdump listens for it."""
    with oscdump() as (port, lines):
        oscsend(served.port, "/rvcd/hello", "sii", "surface", "1", str(port))
        reply = next(lines)
        assert reply.startswith('/rvcd/hello.reply siissi "0.3.0" 1 ')
        client = reply.split()[4]
        oscsend(served.port, "/rvcd/notify", "iisi", "1", "60", "jobs", str(port))
        assert next(lines) == f'/rvcd/done ssii "/rvcd/notify" "" {client} 60'
        job = make_job(7, JobRequest(Path("/music/Gesang ä.wav")), state=JobState.RUNNING, fraction=0.5, stage="voice")
        served.publish(Progressed(job, 2.5))
        served.publish(Finished(replace(job, state=JobState.COMMITTED, started=1.0, finished=1.5)))
        assert next(lines) == '/rvcd/job/progress iifsf 1 7 0.500000 "voice" 2.500000'
        assert next(lines) == '/rvcd/job/done iissf 2 7 "/music/Gesang ä.wav" "" 0.500000'


def test_the_string_form_is_one_string(served: Served) -> None:
    with oscdump() as (port, lines):
        oscsend(served.port, "/rvcd/notify", "iisi", "1", "60", "event", str(port))
        assert next(lines).startswith("/rvcd/done ssii")
        served.publish(Finished(make_job(7, state=JobState.COMMITTED)))
        assert next(lines) == '/rvcd/event s "v=1 seq=1 job=7 ev=done f=1.0 path=/music/7.wav backup= elapsed=0.0"'


def test_every_numeric_type_of_oscsend_is_taken(served: Served) -> None:
    with served.peer() as peer:
        for number in ("i 3", "h 3", "f 3", "d 3", "T"):
            tag, *value = number.split()
            oscsend(served.port, "/rvcd/convert", f"sss{tag}", "", f"/music/ä {tag}.wav", "priority", *value)
        peer.ask("/ping")
    requests = [request for _, request in served.daemon.calls]
    assert [str(request.path) for request in requests] == [f"/music/ä {tag}.wav" for tag in "ihfdT"]
    assert [request.priority for request in requests] == [3, 3, 3, 3, 1]
