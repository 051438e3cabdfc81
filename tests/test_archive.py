"""Folders and archives of models: what is inside, what goes with what, and what is refused."""

import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine.archive import FoundModel, bare_name, find_models, pair_voices
from tests.support import seeded
from tests.support.torch_writer import Call, Global, save_zip


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder as users have it: names that mislead, and files that are no models."""
    folder = tmp_path / "Ada voice"
    (folder / "sub").mkdir(parents=True)
    seeded.voice(folder / "Ada_e200_s9000.pth", tiny=True)
    seeded.retrieval_index(folder / "sub" / "added_IVF3_Flat_nprobe_1_Ada_v2.index", vectors=120, width=64)
    seeded.pitch_model(folder / "misnamed.index", tiny=True)
    seeded.content_encoder(folder / "encoder", tiny=True, layers=1)
    (folder / "readme.txt").write_text("thank you")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._Ada.pth").write_bytes(b"clutter")
    return folder


def kinds(found: list[FoundModel], root: Path) -> dict[str, str]:
    return {model.path.relative_to(root).as_posix(): model.kind for model in found}


EXPECTED = {
    "encoder": "content-encoder",
    "Ada_e200_s9000.pth": "voice",
    "misnamed.index": "pitch",
    "readme.txt": "unknown",
    "sub/added_IVF3_Flat_nprobe_1_Ada_v2.index": "index",
}


def test_finds_models_in_a_folder_by_content(models: Path, tmp_path: Path) -> None:
    found = find_models(models, tmp_path / "unused")
    assert kinds(found, models) == EXPECTED
    assert not (tmp_path / "unused").exists()
    widths = {model.kind: (model.width, model.vectors) for model in found}
    assert (widths["voice"], widths["index"]) == ((seeded.feature_width("v2", tiny=True), 0), (64, 120))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_finds_models_in_a_zip(models: Path, tmp_path: Path, compression: int) -> None:
    packed = tmp_path / "voice.zip"
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for file in sorted(models.rglob("*")):
            archive.write(file, file.relative_to(models))
    assert kinds(find_models(packed, tmp_path / "out"), tmp_path / "out") == EXPECTED


def test_a_checkpoint_is_a_model_and_no_archive(models: Path, tmp_path: Path) -> None:
    (found,) = find_models(models / "Ada_e200_s9000.pth", tmp_path / "unused")
    assert found.kind == "voice"
    (cut := tmp_path / "cut.pth").write_bytes((models / "Ada_e200_s9000.pth").read_bytes()[:-100])
    (found,) = find_models(cut, tmp_path / "unused")
    assert found.problem is not None
    assert found.problem.code is Code.TRUNCATED_FILE


def test_a_hostile_checkpoint_is_unknown_with_its_reason(tmp_path: Path) -> None:
    save_zip(tmp_path / "v.pth", {"weight": Call(Global("os", "system"), ("echo",)), "config": []})
    (found,) = find_models(tmp_path / "v.pth", tmp_path / "unused")
    assert found.kind == "unknown"
    assert found.problem is not None
    assert found.problem.code is Code.UNSAFE_PICKLE


def refusal(path: Path, folder: Path) -> RvcdError:
    with pytest.raises(RvcdError) as caught:
        find_models(path, folder)
    assert not folder.exists() or not any(folder.iterdir())
    return caught.value


@pytest.mark.parametrize(
    "name", ["../escape.pth", "/abs.pth", "a/../../b.pth", "C:\\x.pth", "..\\x.pth", "a\\..\\..\\b"]
)
def test_nothing_leaves_the_folder(tmp_path: Path, name: str) -> None:
    packed = tmp_path / "bad.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("fine.txt", "fine")
        archive.writestr(zipfile.ZipInfo(name), "escape")
    assert refusal(packed, tmp_path / "in" / "out").code is Code.UNSAFE_ARCHIVE


def test_links_bombs_and_duplicates_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("voice.pth")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "link" in refusal(tmp_path / "link.zip", tmp_path / "out").sentence
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.pth", bytes(65 << 20))
    assert refusal(tmp_path / "bomb.zip", tmp_path / "out").code is Code.UNSAFE_ARCHIVE
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(10_001):
            archive.writestr(str(number), b"")
    assert refusal(tmp_path / "many.zip", tmp_path / "out").code is Code.UNSAFE_ARCHIVE
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("./a", b"2")
    with pytest.raises(RvcdError, match="twice"):
        find_models(tmp_path / "twice.zip", tmp_path / "out")


def test_a_cut_or_damaged_archive_is_refused(models: Path, tmp_path: Path) -> None:
    packed = tmp_path / "voice.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(models / "Ada_e200_s9000.pth", "Ada.pth")
    whole = packed.read_bytes()
    packed.write_bytes(whole[:-30])
    assert refusal(packed, tmp_path / "out").code is Code.TRUNCATED_FILE
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    packed.write_bytes(damaged)
    with pytest.raises(RvcdError) as caught:
        find_models(packed, tmp_path / "out")
    assert caught.value.code is Code.TRUNCATED_FILE


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("Ada_e200_s9000.pth", "ada"),
        ("added_IVF256_Flat_nprobe_1_Ada_v2.index", "ada"),
        ("added_IVF256_Flat_nprobe_1_Ada Lovelace_v1_spkid3.index", "adalovelace"),
        ("Ada_added_IVF10_Flat_nprobe_1.index", "ada"),
        ("Ada-Lovelace.index", "adalovelace"),
    ],
)
def test_bare_names(name: str, bare: str) -> None:
    assert bare_name(Path(name)) == bare


def voice(path: str, width: int = 768) -> FoundModel:
    return FoundModel(Path(path), "voice", width)


def index(path: str, width: int = 768, vectors: int = 9) -> FoundModel:
    return FoundModel(Path(path), "index", width, vectors)


ADA, BOB = voice("a/ada_e9_s1.pth"), voice("b/bob.pth")


@pytest.mark.parametrize(
    ("found", "pairs"),
    [
        ([ADA, index("a/ada.index")], ["a/ada.index"]),
        ([ADA, index("a/unlike.index")], ["a/unlike.index"]),
        ([ADA, index("elsewhere/unlike.index")], ["elsewhere/unlike.index"]),
        ([ADA, index("a/ada.index", width=256)], [None]),
        ([ADA, index("a/trained_ada.index", vectors=0)], [None]),
        ([ADA, index("a/unlike.index"), index("b/added_IVF1_Flat_Ada_v2.index")], ["b/added_IVF1_Flat_Ada_v2.index"]),
        ([ADA, BOB, index("x/bob.index"), index("x/ada.index")], ["x/ada.index", "x/bob.index"]),
        ([ADA, BOB, index("a/1.index"), index("b/2.index")], ["a/1.index", "b/2.index"]),
        ([ADA, BOB, index("x/1.index")], [None, None]),
        ([ADA, index("a/1.index"), index("a/2.index")], [None]),
        ([ADA], [None]),
    ],
)  # fmt: skip
def test_pairs_voices_with_indexes(found: list[FoundModel], pairs: list[str | None]) -> None:
    assert [pair and pair.path.as_posix() for _, pair in pair_voices(found)] == pairs


def test_an_index_is_found_by_its_content_alone(tmp_path: Path) -> None:
    path = seeded.retrieval_index(tmp_path / "noise.txt", vectors=50, width=4)
    assert find_models(path, tmp_path / "unused")[0].kind == "index"
    np.save(tmp_path / "total_fea.npy", np.zeros(3))
    assert find_models(tmp_path / "total_fea.npy", tmp_path / "unused")[0].kind == "unknown"
