"""Every message that rvcd sends: one table, from which packets, the string form and the README are made."""

import math
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote

from rvcd.osc.codec import MAX_PACKET_BYTES, Message

STRING_FORM = "/rvcd/event"
_STRING_FORM_VERSION = 1
_LONG_FIELDS = ("path", "backup", "folder", "text")
_MAX_FLOAT32 = 3.4028235e38
_MAX_STRING_BYTES = 7000  # of a packet's 8192, so that all else of a message finds room


class Outgoing(NamedTuple):
    """One address that clients receive. Whoever reads it ignores arguments beyond the ones it knows."""

    address: str
    types: str
    args: str
    """Names of the arguments, in order."""
    doc: str = ""


REPLIES = (
    Outgoing("/rvcd/hello.reply", "siissi", "version, protocol, client id, instance id, capabilities, default lease s"),
    Outgoing("/rvcd/pong", "", "what was sent", "numbers and strings as they came, all else as strings"),
    Outgoing("/rvcd/version.reply", "sisss", "version, protocol, platform, backend, build"),
    Outgoing(
        "/rvcd/status.reply",
        "siiiiisifs",
        "state, queued, running, done, failed, models warm, active model, uptime s, memory MB, detail",
        "state: idle, busy, paused, loading, draining, degraded (then detail says why)",
    ),
    Outgoing(
        "/rvcd/accepted", "sii", "req, job, position", "job 0: the request is not a job, `done` or `fail` follows"
    ),
    Outgoing("/rvcd/done", "ss", "address, req", "after /rvcd/notify also client id `i` and lease s `i`"),
    Outgoing("/rvcd/fail", "ssss", "address, req, code, text"),
    Outgoing(
        "/rvcd/job/info",
        "sissfssfffs",
        "req, job, state, path, fraction, code, stage, seconds left, elapsed s, audio s, model",
        "state: queued, running, staged, committed, failed, cancelled; seconds left -1: not known",
    ),
    Outgoing("/rvcd/jobs.end", "si", "req, count"),
    Outgoing("/rvcd/model/info", "sssif", "req, name, state, rate Hz, MB", "state: cold, loading, warm, bad"),
    Outgoing("/rvcd/models.end", "si", "req, count"),
    Outgoing("/rvcd/watch/info", "sssiis", "req, folder, state, pending, unreadable, model"),
    Outgoing("/rvcd/watch.end", "si", "req, count"),
    Outgoing("/rvcd/synced", "s", "token"),
    Outgoing("/rvcd/method", "sss", "address, types, doc"),
    Outgoing("/rvcd/methods.end", "si", "req, count"),
)

EVENTS = (
    Outgoing("/rvcd/job/queued", "iisi", "seq, job, path, position", "position 0 is next, -1: not known"),
    Outgoing("/rvcd/job/started", "iisss", "seq, job, path, model, device"),
    Outgoing(
        "/rvcd/job/progress",
        "iifsf",
        "seq, job, fraction, stage, eta",
        "fraction 0 to 1, never falling; stage: load, analysis, pitch, voice, output, write; eta s, -1: not known; "
        "at most 10 a second, at least one in 2 s",
    ),
    Outgoing("/rvcd/job/done", "iissf", "seq, job, path, backup, elapsed", "backup path or empty; elapsed s"),
    Outgoing("/rvcd/job/failed", "iissi", "seq, job, code, text, retryable", "retryable 0 or 1"),
    Outgoing("/rvcd/job/cancelled", "iis", "seq, job, by", "by: cancelled, superseded, shutting_down"),
    Outgoing("/rvcd/model/state", "iss", "seq, model, state", "state: cold, loading, warm, bad"),
    Outgoing("/rvcd/watch/state", "iss", "seq, folder, state"),
    Outgoing("/rvcd/server", "iss", "seq, instance, state", "state: startup, draining, shutdown"),
    Outgoing("/rvcd/heartbeat", "iiii", "seq, queued, running, uptime", "every 5 s to subscribers; uptime s"),
    Outgoing(STRING_FORM, "s", "line", "the string form of any of these: `v=1 seq=7 job=12 ev=done f=1.0 path=…`"),
)

SENT = {message.address: message for message in (*REPLIES, *EVENTS)}


def outgoing(address: str, *values: object) -> Message:
    """Message of the table, its values made what its types say; values beyond them keep their own types."""
    types = SENT[address].types
    assert len(values) >= len(types), (address, values)
    args = [_as_type(kind, value) for kind, value in zip(types, values, strict=False)]
    args += [_as_own_type(value) for value in values[len(types) :]]
    return Message(address, tuple(_clipped(args)))


def string_form(event: Message) -> Message:
    """Event as one line of `key=value`, percent-encoded, for receivers that take a single string.

    The line is `v=1 seq=… job=… ev=… …`: `ev` is the last part of the address, or `model` and `watch` for the
    two `state` events. An event that is too long as a line is told without its paths and text.
    """
    names = SENT[event.address].args.split(", ")
    fields = dict(zip(names, event.args, strict=True))
    name = event.address.removeprefix("/rvcd/").removeprefix("job/").removesuffix("/state")
    line = {"v": _STRING_FORM_VERSION, "seq": fields.pop("seq")}
    if "job" in fields:
        line["job"] = fields.pop("job")
    line["ev"] = name
    if name == "done":
        line["f"] = 1.0
    elif "fraction" in fields:
        line["f"] = fields.pop("fraction")
    text = _joined(line | fields)
    if len(text) > MAX_PACKET_BYTES - 64:
        text = _joined({key: value for key, value in (line | fields).items() if key not in _LONG_FIELDS})
    return Message(STRING_FORM, (text,))


def _joined(fields: Mapping[str, object]) -> str:
    return " ".join(f"{key}={_plain(value)}" for key, value in fields.items())


def _plain(value: object) -> str:
    return repr(round(value, 6)) if isinstance(value, float) else quote(str(value), safe="/")


def _as_type(kind: str, value: object) -> float | str:
    if kind == "s":
        return _text(value)
    assert isinstance(value, (int, float)), value
    return int(value) if kind == "i" else float(value)


def _as_own_type(value: object) -> float | str:
    if isinstance(value, bool) or (isinstance(value, int) and -(2**31) <= value < 2**31):
        return int(value)
    if isinstance(value, float) and not _MAX_FLOAT32 < abs(value) < math.inf:
        return value
    return "" if value is None else _text(value)


def _text(value: object) -> str:
    """Text that OSC can carry: file names need not be Unicode, and nothing may hold a NUL."""
    return str(value).replace("\0", " ").encode("utf-8", "replace").decode()


def _clipped(args: list[float | str]) -> list[float | str]:
    """Shorten strings that together would not fit into a packet."""
    strings = [arg for arg in args if isinstance(arg, str)]
    if sum(len(text.encode()) for text in strings) <= _MAX_STRING_BYTES:
        return args
    room = _MAX_STRING_BYTES // len(strings)
    return [arg.encode()[:room].decode(errors="ignore") if isinstance(arg, str) else arg for arg in args]
