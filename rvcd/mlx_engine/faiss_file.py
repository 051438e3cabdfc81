"""Reads faiss's flat indexes without faiss: vectors, centroids, and which list each vector lies in.

Format (little-endian), as written by faiss's `index_write.cpp`: an `IwFl` (IVF with flat lists) holds a
header, its coarse quantizer (itself a flat index), a direct map and the inverted lists, each of vectors
followed by ids; `IxF2`, `IxFI` and `IxFl` are flat indexes of their own.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine.torch_file import map_file

_FLAT = {b"IxF2", b"IxFI", b"IxFl"}
_IVF_FLAT = b"IwFl"
_METRIC_INNER_PRODUCT, _METRIC_L2 = 0, 1
_MAX_WIDTH = 1 << 16
_HASH_ENTRY_BYTES = 16


@dataclass(frozen=True)
class RetrievalIndex:
    """The training features of a voice."""

    vectors: np.ndarray
    """(count, width) float32, by id."""
    centroids: np.ndarray
    """(lists, width) float32."""
    list_of_vector: np.ndarray
    """(count,) int32."""
    nprobe: int
    """Lists that the reference searches."""


@dataclass(frozen=True)
class IndexHeader:
    """What an index says of itself."""

    width: int
    count: int


def is_index(path: Path) -> bool:
    """Whether the file begins as a faiss index does, readable or not."""
    with path.open("rb") as file:
        start = file.read(4)
    return len(start) == 4 and start[:2] in (b"Ix", b"Iw", b"Iv", b"IH", b"IB", b"IM") and start.isalnum()


def read_index_header(path: Path) -> IndexHeader:
    """Read width and count alone.

    Raises `RvcdError`: `not_found`, `bad_index`.
    """
    reader = _Reader(path)
    reader.kind()
    width, count = reader.header()
    return IndexHeader(width, count)


def read_index(path: Path) -> RetrievalIndex:
    """Read an index.

    Raises `RvcdError`: `not_found`, `bad_index` (none, damaged, cut short, of another kind), `empty_index` (a
    `trained_` index, which has centroids and no vectors).
    """
    reader = _Reader(path)
    if reader.kind() == _IVF_FLAT:
        index = _read_ivf(reader)
    else:
        vectors = reader.flat_vectors(metrics=(_METRIC_L2,))
        centroid = vectors.mean(axis=0, keepdims=True) if len(vectors) else vectors
        index = RetrievalIndex(vectors, centroid, np.zeros(len(vectors), np.int32), 1)
    if not len(index.vectors):
        raise RvcdError(
            Code.EMPTY_INDEX,
            f"{path.name} holds no vectors: it is a training by-product. Take the file that begins with added_.",
        )
    if not (np.isfinite(index.vectors).all() and np.isfinite(index.centroids).all()):
        raise reader.bad("holds infinite or undefined numbers")
    return index


def _read_ivf(reader: "_Reader") -> RetrievalIndex:
    width, count = reader.header()
    list_count, nprobe = reader.number("<Q"), reader.number("<Q")
    if reader.take(4) not in _FLAT:
        raise reader.bad("has centroids that are not stored flat")
    centroids = reader.flat_vectors(metrics=(_METRIC_INNER_PRODUCT, _METRIC_L2))
    reader.skip_direct_map()
    sizes = _list_sizes(reader, list_count, width)
    if centroids.shape != (list_count, width) or sum(sizes.values()) != count:
        raise reader.bad("contradicts itself about its lists")
    if count * 4 * width > reader.bytes_left():
        raise reader.cut_short()
    vectors = np.empty((count, width), np.float32)
    ids, list_of_vector = np.empty(count, np.int64), np.empty(count, np.int32)
    start = 0
    for number, size in sizes.items():
        rows = slice(start, start + size)
        vectors[rows] = reader.array("<f4", size * width).reshape(size, width)
        ids[rows] = reader.array("<i8", size)
        list_of_vector[rows] = number
        start += size
    order = np.argsort(ids, kind="stable")
    return RetrievalIndex(vectors[order], centroids, list_of_vector[order], max(1, min(nprobe, list_count)))


def _list_sizes(reader: "_Reader", list_count: int, width: int) -> dict[int, int]:
    """Size of each list that is not empty, in the order of the file."""
    if reader.take(4) != b"ilar":
        raise reader.bad("has lists that are not stored in the file")
    if reader.number("<Q") != list_count or reader.number("<Q") != 4 * width:
        raise reader.bad("contradicts itself about its lists")
    form, entries = reader.take(4), reader.number("<Q")
    if form == b"full" and entries == list_count:
        sizes = dict(enumerate(reader.array("<u8", entries).tolist()))
    elif form == b"sprs" and entries % 2 == 0:
        pairs = reader.array("<u8", entries).reshape(-1, 2).tolist()
        sizes = {int(number): int(size) for number, size in pairs}
    else:
        raise reader.bad("has lists of an unknown form")
    if any(number >= list_count for number in sizes):
        raise reader.bad("contradicts itself about its lists")
    return {number: size for number, size in sizes.items() if size}


class _Reader:
    """A cursor over the file that never leaves it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._contents = map_file(path)
        except RvcdError as error:
            raise error if error.code is Code.NOT_FOUND else self.cut_short() from None
        self._position = 0

    def bad(self, what: str) -> RvcdError:
        return RvcdError(Code.BAD_INDEX, f"{self._path.name} {what}; rvcd reads flat faiss indexes as RVC writes them.")

    def cut_short(self) -> RvcdError:
        return RvcdError(Code.BAD_INDEX, f"{self._path.name} is cut short; copy or download it again.")

    def bytes_left(self) -> int:
        return len(self._contents) - self._position

    def take(self, count: int) -> bytes:
        if not 0 <= count <= self.bytes_left():
            raise self.cut_short()
        self._position += count
        return self._contents[self._position - count : self._position]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def array(self, dtype: str, count: int) -> np.ndarray:
        layout = np.dtype(dtype)
        if not 0 <= count * layout.itemsize <= self.bytes_left():
            raise self.cut_short()
        values = np.frombuffer(self._contents, layout, count, self._position) if count else np.zeros(0, layout)
        self._position += count * layout.itemsize
        return values

    def kind(self) -> bytes:
        kind = self.take(4)
        if kind != _IVF_FLAT and kind not in _FLAT:
            raise self.bad(
                f"is a faiss index of type {kind.decode()}" if kind[:1] == b"I" and kind.isalnum() else "is no index"
            )
        return kind

    def header(self, metrics: tuple[int, ...] = (_METRIC_L2,)) -> tuple[int, int]:
        """Read width and count of vectors."""
        width, count = self.number("<i"), self.number("<q")
        self.take(16)  # two numbers that faiss ignores
        _trained, metric = self.number("<B"), self.number("<i")
        if metric not in metrics:
            raise self.bad(f"measures by faiss's metric {metric}, not by distance ({_METRIC_L2})")
        if not 1 <= width <= _MAX_WIDTH or count < 0:
            raise self.bad(f"says it holds {count} vectors of width {width}")
        return width, count

    def flat_vectors(self, metrics: tuple[int, ...]) -> np.ndarray:
        width, count = self.header(metrics)
        if self.number("<Q") != count * width:
            raise self.bad("contradicts itself about its vectors")
        return np.array(self.array("<f4", count * width).reshape(count, width))

    def skip_direct_map(self) -> None:
        kind, entries = self.number("<B"), self.number("<Q")
        self.array("<i8", entries)
        if kind == 2:
            self.take(self.number("<Q") * _HASH_ENTRY_BYTES)
