"""The state machine against models of both managers; nothing here touches a real one."""

import json
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rvcd.cli import main
from rvcd.errors import Code, RvcdError
from rvcd.service.command import Ran, run
from rvcd.service.definition import Places
from rvcd.service.installer import Installer
from rvcd.service.launchd import Launchd
from rvcd.service.systemd import Systemd
from tests.support.fake_launchctl import FakeLaunchctl
from tests.support.fake_systemctl import FakeSystemctl

GUI, USER = "gui/501/io.rvcd.agent", "user/501/io.rvcd.agent"
PROGRAMS = Path(__file__).parent / "support"


class Machine:
    """One user's machine: a fake manager, an installer for it, and what the installer said."""

    def __init__(self, root: Path, fake: Any) -> None:
        self.root, self.fake, self.said, self.slept = root, fake, [], 0.0
        self.python_works = True
        self.places = Places(root / "venv" / "bin" / "python", root / "data", root / "logs", {})

    def run(self, argv: Any) -> Ran:
        if argv[0] == str(self.places.python):
            assert argv[1:] == ("-E", "-P", "-m", "rvcd", "--version")
            return Ran(0, "rvcd 0.1.0") if self.python_works else Ran(1, "", "No module named rvcd")
        code, out, err = self.fake(list(argv))
        assert code != 64, err
        return Ran(code, out, err)

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def manager(self, **how: Any) -> Any:
        if isinstance(self.fake, FakeLaunchctl):
            return Launchd(self.places, self.run, 501, self.root / "LaunchAgents", **how)
        return Systemd(self.places, self.run, 501, Path(self.fake.units), **how)

    def installer(self, *, dry: bool = False, **how: Any) -> Installer:
        return Installer(self.manager(**how), self.said.append, dry=dry, run=self.run, sleep=self.sleep)

    def files(self) -> dict[str, bytes]:
        return {
            str(path): b"" if path.is_symlink() else path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_symlink() or path.is_file()
        }

    def pid(self) -> int:
        if isinstance(self.fake, FakeLaunchctl):
            [job] = self.fake.jobs.values() or [{"pid": 0}]
            return job["pid"]
        return self.fake.pid

    def running_definition(self) -> str:
        if isinstance(self.fake, FakeLaunchctl):
            [job] = self.fake.jobs.values()
            return job["contents"]
        return self.fake.runs

    def commands(self) -> list[str]:
        """What was asked for, without the mere looks."""
        looks = ("print", "managername", "show", "show-user")
        return [" ".join(argv) for argv in self.fake.calls if not set(argv[1:3]) & set(looks)]


def launchd(root: Path, **state: Any) -> Machine:
    return Machine(root, FakeLaunchctl(**state))


def systemd(root: Path, **state: Any) -> Machine:
    return Machine(root, FakeSystemctl(str(root / "units"), **state))


Make = Callable[..., Machine]
both = pytest.mark.parametrize("make", [launchd, systemd])


def fails(call: Callable[[], None]) -> str:
    with pytest.raises(RvcdError) as caught:
        call()
    assert caught.value.code is Code.SERVICE_FAILED
    return caught.value.sentence


@both
def test_install_starts_the_service_and_says_so(tmp_path: Path, make: Make) -> None:
    machine = make(tmp_path)
    mask = os.umask(0)
    try:
        machine.installer().install()
    finally:
        os.umask(mask)
    assert machine.pid()
    assert any(f"rvcd runs (process {machine.pid()})" in sentence for sentence in machine.said)
    definition = machine.manager().definition
    assert machine.running_definition() == definition.read_text()
    assert stat.S_IMODE(definition.stat().st_mode) & 0o133 == 0
    assert machine.places.home.is_dir()
    assert machine.places.logs.is_dir()


@both
def test_install_twice_is_the_same_service_started_anew(tmp_path: Path, make: Make) -> None:
    machine = make(tmp_path)
    machine.installer().install()
    first_pid, files = machine.pid(), machine.files()
    machine.installer().install()
    assert machine.pid() > first_pid
    assert machine.files() == files
    assert any("is up to date" in sentence for sentence in machine.said)


