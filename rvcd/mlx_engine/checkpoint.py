"""Opens a foreign model, tells by its content what it is, and validates it.

What comes out is complete and plain: float32, torch's layout, weight norm folded, one naming per kind.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine.configs import HubertConfig, Kind, ModelConfig, VoiceConfig
from rvcd.mlx_engine.encoder_checkpoint import encoder_facts, is_content_encoder, read_encoder
from rvcd.mlx_engine.faiss_file import is_index, read_index
from rvcd.mlx_engine.pitch_checkpoint import is_pitch_model, read_pitch
from rvcd.mlx_engine.safetensors_file import is_safetensors, read_safetensors
from rvcd.mlx_engine.state_dict import Tensors
from rvcd.mlx_engine.torch_file import read_torch_file
from rvcd.mlx_engine.voice_checkpoint import read_voice, voice_facts
from rvcd.mlx_engine.weights import is_converted, read_header, sha256_of

MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
_CONFIG_FILE = "config.json"
_SETTINGS_FILES = (_CONFIG_FILE, "preprocessor_config.json")
_MAX_SETTINGS_BYTES = 1 << 20
# Where a state dict may lie in what a file holds; else the whole is one.
_STATE_DICT_ENTRIES = ("weight", "model", "generator_state_dict", "state_dict")
_HUB_VOICE_KINDS = {"rvc-v2-f0", "simpletuner-rvc-v2-f0"}


@dataclass(frozen=True)
class Checkpoint:
    """A foreign model, validated."""

    kind: Kind
    config: ModelConfig
    tensors: Tensors
    """float32, in torch's layout, weight norm folded; named as in RVC exports, transformers' HuBERT, or `rmvpe.pt`."""
    info: dict[str, Any]
    """What the file says of itself, JSON-able."""


@dataclass(frozen=True)
class _Opened:
    """A model whose kind is known and whose tensors are as the file has them."""

    kind: Kind
    fields: Mapping[str, Any]
    settings: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def facts(self) -> dict[str, Any]:
        if self.kind == "voice":
            return voice_facts(self.fields, self.tensors)
        return encoder_facts(self.fields, self.settings, self.tensors) if self.kind == "content-encoder" else {}

    def read(self) -> tuple[ModelConfig, Tensors]:
        if self.kind == "voice":
            return read_voice(self.fields, self.tensors)
        if self.kind == "content-encoder":
            return read_encoder(self.fields, self.settings, self.tensors)
        return read_pitch(self.tensors)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a `.pth`, `.pt`, `.bin` or `.safetensors` file, or a transformers folder with `config.json`.

    Raises `RvcdError` with any of the checkpoint codes, or `not_found`.
    """
    opened = _open(path)
    config, tensors = opened.read()
    return Checkpoint(opened.kind, config, tensors, opened.facts())


def kind_of(path: Path) -> Kind:
    """Tell what a file or folder is, by its content, without reading its tensors.

    Raises `RvcdError`: as `read_checkpoint`.
    """
    return _open(path).kind


def feature_width_of(path: Path) -> int:
    """Width of the content features that a voice reads, without reading its tensors; 0 if it does not say.

    Raises `RvcdError`: as `read_checkpoint`.
    """
    first = _open(path).tensors.get("enc_p.emb_phone.weight")
    return int(first.shape[1]) if isinstance(first, np.ndarray) and first.ndim == 2 else 0


def describe(path: Path) -> dict[str, Any]:
    """Say what a file or folder is, and whether rvcd can use it; bad content is described, never raised.

    Always there: `path`, `bytes`, `sha256` (of each file, by name), `kind` (`voice`, `content-encoder`, `pitch`,
    `index` or None), `converted`, `usable`, `code` and `reason` (None if usable). The rest depends on the kind.
    """
    about: dict[str, Any] = {"path": str(path), "kind": None, "converted": False, "usable": False}
    about |= {"code": None, "reason": None, "bytes": 0, "sha256": {}}
    try:
        about["sha256"] = source_hashes(path)
        about["bytes"] = sum(file.stat().st_size for file in _files(path))
        for fact, value in _described(path, about):
            about[fact] = value
        about["usable"] = True
    except RvcdError as error:
        about |= {"code": error.code.value, "reason": error.sentence}
    except OSError as error:
        about |= {"code": Code.NOT_FOUND.value, "reason": f"{path} cannot be opened: {error.strerror or error}."}
    return about


def _described(path: Path, about: dict[str, Any]) -> list[tuple[str, Any]]:
    """Fill in `about` as far as it is known, so that a refusal still says what was seen."""
    if path.is_file() and is_converted(path):
        header = read_header(path)
        about |= {"kind": header.kind, "converted": True, "name": header.name, "index_vectors": header.index_vectors}
        return list((_sizes(header.config) | {"info": header.provenance}).items())
    if path.is_file() and is_index(path):
        about["kind"] = "index"
        index = read_index(path)
        vectors, width = index.vectors.shape
        return [("vectors", vectors), ("width", width), ("lists", len(index.centroids)), ("nprobe", index.nprobe)]
    opened = _open(path)
    arrays = [tensor for tensor in opened.tensors.values() if isinstance(tensor, np.ndarray)]
    about |= {"kind": opened.kind, "info": opened.facts(), "tensors": len(arrays)}
    about["parameters"] = sum(array.size for array in arrays)
    config, _ = opened.read()
    return list(_sizes(config).items())


