"""The way to the daemon: where it listens, the token it wants, and its lists as plain values.

Standard library and codec only: a DAW may start these commands for every stem.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rvcd import paths
from rvcd.errors import Code, RvcdError
from rvcd.instance import note_file
from rvcd.osc import DEFAULT_PORT
from rvcd.osc.client import OscClient


class JobRow(NamedTuple):
    """One row of `/rvcd/jobs`."""

    job: int
    state: str
    path: str
    fraction: float
    code: str
    stage: str
    seconds_left: float
    """-1: not known."""
    seconds_taken: float
    seconds_of_audio: float
    voice: str

    @property
    def realtime_factor(self) -> float | None:
        """Seconds taken for one second of audio; None for a job that is not done."""
        done = self.state == "committed" and self.seconds_of_audio > 0
        return self.seconds_taken / self.seconds_of_audio if done else None

    def fields(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {**self._asdict(), "realtime_factor": self.realtime_factor}


@contextmanager
def connect() -> Iterator[OscClient]:
    """Hold a conversation with the daemon of this user; that it runs is seen when it is asked something.

    Raises `RvcdError`: `permission_denied` for a token that cannot be read; if there is one also `not_running`
    and `unauthorized`.
    """
    host, port, token_file = _place()
    with OscClient(port, host) as client:
        if token_file:
            client.hello("rvcd", _token(Path(token_file)))
        yield client


def job_rows(client: OscClient, which: str, limit: int) -> list[JobRow]:
    """Jobs by a filter of `/rvcd/jobs`."""
    fields = len(JobRow._fields)
    return [JobRow._make(row.args[1 : 1 + fields]) for row in client.collect("/rvcd/jobs", which, limit)]


def _place() -> tuple[str, int, str]:
    """Address, port and token file: as the running daemon noted, else as configured."""
    try:
        note = json.loads(note_file().read_bytes())
        return note["host"], note["port"], note["token_file"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if not paths.config_file().exists():
        return "127.0.0.1", DEFAULT_PORT, ""
    from rvcd.config import read

    osc = read(paths.config_file())[0].osc
    return osc.address, osc.port or DEFAULT_PORT, str(osc.token_file or "")


def _token(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError) as error:
        raise RvcdError(
            Code.PERMISSION_DENIED, f"The token of the daemon, in {file}, cannot be read: {error}."
        ) from error
