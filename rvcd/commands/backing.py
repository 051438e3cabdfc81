"""`rvcd backups`: the takes that are kept, and letting old ones go."""

import argparse
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rvcd.backups import Backup, Pruned, list_backups, prune
from rvcd.commands.output import DONE, print_json
from rvcd.commands.screen import columns, printable, size
from rvcd.commands.stores import configuration, known_roots
from rvcd.errors import Code, RvcdError


def run(arguments: argparse.Namespace) -> int:
    """List the backups of every known root, or prune them."""
    limits = (arguments.keep_days, arguments.max_gb)
    if not arguments.prune and (arguments.last_copies or limits != (None, None)):
        raise RvcdError(Code.BAD_SETTING, "--keep-days, --max-gb and --last-copies say what --prune does; add it.")
    if any(limit is not None and not limit >= 0 for limit in limits):
        raise RvcdError(Code.BAD_SETTING, "--keep-days and --max-gb must be 0 or more.")
    roots = known_roots()
    if arguments.prune:
        _prune(roots, arguments)
    else:
        _list(roots, as_json=arguments.json)
    return DONE


def _list(roots: list[Path], *, as_json: bool) -> None:
    found = sorted((backup for root in roots for backup in list_backups(root)), key=lambda each: -each.made)
    if as_json:
        print_json([_fields(backup) for backup in found])
        return
    head = ("made", "job", "kind", "size", "voice", "stem", "backup")
    print("\n".join(columns([head, *map(_cells, found)]) if found else ["There are no backups."]))  # noqa: T201
    if found:
        print(f"{len(found)} backups, {size(sum(backup.size for backup in found))}")  # noqa: T201


def _prune(roots: list[Path], arguments: argparse.Namespace) -> None:
    policy = configuration().backups
    keep_days = policy.keep_days if arguments.keep_days is None else arguments.keep_days
    max_gb = policy.max_gb if arguments.max_gb is None else arguments.max_gb
    max_bytes = None if max_gb is None else int(max_gb * 1e9)
    done = [prune(root, keep_days=keep_days, max_bytes=max_bytes, last_copies=arguments.last_copies) for root in roots]
    _tell([backup for pruned in done for backup in pruned.removed], done, as_json=arguments.json)


def _tell(removed: list[Backup], done: list[Pruned], *, as_json: bool) -> None:
    kept_back = [entry for pruned in done for entry in pruned.kept_back]
    if as_json:
        kept = [{**_fields(backup), "reason": reason} for backup, reason in kept_back]
        print_json({"removed": [_fields(backup) for backup in removed], "kept_back": kept})
        return
    for backup, reason in kept_back:
        print(f"Kept {printable(str(backup.path))}: {printable(reason)}")  # noqa: T201
    if kept_back:
        print("--last-copies removes these too.")  # noqa: T201
    print(f"Removed {len(removed)} backups, {size(sum(backup.size for backup in removed))}.")  # noqa: T201


def _fields(backup: Backup) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(backup).items()}


def _cells(backup: Backup) -> tuple[str, ...]:
    made = datetime.fromtimestamp(backup.made).strftime("%Y-%m-%d %H:%M")
    about = (made, str(backup.job), backup.kind, size(backup.size), backup.voice)
    return (*about, str(backup.original), str(backup.path))
