"""The one door to the outside: run a command of the service manager and say what it answered."""

import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rvcd.errors import Code, RvcdError

_LONGEST_SECONDS = 120  # systemd lets a start take 90


class Ran(NamedTuple):
    """What a command answered."""

    code: int
    out: str = ""
    err: str = ""

    @property
    def said(self) -> str:
        """Its output on one line, errors first."""
        return " ".join(f"{self.err} {self.out}".split())


Run = Callable[[Sequence[str]], Ran]


def run(argv: Sequence[str]) -> Ran:
    """Run a command to its end. Raises `RvcdError("service_failed")` when it cannot be run or does not end."""
    try:
        done = subprocess.run(  # noqa: S603
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_LONGEST_SECONDS,
            env=os.environ | {"LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise RvcdError(Code.SERVICE_FAILED, f"There is no command {argv[0]} on this system.") from None
    except OSError as error:
        raise RvcdError(Code.SERVICE_FAILED, f"`{shlex.join(argv)}` cannot be run: {error.strerror}.") from error
    except subprocess.TimeoutExpired:
        raise RvcdError(
            Code.SERVICE_FAILED, f"`{shlex.join(argv)}` did not end within {_LONGEST_SECONDS} s; try it by hand."
        ) from None
    return Ran(done.returncode, done.stdout, done.stderr)


def failure(argv: Sequence[str], ran: Ran, remedy: str) -> RvcdError:
    """Say which command failed, what it answered, and what to do."""
    return RvcdError(Code.SERVICE_FAILED, f"`{shlex.join(argv)}` ended with {ran.code} ({ran.said}). {remedy}")
