"""`rvcd status`: how the daemon is, once or for as long as one looks."""

import argparse
import sys
import time
from pathlib import PurePath
from typing import Any, NamedTuple

from rvcd.commands.connection import JobRow, connect, job_rows
from rvcd.commands.output import ABSENT, DONE, error_fields, print_error, print_json
from rvcd.commands.screen import Canvas, columns, duration, printable, progress
from rvcd.errors import Code, RvcdError
from rvcd.osc.client import OscClient
from rvcd.osc.codec import Message

_ACTIVE, _RECENT = 20, 5
_WAITING_SHOWN = 3
_SECONDS_WITHOUT_NEWS = 1.0
_SECONDS_BETWEEN_DRAWINGS = 0.2


class Snapshot(NamedTuple):
    """What the daemon said of itself."""

    version: str
    platform: str
    backend: str
    state: str
    detail: str
    """Why it is degraded."""
    queued: int
    running: int
    done: int
    failed: int
    uptime_seconds: int
    memory_megabytes: float
    voices: list[dict[str, Any]]
    active: list[JobRow]
    recent: list[JobRow]
    folders: list[dict[str, Any]]

    def fields(self) -> dict[str, Any]:
        """What JSON says of it."""
        jobs = {"active": [row.fields() for row in self.active], "recent": [row.fields() for row in self.recent]}
        return {**self._asdict(), **jobs}


def run(arguments: argparse.Namespace) -> int:
    """Tell how the daemon is; 3 if it does not run (any more)."""
    if arguments.watch and arguments.json:
        raise RvcdError(Code.BAD_SETTING, "--watch has no end and --json is one document; leave one of them out.")
    try:
        with connect() as client:
            if arguments.watch:
                _watch(client)
            snapshot = look(client)
    except RvcdError as error:
        if error.code is not Code.NOT_RUNNING:
            raise
        if arguments.json:
            print_json({"is_running": False, "error": error_fields(error)})
        print_error(error)
        return ABSENT
    if arguments.json:
        print_json({"is_running": True, **snapshot.fields()})
    else:
        print("\n".join(_lines(snapshot)))  # noqa: T201
    return DONE


def look(client: OscClient) -> Snapshot:
    """Ask for everything."""
    version, _, platform, backend, *_ = client.ask("/rvcd/version").args
    state, queued, running, done, failed, _, _, uptime, memory, detail, *_ = client.ask("/rvcd/status").args
    facts: Any = {
        "version": version,
        "platform": platform,
        "backend": backend,
        "state": state,
        "detail": detail,
        "queued": queued,
        "running": running,
        "done": done,
        "failed": failed,
        "uptime_seconds": uptime,
        "memory_megabytes": memory,
    }
    return Snapshot(
        **facts,
        voices=_rows(client.collect("/rvcd/models"), ("name", "state", "sample_rate", "megabytes")),
        folders=_rows(client.collect("/rvcd/watch", "list"), ("path", "state", "pending", "unreadable", "voice")),
        active=job_rows(client, "active", _ACTIVE),
        recent=job_rows(client, "recent", _RECENT),
    )


def _rows(messages: list[Message], names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [dict(zip(names, message.args[1:], strict=False)) for message in messages]


def _watch(client: OscClient) -> None:
    """Show every change until Ctrl-C, or until the daemon is gone."""
    client.subscribe()
    canvas = Canvas(sys.stdout) if sys.stdout.isatty() else None
    last_line = ""
    while True:
        snapshot = look(client)
        line = _line(snapshot)
        if canvas:
            canvas.draw(_lines(snapshot))
        elif line != last_line:
            print(line, flush=True)  # noqa: T201
        last_line = line
        _wait_for_news(client)


def _wait_for_news(client: OscClient) -> None:
    """Wait for an event, and for those that come along with it."""
    if client.next_event(_SECONDS_WITHOUT_NEWS) is None:
        return
    deadline = time.monotonic() + _SECONDS_BETWEEN_DRAWINGS
    while (seconds := deadline - time.monotonic()) > 0:
        client.next_event(seconds)


def _line(now: Snapshot) -> str:
    """All that is worth a line of its own when it changes."""
    counts = f"{now.queued} waiting, {now.running} running, {now.done} done, {now.failed} failed"
    jobs = [f"job {row.job} {_name(row)} {int(100 * row.fraction)} % {row.stage}" for row in _running(now)]
    return ": ".join(filter(None, [now.state, printable(now.detail), "; ".join([counts, *jobs]).rstrip()]))


def _lines(now: Snapshot) -> list[str]:
    warm = ", ".join(f"{voice['name']} ({voice['state']})" for voice in now.voices if voice["state"] != "cold")
    facts = [
        ("device", f"{now.backend or 'not known yet'} on {now.platform}"),
        ("voices", f"{warm or 'none warm'}; {len(now.voices)} in the library"),
        ("queue", f"{now.queued} waiting, {now.running} running, {now.done} done, {now.failed} failed"),
        *(("folder", _folder_text(folder)) for folder in now.folders),
    ]
    return [
        f"rvcd {now.version} is {now.state}, up {duration(now.uptime_seconds)}, {now.memory_megabytes:.0f} MB",
        *([f"  {printable(now.detail)}"] if now.detail else []),
        *(f"  {name:8}{printable(text)}" for name, text in facts),
        *(line for row in _running(now) for line in _running_lines(row)),
        *(f"  {'next':8}{row.job}  {_name(row)}" for row in _waiting(now)[:_WAITING_SHOWN]),
        *(f"  {'last':8}{line}" for line in columns(map(_ended_cells, now.recent))),
    ]


def _folder_text(folder: dict[str, Any]) -> str:
    voice = f" for {folder['voice']}" if folder["voice"] else ""
    return f"{folder['path']}{voice}: {folder['state']}, {folder['pending']} pending, {folder['unreadable']} unreadable"


def _running_lines(row: JobRow) -> tuple[str, str]:
    return (
        f"  {'job':8}{row.job}  {_name(row)}{printable(f' -> {row.voice}' if row.voice else '')}",
        f"  {'':8}{progress(row.fraction, row.stage, row.seconds_left)}",
    )


def _ended_cells(row: JobRow) -> tuple[str, ...]:
    outcome = row.code
    if row.state == "committed":
        outcome = f"in {duration(row.seconds_taken)}"
    if row.realtime_factor is not None:
        outcome = f"{duration(row.seconds_of_audio)} of audio {outcome}, real-time factor {row.realtime_factor:.2f}"
    return str(row.job), _name(row), row.state, outcome


def _running(now: Snapshot) -> list[JobRow]:
    return [row for row in now.active if row.state != "queued"]


def _waiting(now: Snapshot) -> list[JobRow]:
    return [row for row in now.active if row.state == "queued"]


def _name(row: JobRow) -> str:
    return printable(PurePath(row.path).name)
