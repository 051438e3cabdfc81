"""Where a stem lies (its hot folder, the root of its backups, its sub-folder's voice) and where its result goes."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePath

from rvcd.config import Config, Folder
from rvcd.errors import Code, RvcdError
from rvcd.jobs import JobRequest

_LOSSY = (".mp3", ".ogg", ".oga", ".opus")


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


def target_of(config: Config, request: JobRequest, voice: str) -> Path:
    """Where the result goes; for an `out` that is a folder, under the sibling's name.

    Raises `RvcdError`: `bad_request` if the request does not say where, or names the stem itself.
    """
    if request.mode == "replace":
        return request.path
    # Lossy containers are read but not written: their sibling is a WAV.
    suffix = ".wav" if request.path.suffix.lower() in _LOSSY else request.path.suffix
    sibling = f"{request.path.stem}.{voice.replace('/', '_')}{suffix}"
    if request.mode == "sibling":
        return request.path.with_name(sibling)
    folder = folder_of(config, request.path)
    out = request.out or (folder.out if folder else None)
    if out is None:
        raise RvcdError(Code.BAD_REQUEST, 'With mode "out" the request must say where: give `out`.')
    target = out if out.suffix and not out.is_dir() else out / sibling
    if os.path.realpath(target) == os.path.realpath(request.path):
        raise RvcdError(Code.BAD_REQUEST, f'{target} is the stem itself; mode "replace" keeps a backup of it.')
    return target
