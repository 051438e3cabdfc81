"""`rvcd stop` for a daemon that runs in the foreground, under no service manager."""

import json
import os
import signal
import time
from collections.abc import Callable

from rvcd.errors import Code, RvcdError
from rvcd.instance import Instance, note_file

_PATIENCE_SECONDS = 35.0
_POLL_SECONDS = 0.05


def stop_foreground(say: Callable[[str], None], *, dry: bool) -> None:
    """End it and wait until it is gone. Raises `RvcdError`: `not_running`, `service_failed`."""
    pid = _noted_pid()
    if pid is None or not _is_held():
        raise RvcdError(Code.NOT_RUNNING, "rvcd does not run, and is not installed as a service.")
    if dry:
        say(f"would end process {pid}")
        return
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError as error:
        raise RvcdError(Code.SERVICE_FAILED, f"Process {pid} cannot be ended: {error.strerror}.") from error
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while _is_held():
        if time.monotonic() > deadline:
            raise RvcdError(
                Code.SERVICE_FAILED, f"rvcd (process {pid}) was told to end {_PATIENCE_SECONDS:.0f} s ago and lives."
            )
        time.sleep(_POLL_SECONDS)
    say(f"Stopped rvcd (process {pid}).")


def _noted_pid() -> int | None:
    try:
        return int(json.loads(note_file().read_bytes())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_held() -> bool:
    """Whether a daemon holds the lock; its note alone may be that of one that was killed, its number another's."""
    try:
        Instance().release()
    except RvcdError as error:
        if error.code is Code.ALREADY_RUNNING:
            return True
        raise
    return False
