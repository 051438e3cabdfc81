"""What commands say: exit codes, errors on stderr, one JSON document on stdout."""

import json
import sys
from typing import Any

from rvcd.errors import RvcdError

DONE, FAILED, USAGE, ABSENT, INTERRUPTED = 0, 1, 2, 3, 130
"""ABSENT: no daemon runs, for `rvcd status` alone."""


def print_error(error: RvcdError, about: str = "") -> None:
    """Say on stderr what failed: `rvcd: code: [about: ]sentence`."""
    subject = f"{about}: " if about else ""
    print(f"rvcd: {error.code}: {subject}{error.sentence}", file=sys.stderr)  # noqa: T201


def print_json(document: Any) -> None:
    """Print the one JSON document of a command."""
    print(json.dumps(document, indent=2))  # noqa: T201


def error_fields(error: RvcdError) -> dict[str, str]:
    """Turn an error into what JSON says of it."""
    return {"code": str(error.code), "message": error.sentence}
