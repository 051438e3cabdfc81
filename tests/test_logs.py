import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from logging.handlers import RotatingFileHandler
from pathlib import Path

import pytest

from rvcd import logs, paths
from rvcd.cli import main

log = logging.getLogger("rvcd.daemon")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("RVCD_HOME", str(tmp_path))
    yield tmp_path
    logger = logging.getLogger("rvcd")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


def never() -> None:
    raise AssertionError("there was something to read")


def test_a_line_says_when_where_and_what(home: Path) -> None:
    logs.set_up(foreground=False)
    log.info("stem %s", "a.wav")
    log.debug("not this")
    [line] = logs.log_file().read_text().splitlines()
    date, time, *rest = line.split(" ")
    assert (len(date), len(time), rest) == (10, 12, ["INFO", "daemon:", "stem", "a.wav"])


def test_a_file_name_cannot_fake_a_line(home: Path) -> None:
    logs.set_up(foreground=False)
    log.info("stem %s", "a\n2026-01-01 ERROR daemon: b\udcff.wav")
    [line] = logs.log_file().read_text().splitlines()
    assert line.endswith("stem a\\n2026-01-01 ERROR daemon: b\\udcff.wav")


def test_a_traceback_is_kept(home: Path) -> None:
    logs.set_up(foreground=False)
    log.info("job 7", exc_info=ValueError("broken"))
    assert logs.log_file().read_text().splitlines()[-1] == "ValueError: broken"


def test_in_the_foreground_stderr_tells_the_same(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(foreground=True)
    log.warning("look")
    assert capsys.readouterr().err == logs.log_file().read_text()
    logs.set_up(foreground=False)
    log.warning("again")
    assert capsys.readouterr().err == ""
    assert len(logs.log_file().read_text().splitlines()) == 2


def test_five_files_of_limited_size_stay(home: Path) -> None:
    logs.set_up(foreground=False, max_bytes=1000)
    for number in range(200):
        log.info("line %03d", number)
    files = sorted(logs.log_file().parent.iterdir())
    assert [file.name for file in files] == ["rvcd.log", *(f"rvcd.log.{number}" for number in range(1, 5))]
    assert all(file.stat().st_size <= 1000 for file in files)
    assert logs.MAX_BYTES == 10_000_000


@pytest.mark.parametrize("name", ["logs", "logs/rvcd.log"])
def test_a_log_that_cannot_be_written_stops_nothing(home: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    if name == "logs":
        (home / name).write_text("a file where the folder should be")
    else:
        (home / name).mkdir(parents=True)
    logs.set_up(foreground=False)
    log.error("lost")
    assert capsys.readouterr().err == ""


if sys.platform == "linux":

    def test_a_full_disk_stops_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        logs.set_up(foreground=False)
        log.info("first")
        [handler] = [h for h in logging.getLogger("rvcd").handlers if isinstance(h, RotatingFileHandler)]
        full = Path("/dev/full").open("w")  # noqa: SIM115
        handler.stream, kept = full, handler.stream
        log.info("lost")
        handler.stream = kept
        log.info("last")
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            full.close()
        assert capsys.readouterr().err == ""
        assert [line.split()[-1] for line in logs.read(9)] == ["first", "last"]


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (30, 30), (10_000, None)])
def test_the_last_lines_reach_back_into_older_files(home: Path, count: int, expected: int | None) -> None:
    logs.set_up(foreground=False, max_bytes=1000)
    for number in range(50):
        log.info("line %03d", number)
    numbers = [int(line.split()[-1]) for line in logs.read(count)]
    assert numbers == list(range(50 - (50 if expected is None else expected), 50))


def following(steps: list[Callable[[], None]], count: int = 0) -> Iterator[str]:
    """Follow the log; each pause takes the next step, and one too many is an error."""
    remaining = iter([*steps, never])

    def pause() -> None:
        next(remaining)()

    return logs.read(count, pause)


def write(first: int, last: int) -> Callable[[], None]:
    return lambda: [log.info("line %03d", number) for number in range(first, last)] and None


def numbers(lines: Iterator[str], count: int) -> list[int]:
    return [int(line.split()[-1]) for line in islice(lines, count)]


def test_following_goes_on_through_rotations(home: Path) -> None:
    logs.set_up(foreground=False, max_bytes=500)
    write(0, 5)()
    # About eleven lines fit into a file: rotations happen in, between and several times during the pauses.
    lines = following([write(5, 8), write(8, 20), write(20, 21), write(21, 55)], count=3)
    assert numbers(lines, 53) == list(range(2, 55))


def test_a_rotation_while_files_are_opened_shows_nothing_twice(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs.set_up(foreground=False, max_bytes=500)
    write(0, 30)()
    [handler] = [h for h in logging.getLogger("rvcd").handlers if isinstance(h, RotatingFileHandler)]
    opens, open_file = [0], Path.open

    def rotating(path: Path, *arguments: object, **options: object) -> object:
        opens[0] += 1
        if opens[0] == 2:
            handler.doRollover()
        return open_file(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", rotating)
        assert numbers(logs.read(100), 100) == list(range(30))


def test_following_waits_for_the_first_file(home: Path) -> None:
    logs.set_up(foreground=False)
    assert numbers(following([lambda: None, write(0, 3)]), 3) == [0, 1, 2]


def test_a_line_is_told_when_it_is_complete(home: Path) -> None:
    logs.log_file().parent.mkdir()

    def append(text: str) -> Callable[[], None]:
        def step() -> None:
            with logs.log_file().open("a") as file:
                file.write(text)

        return step

    append("x 1\nx ")()
    assert numbers(following([append("2"), append("2\nx 3\n")], count=5), 3) == [1, 22, 3]


def test_the_command_prints_the_end(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(foreground=False)
    write(0, 30)()
    assert main(["logs", "-n", "2"]) == 0
    assert [line[-3:] for line in capsys.readouterr().out.splitlines()] == ["028", "029"]
    assert main(["logs", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["path"], len(document["lines"])) == (str(logs.log_file()), 20)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [(["logs"], 1, "not_found"), (["logs", "-n", "-1"], 2, "bad_setting"), (["logs", "-f", "--json"], 2, "no end")],
)
def test_what_cannot_be_shown_is_told(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, word: str
) -> None:
    assert main(arguments) == code
    assert word in capsys.readouterr().err


def test_the_command_follows_until_interrupted(home: Path) -> None:
    logs.set_up(foreground=False)
    write(0, 3)()
    command = [sys.executable, "-m", "rvcd", "logs", "-f", "-n", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().endswith("002\n")
        write(3, 4)()
        assert process.stdout.readline().endswith("003\n")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130


def test_logs_are_where_the_platform_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RVCD_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    expected = tmp_path / ("Library/Logs/rvcd" if sys.platform == "darwin" else "state/rvcd/log")
    assert paths.logs_dir() == expected
