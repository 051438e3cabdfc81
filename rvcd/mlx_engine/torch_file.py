"""Reads what `torch.save` wrote, without torch and without running anything.

Two formats: a zip archive of stored entries (since torch 1.6: one pickle, one entry per storage) and the
legacy stream before it (pickles, then raw storages). Tensors become numpy views of the mapped file, so that
only what is used is read; bfloat16, which numpy lacks, is widened to float32. Every storage is checked
against the file and every tensor against its storage before an array is made.
"""

import math
import mmap
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine.inert_pickle import Interpret, Machine, Name, PickleError, Record

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_ZIP_START = b"PK\x03\x04"
_LOCAL_HEADER_BYTES = 30
_MAX_TEXT_AS_BYTES = 4096
_MAX_DIMENSIONS = 32
_NONSENSE = (ValueError, TypeError, LookupError, OverflowError, RecursionError, struct.error)
# Opcodes become objects of up to 64 bytes; the pickle of a large training checkpoint has one megabyte.
_MAX_PICKLE_BYTES = 16 << 20
_DTYPE_OF_STORAGE = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "UntypedStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_DTYPES = {*_DTYPE_OF_STORAGE.values(), "uint16", "uint32", "uint64"}


def read_torch_file(path: Path) -> Any:
    """Read the object in a `.pth` or `.pt` file.

    Returns dicts, lists, tuples, text, numbers, numpy arrays (read-only views of the file, in torch's layout)
    and, for every class we do not know, `Record`.

    Raises `RvcdError`: `not_found`, `not_a_checkpoint`, `truncated_file`, `unsafe_pickle`.
    """
    contents = map_file(path)
    try:
        if contents[:4] == _ZIP_START:
            return _read_zip(path, contents)
        if contents[257:262] == b"ustar":
            raise _not_a_checkpoint(path, "is in torch's tar format of 2016; load and save it again with a newer torch")
        return _read_legacy(path, contents)
    except EOFError:
        raise RvcdError(Code.TRUNCATED_FILE, f"{path.name} is cut short; copy or download it again.") from None
    except _NONSENSE as error:
        raise _not_a_checkpoint(path, f"is damaged, or was not saved by torch ({error})") from error


