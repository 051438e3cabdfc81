"""Sizes of the three networks, read from checkpoints and never assumed."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

Kind = Literal["voice", "content-encoder", "pitch"]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class _Config:
    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        return cls(**{name: _tuples(value) for name, value in fields.items()})


@dataclass(frozen=True)
class VoiceConfig(_Config):
    """An RVC synthesizer (the 18-entry `config` list of an export, without its training entries)."""

    version: Literal["v1", "v2"]
    uses_f0: bool
    sample_rate: int
    feature_width: int
    """Width of the content features that the voice reads: 256 for v1, the encoder's hidden width for v2."""
    inter_channels: int
    hidden_channels: int
    filter_channels: int
    heads: int
    layers: int
    kernel: int
    """Kernel of the text encoder's feed-forward convolutions."""
    attention_window: int
    """Relative positions are learned within this many frames (10)."""
    resblock: Literal["1", "2"]
    resblock_kernels: tuple[int, ...]
    resblock_dilations: tuple[tuple[int, ...], ...]
    upsample_rates: tuple[int, ...]
    upsample_kernels: tuple[int, ...]
    upsample_channels: int
    """Channels before the first upsampling stage; each stage halves them."""
    speakers: int
    speaker_channels: int
    flows: int = 4
    flow_layers: int = 3
    flow_kernel: int = 5

    @property
    def samples_per_frame(self) -> int:
        """Output samples per 10 ms frame."""
        return math.prod(self.upsample_rates)


@dataclass(frozen=True)
class HubertConfig(_Config):
    """A HuBERT-shaped content encoder: post-norm transformer over a group-normed convolutional front end."""

    conv_channels: tuple[int, ...]
    conv_kernels: tuple[int, ...]
    conv_strides: tuple[int, ...]
    hidden: int
    heads: int
    layers: int
    intermediate: int
    position_kernel: int
    position_groups: int
    projection: int
    """Width of `final_proj`, which v1 voices read; 0 where the checkpoint has none."""
    norm_eps: float = 1e-5
    normalize: bool = False
    """Whether the waveform is brought to zero mean and unit variance first (`do_normalize`)."""


@dataclass(frozen=True)
class RmvpeConfig(_Config):
    """An RMVPE-shaped pitch model: deep U-Net over a log-mel image, then a bidirectional GRU."""

    mel_bins: int
    level_channels: tuple[int, ...]
    """Channels of the encoder levels (16, 32, 64, 128, 256)."""
    level_blocks: int
    """Conv blocks in a level (4)."""
    bottleneck_groups: int
    """Groups of blocks between encoder and decoder (4), at twice the last level's channels."""
    head_channels: int
    """Channels of the convolution before the GRU (3)."""
    gru_hidden: int
    """Units per direction (256)."""
    pitch_bins: int
    """360 bins of 20 cents."""


ModelConfig = VoiceConfig | HubertConfig | RmvpeConfig
CONFIG_OF_KIND: dict[Kind, type[VoiceConfig] | type[HubertConfig] | type[RmvpeConfig]] = {
    "voice": VoiceConfig,
    "content-encoder": HubertConfig,
    "pitch": RmvpeConfig,
}
