"""Finds the models in what users hand over: a file, a folder, or a `.zip` of both; and pairs voices with indexes.

Files are told apart by content, never by name. An archive is judged as a whole before anything of it is
written: an entry that would leave the folder, a link, or a size out of all proportion refuses it.
"""

import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from rvcd.errors import Code, RvcdError, write_error
from rvcd.mlx_engine.checkpoint import MODEL_FILES, feature_width_of, kind_of
from rvcd.mlx_engine.configs import Kind
from rvcd.mlx_engine.faiss_file import is_index, read_index_header
from rvcd.mlx_engine.torch_file import is_torch_zip
from rvcd.mlx_engine.weights import is_converted, read_header

_MAX_ENTRIES = 10_000
_MAX_BYTES = 32 << 30
# Weights and features hardly compress; a ratio like this only a bomb has.
_MAX_RATIO = 200
_BYTES_OF_ANY_RATIO = 64 << 20


@dataclass(frozen=True)
class FoundModel:
    """A file (or transformers folder) and what it is."""

    path: Path
    kind: Kind | Literal["index", "unknown"]
    width: int = 0
    """Of the features that a voice reads or an index holds."""
    vectors: int = 0
    """In an index; 0 in a `trained_` one, which is of no use."""
    problem: RvcdError | None = None
    """Why an unknown file is unknown."""


def find_models(path: Path, unpack_into: Path) -> list[FoundModel]:
    """Find every model in a file, a folder, or a zip archive, which is unpacked into `unpack_into`.

    Files that are no model are listed as `unknown`, with the reason.

    Raises `RvcdError`: `not_found`, `unsafe_archive`, `truncated_file`, `not_writable`, `disk_full`.
    """
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise RvcdError(Code.NOT_FOUND, f"There is no file {path}.")
    if _is_plain_zip(path):
        unpack(path, unpack_into)
        return _in_folder(unpack_into)
    return [identify(path)]


def identify(path: Path) -> FoundModel:
    """Tell what one file or transformers folder is."""
    try:
        if path.is_file() and is_index(path):
            header = read_index_header(path)
            return FoundModel(path, "index", header.width, header.count)
        if path.is_file() and is_converted(path):
            return FoundModel(path, read_header(path).kind)
        kind = kind_of(path)
        return FoundModel(path, kind, feature_width_of(path) if kind == "voice" else 0)
    except RvcdError as problem:
        return FoundModel(path, "unknown", problem=problem)


def pair_voices(models: Iterable[FoundModel]) -> list[tuple[FoundModel, FoundModel | None]]:
    """Find each voice its retrieval index, or None.

    Only an index of the voice's width fits. Among those the most alike name wins, in the voice's own folder
    first; without any likeness, an index is taken only where it and the voice have no other choice.
    """
    models = list(models)
    voices = [model for model in models if model.kind == "voice"]
    indexes = [model for model in models if model.kind == "index" and model.vectors]
    return [(voice, _index_for(voice, voices, indexes)) for voice in voices]


def _index_for(voice: FoundModel, voices: list[FoundModel], indexes: list[FoundModel]) -> FoundModel | None:
    fitting = [index for index in indexes if voice.width in (0, index.width)]
    alike = [index for index in fitting if _likeness(voice, index)]
    if alike:
        return max(alike, key=lambda index: (_likeness(voice, index), index.path.parent == voice.path.parent))
    for near in ([index for index in fitting if index.path.parent == voice.path.parent], fitting):
        rivals = [v for v in voices if near is fitting or v.path.parent == voice.path.parent]
        if len(near) == 1 and len(rivals) == 1:
            return near[0]
    return None


def _likeness(voice: FoundModel, index: FoundModel) -> int:
    """0: names have nothing in common; 1: one contains the other; 2: the same name."""
    one, other = bare_name(voice.path), bare_name(index.path)
    if one == other:
        return 2
    return int(min(len(one), len(other)) >= 3 and (one in other or other in one))


