"""What the daemon costs and how fast it answers, on this machine in one run.

    python benchmarks/control.py [--output benchmarks/results] [--tiny]

A daemon is started as a user would start it, in a temporary home, over a hot folder with 10 000 stems; everything is
measured from outside, over UDP and from the process table. The models are of full size with random weights, so that
the engine loads the processor as it does in earnest; `--tiny` takes small ones, to try the script itself.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import soundfile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.watch import fill  # noqa: E402, the repository is not installed
from rvcd.watch.gate import LOCAL_SETTLE_SECONDS  # noqa: E402
from tests.support import seeded  # noqa: E402
from tests.support.osc_peer import Peer  # noqa: E402

STEMS, IDLE_SECONDS = 10_000, 30.0
REQUESTS, SECONDS_BETWEEN_REQUESTS = 60, 0.05
STATUS_TURNS, BOUNCES = 15, 4
RATE = 44100
DEADLINE_SECONDS = 120.0
PROC = Path("/proc")


class Daemon:
    """`rvcd run` on a free port, and a client that subscribed to its jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self._log = (folder / "daemon.log").open("w")
        started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rvcd", "run", "--port", "0"], env=self.environment, cwd=ROOT, stderr=self._log
        )
        note = self.home / "daemon.json"
        wait_for(lambda: note.exists() or self._process.poll() is not None)
        self.peer = Peer(json.loads(note.read_text())["port"])
        self.peer.ask("/rvcd/version")
        self.answered_seconds = time.monotonic() - started
        wait_for(lambda: self.status()[0] == "idle")
        self.warm_seconds = time.monotonic() - started
        self.peer.ask("/rvcd/notify", 1, 3600, "jobs", types="iis")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "RVCD_HOME": str(self.home), "PYTHONPATH": str(ROOT)}

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def engine_pid(self) -> int:
        table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [tuple(map(int, line.split())) for line in table.splitlines()]
        return next(pid for pid, parent in pairs if parent == self.pid)

    def status(self) -> list[Any]:
        return self.ask("/rvcd/status", "/rvcd/status.reply")

    def ask(self, address: str, reply: str, *args: Any, types: str = "") -> list[Any]:
        """Send, and read until the reply; events in between are dropped."""
        self.peer.send(address, *args, types=types)
        return self.hear(reply)

    def hear(self, wanted: str) -> list[Any]:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            address, args, _ = self.peer.receive()
            if address == wanted:
                return args
            if address in ("/rvcd/fail", "/rvcd/job/failed"):
                raise SystemExit(f"{address}: {args}")
        raise SystemExit(f"no {wanted} within {DEADLINE_SECONDS:.0f} s")

    def convert(self, path: Path) -> int:
        return self.ask("/rvcd/convert", "/rvcd/accepted", path.name, str(path), types="ss")[1]

    def end(self) -> None:
        self.peer.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._log.close()


def wait_for(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_true():
        if time.monotonic() > deadline:
            raise SystemExit("the daemon did not become ready")
        time.sleep(0.01)


def prepare(folder: Path, *, tiny: bool) -> None:
    """Models in the library, stems in the hot folder, stems elsewhere, and a configuration."""
    models, hot, session = folder / "models", folder / "hot", folder / "session"
    for each in (models, hot, session):
        each.mkdir()
    seeded.voice(models / "Anna.pth", seed=3, tiny=tiny)
    seeded.content_encoder(models / "content", seed=1, tiny=tiny)
    seeded.pitch_model(models / "rmvpe.pt", seed=2, tiny=tiny)
    environment = {**os.environ, "RVCD_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rvcd", "import", str(models)]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(models)
    (folder / "home" / "rvcd.toml").write_text(
        f'[defaults]\nvoice = "Anna"\n[osc]\nroots = ["{session}"]\n[[folder]]\npath = "{hot}"\n'
    )
    fill(hot, STEMS)
    soundfile.write(folder / "bounce.wav", seeded.sung_stem(1.0, RATE, seed=5), RATE)
    for number in range(REQUESTS):
        shutil.copy(folder / "bounce.wav", session / f"take {number}.wav")
    soundfile.write(session / "long.wav", seeded.sung_stem(600.0 if tiny else 120.0, RATE, seed=6), RATE)


def idle_share(daemon: Daemon) -> float:
    """Processor share of both processes, of one core."""
    pids = (daemon.pid, daemon.engine_pid)
    before = sum(map(cpu_seconds, pids))
    time.sleep(IDLE_SECONDS)
    return (sum(map(cpu_seconds, pids)) - before) / IDLE_SECONDS


def status_turns(daemon: Daemon) -> dict[str, list[float]]:
    """Whole processes, taking turns; the first turn is not counted."""
    commands = {"status": ["-m", "rvcd", "status"], "pass": ["-c", "pass"]}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(STATUS_TURNS + 1):
        for name, arguments in commands.items():
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, *arguments], check=True, env=daemon.environment, cwd=ROOT, stdout=subprocess.DEVNULL
            )
            seconds[name].append(time.perf_counter() - started)
    return {name: turns[1:] for name, turns in seconds.items()}


def bounce_seconds(daemon: Daemon, number: int, *, moved_in: bool) -> float:
    """From a bounce's closing to the start of its job: written in place, or moved in, which nothing calls closed."""
    path = daemon.folder / "hot" / f"bounce {number} {moved_in}.wav"
    content = (daemon.folder / "bounce.wav").read_bytes()
    draft = daemon.folder / "draft.wav" if moved_in else path
    draft.write_bytes(content)
    draft.rename(path)
    closed = time.monotonic()
    daemon.hear("/rvcd/job/started")
    seconds = time.monotonic() - closed
    daemon.hear("/rvcd/job/done")
    return seconds


