"""One state machine that installs, starts, stops and removes the service, whoever manages it.

A manager knows its words (`Manager`); the order of things, the waiting and the reporting are here. The
truth is always what the manager shows when looked at, not what a command returned: launchd's `bootout`
returns while the old process still lives, and a `bootstrap` in that gap fails and leaves nothing loaded.
"""

import contextlib
import os
import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from rvcd.errors import Code, RvcdError, write_error
from rvcd.service.command import Ran, Run, failure, run
from rvcd.service.definition import Places

POLL_SECONDS = 0.25
_VERIFY_SECONDS = 15.0
_STEADY_SECONDS = 2.0
_RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)


class State(StrEnum):
    """Where the service stands."""

    ABSENT = "not loaded"
    IDLE = "loaded but not running"
    RUNNING = "running"
    LEAVING = "on its way out"


@dataclass(frozen=True)
class Seen:
    """What a manager shows of the service."""

    state: State
    pid: int = 0
    detail: str = ""
    """The manager's own words."""


@dataclass(frozen=True)
class Step:
    """One command that changes something."""

    argv: Sequence[str]
    done: str = ""
    """What is then true, as a sentence; empty: not worth one."""
    may_fail: bool = False
    """What counts is what is seen afterwards."""


class Manager(Protocol):
    """The words of one service manager."""

    places: Places
    stop_seconds: float
    """How long the service may take to go."""

    @property
    def definition(self) -> Path:
        """The file that the manager reads."""

    @property
    def leftovers(self) -> Sequence[Path]:
        """Files that the manager itself writes for us."""

    def check(self) -> None:
        """Refuse (`RvcdError("service_failed")`) where a service cannot be: as root, without a session."""

    def contents(self) -> bytes:
        """What the definition must say."""

    def look(self) -> Seen:
        """Ask for the state. Changes nothing."""

    def reread(self) -> Sequence[Step]:
        """Make the manager notice a definition that was written or removed."""

    def allow(self) -> Sequence[Step]:
        """Let the service start, now and at every login."""

    def forbid(self) -> Sequence[Step]:
        """Take back `allow`."""

    def start(self) -> Step:
        """Load and start what is not loaded."""

    def stop(self) -> Sequence[Step]:
        """Stop and unload what was seen last."""

    def restart(self) -> Step:
        """Start anew what is loaded."""

    def retry(self, ran: Ran, /) -> bool:
        """Whether a failed start or restart may succeed in a moment."""

    def give_way(self, ran: Ran, /) -> str:
        """Fall back after a start that cannot succeed like this: why and to what, as a sentence, or nothing."""

    def remedy(self) -> str:
        """What to do when a start fails for good."""

    def advice(self) -> Sequence[str]:
        """What the user should know after an installation."""


