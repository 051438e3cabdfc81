"""The door for hosts without sockets: a job file dropped by rename becomes a job, and gets a file in answer.

`NAME.json` holds an object: `path`, and if wanted `voice`, `settings`, `mode`, `out`, `priority`, `backup`,
`dry_run`, as in `rvcd.jobs.JobRequest`. When the job ends, `NAME.done.json` appears (whole, by rename) with `state`,
`job`, `path`, `result`, `code` and `message`, and `NAME.json` goes.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from rvcd import paths
from rvcd.errors import Code, RvcdError
from rvcd.jobs import Job, JobRequest, Mode

log = logging.getLogger(__name__)

_ANSWER = ".done.json"
_MAX_BYTES = 1 << 20
_FIELDS = {field.name for field in fields(JobRequest)} - {"origin", "client", "req"}


def folder() -> Path:
    """Where job files are dropped."""
    return paths.home() / "spool"


class Spool:
    """Looks for job files when told to, and answers them. `submit` makes a job, or raises `RvcdError`."""

    def __init__(self, submit: Callable[[JobRequest], Job]) -> None:
        self._submit = submit
        self._open: dict[int, Path] = {}
        folder().mkdir(parents=True, exist_ok=True)

    def look(self) -> None:
        """Take what was dropped since the last look."""
        taken = set(self._open.values())
        for file in sorted(folder().glob("[!.]*.json")):
            if file.name.endswith(_ANSWER) or file in taken:
                continue
            try:
                job = self._submit(_request(file))
            except RvcdError as error:
                if error.code is not Code.BUSY:
                    _answer(file, {"state": "failed", "job": 0, "code": error.code.value, "message": error.sentence})
                continue
            self._open[job.id] = file

    def finish(self, job: Job) -> None:
        """Answer the file of a job that ended; a job of another origin, or of an earlier run, too."""
        if job.request.origin != "spool":
            return
        self._open.pop(job.id, None)
        answer = {"state": job.state.value, "job": job.id, "path": str(job.request.path), "code": job.code}
        answer |= {"message": job.message, "result": str(job.result or "")}
        _answer(Path(job.request.client.removeprefix("spool:")), answer)

    def adopt(self, job: Job) -> None:
        """Know the file of a job that an earlier run took."""
        if job.request.origin == "spool":
            self._open[job.id] = Path(job.request.client.removeprefix("spool:"))


def _request(file: Path) -> JobRequest:
    try:
        content = _content(file)
        path, out = Path(content.pop("path")), content.pop("out", None)
        return JobRequest(path, out=Path(out) if out else None, origin="spool", client=f"spool:{file}", **content)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RvcdError(Code.BAD_REQUEST, f"{file.name} is no job file: {error}.") from error


def _content(file: Path) -> dict[str, Any]:
    """Read a job file. Raises `ValueError` with what is wrong with it."""
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError("it is too large")
    content: dict[str, Any] = json.loads(file.read_bytes())
    if not isinstance(content, dict) or "path" not in content:
        raise ValueError("it names no path")
    if unknown := set(content) - _FIELDS:
        raise ValueError(f"it has unknown entries: {', '.join(sorted(unknown))}")
    if not all(Path(content[key]).is_absolute() for key in ("path", "out") if content.get(key)):
        raise ValueError("paths must be absolute")
    if content.get("mode", "replace") not in get_args(Mode):
        raise ValueError(f"there is no mode {content['mode']!r}")
    return content


def _answer(file: Path, answer: dict[str, Any]) -> None:
    target = file.with_name(file.name.removesuffix(".json") + _ANSWER)
    draft = target.with_name(f".{target.name}.part")
    try:
        draft.write_text(json.dumps(answer, indent=1))
        draft.replace(target)
        file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be answered: %s", file, error)
