"""A real daemon in a home of its own, with tiny models, and what a test does to it from outside."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
import soundfile

from rvcd.errors import RvcdError
from rvcd.mlx_engine import import_checkpoint
from rvcd.osc.client import ENDINGS, OscClient
from tests.support import seeded

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 20.0
_Result = TypeVar("_Result")


def make_models(folder: Path) -> None:
    """Import tiny models: a content encoder, a pitch model and the voices anna and bert, in the layout of a home."""
    sources = folder / "sources"
    sources.mkdir(parents=True)
    base = [seeded.content_encoder(sources / "content", seed=1, tiny=True)]
    base.append(seeded.pitch_model(sources / "rmvpe.pt", seed=2, tiny=True))
    for source in base:
        import_checkpoint(source, directory=folder / "models")
    for seed, name in enumerate(("anna", "bert"), 3):
        import_checkpoint(seeded.voice(sources / f"{name}.pth", seed=seed, tiny=True), directory=folder / "voices")


def wait_for(what: Callable[[], _Result | None], seconds: float = PATIENCE_SECONDS) -> _Result:
    """Wait until `what` is true, and return it; fail if it does not become true."""
    deadline = time.monotonic() + seconds
    while not (result := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return result


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def bounce(path: Path, seconds: float = 0.3, *, seed: int = 5, subtype: str = "PCM_24") -> bytes:
    """Write a stem the way a bounce arrives by rename; returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(".draft.wav")
    soundfile.write(draft, seeded.sung_stem(seconds, 44100, seed=seed), 44100, subtype=subtype)
    content = draft.read_bytes()
    draft.replace(path)
    return content


class Daemon:
    """`rvcd run` in a process of its own. Started again, it goes on in the same home."""

    def __init__(self, home: Path, models: Path | None = None, *, config: str = "", folder: str = "") -> None:
        self.home = home
        self.stems = home / "stems"
        self.stems.mkdir(parents=True)
        self.process: subprocess.Popen[bytes] | None = None
        if models is not None:
            self.install(models)
        self.configure(config, folder)

    def install(self, models: Path) -> None:
        for name in ("models", "voices"):
            shutil.copytree(models / name, self.home / name, dirs_exist_ok=True)

    def configure(self, config: str = "", folder: str = "") -> None:
        """`config`: further sections; `folder`: further keys of the hot folder."""
        voice = "" if "voice =" in folder else 'voice = "anna"'
        place = f'[[folder]]\npath = "{self.stems}"\nsettle_seconds = 0.1\n{voice}\n{folder}\n'
        self.write_config(f'[osc]\nroots = ["{self.home}/elsewhere"]\n{config}\n{place}')

    def write_config(self, text: str) -> None:
        draft = self.home / "draft.toml"
        draft.write_text(text)
        draft.replace(self.home / "rvcd.toml")

    def start(self, *sabotage: str, arguments: tuple[str, ...] = ()) -> Self:
        """Start it and wait until it answers; `sabotage`: see `tests.support.sabotage`."""
        self.process = self.spawn(*sabotage, arguments=arguments)
        wait_for(lambda: self._answers() or self.process.poll() is not None)  # type: ignore[union-attr]
        assert self.process.poll() is None, self.log()
        return self

    def spawn(self, *sabotage: str, arguments: tuple[str, ...] = ()) -> "subprocess.Popen[bytes]":
        program = ("tests.support.sabotage", *sabotage) if sabotage else ("rvcd", "run")
        environment = {**os.environ, "RVCD_HOME": str(self.home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", *program, "--port", "0", *arguments]
        with (self.home / "output.txt").open("ab") as output:
            return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=output)

    def _answers(self) -> bool:
        assert self.process is not None
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.home / "daemon.json").read_text())["pid"] == self.process.pid
        return False

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def engine_pid(self) -> int | None:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(children[0]) if children else None

    @property
    def port(self) -> int:
        return int(json.loads((self.home / "daemon.json").read_text())["port"])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def log(self) -> str:
        return (self.home / "output.txt").read_text(errors="replace")

    @contextlib.contextmanager
    def client(self) -> Iterator[OscClient]:
        with OscClient(self.port) as client:
            client.hello("test")
            yield client

    def status(self) -> dict[str, Any]:
        names = ("state", "queued", "running", "done", "failed", "warm", "model", "uptime", "mb", "detail")
        with OscClient(self.port) as client:
            return dict(zip(names, client.ask("/rvcd/status").args, strict=True))

    def until(self, state: str) -> dict[str, Any]:
        """Wait for a state of the daemon."""

        def reached() -> dict[str, Any] | None:
            status = self.status()
            return status if status["state"] == state else None

        return wait_for(reached)

    def jobs(self, which: str = "recent") -> list[tuple[int, str, str, str]]:
        """Id, state, path and code."""
        with OscClient(self.port) as client:
            rows = client.collect("/rvcd/jobs", which, 200)
        return [(row.args[1], row.args[2], row.args[3], row.args[5]) for row in rows]

    def voices_of_jobs(self) -> dict[str, str]:
        """Path -> the voice that converted it."""
        with OscClient(self.port) as client:
            rows = client.collect("/rvcd/jobs", "recent", 200)
        return {row.args[3]: row.args[-1] for row in rows}

    def ended(self, count: int) -> list[tuple[int, str, str, str]]:
        """Wait until this many jobs ended and none is left; the latest first."""

        def all_ended() -> list[tuple[int, str, str, str]] | None:
            done = self.jobs()
            return done if len(done) >= count and not self.jobs("active") else None

        return wait_for(all_ended, 3 * PATIENCE_SECONDS)

    def convert(self, path: Path, *pairs: float | str) -> int:
        with self.client() as client:
            return int(client.command("/rvcd/convert", str(path), *pairs).args[1])

    def run(self, path: Path, *pairs: float | str) -> tuple[int, str, str, str]:
        """Convert and wait; returns the job."""
        job = self.convert(path, *pairs)
        return self.end_of(job)

    def end_of(self, job: int) -> tuple[int, str, str, str]:
        return wait_for(lambda: next((row for row in self.jobs() if row[0] == job), None))


def endings(client: OscClient, count: int) -> list[tuple[str, int]]:
    """Wait for this many last events, and a little for one too many."""
    found: list[tuple[str, int]] = []
    while len(found) < count:
        event = client.next_event(PATIENCE_SECONDS)
        assert event is not None, found
        if event.address in ENDINGS:
            found.append((event.address.rpartition("/")[2], int(event.args[1])))
    client.ask("/rvcd/status")
    while event := client.next_event(0.05):
        if event.address in ENDINGS:
            found.append((event.address.rpartition("/")[2], int(event.args[1])))
    return found


def refused(daemon: Daemon, address: str, *args: float | str) -> str:
    """The code with which a command is refused at once."""
    with daemon.client() as client, pytest.raises(RvcdError) as refusal:
        client.command(address, *args)
    return str(refusal.value.code)
