"""`rvcd send`: stems for the daemon to convert."""

import argparse
import os
from pathlib import Path
from typing import Any

from rvcd.commands.connection import connect
from rvcd.commands.output import DONE, FAILED, error_fields, print_error, print_json
from rvcd.commands.screen import ProgressLine, duration, printable
from rvcd.errors import Code, RvcdError
from rvcd.osc.client import OscClient
from rvcd.osc.codec import Message
from rvcd.settings import SETTING_NAMES, Settings

_OPTION_OF_FIELD = {
    "voice": "model",
    "semitones": "pitch",
    "f0_method": "f0",
    "index_rate": "index_rate",
    "protect": "protect",
    "loudness": "loudness",
    "speaker_id": "speaker",
    "seed": "seed",
    "stereo": "stereo",
    "search": "search",
    "fill_unvoiced": "fill_unvoiced",
    "mode": "mode",
    "priority": "priority",
}
"""What each argument is called in `/rvcd/convert`."""

Result = dict[str, Any]
"""What became of one stem, as JSON says it."""


def run(arguments: argparse.Namespace) -> int:
    """Send every stem; one that is refused or fails does not stop the rest."""
    given = {name: value for name in _OPTION_OF_FIELD if (value := getattr(arguments, name)) is not None}
    Settings(**{name: value for name, value in given.items() if name in SETTING_NAMES})
    stems = [Path(os.path.abspath(path)) for path in arguments.paths]  # noqa: PTH100  (a link stays one, `..` goes)
    outs = _outs(stems, arguments.out)
    with connect() as client:
        if arguments.wait:
            client.subscribe("jobs")
        options = [part for name, value in given.items() for part in (_OPTION_OF_FIELD[name], _plain(value))]
        results = [_send(client, stem, out, options) for stem, out in zip(stems, outs, strict=True)]
        for result, stem in zip(results, stems, strict=True):
            if arguments.wait and result["job"]:
                result.update(_wait(client, result["job"], stem.name))
            if not arguments.json:
                _tell(result)
    if arguments.json:
        print_json(results)
    return FAILED if any(result["code"] for result in results) else DONE


def _plain(value: bool | float | str) -> float | str:
    return int(value) if isinstance(value, bool) else value


def _outs(stems: list[Path], out: Path | None) -> list[Path | None]:
    """Where each result goes: no two to the same place. Raises `RvcdError`: `bad_setting`."""
    if out is None:
        return [None] * len(stems)
    out = out.absolute()
    if out.is_dir():
        outs: list[Path | None] = [out / stem.name for stem in stems]
    elif len(stems) == 1:
        outs = [out]
    else:
        raise RvcdError(Code.BAD_SETTING, f"{out} is one place for {len(stems)} stems; name a folder that exists.")
    twice = next((place for place in outs if outs.count(place) > 1), None)
    if twice:
        raise RvcdError(Code.BAD_SETTING, f"Two stems would both become {twice}; send them to different folders.")
    return outs


def _send(client: OscClient, stem: Path, out: Path | None, options: list[Any]) -> Result:
    result: Result = {"path": str(stem), "job": 0, "position": None, "state": "refused", "code": "", "message": ""}
    try:
        where = ("out", str(out)) if out else ()
        _, job, position = client.command("/rvcd/convert", str(stem), *options, *where).args[:3]
    except RvcdError as error:
        if error.code is Code.NOT_RUNNING:
            raise
        return result | error_fields(error)
    return result | {"job": job, "position": position, "state": "queued"}


def _wait(client: OscClient, job: int, name: str) -> Result:
    """Show how a job goes on, and return what became of it."""
    line = ProgressLine(name)
    end = Message("")
    for event in client.follow(job):
        if event.address == "/rvcd/job/progress":
            told: tuple[Any, ...] = event.args[2:5]
            line.show(*told)
        end = event
    line.clear()
    return _outcome(end)


def _outcome(end: Message) -> Result:
    """What the last event of a job says."""
    words: tuple[Any, ...] = end.args[2:]
    if end.address == "/rvcd/job/done":
        return {"state": "committed", "backup": words[1], "seconds_taken": words[2]}
    if end.address == "/rvcd/job/failed":
        return {"state": "failed", "code": words[0], "message": words[1]}
    return {"state": "cancelled", "code": words[0], "message": f"The job was cancelled ({words[0]})."}


def _tell(result: Result) -> None:
    path = printable(result["path"])
    if result["code"]:
        code = Code(result["code"]) if result["code"] in list(Code) else Code.INTERNAL
        print_error(RvcdError(code, result["message"]), about=path)
    elif result["state"] == "queued":
        ahead = f", {result['position']} before it" if result["position"] else ""
        print(f"{path}: job {result['job']}{ahead}", flush=True)  # noqa: T201
    else:
        print(f"{path}: job {result['job']} done in {duration(result['seconds_taken'])}", flush=True)  # noqa: T201
