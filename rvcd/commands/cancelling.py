"""`rvcd cancel`: jobs that are not wanted any more."""

import argparse
from collections.abc import Iterable, Iterator

from rvcd.commands.connection import connect, job_rows
from rvcd.commands.output import DONE, FAILED, error_fields, print_error, print_json
from rvcd.errors import Code, RvcdError
from rvcd.osc.client import OscClient

_AT_ONCE = 200


def run(arguments: argparse.Namespace) -> int:
    """Cancel every job that was named; one that cannot be does not stop the rest."""
    errors: dict[int, RvcdError] = {}
    cancelled: list[int] = []
    with connect() as client:
        jobs: Iterable[int] = _all(client) if arguments.all else arguments.jobs
        for job in jobs:
            try:
                client.command("/rvcd/cancel", job)
                cancelled.append(job)
            except RvcdError as error:
                if error.code is Code.NOT_RUNNING:
                    raise
                errors[job] = error
    if arguments.json:
        refused = [{"job": job, **error_fields(refusal)} for job, refusal in errors.items()]
        print_json({"cancelled": cancelled, "refused": refused})
    else:
        print(f"Cancelled {', '.join(map(str, cancelled)) or 'nothing'}.")  # noqa: T201
    for job, refusal in errors.items():
        print_error(refusal, about=f"job {job}")
    return FAILED if errors else DONE


def _all(client: OscClient) -> Iterator[int]:
    """Every live job. `/rvcd/cancel -1` would mean those of this very client alone."""
    seen: set[int] = set()
    while new := [row.job for row in job_rows(client, "active", _AT_ONCE) if row.job not in seen]:
        seen.update(new)
        # The last in the queue first, so that none of them is started in the meantime.
        yield from reversed(new)
