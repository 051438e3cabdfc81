"""Every message that rvcd takes: one table, from which dispatch, `/rvcd/methods` and the README are made.

`python -m rvcd.osc.methods` prints the README's tables.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from rvcd.osc.messages import EVENTS, REPLIES, Outgoing

MAX_LEASE_SECONDS = 3600
DEFAULT_LEASE_SECONDS = 60
MAX_LISTED_JOBS = 200

Default = float | str


class Method(NamedTuple):
    """One address that rvcd listens to."""

    address: str
    types: str
    """i, f: any number that fits; s: a string; *: either. With pairs, `[s*]` follows any number of times."""
    args: str
    reply: str
    doc: str
    kind: Literal["query", "command"] = "command"
    """A query changes nothing and may be asked by a pattern."""
    needs_token: bool = False
    """Changes what others see, so a server with a token wants it in `/rvcd/hello` first."""
    defaults: tuple[Default, ...] = ()
    """What the last arguments are if they are left out."""
    has_pairs: bool = False

    @property
    def signature(self) -> str:
        """Types as they are documented: `|` stands before what may be left out."""
        required = len(self.types) - len(self.defaults)
        optional = f"|{self.types[required:]}" if self.defaults else ""
        return self.types[:required] + optional + ("[s*]..." if self.has_pairs else "")

    @property
    def has_req(self) -> bool:
        """Whether the first argument is the client's own name for the request."""
        return self.args.startswith("req")


def _query(address: str, types: str, args: str, reply: str, doc: str, defaults: tuple[Default, ...] = ()) -> Method:
    return Method(address, types, args, reply, doc, kind="query", defaults=defaults)


def _change(address: str, types: str, args: str, reply: str, doc: str, *, has_pairs: bool = False) -> Method:
    return Method(address, types, args, reply, doc, needs_token=True, has_pairs=has_pairs)


METHODS = (
    Method(
        "/rvcd/hello",
        "sii",
        "name, protocol, reply_port, pairs",
        "/rvcd/hello.reply",
        "say who you are; reply_port 0: answer to the source port; pairs: `token` s, `capabilities` csv of ack, "
        "string-events",
        defaults=("", 1, 0),
        has_pairs=True,
    ),
    _query("/rvcd/ping", "", "anything", "/rvcd/pong", "echo; like every message it renews the lease"),
    _query("/ping", "", "anything", "/rvcd/pong", "the same, for surfaces that send it by themselves"),
    _query("/rvcd/version", "", "", "/rvcd/version.reply", "what is running"),
    _query("/rvcd/status", "", "", "/rvcd/status.reply", "how it is"),
    Method(
        "/rvcd/notify",
        "iisi",
        "on, lease_s, topics, reply_port",
        "/rvcd/done, then the live jobs",
        f"subscribe (1) or not (0), for at most {MAX_LEASE_SECONDS} s without a message; topics csv of jobs, models, "
        "watch, server (none: all), and `event` for the string form; reply_port as in hello, for senders that leave "
        "from a new port each time",
        defaults=(DEFAULT_LEASE_SECONDS, "", 0),
    ),
    _change(
        "/rvcd/convert",
        "ss",
        "req, path, pairs",
        "/rvcd/accepted or /rvcd/fail, then events",
        "convert a stem; pairs: see below",
        has_pairs=True,
    ),
    _change("/rvcd/cancel", "si", "req, job", "/rvcd/done, then the job's last event", "-1: all that you asked for"),
    _change(
        "/rvcd/restore",
        "s*",
        "req, job or path",
        "/rvcd/accepted, then /rvcd/done or /rvcd/fail",
        "put the original back",
    ),
    _query("/rvcd/job", "si", "req, job", "the job's latest event", "repairs a gap in seq"),
    _query(
        "/rvcd/jobs",
        "ssi",
        "req, filter, limit",
        "n x /rvcd/job/info, /rvcd/jobs.end",
        f"filter: active, recent, failed; at most {MAX_LISTED_JOBS}",
        ("active", MAX_LISTED_JOBS),
    ),
    _query("/rvcd/models", "s", "req", "n x /rvcd/model/info, /rvcd/models.end", "all voices", ("",)),
    _change("/rvcd/model/load", "ss", "req, model", "/rvcd/accepted, then /rvcd/done or /rvcd/fail", "warm a voice"),
    _change(
        "/rvcd/model/unload", "ss", "req, model", "/rvcd/accepted, then /rvcd/done or /rvcd/fail", "let a voice go cold"
    ),
    _change(
        "/rvcd/watch",
        "ss",
        "req, action",
        "/rvcd/done, or for list n x /rvcd/watch/info, /rvcd/watch.end",
        "hot folders: pause, resume, rescan, list",
    ),
    _change("/rvcd/hold", "ssf", "req, path, ttl_s", "/rvcd/done", "I am still writing this"),
    _change("/rvcd/release", "ss", "req, path", "/rvcd/done", "it is finished"),
    Method(
        "/rvcd/sync", "s", "token", "/rvcd/synced", "answered when your earlier commands are done (not conversions)"
    ),
    _query("/rvcd/methods", "s", "req", "n x /rvcd/method, /rvcd/methods.end", "this table", ("",)),
    Method("/rvcd/ack", "i", "seq", "none", "that last event of a job arrived; for clients with capability ack"),
)

