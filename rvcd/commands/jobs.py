"""`rvcd jobs`: what waits, runs and ended."""

import argparse
from collections.abc import Iterator

from rvcd.commands.connection import JobRow, connect, job_rows
from rvcd.commands.output import DONE, print_json
from rvcd.commands.screen import columns, duration, printable
from rvcd.errors import Code, RvcdError
from rvcd.osc.client import OscClient

_MOST = 200


def run(arguments: argparse.Namespace) -> int:
    """List jobs; those that failed with the reason."""
    if not 1 <= arguments.limit <= _MOST:
        raise RvcdError(Code.BAD_SETTING, f"--limit must lie between 1 and {_MOST}, not {arguments.limit}.")
    filters = [arguments.filter] if arguments.filter else ["active", "recent"]
    with connect() as client:
        rows = {row.job: row for which in filters for row in job_rows(client, which, arguments.limit)}
        reasons = {job: _reason(client, job) for job, row in rows.items() if row.state == "failed"}
    if arguments.json:
        print_json([{**row.fields(), "message": reasons.get(job, "")} for job, row in rows.items()])
    else:
        print("\n".join(_lines(rows, reasons)) if rows else "There are no such jobs.")  # noqa: T201
    return DONE


def _lines(rows: dict[int, JobRow], reasons: dict[int, str]) -> Iterator[str]:
    head, *lines = columns([("job", "state", "voice", "audio", "time", "stem", ""), *map(_cells, rows.values())])
    yield head
    for job, line in zip(rows, lines, strict=True):
        yield line
        if job in reasons:
            yield f"    {printable(reasons[job])}"


def _reason(client: OscClient, job: int) -> str:
    """The sentence that a job failed with."""
    event = next(client.follow(job))
    return str(event.args[3]) if event.address == "/rvcd/job/failed" else ""


def _cells(row: JobRow) -> tuple[str, ...]:
    audio = duration(row.seconds_of_audio) if row.seconds_of_audio else ""
    taken = duration(row.seconds_taken) if row.seconds_taken else ""
    note = row.code or (f"{int(100 * row.fraction)} % {row.stage}" if row.state == "running" else "")
    return str(row.job), row.state, row.voice, audio, taken, row.path, note
