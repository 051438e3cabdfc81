"""`rvcd undo`: the take that a conversion replaced, back under its path bit for bit."""

import argparse
import os
from pathlib import Path

from rvcd.commands.connection import connect
from rvcd.commands.output import DONE, print_json
from rvcd.commands.screen import printable
from rvcd.errors import Code, RvcdError

_WAIT_SECONDS = 600.0
_BEYOND_THE_DAEMON = (Code.NOT_RUNNING, Code.NOT_ALLOWED, Code.NO_BACKUP, Code.NOT_FOUND)
"""Reasons for which a take may still be found here: hot folders of long ago, a journal that was lost."""


def run(arguments: argparse.Namespace) -> int:
    """Ask the daemon; where there is none, or it knows of nothing, look here."""
    target = _target(arguments.target)
    try:
        path = _ask(target)
    except RvcdError as error:
        if error.code not in _BEYOND_THE_DAEMON:
            raise
        from rvcd.commands.stores import restore

        path = str(restore(target).path)
    if arguments.json:
        print_json({"restored": path})
    else:
        print(f"Restored {printable(path)}.")  # noqa: T201
    return DONE


def _target(text: str) -> Path | int:
    """Read a whole number as a job; a stem with such a name can be written `./12`."""
    if text.isascii() and text.isdigit():
        return int(text)
    return Path(os.path.abspath(text))  # noqa: PTH100  (a link stays one, `..` goes)


def _ask(target: Path | int) -> str:
    with connect() as client:
        wanted = target if isinstance(target, int) else str(target)
        client.command("/rvcd/restore", wanted, wait_seconds=_WAIT_SECONDS)
        if isinstance(target, Path):
            return str(target)
        end = next(client.follow(target))
        return str(end.args[2]) if end.address == "/rvcd/job/done" else f"the take of job {target}"
