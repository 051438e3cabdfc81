"""Seeded checkpoints of the real architectures, in the layouts that are in circulation, and a synthetic sung stem.

Random weights, scaled so that activations stay near one through the networks, the synthesizer's output is
neither silent nor clipped, and the pitch model finds both voiced and unvoiced frames. Only numpy: the same
seed gives the same file wherever it runs.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.stem import sung_stem  # noqa: F401, for those who make checkpoints and stems together
from tests.support.torch_writer import Call, Global, save_zip

Tensors = dict[str, np.ndarray]

UPSAMPLING: dict[tuple[str, int], tuple[list[int], list[int]]] = {
    ("v1", 32000): ([10, 4, 2, 2, 2], [16, 16, 4, 4, 4]),
    ("v1", 40000): ([10, 10, 2, 2], [16, 16, 4, 4]),
    ("v1", 48000): ([10, 6, 2, 2, 2], [16, 16, 4, 4, 4]),
    ("v2", 24000): ([10, 6, 2, 2], [20, 12, 4, 4]),
    ("v2", 32000): ([10, 8, 2, 2], [20, 16, 4, 4]),
    ("v2", 40000): ([10, 10, 2, 2], [16, 16, 4, 4]),
    ("v2", 44100): ([7, 7, 3, 3], [14, 14, 6, 6]),
    ("v2", 48000): ([12, 10, 2, 2], [24, 20, 4, 4]),
}
"""Upsample rates and kernels of a voice by version and sample rate."""
RESBLOCK_KERNELS = [3, 7, 11]
RESBLOCK_DILATIONS = [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
ATTENTION_WINDOW = 10


@dataclass(frozen=True)
class VoiceSizes:
    inter: int
    hidden: int
    filter: int
    heads: int
    layers: int
    upsample_channels: int
    speaker_channels: int


@dataclass(frozen=True)
class ContentSizes:
    conv: int
    hidden: int
    heads: int
    intermediate: int
    position_kernel: int
    position_groups: int
    projection: int


@dataclass(frozen=True)
class PitchSizes:
    channels: int
    levels: int
    blocks: int
    groups: int
    gru: int


FULL_VOICE = VoiceSizes(192, 192, 768, 2, 6, 512, 256)
TINY_VOICE = VoiceSizes(16, 16, 32, 2, 2, 64, 8)
FULL_CONTENT = ContentSizes(512, 768, 12, 3072, 128, 16, 256)
TINY_CONTENT = ContentSizes(32, 64, 4, 96, 16, 4, 32)
FULL_PITCH = PitchSizes(16, 5, 4, 4, 256)
TINY_PITCH = PitchSizes(4, 3, 2, 1, 16)
MEL_BINS = 128
PITCH_BINS = 360
CONV_KERNELS = [10, 3, 3, 3, 3, 2, 2]
CONV_STRIDES = [5, 2, 2, 2, 2, 2, 2]


def feature_width(version: str, *, tiny: bool = False) -> int:
    """Width of the content features that a seeded voice of this version reads."""
    sizes = TINY_CONTENT if tiny else FULL_CONTENT
    return sizes.projection if version == "v1" else sizes.hidden


class _Weights:
    """Tensors by name, drawn in the order they are asked for and rounded to float16 as exports are."""

    def __init__(self, *seed: int) -> None:
        self.tensors: Tensors = {}
        self.rng = np.random.default_rng(seed)

    def put(self, name: str, values: np.ndarray) -> None:
        self.tensors[name] = np.asarray(values, np.float16)

    def normal(self, name: str, shape: tuple[int, ...], scale: float, mean: float = 0.0) -> None:
        self.put(name, self.rng.standard_normal(shape, np.float32) * np.float32(scale) + np.float32(mean))

    def layer(
        self, name: str, shape: tuple[int, ...], gain: float = 1.0, bias: float | None = 0.05, blind: int | None = None
    ) -> None:
        """A linear or convolution layer that brings input of power 1 to output of power `gain`².

        It does not see what is constant along the axis `blind`: random rectified networks carry a large
        constant that would drown what changes from frame to frame.
        """
        weight = self.rng.standard_normal(shape, np.float32) * np.float32(gain / np.sqrt(np.prod(shape[1:])))
        self.put(f"{name}.weight", weight if blind is None else weight - weight.mean(axis=blind, keepdims=True))
        if bias is not None:
            self.normal(f"{name}.bias", shape[:1], bias)

    def weight_normed(self, name: str, shape: tuple[int, ...], gain: float, bias: int | None = None) -> None:
        """A weight-normed convolution: directions of any length and one length per row."""
        self.normal(f"{name}.weight_v", shape, 0.05)
        rows = (shape[0],) + (1,) * (len(shape) - 1)
        self.put(f"{name}.weight_g", gain * self.rng.uniform(0.9, 1.1, rows))
        self.normal(f"{name}.bias", (shape[0] if bias is None else bias,), 0.02)

    def norm(self, name: str, width: int, scale: str = "weight", shift: str = "bias") -> None:
        self.normal(f"{name}.{scale}", (width,), 0.1, 1.0)
        self.normal(f"{name}.{shift}", (width,), 0.05)

    def batch_norm(self, name: str, width: int, power: float, gain: float) -> None:
        self.put(f"{name}.weight", gain * self.rng.uniform(0.8, 1.2, width))
        self.normal(f"{name}.bias", (width,), 0.2 * gain)
        self.normal(f"{name}.running_mean", (width,), 0.3 * np.sqrt(power))
        self.put(f"{name}.running_var", power * self.rng.uniform(0.7, 1.3, width))
        self.tensors[f"{name}.num_batches_tracked"] = np.asarray(100000, np.int64)


def voice(
    path: Path,
    *,
    version: str = "v2",
    sample_rate: int = 40000,
    f0: bool = True,
    speakers: int = 3,
    seed: int = 0,
    tiny: bool = False,
) -> Path:
    """Write an RVC export: half-precision `weight`, 18-entry `config`, `info`, `sr`, `f0`, `version`."""
    export = {
        "weight": voice_weights(
            version=version, sample_rate=sample_rate, f0=f0, speakers=speakers, seed=seed, tiny=tiny
        ),
        "config": voice_config(version=version, sample_rate=sample_rate, tiny=tiny),
        "info": "200epoch",
        "sr": f"{sample_rate // 1000}k" if sample_rate in (32000, 40000, 48000) else sample_rate,
        "f0": int(f0),
        "version": version,
    }
    save_zip(path, export)
    return path


def voice_config(*, version: str, sample_rate: int, tiny: bool = False) -> list[Any]:
    """The 18 positional values of an export; the speaker slots (109) are the trainer's, as in real files."""
    sizes = TINY_VOICE if tiny else FULL_VOICE
    rates, kernels = UPSAMPLING[version, sample_rate]
    return [
        513 if sample_rate <= 32000 else 1025,
        32,
        sizes.inter,
        sizes.hidden,
        sizes.filter,
        sizes.heads,
        sizes.layers,
        3,
        0,
        "1",
        RESBLOCK_KERNELS,
        RESBLOCK_DILATIONS,
        rates,
        sizes.upsample_channels,
        kernels,
        109,
        sizes.speaker_channels,
        sample_rate,
    ]


