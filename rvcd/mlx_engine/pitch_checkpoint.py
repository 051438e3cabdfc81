"""RMVPE-shaped pitch models, under the names of `rmvpe.pt`."""

from collections.abc import Mapping
from typing import Any

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine.configs import RmvpeConfig
from rvcd.mlx_engine.state_dict import Shapes, Tensors, checked, count_of, plain_weights, shape_of


def is_pitch_model(names: Mapping[str, Any]) -> bool:
    """Whether a state dict with these names is an RMVPE-shaped model."""
    return any(name.startswith("unet.encoder.") for name in names)


def read_pitch(tensors: Mapping[str, Any]) -> tuple[RmvpeConfig, Tensors]:
    """Read and validate a pitch model; all sizes come from the shapes.

    Raises `RvcdError`: `bad_config`, `missing_tensor`, `wrong_shape`, `unexpected_tensor`, `not_finite`.
    """
    weights = plain_weights({name: t for name, t in tensors.items() if not name.endswith(".num_batches_tracked")})
    config = _config(weights)
    return config, checked(weights, pitch_shapes(config))


def pitch_shapes(config: RmvpeConfig) -> Shapes:
    """Name and shape of every tensor of a pitch model, in torch's layout."""
    channels, blocks = config.level_channels, config.level_blocks
    bottom = 2 * channels[-1]
    shapes = _batch_norm("unet.encoder.bn", 1)
    inputs = 1
    for i, width in enumerate(channels):
        shapes |= _level(f"unet.encoder.layers.{i}.conv", inputs, width, blocks)
        inputs = width
    for i in range(config.bottleneck_groups):
        shapes |= _level(f"unet.intermediate.layers.{i}.conv", inputs, bottom, blocks)
        inputs = bottom
    for i, width in enumerate(reversed(channels)):
        layer = f"unet.decoder.layers.{i}"
        shapes[f"{layer}.conv1.0.weight"] = (inputs, width, 3, 3)
        shapes |= _batch_norm(f"{layer}.conv1.1", width) | _level(f"{layer}.conv2", 2 * width, width, blocks)
        inputs = width
    shapes |= {"cnn.weight": (config.head_channels, inputs, 3, 3), "cnn.bias": (config.head_channels,)}
    gates, image = 3 * config.gru_hidden, config.head_channels * config.mel_bins
    for direction in ("", "_reverse"):
        shapes[f"fc.0.gru.weight_ih_l0{direction}"] = (gates, image)
        shapes[f"fc.0.gru.weight_hh_l0{direction}"] = (gates, config.gru_hidden)
        shapes |= {f"fc.0.gru.bias_{part}_l0{direction}": (gates,) for part in ("ih", "hh")}
    return shapes | {"fc.1.weight": (config.pitch_bins, 2 * config.gru_hidden), "fc.1.bias": (config.pitch_bins,)}


def _level(name: str, inputs: int, width: int, blocks: int) -> Shapes:
    shapes: Shapes = {}
    for i in range(blocks):
        block = f"{name}.{i}"
        shapes |= {f"{block}.conv.0.weight": (width, inputs, 3, 3), f"{block}.conv.3.weight": (width, width, 3, 3)}
        shapes |= _batch_norm(f"{block}.conv.1", width) | _batch_norm(f"{block}.conv.4", width)
        if inputs != width:
            shapes |= {f"{block}.shortcut.weight": (width, inputs, 1, 1), f"{block}.shortcut.bias": (width,)}
        inputs = width
    return shapes


def _batch_norm(name: str, width: int) -> Shapes:
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def _config(weights: Tensors) -> RmvpeConfig:
    levels = count_of(weights, r"unet\.encoder\.layers\.(\d+)\.")
    first_conv = "unet.encoder.layers.{}.conv.0.conv.0.weight"
    head_channels = shape_of(weights, "cnn.weight", 4)[0]
    image = shape_of(weights, "fc.0.gru.weight_ih_l0", 2)[1]
    mel_bins = image // head_channels
    if image % head_channels or mel_bins % (1 << levels):
        raise RvcdError(
            Code.BAD_CONFIG,
            f"The pitch model's GRU reads {image} values: that is no image of {head_channels} channels that can be "
            f"halved {levels} times.",
        )
    return RmvpeConfig(
        mel_bins=mel_bins,
        level_channels=tuple(shape_of(weights, first_conv.format(i), 4)[0] for i in range(levels)),
        level_blocks=count_of(weights, r"unet\.encoder\.layers\.0\.conv\.(\d+)\."),
        bottleneck_groups=count_of(weights, r"unet\.intermediate\.layers\.(\d+)\."),
        head_channels=head_channels,
        gru_hidden=shape_of(weights, "fc.0.gru.weight_hh_l0", 2)[1],
        pitch_bins=shape_of(weights, "fc.1.weight", 2)[0],
    )
