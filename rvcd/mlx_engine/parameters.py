"""From a checkpoint's tensors to our model's parameters: renamed, batch norms folded, channels last.

The layer that owns a kernel decides how it is turned; no name is guessed from.
"""

import re
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from rvcd.mlx_engine.checkpoint import Checkpoint
from rvcd.mlx_engine.configs import HubertConfig, RmvpeConfig, VoiceConfig
from rvcd.mlx_engine.hubert import PositionalConv
from rvcd.mlx_engine.layers import Conv1d, Conv2d, StridedConv1d, Upsample1d, Upsample2d
from rvcd.mlx_engine.models import build, prove

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
    prove(model, {name: mx.array(tensor) for name, tensor in tensors.items()}, "the checkpoint")
    return tensors


def _channels_last(model: nn.Module, name: str, tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    *path, leaf = name.split(".")
    owner = _descend(model, path)
    if leaf != "weight":
        return tensor
    if isinstance(owner, nn.Linear):
        return tensor.reshape(tensor.shape[0], -1)  # a convolution of kernel one is a linear map
    axes = next((axes for layer, axes in _TO_CHANNELS_LAST.items() if isinstance(owner, layer)), None)
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
    scale, shift = _batch_norm(source, "unet.encoder.bn")
    tensors: Tensors = {
        "unet.input_scale": scale.astype(np.float32),
        "unet.input_shift": shift.astype(np.float32),
        **_rmvpe_head(source),
    }
    for level in range(len(config.level_channels)):
        encoder, decoder = f"unet.encoder.layers.{level}", f"unet.decoder.layers.{level}"
        tensors |= _folded(source, f"unet.decoder.{level}.up", f"{decoder}.conv1.0", f"{decoder}.conv1.1", 1)
        for i in range(config.level_blocks):
            tensors |= _conv_block(source, f"unet.encoder.{level}.{i}", f"{encoder}.conv.{i}")
            tensors |= _conv_block(source, f"unet.decoder.{level}.blocks.{i}", f"{decoder}.conv2.{i}")
    for group in range(config.bottleneck_groups):
        for i in range(config.level_blocks):
            tensors |= _conv_block(source, f"unet.bottleneck.{group}.{i}", f"unet.intermediate.layers.{group}.conv.{i}")
    return tensors


def _rmvpe_head(source: Tensors) -> Tensors:
    tensors = {}
    for leaf in ("weight", "bias"):
        tensors[f"head.{leaf}"] = source[f"cnn.{leaf}"]
        tensors[f"output.{leaf}"] = source[f"fc.1.{leaf}"]
        for ours, theirs in (("input", "ih"), ("hidden", "hh")):
            forward = f"fc.0.gru.{leaf}_{theirs}_l0"
            tensors[f"gru.{ours}_{leaf}"] = np.stack([source[forward], source[f"{forward}_reverse"]])
    return tensors


def _conv_block(source: Tensors, to: str, origin: str) -> Tensors:
    shortcut = {
        f"{to}.shortcut.{leaf}": source[f"{origin}.shortcut.{leaf}"]
        for leaf in ("weight", "bias")
        if f"{origin}.shortcut.{leaf}" in source
    }
    return {
        **_folded(source, f"{to}.conv1", f"{origin}.conv.0", f"{origin}.conv.1", 0),
        **_folded(source, f"{to}.conv2", f"{origin}.conv.3", f"{origin}.conv.4", 0),
        **shortcut,
    }


def _folded(source: Tensors, to: str, convolution: str, norm: str, output_axis: int) -> Tensors:
    """A convolution without bias and the batch norm after it, as one convolution."""
    scale, shift = _batch_norm(source, norm)
    kernel = source[f"{convolution}.weight"].astype(np.float64)
    shape = [-1 if axis == output_axis else 1 for axis in range(kernel.ndim)]
    return {f"{to}.weight": (kernel * scale.reshape(shape)).astype(np.float32), f"{to}.bias": shift.astype(np.float32)}


def _batch_norm(source: Tensors, name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scale and shift per channel of a batch norm at inference."""
    weight, bias, mean, variance = (
        source[f"{name}.{leaf}"].astype(np.float64) for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / np.sqrt(variance + _BATCH_NORM_EPS)
    return scale, bias - mean * scale
