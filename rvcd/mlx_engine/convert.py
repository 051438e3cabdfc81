"""A checkpoint becomes a converted file, once: renamed, folded, channels last, proven by a strict load.

The layer that owns a kernel decides how it is turned; no name is guessed from.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine import weights
from rvcd.mlx_engine.checkpoint import Checkpoint, read_checkpoint
from rvcd.mlx_engine.configs import HubertConfig, Kind, RmvpeConfig, VoiceConfig
from rvcd.mlx_engine.faiss_file import read_index
from rvcd.mlx_engine.hubert import PositionalConv
from rvcd.mlx_engine.layers import Conv1d, Conv2d, StridedConv1d, Upsample1d, Upsample2d
from rvcd.mlx_engine.models import INDEX_PREFIX, build
from rvcd.mlx_engine.voice import check_index_width

Tensors = dict[str, npt.NDArray[np.float32]]

_BATCH_NORM_EPS = 1e-5
_TO_CHANNELS_LAST: dict[type[nn.Module], tuple[int, ...]] = {
    Conv1d: (0, 2, 1),
    StridedConv1d: (0, 2, 1),
    PositionalConv: (0, 2, 1),
    Upsample1d: (1, 2, 0),
    Conv2d: (0, 2, 3, 1),
    Upsample2d: (1, 2, 3, 0),
}


@dataclass(frozen=True)
class ImportedModel:
    """A converted file and how it came about."""

    path: Path
    kind: Kind
    name: str
    fresh: bool
    """False when the same sources had been converted before."""


def import_checkpoint(
    source: Path, *, index: Path | None = None, directory: Path, name: str | None = None
) -> ImportedModel:
    """Convert a checkpoint (and a voice's retrieval index) into one file in `directory`.

    The file is keyed by the hashes of its sources and the format version: what was converted before is
    found, not done again. Another model of the same kind and name is replaced, after the new one is in place.

    Raises `RvcdError` with any of the checkpoint, index and file codes.
    """
    hashes = _hash_sources(source, index)
    key = weights.source_key(hashes)
    for known in sorted(directory.glob(f"*.{key[:12]}.safetensors")):
        header = weights.read_header(known)
        if header.key == key and name in (None, header.name):
            return ImportedModel(known, header.kind, header.name, fresh=False)
    checkpoint = read_checkpoint(source)
    tensors = to_model(checkpoint)
    provenance = {**checkpoint.info, "sources": hashes}
    if index is not None:
        tensors |= _index_tensors(index, checkpoint)
        provenance["nprobe"] = read_index(index).nprobe
    name = name or _default_name(source)
    path = directory / f"{_safe(name)}.{key[:12]}.safetensors"
    weights.save(
        path, tensors, kind=checkpoint.kind, name=name, key=key, config=checkpoint.config, provenance=provenance
    )
    _remove_predecessors(path, name, checkpoint.kind)
    return ImportedModel(path, checkpoint.kind, name, fresh=True)


def to_model(checkpoint: Checkpoint) -> Tensors:
    """Parameters of our model from a checkpoint in torch's names and layout, checked by a strict load."""
    config = checkpoint.config
    if isinstance(config, VoiceConfig):
        renamed = {_rename_voice(name, len(config.resblock_kernels)): t for name, t in checkpoint.tensors.items()}
    elif isinstance(config, HubertConfig):
        renamed = {_rename(name, _HUBERT_NAMES): t for name, t in checkpoint.tensors.items()}
    else:
        renamed = _rmvpe_parameters(config, checkpoint.tensors)
    model = build(config)
    tensors = {name: _channels_last(model, name, tensor) for name, tensor in renamed.items()}
    model.load_weights([(name, mx.array(tensor)) for name, tensor in tensors.items()], strict=True)
    return tensors


def _hash_sources(source: Path, index: Path | None) -> dict[str, str]:
    if not source.exists():
        raise RvcdError(Code.NOT_FOUND, f"There is no file {source}.")
    parts = [p for p in sorted(source.iterdir()) if p.is_file()] if source.is_dir() else [source]
    return {part.name: weights.sha256_of(part) for part in [*parts, *([index] if index else [])]}


def _index_tensors(path: Path, checkpoint: Checkpoint) -> Tensors:
    index = read_index(path)
    config = checkpoint.config
    if not isinstance(config, VoiceConfig):
        raise RvcdError(Code.BAD_INDEX, f"{path.name} is a voice's retrieval index; this checkpoint is no voice.")
    check_index_width(path, index.vectors.shape[1], config)
    return {
        f"{INDEX_PREFIX}vectors": index.vectors,
        f"{INDEX_PREFIX}centroids": index.centroids,
        f"{INDEX_PREFIX}list_of_vector": index.list_of_vector.astype(np.int32),  # type: ignore[dict-item]
    }


def _default_name(source: Path) -> str:
    # Training tools append epoch and step; a voice is named without them.
    return re.sub(r"_e\d+_s\d+$", "", source.stem if source.is_file() else source.name) or "unnamed"


def _safe(name: str) -> str:
    return re.sub(r"[^\w .()+-]", "_", name).strip(" .")[:100] or "unnamed"


def _remove_predecessors(path: Path, name: str, kind: Kind) -> None:
    for other in path.parent.glob(f"{_safe(name)}.*.safetensors"):
        if other == path:
            continue
        try:
            header = weights.read_header(other)
        except RvcdError:
            continue  # not ours to judge
        if (header.name, header.kind) == (name, kind):
            other.unlink()


def _channels_last(model: nn.Module, name: str, tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    *path, leaf = name.split(".")
    owner = _descend(model, path)
    if leaf != "weight":
        return tensor
    if isinstance(owner, nn.Linear):
        return tensor.reshape(tensor.shape[0], -1)  # a convolution of kernel one is a linear map
    axes = _TO_CHANNELS_LAST.get(type(owner))
    return tensor if axes is None else np.ascontiguousarray(tensor.transpose(axes))


def _descend(model: nn.Module, path: list[str]) -> object:
    owner: object = model
    for part in path:
        owner = owner[int(part)] if isinstance(owner, list) else getattr(owner, part)
    return owner


Renames = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


def _rename(name: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


_HUBERT_NAMES: Renames = (
    (r"^(feature_extractor\.conv_layers\.\d+)\.conv\.", r"\1."),
    (r"^feature_extractor\.conv_layers\.0\.layer_norm\.", "feature_extractor.norm."),
    (r"^feature_projection\.layer_norm\.", "feature_norm."),
    (r"^feature_projection\.projection\.", "feature_projection."),
    (r"^encoder\.pos_conv_embed\.conv\.", "position."),
    (r"^encoder\.layer_norm\.", "encoder_norm."),
    (r"^encoder\.layers\.", "layers."),
)

_VOICE_NAMES: Renames = (
    (r"^enc_p\.encoder\.(attn_layers|norm_layers_[12])\.", r"enc_p.\1."),
    (r"^enc_p\.encoder\.ffn_layers\.(\d+)\.conv_([12])\.", r"enc_p.ffn_\2.\1."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"^flow\.flows\.(\d+)\.", lambda m: f"flow.{int(m[1]) // 2}."),
    (r"^dec\.m_source\.l_linear\.", "dec.source_linear."),
    (r"^dec\.noise_convs\.(\d+)\.", r"dec.stages.\1.source."),
    (r"^dec\.ups\.(\d+)\.", r"dec.stages.\1.up."),
)


def _rename_voice(name: str, blocks_per_stage: int) -> str:
    block = re.match(r"^dec\.resblocks\.(\d+)\.(convs[12]?)\.(.*)$", name)
    if block:
        stage, number = divmod(int(block[1]), blocks_per_stage)
        convs = "convs1" if block[2] == "convs" else block[2]
        return f"dec.stages.{stage}.blocks.{number}.{convs}.{block[3]}"
    return _rename(name, _VOICE_NAMES)


def _rmvpe_parameters(config: RmvpeConfig, source: Tensors) -> Tensors:
    """RMVPE's parameters with every batch norm but the first folded into the convolution before it."""
    tensors: Tensors = {}

    def fold(to: str, convolution: str, norm: str, output_axis: int) -> None:
        scale, shift = _batch_norm(source, norm)
        kernel = source[f"{convolution}.weight"].astype(np.float64)
        shape = [-1 if axis == output_axis else 1 for axis in range(kernel.ndim)]
        tensors[f"{to}.weight"] = (kernel * scale.reshape(shape)).astype(np.float32)
        tensors[f"{to}.bias"] = shift.astype(np.float32)

    def block(to: str, origin: str) -> None:
        fold(f"{to}.conv1", f"{origin}.conv.0", f"{origin}.conv.1", 0)
        fold(f"{to}.conv2", f"{origin}.conv.3", f"{origin}.conv.4", 0)
        for leaf in ("weight", "bias"):
            if f"{origin}.shortcut.{leaf}" in source:
                tensors[f"{to}.shortcut.{leaf}"] = source[f"{origin}.shortcut.{leaf}"]

    scale, shift = _batch_norm(source, "unet.encoder.bn")
    tensors["unet.input_scale"], tensors["unet.input_shift"] = scale.astype(np.float32), shift.astype(np.float32)
    for level in range(len(config.level_channels)):
        fold(f"unet.decoder.{level}.up", f"unet.decoder.layers.{level}.conv1.0", f"unet.decoder.layers.{level}.conv1.1", 1)
        for i in range(config.level_blocks):
            block(f"unet.encoder.{level}.{i}", f"unet.encoder.layers.{level}.conv.{i}")
            block(f"unet.decoder.{level}.blocks.{i}", f"unet.decoder.layers.{level}.conv2.{i}")
    for group in range(config.bottleneck_groups):
        for i in range(config.level_blocks):
            block(f"unet.bottleneck.{group}.{i}", f"unet.intermediate.layers.{group}.conv.{i}")
    for leaf in ("weight", "bias"):
        tensors[f"head.{leaf}"] = source[f"cnn.{leaf}"]
        tensors[f"output.{leaf}"] = source[f"fc.1.{leaf}"]
        for ours, theirs in (("input", "ih"), ("hidden", "hh")):
            forward = f"fc.0.gru.{leaf}_{theirs}_l0"
            tensors[f"gru.{ours}_{leaf}"] = np.stack([source[forward], source[f"{forward}_reverse"]])
    return tensors


def _batch_norm(source: Tensors, name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scale and shift per channel of a batch norm at inference."""
    weight, bias, mean, variance = (
        source[f"{name}.{leaf}"].astype(np.float64) for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / np.sqrt(variance + _BATCH_NORM_EPS)
    return scale, bias - mean * scale
