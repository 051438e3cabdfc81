"""The configuration as text: an example to start from, and the one in force with the origin of every value."""

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass
from pathlib import Path
from typing import Any

from rvcd.config import OVERRIDABLE, OVERRIDES_NAME, SECTIONS, Config, Folder, schema, takes_settings
from rvcd.settings import Settings
from rvcd.toml_text import KeyPath, toml_value

_HEAD = f"""\
# The configuration of rvcd. Every line below shows what holds if it is left out; lines that begin with "#" show
# what may be set. `rvcd config check` says what is wrong, `rvcd config path` where this file belongs.
#
# What decides about one stem, from the strongest: the request, tags in the file name (if file_name_tags is on),
# {OVERRIDES_NAME} in its folder (voice and settings, as in [defaults]), a sub-folder named like a voice, the hot
# folder, [defaults].
"""


@dataclass(frozen=True)
class Entry:
    """One value of the configuration in force."""

    at: KeyPath
    value: Any
    line: int | None
    """Where in the file it is set; None: it is the default."""


def sample_config() -> str:
    """An example file that says what each key means; as it stands it changes nothing."""
    parts = [_HEAD]
    for name, kind in SECTIONS.items():
        parts.append(f"# {_summary(kind)}\n[{name}]\n{''.join(_sample_lines(kind))}")
    parts.append(f"# {_summary(Folder)} Repeat this section for more.\n[[folder]]\n{''.join(_sample_lines(Folder))}")
    return "\n".join(parts)


def entries(config: Config) -> Iterator[Entry]:
    """All values in force, section by section; settings only where they are changed."""
    sections: list[tuple[KeyPath, Any]] = [((name,), getattr(config, name)) for name in SECTIONS]
    sections += [(("folder", number), folder) for number, folder in enumerate(config.folders)]
    for at, section in sections:
        values = {name: getattr(section, name) for name in schema(type(section))}
        for name, value in {**values, **getattr(section, "settings", {})}.items():
            key = (*at, name)
            yield Entry(key, value, config.lines.get(key))


def effective_text(config: Config) -> str:
    """The configuration in force as TOML, each value with a comment that says where it comes from."""
    lines = []
    table: KeyPath = ()
    for entry in entries(config):
        if entry.at[:-1] != table:
            table = entry.at[:-1]
            lines.append(f"\n[[{table[0]}]]" if len(table) > 1 else f"\n[{table[0]}]")
        assignment = f"# {entry.at[-1]}" if entry.value is None else f"{entry.at[-1]} = {toml_value(entry.value)}"
        origin = "not set" if entry.value is None else f"line {entry.line}" if entry.line else "default"
        lines.append(f"{assignment:<40}  # {origin}")
    return "\n".join([f"# {config.path or 'No file: these are the defaults.'}", *lines])


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _sample_lines(kind: type) -> Iterator[str]:
    for name, entry in schema(kind).items():
        default = _default(name, entry)
        yield f"# {entry.metadata['about']}\n"
        if default is None:
            yield f"# {name} = {toml_value(entry.metadata['example'])}\n"
        else:
            yield f"{name} = {toml_value(default)}\n"
    if takes_settings(kind):
        yield "# Settings, as `rvcd convert --help` explains them.\n"
        yield from (f"# {name} = {toml_value(getattr(Settings, name))}\n" for name in OVERRIDABLE)


def _default(name: str, entry: "Field[Any]") -> Any:
    if entry.default_factory is not MISSING:
        return _from_home(entry.default_factory())
    if entry.default is MISSING:
        return _from_home(getattr(Config().folders[0], name))
    return entry.default


def _from_home(value: Any) -> Any:
    """Paths as people write them."""
    if isinstance(value, tuple):
        return tuple(map(_from_home, value))
    if isinstance(value, Path) and value.is_relative_to(Path.home()):
        return f"~/{value.relative_to(Path.home())}"
    return value