def _sizes(config: ModelConfig) -> dict[str, Any]:
    """Put what users ask for first beside the whole config."""
    if isinstance(config, VoiceConfig):
        first = {"version": config.version, "f0": config.uses_f0, "sample_rate": config.sample_rate}
        first |= {"speakers": config.speakers, "feature_width": config.feature_width}
    elif isinstance(config, HubertConfig):
        first = {"feature_width": config.hidden, "projection": config.projection, "layers": config.layers}
    else:
        first = {"pitch_bins": config.pitch_bins}
    return first | {"config": config.to_json()}


# Opening


def _open(path: Path) -> _Opened:
    settings: dict[str, Any] = {}
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or (path.name in MODEL_FILES and (folder / _CONFIG_FILE).is_file()):
        settings = _settings(folder)
    model_file = _model_file(path)
    if not model_file.is_file():
        raise RvcdError(Code.NOT_FOUND, f"There is no file {path}.")
    tensors: Mapping[str, Any]
    if is_safetensors(model_file):
        fields, tensors = _open_safetensors(model_file)
    elif is_index(model_file):
        raise RvcdError(Code.NOT_A_CHECKPOINT, f"{path.name} is a retrieval index; name it together with its voice.")
    else:
        fields, tensors = _split(model_file, read_torch_file(model_file))
    return _Opened(_kind(model_file, tensors), fields, settings, tensors)


def _model_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    if (path / _CONFIG_FILE).is_file():
        for name in MODEL_FILES:
            if (path / name).is_file():
                return path / name
    raise RvcdError(
        Code.NOT_A_CHECKPOINT,
        f"The folder {path} is no model: it needs {_CONFIG_FILE} and one of {' or '.join(MODEL_FILES)}.",
    )


def _files(path: Path) -> list[Path]:
    """List the files that make the model."""
    if path.is_dir():
        return [_model_file(path), *(path / name for name in _SETTINGS_FILES if (path / name).is_file())]
    return [path]


def source_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of each file that makes up a model, by name: of the file, or of those of its folder that are read.

    Raises `RvcdError`: `not_found`, `not_a_checkpoint`.
    """
    return {file.name: sha256_of(file) for file in _files(path)}


def _settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in _SETTINGS_FILES:
        file = folder / name
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_bytes()[:_MAX_SETTINGS_BYTES])
        except (ValueError, RecursionError) as error:
            raise RvcdError(Code.BAD_CONFIG, f"{file} is no valid JSON ({error}).") from None
        if not isinstance(content, dict):
            raise RvcdError(Code.BAD_CONFIG, f"{file} holds no settings.")
        settings |= content
    return settings


def _open_safetensors(path: Path) -> tuple[dict[str, Any], Tensors]:
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") in ("rvcd", "rvc-mlx"):
        raise RvcdError(
            Code.NOT_A_CHECKPOINT,
            f"{path.name} was converted by {metadata['format']} already; import the original checkpoint instead.",
        )
    if metadata.get("kind") not in _HUB_VOICE_KINDS:
        return {}, tensors
    try:
        fields = {
            "version": metadata.get("version", "v2"),
            "f0": json.loads(metadata.get("f0", "true")),
            "sr": metadata.get("sample_rate"),
            "config": json.loads(metadata["config_json"]) if "config_json" in metadata else None,
            "model_name": metadata.get("model_name"),
            "speaker_info": json.loads(metadata.get("speaker_info_json", "[]")),
        }
    except ValueError as error:
        raise RvcdError(Code.BAD_CONFIG, f"{path.name} has damaged metadata ({error}).") from None
    return fields, tensors


def _split(path: Path, content: Any) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Part a file's content into its state dict and the entries beside it."""
    if isinstance(content, dict):
        fields = {name: value for name, value in content.items() if isinstance(name, str)}
        for entry in _STATE_DICT_ENTRIES:
            if _is_state_dict(fields.get(entry)):
                return fields, _named(fields.pop(entry))
        if _is_state_dict(content):
            return {}, _named(content)
    raise RvcdError(
        Code.NOT_A_CHECKPOINT,
        f"{path.name} was saved by torch but holds no model that rvcd knows (no tensors by name).",
    )


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(tensor, np.ndarray) for tensor in value.values())


def _named(state_dict: dict[Any, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in state_dict.items() if isinstance(name, str)}


def _kind(path: Path, tensors: Mapping[str, Any]) -> Kind:
    if is_pitch_model(tensors):
        return "pitch"
    if is_content_encoder(tensors):
        return "content-encoder"
    if any(name.startswith(("enc_p.", "dec.")) for name in tensors):
        return "voice"
    if any(name.startswith("discriminators.") for name in tensors):
        raise RvcdError(
            Code.NOT_A_CHECKPOINT,
            f"{path.name} is a discriminator (D_*.pth), of use in training only; take the exported voice or G_*.pth.",
        )
    some = ", ".join(sorted(tensors)[:3])
    raise RvcdError(
        Code.NOT_A_CHECKPOINT, f"{path.name} holds a model that rvcd does not know (its tensors: {some}, ...)."
    )