def voice_weights(
    *, version: str, sample_rate: int, f0: bool, speakers: int = 3, seed: int = 0, tiny: bool = False
) -> Tensors:
    """The `weight` entry of an export, in RVC's names and torch's layouts."""
    sizes = TINY_VOICE if tiny else FULL_VOICE
    weights = _Weights(seed, int(version[1]), sample_rate, f0)
    weights.normal("emb_g.weight", (speakers, sizes.speaker_channels), 1.0)
    _text_encoder(weights, sizes, feature_width(version, tiny=tiny), f0=f0)
    for index in (0, 2, 4, 6):
        _coupling(weights, f"flow.flows.{index}", sizes)
    _decoder(weights, sizes, *UPSAMPLING[version, sample_rate], f0=f0)
    return weights.tensors


def _text_encoder(weights: _Weights, sizes: VoiceSizes, width: int, *, f0: bool) -> None:
    hidden, key = sizes.hidden, sizes.hidden // sizes.heads
    weights.layer("enc_p.emb_phone", (hidden, width), 1.5 / np.sqrt(hidden))
    if f0:
        weights.normal("enc_p.emb_pitch.weight", (256, hidden), 0.7 / np.sqrt(hidden))
    for n in range(sizes.layers):
        attention = f"enc_p.encoder.attn_layers.{n}"
        for part, gain in (("q", 1.2), ("k", 1.2), ("v", 1.0), ("o", 0.4)):
            weights.layer(f"{attention}.conv_{part}", (hidden, hidden, 1), gain)
        for table in ("emb_rel_k", "emb_rel_v"):
            weights.normal(f"{attention}.{table}", (1, 2 * ATTENTION_WINDOW + 1, key), key**-0.5)
        weights.norm(f"enc_p.encoder.norm_layers_1.{n}", hidden, "gamma", "beta")
        weights.layer(f"enc_p.encoder.ffn_layers.{n}.conv_1", (sizes.filter, hidden, 3), 1.4)
        weights.layer(f"enc_p.encoder.ffn_layers.{n}.conv_2", (hidden, sizes.filter, 3), 0.8, blind=1)
        weights.norm(f"enc_p.encoder.norm_layers_2.{n}", hidden, "gamma", "beta")
    weights.layer("enc_p.proj", (2 * sizes.inter, hidden, 1))
    for part in ("weight", "bias"):  # the second half is the logarithm of a deviation: about e^-1
        stats = weights.tensors[f"enc_p.proj.{part}"]
        stats[sizes.inter :] = stats[sizes.inter :] * np.float16(0.3) - np.float16(part == "bias")


