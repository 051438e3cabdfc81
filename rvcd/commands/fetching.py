"""`rvcd fetch`: the models that every voice needs."""

import argparse

from rvcd.commands.output import DONE, print_json
from rvcd.commands.progress import showing_progress
from rvcd.fetch import fetch_base_models


def run(arguments: argparse.Namespace) -> int:
    """Download, check and install what is missing."""
    with showing_progress("fetch") as on_progress:
        installed = fetch_base_models(
            on_progress=lambda role, bytes_done, bytes_total: on_progress(
                f"{role} ({bytes_total / 1e6:.0f} MB)", bytes_done / bytes_total
            )
        )
    if arguments.json:
        print_json([{"path": str(path)} for path in installed])
    else:
        for path in installed:
            print(f"installed {path}")  # noqa: T201
    return DONE
