"""`rvcd config`: what is configured, where, and whether it can be believed."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvcd import paths
from rvcd.commands.output import DONE, FAILED, print_json
from rvcd.config import load, read
from rvcd.config_text import effective_text, entries, sample_config


@dataclass(frozen=True)
class _Answer:
    text: str
    document: Any
    code: int = DONE


def run(arguments: argparse.Namespace) -> int:
    """Show, locate or check the configuration."""
    answer = {"show": _show, "path": _path, "check": _check}[arguments.action](arguments.config, arguments)
    if arguments.json:
        print_json(answer.document)
    else:
        print(answer.text)  # noqa: T201
    return answer.code


def _show(path: Path | None, arguments: argparse.Namespace) -> _Answer:
    if arguments.example:
        return _Answer(sample_config(), {"example": sample_config()})
    config = load(path)
    values = [
        {"key": ".".join(map(str, entry.at)), "value": _plain(entry.value), "line": entry.line}
        for entry in entries(config)
    ]
    return _Answer(effective_text(config), {"path": _plain(config.path), "values": values})


def _path(path: Path | None, _arguments: argparse.Namespace) -> _Answer:
    place = path or paths.config_file()
    return _Answer(str(place), {"path": str(place), "exists": place.exists()})


def _check(path: Path | None, _arguments: argparse.Namespace) -> _Answer:
    place = path or paths.config_file()
    if path is None and not place.exists():
        return _Answer(f"{place} is not there; the defaults hold.", {"path": str(place), "problems": []})
    _, problems = read(place)
    document = {
        "path": str(place),
        "problems": [{"line": problem.line, "key": problem.key, "text": problem.text} for problem in problems],
    }
    text = "\n".join(map(str, problems)) or f"{place} is in order."
    return _Answer(text, document, FAILED if problems else DONE)


def _plain(value: Any) -> Any:
    """What JSON has for a value of the configuration."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
