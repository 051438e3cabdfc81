"""The command line: parse, import the one command that was asked for, return an exit code."""

import argparse
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rvcd import __version__
from rvcd.commands.output import FAILED, INTERRUPTED, USAGE, error_fields, print_error, print_json
from rvcd.errors import Code, RvcdError

_USAGE_CODES = (Code.BAD_SETTING, Code.UNKNOWN_VOICE, Code.BAD_SPEAKER)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns 0 when it is done, 1 when it (or one of its files) failed, 2 when it was asked for something that cannot
    be (an option, a setting or a voice), 3 when `status` finds nobody, 130 after Ctrl-C; what the daemon ends with is
    its own. `SystemExit` comes from argparse alone.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser(argv[0] if argv else "").parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be text
    try:
        command = importlib.import_module(arguments.command)
        code: int = command.run(arguments)
        sys.stdout.flush()
    except RvcdError as error:
        return _report(error, arguments.json)
    except KeyboardInterrupt:
        print("rvcd: interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except MemoryError:
        return _report(RvcdError(Code.OUT_OF_MEMORY, "There is not enough memory for this."), arguments.json)
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        traceback.print_exc()
        return _report(
            RvcdError(Code.INTERNAL, f"This is a defect of rvcd; please report it: {error!r}"), arguments.json
        )
    return code


def _report(error: RvcdError, as_json: bool) -> int:
    if as_json:
        print_json({"error": error_fields(error)})
    print_error(error)
    return USAGE if error.code in _USAGE_CODES else FAILED


def _parser(asked: str) -> argparse.ArgumentParser:
    """Make the parser of the command that was asked for, or of all if there is none such."""
    parser = argparse.ArgumentParser(
        prog="rvcd",
        description="Converts vocal stems with RVC voices.",
        epilog="Exit codes: 0 done, 1 something failed, 2 bad usage, setting or voice, 3 not running (status), "
        "130 interrupted. "
        "Errors are told on stderr as `rvcd: code: sentence`.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rvcd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    adders = {
        "import": _add_import,
        "voices": _add_voices,
        "convert": _add_convert,
        "inspect": _add_inspect,
        "fetch": _add_fetch,
        "run": _add_run,
        "status": _add_status,
        "jobs": _add_jobs,
        "send": _add_send,
        "cancel": _add_cancel,
        "undo": _add_undo,
        "backups": _add_backups,
        "config": _add_config,
        **dict.fromkeys(("install", "uninstall", "start", "stop", "restart"), _add_services),
        "logs": _add_logs,
        "doctor": _add_doctor,
    }
    # All of them take longer to make than the daemon takes to answer.
    for add in [adders[asked]] if asked in adders else dict.fromkeys(adders.values()):
        add(commands)
    return parser


def _add(commands: Any, name: str, module: str, summary: str, details: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {details}", allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    parser.set_defaults(command=f"rvcd.commands.{module}")
    return parser


def _add_import(commands: Any) -> None:
    parser = _add(
        commands,
        "import",
        "importing",
        "bring voices and base models into the library",
        "Files are recognised by content, whatever their names. An index in the same folder, archive or call goes "
        "with its voice. A voice imported again under the same name replaces the older one.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="FILE",
        help=".pth, .index, a folder or .zip of both, a content encoder or a pitch model",
    )
    parser.add_argument("--name", help="name of the voice in the library (default: its file name)")


def _add_voices(commands: Any) -> None:
    _add(commands, "voices", "voices", "list the voices of the library")


def _add_convert(commands: Any) -> None:

    parser = _add(
        commands,
        "convert",
        "convert",
        "convert stems with a voice, into new files",
        "The output has the length, rate, channels and sample format of its stem. A lossy stem becomes a 24-bit WAV.",
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="IN", help="stem to convert")
    parser.add_argument("--voice", required=True, help="name in the library, or path of a .pth or .safetensors file")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="file or folder (default: IN.VOICE.wav beside each stem)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace outputs that exist already; a stem is never replaced"
    )

    _add_settings(parser, has_defaults=True)
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--precision", choices=("float32", "float16"), default="float32", help="of the arithmetic (default: float32)"
    )
    engine.add_argument("--index", type=Path, metavar="PATH", help="retrieval index for a --voice given as a .pth")
    engine.add_argument("--content-encoder", type=Path, metavar="PATH", help="instead of the installed one")
    engine.add_argument("--pitch", type=Path, metavar="PATH", help="pitch model instead of the installed one")


