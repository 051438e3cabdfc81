"""The reader of faiss's files, held against faiss itself."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine.faiss_file import read_index, read_index_header


def build(path: Path, vectors: np.ndarray, lists: int, nprobe: int = 1, ids: np.ndarray | None = None) -> Any:
    index = faiss.index_factory(vectors.shape[1], f"IVF{lists},Flat")
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.nprobe = nprobe
    if ids is None:
        index.add(vectors)
    else:
        index.add_with_ids(vectors, ids)
    faiss.write_index(index, str(path))
    return index


def seeded(count: int, width: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, width), np.float32)


def code_of(path: Path) -> Code:
    with pytest.raises(RvcdError) as caught:
        read_index(path)
    return caught.value.code


@pytest.mark.parametrize(("count", "width", "lists", "nprobe"), [(40, 4, 1, 1), (300, 16, 7, 1), (1000, 256, 20, 3)])
def test_reads_vectors_lists_and_nprobe_as_faiss_does(
    tmp_path: Path, count: int, width: int, lists: int, nprobe: int
) -> None:
    vectors = seeded(count, width)
    index = build(tmp_path / "a.index", vectors, lists, nprobe)
    read = read_index(tmp_path / "a.index")
    np.testing.assert_array_equal(read.vectors, vectors)
    np.testing.assert_array_equal(read.centroids, index.quantizer.reconstruct_n(0, lists))
    np.testing.assert_array_equal(read.list_of_vector, index.quantizer.search(vectors, 1)[1][:, 0])
    assert read.list_of_vector.dtype == np.int32
    assert read.nprobe == nprobe
    header = read_index_header(tmp_path / "a.index")
    assert (header.width, header.count) == (width, count)


def test_reads_an_index_most_of_whose_lists_are_empty(tmp_path: Path) -> None:
    vectors = seeded(200, 8)
    index = faiss.index_factory(8, "IVF64,Flat")
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add(vectors[:5])
    faiss.write_index(index, str(tmp_path / "sparse.index"))
    assert b"sprs" in (tmp_path / "sparse.index").read_bytes()
    read = read_index(tmp_path / "sparse.index")
    np.testing.assert_array_equal(read.vectors, vectors[:5])
    np.testing.assert_array_equal(read.list_of_vector, index.quantizer.search(vectors[:5], 1)[1][:, 0])


@pytest.mark.parametrize("kind", ["array", "hashtable"])
def test_skips_a_direct_map(tmp_path: Path, kind: str) -> None:
    vectors = seeded(100, 4)
    index = build(tmp_path / "a.index", vectors, 3)
    index.set_direct_map_type(faiss.DirectMap.Array if kind == "array" else faiss.DirectMap.Hashtable)
    faiss.write_index(index, str(tmp_path / "a.index"))
    np.testing.assert_array_equal(read_index(tmp_path / "a.index").vectors, vectors)


def test_vectors_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    vectors, ids = seeded(60, 4), np.random.default_rng(1).permutation(60) * 3
    build(tmp_path / "a.index", vectors, 4, ids=ids)
    np.testing.assert_array_equal(read_index(tmp_path / "a.index").vectors, vectors[np.argsort(ids)])


def test_a_flat_index_is_one_list(tmp_path: Path) -> None:
    vectors = seeded(30, 6)
    index = faiss.IndexFlatL2(6)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "flat.index"))
    read = read_index(tmp_path / "flat.index")
    np.testing.assert_array_equal(read.vectors, vectors)
    assert (read.centroids.shape, set(read.list_of_vector), read.nprobe) == ((1, 6), {0}, 1)


def test_a_trained_index_without_vectors_is_empty(tmp_path: Path) -> None:
    index = faiss.index_factory(4, "IVF2,Flat")
    index.train(seeded(100, 4))
    faiss.write_index(index, str(tmp_path / "trained.index"))
    assert code_of(tmp_path / "trained.index") is Code.EMPTY_INDEX


def test_every_truncation_and_foreign_file_is_a_bad_index(tmp_path: Path) -> None:
    build(tmp_path / "a.index", seeded(40, 4), 2)
    whole = (tmp_path / "a.index").read_bytes()
    for length in range(0, len(whole), 11):
        (tmp_path / "cut.index").write_bytes(whole[:length])
        assert code_of(tmp_path / "cut.index") is Code.BAD_INDEX, length
    (tmp_path / "text.index").write_text("no index at all")
    assert code_of(tmp_path / "text.index") is Code.BAD_INDEX
    faiss.write_index(faiss.IndexFlatIP(4), str(tmp_path / "ip.index"))
    assert code_of(tmp_path / "ip.index") is Code.BAD_INDEX
    quantized = faiss.index_factory(4, "IVF2,SQ8")
    quantized.train(seeded(100, 4))
    faiss.write_index(quantized, str(tmp_path / "sq.index"))
    with pytest.raises(RvcdError, match="IwSq"):
        read_index(tmp_path / "sq.index")


def test_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    build(tmp_path / "a.index", seeded(20, 2), 3)
    whole = (tmp_path / "a.index").read_bytes()
    rng = np.random.default_rng(0)
    codes = set()
    for position in [*range(160), *rng.integers(len(whole), size=100)]:
        content = bytearray(whole)
        content[position] ^= int(rng.integers(1, 256))
        (tmp_path / "b.index").write_bytes(content)
        try:
            read_index(tmp_path / "b.index")
        except RvcdError as error:
            codes.add(error.code)
    assert Code.BAD_INDEX in codes
    assert codes <= {Code.BAD_INDEX, Code.EMPTY_INDEX}


def test_infinite_vectors_are_refused(tmp_path: Path) -> None:
    vectors = seeded(10, 2)
    vectors[3, 1] = np.inf
    index = faiss.IndexFlatL2(2)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "a.index"))
    assert code_of(tmp_path / "a.index") is Code.BAD_INDEX
