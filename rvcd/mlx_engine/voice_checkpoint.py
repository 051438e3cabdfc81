"""RVC voices: what an export says of itself, its sizes, and its tensors under the export's names."""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine.configs import VoiceConfig
from rvcd.mlx_engine.state_dict import Shapes, Tensors, checked, count_of, plain_weights, shape_of

PITCH_BINS = 256
_V1_WIDTH, _V2_WIDTH = 256, 768
_KNOWN_EMBEDDERS = {
    *("contentvec", "spin", "spin-v2"),
    *("chinese-hubert-base", "japanese-hubert-base", "korean-hubert-base"),
}
_CONTENTVEC_ALIASES = {"", "hubert", "hubert-base", "contentvec-768"}
_HIFI_GAN_NAMES = {"", "hifi-gan", "hifigan", "default", "nsf-hifi-gan"}
# Foreign decoders, by names that only they have.
_VOCODER_OF_PREFIX = {
    "dec.mrfs.": "MRF HiFi-GAN",
    "dec.upsamples.": "MRF HiFi-GAN",
    "dec.upsample_conv_blocks.": "RefineGAN",
    "dec.downsample_blocks.": "RefineGAN",
    "dec.mel_conv.": "RefineGAN",
    "dec.pre_conv.": "RefineGAN",
    "dec.source_conv.": "RefineGAN (legacy)",
}
_CONFIG_ENTRIES = 18
# What trainers use; the rates cannot be read from tensors, the kernels can.
_RATES_OF_KERNELS = {
    (16, 16, 4, 4): (10, 10, 2, 2),
    (24, 20, 4, 4): (12, 10, 2, 2),
    (20, 16, 4, 4): (10, 8, 2, 2),
    (20, 12, 4, 4): (10, 6, 2, 2),
    (14, 14, 6, 6): (7, 7, 3, 3),
}
_FIVE_STAGE_KERNELS = (16, 16, 4, 4, 4)
_FIVE_STAGE_RATES = {32000: (10, 4, 2, 2, 2), 48000: (10, 6, 2, 2, 2)}
_MAX_SIZE = 1 << 20
_KEPT_FIELDS = (
    *("info", "epoch", "step", "iteration", "learning_rate", "author", "creation_date", "model_name"),
    *("model_hash", "dataset_length", "sr", "f0", "version"),
)