OPTIONS: dict[str, tuple[str, str]] = {
    "model": ("s", "voice; else the configured one"),
    "pitch": ("f", "semitones"),
    "f0": ("s", "rmvpe or yin"),
    "index_rate": ("f", "0 to 1"),
    "protect": ("f", "0 to 0.5"),
    "loudness": ("f", "0 to 1"),
    "speaker": ("i", "row of a multi-speaker voice"),
    "seed": ("i", "same seed, same bytes"),
    "stereo": ("s", "mid or per-channel"),
    "search": ("s", "exact or ivf"),
    "fill_unvoiced": ("i", "1: bridge the pitch over unvoiced sounds, for voices trained by the 2026 WebUI"),
    "mode": ("s", "replace, sibling or out"),
    "out": ("s", "absolute path; means mode out"),
    "priority": ("i", "higher goes first"),
    "backup": ("i", "0: keep no original"),
    "dry_run": ("i", "1: check everything, convert nothing"),
}
"""Keys of the pairs of `/rvcd/convert`; others fail, except those that start with `x-`."""


def methods_table() -> str:
    """Markdown of what rvcd takes."""
    rows = [
        (f"`{m.address}`", _code(m.signature), m.args, m.reply, m.doc + (" **(token)**" if m.needs_token else ""))
        for m in METHODS
    ]
    return _markdown(("Address", "Types", "Arguments", "Answer", "Meaning"), rows)


def options_table() -> str:
    """Markdown of the pairs of `/rvcd/convert`."""
    return _markdown(
        ("Key", "Type", "Meaning"), [(f"`{key}`", _code(kind), doc) for key, (kind, doc) in OPTIONS.items()]
    )


def events_table() -> str:
    """Markdown of the events that rvcd sends."""
    return _outgoing_table(EVENTS)


def replies_table() -> str:
    """Markdown of the replies that rvcd sends."""
    return _outgoing_table(REPLIES)


def readme() -> str:
    """All that stands in the README between the markers `osc-methods`."""
    parts = (
        ("Requests", methods_table()),
        ("Pairs of `/rvcd/convert`", options_table()),
        ("Replies", replies_table()),
        ("Events", events_table()),
    )
    return "\n\n".join(f"#### {title}\n\n{table}" for title, table in parts)


def _outgoing_table(messages: tuple[Outgoing, ...]) -> str:
    rows = [(f"`{m.address}`", _code(m.types), m.args, m.doc) for m in messages]
    return _markdown(("Address", "Types", "Arguments", "Meaning"), rows)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def _markdown(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(readme())  # noqa: T201
