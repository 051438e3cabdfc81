"""`rvcd doctor`: independent checks, each with a verdict, a sentence and what to do.

The daemon runs the same checks inside itself: under launchd it may be refused what the terminal may
read. Nothing here loads numpy or MLX; what needs them (`rvcd.engine_doctor`) runs in a child process,
which may crash without harm.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from rvcd import __version__, paths
from rvcd.errors import RvcdError

_FULL_BYTES, _TIGHT_BYTES = 200_000_000, 2_000_000_000
_REPLY_SECONDS = 1.0
_CHILD_SECONDS = 120
_DAY_SECONDS = 86_400
_PING, _PONG = b"/rvcd/ping\0\0,\0\0\0", b"/rvcd/pong\0"
_PACKAGES = ("mlx", "numpy", "faiss-cpu", "soundfile", "soxr", "watchdog", "python-osc")


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """rvcd works, and something should be looked at."""
    FAIL = "fail"
    """Something that rvcd needs does not work."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    verdict: Verdict
    sentence: str
    remedy: str = ""
    """What to do; empty where nothing is wrong."""

    def to_json(self) -> dict[str, str]:
        """Plain strings."""
        return asdict(self) | {"verdict": str(self.verdict)}

    @classmethod
    def from_json(cls, fields: dict[str, str]) -> "Finding":
        """Undo `to_json`."""
        return cls(**(fields | {"verdict": Verdict(fields["verdict"])}))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Subject:
    """What is examined."""

    folders: Sequence[Path] = ()
    """Hot folders."""
    host: str = "127.0.0.1"
    port: int = 7823
    """UDP port that the daemon listens on."""
    configuration_error: RvcdError | None = None


