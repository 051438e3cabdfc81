"""systemd's words: `systemctl --user`, and lingering for machines where nobody logs in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rvcd.service.command import Ran, Run, failure
from rvcd.service.definition import UNIT, Places
from rvcd.service.installer import Seen, State, Step
from rvcd.service.unit import unit

_STOP_TIMEOUT_SECONDS = 35  # TimeoutStopSec of the unit
_PROPERTIES = "LoadState,ActiveState,SubState,MainPID,Result"
_STATES = {"active": State.RUNNING, "reloading": State.RUNNING, "activating": State.RUNNING}
_STATES |= {"deactivating": State.LEAVING}


def _systemctl(*words: str) -> tuple[str, ...]:
    return ("systemctl", "--user", *words)


@dataclass
class Systemd:
    """The user's systemd."""

    places: Places
    run: Run
    uid: int
    units: Path
    """`~/.config/systemd/user`."""
    headless: bool = False
    """Whether it must run without anybody logged in."""
    stop_seconds: float = _STOP_TIMEOUT_SECONDS + 10.0
    leftovers: Sequence[Path] = ()

    @property
    def definition(self) -> Path:
        """The unit file."""
        return self.units / UNIT

    def check(self) -> None:
        """Nothing: `look` fails where there is no session."""

    def contents(self) -> bytes:
        """The unit."""
        return unit(self.places)

    def look(self) -> Seen:
        """Ask for the unit's properties."""
        argv = _systemctl("show", UNIT, f"--property={_PROPERTIES}")
        ran = self.run(argv)
        if ran.code != 0:
            raise failure(
                argv, ran, "There is no systemd session of this user; log in directly (not by su), or use `rvcd run`."
            )
        shown = dict(line.split("=", 1) for line in ran.out.splitlines() if "=" in line)
        active, sub = shown.get("ActiveState", ""), shown.get("SubState", "")
        # Between a crash and the next try.
        state = State.IDLE if sub == "auto-restart" else _STATES.get(active, State.ABSENT)
        return Seen(state, int(shown.get("MainPID") or 0), f"{active} ({sub}), result {shown.get('Result', '')}")

    def reread(self) -> Sequence[Step]:
        """Read all unit files again."""
        return [Step(_systemctl("daemon-reload"))]

    def allow(self) -> Sequence[Step]:
        """Start with every login, forget earlier failures; without anybody logged in if headless."""
        steps = [Step(_systemctl("enable", UNIT)), Step(_systemctl("reset-failed", UNIT), may_fail=True)]
        if self.headless:
            steps.append(Step(("loginctl", "enable-linger", str(self.uid)), "rvcd runs without anybody logged in."))
        return steps

    def forbid(self) -> Sequence[Step]:
        """No more with a login. Lingering stays: other services may need it."""
        return [Step(_systemctl("disable", UNIT)), Step(_systemctl("reset-failed", UNIT), may_fail=True)]

    def start(self) -> Step:
        """Start; returns when rvcd says that it is ready."""
        return Step(_systemctl("start", UNIT), f"Started {UNIT}.")

    def stop(self) -> Sequence[Step]:
        """Stop; returns when the process is gone."""
        return [Step(_systemctl("stop", UNIT), may_fail=True)]

    def restart(self) -> Step:
        """Stop and start."""
        return Step(_systemctl("restart", UNIT), f"Restarted {UNIT}.")

    def retry(self, _ran: Ran, /) -> bool:
        """Never: systemd waits by itself."""
        return False

    def give_way(self, _ran: Ran, /) -> str:
        """Nowhere to go."""
        return ""

    def remedy(self) -> str:
        """Where reasons are found."""
        return f"Run `rvcd doctor`, and see `journalctl --user -u {UNIT} -e`; then run `rvcd start`."

    def advice(self) -> Sequence[str]:
        """Whether it ends with the session."""
        ran = self.run(("loginctl", "show-user", str(self.uid), "--property=Linger"))
        if ran.code == 0 and "Linger=no" in ran.out:
            return ["rvcd runs while you are logged in; `rvcd install --headless` keeps it running always."]
        return []