class Installer:
    """The state machine. `say` gets sentences; `dry` says what would be done and changes nothing."""

    def __init__(
        self,
        manager: Manager,
        say: Callable[[str], None],
        *,
        dry: bool = False,
        run: Run = run,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._manager, self._say, self._dry, self._run, self._sleep = manager, say, dry, run, sleep

    def install(self) -> None:
        """Write the definition and start the service; what runs already is stopped first.

        Raises `RvcdError`: `service_failed` with the command and its answer, `not_writable`, `disk_full`.
        """
        self._manager.check()
        self._check_interpreter()
        self._make_folders()
        self._write()
        self._take(self._manager.reread())
        self._take(self._manager.allow())
        self._clear(self._manager.look())
        self._start()
        self._verify()
        if not self._dry:
            for sentence in self._manager.advice():
                self._say(sentence)

    def uninstall(self) -> None:
        """Stop the service and remove all that `install` made; voices, backups and logs of rvcd stay."""
        self._manager.check()
        seen = self._manager.look()
        if seen.state is State.ABSENT and not self._manager.definition.exists():
            self._say("rvcd is not installed as a service; there is nothing to remove.")
            return
        self._clear(seen)
        self._take(self._manager.forbid())
        for path in (self._manager.definition, *self._manager.leftovers):
            self._remove(path)
        self._take(self._manager.reread())
        self._say(f"Voices, models and the journal stay in {self._manager.places.home}.")

    def start(self) -> None:
        """Start the installed service. Raises `RvcdError`: `service_failed`."""
        self._check_installed()
        seen = self._manager.look()
        if seen.state is State.RUNNING:
            self._say(f"rvcd runs already (process {seen.pid}).")
            return
        self._take(self._manager.allow())
        if seen.state is State.IDLE:
            self._restart(seen)
        else:
            self._wait_until_gone(seen)
            self._start()
        self._verify()

    def stop(self) -> None:
        """Stop the service until the next login or `rvcd start`. Raises `RvcdError`: `service_failed`."""
        self._check_installed()
        seen = self._manager.look()
        if seen.state is State.ABSENT:
            self._say("rvcd does not run as a service.")
            return
        self._clear(seen)

    def restart(self) -> None:
        """Start the service anew, as it is installed. Raises `RvcdError`: `service_failed`."""
        self._check_installed()
        self._take(self._manager.allow())
        self._restart(self._manager.look())
        self._verify()

    def _check_installed(self) -> None:
        self._manager.check()
        if not self._manager.definition.exists():
            raise RvcdError(
                Code.SERVICE_FAILED,
                f"rvcd is not installed as a service (there is no {self._manager.definition}); run `rvcd install`.",
            )

    def _check_interpreter(self) -> None:
        # The service starts in another folder and without this shell's environment.
        argv = (str(self._manager.places.python), "-E", "-P", "-m", "rvcd", "--version")
        ran = self._run(argv)
        if ran.code != 0:
            raise failure(
                argv, ran, "Install rvcd into an environment of its own (`uv tool install`, `pipx`) and try again."
            )

    def _restart(self, seen: Seen) -> None:
        if seen.state in (State.RUNNING, State.IDLE):
            step = self._manager.restart()
            ran = self._do(step)
            if ran.code == 0:
                return
            seen = self._manager.look()
            if not self._manager.retry(ran) and seen.state is not State.ABSENT:
                raise failure(step.argv, ran, self._manager.remedy())
        self._wait_until_gone(seen)
        self._start()

    def _clear(self, seen: Seen) -> None:
        if seen.state is State.ABSENT:
            return
        asked = [(step.argv, self._do(step)) for step in self._manager.stop()]
        try:
            self._wait_until_gone(seen)
        except RvcdError:
            for argv, ran in asked:
                if ran.code != 0:
                    raise failure(argv, ran, self._manager.remedy()) from None
            raise
        if not self._dry:
            self._say(f"Stopped rvcd, which was {seen.state}.")

    def _wait_until_gone(self, seen: Seen) -> None:
        if seen.state is State.ABSENT:
            return
        if self._dry:
            self._say(f"would wait until the old process is gone, up to {self._manager.stop_seconds:.0f} s")
            return
        for _ in range(_polls(self._manager.stop_seconds)):
            seen = self._manager.look()
            if seen.state is State.ABSENT:
                return
            self._sleep(POLL_SECONDS)
        raise RvcdError(
            Code.SERVICE_FAILED,
            f"rvcd does not end: after {self._manager.stop_seconds:.0f} s it is still {seen.state} ({seen.detail}). "
            f"End process {seen.pid} yourself and run the command again.",
        )

    def _start(self) -> None:
        for pause_seconds in _RETRY_SECONDS:
            step = self._manager.start()
            ran = self._do(step)
            if ran.code == 0:
                return
            why = self._manager.give_way(ran)
            if why:
                self._say(why)
                self._write()
                self._take(self._manager.allow())
                continue
            if not self._manager.retry(ran):
                break
            self._sleep(pause_seconds)
            if self._manager.look().state in (State.RUNNING, State.IDLE):
                return
        raise failure(step.argv, ran, f"rvcd is NOT running. {self._manager.remedy()}")

    def _verify(self) -> None:
        if self._dry:
            self._say("would check that rvcd runs and stays up")
            return
        seen, steady, pid = Seen(State.ABSENT), 0, 0
        for _ in range(_polls(_VERIFY_SECONDS)):
            seen = self._manager.look()
            steady = steady + 1 if seen.state is State.RUNNING and seen.pid == pid else 0
            pid = seen.pid
            if steady >= _polls(_STEADY_SECONDS):
                self._say(f"rvcd runs (process {seen.pid}); `rvcd status` tells what it does.")
                return
            self._sleep(POLL_SECONDS)
        raise RvcdError(
            Code.SERVICE_FAILED,
            f"rvcd was started and does NOT stay up: it is {seen.state} ({seen.detail}). {self._manager.remedy()}",
        )

    def _take(self, steps: Sequence[Step]) -> None:
        for step in steps:
            ran = self._do(step)
            if ran.code != 0 and not step.may_fail:
                raise failure(step.argv, ran, self._manager.remedy())

    def _do(self, step: Step) -> Ran:
        if self._dry:
            self._say(f"would run: {shlex.join(step.argv)}")
            return Ran(0)
        ran = self._run(step.argv)
        if step.done and ran.code == 0:
            self._say(step.done)
        return ran

    def _make_folders(self) -> None:
        for folder in (self._manager.places.home, self._manager.places.logs, self._manager.definition.parent):
            if self._dry:
                if not folder.is_dir():
                    self._say(f"would make the folder {folder}")
                continue
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise write_error(error, folder) from error

    def _write(self) -> None:
        path, contents = self._manager.definition, self._manager.contents()
        with contextlib.suppress(OSError):
            if path.read_bytes() == contents:
                self._say(f"{path} is up to date.")
                return
        if self._dry:
            self._say(f"would write {path}")
            return
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            # launchd refuses a file that others may write to.
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
                file.write(contents)
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise write_error(error, path) from error
        self._say(f"Wrote {path}.")

    def _remove(self, path: Path) -> None:
        if not path.exists():
            return
        if self._dry:
            self._say(f"would remove {path}")
            return
        try:
            path.unlink()
        except OSError as error:
            raise write_error(error, path) from error
        self._say(f"Removed {path}.")


def _polls(seconds: float) -> int:
    return round(seconds / POLL_SECONDS)
