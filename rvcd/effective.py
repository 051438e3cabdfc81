"""Which voice and settings a stem gets, out of all that has a say in it.

From the strongest: the request; tags in the file name, if the hot folder heeds them; the `.rvcd.toml` of the stem's
own folder, then those of the folders around it up to the hot folder; a sub-folder named like a voice; the hot
folder; the defaults. Each setting is decided by itself.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rvcd.config import OVERRIDABLE, OVERRIDES_NAME, Config, Folder, Preset, nearest, read_overrides
from rvcd.config_checks import check_setting
from rvcd.errors import Code, RvcdError
from rvcd.jobs import JobRequest
from rvcd.settings import Settings

_TAGS = re.compile(r"\[([^\[\]]*)\]\s*$")
_SEMITONES = re.compile(r"[+-]\d+(\.\d+)?")


def effective_settings(
    config: Config, folder: Folder | None, subfolder_voice: str | None, request: JobRequest
) -> tuple[str, Settings]:
    """Voice and settings for one request.

    `folder` is the hot folder that the stem lies in; outside of any, only a `.rvcd.toml` beside the stem is read.
    `subfolder_voice` is the voice that a sub-folder on the way to the stem is named like.

    Raises `RvcdError`: `unknown_voice` when nothing names a voice, `bad_setting` for a setting that a tag or the
    request gets wrong, `bad_configuration` for a `.rvcd.toml` that cannot be believed.
    """
    presets = [
        Preset(request.voice, _checked(request.settings, "The request")),
        file_name_tags(request.path) if folder and folder.file_name_tags else Preset(),
        *_overrides(request.path, folder),
        Preset(subfolder_voice),
        Preset(folder.voice, folder.settings) if folder else Preset(),
        config.defaults,
    ]
    voice = next((preset.voice for preset in presets if preset.voice), None)
    if voice is None:
        raise RvcdError(
            Code.UNKNOWN_VOICE,
            f"Nothing says which voice {request.path} is for: name one in the request, set `voice` in the "
            "configuration, or put the stem into a sub-folder that is named like a voice.",
        )
    settings: dict[str, Any] = {}
    for preset in reversed(presets):
        settings |= preset.settings
    return voice, Settings(**settings)


def file_name_tags(path: Path) -> Preset:
    """What a name such as `lead [voice=Anna, +3, protect=0.2].wav` asks for.

    Tags stand in the last square brackets of the name, with commas between them: `voice=NAME`, any `SETTING=VALUE`,
    or semitones as a number with its sign. Brackets that hold anything else are part of the name.

    Raises `RvcdError`: `bad_setting` for a setting that does not exist or cannot have this value.
    """
    found = _TAGS.search(path.stem)
    tags = [tag.strip() for tag in found[1].split(",")] if found else []
    if not all("=" in tag or _SEMITONES.fullmatch(tag) for tag in tags):
        return Preset()
    said = dict(_tag(tag) for tag in tags)
    voice = said.pop("voice", None)
    values = {name: _value(name, text) for name, text in said.items()}
    return Preset(voice or None, _checked(values, f"The name {path.name}"))


def _tag(tag: str) -> tuple[str, str]:
    if "=" not in tag:
        return "semitones", tag
    name, _, value = tag.partition("=")
    return name.strip(), value.strip()


def _value(name: str, text: str) -> object:
    """Read a tag's value as what the setting is; what cannot be read is left for the check to refuse."""
    default = getattr(Settings, name, None)
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}.get(text.lower(), text)
        if isinstance(default, int):
            return int(text)
        return float(text) if isinstance(default, float) else text
    except ValueError:
        return text


def _checked(settings: Mapping[str, Any], whose: str) -> Mapping[str, Any]:
    for name, value in settings.items():
        if name not in OVERRIDABLE:
            raise RvcdError(
                Code.BAD_SETTING,
                f"{whose} names no known setting: {name!r}{nearest(name, ('voice', *OVERRIDABLE)) or '.'}",
            )
        try:
            check_setting(name, value)
        except ValueError as error:
            raise RvcdError(Code.BAD_SETTING, f"{whose} is wrong about {name}: it {error}.") from error
    return settings


def _overrides(stem: Path, folder: Folder | None) -> Iterable[Preset]:
    """The `.rvcd.toml` of the stem's folder, then of those around it within the hot folder."""
    nearest_first = [stem.parent]
    if folder and stem.is_relative_to(folder.path):
        nearest_first = [place for place in stem.parents if place.is_relative_to(folder.path)]
    for place in nearest_first:
        file = place / OVERRIDES_NAME
        if file.is_file():
            yield read_overrides(file)
