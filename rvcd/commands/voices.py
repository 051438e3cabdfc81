"""`rvcd voices`: what the library holds."""

import argparse
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rvcd import paths
from rvcd.commands.output import DONE, error_fields, print_json
from rvcd.voices import VoiceEntry, list_voices


def run(arguments: argparse.Namespace) -> int:
    """List the voices; a damaged file is a row with its problem."""
    entries = list_voices()
    if arguments.json:
        print_json([_fields(entry) for entry in entries])
    else:
        _print_table(entries)
    return DONE


def _fields(entry: VoiceEntry) -> dict[str, Any]:
    config = entry.config
    return {
        "name": entry.name,
        "path": str(entry.path),
        "version": config.version if config else None,
        "sample_rate": config.sample_rate if config else None,
        "uses_f0": config.uses_f0 if config else None,
        "speakers": config.speakers if config else None,
        "index_vectors": entry.header.index_vectors if entry.header else None,
        "sources": entry.header.provenance.get("sources", {}) if entry.header else None,
        "error": error_fields(entry.problem) if entry.problem else None,
    }


def _print_table(entries: list[VoiceEntry]) -> None:
    # Away from a terminal nothing is cut to a width.
    console = Console(width=None if sys.stdout.isatty() else 1000)
    if not entries:
        console.print(f"No voices in {paths.voices_dir()}; bring one with `rvcd import FILE.pth`.", markup=False)
        return
    table = Table("voice", "version", "rate", "pitch", "speakers", "index vectors", box=None, pad_edge=False)
    for entry in entries:
        config = entry.config
        if config is None or entry.header is None:
            table.add_row(Text(entry.name), "damaged")
            continue
        table.add_row(
            Text(entry.name),
            config.version,
            f"{config.sample_rate} Hz",
            "follows f0" if config.uses_f0 else "free",
            str(config.speakers),
            str(entry.header.index_vectors),
        )
    console.print(table)
    for entry in entries:
        if entry.problem:
            console.print(f"{entry.name}: {entry.problem.sentence}", markup=False)