def _coupling(weights: _Weights, name: str, sizes: VoiceSizes) -> None:
    hidden, half, layers = sizes.hidden, sizes.inter // 2, 3
    weights.layer(f"{name}.pre", (hidden, half, 1))
    weights.weight_normed(f"{name}.enc.cond_layer", (2 * hidden * layers, sizes.speaker_channels, 1), 0.5)
    for n in range(layers):
        last = n == layers - 1
        weights.weight_normed(f"{name}.enc.in_layers.{n}", (2 * hidden, hidden, 5), 1.0)
        weights.weight_normed(f"{name}.enc.res_skip_layers.{n}", (hidden if last else 2 * hidden, hidden, 1), 1.0)
    weights.layer(f"{name}.post", (half, hidden, 1), 0.8)


def _decoder(weights: _Weights, sizes: VoiceSizes, rates: list[int], kernels: list[int], *, f0: bool) -> None:
    channels = sizes.upsample_channels
    weights.layer("dec.conv_pre", (channels, sizes.inter, 7))
    weights.layer("dec.cond", (channels, sizes.speaker_channels, 1), 0.3)
    if f0:
        weights.put("dec.m_source.l_linear.weight", np.full((1, 1), 6.0))
        weights.put("dec.m_source.l_linear.bias", np.full(1, 0.02))
    for stage, (rate, kernel) in enumerate(zip(rates, kernels, strict=True)):
        # Weight norm is per input channel here, and an output sample sees kernel / rate of the taps.
        weights.weight_normed(f"dec.ups.{stage}", (channels, channels // 2, kernel), np.sqrt(rate / 2), channels // 2)
        channels //= 2
        if f0:
            stride = int(np.prod(rates[stage + 1 :]))
            width = 1 if stride == 1 else 2 * stride - stride % 2
            weights.layer(f"dec.noise_convs.{stage}", (channels, 1, width), 0.8)
        for block, size in enumerate(RESBLOCK_KERNELS):
            name = f"dec.resblocks.{stage * len(RESBLOCK_KERNELS) + block}"
            for n in range(3):
                weights.weight_normed(f"{name}.convs1.{n}", (channels, channels, size), 1.4)
                weights.weight_normed(f"{name}.convs2.{n}", (channels, channels, size), 0.7)
    weights.layer("dec.conv_post", (1, channels, 7), 0.3, bias=None, blind=2)


def content_encoder(folder: Path, *, seed: int = 0, tiny: bool = False, layers: int = 12) -> Path:
    """Write a transformers folder (`config.json`, half-precision `pytorch_model.bin`) with `final_proj`."""
    sizes = TINY_CONTENT if tiny else FULL_CONTENT
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["HubertModelWithFinalProj"],
        "model_type": "hubert",
        "hidden_size": sizes.hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.intermediate,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "feat_extract_norm": "group",
        "feat_extract_activation": "gelu",
        "feat_proj_layer_norm": True,
        "conv_bias": False,
        "conv_dim": [sizes.conv] * 7,
        "conv_kernel": CONV_KERNELS,
        "conv_stride": CONV_STRIDES,
        "num_feat_extract_layers": 7,
        "num_conv_pos_embeddings": sizes.position_kernel,
        "num_conv_pos_embedding_groups": sizes.position_groups,
        "do_stable_layer_norm": False,
        "classifier_proj_size": sizes.projection,
        "vocab_size": 32,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_zip(folder / "pytorch_model.bin", content_weights(seed=seed, tiny=tiny, layers=layers))
    return folder


def fairseq_content_encoder(path: Path, *, seed: int = 0, tiny: bool = False, layers: int = 12) -> Path:
    """Write the same weights as `content_encoder` the way fairseq does, foreign configuration objects included."""
    model = {_fairseq_name(name): t for name, t in content_weights(seed=seed, tiny=tiny, layers=layers).items()}
    model["label_embs_concat"] = np.zeros((504, 8), np.float16)
    sizes = TINY_CONTENT if tiny else FULL_CONTENT
    network = {"_name": "hubert", "encoder_layers": layers, "encoder_attention_heads": sizes.heads}
    settings = {"_content": {"task": {"normalize": False}, "model": network}}
    symbols = {"symbols": ["<s>", "<pad>"], "count": [1, 1]}
    dictionary = Call(Global("fairseq.data.dictionary", "Dictionary"), state=symbols, new=True)
    checkpoint = {
        "args": None,
        "cfg": Call(Global("omegaconf.dictconfig", "DictConfig"), state=settings, new=True),
        "model": model,
        "optimizer_history": [{"criterion_name": "HubertCriterion", "num_updates": 400000}],
        "task_state": {"dictionaries": [dictionary]},
        "extra_state": {"train_iterator": {"epoch": 1}},
    }
    save_zip(path, checkpoint)
    return path


def _fairseq_name(name: str) -> str:
    for ours, theirs in (
        ("masked_spec_embed", "mask_emb"),
        ("feature_projection.layer_norm", "layer_norm"),
        ("feature_projection.projection", "post_extract_proj"),
        ("pos_conv_embed.conv", "pos_conv.0"),
        ("conv_layers.0.layer_norm", "conv_layers.0.2"),
        (".conv.weight", ".0.weight"),
        (".attention.", ".self_attn."),
        ("feed_forward.intermediate_dense", "fc1"),
        ("feed_forward.output_dense", "fc2"),
    ):
        name = name.replace(ours, theirs)
    if name.startswith("encoder.layers.") and ".final_layer_norm" not in name:
        name = name.replace(".layer_norm.", ".self_attn_layer_norm.")
    return name


def content_weights(*, seed: int, tiny: bool = False, layers: int = 12) -> Tensors:
    """A HuBERT-shaped state dict in transformers' names, with `final_proj`."""
    sizes = TINY_CONTENT if tiny else FULL_CONTENT
    weights = _Weights(seed, layers, tiny)
    weights.normal("masked_spec_embed", (sizes.hidden,), 1.0)
    channels = 1
    for n, kernel in enumerate(CONV_KERNELS):
        name = f"feature_extractor.conv_layers.{n}"
        weights.layer(f"{name}.conv", (sizes.conv, channels, kernel), 1.6, bias=None)
        if n == 0:
            weights.norm(f"{name}.layer_norm", sizes.conv)
        channels = sizes.conv
    weights.norm("feature_projection.layer_norm", sizes.conv)
    weights.layer("feature_projection.projection", (sizes.hidden, sizes.conv))
    position = "encoder.pos_conv_embed.conv"
    group_width, taps = sizes.hidden // sizes.position_groups, sizes.position_kernel
    weights.normal(f"{position}.weight_v", (sizes.hidden, group_width, taps), 0.05)
    # One length per tap, over output and input channels: this one brings the sum of all taps to power 1.
    weights.put(f"{position}.weight_g", np.sqrt(sizes.hidden / taps) * weights.rng.uniform(0.8, 1.2, (1, 1, taps)))
    weights.normal(f"{position}.bias", (sizes.hidden,), 0.05)
    weights.norm("encoder.layer_norm", sizes.hidden)
    for n in range(layers):
        name = f"encoder.layers.{n}"
        # Sharp attention and a strong share of the frame's own path keep frames from growing alike.
        for part, gain in (("q", 1.6), ("k", 1.6), ("v", 1.0), ("out", 0.4)):
            weights.layer(f"{name}.attention.{part}_proj", (sizes.hidden, sizes.hidden), gain)
        weights.norm(f"{name}.layer_norm", sizes.hidden)
        weights.layer(f"{name}.feed_forward.intermediate_dense", (sizes.intermediate, sizes.hidden), 1.4)
        weights.layer(f"{name}.feed_forward.output_dense", (sizes.hidden, sizes.intermediate), 0.8, blind=1)
        weights.norm(f"{name}.final_layer_norm", sizes.hidden)
    weights.layer("final_proj", (sizes.projection, sizes.hidden))
    return weights.tensors


def pitch_model(path: Path, *, seed: int = 0, tiny: bool = False) -> Path:
    """Write a bare half-precision RMVPE state dict, `num_batches_tracked` included."""
    save_zip(path, pitch_weights(seed=seed, tiny=tiny))
    return path


def pitch_weights(*, seed: int, tiny: bool = False) -> Tensors:
    """An RMVPE-shaped state dict."""
    sizes = TINY_PITCH if tiny else FULL_PITCH
    weights = _Weights(seed, tiny)
    for part, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", -6.0), ("running_var", 8.0)):
        weights.put(f"unet.encoder.bn.{part}", np.full(1, value))
    weights.tensors["unet.encoder.bn.num_batches_tracked"] = np.asarray(100000, np.int64)
    channels = [sizes.channels * 2**level for level in range(sizes.levels)]
    bottom = 2 * channels[-1]
    wide = 1
    for level, width in enumerate(channels):
        _blocks(weights, f"unet.encoder.layers.{level}.conv", wide, width, sizes.blocks)
        wide = width
    for group in range(sizes.groups):
        _blocks(weights, f"unet.intermediate.layers.{group}.conv", wide, bottom, sizes.blocks)
        wide = bottom
    for level, width in enumerate(reversed(channels)):
        name = f"unet.decoder.layers.{level}"
        # A transposed convolution of stride 2: an output pixel sees a quarter of the nine taps.
        weights.normal(f"{name}.conv1.0.weight", (wide, width, 3, 3), np.sqrt(4 / (9 * wide)))
        weights.batch_norm(f"{name}.conv1.1", width, _POWER, 1.0)
        _blocks(weights, f"{name}.conv2", 2 * width, width, sizes.blocks)
        wide = width
    weights.layer("cnn", (3, wide, 3, 3), 30.0, blind=2)  # it hears changes, not what is steady
    _pitch_head(weights, sizes.gru)
    return weights.tensors


_POWER = 1.2
"""What the inputs of the pitch model's blocks measure, mean square."""


def _blocks(weights: _Weights, name: str, wide: int, width: int, count: int) -> None:
    for n in range(count):
        block = f"{name}.{n}"
        weights.layer(f"{block}.conv.0", (width, wide, 3, 3), bias=None)
        weights.batch_norm(f"{block}.conv.1", width, _POWER, 1.0)
        weights.layer(f"{block}.conv.3", (width, width, 3, 3), bias=None)
        weights.batch_norm(f"{block}.conv.4", width, 0.6, 0.3)
        if wide != width:
            weights.layer(f"{block}.shortcut", (width, wide, 1, 1), 0.8)
        wide = width


def _pitch_head(weights: _Weights, hidden: int) -> None:
    image = 3 * MEL_BINS
    for suffix in ("", "_reverse"):
        weights.normal(f"fc.0.gru.weight_ih_l0{suffix}", (3 * hidden, image), 1.0 / np.sqrt(image))
        weights.normal(f"fc.0.gru.weight_hh_l0{suffix}", (3 * hidden, hidden), 0.7 / np.sqrt(hidden))
        weights.normal(f"fc.0.gru.bias_ih_l0{suffix}", (3 * hidden,), 0.02)
        weights.tensors[f"fc.0.gru.bias_ih_l0{suffix}"][hidden : 2 * hidden] += 2.0  # the update gate: some inertia
        weights.normal(f"fc.0.gru.bias_hh_l0{suffix}", (3 * hidden,), 0.02)
    # Neighbouring bins answer alike, so that a maximum is a peak and not a tie between strangers.
    rows = weights.rng.standard_normal((PITCH_BINS + 24, 2 * hidden))
    bump = np.exp(-0.5 * (np.arange(-12, 13) / 3.0) ** 2)
    rows = np.stack([np.convolve(column, bump / np.linalg.norm(bump), "valid") for column in rows.T], axis=1)
    weights.put("fc.1.weight", rows * (6.0 / np.sqrt(2 * hidden)))
    bins = np.arange(PITCH_BINS)
    weights.put("fc.1.bias", -12.0 - 2.0 * ((bins - 180) / 80.0) ** 2)  # singers live in the middle


def retrieval_index(path: Path, *, vectors: int, width: int, seed: int = 0, spread: float = 0.35) -> Path:
    """Write a faiss `IVF{n},Flat` index as RVC's trainers do: n by their rule, nprobe 1, added in order."""
    import faiss

    rng = np.random.default_rng((seed, vectors, width))
    centres = rng.standard_normal((max(1, vectors // 50), width), np.float32)
    own = rng.integers(len(centres), size=vectors)
    data = centres[own] + np.float32(spread) * rng.standard_normal((vectors, width), np.float32)
    # Vectors of one list at clearly different distances: near-ties are decided by rounding, and differ by machine.
    data *= rng.uniform(0.6, 1.4, (vectors, 1)).astype(np.float32)
    lists = max(1, min(int(16 * np.sqrt(vectors)), vectors // 39))
    index = faiss.index_factory(width, f"IVF{lists},Flat")
    faiss.extract_index_ivf(index).nprobe = 1
    index.train(data)
    for start in range(0, vectors, 8192):
        index.add(data[start : start + 8192])
    faiss.write_index(index, str(path))
    return path
