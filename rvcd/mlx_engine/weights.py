"""The converted model file: one safetensors file whose header says what is inside.

Header metadata: `format` ("rvcd"), `format_version`, `kind` (voice, content-encoder, pitch), `name`,
`key` (of the sources, see `source_key`), `config` (JSON of the config dataclass), `provenance` (JSON:
`sources`, a map of file name to SHA-256, and whatever the checkpoint says about itself).
Tensors: folded, channels-last, float32, named as the model's parameters; a voice may also hold
`index.vectors` (count, width), `index.centroids` (lists, width), `index.list_of_vector` (count,).
"""

import hashlib
import json
import os
import re
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rvcd.errors import Code, RvcdError, write_error
from rvcd.mlx_engine.configs import CONFIG_OF_KIND, Kind, ModelConfig

if TYPE_CHECKING:
    import numpy.typing as npt

FORMAT = "rvcd"
FORMAT_VERSION = 1
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class ModelCard:
    """What a converted model is."""

    kind: Kind
    name: str
    key: str
    """Of its sources: see `source_key`."""
    config: ModelConfig
    provenance: dict[str, Any]
    """JSON-able: `sources` (file name -> SHA-256), and what the checkpoint says of itself."""


@dataclass(frozen=True)
class ModelHeader(ModelCard):
    """What a converted file says about itself. Reading it touches no tensor."""

    path: Path
    index_vectors: int
    """Retrieval vectors inside; 0 for a voice without an index."""


def source_key(source_hashes: dict[str, str]) -> str:
    """Key of a conversion: SHA-256 over the sources' hashes and the format version."""
    text = json.dumps([FORMAT_VERSION, sorted(source_hashes.values())])
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_converted(path: Path) -> bool:
    """Whether the file is one of ours (by content; its name does not matter)."""
    try:
        metadata = _raw_header(path).get("__metadata__")
        return isinstance(metadata, dict) and metadata.get("format") == FORMAT
    except (OSError, RvcdError):
        return False


def read_header(path: Path) -> ModelHeader:
    """Read the header of a converted file.

    Raises `RvcdError`: `not_found`, `truncated_file`, `not_a_checkpoint` (not ours, or of another format version).
    """
    header = _raw_header(path)
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise RvcdError(Code.NOT_A_CHECKPOINT, f"{path.name} was not converted by rvcd; import its original instead.")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise RvcdError(
            Code.NOT_A_CHECKPOINT,
            f"{path.name} has format version {metadata.get('format_version')}, this rvcd reads {FORMAT_VERSION}; "
            "import its original again.",
        )
    try:
        return _parse(path, metadata, int(header.get("index.vectors", {"shape": [0]})["shape"][0]))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise RvcdError(
            Code.NOT_A_CHECKPOINT, f"{path.name} has a damaged header; import its original again."
        ) from error


def _parse(path: Path, metadata: dict[str, str], index_vectors: int) -> ModelHeader:
    kind = cast("Kind", metadata["kind"])
    return ModelHeader(
        path=path,
        kind=kind,
        name=metadata["name"],
        key=metadata["key"],
        config=CONFIG_OF_KIND[kind].from_json(json.loads(metadata["config"])),
        provenance=json.loads(metadata["provenance"]),
        index_vectors=index_vectors,
    )


def save(path: Path, tensors: "dict[str, npt.NDArray[Any]]", card: ModelCard) -> None:
    """Write a converted file atomically: it appears whole under its name, or not at all.

    Raises `RvcdError`: `not_writable`, `disk_full`.
    """
    # Headers are read by processes that stay small: numpy is for those that write.
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "kind": card.kind,
        "name": card.name,
        "key": card.key,
        "config": json.dumps(card.config.to_json(), sort_keys=True),
        "provenance": json.dumps(card.provenance, sort_keys=True),
    }
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".import-", suffix=".part")
        os.close(handle)
        save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, draft, metadata)
        with Path(draft).open("rb+") as file:
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except OSError as error:
        raise write_error(error, path) from error
    except SafetensorError as error:
        # safetensors tells of the system's errors in words alone.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise write_error(OSError(int(number[1]), os.strerror(int(number[1]))), path) from error
    finally:
        if draft is not None:
            Path(draft).unlink(missing_ok=True)


def _raw_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            start = file.read(8)
            size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= size <= _MAX_HEADER_BYTES:
                raise RvcdError(Code.NOT_A_CHECKPOINT, f"{path.name} is not a safetensors file.")
            text = file.read(size)
            total_bytes = file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise RvcdError(Code.NOT_FOUND, f"There is no file {path}.") from None
    try:
        header: dict[str, Any] = json.loads(text)
        end = max((int(t["data_offsets"][1]) for n, t in header.items() if n != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise RvcdError(Code.NOT_A_CHECKPOINT, f"{path.name} is not a safetensors file.") from None
    if total_bytes < 8 + size + end:
        raise RvcdError(Code.TRUNCATED_FILE, f"{path.name} is cut short; copy or import it again.")
    return header
