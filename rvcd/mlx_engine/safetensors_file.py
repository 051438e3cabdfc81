"""Reads safetensors files as numpy views of the mapped file (float16, bfloat16 and the rest)."""

import json
import math
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine.torch_file import map_file, widen_bfloat16

_DTYPES = {
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    "BOOL": "?",
    "BF16": "<u2",
}
_MAX_HEADER_BYTES = 100_000_000


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as a safetensors file does."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= _MAX_HEADER_BYTES


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the tensors and the metadata; bfloat16 comes back as float32.

    Raises `RvcdError`: `not_found`, `not_a_checkpoint`, `truncated_file`.
    """
    contents = map_file(path)
    try:
        header_bytes = struct.unpack("<Q", contents[:8])[0]
        header: dict[str, Any] = json.loads(contents[8 : 8 + header_bytes])
        metadata = header.pop("__metadata__", {})
        spans = {name: _span(entry) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        raise RvcdError(Code.NOT_A_CHECKPOINT, f"{path.name} has a damaged safetensors header ({error}).") from error
    start = 8 + header_bytes
    if start + max((end for _, _, _, end in spans.values()), default=0) > len(contents):
        raise RvcdError(Code.TRUNCATED_FILE, f"{path.name} is cut short; copy or download it again.")
    ordered = sorted((begin, end) for _, _, begin, end in spans.values())
    if any(end > begin for (_, end), (begin, _) in pairwise(ordered)):
        raise RvcdError(Code.NOT_A_CHECKPOINT, f"{path.name} is damaged: its tensors overlap.")

    def array(dtype: str, shape: tuple[int, ...], begin: int) -> np.ndarray:
        count = math.prod(shape)
        values = np.frombuffer(contents, _DTYPES[dtype], count, start + begin) if count else np.zeros(0, _DTYPES[dtype])
        return (widen_bfloat16(values) if dtype == "BF16" else values).reshape(shape)

    return {name: array(dtype, shape, begin) for name, (dtype, shape, begin, _) in spans.items()}, metadata


def _span(entry: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in _DTYPES:
        raise ValueError(f"unknown type {dtype}")
    if not all(isinstance(size, int) and size >= 0 for size in (*shape, begin, end)):
        raise ValueError(f"sizes {shape} at {begin}-{end}")
    if math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize != end - begin:
        raise ValueError(f"{end - begin} bytes for shape {shape}")
    return dtype, shape, begin, end
