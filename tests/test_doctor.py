import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rvcd import doctor
from rvcd.cli import main
from rvcd.doctor import Finding, Subject, Verdict, examine
from rvcd.engine_doctor import check_arithmetic, check_models, check_voices
from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine import import_checkpoint, self_test
from rvcd.mlx_engine.layers import Conv1d


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RVCD_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A UDP port of another program."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.settimeout(30)
        yield other


def only(findings: Iterator[Finding]) -> Finding:
    [finding] = findings
    return finding


def verdicts(findings: list[Finding]) -> dict[str, Verdict]:
    return {finding.check: finding.verdict for finding in findings}


def test_what_is_wrong_says_what_to_do(home: Path, taken: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_REPLY_SECONDS", 0.01)
    error = RvcdError(Code.BAD_CONFIGURATION, "rvcd.toml:3: osc.prot: unknown")
    port = taken.getsockname()[1]
    findings = examine(Subject([home / "gone"], port=port, configuration_error=error), engine=False)
    assert verdicts(findings) == {
        "versions": "ok",
        "configuration": "fail",
        "port": "fail",
        "folder": "warn",
        "disk": verdicts(findings)["disk"],
        "clock": "ok",
    }
    assert "osc.prot" in next(finding.sentence for finding in findings if finding.check == "configuration")
    for finding in findings:
        assert bool(finding.remedy) is (finding.verdict is not Verdict.OK)
        assert Finding.from_json(json.loads(json.dumps(finding.to_json()))) == finding


def test_a_check_that_breaks_is_a_finding(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_now: float) -> Iterator[Finding]:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(doctor, "check_clock", breaks)
    findings = {finding.check: finding for finding in examine(Subject(), engine=False)}
    assert findings["clock"].verdict is Verdict.FAIL
    assert "ZeroDivisionError: division by zero" in findings["clock"].sentence
    assert findings["versions"].verdict is Verdict.OK


def test_a_free_port_is_fine(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    taken.close()
    assert only(doctor.check_port("127.0.0.1", port)).verdict is Verdict.OK


def test_an_address_that_is_not_ours_is_not_a_port_that_is_taken() -> None:
    finding = only(doctor.check_port("192.0.2.1", 7823))
    assert (finding.verdict, "cannot be used" in finding.sentence) == (Verdict.FAIL, True)


def answering(taken: socket.socket, answer: Callable[[bytes], bytes]) -> threading.Thread:
    def serve() -> None:
        ping, sender = taken.recvfrom(1000)
        taken.sendto(answer(ping), sender)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_a_port_held_by_rvcd_is_fine(taken: socket.socket) -> None:
    def pong(ping: bytes) -> bytes:
        assert ping == b"/rvcd/ping\0\0,\0\0\0"
        return b"/rvcd/pong\0\0,\0\0\0"

    thread = answering(taken, pong)
    finding = only(doctor.check_port("127.0.0.1", taken.getsockname()[1]))
    thread.join()
    assert (finding.verdict, "rvcd runs" in finding.sentence) == (Verdict.OK, True)


def test_a_port_held_by_another_program_is_not(taken: socket.socket) -> None:
    thread = answering(taken, lambda _ping: b"HTTP/1.1 400 Bad Request")
    finding = only(doctor.check_port("127.0.0.1", taken.getsockname()[1]))
    thread.join()
    assert finding.verdict is Verdict.FAIL
    assert "lsof" in finding.remedy


def test_a_folder_is_really_listed_and_written(tmp_path: Path) -> None:
    assert only(doctor.check_folder(tmp_path)).verdict is Verdict.OK
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert "not a folder" in only(doctor.check_folder(tmp_path / "file")).sentence


@pytest.mark.parametrize(
    ("number", "platform", "remedy"),
    [
        (errno.EPERM, "darwin", "Privacy & Security"),
        (errno.EACCES, "darwin", "ls -ld"),
        (errno.EPERM, "linux", "ls -ld"),
        (errno.EROFS, "linux", "read-only"),
    ],
)
def test_a_refused_folder_names_the_door_that_is_shut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, platform: str, remedy: str
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(sys, "platform", platform)
    finding = only(doctor.check_folder(tmp_path))
    assert finding.verdict is Verdict.FAIL
    assert os.strerror(number) in finding.sentence
    assert remedy in finding.remedy


@pytest.mark.parametrize(("free", "verdict"), [(10**8, "fail"), (10**9, "warn"), (10**10, "ok")])
def test_room_is_told_once_per_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    finding = only(doctor.check_disks([tmp_path, tmp_path / "not yet" / "there", tmp_path.parent]))
    assert finding.verdict == verdict


def test_a_clock_before_the_installation_is_wrong() -> None:
    installed = Path(doctor.__file__).stat().st_mtime
    assert only(doctor.check_clock(installed + 60)).verdict is Verdict.OK
    assert only(doctor.check_clock(0.0)).verdict is Verdict.WARN


@pytest.mark.parametrize(
    ("program", "said"),
    [("import os; os.abort()", "died with -6"), ("raise SystemExit('no GPU')", "died with 1 (no GPU)")],
)
def test_a_child_that_dies_is_a_finding(program: str, said: str) -> None:
    finding = only(doctor.check_engine((sys.executable, "-c", program)))
    assert (finding.verdict, said in finding.sentence) == (Verdict.FAIL, True)


def test_models_and_voices_are_looked_at(home: Path, models_folder: Path) -> None:
    assert [finding.verdict for finding in check_models()] == ["fail", "fail"]
    assert only(check_voices()).verdict is Verdict.WARN
    import_checkpoint(models_folder / "content", directory=home / "models")
    import_checkpoint(models_folder / "rmvpe.pt", directory=home / "models")
    import_checkpoint(models_folder / "voice.pth", directory=home / "voices")
    (home / "voices" / "Mia.0123.safetensors").write_bytes(b"half")
    assert [finding.verdict for finding in check_models()] == ["ok", "ok"]
    damaged, usable = check_voices()
    assert (damaged.verdict, "Mia" in damaged.remedy) == (Verdict.WARN, True)
    assert (usable.verdict, usable.sentence) == (Verdict.OK, "Voices that can be used: 1.")


def test_the_engine_agrees_with_plain_operations() -> None:
    comparison = self_test.compare()
    assert comparison.failed == []
    assert set(comparison.deviations) == {"convolution", "image", "recurrence", "product", "activation"}
    assert max(comparison.deviations.values()) < 1e-5


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_layer_that_computes_wrong_is_named(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    right = Conv1d.__call__
    monkeypatch.setattr(Conv1d, "__call__", lambda *arguments: right(*arguments) * factor)
    assert self_test.compare().failed == ["convolution"]
    finding = list(check_arithmetic())[-1]
    assert (finding.check, finding.verdict) == ("arithmetic", Verdict.FAIL)
    assert "convolution by" in finding.sentence


def test_the_command_examines_what_is_configured(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "rvcd.toml").write_text(f'[osc]\nport = 0\n[[folder]]\npath = "{home}"\n')
    assert main(["doctor", "--json"]) == 1
    findings = {found["check"]: found for found in json.loads(capsys.readouterr().out)}
    fine = {check for check, found in findings.items() if found["verdict"] == "ok"}
    assert fine - {"disk", "backend"} == {"versions", "configuration", "port", "folder", "clock", "arithmetic"}
    assert {findings["models"]["verdict"], findings["voices"]["verdict"]} == {"fail", "warn"}
    assert str(home) in findings["folder"]["sentence"]
    (home / "rvcd.toml").write_text(f'[osc]\nprot = 0\n[[folder]]\npath = "{home}"\n')
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("fail  configuration") and "prot" in line for line in lines)
    assert any(line.startswith("ok    folder") and str(home) in line for line in lines)


@pytest.mark.parametrize("module", ["doctor", "logs", "service.notify", "service.systemd", "commands.servicing"])
def test_what_the_supervisor_loads_is_small(module: str) -> None:
    program = f"import sys, rvcd.{module}; sys.exit(bool({{'numpy', 'mlx', 'rich', 'soundfile'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
