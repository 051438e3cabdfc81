"""TOML as text: on which line each key of a document stands, and how a value is written.

`tomllib` says neither. The text must be one that it accepts.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

KeyPath = tuple[str | int, ...]
"""Keys from the top; an element of an array of tables by its number."""

_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*)
      | (?P<text>\"{3}(?:\\.|[^\\])*?\"{3,5} | '{3}.*?'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*')
      | (?P<newline>\n)
      | (?P<equals>=)
      | (?P<mark>[\[\]{}.])
      | (?P<space>[ \t\r]+)
      | (?P<bare>[A-Za-z0-9_-]+)
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_DEPTHS = {"[": 1, "{": 1, "]": -1, "}": -1}


def lines_of_keys(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of every table header and every key that begins a line."""
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for line, statement in _statements(text):
        is_header = statement[0] == "["
        parts = _key_parts(statement)
        if is_header:
            table = _numbered(parts, counts, appends=statement[1] == "[")
        lines.setdefault(table if is_header else table + parts, line)
    return lines


def line_of(lines: Mapping[KeyPath, int], key: KeyPath) -> int | None:
    """The line of a key, or of the nearest table around it."""
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return lines[key[:length]]
    return None


def toml_value(value: Any) -> str:
    """Write a string, path, number, boolean or list of such."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"[{', '.join(map(toml_value, value))}]"


def _statements(text: str) -> Iterator[tuple[int, list[str]]]:
    """Each statement's first line and its tokens, up to the value."""
    line, first_line, depth, in_value = 1, 1, 0, False
    statement: list[str] = []
    for match in _TOKEN.finditer(text + "\n"):
        token, kind = match.group(), match.lastgroup
        if kind == "newline" and depth == 0:
            if statement:
                yield first_line, statement
            statement, in_value = [], False
        elif in_value:
            depth += _DEPTHS.get(token, 0) if kind == "mark" else 0
        elif kind == "equals":
            in_value = True
        elif kind not in ("comment", "space"):
            first_line = first_line if statement else line
            statement.append(token)
        line += token.count("\n")


def _key_parts(statement: list[str]) -> KeyPath:
    return tuple(_unquoted(token) for token in statement if token not in ("[", "]", "."))


def _unquoted(token: str) -> str:
    if token[0] == '"':
        with contextlib.suppress(ValueError):  # an escape that JSON lacks; such a key is unknown anyway
            return str(json.loads(token))
    return token.strip("'")


def _numbered(table: KeyPath, counts: dict[KeyPath, int], appends: bool) -> KeyPath:
    """Put the number of the last element behind each name of an array of tables."""
    path: KeyPath = ()
    for depth, part in enumerate(table, start=1):
        path += (part,)
        if appends and depth == len(table):
            counts[path] = counts.get(path, 0) + 1
        if path in counts:
            path += (counts[path] - 1,)
    return path
