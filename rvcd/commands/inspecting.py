"""`rvcd inspect`: what a checkpoint is, whether it can be used, and why not."""

import argparse
from typing import Any

from rvcd.commands.output import DONE, FAILED, print_json
from rvcd.mlx_engine.checkpoint import describe

_TOLD_OTHERWISE = ("path", "kind", "usable", "code", "reason", "sha256", "config", "info")


def run(arguments: argparse.Namespace) -> int:
    """Describe one file or folder; fail if rvcd cannot use it."""
    about = describe(arguments.checkpoint)
    if arguments.json:
        print_json(about)
    else:
        print("\n".join(_lines(about)))  # noqa: T201
    return DONE if about["usable"] else FAILED


def _lines(about: dict[str, Any]) -> list[str]:
    verdict = "usable" if about["usable"] else f"not usable ({about['code']}): {about['reason']}"
    facts = {name: value for name, value in about.items() if name not in _TOLD_OTHERWISE}
    said = {name: value for name, value in (about.get("info") or {}).items() if isinstance(value, str | int | float)}
    return [
        f"{about['path']}: {about['kind'] or 'unknown'}, {verdict}",
        *(f"  {name.replace('_', ' ')}: {value}" for name, value in (said | facts).items()),
        *(f"  sha256 of {name}: {digest}" for name, digest in about["sha256"].items()),
    ]
