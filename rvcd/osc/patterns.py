"""OSC address patterns, matched without regular expressions in bounded time.

Source: The Open Sound Control 1.0 Specification, "OSC Message Dispatching and Pattern Matching".
"""

from collections.abc import Callable

_Step = Callable[[str, int], list[int]]
"""From a position in an address to the positions that one piece of the pattern leads to."""


def is_pattern(address: str) -> bool:
    """Whether an address has any of the characters that make it a pattern."""
    return any(char in "*?[]{}" for char in address)


def matches(pattern: str, address: str) -> bool:
    """Whether an OSC pattern fits a whole address; no piece of it crosses a `/`.

    All positions that the pattern so far can have reached are carried along together, so the time is at most the
    length of the pattern times the square of the address's; ours are short. A pattern with an open bracket fits
    nothing.
    """
    positions = {0}
    while pattern and positions:
        step, pattern = _first_step(pattern)
        positions = {after for before in positions for after in step(address, before)}
    return not pattern and len(address) in positions


def _first_step(pattern: str) -> tuple[_Step, str]:
    head = pattern[0]
    if head == "*":
        return _anything, pattern[1:]
    if head == "?":
        return _one_of(lambda char: char != "/"), pattern[1:]
    if head in "[{":
        end = pattern.find("]" if head == "[" else "}")
        if end < 0:
            return _nothing, ""
        inner = pattern[1:end]
        return (_in_set(inner) if head == "[" else _alternatives(inner.split(","))), pattern[end + 1 :]
    return _one_of(lambda char: char == head), pattern[1:]


def _nothing(address: str, at: int) -> list[int]:  # noqa: ARG001
    return []


def _anything(address: str, at: int) -> list[int]:
    end = address.find("/", at)
    return list(range(at, (len(address) if end < 0 else end) + 1))


def _one_of(fits: Callable[[str], bool]) -> _Step:
    return lambda address, at: [at + 1] if at < len(address) and fits(address[at]) else []


def _in_set(inner: str) -> _Step:
    wanted = not inner.startswith("!")
    inner = inner.removeprefix("!")
    chars = set(inner)
    for first, dash, last in zip(inner, inner[1:], inner[2:], strict=False):
        if dash == "-":
            chars.update(map(chr, range(ord(first), ord(last) + 1)))
    return _one_of(lambda char: char != "/" and (char in chars) is wanted)


def _alternatives(words: list[str]) -> _Step:
    return lambda address, at: [at + len(word) for word in words if address.startswith(word, at)]
