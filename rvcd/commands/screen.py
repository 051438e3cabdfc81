"""Plain text for people: durations, bars, columns, and lines that are redrawn in place."""

import os
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TextIO

_BAR_CHARACTERS = 24


def printable(text: str) -> str:
    """Text in which nothing commands the terminal, as a file name may."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def duration(seconds: float) -> str:
    """Time in its two largest units, such as `3 h 12 min`."""
    whole = round(seconds)
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    for (name, size), (next_name, next_size) in pairwise(units):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // next_size} {next_name}"
    return f"{whole} s"


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def progress(fraction: float, stage: str, seconds_left: float) -> str:
    """A bar, what is being done, and how long it will take if that is known."""
    done = int(fraction * _BAR_CHARACTERS)
    bar = "#" * done + "." * (_BAR_CHARACTERS - done)
    left = f", {duration(seconds_left)} left" if seconds_left >= 0 else ""
    return f"[{bar}] {int(100 * fraction):3d} %  {stage}{left}".rstrip()


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines in which the cells of a column stand below each other."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


class Canvas:
    """Lines of a terminal that are drawn over each other."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._drawn = 0

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines in the place of the last ones, cut to what the terminal can hold."""
        width, height = os.get_terminal_size(self._out.fileno())  # 0: it does not know
        lines = [line[: (width or 80) - 1] for line in lines[: (height or 24) - 1]]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._out.write(f"\r{up}" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        self._out.flush()
        self._drawn = len(lines)


class ProgressLine:
    """Progress of one job on stderr: a bar on a terminal, elsewhere one line for each stage."""

    def __init__(self, name: str) -> None:
        self._name = printable(name)
        self._canvas = Canvas(sys.stderr) if sys.stderr.isatty() else None
        self._stage = ""

    def show(self, fraction: float, stage: str, seconds_left: float) -> None:
        """Tell how far it is; time left -1: not known."""
        if self._canvas:
            self._canvas.draw([f"{self._name}  {progress(fraction, stage, seconds_left)}"])
        elif stage != self._stage:
            print(f"{self._name}: {stage}", file=sys.stderr, flush=True)  # noqa: T201
        self._stage = stage

    def clear(self) -> None:
        """Take the bar away."""
        if self._canvas:
            self._canvas.draw([])
