"""A loaded voice: its synthesizer and what its retrieval index holds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine import models
from rvcd.mlx_engine.configs import VoiceConfig
from rvcd.mlx_engine.faiss_file import RetrievalIndex as IndexFile
from rvcd.mlx_engine.faiss_file import read_index
from rvcd.mlx_engine.retrieval import ExactIndex, IvfIndex, RetrievalIndex
from rvcd.mlx_engine.synthesizer import Synthesizer
from rvcd.settings import Search

_INDEX_PARTS = ("vectors", "centroids", "list_of_vector")


@dataclass
class Voice:
    """Warm: weights evaluated. The retrieval index is read when it is first needed."""

    name: str
    config: VoiceConfig
    synthesizer: Synthesizer
    provenance: dict[str, Any]
    _index_arrays: dict[str, mx.array]
    _indexes: dict[str, RetrievalIndex] = field(default_factory=dict)

    @property
    def has_index(self) -> bool:
        """Whether there is anything to retrieve from."""
        return bool(self._index_arrays)

    def index(self, search: Search) -> RetrievalIndex:
        """The voice's retrieval index, searched this way."""
        if search not in self._indexes:
            vectors, centroids, lists = (self._index_arrays[f"{models.INDEX_PREFIX}{part}"] for part in _INDEX_PARTS)
            if search == "exact":
                self._indexes[search] = ExactIndex(vectors)
            else:
                nprobe = self.provenance.get("nprobe", 1)
                self._indexes[search] = IvfIndex(np.array(vectors), np.array(centroids), np.array(lists), nprobe)
        return self._indexes[search]

    def check_speaker(self, speaker_id: int) -> None:
        """Raises `RvcdError("bad_speaker")` for a row that the voice does not have."""
        if not 0 <= speaker_id < self.config.speakers:
            raise RvcdError(
                Code.BAD_SPEAKER,
                f"The voice {self.name} has {self.config.speakers} speakers, numbered from 0; "
                f"there is no {speaker_id}.",
            )


def load_voice(path: Path, index: Path | None, precision: models.Precision) -> Voice:
    """Load a converted voice; a separate faiss index, if given, takes the place of the one inside."""
    header, synthesizer, arrays = models.load(path, precision)
    if not isinstance(synthesizer, Synthesizer) or not isinstance(header.config, VoiceConfig):
        raise RvcdError(Code.NOT_A_CHECKPOINT, f"{path.name} is a {header.kind}, not a voice.")
    provenance = header.provenance
    if index is not None:
        read = read_index(index)
        check_index_width(index, read, header.config)
        provenance = {**provenance, "nprobe": read.nprobe}
        arrays = {name: mx.array(array) for name, array in index_arrays(read).items()}
    return Voice(header.name, header.config, synthesizer, provenance, arrays)


def index_arrays(index: IndexFile) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a retrieval index under the names that a converted file has for them."""
    return {f"{models.INDEX_PREFIX}{part}": getattr(index, part) for part in _INDEX_PARTS}


def check_index_width(path: Path, index: IndexFile, config: VoiceConfig) -> None:
    """Raise `RvcdError("index_width")` for an index of another kind of voice."""
    width = index.vectors.shape[1]
    if width != config.feature_width:
        raise RvcdError(
            Code.INDEX_WIDTH,
            f"{path.name} holds vectors of width {width}, but this {config.version} voice reads "
            f"{config.feature_width}; it belongs to another voice.",
        )
