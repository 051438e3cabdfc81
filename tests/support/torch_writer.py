"""Writes torch's two checkpoint formats from numpy arrays, without torch.

`save_zip` writes today's format, `save_legacy` the one before torch 1.6. The object is any nesting of
dict, OrderedDict, list, tuple, set, str, bytes, int, float, bool, None and numpy arrays (each becomes a
tensor with a storage of its own). Markers stand for what numpy cannot say: `BFloat16`, `View` (a tensor
that looks into a shared storage), `Global` (a class or function by name) and `Call` (a pickle that asks for
a call: foreign objects and hostile files). The bytes depend on the object alone.
"""

import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STORAGE_OF_DTYPE = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001


@dataclass(frozen=True)
class BFloat16:
    """A float array to be stored as bfloat16, rounded to nearest."""

    array: np.ndarray

    def bits(self) -> np.ndarray:
        wide = np.ascontiguousarray(self.array, np.float32).view(np.uint32)
        return ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)


@dataclass(frozen=True, eq=False)
class View:
    """A tensor that looks into `storage`; views of the same array object share one storage."""

    storage: np.ndarray
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements, as torch counts them."""


@dataclass(frozen=True)
class Global:
    """A class or function, named and never imported."""

    module: str
    name: str


@dataclass(frozen=True, eq=False)
class Call:
    """`what(*args)`, then its state; `new` asks for `what.__new__` instead, as ordinary objects do."""

    what: Global
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] | None = None
    new: bool = False


def save_zip(path: Path, obj: Any, byte_order: str = "little") -> None:
    """Write `obj` as `torch.save` does since 1.6."""
    pickled, storages = dump(obj, legacy=False)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, content: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)

        add("data.pkl", pickled)
        add("byteorder", byte_order.encode())
        for key, storage in storages.items():
            add(f"data/{key}", storage.tobytes())
        add("version", b"3\n")


def save_legacy(path: Path, obj: Any, little_endian: bool = True) -> None:
    """Write `obj` as `torch.save(..., _use_new_zipfile_serialization=False)` does."""
    pickled, storages = dump(obj, legacy=True)
    system = {
        "protocol_version": PROTOCOL_VERSION,
        "little_endian": little_endian,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    with path.open("wb") as file:
        for header in (MAGIC_NUMBER, PROTOCOL_VERSION, system):
            file.write(dump(header, legacy=True)[0])
        file.write(pickled)
        file.write(dump(list(storages), legacy=True)[0])
        for storage in storages.values():
            file.write(struct.pack("<q", storage.size) + storage.tobytes())


def dump(obj: Any, *, legacy: bool) -> tuple[bytes, dict[str, np.ndarray]]:
    """Pickle `obj` (protocol 2); returns the pickle and the storages that it refers to."""
    writer = _Writer(legacy)
    writer.write(obj)
    return b"\x80\x02" + b"".join(writer.chunks) + b".", writer.storages


class _Writer:
    def __init__(self, legacy: bool) -> None:
        self.chunks: list[bytes] = []
        self.storages: dict[str, np.ndarray] = {}
        self._legacy = legacy
        self._key_of_shared: dict[int, str] = {}

    def write(self, obj: Any) -> None:
        writers: dict[type, Callable[[Any], None]] = {
            type(None): lambda _: self._emit(b"N"),
            bool: lambda value: self._emit(b"\x88" if value else b"\x89"),
            int: self._int,
            float: lambda value: self._emit(b"G" + struct.pack(">d", value)),
            str: self._text,
            bytes: self._bytes,
            tuple: self._tuple,
            list: self._list,
            dict: self._dict,
            OrderedDict: lambda d: self.write(Call(Global("collections", "OrderedDict"), items=d)),
            set: lambda s: self.write(Call(Global("builtins", "set"), (sorted(s),))),
            BFloat16: lambda b: self._tensor(b.bits(), "BFloat16Storage"),
            View: self._view,
            Global: lambda g: self._emit(f"c{g.module}\n{g.name}\n".encode()),
            Call: self._call,
            np.ndarray: lambda a: self._tensor(np.array(a), STORAGE_OF_DTYPE[a.dtype.name]),
        }
        writers[type(obj)](obj)

    def _emit(self, chunk: bytes) -> None:
        self.chunks.append(chunk)

    def _int(self, value: int) -> None:
        if -(2**31) <= value < 2**31:
            self._emit(b"J" + struct.pack("<i", value))
        else:
            digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self._emit(b"\x8a" + bytes([len(digits)]) + digits)

    def _text(self, value: str) -> None:
        encoded = value.encode()
        self._emit(b"X" + struct.pack("<I", len(encoded)) + encoded)

    def _bytes(self, value: bytes) -> None:
        self.write(Call(Global("_codecs", "encode"), (value.decode("latin1"), "latin1")))

    def _tuple(self, values: tuple[Any, ...]) -> None:
        self._marked(values, b"t")

    def _list(self, values: list[Any]) -> None:
        self._emit(b"]")
        self._marked(values, b"e")

    def _dict(self, values: dict[Any, Any]) -> None:
        self._emit(b"}")
        self._items(values)

    def _items(self, values: dict[Any, Any]) -> None:
        self._marked((part for item in values.items() for part in item), b"u")

    def _marked(self, values: Iterable[Any], end: bytes) -> None:
        self._emit(b"(")
        for value in values:
            self.write(value)
        self._emit(end)

    def _call(self, call: Call) -> None:
        self.write(call.what)
        self.write(call.args)
        self._emit(b"\x81" if call.new else b"R")
        if call.items is not None:
            self._items(call.items)
        if call.state is not None:
            self.write(call.state)
            self._emit(b"b")

    def _tensor(self, array: np.ndarray, storage_type: str) -> None:
        strides = tuple(stride // array.itemsize for stride in np.ascontiguousarray(array).strides)
        key = self._new_key(np.ascontiguousarray(array).reshape(-1))
        self._rebuild(key, storage_type, array.size, 0, array.shape, strides if array.ndim else ())

    def _view(self, view: View) -> None:
        if id(view.storage) not in self._key_of_shared:
            self._key_of_shared[id(view.storage)] = self._new_key(view.storage)
        key = self._key_of_shared[id(view.storage)]
        storage_type = STORAGE_OF_DTYPE[view.storage.dtype.name]
        self._rebuild(key, storage_type, view.storage.size, view.offset, view.shape, view.strides)

    def _new_key(self, storage: np.ndarray) -> str:
        key = str(len(self.storages))
        self.storages[key] = storage
        return key

    def _rebuild(
        self, key: str, storage_type: str, numel: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        self.write(Global("torch._utils", "_rebuild_tensor_v2"))
        self._emit(b"(")
        self.write(("storage", Global("torch", storage_type), key, "cpu", numel, *([None] if self._legacy else [])))
        self._emit(b"Q")
        for value in (offset, shape, strides, False, OrderedDict()):
            self.write(value)
        self._emit(b"tR")
