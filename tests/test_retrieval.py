"""Exact search against numpy, and faiss's own search against faiss reading the same file."""

from pathlib import Path

import faiss
import mlx.core as mx
import numpy as np
import pytest

from rvcd.mlx_engine.faiss_file import read_index
from rvcd.mlx_engine.retrieval import ExactIndex, IvfIndex
from tests.support import seeded


def brute_force(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    distances = ((queries[:, None].astype(np.float64) - vectors[None]) ** 2).sum(axis=-1)
    nearest = np.argsort(distances, axis=1)[:, :8]
    weights = np.take_along_axis(distances, nearest, axis=1) ** -2.0
    weights /= weights.sum(axis=1, keepdims=True)
    return (vectors[nearest] * weights[..., None]).sum(axis=1)


@pytest.mark.parametrize("count", [3, 8, 9, 31, 32, 33, 256, 257, 1000])
def test_exact_search_finds_the_true_neighbours(count: int) -> None:
    rng = np.random.default_rng(count)
    vectors = rng.standard_normal((count, 24)).astype(np.float32) + 5.0  # an offset tests the cancellation
    queries = rng.standard_normal((50, 24)).astype(np.float32) + 5.0
    found = ExactIndex(mx.array(vectors)).retrieve(mx.array(queries))
    np.testing.assert_allclose(found, brute_force(vectors, queries), rtol=1e-4, atol=1e-5)


def test_an_exact_hit_returns_the_vector_itself() -> None:
    vectors = np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32)
    found = np.array(ExactIndex(mx.array(vectors)).retrieve(mx.array(vectors[:5])))
    np.testing.assert_allclose(found, vectors[:5], atol=1e-5)


def test_twins_at_distance_zero_give_no_nan() -> None:
    vectors = np.ones((20, 16), dtype=np.float32)
    found = np.array(ExactIndex(mx.array(vectors)).retrieve(mx.array(vectors[:1])))
    np.testing.assert_allclose(found, vectors[:1], rtol=1e-6)


def test_ivf_search_is_faiss_reading_the_file(tmp_path: Path) -> None:
    path = seeded.retrieval_index(tmp_path / "v.index", vectors=900, width=32, seed=1)
    queries = np.random.default_rng(2).standard_normal((40, 32)).astype(np.float32)
    index = faiss.read_index(str(path))
    distances, ids = index.search(queries, 8)
    weights = np.where(ids >= 0, distances.astype(np.float64) ** -2.0, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    expected = (index.reconstruct_n(0, index.ntotal)[ids] * weights[..., None]).sum(axis=1)
    read = read_index(path)
    found = IvfIndex(read.vectors, read.centroids, read.list_of_vector, read.nprobe).retrieve(mx.array(queries))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_ivf_search_differs_from_exact_search(tmp_path: Path) -> None:
    """With nprobe 1 true neighbours are missed: that is what `ivf` is for."""
    read = read_index(seeded.retrieval_index(tmp_path / "v.index", vectors=900, width=32, seed=1))
    queries = mx.array(np.random.default_rng(2).standard_normal((40, 32)).astype(np.float32))
    exact = np.array(ExactIndex(mx.array(read.vectors)).retrieve(queries))
    ivf = np.array(IvfIndex(read.vectors, read.centroids, read.list_of_vector, 1).retrieve(queries))
    assert np.abs(exact - ivf).max() > 0.05


def test_an_empty_list_leaves_the_features_as_they_are() -> None:
    rng = np.random.default_rng(3)
    vectors, queries = (rng.standard_normal((n, 16)).astype(np.float32) for n in (30, 5))
    centroids = np.concatenate([queries, 100 + queries])
    lists = np.full(30, 9, dtype=np.int32)  # far from every query
    found = IvfIndex(vectors, centroids, lists, 1).retrieve(mx.array(queries))
    np.testing.assert_array_equal(found, queries)
