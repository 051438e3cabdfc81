"""`rvcd logs`: what the daemon wrote down."""

import argparse
import time

from rvcd import logs
from rvcd.commands.output import DONE, print_json
from rvcd.errors import Code, RvcdError

_POLL_SECONDS = 0.25


def run(arguments: argparse.Namespace) -> int:
    """Print the last lines, and with `-f` every new one until Ctrl-C."""
    if arguments.follow and arguments.json:
        raise RvcdError(Code.BAD_SETTING, "--follow has no end and --json is one document; leave one of them out.")
    if arguments.lines < 0:
        raise RvcdError(Code.BAD_SETTING, f"-n must be 0 or more, not {arguments.lines}.")
    if not arguments.follow and not logs.log_file().exists():
        raise RvcdError(Code.NOT_FOUND, f"There is no log yet: {logs.log_file()} begins when `rvcd run` first starts.")
    lines = logs.read(arguments.lines, _pause if arguments.follow else None)
    if arguments.json:
        print_json({"path": str(logs.log_file()), "lines": list(lines)})
        return DONE
    for line in lines:
        print(line, flush=arguments.follow)  # noqa: T201
    return DONE


def _pause() -> None:
    time.sleep(_POLL_SECONDS)
