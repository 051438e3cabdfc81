"""From a checkpoint's tensors to plain float32 weights: folded, complete, of the expected shapes.

Shapes are torch's, channels first; nothing here is turned to MLX's layout.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rvcd.errors import Code, RvcdError

Tensors = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]

# The two spellings of torch's weight norm: gain, direction.
_NORM_SPELLINGS = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


def plain_weights(tensors: Mapping[str, Any]) -> Tensors:
    """Widen to float32 and fold weight norm: `X.weight_g` and `X.weight_v` become `X.weight`.

    Raises `RvcdError`: `missing_tensor`, `wrong_shape`, `not_finite`.
    """
    plain = {name: _float32(name, tensor) for name, tensor in tensors.items()}
    for suffixes in _NORM_SPELLINGS:
        layers = {name.removesuffix(suffix) for name in plain for suffix in suffixes if name.endswith(suffix)}
        for layer in sorted(layers):
            gain, direction = (_taken(plain, layer + suffix) for suffix in suffixes)
            plain[f"{layer}.weight"] = fold_weight_norm(layer, gain, direction)
    return plain


def fold_weight_norm(layer: str, gain: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """`gain * direction / |direction|`, the norm over the axes on which `gain` has size 1 (no epsilon).

    Source: torch.nn.utils.weight_norm. Raises `RvcdError`: `wrong_shape`.
    """
    fits = gain.ndim == direction.ndim and all(g in (1, d) for g, d in zip(gain.shape, direction.shape, strict=True))
    if not fits:
        raise RvcdError(
            Code.WRONG_SHAPE,
            f"The weight norm of {layer} has a gain of shape {gain.shape} for weights of shape {direction.shape}.",
        )
    axes = tuple(axis for axis, size in enumerate(gain.shape) if size == 1)
    norm = np.sqrt(np.sum(np.square(direction, dtype=np.float64), axis=axes, keepdims=True))
    if not norm.all():
        raise RvcdError(Code.NOT_FINITE, f"The weight norm of {layer} divides by zero; training had failed.")
    folded: np.ndarray = (direction * (gain / norm)).astype(np.float32)
    return folded


def checked(tensors: Tensors, expected: Shapes) -> Tensors:
    """Return the tensors if they are exactly the expected ones.

    Raises `RvcdError`: `missing_tensor`, `wrong_shape`, `unexpected_tensor`; each names the tensor.
    """
    for name, shape in expected.items():
        if name not in tensors:
            raise missing(name, shape)
        if tensors[name].shape != shape:
            raise RvcdError(
                Code.WRONG_SHAPE, f"The tensor {name} has shape {tensors[name].shape}; the model needs {shape}."
            )
    extra = sorted(tensors.keys() - expected.keys())
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise RvcdError(
            Code.UNEXPECTED_TENSOR, f"The model has no place for the tensor {extra[0]}{more}; it is of another kind."
        )
    return {name: tensors[name] for name in expected}


def shape_of(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    """Shape of a tensor from which sizes are read.

    Raises `RvcdError`: `missing_tensor`, `wrong_shape`.
    """
    if name not in tensors:
        raise missing(name)
    shape = tensors[name].shape
    if len(shape) != dimensions or 0 in shape:
        raise RvcdError(
            Code.WRONG_SHAPE, f"The tensor {name} has shape {shape}; the model needs {dimensions} dimensions."
        )
    return shape


def count_of(tensors: Iterable[str], pattern: str) -> int:
    """How many different numbers stand in the one group of `pattern` among the names."""
    return len({found.group(1) for found in map(re.compile(pattern).match, tensors) if found})


def missing(name: str, shape: tuple[int, ...] | None = None) -> RvcdError:
    """Say that a tensor is not there."""
    of_shape = f" of shape {shape}" if shape is not None else ""
    return RvcdError(Code.MISSING_TENSOR, f"The tensor {name}{of_shape} is missing; the checkpoint is incomplete.")


def _float32(name: str, tensor: Any) -> np.ndarray:
    if not isinstance(tensor, np.ndarray) or tensor.dtype.kind != "f":
        what = tensor.dtype if isinstance(tensor, np.ndarray) else type(tensor).__name__
        raise RvcdError(Code.WRONG_SHAPE, f"{name} is of type {what}, not a tensor of real numbers.")
    # A copy: nothing that leaves the reader depends on the mapped file.
    with np.errstate(over="ignore"):
        wide = np.array(tensor, np.float32, order="C")
    if not np.isfinite(wide).all():
        raise RvcdError(Code.NOT_FINITE, f"The tensor {name} holds infinite or undefined numbers; training had failed.")
    return wide


def _taken(tensors: Tensors, name: str) -> np.ndarray:
    if name not in tensors:
        raise missing(name)
    return tensors.pop(name)
