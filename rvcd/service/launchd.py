"""launchd's words: domains, labels, and what `launchctl` answers.

Written from launchctl(1), launchd.plist(5) and public reports, and tested against a model of them; it has
not run on a Mac.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rvcd.errors import Code, RvcdError
from rvcd.service.command import Ran, Run, failure
from rvcd.service.definition import LABEL, Places
from rvcd.service.installer import Seen, State, Step
from rvcd.service.plist import property_list

_EXIT_TIMEOUT_SECONDS = 30  # ExitTimeOut of the property list
_NOT_THERE = (3, 112, 113, 125)
"""No such process, no such domain, no such service, a domain that cannot do this."""
_NO_SUCH_DOMAIN = 125
_STARTING = ("running", "xpcproxy")
# Sub-sections are indented further and may use the same names.
_FIELD = re.compile(r"^\t(state|pid|last exit code) = (.*)$", re.MULTILINE)


@dataclass
class Launchd:
    """The user's launchd: a desktop session (`gui/UID`), or the one behind it that ssh reaches too (`user/UID`)."""

    places: Places
    run: Run
    uid: int
    agents: Path
    """`~/Library/LaunchAgents`."""
    headless: bool = False
    """Whether it must also run where nobody sits at the screen."""
    stop_seconds: float = _EXIT_TIMEOUT_SECONDS + 10.0
    _loaded_in: list[str] = field(default_factory=list)
    _explanation: str = ""

    @property
    def definition(self) -> Path:
        """The property list."""
        return self.agents / f"{LABEL}.plist"

    @property
    def leftovers(self) -> Sequence[Path]:
        """Where launchd puts what the process prints."""
        return [self.places.logs / "launchd.out.log", self.places.logs / "launchd.err.log"]

    def check(self) -> None:
        """Refuse root; find out whether there is a desktop session."""
        if self.uid == 0:
            raise RvcdError(Code.SERVICE_FAILED, "rvcd serves one user: run this as yourself, without sudo.")
        if not self.headless and not self._has_desktop():
            self._fall_back("Nobody is logged in at the screen of this Mac")

    def contents(self) -> bytes:
        """The property list for the chosen domain."""
        return property_list(self.places, headless=self.headless)

    def look(self) -> Seen:
        """Look in both domains, whichever it was installed for."""
        found = {target: seen for target in self._targets() if (seen := self._look_at(target))}
        self._loaded_in = list(found)
        return next(iter(found.values()), Seen(State.ABSENT, detail="launchd does not know it"))

    def reread(self) -> Sequence[Step]:
        """Nothing: launchd reads the file when it is told to load it."""
        return []

    def allow(self) -> Sequence[Step]:
        """A label that was disabled fails to load with a mere error 5."""
        return [Step(("launchctl", "enable", f"{self._domain}/{LABEL}"), may_fail=True)]

    def forbid(self) -> Sequence[Step]:
        """Nothing: without its file it never loads."""
        return []

    def start(self) -> Step:
        """Load the property list; RunAtLoad starts it."""
        return Step(
            ("launchctl", "bootstrap", self._domain, str(self.definition)), f"Loaded {LABEL} into {self._domain}."
        )

    def stop(self) -> Sequence[Step]:
        """Boot it out of wherever it was seen."""
        return [Step(("launchctl", "bootout", target), may_fail=True) for target in self._loaded_in]

    def restart(self) -> Step:
        """Kill and start the loaded job."""
        target = self._loaded_in[0] if self._loaded_in else f"{self._domain}/{LABEL}"
        return Step(("launchctl", "kickstart", "-k", target), f"Restarted {target}.")

    def retry(self, ran: Ran, /) -> bool:
        """5: input/output error, 37: in progress, 113: gone meanwhile. All pass once an old process is gone."""
        return ran.code in (5, 37, 113)

    def give_way(self, ran: Ran, /) -> str:
        """125: there is no such session; use the one that is always there."""
        if ran.code != _NO_SUCH_DOMAIN or self.headless:
            return ""
        self._fall_back(f"launchd has no domain {self._domain}")
        return self._explanation

    def remedy(self) -> str:
        """Where reasons are found."""
        if self._explanation:
            return f"{self._explanation} Run `rvcd install --headless` if it was installed at the screen."
        return (
            f"Run `rvcd doctor` and read {self.leftovers[1]}; check that {self.definition} belongs to you and lies on "
            f"the startup disk; then run `rvcd start`."
        )

    def advice(self) -> Sequence[str]:
        """What macOS will show, and ask."""
        return [
            *([self._explanation] if self._explanation else []),
            f"macOS lists it under Login Items as {self.places.python.name!r}; it must stay allowed there.",
        ]

    @property
    def _domain(self) -> str:
        return f"user/{self.uid}" if self.headless else f"gui/{self.uid}"

    def _targets(self) -> list[str]:
        return [f"gui/{self.uid}/{LABEL}", f"user/{self.uid}/{LABEL}"]

    def _has_desktop(self) -> bool:
        # Over ssh the own session is not the desktop's, which may be there all the same.
        if self.run(("launchctl", "managername")).out.strip() == "Aqua":
            return True
        return self.run(("launchctl", "print", f"gui/{self.uid}")).code == 0

    def _fall_back(self, reason: str) -> None:
        self.headless = True
        self._explanation = (
            f"{reason}, so rvcd runs in the background session ({self._domain}); run `rvcd install` again at the "
            "screen to move it into the desktop session."
        )

    def _look_at(self, target: str) -> Seen | None:
        argv = ("launchctl", "print", target)
        ran = self.run(argv)
        if ran.code in _NOT_THERE:
            return None
        if ran.code != 0:
            raise failure(argv, ran, "Log out and in again, then try once more.")
        shown = dict(_FIELD.findall(ran.out))
        word = shown.get("state", "unknown")
        detail = f"{target}: {word}, last exit code {shown.get('last exit code', 'unknown')}"
        return Seen(_state(word), int(shown.get("pid", "0")), detail)


def _state(word: str) -> State:
    if word in _STARTING:
        return State.RUNNING
    # While it drains, launchd shows the signal it sent: SIGTERMed, SIGKILLed.
    return State.LEAVING if word.startswith("SIG") else State.IDLE
