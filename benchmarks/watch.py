"""What watching a hot folder costs: `python -m benchmarks.watch [--stems 10000] [--seconds 60]`.

Prints the processor share of a quiet watch over that many stems, the time of one look at all of them, and
the time from a bounce's closing to its being ready, beyond the settle time.
"""

import argparse
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rvcd.containers import is_complete, read_layout
from rvcd.watch import Holds, HotFolder, Ledger, Ready, gate
from rvcd.watch.scanner import Scanner
from tests.support import slow_writer

STEMS_PER_FOLDER = 500


class Watch:
    """A hot folder that is stepped when due or rung, as the daemon does."""

    def __init__(self, root: Path, state: Path) -> None:
        self.wake = threading.Event()
        self.ledger = Ledger(state)
        self.folder = HotFolder(
            root,
            self.ledger,
            Holds(),
            lambda path, size: is_complete(read_layout(path), size),
            wake=self.wake.set,
        )

    def run(self, seconds: float) -> Iterator[Ready]:
        """Step for that long."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            self.wake.clear()
            if (due := self.folder.next_wakeup()) > now:
                self.wake.wait(min(due, end) - now)
                continue
            for report in self.folder.step(now):
                assert isinstance(report, Ready), report
                yield report


def fill(root: Path, stems: int) -> None:
    for number in range(stems):
        path = root / f"song {number // STEMS_PER_FOLDER}" / f"take {number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(slow_writer.header(2, 38) + b"\0\0")


def quiet_share(watch: Watch, seconds: float) -> float:
    """Share of one core, all threads counted."""
    started = time.process_time()
    assert list(watch.run(seconds)) == []
    return (time.process_time() - started) / seconds


def latency_seconds(watch: Watch, root: Path, number: int, *, moved_in: bool) -> float:
    """From the end of a bounce to its being ready: written in place, or moved in, which no event calls closed."""
    path = root / f"bounce {number} {moved_in}.wav"
    draft = root.parent / "draft.wav" if moved_in else path
    draft.write_bytes(slow_writer.finished(10))
    if moved_in:
        draft.rename(path)
    ended = time.monotonic()
    for ready in watch.run(60):
        assert ready.path == path
        watch.folder.take(ready)
        return time.monotonic() - ended
    raise AssertionError("never ready")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stems", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    print(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve() / "hot"
        fill(root, arguments.stems)
        scanner = Scanner(root)
        scanner.scan()
        looks = [scanner.scan().cpu_seconds for _ in range(5)]
        print(f"one look at {arguments.stems} stems: {1000 * statistics.median(looks):.1f} ms")
        watch = Watch(root, Path(name) / "ledger.sqlite3")
        started = time.monotonic()
        watch.folder.step(started)
        print(f"first step, all offered: {1000 * (time.monotonic() - started):.0f} ms")
        share = quiet_share(watch, arguments.seconds)
        print(f"quiet watch for {arguments.seconds:.0f} s: {100 * share:.3f} % of one core")
        for moved_in, way in ((False, "closed"), (True, "moved in")):
            waits = [latency_seconds(watch, root, number, moved_in=moved_in) for number in range(5)]
            print(
                f"bounce {way} -> ready: median {statistics.median(waits):.2f} s, worst {max(waits):.2f} s "
                f"(settle time {gate.LOCAL_SETTLE_SECONDS:.1f} s)"
            )
        watch.folder.close()
        watch.ledger.close()


if __name__ == "__main__":
    main()
