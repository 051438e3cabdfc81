"""The configuration: one TOML file, checked as a whole before anything of it is believed.

The dataclasses below are the schema: each field carries its check, its default and the words that the example file
says about it.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from rvcd import paths
from rvcd.config_checks import (
    check_address,
    check_choice,
    check_flag,
    check_name,
    check_number,
    check_path,
    check_paths,
    check_setting,
    check_whole,
)
from rvcd.errors import Code, RvcdError
from rvcd.jobs import Mode
from rvcd.settings import SETTING_NAMES
from rvcd.toml_text import KeyPath, line_of, lines_of_keys

OVERRIDES_NAME = ".rvcd.toml"
"""A file in a folder of stems that changes voice and settings there."""
OVERRIDABLE = tuple(name for name in SETTING_NAMES if name != "windows")
"""The settings that files, names and requests may change; `windows` is for comparisons with the reference alone."""

_MAX_BYTES = 1 << 20
_LINE_OF_SYNTAX_ERROR = re.compile(r"\(at line (\d+), column \d+\)")


def _key(check: Callable[[object], Any], about: str, example: Any = None) -> dict[str, Any]:
    """What the schema knows of a key; `example` is for one that is not set by default."""
    return {"check": check, "about": about, "example": example}


@dataclass(frozen=True)
class OscConfig:
    """Where the daemon listens, and what its clients may touch."""

    port: int = field(default=7823, metadata=_key(check_whole(0, 65535), "UDP port; 0 takes any free one."))
    address: str = field(
        default="127.0.0.1", metadata=_key(check_address, "Address to listen on: 127.0.0.1 or ::1, never the network.")
    )
    tcp: bool = field(
        default=False, metadata=_key(check_flag, "Listen for OSC 1.1 over TCP too, on the same port number.")
    )
    token_file: Path | None = field(
        default=None,
        metadata=_key(
            check_path, "File whose content clients must say to change anything.", example="~/.config/rvcd/token"
        ),
    )
    roots: tuple[Path, ...] = field(
        default_factory=lambda: (Path.home() / "Music",),
        metadata=_key(check_paths, "Clients may name stems below these folders; below hot folders they always may."),
    )


@dataclass(frozen=True)
class EngineConfig:
    """How the engine works and what it keeps in memory."""

    precision: str = field(
        default="float32", metadata=_key(check_choice("float32", "float16"), "Of the arithmetic: float32 or float16.")
    )
    warm_megabytes: int = field(
        default=2048,
        metadata=_key(check_whole(0, 1 << 20), "Memory for voices that stay warm; the least recently used leaves."),
    )
    idle_release_seconds: float = field(
        default=1800.0,
        metadata=_key(check_number(0, 1e9), "Give the engine's memory back after this time without a job; 0: never."),
    )


@dataclass(frozen=True)
class QueueConfig:
    """How much may wait."""

    bound: int = field(
        default=1000,
        metadata=_key(check_whole(1, 1_000_000), "So many stems may wait; the next one is refused at once."),
    )


@dataclass(frozen=True)
class BackupPolicy:
    """How long takes are kept after their conversion."""

    keep_days: float = field(default=30.0, metadata=_key(check_number(1, 1e6), "Keep every take this long."))
    max_gb: float | None = field(
        default=None,
        metadata=_key(
            check_number(0.001, 1e6), "Let older takes go earlier when all of them exceed this.", example=50.0
        ),
    )


@dataclass(frozen=True)
class Preset:
    """A voice, and changes to the settings."""

    voice: str | None = field(
        default=None, metadata=_key(check_name, "The voice of stems for which nothing else names one.", example="Anna")
    )
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Folder:
    """One hot folder. A sub-folder named like a voice means that voice."""

    path: Path = field(metadata=_key(check_path, "Stems that land here are converted."))
    voice: str | None = field(default=None, metadata=_key(check_name, "The voice of its stems.", example="Anna"))
    mode: Mode = field(
        default="replace",
        metadata=_key(check_choice(*get_args(Mode)), "replace the stem, make a sibling, or write to out."),
    )
    out: Path | None = field(
        default=None, metadata=_key(check_path, 'Where results go with mode = "out".', example="~/Music/converted")
    )
    settle_seconds: float | None = field(
        default=None,
        metadata=_key(
            check_number(0.1, 600),
            "How long a bounce must have stopped growing; if not set: 2, on network volumes 6.",
            example=2.0,
        ),
    )
    convert_existing: bool = field(
        default=False, metadata=_key(check_flag, "Convert what lies here already when rvcd starts.")
    )
    file_name_tags: bool = field(
        default=False, metadata=_key(check_flag, 'Heed names such as "lead [voice=Anna, +3].wav".')
    )
    recursive: bool = field(default=True, metadata=_key(check_flag, "Watch its sub-folders too."))
    settings: Mapping[str, Any] = field(default_factory=dict)


def _default_folders() -> tuple[Folder, ...]:
    return (Folder(path=paths.hot_folder()),)


@dataclass(frozen=True)
class Config:
    """All of the configuration."""

    osc: OscConfig = field(default_factory=OscConfig)
    engine: EngineConfig = EngineConfig()
    queue: QueueConfig = QueueConfig()
    backups: BackupPolicy = BackupPolicy()
    defaults: Preset = Preset()
    folders: tuple[Folder, ...] = field(default_factory=_default_folders)
    path: Path | None = field(default=None, compare=False)
    """The file it was read from; None: these are the defaults."""
    lines: Mapping[KeyPath, int] = field(default_factory=dict, compare=False, repr=False)
    """Where in the file each key stands."""

    @property
    def allowed_roots(self) -> tuple[Path, ...]:
        """Folders below which clients may name stems."""
        outs = (folder.out for folder in self.folders if folder.out)
        return tuple(dict.fromkeys([*self.osc.roots, *(folder.path for folder in self.folders), *outs]))


SECTIONS: dict[str, type] = {
    "osc": OscConfig,
    "engine": EngineConfig,
    "queue": QueueConfig,
    "backups": BackupPolicy,
    "defaults": Preset,
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a file."""

    path: Path
    line: int | None
    key: str
    text: str

    def __str__(self) -> str:
        """`file:line: key: what is wrong`, as editors understand it."""
        return ": ".join(part for part in (f"{self.path}:{self.line or 1}", self.key, self.text) if part)