def examine(subject: Subject, *, engine: bool = True) -> list[Finding]:
    """Run every check; one that breaks is a finding like any other. Takes seconds: not for an event loop's thread.

    `engine=False` leaves out the child process with models, backend and numerical self-test.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": check_versions,
        "configuration": lambda: check_configuration(subject.configuration_error),
        "port": lambda: check_port(subject.host, subject.port),
        "folder": lambda: (finding for folder in subject.folders for finding in check_folder(folder)),
        "disk": lambda: check_disks([paths.home(), *subject.folders]),
        "clock": lambda: check_clock(time.time()),
    }
    if engine:
        checks["engine"] = check_engine
    return [finding for name, check in checks.items() for finding in _guarded(name, check)]


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # the other checks still count
        yield Finding(name, Verdict.FAIL, f"This could not be checked ({type(error).__name__}: {error}).", _REPORT)


_REPORT = "Report it with the output of `rvcd doctor --json`."


def check_versions() -> Iterator[Finding]:
    """Tell what is installed, for reports."""
    installed = []
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed.append(f"{package} {metadata.version(package)}")
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding(
        "versions", Verdict.OK, f"rvcd {__version__}, Python {python} on {sys.platform}, {', '.join(installed)}."
    )


def check_configuration(error: RvcdError | None) -> Iterator[Finding]:
    """Whether it could be read; its error says where it is wrong."""
    if error:
        yield Finding("configuration", Verdict.FAIL, error.sentence, "Correct it and run `rvcd config check`.")
    else:
        yield Finding("configuration", Verdict.OK, "The configuration is right.")


def check_port(host: str, port: int) -> Iterator[Finding]:
    """Whether the port is free, or held by a running rvcd."""
    try:
        with _udp_socket(host) as probe:
            probe.bind((host, port))
    except OSError as error:
        yield (
            _taken(host, port)
            if error.errno == errno.EADDRINUSE
            else Finding(
                "port",
                Verdict.FAIL,
                f"UDP {host}:{port} cannot be used: {error.strerror}.",
                "Choose another address or port in the configuration.",
            )
        )
    else:
        yield Finding("port", Verdict.OK, f"UDP {host}:{port} is free; no rvcd runs on it.")


def _taken(host: str, port: int) -> Finding:
    with _udp_socket(host) as client:
        client.settimeout(_REPLY_SECONDS)
        try:
            client.connect((host, port))
            client.send(_PING)
            if client.recv(1024).startswith(_PONG):
                return Finding("port", Verdict.OK, f"rvcd runs and answers on UDP {host}:{port}.")
        except OSError:
            pass  # silence, or nobody there any more
    return Finding(
        "port",
        Verdict.FAIL,
        f"UDP {host}:{port} is taken by a program that does not answer like rvcd.",
        f"`lsof -nP -iUDP:{port}` names it; end it, or choose another port in the configuration.",
    )


def _udp_socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)


def check_folder(folder: Path) -> Iterator[Finding]:
    """Whether this process may list the folder, and write and delete in it."""
    # A leading dot keeps the probe out of every watcher's sight.
    probe = folder / f".rvcd-doctor-{secrets.token_hex(4)}"
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
        probe.touch(exist_ok=False)
        probe.unlink()
    except FileNotFoundError:
        remedy = "Make it, or connect its disk; rvcd notices by itself."
        yield Finding("folder", Verdict.WARN, f"There is no folder {folder}.", remedy)
    except NotADirectoryError:
        yield Finding("folder", Verdict.FAIL, f"{folder} is not a folder.", "Name a folder in the configuration.")
    except OSError as error:
        yield Finding("folder", Verdict.FAIL, f"{folder} cannot be used: {error.strerror}.", _permission_remedy(error))
    else:
        yield Finding("folder", Verdict.OK, f"{folder} can be read and written.")


def _permission_remedy(error: OSError) -> str:
    # macOS answers EPERM, not EACCES, where privacy settings forbid what the file's mode allows.
    if error.errno == errno.EPERM and sys.platform == "darwin":
        python = Path(sys.executable).resolve()
        return f"Allow {python} this folder in System Settings, Privacy & Security, Files and Folders."
    if error.errno == errno.EROFS:
        return "The disk is read-only; choose a folder elsewhere."
    return "Give yourself the right to read and write it (`ls -ld` shows who has it)."


def check_disks(folders: Sequence[Path]) -> Iterator[Finding]:
    """Room on every volume that is written to, each once."""
    volumes: dict[int, Path] = {}
    for folder in folders:
        existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
        if existing is not None:
            volumes.setdefault(existing.stat().st_dev, existing)
    for folder in volumes.values():
        free_bytes = shutil.disk_usage(folder).free
        sentence = f"{free_bytes / 1e9:.1f} GB are free on the disk of {folder}."
        if free_bytes >= _TIGHT_BYTES:
            yield Finding("disk", Verdict.OK, sentence)
        else:
            verdict = Verdict.FAIL if free_bytes < _FULL_BYTES else Verdict.WARN
            yield Finding("disk", verdict, sentence, "Free some room, or let go of old takes with `rvcd backups`.")


def check_clock(now: float) -> Iterator[Finding]:
    """Whether the clock (unix seconds) can be right: no later time is known to have passed."""
    installed = Path(__file__).stat().st_mtime
    if now < installed - _DAY_SECONDS:
        sentence = f"The clock says {time.strftime('%Y-%m-%d', time.localtime(now))}, before rvcd was installed."
        yield Finding("clock", Verdict.WARN, sentence, "Set the clock; backups are dated and pruned by it.")
    else:
        yield Finding("clock", Verdict.OK, f"The clock says {time.strftime('%Y-%m-%d %H:%M', time.localtime(now))}.")


def check_engine(command: Sequence[str] = (sys.executable, "-m", "rvcd.engine_doctor")) -> Iterator[Finding]:
    """Ask a child process about models, backend and arithmetic."""
    try:
        done = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_CHILD_SECONDS
        )
    except subprocess.TimeoutExpired:
        yield Finding("engine", Verdict.FAIL, f"The engine's self-test did not end in {_CHILD_SECONDS} s.", _REPORT)
        return
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        yield Finding("engine", Verdict.FAIL, f"The engine's self-test died with {done.returncode} ({said}).", _REPORT)
        return
    found: list[dict[str, Any]] = json.loads(done.stdout)
    yield from map(Finding.from_json, found)
