"""HuBERT-shaped content encoders: fairseq's files and transformers' folders, under transformers' names."""

import re
from collections.abc import Mapping
from typing import Any

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine.configs import HubertConfig
from rvcd.mlx_engine.inert_pickle import Record
from rvcd.mlx_engine.state_dict import Shapes, Tensors, checked, count_of, plain_weights, shape_of

_HEAD_WIDTH = 64
# Strides cannot be read from tensors; HuBERT's front end is told by its kernels.
_STRIDES_OF_KERNELS: dict[tuple[int, ...], tuple[int, ...]] = {(10, 3, 3, 3, 3, 2, 2): (5, 2, 2, 2, 2, 2, 2)}
_TRAINING_ONLY = {"mask_emb", "masked_spec_embed", "label_embs_concat"}
_FROM_FAIRSEQ = (
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.2\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"^(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"^(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
    (r"^(encoder\.layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
    (r"^(encoder\.layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
)
_FIRST_CONV = re.compile(r"^(?:hubert\.)?feature_extractor\.conv_layers\.0\.(?:0|conv)\.weight$")


def is_content_encoder(names: Mapping[str, Any]) -> bool:
    """Whether a state dict with these names is a HuBERT-shaped model."""
    return any(map(_FIRST_CONV.match, names))


def encoder_facts(fields: Mapping[str, Any], settings: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what the file says of itself, as JSON-able values. Never raises."""
    facts: dict[str, Any] = {"format": "fairseq" if _is_fairseq(tensors) else "transformers"}
    for name in ("model_type", "_name_or_path"):
        if isinstance(settings.get(name), str):
            facts[name.lstrip("_")] = settings[name]
    return facts | {"normalize": _normalize(fields, settings)}


def read_encoder(
    fields: Mapping[str, Any], settings: Mapping[str, Any], tensors: Mapping[str, Any]
) -> tuple[HubertConfig, Tensors]:
    """Read and validate a content encoder.

    `fields` are a fairseq file's entries beside its tensors; `settings` the folder's `config.json` and
    `preprocessor_config.json` taken together. Either may be empty.

    Raises `RvcdError`: `bad_config`, `no_config`, `missing_tensor`, `wrong_shape`, `unexpected_tensor`, `not_finite`.
    """
    _refuse_other_architectures(fields, settings)
    renamed = {_canonical(name): tensor for name, tensor in tensors.items()}
    weights = plain_weights({name: tensor for name, tensor in renamed.items() if name not in _TRAINING_ONLY})
    config = _config(fields, settings, weights)
    return config, checked(weights, encoder_shapes(config))


def encoder_shapes(config: HubertConfig) -> Shapes:
    """Name and shape of every tensor of a content encoder, in torch's layout."""
    shapes: Shapes = {}
    channels = (1, *config.conv_channels)
    for i, kernel in enumerate(config.conv_kernels):
        shapes[f"feature_extractor.conv_layers.{i}.conv.weight"] = (channels[i + 1], channels[i], kernel)
    hidden, last = config.hidden, channels[-1]
    shapes |= _norm("feature_extractor.conv_layers.0.layer_norm", channels[1])
    shapes |= _norm("feature_projection.layer_norm", last) | _linear("feature_projection.projection", hidden, last)
    shapes |= _norm("encoder.layer_norm", hidden)
    group_width = hidden // config.position_groups
    shapes["encoder.pos_conv_embed.conv.weight"] = (hidden, group_width, config.position_kernel)
    shapes["encoder.pos_conv_embed.conv.bias"] = (hidden,)
    for i in range(config.layers):
        layer = f"encoder.layers.{i}"
        for part in ("q", "k", "v", "out"):
            shapes |= _linear(f"{layer}.attention.{part}_proj", hidden, hidden)
        shapes |= _norm(f"{layer}.layer_norm", hidden) | _norm(f"{layer}.final_layer_norm", hidden)
        shapes |= _linear(f"{layer}.feed_forward.intermediate_dense", config.intermediate, hidden)
        shapes |= _linear(f"{layer}.feed_forward.output_dense", hidden, config.intermediate)
    return shapes | (_linear("final_proj", config.projection, hidden) if config.projection else {})


def _linear(name: str, out: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (out, inputs), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _canonical(name: str) -> str:
    name = name.removeprefix("hubert.")
    for pattern, replacement in _FROM_FAIRSEQ:
        name = re.sub(pattern, replacement, name)
    return name


def _is_fairseq(tensors: Mapping[str, Any]) -> bool:
    return "feature_extractor.conv_layers.0.0.weight" in tensors


# Sizes


def _config(fields: Mapping[str, Any], settings: Mapping[str, Any], weights: Tensors) -> HubertConfig:
    conv = "feature_extractor.conv_layers"
    count = count_of(weights, r"feature_extractor\.conv_layers\.(\d+)\.conv\.weight$")
    shapes = [shape_of(weights, f"{conv}.{i}.conv.weight", 3) for i in range(count)]
    kernels = tuple(shape[2] for shape in shapes)
    hidden = shape_of(weights, "feature_projection.projection.weight", 2)[0]
    _, group_width, position_kernel = shape_of(weights, "encoder.pos_conv_embed.conv.weight", 3)
    heads = (
        settings.get("num_attention_heads") or dig(fields, "encoder_attention_heads") or max(1, hidden // _HEAD_WIDTH)
    )
    config = HubertConfig(
        conv_channels=tuple(shape[0] for shape in shapes),
        conv_kernels=kernels,
        conv_strides=_strides(fields, settings, kernels),
        hidden=hidden,
        heads=heads,
        layers=count_of(weights, r"encoder\.layers\.(\d+)\."),
        intermediate=shape_of(weights, "encoder.layers.0.feed_forward.intermediate_dense.weight", 2)[0],
        position_kernel=position_kernel,
        position_groups=max(1, hidden // group_width),
        projection=weights["final_proj.weight"].shape[0] if "final_proj.weight" in weights else 0,
        norm_eps=float(settings.get("layer_norm_eps", 1e-5)),
        normalize=_normalize(fields, settings),
    )
    stated = {
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "intermediate_size": config.intermediate,
    }
    stated["num_conv_pos_embeddings"] = config.position_kernel
    stated["num_conv_pos_embedding_groups"] = config.position_groups
    for name, found in stated.items():
        if settings.get(name, found) != found:
            raise _bad_config(f"says {name} {settings[name]!r}, its tensors say {found}")
    if not isinstance(heads, int) or heads < 1 or hidden % heads:
        raise _bad_config(f"has {heads!r} attention heads for a width of {hidden}")
    return config


def _strides(fields: Mapping[str, Any], settings: Mapping[str, Any], kernels: tuple[int, ...]) -> tuple[int, ...]:
    said = settings.get("conv_stride") or _strides_in_text(dig(fields, "conv_feature_layers"))
    strides = tuple(said) if isinstance(said, list | tuple) else _STRIDES_OF_KERNELS.get(kernels)
    if strides is None:
        raise RvcdError(
            Code.NO_CONFIG,
            f"The content encoder does not say the strides of its convolutions (kernels {kernels}); keep its "
            "config.json beside it and name the folder.",
        )
    if len(strides) != len(kernels) or not all(isinstance(s, int) and 1 <= s <= 1000 for s in strides):
        raise _bad_config(f"has the strides {strides} for {len(kernels)} convolutions")
    return strides


def _strides_in_text(text: Any) -> tuple[int, ...] | None:
    """Read fairseq's `[(512,10,5)] + [(512,3,2)] * 4`, a Python expression that is not evaluated."""
    if not isinstance(text, str):
        return None
    strides: list[int] = []
    for group, times in re.findall(r"\[([^\]]*)\](?:\s*\*\s*(\d{1,2}))?", text):
        of_group = [int(stride) for stride in re.findall(r"\(\s*\d+\s*,\s*\d+\s*,\s*(\d{1,4})\s*\)", group)]
        strides += of_group * int(times or 1)
    return tuple(strides) or None


def _normalize(fields: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("do_normalize", dig(fields, "normalize")))


def _refuse_other_architectures(fields: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    stated = {
        "feat_extract_norm": ("group", settings.get("feat_extract_norm")),
        "do_stable_layer_norm": (False, settings.get("do_stable_layer_norm")),
        "hidden_act": ("gelu", settings.get("hidden_act")),
        "feat_extract_activation": ("gelu", settings.get("feat_extract_activation")),
        "extractor_mode": ("default", dig(fields, "extractor_mode")),
        "layer_norm_first": (False, dig(fields, "layer_norm_first")),
    }
    for name, (needed, found) in stated.items():
        if found is not None and found != needed:
            raise _bad_config(f"has {name} {found!r}; rvcd reads encoders of HuBERT base's architecture ({needed!r})")


def _bad_config(what: str) -> RvcdError:
    return RvcdError(Code.BAD_CONFIG, f"The content encoder {what}.")


def dig(fields: Mapping[str, Any], name: str) -> Any:
    """Find a scalar setting in a fairseq file: `cfg.model`, `cfg.task` or the older `args`; None if it is not there."""
    config = _children(fields.get("cfg"))
    for place in (config.get("model"), config.get("task"), fields.get("args")):
        found = _children(place).get(name)
        if isinstance(found, Record):
            # omegaconf's scalar node; an enum member, whose value is its one argument
            found = _children(found).get("_val", found.args[0] if found.args else None)
        if isinstance(found, str | int | float):
            return found
    return None


def _children(node: Any) -> dict[Any, Any]:
    """Return what lies in a dict, an argparse.Namespace or an omegaconf container."""
    inside = node.state if isinstance(node, Record) else node
    if isinstance(inside, dict) and isinstance(inside.get("_content"), dict):
        inside = inside["_content"]
    return inside if isinstance(inside, dict) else {}