def load(path: Path | None = None) -> Config:
    """Read the configuration; None is the user's own file, or the defaults if there is none.

    Raises `RvcdError`: `bad_configuration` with every problem, `not_found` for a path that was named and is not there.
    """
    if path is None and not paths.config_file().exists():
        return Config()
    config, problems = read(path or paths.config_file())
    _refuse(problems)
    return config


def read(path: Path) -> tuple[Config, list[Problem]]:
    """Read a configuration as far as it can be read, and say all that is wrong with it."""
    reader = _Reader(path)
    return _config(reader, reader.document()), sorted(reader.problems, key=lambda problem: problem.line or 0)


def read_overrides(path: Path) -> Preset:
    """Read a `.rvcd.toml`: voice and settings, nothing else.

    Raises `RvcdError`: `bad_configuration` with every problem, `not_found`.
    """
    reader = _Reader(path)
    preset = Preset(**reader.table(Preset, reader.document(), ()))
    _refuse(reader.problems)
    return preset


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant, as the end of a sentence."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def schema(kind: type) -> dict[str, Field[Any]]:
    """The keys of a section, by name."""
    return {entry.name: entry for entry in fields(kind) if "check" in entry.metadata}


def takes_settings(kind: type) -> bool:
    """Whether a section may hold settings beside its own keys."""
    return any(entry.name == "settings" for entry in fields(kind))


