"""A pickle machine that cannot run anything.

It follows Python's pickle opcodes (protocols 0 to 5) but owns no import and no call: a class or function
that the stream names becomes a `Name`, a call becomes whatever our own table makes of it, or an inert
`Record` of name, arguments and state. Names that are never data (`os.system`, `builtins.eval`, ...) are
refused. Every length is checked against the stream before anything is allocated.
"""

import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rvcd.errors import Code, RvcdError


@dataclass(frozen=True)
class Name:
    """A class or function, named and never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Record:
    """An object of a class that we do not know: what the pickle says of it, never built."""

    name: Name
    args: tuple[Any, ...] = field(default=(), repr=False)
    state: Any = field(default=None, repr=False)
    items: dict[Any, Any] = field(default_factory=dict, repr=False)
    members: list[Any] = field(default_factory=list, repr=False)


class PickleError(ValueError):
    """The stream is not a pickle that we can follow."""


Interpret = Callable[..., Any]

_OBJECT_CALLS: dict[tuple[str, str], Interpret] = {
    ("copyreg", "_reconstructor"): lambda what, *_: Record(what),
    ("copy_reg", "_reconstructor"): lambda what, *_: Record(what),
    ("copyreg", "__newobj__"): lambda what, *args: Record(what, args),
}
_BUILTIN_MODULES = {"builtins", "__builtin__"}
_BUILTIN_TYPES = {
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range"),
    *("set", "slice", "str", "tuple", "type", "unicode", "long"),
}
# Modules of the standard library whose objects are values; of every other one, nothing is data.
_DATA_MODULES = {
    "_codecs": {"encode"},
    "argparse": {"Namespace"},
    "collections": {"OrderedDict", "defaultdict", "Counter", "deque"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "types": {"SimpleNamespace"},
    "uuid": {"UUID"},
}
# `sys.stdlib_module_names` is this Python's and this platform's; a file may come from another.
_STANDARD_LIBRARY = sys.stdlib_module_names | {
    *("__builtin__", "_posixsubprocess", "_winapi", "_winreg", "asynchat", "asyncore", "cPickle", "cgi", "commands"),
    *("copy_reg", "distutils", "dummy_threading", "ftplib", "imp", "msvcrt", "nt", "pipes", "popen2", "posix"),
    *("smtpd", "telnetlib", "urllib2", "winreg"),
}


def refuse_unsafe(name: Name) -> None:
    """Refuse a name that is not data: of `builtins` or of the standard library, outside a short list.

    Raises `RvcdError`: `unsafe_pickle`.
    """
    root = name.module.partition(".")[0]
    # Protocol 4 may reach through a harmless module: ("torch.serialization", "os.system").
    reached = [part for part in name.name.split(".")[:-1] if part in _STANDARD_LIBRARY]
    if root in _BUILTIN_MODULES:
        safe = name.name in _BUILTIN_TYPES
    elif root in _STANDARD_LIBRARY:
        safe = root == "typing" or name.name in _DATA_MODULES.get(name.module, set())
    else:
        safe = True
    if reached or not safe:
        raise RvcdError(
            Code.UNSAFE_PICKLE,
            f"The file asks to call {name}, which no model needs; nothing was run. Do not open this file elsewhere.",
        )


class Machine:
    """Reads one pickle after another from `buffer`.

    `calls` maps (module, name) to our own interpretation of that call; `persistent` turns a persistent id
    (torch's reference to a storage) into an object.
    """

    def __init__(
        self,
        buffer: bytes,
        calls: Mapping[tuple[str, str], Interpret] | None = None,
        persistent: Callable[[Any], Any] | None = None,
        position: int = 0,
    ) -> None:
        self._buffer = buffer
        self._calls = _OBJECT_CALLS | dict(calls or {})
        self._persistent = persistent
        self.position = position
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Read the next object.

        Raises `EOFError` where the stream ends early, `PickleError` where it makes no sense, `RvcdError`
        (`unsafe_pickle`) where it names what is never data.
        """
        self._stack, self._marks, self._memo = [], [], {}
        while True:
            opcode = self._take(1)[0]
            if opcode == _STOP:
                return self._pop()
            step = _STEPS.get(opcode)
            if step is None:
                raise PickleError(f"opcode {opcode:#x}")
            step(self)

    # the stream

    def _take(self, count: int) -> bytes:
        if count < 0:
            raise PickleError("a negative length")
        if count > len(self._buffer) - self.position:
            raise EOFError
        self.position += count
        return self._buffer[self.position - count : self.position]

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _sized(self, layout: str) -> bytes:
        return self._take(self._number(layout))

    def _line(self) -> bytes:
        end = self._buffer.find(b"\n", self.position)
        if end < 0:
            raise EOFError
        return self._take(end + 1 - self.position)[:-1]

    # the stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _discard(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def _pop(self) -> Any:
        if not self._stack or (self._marks and len(self._stack) <= self._marks[-1]):
            raise PickleError("an empty stack")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._push(value)
        return value

    def _discard_to_mark(self) -> None:
        self._pop_mark()

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise PickleError("a missing mark")
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    # names and calls

    def _push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a name that is no text")
        if (module, name) not in self._calls:
            refuse_unsafe(Name(module, name))
        self._push(Name(module, name))

    def _name_in_lines(self) -> None:
        module, name = self._line(), self._line()
        self._push_name(module.decode(), name.decode())

    def _name_on_stack(self) -> None:
        name, module = self._pop(), self._pop()
        self._push_name(module, name)

    def call(self, what: Any, args: Any) -> Any:
        """Interpret a call: by our table, else as an inert record."""
        if not isinstance(what, Name) or not isinstance(args, tuple):
            raise PickleError("a call of something that is no name")
        interpret = self._calls.get((what.module, what.name))
        return interpret(*args) if interpret else Record(what, args)

    def _reduce(self) -> None:
        args = self._pop()
        self._push(self.call(self._pop(), args))

    def _new_with_keywords(self) -> None:
        keywords, args, what = self._pop(), self._pop(), self._pop()
        if not isinstance(what, Name):
            raise PickleError("a class that is no name")
        self._push(Record(what, (args, keywords)))

    def _instance(self) -> None:
        args = tuple(self._pop_mark())
        self._name_in_lines()
        self._push(self.call(self._pop(), args))

    def _object(self) -> None:
        what, *args = self._pop_mark() or [None]
        self._push(self.call(what, tuple(args)))

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Record):
            target.state = state

    # containers

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Record):
            target.members.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise PickleError("an append to something that is no list")

    def _append_one(self) -> None:
        self._append([self._pop()])

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        items = target.items if isinstance(target, Record) else target
        if not isinstance(items, dict) or len(values) % 2:
            raise PickleError("items for something that is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            items[checked_key(key)] = value

    def _dict_from_mark(self) -> None:
        values = self._pop_mark()
        self._push({})
        self._set_items(values)

    def _set_one(self) -> None:
        value = self._pop()
        self._set_items([self._pop(), value])

    def _add_members(self) -> None:
        members, target = self._pop_mark(), self._top()
        if not isinstance(target, set):
            raise PickleError("members for something that is no set")
        target.update(checked_key(member) for member in members)

    def _last(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    def _duplicate(self) -> None:
        self._push(self._top())

    # memory and persistent ids

    def _remember(self, slot: int) -> None:
        self._memo[slot] = self._top()

    def _recall(self, slot: int) -> None:
        if slot not in self._memo:
            raise PickleError("an unknown memo")
        self._push(self._memo[slot])

    def _persist(self) -> None:
        if self._persistent is None:
            raise PickleError("a persistent id")
        self._push(self._persistent(self._pop()))


def checked_key(key: Any) -> Any:
    """Return a dict key or set member that is flat: the hash of nested tuples can be made to take for ever."""
    flat = (str, bytes, int, float, bool, type(None), Name, Record)
    if isinstance(key, flat) or (isinstance(key, tuple) and all(isinstance(part, flat) for part in key)):
        return key
    raise PickleError("a key that is neither text nor a number")


def _integer(text: bytes) -> int:
    # Protocols 0 and 1 write booleans as these two.
    return {b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text)


def _signed(content: bytes) -> int:
    return int.from_bytes(content, "little", signed=True)


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


_Step = Callable[[Machine], None]
_STOP = ord(".")


def _pushing(make: Callable[[Machine], Any]) -> _Step:
    return lambda machine: machine._push(make(machine))


_STEPS_OF_OPCODES: dict[str, _Step] = {
    "(": Machine._mark,
    "0": Machine._discard,
    "1": Machine._discard_to_mark,
    "2": Machine._duplicate,
    "\x80": lambda m: m._number("<B"),  # protocol
    "\x95": lambda m: m._number("<Q"),  # frame
    # constants and numbers
    "N": _pushing(lambda _: None),
    "\x88": _pushing(lambda _: True),
    "\x89": _pushing(lambda _: False),
    "I": _pushing(lambda m: _integer(m._line())),
    "L": _pushing(lambda m: int(m._line().rstrip(b"L"))),
    "F": _pushing(lambda m: float(m._line())),
    "J": _pushing(lambda m: m._number("<i")),
    "K": _pushing(lambda m: m._number("<B")),
    "M": _pushing(lambda m: m._number("<H")),
    "G": _pushing(lambda m: m._number(">d")),
    "\x8a": _pushing(lambda m: _signed(m._sized("<B"))),
    "\x8b": _pushing(lambda m: _signed(m._sized("<i"))),
    # text and bytes; the str of Python 2 is text here
    "S": _pushing(lambda m: m._line()[1:-1].decode("latin1")),
    "V": _pushing(lambda m: m._line().decode("raw_unicode_escape")),
    "T": _pushing(lambda m: m._sized("<i").decode("latin1")),
    "U": _pushing(lambda m: m._sized("<B").decode("latin1")),
    "X": _pushing(lambda m: _text(m._sized("<I"))),
    "\x8c": _pushing(lambda m: _text(m._sized("<B"))),
    "\x8d": _pushing(lambda m: _text(m._sized("<Q"))),
    "B": _pushing(lambda m: m._sized("<I")),
    "C": _pushing(lambda m: m._sized("<B")),
    "\x8e": _pushing(lambda m: m._sized("<Q")),
    "\x96": _pushing(lambda m: m._sized("<Q")),
    # containers
    "]": _pushing(lambda _: []),
    "}": _pushing(lambda _: {}),
    ")": _pushing(lambda _: ()),
    "\x8f": _pushing(lambda _: set()),
    "t": _pushing(lambda m: tuple(m._pop_mark())),
    "l": _pushing(Machine._pop_mark),
    "\x91": _pushing(lambda m: frozenset(checked_key(member) for member in m._pop_mark())),
    "d": Machine._dict_from_mark,
    "\x85": lambda m: m._last(1),
    "\x86": lambda m: m._last(2),
    "\x87": lambda m: m._last(3),
    "a": Machine._append_one,
    "e": lambda m: m._append(m._pop_mark()),
    "s": Machine._set_one,
    "u": lambda m: m._set_items(m._pop_mark()),
    "\x90": Machine._add_members,
    # names, calls, state, persistent ids
    "c": Machine._name_in_lines,
    "\x93": Machine._name_on_stack,
    "R": Machine._reduce,
    "\x81": Machine._reduce,
    "\x92": Machine._new_with_keywords,
    "i": Machine._instance,
    "o": Machine._object,
    "b": Machine._build,
    "Q": Machine._persist,
    # memory
    "p": lambda m: m._remember(int(m._line())),
    "q": lambda m: m._remember(m._number("<B")),
    "r": lambda m: m._remember(m._number("<I")),
    "\x94": lambda m: m._remember(len(m._memo)),
    "g": lambda m: m._recall(int(m._line())),
    "h": lambda m: m._recall(m._number("<B")),
    "j": lambda m: m._recall(m._number("<I")),
}
_STEPS = {ord(opcode): step for opcode, step in _STEPS_OF_OPCODES.items()}