@both
def test_an_upgrade_runs_the_new_definition(tmp_path: Path, make: Make) -> None:
    machine = make(tmp_path)
    machine.installer().install()
    machine.places = replace(machine.places, python=tmp_path / "new venv" / "bin" / "python")
    machine.installer().install()
    assert "new venv" in machine.running_definition()


@both
def test_uninstall_leaves_no_trace(tmp_path: Path, make: Make) -> None:
    machine = make(tmp_path)
    before = machine.files()
    machine.installer().install()
    for leftover in machine.manager().leftovers:
        leftover.write_text("Killed: 9")
    machine.installer().uninstall()
    assert machine.pid() == 0
    assert machine.files() == before
    if isinstance(machine.fake, FakeSystemctl):
        assert machine.fake.known == ""
    machine.said.clear()
    machine.installer().uninstall()
    assert "nothing to remove" in machine.said[0]


@both
def test_stop_start_and_restart(tmp_path: Path, make: Make) -> None:
    machine = make(tmp_path)
    machine.installer().install()
    first_pid = machine.pid()
    machine.installer().start()
    assert machine.pid() == first_pid
    machine.installer().restart()
    second_pid = machine.pid()
    assert second_pid > first_pid
    machine.installer().stop()
    assert machine.pid() == 0
    machine.installer().stop()
    assert machine.said[-1] == "rvcd does not run as a service."
    machine.installer().start()
    assert machine.pid() > second_pid
    machine.installer().stop()
    machine.installer().restart()
    assert machine.pid() > second_pid


@both
@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
def test_what_is_not_installed_cannot_be_started(tmp_path: Path, make: Make, verb: str) -> None:
    machine = make(tmp_path)
    assert "run `rvcd install`" in fails(getattr(machine.installer(), verb))
    assert machine.commands() == []


@both
@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("verb", ["install", "uninstall", "start", "stop", "restart"])
def test_a_dry_run_tells_every_command_and_changes_nothing(
    tmp_path: Path, make: Make, installed: bool, verb: str
) -> None:
    machine = make(tmp_path)
    if installed:
        machine.installer().install()
    machine.fake.calls.clear()
    machine.said.clear()
    machine.slept = 0.0
    before, pid = (machine.files(), sorted(tmp_path.rglob("*"))), machine.pid()
    if installed or verb in ("install", "uninstall"):
        getattr(machine.installer(dry=True), verb)()
    else:
        assert "rvcd install" in fails(getattr(machine.installer(dry=True), verb))
    assert machine.commands() == []
    assert (machine.files(), sorted(tmp_path.rglob("*")), machine.pid()) == (*before, pid)
    assert machine.slept == 0
    told = [sentence.removeprefix("would run: ") for sentence in machine.said if sentence.startswith("would run: ")]
    if installed or verb == "install":
        getattr(machine.installer(), verb)()
    assert machine.commands() == told


@both
def test_a_service_that_dies_at_once_is_told_loudly(tmp_path: Path, make: Make) -> None:
    machine = make(tmp_path, crashes=True)
    sentence = fails(machine.installer().install)
    assert "NOT" in sentence
    assert "rvcd doctor" in sentence
    machine.fake.crashes = False
    machine.installer().start()
    assert machine.pid()


@both
def test_a_process_that_never_ends_is_named(tmp_path: Path, make: Make) -> None:
    machine = make(tmp_path)
    machine.installer().install()
    machine.fake.drain_looks = 10_000
    machine.slept = 0
    sentence = fails(machine.installer().stop)
    assert "does not end" in sentence
    assert f"End process {machine.pid()}" in sentence
    assert 40 <= machine.slept <= 50


@both
def test_an_interpreter_without_rvcd_is_refused_before_anything(tmp_path: Path, make: Make) -> None:
    machine = make(tmp_path)
    machine.python_works = False
    assert "No module named rvcd" in fails(machine.installer().install)
    assert machine.commands() == []
    assert machine.files() == {}


