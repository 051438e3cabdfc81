"""A checkpoint becomes a converted file, once: read, turned into our parameters, proven by a strict load, saved."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy.typing as npt
from safetensors.numpy import load_file

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine import weights
from rvcd.mlx_engine.checkpoint import Checkpoint, read_checkpoint, source_hashes
from rvcd.mlx_engine.configs import Kind, VoiceConfig
from rvcd.mlx_engine.faiss_file import RetrievalIndex, read_index
from rvcd.mlx_engine.models import INDEX_PREFIX, build, prove
from rvcd.mlx_engine.parameters import to_model
from rvcd.mlx_engine.voice import check_index_width, index_arrays


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
    if source.is_file() and weights.is_converted(source):
        return _import_converted(source, directory, name)
    hashes = source_hashes(source) | (source_hashes(index) if index else {})
    key = weights.source_key(hashes)
    known = _find(directory, key, name) or _find_with_index(directory, hashes, name or _default_name(source))
    if known is not None:
        return known
    checkpoint = read_checkpoint(source)
    tensors = to_model(checkpoint)
    provenance = {**checkpoint.info, "sources": hashes}
    if index is not None:
        retrieval = _read_index(index, checkpoint)
        tensors |= index_arrays(retrieval)
        provenance["nprobe"] = retrieval.nprobe
    name = name or _default_name(source)
    return _save(tensors, weights.ModelCard(checkpoint.kind, name, key, checkpoint.config, provenance), directory)


def _import_converted(source: Path, directory: Path, name: str | None) -> ImportedModel:
    """Take over a file that another rvcd converted, perhaps under another name."""
    header = weights.read_header(source)
    known = _find(directory, header.key, name or header.name)
    if known is not None:
        return known
    tensors = load_file(source)
    parameters = {n: mx.array(tensor) for n, tensor in tensors.items() if not n.startswith(INDEX_PREFIX)}
    prove(build(header.config), parameters, source.name)
    return _save(tensors, replace(header, name=name or header.name), directory)


def _find(directory: Path, key: str, name: str | None) -> ImportedModel | None:
    """Look for a whole file of these sources."""
    for path in sorted(directory.glob(f"*.{key[:12]}.safetensors")):
        try:
            header = weights.read_header(path)
        except RvcdError:
            continue  # damaged: it will be converted again
        if header.key == key and name in (None, header.name):
            return ImportedModel(path, header.kind, header.name, fresh=False)
    return None


def _find_with_index(directory: Path, hashes: dict[str, str], name: str) -> ImportedModel | None:
    """Look for the same voice with its index: importing the checkpoint alone again does not take it away."""
    for path in sorted(directory.glob(f"{_safe(name)}.*.safetensors")):
        try:
            header = weights.read_header(path)
        except RvcdError:
            continue  # damaged: it will be converted again
        if header.name == name and hashes.items() < header.provenance.get("sources", {}).items():
            return ImportedModel(path, header.kind, header.name, fresh=False)
    return None


def _save(tensors: dict[str, npt.NDArray[Any]], card: weights.ModelCard, directory: Path) -> ImportedModel:
    path = directory / f"{_safe(card.name)}.{card.key[:12]}.safetensors"
    weights.save(path, tensors, card)
    _remove_predecessors(path, card.name, card.kind)
    return ImportedModel(path, card.kind, card.name, fresh=True)


def _read_index(path: Path, checkpoint: Checkpoint) -> RetrievalIndex:
    if not isinstance(checkpoint.config, VoiceConfig):
        raise RvcdError(Code.BAD_INDEX, f"{path.name} is a voice's retrieval index; this checkpoint is no voice.")
    index = read_index(path)
    check_index_width(path, index, checkpoint.config)
    return index


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