def _add_settings(parser: argparse.ArgumentParser, *, has_defaults: bool) -> Any:
    """Add what can be set for one stem; without defaults the daemon's configuration decides what is not given."""
    from rvcd.settings import Settings

    group = parser.add_argument_group("settings")
    for option, field, kind, text in (
        ("--semitones", "semitones", {"type": float}, "transposition, fractions allowed"),
        ("--index-rate", "index_rate", {"type": float}, "how far to lean on the voice's retrieval index, 0 to 1"),
        (
            *("--protect", "protect", {"type": float}),
            "share of it that unvoiced sounds keep, 0 to 0.5; 0.5: no protection",
        ),
        ("--loudness", "loudness", {"type": float}, "how far the output follows the stem's loudness, 0 to 1"),
        ("--speaker", "speaker_id", {"type": int}, "speaker of a multi-speaker voice"),
        ("--seed", "seed", {"type": int}, "same seed, same bytes"),
        ("--f0", "f0_method", {"choices": ("rmvpe", "yin")}, "how pitch is found; yin needs no model"),
        (
            *("--stereo", "stereo", {"choices": ("mid", "per-channel")}),
            "convert true stereo once, or every channel by itself",
        ),
        (
            *("--search", "search", {"choices": ("exact", "ivf")}),
            "how the retrieval index is searched; ivf as the reference does",
        ),
        (
            *("--fill-unvoiced", "fill_unvoiced", {"action": argparse.BooleanOptionalAction}),
            "bridge the pitch over unvoiced sounds, for voices trained by the 2026 WebUI",
        ),
    ):
        default = getattr(Settings, field) if has_defaults else None
        said = f"{text} (default: {default})" if has_defaults else text
        group.add_argument(option, dest=field, default=default, help=said, **kind)
    return group


def _add_inspect(commands: Any) -> None:
    parser = _add(commands, "inspect", "inspecting", "say what a checkpoint is, whether it can be used, and why not")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")


def _add_fetch(commands: Any) -> None:
    _add(
        commands,
        "fetch",
        "fetching",
        "download the content encoder and the pitch model that every voice needs",
        "About 560 MB, checked before use and kept; what is installed already is not fetched again.",
    )


def _add_run(commands: Any) -> None:
    summary = "run the daemon in the foreground, until Ctrl-C or `rvcd stop`"
    parser = commands.add_parser("run", help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False)
    parser.set_defaults(command="rvcd.commands.running", json=False)
    parser.add_argument("--port", type=int, metavar="N", help="OSC port instead of the configured one; 0: a free one")
    parser.add_argument("--config", type=Path, metavar="PATH", help="a file instead of the user's own")
    parser.add_argument("--supervised", action="store_true", help="a service manager runs it: log to the file alone")


def _add_status(commands: Any) -> None:
    parser = _add(commands, "status", "status", "tell how the daemon is", "The exit code is 3 if none runs.")
    parser.add_argument("--watch", action="store_true", help="go on telling, until Ctrl-C")


def _add_jobs(commands: Any) -> None:
    parser = _add(commands, "jobs", "jobs", "list the daemon's jobs: those that live, then those that ended last")
    which = parser.add_mutually_exclusive_group()
    for name, text in {"active": "that wait or run", "recent": "that ended", "failed": "that failed"}.items():
        which.add_argument(f"--{name}", dest="filter", action="store_const", const=name, help=f"those {text}, alone")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="at most so many of each (default: 20)")


