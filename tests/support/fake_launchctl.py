"""launchctl as far as rvcd uses it, modelled on launchctl(1) and on public reports of its answers.

Strict: an unknown sub-command, a wrong order or a missing argument ends with 64 and fails the test. A job
that was booted out stays for some looks at it, and a bootstrap meanwhile fails with 5. Run as a program,
it keeps its state in the JSON file that FAKE_LAUNCHCTL names.
"""

import json
import os
import plistlib
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LABEL = r"[a-z]+(\.[a-z]+)+"


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_absolute(value: object) -> bool:
    return isinstance(value, str) and value.startswith("/") and "~" not in value and "{" not in value


KEYS: dict[str, Any] = {
    "Label": lambda v: bool(re.fullmatch(LABEL, v)),
    "ProgramArguments": lambda v: bool(v) and all(isinstance(a, str) and a for a in v) and is_absolute(v[0]),
    "RunAtLoad": lambda v: isinstance(v, bool),
    "KeepAlive": lambda v: list(v) == ["SuccessfulExit"] and isinstance(v["SuccessfulExit"], bool),
    "ThrottleInterval": is_count,
    "ProcessType": lambda v: v in ("Background", "Standard", "Adaptive", "Interactive"),
    "ExitTimeOut": is_count,
    "LimitLoadToSessionType": lambda v: bool(v) and set(v) <= {"Aqua", "Background", "LoginWindow", "StandardIO"},
    "WorkingDirectory": is_absolute,
    "StandardOutPath": is_absolute,
    "StandardErrorPath": is_absolute,
    "EnvironmentVariables": lambda v: all(isinstance(x, str) and "~" not in x for pair in v.items() for x in pair),
    "SoftResourceLimits": lambda v: list(v) == ["NumberOfFiles"] and is_count(v["NumberOfFiles"]),
    "Umask": is_count,
}
REQUIRED = {"Label", "ProgramArguments"}


def complaints(contents: bytes) -> list[str]:
    """What launchd.plist(5) would not have."""
    try:
        document = plistlib.loads(contents)
    except (ValueError, plistlib.InvalidFileException) as error:
        return [f"not a property list: {error}"]
    found = [f"{key} is missing" for key in REQUIRED - set(document)]
    for key, value in document.items():
        try:
            if key not in KEYS:
                found.append(f"{key} is unknown")
            elif not KEYS[key](value):
                found.append(f"{key} cannot be {value!r}")
        except (TypeError, AttributeError, KeyError):
            found.append(f"{key} cannot be {value!r}")
    return found