@both
def test_a_definition_that_cannot_be_written_is_told(tmp_path: Path, make: Make) -> None:
    machine = make(tmp_path)
    machine.manager().definition.parent.parent.mkdir(exist_ok=True)
    machine.manager().definition.parent.write_text("a file where the folder should be")
    with pytest.raises(RvcdError) as caught:
        machine.installer().install()
    assert caught.value.code is Code.NOT_WRITABLE
    assert machine.commands() == []


def test_a_bootstrap_waits_until_the_old_job_is_gone(tmp_path: Path) -> None:
    machine = launchd(tmp_path, drain_looks=30)
    machine.installer().install()
    machine.slept = 0
    machine.installer().install()
    assert [command.split()[1] for command in machine.commands()[-3:]] == ["enable", "bootout", "bootstrap"]
    assert machine.slept >= 30 * 0.25 / 2


def test_a_bootstrap_is_tried_again_after_error_5(tmp_path: Path) -> None:
    machine = launchd(tmp_path, flaky_bootstraps=3)
    machine.installer().install()
    assert sum("bootstrap" in command for command in machine.commands()) == 4
    assert machine.pid()


def test_a_bootstrap_that_keeps_failing_ends_with_what_to_do(tmp_path: Path) -> None:
    machine = launchd(tmp_path, flaky_bootstraps=1000)
    sentence = fails(machine.installer().install)
    definition = machine.manager().definition
    assert f"`launchctl bootstrap gui/501 {definition}` ended with 5 (Bootstrap failed: 5: Input/output" in sentence
    assert "rvcd is NOT running" in sentence
    assert "rvcd start" in sentence


def test_a_disabled_label_is_enabled_first(tmp_path: Path) -> None:
    machine = launchd(tmp_path, disabled=[GUI])
    machine.installer().install()
    assert list(machine.fake.jobs) == [GUI]
    machine.installer().stop()
    machine.fake.disabled = [GUI]
    machine.installer().start()
    assert list(machine.fake.jobs) == [GUI]


@pytest.mark.parametrize("code", [37, 113])
def test_a_restart_of_a_job_that_goes_away_becomes_a_start(tmp_path: Path, code: int) -> None:
    machine = launchd(tmp_path)
    machine.installer().install()
    kickstart = machine.fake.kickstart

    def too_late(option: str, target: str) -> tuple[int, str, str]:
        machine.fake.bootout(target)
        if code == 113:
            machine.fake.jobs.clear()
        return kickstart(option, target)

    machine.fake.kickstart = too_late
    first_pid = machine.pid()
    machine.installer().restart()
    assert machine.pid() > first_pid


def test_a_job_that_is_leaving_is_waited_for(tmp_path: Path) -> None:
    machine = launchd(tmp_path)
    machine.installer().install()
    machine.fake.bootout(GUI)
    machine.installer().restart()
    machine.fake.bootout(GUI)
    machine.installer().start()
    assert machine.fake.jobs[GUI]["state"] == "running"


@pytest.mark.parametrize("manager", ["Background", "Aqua"])
def test_without_a_desktop_it_goes_to_the_user_domain_and_says_why(tmp_path: Path, manager: str) -> None:
    machine = launchd(tmp_path, desktop=False, manager=manager)
    machine.installer().install()
    assert list(machine.fake.jobs) == [USER]
    assert "<string>Background</string>" in machine.running_definition()
    assert any("background session (user/501)" in sentence for sentence in machine.said)


def test_over_ssh_the_desktop_session_is_used_if_there_is_one(tmp_path: Path) -> None:
    machine = launchd(tmp_path, manager="Background")
    machine.installer().install()
    assert list(machine.fake.jobs) == [GUI]


def test_headless_is_asked_for(tmp_path: Path) -> None:
    machine = launchd(tmp_path)
    machine.installer(headless=True).install()
    assert list(machine.fake.jobs) == [USER]
    assert not any("background session" in sentence for sentence in machine.said)


def test_one_domain_is_left_before_the_other_is_entered(tmp_path: Path) -> None:
    machine = launchd(tmp_path)
    machine.installer(headless=True).install()
    machine.installer().install()
    assert list(machine.fake.jobs) == [GUI]


