"""The library of converted models: the user's voices, and the base models that all voices share."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from rvcd import paths
from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine.configs import Kind, VoiceConfig
from rvcd.mlx_engine.weights import ModelHeader, read_header

_BASE_MODELS: dict[Kind, tuple[str, str]] = {
    "content-encoder": ("content encoder (ContentVec)", "--content-encoder"),
    "pitch": ("pitch model (RMVPE)", "--pitch"),
}


@dataclass(frozen=True)
class VoiceEntry:
    """A file in the voices folder: usable with its header, or damaged with its problem."""

    name: str
    path: Path
    header: ModelHeader | None = None
    problem: RvcdError | None = None

    @property
    def config(self) -> VoiceConfig | None:
        """Sizes of the voice; None where the file is damaged."""
        return self.header.config if self.header and isinstance(self.header.config, VoiceConfig) else None


def list_voices() -> list[VoiceEntry]:
    """Every file of the voices folder, by name; of several under one name, the newest comes first."""
    entries = [_entry(path) for path in _newest_first(paths.voices_dir())]
    return sorted(entries, key=lambda entry: entry.name.casefold())


def find_voice(name: str) -> Path:
    """Find a voice by its name: exactly, else whatever the case, else by a beginning that only one has.

    Raises `RvcdError`: `unknown_voice`, or what is wrong with the file where the one found is damaged.
    """
    entries = list_voices()
    folded = name.casefold()
    matches = (
        [e for e in entries if e.name == name]
        or [e for e in entries if e.name.casefold() == folded]
        or [e for e in entries if folded and e.name.casefold().startswith(folded)]
    )
    names = {entry.name for entry in matches}
    if len(names) != 1:
        raise RvcdError(Code.UNKNOWN_VOICE, _no_such_voice(name, entries, sorted(names)))
    usable = next((entry for entry in matches if entry.problem is None), matches[0])
    if usable.problem is not None:
        raise usable.problem
    return usable.path


def find_model(kind: Kind) -> Path:
    """Find the installed content encoder or pitch model; of several, the one installed last.

    Raises `RvcdError`: `missing_model`.
    """
    damaged = ""
    for path in _newest_first(paths.models_dir()):
        header = _header(path)
        if isinstance(header, RvcdError):
            damaged = f" ({path.name} cannot be used: {header.sentence})"
        elif header.kind == kind:
            return path
    what, option = _BASE_MODELS[kind]
    raise RvcdError(
        Code.MISSING_MODEL,
        f"There is no {what} in {paths.models_dir()}{damaged}; run `rvcd fetch`, `rvcd import FILE`, or name one "
        f"with {option}.",
    )


def _newest_first(folder: Path) -> list[Path]:
    files = [path for path in folder.glob("*.safetensors") if not path.name.startswith(".")]
    return sorted(files, key=lambda path: (-path.stat().st_mtime_ns, path.name))


def _entry(path: Path) -> VoiceEntry:
    header = _header(path)
    if isinstance(header, RvcdError):
        return VoiceEntry(_name_in_file_name(path), path, problem=header)
    if header.kind != "voice":
        problem = RvcdError(Code.NOT_A_CHECKPOINT, f"{path.name} holds a {header.kind} model, not a voice.")
        return VoiceEntry(header.name, path, problem=problem)
    return VoiceEntry(header.name, path, header)


def _header(path: Path) -> ModelHeader | RvcdError:
    try:
        return read_header(path)
    except RvcdError as error:
        return error
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        return RvcdError(Code.NOT_A_CHECKPOINT, f"{path.name} is damaged ({error}); import its original again.")


def _name_in_file_name(path: Path) -> str:
    """Take the voice's name from `{name}.{key}.safetensors`."""
    return path.stem.rpartition(".")[0] or path.stem


def _no_such_voice(name: str, entries: list[VoiceEntry], matches: list[str]) -> str:
    if matches:
        return f"{name!r} could be any of {', '.join(matches)}; write more of the name."
    known = {entry.name.casefold(): entry.name for entry in entries}
    if not known:
        return f"There is no voice {name!r}: no voice is imported yet; run `rvcd import FILE.pth`."
    near = [known[n] for n in difflib.get_close_matches(name.casefold(), known, n=3, cutoff=0.5)]
    if near:
        return f"There is no voice {name!r}; did you mean {' or '.join(near)}?"
    some = ", ".join(sorted(known.values(), key=str.casefold)[:10])
    return f"There is no voice {name!r}; `rvcd voices` lists the known ones: {some}."