def map_file(path: Path) -> mmap.mmap:
    """Map a file into memory, read-only.

    Raises `RvcdError`: `not_found`, `truncated_file` (an empty file).
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise RvcdError(Code.TRUNCATED_FILE, f"{path.name} is empty; copy or download it again.") from None
    except OSError as error:
        raise RvcdError(Code.NOT_FOUND, f"{path} cannot be opened: {error.strerror or error}.") from None


def is_torch_zip(names: list[str]) -> bool:
    """Whether a zip archive with these entries was written by torch."""
    return any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names)


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Turn bfloat16 bit patterns (any shape, uint16) into float32; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _numpy_dtype(dtype: str) -> np.dtype[Any]:
    return np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")


def _not_a_checkpoint(path: Path, why: str) -> RvcdError:
    return RvcdError(Code.NOT_A_CHECKPOINT, f"{path.name} {why}.")


# Storages and tensors


@dataclass(frozen=True)
class _Storage:
    """A run of elements in the file; `values` is None while their place is not known yet."""

    values: np.ndarray | None


def _storage_dtype(storage_type: Any) -> str:
    dtype = _DTYPE_OF_STORAGE.get(storage_type.name) if isinstance(storage_type, Name) else None
    if dtype is None:
        raise PickleError(f"a storage of type {storage_type}, which rvcd does not read")
    return dtype


def _elements(contents: mmap.mmap, dtype: str, count: int, offset: int, available_bytes: int) -> np.ndarray:
    layout = _numpy_dtype(dtype)
    if not isinstance(count, int) or not 0 <= count * layout.itemsize <= available_bytes:
        raise PickleError(f"a storage of {count} elements in {available_bytes} bytes")
    values = np.frombuffer(contents, layout, count, offset) if count else np.zeros(0, layout)
    return widen_bfloat16(values) if dtype == "bfloat16" else values


def _is_sizes(values: Any) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) <= _MAX_DIMENSIONS
        and all(isinstance(value, int) and value >= 0 for value in values)
    )


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
    """View a storage as torch's `_rebuild_tensor_v2` would; sizes and strides are in elements."""
    sizes_make_sense = _is_sizes((offset,)) and _is_sizes(shape) and _is_sizes(strides) and len(shape) == len(strides)
    if not isinstance(storage, _Storage) or not sizes_make_sense:
        raise PickleError("a tensor of no sense")
    values = storage.values
    if values is None:
        return None
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if count and (last >= values.size or count > values.size):
        raise PickleError(f"a tensor of shape {shape} that reaches outside its storage of {values.size} elements")
    if not count:
        return np.zeros(shape, values.dtype)
    steps = tuple(stride * values.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Any:
    # Newer element types have no storage class of their own: bytes, and the type beside them.
    if not isinstance(storage, _Storage) or not isinstance(dtype, Name) or dtype.name not in _DTYPES:
        raise PickleError(f"a tensor of type {dtype}, which rvcd does not read")
    if storage.values is None:
        return None
    values = storage.values.view(_numpy_dtype(dtype.name))
    typed = _Storage(widen_bfloat16(values) if dtype.name == "bfloat16" else values)
    return _tensor(typed, offset, shape, strides)


# Calls that we interpret


def _bytes_of_text(text: Any, *_: Any) -> Any:
    # Longer text stays as it is: a hostile file could ask for the same megabytes again and again.
    if not isinstance(text, str) or len(text) > _MAX_TEXT_AS_BYTES:
        return Record(Name("_codecs", "encode"), (text,))
    return text.encode("latin1")


def _mapping(*args: Any) -> Any:
    return OrderedDict() if not args or isinstance(args[0], Name) else Record(Name("collections", "OrderedDict"), args)


def _numpy_scalar(dtype: Any, content: Any = None) -> Any:
    code = dtype.args[0] if isinstance(dtype, Record) and dtype.args else None
    if not isinstance(code, str) or np.dtype(code).kind not in "biuf" or not isinstance(content, bytes):
        return Record(Name("numpy", "scalar"), (dtype, content))
    return np.frombuffer(content, np.dtype(code).newbyteorder("<"), 1)[0].item()


_CALLS: dict[tuple[str, str], Interpret] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    ("torch", "Size"): lambda sizes=(): sizes,
    ("collections", "OrderedDict"): _mapping,
    ("collections", "defaultdict"): _mapping,
    ("_codecs", "encode"): _bytes_of_text,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
}


# The zip format


def _read_zip(path: Path, contents: mmap.mmap) -> Any:
    archive = _Archive(path, contents)
    if archive.has("constants.pkl"):
        raise _not_a_checkpoint(path, "is a TorchScript program; rvcd needs the checkpoint it was made from")
    if archive.has("byteorder") and archive.read("byteorder").strip() != b"little":
        raise _not_a_checkpoint(path, "was saved on a big-endian machine, which rvcd does not read")
    return Machine(archive.read("data.pkl"), _CALLS, archive.storage).load()


class _Archive:
    """The entries of torch's zip file, below the one folder in which they all lie."""

    def __init__(self, path: Path, contents: mmap.mmap) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                self._entries = {entry.filename: entry for entry in archive.infolist()}
        except (zipfile.BadZipFile, NotImplementedError):
            raise EOFError from None
        if not is_torch_zip(list(self._entries)):
            raise _not_a_checkpoint(path, "is an ordinary zip archive, no checkpoint; import it as one, or unpack it")
        self._folder = next(name for name in self._entries if is_torch_zip([name])).partition("/")[0]
        self._contents = contents
        self._storages: dict[tuple[str, str], _Storage] = {}
        self._size_of_storage: dict[str, int] = {}

    def has(self, name: str) -> bool:
        return f"{self._folder}/{name}" in self._entries

    def read(self, name: str) -> bytes:
        start, size = self._place(name)
        if size > _MAX_PICKLE_BYTES:
            raise PickleError(f"{name} of {size} bytes")
        return self._contents[start : start + size]

    def storage(self, reference: Any) -> _Storage:
        """Turn a persistent id into the storage that it refers to."""
        kind, storage_type, key, _, count = reference
        if kind != "storage" or not isinstance(key, str):
            raise PickleError(f"a reference to {kind!r}")
        dtype = _storage_dtype(storage_type)
        if (key, dtype) not in self._storages:
            start, size = self._place(f"data/{key}")
            self._size_of_storage[key] = size
            if sum(self._size_of_storage.values()) > len(self._contents):
                raise PickleError("storages that overlap")
            self._storages[key, dtype] = _Storage(_elements(self._contents, dtype, count, start, size))
        return self._storages[key, dtype]

    def _place(self, name: str) -> tuple[int, int]:
        entry = self._entries[f"{self._folder}/{name}"]
        return _start_of_stored(self._contents, entry), entry.file_size