@dataclass
class FakeLaunchctl:
    uid: int = 501
    desktop: bool = True
    """Whether somebody is logged in at the screen."""
    manager: str = "Aqua"
    """The session that the caller is in."""
    drain_looks: int = 3
    """How often a booted-out job is still seen."""
    flaky_bootstraps: int = 0
    """How many bootstraps fail with 5 although the job is gone."""
    crashes: bool = False
    """Whether the process dies as soon as it starts."""
    disabled: list[str] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    next_pid: int = 1000
    calls: list[list[str]] = field(default_factory=list)

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        """Answer one command: exit status, stdout, stderr."""
        self.calls.append(list(argv))
        word, *rest = argv[1:] or [""]
        verb = {
            "managername": (self.managername, 0),
            "print": (self.print, 1),
            "enable": (self.enable, 1),
            "bootout": (self.bootout, 1),
            "bootstrap": (self.bootstrap, 2),
            "kickstart": (self.kickstart, 2),
        }.get(word)
        if verb is None or len(rest) != verb[1]:
            return 64, "", f"Usage: not like this: {argv}"
        return verb[0](*rest)

    def managername(self) -> tuple[int, str, str]:
        return 0, f"{self.manager}\n", ""

    def print(self, target: str) -> tuple[int, str, str]:
        domain, label = self.split(target)
        if domain is None:
            return 64, "", "Unrecognized target specifier."
        if not self.has(domain):
            return 125, "", "Domain does not support specified action"
        if label is None:
            return 0, f"{domain} = {{\n\ttype = user\n}}\n", ""
        job = self.jobs.get(target)
        if job is None:
            kind, uid = domain.split("/")
            return 113, "", f'Bad request.\nCould not find service "{label}" in domain for user {kind}: {uid}\n'
        shown = self.show(target, job)
        if job["state"] == "SIGTERMed":
            job["looks"] -= 1
            if job["looks"] <= 0:
                del self.jobs[target]
        return 0, shown, ""

    def show(self, target: str, job: dict[str, Any]) -> str:
        pid = f"\tpid = {job['pid']}\n" if job["pid"] else ""
        return (
            f"{target} = {{\n\tactive count = 1\n\tpath = {job['path']}\n\ttype = LaunchAgent\n"
            f"\tstate = {job['state']}\n\n"
            f"\tprogram = {job['program']}\n\tdefault environment = {{\n\t\tstate = nested\n\t\tpid = 7\n\t}}\n\n"
            f"\tdomain = {target.rpartition('/')[0]} [100005]\n\truns = 1\n{pid}\tlast exit code = {job['exit']}\n}}\n"
        )

    def enable(self, target: str) -> tuple[int, str, str]:
        domain, label = self.split(target)
        if label is None:
            return 64, "", "Usage: launchctl enable <service-target>"
        if not self.has(domain):
            return 125, "", "Could not enable service: 125: Domain does not support specified action"
        self.disabled = [other for other in self.disabled if other != target]
        return 0, "", ""

    def bootout(self, target: str) -> tuple[int, str, str]:
        if self.split(target)[1] is None:
            return 64, "", "Usage: launchctl bootout <service-target>"
        job = self.jobs.get(target)
        if job is None:
            return 3, "", "Boot-out failed: 3: No such process"
        job |= {"state": "SIGTERMed", "looks": self.drain_looks}
        if self.drain_looks == 0:
            del self.jobs[target]
        return 0, "", ""

    def bootstrap(self, domain: str, path: str) -> tuple[int, str, str]:
        if self.split(domain) == (None, None) or self.split(domain)[1]:
            return 64, "", "Usage: launchctl bootstrap <domain-target> <service-path>"
        if not self.has(domain):
            return 125, "", "Bootstrap failed: 125: Domain does not support specified action"
        problem = self.problem_with(domain, Path(path))
        if self.flaky_bootstraps:
            self.flaky_bootstraps -= 1
            problem = problem or 5
        if problem == 134:
            return 134, "", "Bootstrap failed: 134: Service cannot load in requested session"
        if problem:
            said = "Bootstrap failed: 5: Input/output error\nTry re-running the command as root for richer errors.\n"
            return 5, "", said
        contents = Path(path).read_bytes()
        document = plistlib.loads(contents)
        target = f"{domain}/{document['Label']}"
        self.jobs[target] = {"path": path, "program": document["ProgramArguments"][0], "contents": contents.decode()}
        self.spawn(target)
        return 0, "", ""

    def problem_with(self, domain: str, path: Path) -> int:
        if not path.is_absolute() or not path.is_file():
            return 5
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022 or complaints(path.read_bytes()):
            return 5
        document = plistlib.loads(path.read_bytes())
        target = f"{domain}/{document['Label']}"
        if target in self.jobs or target in self.disabled:
            return 5
        session = "Aqua" if domain.startswith("gui/") else "Background"
        return 0 if session in document.get("LimitLoadToSessionType", [session]) else 134

    def kickstart(self, option: str, target: str) -> tuple[int, str, str]:
        if option != "-k" or self.split(target)[1] is None:
            return 64, "", "Usage: launchctl kickstart -k <service-target>"
        job = self.jobs.get(target)
        if job is None:
            return 113, "", f'Could not find service "{self.split(target)[1]}" in domain for {target}'
        if job["state"] == "SIGTERMed":
            return 37, "", "Could not kickstart service: 37: Operation already in progress"
        self.spawn(target)
        return 0, "", ""

    def spawn(self, target: str) -> None:
        self.next_pid += 1
        running = {"state": "running", "pid": self.next_pid, "exit": "(never exited)"}
        self.jobs[target] |= {"state": "spawn scheduled", "pid": 0, "exit": "1"} if self.crashes else running

    def has(self, domain: str | None) -> bool:
        return domain == f"user/{self.uid}" or (domain == f"gui/{self.uid}" and self.desktop)

    def split(self, target: str) -> tuple[str | None, str | None]:
        match = re.fullmatch(rf"((?:gui|user)/\d+)(?:/({LABEL}))?", target)
        return (match[1], match[2]) if match else (None, None)


def main() -> int:
    state = Path(os.environ["FAKE_LAUNCHCTL"])
    fake = FakeLaunchctl(**json.loads(state.read_text()))
    code, out, err = fake(sys.argv)
    state.write_text(json.dumps(asdict(fake)))
    sys.stdout.write(out)
    sys.stderr.write(err)
    return code


if __name__ == "__main__":
    sys.exit(main())
