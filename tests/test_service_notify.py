import os
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rvcd.service.notify import notify, watchdog_seconds


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


@pytest.mark.parametrize("lines", [("READY=1",), ("WATCHDOG=1", "STATUS=2 jobs wait: Gesang ä"), ("STOPPING=1",)])
def test_the_manager_hears_it(manager: socket.socket, lines: tuple[str, ...]) -> None:
    assert notify(*lines)
    assert manager.recv(1000).decode() == "\n".join(lines)


if sys.platform == "linux":

    def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
        name = f"rvcd-test-{secrets.token_hex(8)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
            listening.bind(f"\0{name}")
            listening.settimeout(10)
            monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
            assert notify("READY=1")
            assert listening.recv(1000) == b"READY=1"


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1", "/nowhere/notify"])
def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not notify("READY=1")


def test_a_manager_that_does_not_listen_holds_nothing_up(manager: socket.socket) -> None:
    while notify("WATCHDOG=1", "x" * 10_000):
        pass
    assert not notify("WATCHDOG=1")


def test_the_watchdog_of_this_process_alone_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_seconds() == 0
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    assert watchdog_seconds() == 60
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_seconds() == 60
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_seconds() == 0