def _start_of_stored(contents: mmap.mmap, entry: zipfile.ZipInfo) -> int:
    """Find where an uncompressed zip entry's bytes begin in the file."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
        raise PickleError(f"the compressed entry {entry.filename}")
    header = contents[entry.header_offset : entry.header_offset + _LOCAL_HEADER_BYTES]
    if header[:4] != _ZIP_START or len(header) < _LOCAL_HEADER_BYTES:
        raise PickleError(f"no entry where {entry.filename} should be")
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
    start: int = entry.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    if start + entry.file_size > len(contents):
        raise EOFError
    return start


# The legacy format


def _read_legacy(path: Path, contents: mmap.mmap) -> Any:
    pickles = contents[:_MAX_PICKLE_BYTES]
    header = Machine(pickles)
    try:
        magic_number = header.load()
    except (EOFError, *_NONSENSE):
        magic_number = None
    if magic_number != _MAGIC_NUMBER:
        raise _not_a_checkpoint(path, "is not a checkpoint: neither torch's zip format nor its legacy one")
    version, system = header.load(), header.load()
    if version != _PROTOCOL_VERSION:
        raise _not_a_checkpoint(path, f"has torch's legacy protocol {version}; rvcd reads {_PROTOCOL_VERSION}")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _not_a_checkpoint(path, "was saved on a big-endian machine, which rvcd does not read")

    # The storages lie behind the pickle that says their types, so it is followed twice.
    types: dict[str, tuple[str, int]] = {}

    def note(key: str, dtype: str, count: int) -> None:
        if types.setdefault(key, (dtype, count)) != (dtype, count):
            raise PickleError(f"storage {key} of two types")

    first = Machine(pickles, _CALLS, lambda reference: _legacy_storage(reference, note), header.position)
    first.load()
    keys = first.load()
    if not isinstance(keys, list) or len(keys) != len(types) or set(keys) != set(types):
        raise PickleError("a list of storages that does not fit")
    values = _legacy_values(contents, first.position, {key: types[key] for key in keys})
    second = Machine(pickles, _CALLS, lambda ref: _legacy_storage(ref, lambda key, *_: values[key]), header.position)
    return second.load()


def _legacy_values(contents: mmap.mmap, position: int, types: dict[str, tuple[str, int]]) -> dict[str, np.ndarray]:
    """Map each storage: its count of elements (int64), then its elements, one storage after another."""
    values: dict[str, np.ndarray] = {}
    for key, (dtype, count) in types.items():
        size = count * _numpy_dtype(dtype).itemsize
        if position + 8 + size > len(contents):
            raise EOFError
        if contents[position : position + 8] != struct.pack("<q", count):
            raise PickleError(f"storage {key} of another size than its tensors say")
        values[key] = _elements(contents, dtype, count, position + 8, size)
        position += 8 + size
    return values


def _legacy_storage(reference: Any, values_of: Callable[[str, str, int], np.ndarray | None]) -> Any:
    """Turn a persistent id into a storage, or into the class of a pickled module."""
    kind, *rest = reference
    if kind == "module":
        return rest[0]
    storage_type, key, _, count, view = rest
    if kind != "storage" or not isinstance(key, str) or not _is_sizes((count,)):
        raise PickleError(f"a reference to {kind!r}")
    dtype = _storage_dtype(storage_type)
    values = values_of(key, dtype, count)
    if values is None or view is None:
        return _Storage(values)
    _, offset, size = view
    if not _is_sizes((offset, size)) or offset + size > values.size:
        raise PickleError("a view outside its storage")
    return _Storage(values[offset : offset + size])
