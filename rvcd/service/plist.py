"""The launchd property list: generated, never pasted together. launchd.plist(5) says what the keys mean."""

import plistlib
from typing import Any

from rvcd.service.definition import LABEL, Places, fill, template


def property_list(places: Places, *, headless: bool) -> bytes:
    """Make the property list for these places; `headless` lets it also load where nobody sits at the screen."""
    document = _filled(plistlib.loads(template(f"{LABEL}.plist")), places.names())
    document["EnvironmentVariables"] |= places.environment
    if headless:
        document["LimitLoadToSessionType"].append("Background")
    return plistlib.dumps(document, sort_keys=False)


def _filled(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, str):
        return fill(value, names)
    if isinstance(value, list):
        return [_filled(item, names) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, names) for key, item in value.items()}
    return value