def _add_send(commands: Any) -> None:
    parser = _add(
        commands,
        "send",
        "sending",
        "have the daemon convert stems",
        "What is not given is decided by the hot folder of the stem and the configuration.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="stem to convert")
    parser.add_argument("--voice", help="name in the library")
    parser.add_argument(
        "--mode",
        choices=("replace", "sibling", "out"),
        help="in place, beside the stem, or to --out (default: replace)",
    )
    parser.add_argument("--out", type=Path, metavar="OUT", help="file, or folder that exists, for the result")
    parser.add_argument("--priority", type=int, metavar="N", help="higher goes first (default: 0)")
    parser.add_argument("--wait", action="store_true", help="show progress; exit code 1 if a job does not succeed")
    _add_settings(parser, has_defaults=False)


def _add_cancel(commands: Any) -> None:
    parser = _add(commands, "cancel", "cancelling", "cancel jobs; their stems stay as they are")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("jobs", nargs="*", type=int, default=[], metavar="JOB", help="number of a job")
    which.add_argument("--all", action="store_true", help="all that wait or run")


def _add_undo(commands: Any) -> None:
    parser = _add(
        commands,
        "undo",
        "undoing",
        "put the take that a conversion replaced back, bit for bit",
        "What is there now is kept as a backup. No daemon is needed.",
    )
    parser.add_argument("target", metavar="JOB|PATH", help="number of a job, a stem, or a file of `rvcd backups`")


def _add_backups(commands: Any) -> None:
    parser = _add(commands, "backups", "backing", "list the takes that are kept, or remove old ones")
    parser.add_argument("--prune", action="store_true", help="remove what is older or more than wanted")
    parser.add_argument("--keep-days", type=float, metavar="N", help="of age (default: as configured)")
    parser.add_argument("--max-gb", type=float, metavar="N", help="for each root (default: as configured)")
    parser.add_argument("--last-copies", action="store_true", help="remove takes that exist nowhere else, too")


def _add_config(commands: Any) -> None:
    group = commands.add_parser("config", help="show, locate or check the configuration", allow_abbrev=False)
    actions = group.add_subparsers(metavar="ACTION", required=True)
    for action, summary in {
        "show": "print the configuration in force, and where each value comes from",
        "path": "print where the configuration lies",
        "check": "say all that is wrong with the configuration; exit code 1 if anything is",
    }.items():
        parser = _add(actions, action, "configuring", summary)
        parser.set_defaults(action=action)
        parser.add_argument("--config", type=Path, metavar="PATH", help="a file instead of the user's own")
        if action == "show":
            parser.add_argument("--example", action="store_true", help="print a commented example file instead")


def _add_services(commands: Any) -> None:
    for verb, summary in {
        "install": "run rvcd as a service of this user, now and at every login",
        "uninstall": "stop the service and remove it; voices and backups stay",
        "start": "start the installed service",
        "stop": "stop the service until the next login; if none is installed, the daemon of `rvcd run`",
        "restart": "start the installed service anew",
    }.items():
        parser = _add(commands, verb, "servicing", summary, "The service is launchd's on macOS, systemd's on Linux.")
        parser.set_defaults(verb=verb, headless=False)
        parser.add_argument("--dry-run", action="store_true", help="tell what would be done, change nothing")
        if verb == "install":
            parser.add_argument("--headless", action="store_true", help="for a machine where nobody logs in")


def _add_logs(commands: Any) -> None:
    parser = _add(commands, "logs", "logging_", "print the end of the daemon's log")
    parser.add_argument("-f", "--follow", action="store_true", help="print new lines until Ctrl-C")
    parser.add_argument("-n", "--lines", type=int, default=20, metavar="N", help="how many (default: 20)")


def _add_doctor(commands: Any) -> None:
    parser = _add(
        commands,
        "doctor",
        "doctoring",
        "check configuration, models, port, folders, disks, clock and arithmetic",
        "Every finding is ok, warn or fail; the exit code is 1 if one is fail.",
    )
    parser.add_argument("--config", type=Path, metavar="PATH", help="a file instead of the user's own")