def bare_name(path: Path) -> str:
    """Take off what trainers put around a voice's name, in the file names of voices and indexes.

    Source: RVC WebUI and Applio, `added_IVF256_Flat_nprobe_1_NAME_v2.index`, `NAME_e200_s9000.pth`.
    """
    name = path.stem.lower()
    name = re.sub(r"(?:added|trained)_ivf\d+_flat(?:_nprobe_\d+)?_?", "", name)
    name = re.sub(r"(?:_spkid\d+|_e\d+|_s\d+|_v[12]|_\d+e|_best_epoch|_best)+$", "", name)
    return re.sub(r"[\W_]+", "", name)


def _in_folder(folder: Path) -> list[FoundModel]:
    found: list[FoundModel] = []
    taken: set[Path] = set()
    for settings in sorted(folder.rglob("config.json")):
        if any((settings.parent / name).is_file() for name in MODEL_FILES):
            model = identify(settings.parent)
            if model.kind != "unknown":
                found.append(model)
                taken |= {file for file in settings.parent.iterdir() if file.is_file()}
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file not in taken]
    return found + [identify(file) for file in files if not _is_clutter(file.relative_to(folder))]


def _is_clutter(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _is_plain_zip(path: Path) -> bool:
    """Whether the file is a zip archive, and not one of torch's."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            return not is_torch_zip(archive.namelist())
    except zipfile.BadZipFile:
        # Torch begins with the pickle of its one folder; this is how a cut checkpoint differs from a cut archive.
        with path.open("rb") as file:
            return b"/data.pkl" not in file.read(512)


def unpack(path: Path, folder: Path) -> None:
    """Unpack a zip archive into a new or empty folder.

    Raises `RvcdError`: `unsafe_archive`, `truncated_file`, `not_writable`, `disk_full`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _judge(path, entries)
            for entry in entries:
                _unpack_entry(path, archive, entry, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise RvcdError(
            Code.TRUNCATED_FILE, f"{path.name} is damaged or cut short; copy or download it again."
        ) from None
    except NotImplementedError as error:
        raise RvcdError(
            Code.NOT_A_CHECKPOINT, f"{path.name} cannot be unpacked ({error}); unpack it yourself."
        ) from None


def _unpack_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    target = folder / _target(entry)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, target.open("xb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except (FileExistsError, NotADirectoryError):
        raise _unsafe(path, entry.filename, "is there twice") from None
    except OSError as error:
        raise write_error(error, target) from None


def _judge(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive that would write outside its folder, make links, or fill the disk."""
    for entry in entries:
        name = _target(entry)
        if name.is_absolute() or ".." in name.parts or re.match("[A-Za-z]:", str(name)):
            raise _unsafe(path, entry.orig_filename, "leads out of the folder it is unpacked into")
        mode = entry.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise _unsafe(path, entry.filename, "is a link or a device")
        if entry.flag_bits & 1:
            raise _unsafe(path, entry.filename, "is encrypted; unpack the archive yourself")
        if entry.file_size > max(_BYTES_OF_ANY_RATIO, _MAX_RATIO * entry.compress_size):
            raise _unsafe(path, entry.filename, f"unpacks from {entry.compress_size} to {entry.file_size} bytes")
    total = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if len(entries) > _MAX_ENTRIES or total > min(_MAX_BYTES, max(_BYTES_OF_ANY_RATIO, _MAX_RATIO * packed)):
        raise RvcdError(
            Code.UNSAFE_ARCHIVE,
            f"{path.name} unpacks to {len(entries)} files of {total} bytes; rvcd refuses such archives.",
        )
    # Entries that share their bytes pack more than the file holds.
    if packed > path.stat().st_size:
        raise RvcdError(Code.UNSAFE_ARCHIVE, f"{path.name} has entries that overlap; rvcd refuses such archives.")


def _target(entry: zipfile.ZipInfo) -> PurePosixPath:
    # Some archivers on Windows write its separator.
    return PurePosixPath(entry.filename.replace("\\", "/"))


def _unsafe(path: Path, name: str, what: str) -> RvcdError:
    return RvcdError(Code.UNSAFE_ARCHIVE, f"{path.name} was not unpacked: its entry {name!r} {what}.")