def accepted_seconds(daemon: Daemon) -> list[float]:
    """From a request to its acceptance, while a long conversion runs."""
    long = daemon.convert(daemon.folder / "session" / "long.wav")
    daemon.hear("/rvcd/job/progress")
    seconds = []
    for number in range(REQUESTS):
        started = time.perf_counter()
        daemon.convert(daemon.folder / "session" / f"take {number}.wav")
        seconds.append(time.perf_counter() - started)
        time.sleep(SECONDS_BETWEEN_REQUESTS)
    assert daemon.ask("/rvcd/job", "/rvcd/job/progress", "", long, types="si")[1] == long, "the long conversion ended"
    return seconds


def recovery(daemon: Daemon) -> tuple[float, float]:
    """Kill the engine amid a conversion: seconds to the next start of a job, and the longest wait for a pong."""
    os.kill(daemon.engine_pid, signal.SIGKILL)
    killed, slowest = time.monotonic(), 0.0
    pinger = Peer(daemon.peer.server[1])
    daemon.peer.socket.setblocking(False)
    while True:
        asked = time.monotonic()
        pinger.ask("/rvcd/ping")
        slowest = max(slowest, time.monotonic() - asked)
        try:
            while daemon.peer.receive()[0] != "/rvcd/job/started":
                pass
            break
        except BlockingIOError:
            assert asked - killed < DEADLINE_SECONDS, "no job was started after the engine was killed"
            time.sleep(0.02)
    pinger.close()
    daemon.peer.socket.settimeout(10)
    return time.monotonic() - killed, slowest


def cpu_seconds(pid: int) -> float:
    if PROC.is_dir():
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    minutes, seconds = _ps(pid, "time").split(":")  # of macOS, which has no hours
    return 60 * int(minutes) + float(seconds)


def memory_bytes(pid: int) -> int:
    """Peak where the system tells it (Linux), else of now."""
    if PROC.is_dir():
        lines = (PROC / str(pid) / "status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 1024 * int(_ps(pid, "rss"))


def _ps(pid: int, field: str) -> str:
    command = ["ps", "-o", f"{field}=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def measure(folder: Path, *, tiny: bool) -> dict[str, Any]:
    prepare(folder, tiny=tiny)
    load_before = os.getloadavg()[0]
    daemon = Daemon(folder)
    try:
        time.sleep(2 * LOCAL_SETTLE_SECONDS)  # the first look at the folder
        results: dict[str, Any] = {
            "answered_seconds": daemon.answered_seconds,
            "warm_seconds": daemon.warm_seconds,
            "idle_share": idle_share(daemon),
            "status_seconds": status_turns(daemon),
            "bounce_seconds": {
                way: [bounce_seconds(daemon, number, moved_in=moved_in) for number in range(BOUNCES)]
                for way, moved_in in (("closed", False), ("moved in", True))
            },
            "accepted_seconds": accepted_seconds(daemon),
        }
        results["recovery_seconds"], results["slowest_pong_seconds"] = recovery(daemon)
        results["memory_bytes"] = memory_bytes(daemon.pid)
    finally:
        daemon.end()
    results["conditions"] = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "load": f"{load_before:.1f} runnable processes before the start (1 min average)",
        "python": platform.python_version(),
        "models": "tiny, random weights" if tiny else "full size (v2, 40 kHz, no index), random weights, float32",
        "hot folder": f"{STEMS} stems, offered and not converted; settle time {LOCAL_SETTLE_SECONDS:g} s",
    }
    return results


def rows(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, the figure, and what was to be reached."""
    status, plain = (statistics.median(results["status_seconds"][name]) for name in ("status", "pass"))
    accepted = results["accepted_seconds"]
    beyond = {way: [s - LOCAL_SETTLE_SECONDS for s in taken] for way, taken in results["bounce_seconds"].items()}
    return [
        ("start of the daemon to its first answer", f"{results['answered_seconds']:.2f} s", "5 s"),
        ("start of the daemon to a warm voice", f"{results['warm_seconds']:.1f} s", ""),
        (
            f"`convert` to `accepted` while a conversion runs, median of {REQUESTS} (worst)",
            f"{1000 * statistics.median(accepted):.1f} ms ({1000 * max(accepted):.1f} ms)",
            "20 ms",
        ),
        *(
            (
                f"bounce {way} to job started, beyond the settle time, median of {BOUNCES} (worst)",
                f"{statistics.median(seconds):+.2f} s ({max(seconds):+.2f} s)",
                "+0.30 s",
            )
            for way, seconds in beyond.items()
        ),
        (
            f"`rvcd status`, whole process, against `python -c pass`, medians of {STATUS_TURNS} alternate turns",
            f"{1000 * status:.0f} ms / {1000 * plain:.0f} ms = {status / plain:.1f}",
            "8",
        ),
        ("engine killed to the next start of a job", f"{results['recovery_seconds']:.1f} s", ""),
        ("longest wait for a pong meanwhile", f"{1000 * results['slowest_pong_seconds']:.0f} ms", "100 ms"),
        (
            f"supervisor and warm engine, idle for {IDLE_SECONDS:.0f} s, share of one core",
            f"{100 * results['idle_share']:.2f} %",
            "0.5 %",
        ),
        ("peak memory of the supervisor", f"{results['memory_bytes'] / 1e6:.0f} MB", "80 MB"),
    ]


def to_markdown(results: dict[str, Any]) -> str:
    lines = [f"- {name}: {value}" for name, value in results["conditions"].items()]
    lines += ["", "| what | measured | to reach, at most |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows(results))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder for control.json and control.md")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try this script")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        results = measure(Path(name).resolve(), tiny=options.tiny)
    text = to_markdown(results)
    print(text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "control.md").write_text(text + "\n", encoding="utf-8")
        (options.output / "control.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
