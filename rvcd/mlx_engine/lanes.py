"""Work side by side: a signal is cut into tiles, and tiles are computed on independent streams.

MLX's CPU backend runs one thread per stream, so one lane per core keeps all of them busy, in matrix
products and in element-wise operations alike, and tiles that fit the cache avoid most memory
traffic. A GPU fills itself: there is one lane, and a tile is the whole signal.

A tile is computed from a window that reaches into its neighbours. `Ends` tells each layer which side
of its window is a true end of the signal, where it must pad with zeros as it would on the whole;
elsewhere it consumes context. Tiled and whole results are the same arithmetic.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx


@dataclass(frozen=True)
class Ends:
    """Which sides of a window are true ends of the signal."""

    left: bool = True
    right: bool = True

    def trim(self, x: mx.array, reach: int) -> mx.array:
        """Drop `reach` frames of context at inner sides; x is (batch, frames, ...)."""
        return x[:, 0 if self.left else reach : x.shape[1] - (0 if self.right else reach)]

    def pad(self, x: mx.array, left: int, right: int) -> mx.array:
        """Zeros beyond the true ends, nothing at inner sides; x is (batch, frames, ...)."""
        left, right = left * self.left, right * self.right
        if left == 0 and right == 0:
            return x
        return mx.pad(x, [(0, 0), (left, right)] + [(0, 0)] * (x.ndim - 2))


WHOLE = Ends()


def on_cpu() -> bool:
    """Whether the default device is the CPU."""
    return bool(mx.default_device().type == mx.DeviceType.cpu)


def _core_count() -> int:
    # macOS has no affinity to ask for.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_of_thread = threading.local()


def _cpu_streams() -> tuple[mx.Stream, ...]:
    # A stream belongs to the thread that made it.
    if not hasattr(_of_thread, "streams"):
        _of_thread.streams = tuple(mx.new_stream(mx.cpu) for _ in range(_core_count()))
    streams: tuple[mx.Stream, ...] = _of_thread.streams
    return streams


def let_lanes_interleave() -> None:
    """Have MLX schedule the lanes of a graph in turn. Must be called before anything is evaluated.

    Its scheduler looks at 20 operations of a graph at once by default, fewer than two tiles offer; beyond that it
    hands out one tile after the other, and one lane sleeps while another works.
    """
    if on_cpu():
        os.environ.setdefault("MLX_BFS_MAX_WIDTH", "60")


def lane_count() -> int:
    """How many tiles are computed at once."""
    return len(_cpu_streams()) if on_cpu() else 1


def lane(number: int) -> AbstractContextManager[object]:
    """Compute on this lane (numbers wrap around)."""
    streams = _cpu_streams() if on_cpu() else (mx.default_stream(mx.default_device()),)
    return mx.stream(streams[number % len(streams)])


def spans(length: int, longest: int) -> list[tuple[int, int]]:
    """Cut `length` into nearly equal pieces no longer than `longest`, a multiple of the lanes if there are several."""
    count = max(1, -(-length // longest))
    if count > 1:
        count = min(-(-count // lane_count()) * lane_count(), length)
    edges = [length * i // count for i in range(count + 1)]
    return list(pairwise(edges))


@dataclass(frozen=True)
class Tile:
    """One piece of a signal and the window it is computed from, in frames."""

    number: int
    start: int
    stop: int
    window_start: int
    window_stop: int
    ends: Ends


def tiles(length: int, longest: int, reach: int) -> Iterator[Tile]:
    """Tiles of a signal of `length` frames whose windows reach `reach` frames to either side."""
    for number, (start, stop) in enumerate(spans(length, longest)):
        low, high = max(0, start - reach), min(length, stop + reach)
        yield Tile(number, start, stop, low, high, Ends(low == 0, high == length))


def map_tiles(
    function: Callable[[mx.array, Ends], mx.array], x: mx.array, *, longest: int, reach: int, rate: int = 1
) -> mx.array:
    """Apply `function` tile by tile along axis 1 and join the results.

    function: takes a window (batch, frames, ...) and its ends, consumes exactly `reach` frames at inner
    sides, and returns `rate` output frames for each input frame that remains.
    """

    def piece(tile: Tile) -> mx.array:
        with lane(tile.number):
            y = function(x[:, tile.window_start : tile.window_stop], tile.ends)
            first = tile.start - tile.window_start - (0 if tile.ends.left else reach)
            return y[:, first * rate : (first + tile.stop - tile.start) * rate]

    return join(piece(tile) for tile in tiles(x.shape[1], longest, reach))


def join(pieces: Iterable[mx.array]) -> mx.array:
    """Concatenate consecutive pieces along axis 1, computing them lane by lane as they come.

    Evaluated in one go, MLX would work through many tiles in step: none would stay in a cache, and the lanes
    would wait for each other.
    """
    joined = []
    for piece in pieces:
        joined.append(piece)
        if lane_count() > 1 and len(joined) % lane_count() == 0:
            mx.eval(joined[-lane_count() :])
    return joined[0] if len(joined) == 1 else mx.concatenate(joined, axis=1)
