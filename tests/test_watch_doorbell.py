"""The doorbell with the system's own events."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rvcd.watch.doorbell import Doorbell
from rvcd.watch.scanner import Scanner


class Porch:
    """A doorbell and what it rang for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.touched: list[Path] = []
        self.closed: list[Path] = []
        self.bell = Doorbell(root, self.touched.append, self.closed.append)

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, f"rang for {self.touched} and {self.closed} only"
            threading.Event().wait(0.01)

    def write(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"take")
        return path


@pytest.fixture
def porch(tmp_path: Path) -> Iterator[Porch]:
    porch = Porch(tmp_path)
    assert porch.bell.arm()
    yield porch
    porch.bell.disarm()


def test_it_rings_for_stems_with_their_names_and_their_closing(porch: Porch) -> None:
    lead = porch.write("Don't 🎤\n.wav")
    porch.wait(lambda: lead in porch.closed)
    assert lead in porch.touched


def test_it_rings_in_folders_that_came_later(porch: Porch) -> None:
    (porch.root / "Alto").mkdir()
    porch.wait(lambda: porch.root / "Alto" in porch.touched)
    lead = porch.write("Alto/lead.wav")
    porch.wait(lambda: lead in porch.touched)


def test_it_rings_for_both_ends_of_a_rename_and_for_a_deletion(porch: Porch) -> None:
    draft = porch.write("lead.wav")
    porch.wait(lambda: draft in porch.closed)
    final = draft.rename(porch.root / "final.wav")
    porch.wait(lambda: final in porch.touched)
    porch.touched.clear()
    final.unlink()
    porch.wait(lambda: final in porch.touched)


def test_our_own_looks_and_work_do_not_ring(porch: Porch) -> None:
    lead = porch.write("lead.wav")
    porch.wait(lambda: lead in porch.closed)
    porch.touched.clear()
    porch.closed.clear()
    Scanner(porch.root).scan()
    lead.read_bytes()
    for name in (".rvcd/stage/lead.wav", "notes.txt", "lead.wav.reapeaks", ".lead.wav"):
        porch.write(name)
    last = porch.write("last.wav")  # rings after all that came before it
    porch.wait(lambda: last in porch.closed)
    assert {*porch.touched, *porch.closed} == {last}


def test_a_deleted_root_ends_it_and_it_can_be_armed_again(porch: Porch) -> None:
    porch.root.rmdir()
    porch.wait(lambda: not porch.bell.is_alive())
    assert not porch.bell.arm()
    porch.root.mkdir()
    assert porch.bell.arm()
    assert porch.bell.is_alive()
    lead = porch.write("lead.wav")
    porch.wait(lambda: lead in porch.touched)


def test_a_thread_of_the_observer_that_died_is_noticed(porch: Porch) -> None:
    for thread in ("observer", "emitter", "reader"):
        assert porch.bell.arm()
        observer = porch.bell._observer
        assert observer
        (emitter,) = observer.emitters
        dying = {"observer": observer, "emitter": emitter, "reader": getattr(observer, "_inotify_fd", emitter)}[thread]
        dying.stop()
        porch.wait(lambda: not porch.bell.is_alive())


def test_folders_made_one_inside_the_other_do_no_harm(porch: Porch) -> None:
    for number in range(50):
        deep = porch.write(f"{number}/a/b/c/lead.wav")
    porch.wait(lambda: deep.parent.parent in porch.touched or deep in porch.touched)
    assert porch.bell.is_alive()


def test_disarmed_it_is_not_alive_and_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    bell = Doorbell(tmp_path, lambda path: None, lambda path: None)
    assert not bell.is_alive()
    assert bell.arm()
    bell.disarm()
    assert not bell.is_alive()
    assert threading.active_count() == before