class _Reader:
    """Reads one file and gathers what is wrong with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.lines: dict[KeyPath, int] = {}

    def refuse(self, at: KeyPath, text: str) -> None:
        key = ".".join(part for part in at if isinstance(part, str))
        self.problems.append(Problem(self.path, line_of(self.lines, at), key, text))

    def document(self) -> dict[str, Any]:
        """Parse the file; empty if it cannot be parsed."""
        content = self._content()
        try:
            text = content.decode("utf-8-sig")
            document = tomllib.loads(text)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            self.problems.append(Problem(self.path, line, "", "is not UTF-8 text"))
        except ValueError as error:  # TOMLDecodeError, or a number with thousands of digits
            found = _LINE_OF_SYNTAX_ERROR.search(str(error))
            line = int(found[1]) if found else content.count(b"\n") + 1
            self.problems.append(Problem(self.path, line, "", str(error)))
        except RecursionError:
            self.problems.append(Problem(self.path, None, "", "is nested too deeply"))
        else:
            self.lines = lines_of_keys(text.replace("\r\n", "\n"))
            return document
        return {}

    def _content(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
        except FileNotFoundError as error:
            raise RvcdError(Code.NOT_FOUND, f"There is no configuration {self.path}.") from error
        except OSError as error:
            self.problems.append(Problem(self.path, None, "", f"cannot be read: {error.strerror}"))
            return b""
        if len(content) > _MAX_BYTES:
            self.problems.append(Problem(self.path, None, "", "is too large for a configuration"))
            return b""
        return content

    def table(self, kind: type, table: object, at: KeyPath) -> dict[str, Any]:
        """What is right in a table, as arguments for its dataclass."""
        if not isinstance(table, dict):
            self.refuse(at, f"must be a table, [{at[0]}] on a line of its own, not {table!r}")
            return {}
        entries = schema(kind)
        settings = OVERRIDABLE if takes_settings(kind) else ()
        values: dict[str, Any] = {"settings": {}} if settings else {}
        for name, value in table.items():
            try:
                if name in entries:
                    values[name] = entries[name].metadata["check"](value)
                elif name in settings:
                    values["settings"][name] = check_setting(name, value)
                else:
                    self.refuse((*at, name), f"unknown key{_whereabouts(name, [*entries, *settings])}")
            except ValueError as error:
                self.refuse((*at, name), str(error))
        return values


def _whereabouts(name: str, known: Iterable[str]) -> str:
    """Say of an unknown key what was meant, or where it belongs."""
    homes = [section for section, kind in SECTIONS.items() if name in schema(kind)]
    return nearest(name, known) or (f"; it belongs in [{homes[0]}]" if homes else "")


def _refuse(problems: list[Problem]) -> None:
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RvcdError(Code.BAD_CONFIGURATION, f"{count} in the configuration: {'; '.join(map(str, problems))}.")


def _config(reader: _Reader, document: dict[str, Any]) -> Config:
    sections: dict[str, Any] = {}
    for name, value in document.items():
        if name in SECTIONS:
            sections[name] = SECTIONS[name](**reader.table(SECTIONS[name], value, (name,)))
        elif name == "folder":
            sections["folders"] = _folders(reader, value)
        else:
            reader.refuse((name,), f"unknown key{_whereabouts(name, [*SECTIONS, 'folder'])}")
    return Config(**sections, path=reader.path, lines=reader.lines)


def _folders(reader: _Reader, tables: object) -> tuple[Folder, ...]:
    if not isinstance(tables, list):
        reader.refuse(("folder",), "must be written [[folder]], with two brackets")
        return ()
    folders: dict[Path, Folder] = {}
    for number, table in enumerate(tables):
        at = ("folder", number)
        values = reader.table(Folder, table, at)
        if "path" not in values:
            if isinstance(table, dict) and "path" not in table:
                reader.refuse(at, "needs a path")
            continue
        folder = Folder(**values)
        if folder.path in folders:
            reader.refuse((*at, "path"), f"{folder.path} is a hot folder already")
        if (folder.mode == "out") != (folder.out is not None) and {"mode", "out"} & table.keys() <= values.keys():
            reader.refuse((*at, "mode"), 'mode = "out" and an out folder need each other')
        folders[folder.path] = folder
    return tuple(folders.values())
