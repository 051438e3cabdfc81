import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rvcd.cli import main

COMMANDS = (
    *("import", "voices", "convert", "inspect", "fetch"),
    *("run", "status", "jobs", "send", "cancel", "undo", "backups"),
    *("config", "install", "uninstall", "start", "stop", "restart", "logs", "doctor"),
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("RVCD_HOME", str(folder))
    return folder


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    path = tmp_path / "lead.wav"
    soundfile.write(path, np.zeros(4000), 40_000, "PCM_24")
    return path


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    """A file that is named like a voice: enough for what is checked before any voice is read."""
    path = tmp_path / "Anna.pth"
    path.write_bytes(b"not a voice")
    return path


def run_rvcd(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rvcd", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False
    )


def modules_after(*arguments: str) -> set[str]:
    """Top-level modules that a command has loaded when it ends."""
    program = f"""
import sys
from rvcd.cli import main
try:
    main({list(arguments)!r})
except SystemExit:
    pass
print("\\n" + " ".join({{name.partition(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_names_every_command_and_ends_with_0() -> None:
    done = run_rvcd("--help")
    assert done.returncode == 0
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ")}
    assert listed >= set(COMMANDS)
    for command in COMMANDS:
        assert run_rvcd(command, "--help").returncode == 0


@pytest.mark.parametrize(
    "arguments", [["--help"], ["convert", "--help"], ["voices"], ["voices", "--json"], ["bogus"], ["status"], ["jobs"]]
)
def test_looking_around_never_loads_mlx(home: Path, arguments: list[str]) -> None:
    assert not {"mlx", "faiss"} & modules_after(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bogus"],
        ["voices", "--bogus"],
        ["convert", "lead.wav"],
        ["convert", "--voice", "Anna"],
        ["convert", "lead.wav", "--voice", "Anna", "--f0", "crepe"],
        ["convert", "lead.wav", "--voice", "Anna", "--semitones", "high"],
        ["convert", "lead.wav", "--voice", "Anna", "--semi", "1"],
        ["import"],
        ["send"],
        ["send", "lead.wav", "--mode", "overwrite"],
        ["send", "lead.wav", "--voi", "Anna"],
        ["cancel"],
        ["cancel", "12", "--all"],
        ["cancel", "lead.wav"],
        ["jobs", "--active", "--failed"],
        ["undo"],
        ["run", "--port", "high"],
    ],
)
def test_bad_usage_ends_with_2(home: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: rvcd" in capsys.readouterr().err


def test_an_unknown_voice_is_bad_usage_told_in_one_line(home: Path, stem: Path) -> None:
    done = run_rvcd("convert", stem, "--voice", "Anna")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("rvcd: unknown_voice: There is no voice 'Anna'")
    assert done.stderr.count("\n") == 1


def test_a_failed_command_with_json_prints_one_document(home: Path, stem: Path) -> None:
    done = run_rvcd("convert", stem, "--voice", "Anna", "--json")
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "unknown_voice"
    assert done.stderr == f"rvcd: unknown_voice: {error['message']}\n"


@pytest.mark.parametrize(
    ("option", "value"),
    [("--semitones", "100"), ("--semitones", "nan"), ("--protect", "0.6"), ("--index-rate", "-1"), ("--seed", "-1")],
)
def test_a_setting_out_of_range_is_bad_usage(
    home: Path, stem: Path, voice: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(stem), "--voice", str(voice), f"{option}={value}"]) == 2
    assert capsys.readouterr().err.startswith("rvcd: bad_setting: ")


def test_without_models_the_remedy_is_named(home: Path, stem: Path, voice: Path) -> None:
    done = run_rvcd("convert", stem, "--voice", voice)
    assert done.returncode == 1
    assert done.stderr.startswith("rvcd: missing_model: ")
    assert "rvcd fetch" in done.stderr


def refused_before_anything(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["convert", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rvcd: bad_setting: ")
    return error


def test_a_stem_is_never_the_output(
    home: Path, stem: Path, voice: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "link.wav").symlink_to(stem)
    for output in (stem, tmp_path / "link.wav"):
        arguments = [stem, "--voice", voice, "-o", output, "--overwrite"]
        assert "lead.wav is a stem" in refused_before_anything(arguments, capsys)


def test_two_stems_never_share_an_output(
    home: Path, stem: Path, voice: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "chorus" / "lead.wav"
    other.parent.mkdir()
    other.write_bytes(stem.read_bytes())
    both = [stem, other, "--voice", voice, "-o"]
    assert "Two stems" in refused_before_anything([*both, tmp_path / "out"], capsys)
    assert "2 stems" in refused_before_anything([*both, tmp_path / "out.wav"], capsys)
    assert not (tmp_path / "out.wav").exists()


def test_a_lossy_output_is_refused(
    home: Path, stem: Path, voice: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert ".flac" in refused_before_anything([stem, "--voice", voice, "-o", tmp_path / "out.mp3"], capsys)


def test_an_empty_library_says_how_to_fill_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["voices"]) == 0
    assert "rvcd import" in capsys.readouterr().out
    assert main(["voices", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_damaged_voice_is_listed_not_fatal(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "voices").mkdir(parents=True)
    name = "[red]Mia" + 100 * "a"
    (home / "voices" / f"{name}.0123.safetensors").write_bytes(b"half")
    assert main(["voices"]) == 0
    table, sentence = capsys.readouterr().out.splitlines()[1:]
    assert table.split() == [name, "damaged"]
    assert sentence.startswith(f"{name}: {name}.0123.safetensors")
    assert main(["voices", "--json"]) == 0
    [entry] = json.loads(capsys.readouterr().out)
    assert (entry["name"], entry["error"]["code"]) == (name, "not_a_checkpoint")


def test_names_that_the_terminal_cannot_show_are_escaped(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "voices").mkdir(parents=True)
    (home / "voices" / "Zoë.0123.safetensors").write_bytes(b"half")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run_rvcd("voices")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Zo\\xeb" in done.stdout or "Zoe\\u0308" in done.stdout


def test_a_reader_that_has_seen_enough_gets_no_traceback(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed_pipe:
        done = subprocess.run(
            [sys.executable, "-m", "rvcd", "voices", "--json"],
            stdout=closed_pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == ""
