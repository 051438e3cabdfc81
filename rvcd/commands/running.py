"""`rvcd run`: the daemon, in the foreground."""

import argparse

from rvcd import daemon
from rvcd.errors import Code, RvcdError


def run(arguments: argparse.Namespace) -> int:
    """Run until it is told to end."""
    if arguments.port is not None and not 0 <= arguments.port <= 65535:
        raise RvcdError(Code.BAD_SETTING, f"--port must lie between 0 and 65535, not {arguments.port}.")
    return daemon.main(arguments.config, arguments.port, supervised=arguments.supervised)
