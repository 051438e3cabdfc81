"""The supervisor's end of the engine process: starts it, speaks to it, notices its death, replaces it.

Orders and reports are JSON lines (see `rvcd.worker`). Nothing here waits for a conversion.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

log = logging.getLogger(__name__)

Report = dict[str, Any]

_LINE_BYTES = 1 << 20
_STOP_SECONDS = 2.0


class EngineLink:
    """One engine process at a time.

    on_report: gets every report, on the event loop. on_death: gets the exit status (negative: the signal) when
    a process ends that was not asked to.
    """

    def __init__(
        self,
        on_report: Callable[[Report], None],
        on_death: Callable[[int], Awaitable[None]],
        command: tuple[str, ...] = (sys.executable, "-m", "rvcd.worker"),
    ) -> None:
        self._on_report, self._on_death, self._command = on_report, on_death, command
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the running engine."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self, configuration: Report) -> None:
        """End the process that runs, if one does; start another and tell it what to keep warm.

        Reports arrive from now on. Raises `OSError` if there can be no process.
        """
        await self.stop()
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # a Ctrl-C in the terminal is for the supervisor to handle
        )
        self._reader = asyncio.create_task(self._read(self._process))
        self.send({"do": "configure", **configuration})

    def send(self, order: Report) -> None:
        """Give an order; lost if the engine is dead, whose death is reported anyway."""
        if self._process is None or self._process.stdin is None or self._process.stdin.is_closing():
            return
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def kill(self) -> None:
        """End the process at once; its death is reported like any other."""
        if self._process is not None:
            _kill(self._process)

    async def stop(self) -> None:
        """End the process, kindly first; no death is reported, and none of its reports arrives any more."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()  # the engine ends with its orders
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            _kill(process)
            await process.wait()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            if process is not self._process:
                continue
            try:
                self._on_report(json.loads(line))
            except Exception:
                log.exception("a report of the engine could not be used: %r", line[:200])
        status = await process.wait()
        if process is self._process:
            self._process = None
            await self._on_death(status)


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
