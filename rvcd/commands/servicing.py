"""`rvcd install`, `uninstall`, `start`, `stop` and `restart`: rvcd as a service of this user."""

import argparse
import os
import sys
from pathlib import Path

from rvcd.commands.output import DONE, print_json
from rvcd.commands.stopping import stop_foreground
from rvcd.errors import Code, RvcdError
from rvcd.service.command import run as run_command
from rvcd.service.definition import Places
from rvcd.service.installer import Installer, Manager
from rvcd.service.launchd import Launchd
from rvcd.service.systemd import Systemd


def run(arguments: argparse.Namespace) -> int:
    """Do what the command's name says, and tell every step."""
    steps: list[str] = []
    say = steps.append if arguments.json else _print
    manager = _manager(headless=arguments.headless)
    if arguments.verb == "stop" and not manager.definition.exists():
        stop_foreground(say, dry=arguments.dry_run)
    else:
        getattr(Installer(manager, say, dry=arguments.dry_run), arguments.verb)()
    if arguments.json:
        print_json({"dry_run": arguments.dry_run, "steps": steps})
    return DONE


def _manager(*, headless: bool) -> Manager:
    places, uid = Places.of_this_installation(), os.getuid()
    if sys.platform == "darwin":
        return Launchd(places, run_command, uid, Path.home() / "Library" / "LaunchAgents", headless)
    if sys.platform == "linux":
        configuration = os.environ.get("XDG_CONFIG_HOME", "")
        folder = Path(configuration) if configuration.startswith("/") else Path.home() / ".config"
        return Systemd(places, run_command, uid, folder / "systemd" / "user", headless)
    raise RvcdError(Code.SERVICE_FAILED, f"There is no service manager for {sys.platform}; use `rvcd run`.")


def _print(sentence: str) -> None:
    print(sentence, flush=True)  # noqa: T201
