"""A checkpoint becomes a converted file, once: read, turned into our parameters, proven by a strict load, saved."""

import re
from dataclasses import dataclass
from pathlib import Path

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine import weights
from rvcd.mlx_engine.checkpoint import Checkpoint, read_checkpoint, source_hashes
from rvcd.mlx_engine.configs import Kind, VoiceConfig
from rvcd.mlx_engine.faiss_file import RetrievalIndex, read_index
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
    hashes = source_hashes(source) | (source_hashes(index) if index else {})
    key = weights.source_key(hashes)
    for known in sorted(directory.glob(f"*.{key[:12]}.safetensors")):
        header = weights.read_header(known)
        if header.key == key and name in (None, header.name):
            return ImportedModel(known, header.kind, header.name, fresh=False)
    checkpoint = read_checkpoint(source)
    tensors = to_model(checkpoint)
    provenance = {**checkpoint.info, "sources": hashes}
    if index is not None:
        retrieval = _read_index(index, checkpoint)
        tensors |= index_arrays(retrieval)
        provenance["nprobe"] = retrieval.nprobe
    name = name or _default_name(source)
    path = directory / f"{_safe(name)}.{key[:12]}.safetensors"
    weights.save(
        path, tensors, kind=checkpoint.kind, name=name, key=key, config=checkpoint.config, provenance=provenance
    )
    _remove_predecessors(path, name, checkpoint.kind)
    return ImportedModel(path, checkpoint.kind, name, fresh=True)


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
