"""The property list and the unit: right by our own rules and by parsers that we did not write."""

import os
import plistlib
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from rvcd.service import definition
from rvcd.service.definition import LABEL, UNIT, Places
from rvcd.service.plist import property_list
from rvcd.service.unit import unit
from tests.support.fake_launchctl import complaints

ROOT = Path(__file__).parents[1]
PLACES = Places(Path("/opt/venv/bin/python"), Path("/Users/mia/Data/rvcd"), Path("/Users/mia/Logs/rvcd"), {})
ODD = "a \"b\" <c> & 50%d 'e' $HOME \\f é"
ODD_PLACES = Places(
    Path(f"/odd/{ODD}/python"), Path(f"/odd/{ODD}/home"), Path(f"/odd/{ODD}/logs"), {"RVCD_HOME": f"/odd/{ODD}/home"}
)


def test_the_property_list_says_what_was_decided() -> None:
    assert plistlib.loads(property_list(PLACES, headless=False)) == {
        "Label": "io.rvcd.agent",
        "ProgramArguments": ["/opt/venv/bin/python", "-m", "rvcd", "run", "--supervised"],
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 10,
        "ProcessType": "Interactive",
        "ExitTimeOut": 30,
        "LimitLoadToSessionType": ["Aqua"],
        "WorkingDirectory": "/Users/mia/Data/rvcd",
        "StandardOutPath": "/Users/mia/Logs/rvcd/launchd.out.log",
        "StandardErrorPath": "/Users/mia/Logs/rvcd/launchd.err.log",
        "EnvironmentVariables": {
            "PATH": "/opt/venv/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "VECLIB_MAXIMUM_THREADS": "2",
            "RVCD_SUPERVISOR": "launchd",
        },
        "SoftResourceLimits": {"NumberOfFiles": 4096},
        "Umask": 0o077,
    }


@pytest.mark.parametrize("places", [PLACES, ODD_PLACES])
@pytest.mark.parametrize("headless", [False, True])
def test_the_property_list_is_what_launchd_accepts(places: Places, headless: bool) -> None:
    assert complaints(property_list(places, headless=headless)) == []


def test_headless_adds_the_background_session() -> None:
    document = plistlib.loads(property_list(PLACES, headless=True))
    assert document["LimitLoadToSessionType"] == ["Aqua", "Background"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"WorkingDirectory": "~/rvcd"}, "WorkingDirectory cannot be"),
        ({"StandardErrorPath": "rvcd.log"}, "StandardErrorPath cannot be"),
        ({"ProgramArguments": ["python", "-m", "rvcd"]}, "ProgramArguments cannot be"),
        ({"ProgramArguments": ["{python}"]}, "ProgramArguments cannot be"),
        ({"Keepalive": True}, "Keepalive is unknown"),
        ({"ThrottleInterval": "10"}, "ThrottleInterval cannot be"),
        ({"Umask": True}, "Umask cannot be"),
        ({"KeepAlive": {"SuccessfulExit": "false"}}, "KeepAlive cannot be"),
        ({"ProcessType": "interactive"}, "ProcessType cannot be"),
        ({"EnvironmentVariables": {"OMP_NUM_THREADS": 1}}, "EnvironmentVariables cannot be"),
    ],
)
def test_our_rules_see_a_wrong_property_list(change: dict[str, Any], complaint: str) -> None:
    document = plistlib.loads(property_list(PLACES, headless=False)) | change
    [found] = complaints(plistlib.dumps(document))
    assert complaint in found


def from_xml(element: ElementTree.Element) -> Any:
    """A property list read by the letter of Apple's DTD."""
    match element.tag:
        case "dict":
            keys, values = element[::2], element[1::2]
            assert len(keys) == len(values)
            assert all(key.tag == "key" for key in keys)
            return {key.text: from_xml(value) for key, value in zip(keys, values, strict=True)}
        case "array":
            return [from_xml(item) for item in element]
        case "true" | "false":
            return element.tag == "true"
        case "integer":
            return int(element.text or "")
        case "string":
            return element.text or ""
    raise AssertionError(element.tag)


@pytest.mark.parametrize("places", [PLACES, ODD_PLACES])
def test_an_independent_parser_reads_the_same(places: Places) -> None:
    contents = property_list(places, headless=True)
    root = ElementTree.fromstring(contents)
    assert (root.tag, root.attrib, len(root)) == ("plist", {"version": "1.0"}, 1)
    assert b'"-//Apple//DTD PLIST 1.0//EN"' in contents or b'"-//Apple Computer//DTD PLIST 1.0//EN"' in contents
    document = from_xml(root[0])
    assert document == plistlib.loads(contents)
    assert document["ProgramArguments"][0] == str(places.python)


