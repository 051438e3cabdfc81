"""systemctl --user and loginctl as far as rvcd uses them.

Strict like its launchd twin. A unit file that was written is unknown until `daemon-reload`. Run as a
program, under either name, it keeps its state in the JSON file that FAKE_SYSTEMCTL names.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

UNIT = "rvcd.service"
SHOWN = "--property=LoadState,ActiveState,SubState,MainPID,Result"


@dataclass
class FakeSystemctl:
    units: str
    """The folder of unit files."""
    uid: int = 501
    session: bool = True
    drain_looks: int = 0
    """How often a stopped unit is still seen going: 0 where stop waits, as it does unless it is cut off."""
    crashes: bool = False
    linger: bool = False
    known: str = ""
    """The unit as it was read last."""
    active: str = "inactive"
    pid: int = 0
    looks: int = 0
    runs: str = ""
    """The unit that the running process was started from."""
    next_pid: int = 2000
    calls: list[list[str]] = field(default_factory=list)

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        """Answer one command: exit status, stdout, stderr."""
        self.calls.append(list(argv))
        if argv[:2] == ["systemctl", "--user"]:
            return self.systemctl(argv[2:]) if self.session else (1, "", "Failed to connect to bus: No medium found\n")
        return self.loginctl(argv)

    def loginctl(self, argv: list[str]) -> tuple[int, str, str]:
        match argv:
            case ["loginctl", "show-user", uid, "--property=Linger"] if uid == str(self.uid):
                return 0, f"Linger={'yes' if self.linger else 'no'}\n", ""
            case ["loginctl", "enable-linger", uid] if uid == str(self.uid):
                self.linger = True
                return 0, "", ""
        return 64, "", f"Unknown command: {argv}"

    def systemctl(self, words: list[str]) -> tuple[int, str, str]:
        match words:
            case ["daemon-reload"]:
                self.known = self.file.read_text() if self.file.exists() else ""
                return 0, "", ""
            case ["show", name, properties] if (name, properties) == (UNIT, SHOWN):
                return self.show()
            case [("enable" | "disable" | "start" | "stop" | "restart") as verb, name] if name == UNIT:
                return getattr(self, verb)()
            case ["reset-failed", name] if name == UNIT:
                return self.reset_failed()
        return 64, "", f"Unknown command: {words}"

    @property
    def file(self) -> Path:
        return Path(self.units) / UNIT

    @property
    def wanted(self) -> Path:
        return Path(self.units) / "default.target.wants" / UNIT

    def show(self) -> tuple[int, str, str]:
        if self.active == "deactivating":
            self.looks -= 1
            if self.looks < 0:
                self.active, self.pid = "inactive", 0
        load = "loaded" if self.known else "not-found"
        sub = {"active": "running", "inactive": "dead", "failed": "failed", "deactivating": "stop-sigterm"}[self.active]
        result = "exit-code" if self.active == "failed" else "success"
        return (
            0,
            f"Result={result}\nMainPID={self.pid}\nLoadState={load}\nActiveState={self.active}\nSubState={sub}\n",
            "",
        )

    def enable(self) -> tuple[int, str, str]:
        if not self.file.exists():
            return 1, "", f"Failed to enable unit: Unit file {UNIT} does not exist.\n"
        self.wanted.parent.mkdir(exist_ok=True)
        self.wanted.unlink(missing_ok=True)
        self.wanted.symlink_to(self.file)
        return 0, "", ""

    def disable(self) -> tuple[int, str, str]:
        if not self.file.exists():
            return 1, "", f"Failed to disable unit: Unit file {UNIT} does not exist.\n"
        self.wanted.unlink(missing_ok=True)
        return 0, "", ""

    def reset_failed(self) -> tuple[int, str, str]:
        if self.active == "failed":
            self.active = "inactive"
            return 0, "", ""
        return 1, "", f"Failed to reset failed state of unit {UNIT}: Unit {UNIT} not loaded.\n"

    def start(self) -> tuple[int, str, str]:
        if not self.known:
            return 5, "", f"Failed to start {UNIT}: Unit {UNIT} not found.\n"
        if self.active == "failed":
            return 1, "", f"Failed to start {UNIT}: start request repeated too quickly.\n"
        if self.crashes:
            self.active, self.pid = "failed", 0
            return 1, "", f"Job for {UNIT} failed because the control process exited with error code.\n"
        if self.active != "active":
            self.next_pid += 1
            self.active, self.pid, self.runs = "active", self.next_pid, self.known
        return 0, "", ""

    def stop(self) -> tuple[int, str, str]:
        if self.active == "active":
            self.active, self.looks = "deactivating", self.drain_looks
            if self.drain_looks == 0:
                self.active, self.pid = "inactive", 0
        return 0, "", ""

    def restart(self) -> tuple[int, str, str]:
        self.active, self.pid = "inactive", 0
        return self.start()


def main() -> int:
    state = Path(os.environ["FAKE_SYSTEMCTL"])
    fake = FakeSystemctl(**json.loads(state.read_text()))
    code, out, err = fake([Path(sys.argv[0]).name, *sys.argv[1:]])
    state.write_text(json.dumps(asdict(fake)))
    sys.stdout.write(out)
    sys.stderr.write(err)
    return code


if __name__ == "__main__":
    sys.exit(main())
