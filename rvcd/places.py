"""Where a stem lies: its hot folder, the root that keeps its backups, and the voice its sub-folder names."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePath

from rvcd.config import Config, Folder
from rvcd.errors import Code, RvcdError


def folder_of(config: Config, path: Path) -> Folder | None:
    """The innermost hot folder that a stem lies in."""
    real = Path(os.path.realpath(path))
    inside = [folder for folder in config.folders if real.is_relative_to(os.path.realpath(folder.path))]
    return max(inside, key=lambda folder: len(folder.path.parts), default=None)


def root_of(config: Config, path: Path) -> Path:
    """The folder whose `.rvcd` keeps a stem's backups: its hot folder, else its own folder."""
    folder = folder_of(config, path)
    return Path(os.path.realpath(folder.path if folder else path.parent))


def check_allowed(config: Config, path: Path) -> None:
    """Raise `RvcdError("not_allowed")` for a path outside of all allowed roots."""
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(os.path.realpath(root)) for root in config.allowed_roots):
        roots = ", ".join(map(str, config.allowed_roots)) or "none"
        raise RvcdError(
            Code.NOT_ALLOWED,
            f"{path} lies outside of the folders that rvcd may work in ({roots}); add its folder to roots.",
        )


def subfolder_voice(subfolder: PurePath, voices: Iterable[str]) -> str | None:
    """The voice that the innermost sub-folder with a voice's name is named like."""
    known = {voice.casefold(): voice for voice in voices}
    return next((known[part.casefold()] for part in reversed(subfolder.parts) if part.casefold() in known), None)