def settings(contents: bytes) -> dict[str, list[str]]:
    lines = [line for line in contents.decode().splitlines() if "=" in line and not line.startswith("#")]
    found: dict[str, list[str]] = {}
    for name, value in (line.split("=", 1) for line in lines):
        found.setdefault(name, []).append(value)
    return found


def test_the_unit_says_what_was_decided() -> None:
    expected = {
        "StartLimitIntervalSec": ["300"],
        "StartLimitBurst": ["5"],
        "Type": ["notify"],
        "NotifyAccess": ["main"],
        "ExecStart": ['"/opt/venv/bin/python" -m rvcd run --supervised'],
        "WorkingDirectory": ["/Users/mia/Data/rvcd"],
        "Environment": ["PYTHONUNBUFFERED=1", "OMP_NUM_THREADS=1", "RVCD_SUPERVISOR=systemd"],
        "Restart": ["on-failure"],
        "RestartSec": ["5"],
        "SuccessExitStatus": ["143"],
        "RestartPreventExitStatus": ["78"],
        "WatchdogSec": ["60"],
        "TimeoutStopSec": ["35"],
        "KillMode": ["mixed"],
        "UMask": ["0077"],
        "WantedBy": ["default.target"],
    }
    found = settings(unit(PLACES))
    del found["Description"]
    assert found == expected


def systemd_verdict(path: Path, contents: bytes) -> str:
    """What systemd-analyze says; it prints what it does not know and still ends with 0."""
    path.write_bytes(contents)
    run = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XDG_RUNTIME_DIR": str(path.parent), "SYSTEMD_LOG_LEVEL": "warning"},
    )
    return run.stderr


def a_program(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


if sys.platform == "linux":
    # systemd takes no program whose path has a quote or a backslash.
    @pytest.mark.peers
    @pytest.mark.parametrize(("programs", "data"), [("plain", "plain data"), ("a <b> & 50%d $HOME é", ODD)])
    def test_systemd_reads_the_unit_without_a_word(tmp_path: Path, programs: str, data: str) -> None:
        python = a_program(tmp_path / programs / "python")
        places = Places(python, tmp_path / data, tmp_path / "logs", {"RVCD_HOME": str(tmp_path / data)})
        assert systemd_verdict(tmp_path / UNIT, unit(places)) == ""

    @pytest.mark.peers
    def test_systemd_names_what_it_does_not_know(tmp_path: Path) -> None:
        python = a_program(tmp_path / "bin" / "python")
        contents = unit(Places(python, tmp_path, tmp_path, {}))
        assert "Watchdog" in systemd_verdict(tmp_path / UNIT, contents.replace(b"WatchdogSec", b"WatchdogSecs"))
        python.unlink()
        assert "not executable" in systemd_verdict(tmp_path / UNIT, contents)


def test_extra_variables_belong_to_the_service_section() -> None:
    lines = unit(ODD_PLACES).decode().splitlines()
    place = next(i for i, line in enumerate(lines) if "RVCD_HOME" in line)
    assert lines.index("[Service]") < place < lines.index("[Install]")
    assert lines[place] == 'Environment="RVCD_HOME=/odd/a \\"b\\" <c> & 50%%d \'e\' $HOME \\\\f é/home"'


def test_a_service_keeps_the_folders_that_the_shell_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RVCD_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    places = Places.of_this_installation()
    assert places.environment == {}
    assert all(path.is_absolute() for path in (places.python, places.home, places.logs))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("RVCD_HOME", "~/moved")
    places = Places.of_this_installation()
    assert places.environment == {"XDG_DATA_HOME": str(tmp_path / "data"), "RVCD_HOME": str(tmp_path / "moved")}
    assert (places.home, places.logs) == (tmp_path / "moved", tmp_path / "moved" / "logs")


def test_the_interpreter_is_the_one_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "venv" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(link))
    assert Places.of_this_installation().python == link


def test_an_unknown_name_in_a_template_is_no_silent_hole() -> None:
    with pytest.raises(KeyError):
        definition.fill("{pyhton}", PLACES.names())


def test_a_wheel_holds_the_templates(tmp_path: Path) -> None:
    """Lay out what pyproject.toml puts into a wheel, and read the templates from there alone."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for source, target in wheel["force-include"].items():
        shutil.copytree(ROOT / source, tmp_path / target)
    program = f"""
from rvcd.service import definition
assert definition.__file__.startswith({str(tmp_path)!r}), definition.__file__
for name in ({LABEL + ".plist"!r}, {UNIT!r}):
    print(len(definition.template(name)))
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert [int(size) for size in run.stdout.split()] == [
        (ROOT / "launchd" / name).stat().st_size for name in (f"{LABEL}.plist", UNIT)
    ]
