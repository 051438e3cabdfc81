"""Retrieval: pull content features towards the voice's own training features.

Each frame is mixed with the inverse-square weighted mean of its 8 nearest training features, where the
weight is taken of the *squared* distance, as RVC WebUI's `Pipeline.vc` does with faiss's scores.
"""

import os
from typing import Protocol

import mlx.core as mx
import numpy as np
import numpy.typing as npt

NEIGHBOURS = 8
_SMALLEST_DISTANCE = 1e-9
_BLOCK_VECTORS = 32
_PRODUCT_ELEMENTS = 1 << 24  # distances held at once


class RetrievalIndex(Protocol):
    """Finds what lies near in a voice's training features."""

    def retrieve(self, features: mx.array) -> mx.array:
        """(frames, width) -> (frames, width): the weighted mean of each frame's neighbours."""
        ...


class ExactIndex:
    """The true nearest neighbours, by matrix products over all vectors.

    A product ranks all distances block by block: the 8 nearest vectors lie in the 8 blocks whose nearest
    members are nearest, so only those are looked into. The final distances are computed from differences,
    since |q|² + |v|² - 2qv has no digits left where it matters most.
    """

    def __init__(self, vectors: mx.array) -> None:
        self._count = vectors.shape[0]
        padding = -self._count % _BLOCK_VECTORS
        self._vectors = mx.pad(vectors, [(0, padding), (0, 0)])
        squares = mx.square(self._vectors.astype(mx.float32)).sum(axis=1)
        beyond = mx.arange(self._count + padding) >= self._count
        self._squares = mx.where(beyond, float("inf"), squares)
        mx.eval(self._vectors, self._squares)

    def retrieve(self, features: mx.array) -> mx.array:
        """(frames, width) -> (frames, width)."""
        step = max(1, _PRODUCT_ELEMENTS // self._vectors.shape[0])
        pieces = []
        for start in range(0, features.shape[0], step):
            pieces.append(self._retrieve(features[start : start + step]))
            mx.eval(pieces[-1])
        return mx.concatenate(pieces)

    def _retrieve(self, queries: mx.array) -> mx.array:
        # |q|² is the same for all of a query's distances and does not change their order.
        ranks = mx.addmm(self._squares, queries * -2.0, self._vectors.T)
        nearest = self._smallest(ranks, min(NEIGHBOURS, self._count))
        vectors = self._vectors[nearest]  # (frames, neighbours, width)
        return weighted_mean(vectors, mx.square(vectors - queries[:, None]).sum(axis=-1)).astype(queries.dtype)

    def _smallest(self, ranks: mx.array, count: int) -> mx.array:
        """Columns of the `count` smallest values of each row."""
        rows, columns = ranks.shape
        blocks = ranks.reshape(rows, columns // _BLOCK_VECTORS, _BLOCK_VECTORS)
        if blocks.shape[1] <= count:
            return mx.argpartition(ranks, count - 1, axis=-1)[:, :count]
        best_blocks = mx.argpartition(blocks.min(axis=-1), count - 1, axis=-1)[:, :count]
        members = mx.take_along_axis(blocks, best_blocks[..., None], axis=1).reshape(rows, -1)
        best = mx.argpartition(members, count - 1, axis=-1)[:, :count]
        block = mx.take_along_axis(best_blocks, best // _BLOCK_VECTORS, axis=-1)
        return block * _BLOCK_VECTORS + best % _BLOCK_VECTORS


class IvfIndex:
    """faiss itself, with the index's own lists and nprobe, as the reference searches. On the CPU, for comparison."""

    def __init__(
        self,
        vectors: npt.NDArray[np.float32],
        centroids: npt.NDArray[np.float32],
        lists: npt.NDArray[np.int32],
        nprobe: int,
    ) -> None:
        # Imported here alone: on macOS the OpenMP of faiss and that of another library in the process can
        # crash each other, by import alone or with more than one thread (faiss-wheels issues 73 and 100).
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        import faiss

        faiss.omp_set_num_threads(1)
        width = vectors.shape[1]
        quantizer = faiss.IndexFlatL2(width)
        quantizer.add(centroids)
        self._index = faiss.IndexIVFFlat(quantizer, width, len(centroids))
        self._quantizer = quantizer  # faiss does not keep it alive
        self._index.is_trained = True
        self._index.nprobe = nprobe
        # Bare pointers: the arrays must outlive the call.
        ids, own_lists = np.arange(len(vectors)), lists.astype(np.int64)
        pointers = [faiss.swig_ptr(array) for array in (vectors, ids, own_lists)]
        self._index.add_core(len(vectors), *pointers)
        self._vectors = vectors

    def retrieve(self, features: mx.array) -> mx.array:
        """(frames, width) -> (frames, width)."""
        queries = np.array(features.astype(mx.float32))
        squared_distances, ids = self._index.search(queries, NEIGHBOURS)
        # A missing neighbour has id -1 and the largest float as its distance: no weight. In an empty list all are.
        vectors = mx.array(self._vectors[ids])
        found = weighted_mean(vectors, mx.array(squared_distances)).astype(features.dtype)
        return mx.where(mx.array(ids[:, :1] >= 0), found, features)


def weighted_mean(vectors: mx.array, squared_distances: mx.array) -> mx.array:
    """(frames, neighbours, width) and (frames, neighbours) -> (frames, width); an exact hit counts as very near."""
    weights = mx.square(1.0 / mx.maximum(squared_distances, _SMALLEST_DISTANCE))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return (vectors * weights[..., None]).sum(axis=1)
