"""From a converted file to an evaluated model."""

from pathlib import Path
from typing import Literal, cast

import mlx.core as mx
from mlx import nn

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine import weights
from rvcd.mlx_engine.configs import HubertConfig, ModelConfig, RmvpeConfig
from rvcd.mlx_engine.hubert import Hubert
from rvcd.mlx_engine.layers import settle
from rvcd.mlx_engine.rmvpe import Rmvpe
from rvcd.mlx_engine.synthesizer import Synthesizer

Precision = Literal["float32", "float16"]
INDEX_PREFIX = "index."


def build(config: ModelConfig) -> nn.Module:
    """An empty model of these sizes."""
    if isinstance(config, HubertConfig):
        return Hubert(config)
    if isinstance(config, RmvpeConfig):
        return Rmvpe(config)
    return Synthesizer(config)


def prove(model: nn.Module, tensors: dict[str, mx.array], origin: str) -> None:
    """Load parameters strictly: every name and every shape must fit.

    Raises `RvcdError("wrong_shape")`.
    """
    try:
        model.load_weights(list(tensors.items()), strict=True)
    except ValueError as error:
        raise RvcdError(Code.WRONG_SHAPE, f"The tensors of {origin} do not make up its model: {error}") from error


def load(path: Path, precision: Precision) -> tuple[weights.ModelHeader, nn.Module, dict[str, mx.array]]:
    """Read a converted file: its header, the evaluated model, and the arrays of its retrieval index, not yet read.

    Raises `RvcdError`: `wrong_shape`, and as `weights.read_header` does.
    """
    header = weights.read_header(path)
    tensors = cast("dict[str, mx.array]", mx.load(str(path), format="safetensors"))
    index = {name: tensors.pop(name) for name in list(tensors) if name.startswith(INDEX_PREFIX)}
    model = build(header.config)
    dtype = getattr(mx, precision)
    prove(model, {name: tensor.astype(dtype) for name, tensor in tensors.items()}, path.name)
    settle(model)
    return header, model, index