def test_a_definition_for_the_screen_does_not_load_without_one(tmp_path: Path) -> None:
    machine = launchd(tmp_path)
    machine.installer().install()
    machine.installer().stop()
    machine.fake.desktop, machine.fake.manager = False, "Background"
    sentence = fails(machine.installer().start)
    assert "requested session" in sentence
    assert "rvcd install --headless" in sentence


def test_root_is_refused(tmp_path: Path) -> None:
    machine = launchd(tmp_path)
    manager = Launchd(machine.places, machine.run, 0, tmp_path / "LaunchAgents")
    assert "without sudo" in fails(Installer(manager, machine.said.append, run=machine.run).install)
    assert machine.fake.calls == []


def test_headless_under_systemd_lingers(tmp_path: Path) -> None:
    machine = systemd(tmp_path)
    machine.installer().install()
    assert "rvcd install --headless" in machine.said[-1]
    assert not machine.fake.linger
    machine.installer(headless=True).install()
    assert machine.fake.linger
    assert "--headless" not in machine.said[-1]


def test_a_machine_without_a_systemd_session_is_told_so(tmp_path: Path) -> None:
    machine = systemd(tmp_path, session=False)
    sentence = fails(machine.installer().uninstall)
    assert "No medium found" in sentence
    assert "rvcd run" in sentence


# The programs: the same models, found on PATH, keeping state between calls.


def put_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, program: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f'#!{sys.executable} -S\nexec(open("{program}").read())\n')
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_the_commands_as_programs_under_launchd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path, monkeypatch, "launchctl", PROGRAMS / "fake_launchctl.py")
    state = tmp_path / "launchctl.json"
    state.write_text(json.dumps(asdict(FakeLaunchctl(flaky_bootstraps=1))))
    monkeypatch.setenv("FAKE_LAUNCHCTL", str(state))
    machine = launchd(tmp_path)
    agents = tmp_path / "Library" / "LaunchAgents"
    installer = Installer(
        Launchd(machine.places, run, 501, agents),
        machine.said.append,
        run=lambda argv: Ran(0) if argv[0] == str(machine.places.python) else run(argv),
        sleep=machine.sleep,
    )
    installer.install()
    assert list(json.loads(state.read_text())["jobs"]) == [GUI]
    installer.uninstall()
    assert json.loads(state.read_text())["jobs"] == {}
    assert list(agents.iterdir()) == []


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Linux user with fake systemctl and loginctl; returns the folder of unit files."""
    for name in ("systemctl", "loginctl"):
        put_on_path(tmp_path, monkeypatch, name, PROGRAMS / "fake_systemctl.py")
    units = tmp_path / "config" / "systemd" / "user"
    (tmp_path / "systemctl.json").write_text(json.dumps(asdict(FakeSystemctl(str(units), uid=os.getuid()))))
    monkeypatch.setenv("FAKE_SYSTEMCTL", str(tmp_path / "systemctl.json"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("RVCD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("rvcd.service.installer._STEADY_SECONDS", 0.25)
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\necho rvcd 0.1.0\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return units


def test_the_command_line_installs_and_uninstalls(linux: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install", "--dry-run"]) == 0
    assert "would run: systemctl --user start rvcd.service" in capsys.readouterr().out
    assert not linux.exists()
    assert main(["install"]) == 0
    assert "rvcd runs (process 2001)" in capsys.readouterr().out
    assert "Environment=" + '"RVCD_HOME=' in (linux / "rvcd.service").read_text()
    assert main(["uninstall", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["dry_run"] is False
    assert f"Removed {linux / 'rvcd.service'}." in document["steps"]
    assert not [path for path in linux.rglob("*") if not path.is_dir()]


def test_a_failed_command_ends_with_1(linux: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start"]) == 1
    assert capsys.readouterr().err.startswith("rvcd: service_failed: rvcd is not installed as a service")


def test_other_systems_are_told_what_to_use(
    linux: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "sunos5")
    assert main(["install"]) == 1
    assert "rvcd run" in capsys.readouterr().err


def test_a_missing_manager_is_told() -> None:
    assert "There is no command /nowhere/launchctl" in fails(lambda: run(("/nowhere/launchctl", "print")) and None)
