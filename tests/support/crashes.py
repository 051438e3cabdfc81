"""Convert a stem in place, or undo it, and be killed at every line on the way.

Run as a program: `crashes.py convert|undo FOLDER`. It forks one process per line; each does the same steps and is
killed (SIGKILL) just before its line of that number. What the kill left behind is then judged. Prints how many
lines there were.
"""

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from rvcd import backups, patching, replacing
from rvcd.disk import sha256
from rvcd.errors import RvcdError
from rvcd.fingerprints import Fingerprint
from tests.support.audio_files import broadcast_wave, pcm24, wave_format

FRAMES = 300
OLD = broadcast_wave(pcm24(FRAMES), fmt=wave_format())
NEW = broadcast_wave(pcm24(FRAMES, seed=2), fmt=wave_format())
OURS = {str(Path(module.__file__)) for module in (backups, patching, replacing, sys.modules["rvcd.disk"])}
NOW = 1_800_000_000.0


def new_samples() -> np.ndarray:
    octets = np.frombuffer(pcm24(FRAMES, seed=2), np.uint8).reshape(-1, 3)
    return np.pad(octets, ((0, 0), (1, 0))).copy().view("<i4") / 2.0**31


def convert(stem: Path, root: Path) -> None:
    expected = Fingerprint.of(stem)
    backup = backups.back_up(stem, root, 7, voice="sage", now=NOW)
    staged = patching.stage(stem, new_samples(), backups.stage_folder(root) / "7.wav", seed=0)
    backups.note_result(backup, root, staged.digest)
    replacing.commit(staged, stem, expected)


def undo(stem: Path, root: Path) -> None:
    backups.restore(stem, root, now=NOW)


def killed_at(line: int, action: Any, stem: Path, root: Path) -> bool:
    """Whether the action was killed at that line, rather than done before."""
    child = os.fork()
    if child == 0:
        seen = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal seen
            if frame.f_code.co_filename not in OURS:
                return None
            seen += event == "line"
            if seen == line:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            action(stem, root)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def judge(line: int, stem: Path, root: Path) -> None:
    content = stem.read_bytes()
    assert content in (OLD, NEW), f"line {line}: {len(content)} bytes that are neither"
    assert sorted(path.name for path in root.iterdir()) in ([".rvcd", stem.name], [stem.name]), line
    found = backups.list_backups(root)
    for backup in found:
        assert sha256(backup.path) == backup.sha256, f"line {line}: {backup.path} is not whole"
        assert backup.path.read_bytes() == (OLD if backup.kind == "take" else NEW), line
    if content == NEW:
        assert any(backup.kind == "take" for backup in found), f"line {line}: converted without a backup"


def finish(action: Any, stem: Path, root: Path) -> None:
    """What the next start does: the same again, from wherever the kill left it."""
    wanted = NEW if action is convert else OLD
    if stem.read_bytes() != wanted:
        action(stem, root)
    assert stem.read_bytes() == wanted
    takes = [backup for backup in backups.list_backups(root) if backup.kind == "take"]
    assert len(takes) == 1, takes
    if action is convert:
        undo(stem, root)
        assert stem.read_bytes() == OLD
        with contextlib.suppress(RvcdError):
            undo(stem, root)
            raise AssertionError("there is nothing before the first take")


def main(what: str, folder: Path) -> None:
    action = {"convert": convert, "undo": undo}[what]
    line = 0
    killed = True
    while killed:
        line += 1
        root = folder / str(line)
        root.mkdir()
        stem = root / "lead.wav"
        stem.write_bytes(OLD)
        if action is undo:
            convert(stem, root)
        killed = killed_at(line, action, stem, root)
        judge(line, stem, root)
        finish(action, stem, root)
        shutil.rmtree(root)
    print(line - 1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