def voice_facts(fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what the file says of itself, as JSON-able values. Never raises."""
    facts = {name: fields[name] for name in _KEPT_FIELDS if isinstance(fields.get(name), str | int | float)}
    facts = {name: value for name, value in facts.items() if not isinstance(value, float) or math.isfinite(value)}
    speakers = _speaker_names(fields.get("speaker_info"))
    if speakers:
        facts["speaker_names"] = speakers
    return facts | {"vocoder": _vocoder(fields, tensors), "embedder": _embedder(fields)}


def read_voice(fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> tuple[VoiceConfig, Tensors]:
    """Read and validate a voice; `fields` are the export's entries beside its tensors.

    Raises `RvcdError`: `unknown_version`, `unsupported_vocoder`, `unsupported_embedder`, `bad_config`, `no_config`,
    `missing_tensor`, `wrong_shape`, `unexpected_tensor`, `not_finite`.
    """
    _refuse_foreign(fields, tensors)
    weights = plain_weights({name: tensor for name, tensor in tensors.items() if not name.startswith("enc_q.")})
    config = _config(fields, weights)
    _check_rates(config)
    return config, checked(weights, voice_shapes(config))


def voice_shapes(config: VoiceConfig) -> Shapes:
    """Name and shape of every tensor of a voice, in torch's layout."""
    shapes = _text_encoder_shapes(config) | _flow_shapes(config) | _decoder_shapes(config)
    return shapes | {"emb_g.weight": (config.speakers, config.speaker_channels)}


def _text_encoder_shapes(config: VoiceConfig) -> Shapes:
    hidden, wide = config.hidden_channels, config.filter_channels
    shapes = _layer("enc_p.emb_phone", hidden, config.feature_width)
    if config.uses_f0:
        shapes["enc_p.emb_pitch.weight"] = (PITCH_BINS, hidden)
    for i in range(config.layers):
        attention = f"enc_p.encoder.attn_layers.{i}"
        for part in "qkvo":
            shapes |= _layer(f"{attention}.conv_{part}", hidden, hidden, 1)
        for part in "kv":
            shapes[f"{attention}.emb_rel_{part}"] = (1, 2 * config.attention_window + 1, hidden // config.heads)
        for norm in (f"norm_layers_1.{i}", f"norm_layers_2.{i}"):
            shapes |= {f"enc_p.encoder.{norm}.{part}": (hidden,) for part in ("gamma", "beta")}
        shapes |= _layer(f"enc_p.encoder.ffn_layers.{i}.conv_1", wide, hidden, config.kernel)
        shapes |= _layer(f"enc_p.encoder.ffn_layers.{i}.conv_2", hidden, wide, config.kernel)
    return shapes | _layer("enc_p.proj", 2 * config.inter_channels, hidden, 1)


def _flow_shapes(config: VoiceConfig) -> Shapes:
    half, hidden, layers = config.inter_channels // 2, config.hidden_channels, config.flow_layers
    shapes: Shapes = {}
    for i in range(config.flows):
        coupling = f"flow.flows.{2 * i}"
        shapes |= _layer(f"{coupling}.pre", hidden, half, 1)
        shapes |= _layer(f"{coupling}.enc.cond_layer", 2 * hidden * layers, config.speaker_channels, 1)
        for j in range(layers):
            shapes |= _layer(f"{coupling}.enc.in_layers.{j}", 2 * hidden, hidden, config.flow_kernel)
            wide = hidden if j == layers - 1 else 2 * hidden
            shapes |= _layer(f"{coupling}.enc.res_skip_layers.{j}", wide, hidden, 1)
        shapes |= _layer(f"{coupling}.post", half, hidden, 1)
    return shapes


def _decoder_shapes(config: VoiceConfig) -> Shapes:
    wide = config.upsample_channels
    shapes = _layer("dec.conv_pre", wide, config.inter_channels, 7)
    shapes |= _layer("dec.cond", wide, config.speaker_channels, 1)
    for i, kernel in enumerate(config.upsample_kernels):
        channels = wide >> (i + 1)
        shapes[f"dec.ups.{i}.weight"] = (wide >> i, channels, kernel)
        shapes[f"dec.ups.{i}.bias"] = (channels,)
        if config.uses_f0:
            stride = math.prod(config.upsample_rates[i + 1 :])
            shapes |= _layer(f"dec.noise_convs.{i}", channels, 1, 1 if stride == 1 else 2 * stride - stride % 2)
        for j, (size, dilations) in enumerate(zip(config.resblock_kernels, config.resblock_dilations, strict=True)):
            block = f"dec.resblocks.{i * len(config.resblock_kernels) + j}"
            for group in ("convs1", "convs2") if config.resblock == "1" else ("convs",):
                for k in range(len(dilations)):
                    shapes |= _layer(f"{block}.{group}.{k}", channels, channels, size)
    if config.uses_f0:
        shapes |= _layer("dec.m_source.l_linear", 1, 1)
    return shapes | {"dec.conv_post.weight": (1, wide >> len(config.upsample_kernels), 7)}


def _layer(name: str, out: int, *rest: int) -> Shapes:
    return {f"{name}.weight": (out, *rest), f"{name}.bias": (out,)}


# What the file says


def _vocoder(fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    said = str(fields.get("vocoder") or "")
    if said.lower() not in _HIFI_GAN_NAMES:
        return said
    return next(
        (name for prefix, name in _VOCODER_OF_PREFIX.items() if any(t.startswith(prefix) for t in tensors)), "HiFi-GAN"
    )


def _embedder(fields: Mapping[str, Any]) -> str:
    said = str(fields.get("embedder_model") or fields.get("embedder_name") or "")
    name = said.lower().replace("_", "-")
    return "contentvec" if name in _CONTENTVEC_ALIASES else name if name in _KNOWN_EMBEDDERS else said


def _speaker_names(said: Any) -> list[dict[str, Any]]:
    if isinstance(said, list):
        entries: list[tuple[Any, Any]] = [(e.get("id"), e.get("name")) for e in said if isinstance(e, dict)]
    elif isinstance(said, dict):
        entries = [(key, name) if isinstance(name, str) else (name, key) for key, name in said.items()]
    else:
        entries = []
    return [{"id": int(number), "name": str(name)} for number, name in entries if str(number).isdecimal()]


def _refuse_foreign(fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    version = fields.get("version", "v1")
    if str(version).lower() not in ("v1", "v2"):
        raise RvcdError(Code.UNKNOWN_VERSION, f"The voice has version {str(version)!r}; rvcd reads v1 and v2.")
    vocoder = _vocoder(fields, tensors)
    if vocoder != "HiFi-GAN":
        raise RvcdError(
            Code.UNSUPPORTED_VOCODER, f"The voice was trained with the vocoder {vocoder}; rvcd has HiFi-GAN only."
        )
    config = fields.get("config")
    if "embedder_output_layer" in fields or (isinstance(config, list | tuple) and len(config) != _CONFIG_ENTRIES):
        raise RvcdError(
            Code.BAD_CONFIG,
            "The voice is in the dialect of ddPn08's rvc-webui, which rvcd does not read; export it with RVC WebUI.",
        )
    embedder = _embedder(fields)
    if embedder not in _KNOWN_EMBEDDERS:
        raise RvcdError(
            Code.UNSUPPORTED_EMBEDDER,
            f"The voice was trained on the content encoder {embedder!r}, which rvcd does not know; it reads voices of "
            f"{', '.join(sorted(_KNOWN_EMBEDDERS))}.",
        )


def _flag(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in ("0", "1", "true", "false", "0.0", "1.0"):
        raise RvcdError(Code.BAD_CONFIG, f"The voice's f0 flag is {value!r}; it must be 0 or 1.")
    return text in ("1", "true", "1.0")


def sample_rate_of(value: Any) -> int | None:
    """Read a rate as exports write it ("40k", "40000", 40000); None where it is none."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)(k?)(?:hz)?", str(value).strip().lower())
    if not found or isinstance(value, bool):
        return None
    return round(float(found.group(1)) * (1000 if found.group(2) else 1)) or None


# Sizes


def _config(fields: Mapping[str, Any], weights: Tensors) -> VoiceConfig:
    if fields.get("config") is None:
        sizes = _inferred_sizes(fields, weights)
    else:
        sizes = _stated_sizes(fields["config"], fields.get("sr"))
    feature_width = shape_of(weights, "enc_p.emb_phone.weight", 2)[1]
    relative = shape_of(weights, "enc_p.encoder.attn_layers.0.emb_rel_k", 3)
    flow = "flow.flows.0.enc.in_layers"
    config = VoiceConfig(
        version=_version(fields, feature_width),
        uses_f0=_flag(fields["f0"]) if "f0" in fields else "enc_p.emb_pitch.weight" in weights,
        feature_width=feature_width,
        attention_window=relative[1] // 2,
        speakers=shape_of(weights, "emb_g.weight", 2)[0],
        flows=count_of(weights, r"flow\.flows\.(\d+)\.pre\.weight$"),
        flow_layers=count_of(weights, r"flow\.flows\.0\.enc\.in_layers\.(\d+)\.weight$"),
        flow_kernel=shape_of(weights, f"{flow}.0.weight", 3)[2],
        **sizes,
    )
    if config.hidden_channels % config.heads or config.inter_channels % 2:
        raise RvcdError(
            Code.BAD_CONFIG,
            f"The voice's config has {config.hidden_channels} hidden channels for {config.heads} heads and "
            f"{config.inter_channels} inter channels; they must divide evenly.",
        )
    return config


def _version(fields: Mapping[str, Any], feature_width: int) -> Literal["v1", "v2"]:
    # Exports from before v2 existed do not say.
    if "version" in fields:
        return "v2" if str(fields["version"]).lower() == "v2" else "v1"
    return "v2" if feature_width == _V2_WIDTH else "v1"


def _stated_sizes(config: Any, rate_said: Any) -> dict[str, Any]:
    entries = config if isinstance(config, list | tuple) else _entries_of_training_config(config)
    rate = sample_rate_of(entries[17]) or sample_rate_of(rate_said)
    if rate is None:
        raise _bad_entry("sample rate", entries[17])
    resblock = str(entries[9])
    if resblock not in ("1", "2"):
        raise _bad_entry("resblock type", resblock)
    sizes: dict[str, Any] = {
        "sample_rate": rate,
        "inter_channels": _size("inter channels", entries[2]),
        "hidden_channels": _size("hidden channels", entries[3]),
        "filter_channels": _size("filter channels", entries[4]),
        "heads": _size("heads", entries[5]),
        "layers": _size("layers", entries[6]),
        "kernel": _size("kernel", entries[7]),
        "resblock": resblock,
        "resblock_kernels": _sizes("resblock kernels", entries[10]),
        "resblock_dilations": tuple(_sizes("resblock dilations", row) for row in _row("dilations", entries[11])),
        "upsample_rates": _sizes("upsample rates", entries[12]),
        "upsample_channels": _size("upsample channels", entries[13]),
        "upsample_kernels": _sizes("upsample kernels", entries[14]),
        "speaker_channels": _size("speaker channels", entries[16]),
    }
    for one, other in (("upsample_rates", "upsample_kernels"), ("resblock_kernels", "resblock_dilations")):
        if len(sizes[one]) != len(sizes[other]):
            raise RvcdError(
                Code.BAD_CONFIG,
                f"The voice's config has {len(sizes[one])} {one.replace('_', ' ')} and {len(sizes[other])} "
                f"{other.replace('_', ' ')}; they must be as many.",
            )
    return sizes


def _entries_of_training_config(config: Any) -> list[Any]:
    """Bring a trainer's nested config into the order of an export's list."""
    names = (
        *("inter_channels", "hidden_channels", "filter_channels", "n_heads", "n_layers", "kernel_size", "p_dropout"),
        *("resblock", "resblock_kernel_sizes", "resblock_dilation_sizes", "upsample_rates"),
        *("upsample_initial_channel", "upsample_kernel_sizes", "spk_embed_dim", "gin_channels"),
    )
    try:
        return [None, None, *(config["model"][name] for name in names), config["data"]["sampling_rate"]]
    except (KeyError, TypeError):
        raise _bad_entry("layout", type(config).__name__) from None


def _row(what: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= 16:
        raise _bad_entry(what, value)
    return list(value)


def _sizes(what: str, value: Any) -> tuple[int, ...]:
    return tuple(_size(what, entry) for entry in _row(what, value))


def _size(what: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_SIZE:
        raise _bad_entry(what, value)
    return value


def _bad_entry(what: str, value: Any) -> RvcdError:
    return RvcdError(Code.BAD_CONFIG, f"The voice's config has {str(value)[:60]!r} for its {what}.")


def _inferred_sizes(fields: Mapping[str, Any], weights: Tensors) -> dict[str, Any]:
    """Read the sizes from the tensors, where trainers leave no choice.

    Raises `RvcdError`: `no_config`, saying what the tensors leave open.
    """
    attention, ffn = "enc_p.encoder.attn_layers", "enc_p.encoder.ffn_layers.0.conv_1.weight"
    hidden, feature_width = shape_of(weights, "enc_p.emb_phone.weight", 2)
    if "version" not in fields and feature_width not in (_V1_WIDTH, _V2_WIDTH):
        raise _no_config(
            f"its version: features {feature_width} wide are neither v1 ({_V1_WIDTH}) nor v2 ({_V2_WIDTH})"
        )
    stages = count_of(weights, r"dec\.ups\.(\d+)\.weight$")
    kernels = tuple(shape_of(weights, f"dec.ups.{i}.weight", 3)[2] for i in range(stages))
    rates = _inferred_rates(kernels, fields, weights)
    blocks = count_of(weights, r"dec\.resblocks\.(\d+)\.") // stages
    kind: Literal["1", "2"] = "1" if "dec.resblocks.0.convs1.0.weight" in weights else "2"
    group, dilations = ("convs1", (1, 3, 5)) if kind == "1" else ("convs", (1, 3))
    convolutions = count_of(weights, rf"dec\.resblocks\.0\.{group}\.(\d+)\.weight$")
    if convolutions != len(dilations):
        raise _no_config(f"the dilations of its resblocks, which have {convolutions} convolutions")
    return {
        "sample_rate": 100 * math.prod(rates),
        "inter_channels": 2 * shape_of(weights, "flow.flows.0.pre.weight", 3)[1],
        "hidden_channels": hidden,
        "filter_channels": shape_of(weights, ffn, 3)[0],
        "heads": max(1, hidden // shape_of(weights, f"{attention}.0.emb_rel_k", 3)[2]),
        "layers": count_of(weights, r"enc_p\.encoder\.attn_layers\.(\d+)\.conv_q\.weight$"),
        "kernel": shape_of(weights, ffn, 3)[2],
        "resblock": kind,
        "resblock_kernels": tuple(
            shape_of(weights, f"dec.resblocks.{j}.{group}.0.weight", 3)[2] for j in range(blocks)
        ),
        "resblock_dilations": (dilations,) * blocks,
        "upsample_rates": rates,
        "upsample_kernels": kernels,
        "upsample_channels": shape_of(weights, "dec.conv_pre.weight", 3)[0],
        "speaker_channels": shape_of(weights, "emb_g.weight", 2)[1],
    }


def _inferred_rates(kernels: tuple[int, ...], fields: Mapping[str, Any], weights: Tensors) -> tuple[int, ...]:
    if kernels in _RATES_OF_KERNELS:
        return _RATES_OF_KERNELS[kernels]
    if kernels != _FIVE_STAGE_KERNELS:
        raise _no_config(f"its upsample rates: kernels {kernels} belong to no known sample rate")
    first_noise = weights.get("dec.noise_convs.0.weight")
    for rate, rates in _FIVE_STAGE_RATES.items():
        by_noise = (
            first_noise is not None and first_noise.ndim == 3 and first_noise.shape[2] == 2 * math.prod(rates[1:])
        )
        if by_noise or (first_noise is None and sample_rate_of(fields.get("sr")) == rate):
            return rates
    raise _no_config("its sample rate: without f0, kernels 16, 16, 4, 4, 4 may be 32k or 48k")


def _no_config(what: str) -> RvcdError:
    return RvcdError(Code.NO_CONFIG, f"The checkpoint has no config, and its tensors leave open {what}.")


def _check_rates(config: VoiceConfig) -> None:
    if config.samples_per_frame * 100 != config.sample_rate:
        raise RvcdError(
            Code.BAD_CONFIG,
            f"The voice's upsample rates {config.upsample_rates} make {config.samples_per_frame} samples of a frame; "
            f"its sample rate of {config.sample_rate} Hz needs {config.sample_rate / 100:g}.",
        )
    for rate, kernel in zip(config.upsample_rates, config.upsample_kernels, strict=True):
        # An even rate is trimmed alike at both ends; an odd one may lose one sample more in front (kernel 2 * rate).
        if kernel < rate or ((kernel - rate) % 2 and kernel != 2 * rate):
            raise RvcdError(Code.BAD_CONFIG, f"The voice has an upsample kernel of {kernel} for the rate {rate}.")
    if config.upsample_channels % (1 << len(config.upsample_rates)):
        raise RvcdError(
            Code.BAD_CONFIG,
            f"The voice's {config.upsample_channels} upsample channels cannot be halved once for each of "
            f"{len(config.upsample_rates)} stages.",
        )
    if any(size % 2 == 0 for size in (*config.resblock_kernels, config.flow_kernel, config.kernel)):
        raise RvcdError(Code.BAD_CONFIG, "The voice has convolutions of even width, which no RVC voice has.")
