"""Arguments of a message to what its method says, and the pairs of `/rvcd/convert` to a request."""

import math
from pathlib import Path
from typing import Any, get_args

from rvcd.errors import Code, RvcdError
from rvcd.jobs import JobRequest, Mode
from rvcd.osc.codec import Argument
from rvcd.osc.methods import OPTIONS, Method
from rvcd.settings import Settings

MAX_REQ_BYTES = 64

_SETTING_OF_OPTION = {
    "pitch": "semitones",
    "f0": "f0_method",
    "index_rate": "index_rate",
    "protect": "protect",
    "loudness": "loudness",
    "speaker": "speaker_id",
    "seed": "seed",
    "stereo": "stereo",
    "search": "search",
    "fill_unvoiced": "fill_unvoiced",
}


def values_of(method: Method, args: tuple[Argument, ...]) -> tuple[Any, ...]:
    """One value per type of the method, defaults filled in; arguments beyond them are left alone.

    Raises `RvcdError`: `bad_request`.
    """
    types, names = method.types, method.args.split(", ")
    given = args[: len(types)]
    missing = len(types) - len(given)
    if missing > len(method.defaults):
        raise RvcdError(
            Code.BAD_REQUEST, f"{method.address} takes {method.args} ({method.signature}), not {len(args)} arguments."
        )
    values = [_value(kind, arg, name) for kind, arg, name in zip(types, given, names, strict=False)]
    if method.has_req and len(str(values[0] if values else "").encode()) > MAX_REQ_BYTES:
        raise RvcdError(Code.BAD_REQUEST, f"req may have {MAX_REQ_BYTES} bytes, not {len(values[0].encode())}.")
    return (*values, *method.defaults[len(method.defaults) - missing :])


def pairs_of(args: tuple[Argument, ...], known: dict[str, str]) -> dict[str, Any]:
    """Key and value pairs by their types in `known`; keys that start with `x-` are dropped.

    Raises `RvcdError`: `bad_request`.
    """
    if len(args) % 2:
        raise RvcdError(Code.BAD_REQUEST, f"The last option, {args[-1]!r}, has no value.")
    pairs = {}
    for key, value in zip(args[::2], args[1::2], strict=True):
        if isinstance(key, str) and key.startswith("x-"):
            continue
        if not isinstance(key, str) or key not in known:
            raise RvcdError(Code.BAD_REQUEST, f"{key!r} is not an option; known are {', '.join(known)}, and x-….")
        pairs[key] = _value(known[key], value, key)
    return pairs


def convert_request(req: str, path: str, options: tuple[Argument, ...], client: str) -> JobRequest:
    """Read what `/rvcd/convert` asks for. Raises `RvcdError`: `bad_request`, `bad_setting`."""
    pairs = pairs_of(options, {key: kind for key, (kind, _) in OPTIONS.items()})
    settings = {_SETTING_OF_OPTION[key]: value for key, value in pairs.items() if key in _SETTING_OF_OPTION}
    if "fill_unvoiced" in settings:
        settings["fill_unvoiced"] = bool(settings["fill_unvoiced"])
    Settings(**settings)  # says now what would fail later
    out = absolute_path(pairs["out"], "out") if "out" in pairs else None
    mode = choice(pairs.get("mode", "out" if out else "replace"), Mode, "mode")
    if (mode == "out") != (out is not None):
        raise RvcdError(Code.BAD_REQUEST, f"Mode out and an out path belong together; mode is {mode}, out is {out}.")
    return JobRequest(
        path=absolute_path(path, "path"),
        voice=pairs.get("model") or None,
        settings=settings,
        mode=mode,
        out=out,
        priority=pairs.get("priority", 0),
        backup=bool(pairs.get("backup", 1)),
        dry_run=bool(pairs.get("dry_run", 0)),
        origin="osc",
        client=client,
        req=req,
    )


def absolute_path(text: str, name: str) -> Path:
    """Path of an argument. Raises `RvcdError`: `bad_request`."""
    path = Path(text)
    if not path.is_absolute():
        raise RvcdError(Code.BAD_REQUEST, f"{name} must be an absolute path, not {text!r}.")
    return path


def choice(text: str, literal: Any, name: str) -> Any:
    """Word of an argument, one of a `Literal`'s. Raises `RvcdError`: `bad_request`."""
    known = get_args(literal)
    if text not in known:
        raise RvcdError(Code.BAD_REQUEST, f"{name} must be one of {', '.join(known)}, not {text!r}.")
    return text


def _value(kind: str, arg: Argument, name: str) -> Any:
    if kind == "s" and isinstance(arg, str):
        return arg
    if kind in "if" and isinstance(arg, (int, float)) and math.isfinite(arg):
        if kind == "f":
            return float(arg)
        if arg == int(arg):
            return int(arg)
    if kind == "*" and isinstance(arg, (str, int, float)):
        return arg
    wanted = {"s": "a string", "i": "a whole number", "f": "a number", "*": "a string or a number"}[kind]
    raise RvcdError(Code.BAD_REQUEST, f"{name} must be {wanted}, not {arg!r}.")
