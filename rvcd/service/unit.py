"""The systemd unit: the template with its names filled in, quoted as systemd.syntax(7) asks."""

from rvcd.service.definition import UNIT, Places, fill, template


def unit(places: Places) -> bytes:
    """Make the unit file for these places."""
    names = places.names()
    quoted = names | {"python": _quoted(names["python"])}
    lines: list[str] = []
    for line in template(UNIT).decode().splitlines():
        if line == "[Install]":
            lines[-1:] = [*(f"Environment={_quoted(f'{k}={v}')}" for k, v in places.environment.items()), ""]
        # Only a command line is split into words, so only there a path is quoted.
        lines.append(fill(line, quoted) if line.startswith("ExecStart=") else fill(line, names, _literal))
    return ("\n".join(lines) + "\n").encode()


def _literal(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    return '"' + _literal(text).replace("\\", "\\\\").replace('"', '\\"') + '"'
