"""The two service definitions: templates that are data, and what fills them.

The templates lie in `launchd/` of the repository, and in a wheel beside this module.
"""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rvcd import paths

LABEL = "io.rvcd.agent"
"""Name of the launchd job."""
UNIT = "rvcd.service"
"""Name of the systemd unit."""

_MOVED_BY = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")
"""A service does not read the shell's settings, so those that move folders are written into its definition."""
_NAME = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Places:
    """The absolute paths that a definition is filled with."""

    python: Path
    """Interpreter of the environment that holds rvcd; a link is kept, for its target is another environment."""
    home: Path
    logs: Path
    environment: dict[str, str]
    """Variables that the service needs beyond those of the template."""

    @classmethod
    def of_this_installation(cls) -> "Places":
        """Where this interpreter and this user's folders are."""
        moved = {name: value for name in _MOVED_BY if (value := os.environ.get(name, "")).startswith("/")}
        if os.environ.get("RVCD_HOME"):
            moved["RVCD_HOME"] = str(paths.home())
        return cls(Path(sys.executable).absolute(), paths.home(), paths.logs_dir(), moved)

    def names(self) -> dict[str, str]:
        """What the names in braces stand for."""
        return {
            "python": str(self.python),
            "bin": str(self.python.parent),
            "home": str(self.home),
            "logs": str(self.logs),
        }


def template(name: str) -> bytes:
    """Read a template: the one in the wheel, else the one of the checkout."""
    packaged = Path(__file__).with_name("templates") / name
    return (packaged if packaged.exists() else Path(__file__).parents[2] / "launchd" / name).read_bytes()


def fill(text: str, names: dict[str, str], escape: Callable[[str], str] = str) -> str:
    """Replace every `{name}`; an unknown name is a mistake in the template (`KeyError`)."""
    return _NAME.sub(lambda match: escape(names[match[1]]), text)
