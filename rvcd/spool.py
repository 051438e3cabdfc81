"""The door for hosts without sockets: a job file dropped by rename becomes a job, and gets a file in answer.

`NAME.json` holds an object: `path`, and if wanted `voice`, `settings`, `mode`, `out`, `priority`, `backup`,
`dry_run`, as in `rvcd.jobs.JobRequest`. When the job ends, `NAME.done.json` appears (whole, by rename) with `state`,
`job`, `path`, `result`, `code` and `message`, and `NAME.json` goes.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rvcd import paths
from rvcd.errors import Code, RvcdError
from rvcd.jobs import Job, JobRequest

log = logging.getLogger(__name__)

_ANSWER = ".done.json"
_MAX_BYTES = 1 << 20
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("path", "voice", "out"), str),
    "mode": str,
    "settings": dict,
    "priority": int,
    "backup": bool,
    "dry_run": bool,
}
_MODES = ("replace", "sibling", "out")


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
            if file.name.endswith(_ANSWER) or file in taken or not file.is_file():
                continue
            try:
                job = self._submit(_request(file))
            except RvcdError as error:
                if error.code is not Code.BUSY:
                    _answer(file, {"state": "failed", "job": 0, "code": error.code.value, "message": error.sentence})
                continue
            except Exception as error:
                log.exception("%s is beyond us", file)
                _answer(file, {"state": "failed", "job": 0, "code": Code.INTERNAL.value, "message": str(error)})
                continue
            self._open[job.id] = file

    def finish(self, job: Job) -> None:
        """Answer the file of a job that ended; a job of another origin, or of an earlier run, too."""
        if job.request.origin != "spool":
            return
        self._open.pop(job.id, None)
        answer = {"state": job.state.value, "job": job.id, "path": str(job.request.path), "code": job.code}
        answer |= {"message": job.message, "result": str(job.result or "")}
        _answer(_file_of(job), answer)

    def adopt(self, job: Job) -> None:
        """Know the file of a job that an earlier run took; answer it if only the answer is missing."""
        if job.request.origin != "spool" or job.request.client != _client(_file_of(job)):
            return
        if job.state.is_final:
            self.finish(job)
        else:
            self._open[job.id] = _file_of(job)


def _client(file: Path) -> str:
    """A key for this very file, not for a later one of its name."""
    try:
        status = file.stat()
    except OSError:
        return ""
    return f"spool:{status.st_ino}-{status.st_mtime_ns}:{file}"


def _file_of(job: Job) -> Path:
    return Path(job.request.client.split(":", 2)[2])


def _request(file: Path) -> JobRequest:
    try:
        content = _content(file)
        path, out = Path(content.pop("path")), content.pop("out", None)
        return JobRequest(path, out=Path(out) if out else None, origin="spool", client=_client(file), **content)
    except (OSError, ValueError, RecursionError) as error:
        raise RvcdError(Code.BAD_REQUEST, f"{file.name} is no job file: {error}.") from error


def _content(file: Path) -> dict[str, Any]:
    """Read a job file. Raises `ValueError` with what is wrong with it."""
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError("it is too large")
    content: dict[str, Any] = json.loads(file.read_bytes())
    if not isinstance(content, dict) or "path" not in content:
        raise ValueError("it names no path")
    if unknown := set(content) - set(_KINDS):
        raise ValueError(f"it has unknown entries: {', '.join(sorted(unknown))}")
    for name, value in content.items():
        if not isinstance(value, _KINDS[name]) or (isinstance(value, bool) and _KINDS[name] is int):
            raise ValueError(f"{name} cannot be {value!r}")
    if not all(
        Path(content[key]).is_absolute() and "\0" not in content[key] for key in ("path", "out") & content.keys()
    ):
        raise ValueError("paths must be absolute")
    if abs(content.get("priority", 0)) >= 2**31:
        raise ValueError("priority must fit 32 bits")
    if content.get("mode", "replace") not in _MODES:
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
