import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rvcd import paths
from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine import weights
from rvcd.mlx_engine.configs import Kind, RmvpeConfig, VoiceConfig
from rvcd.voices import find_model, find_voice, list_voices

VOICE = VoiceConfig(
    version="v2",
    uses_f0=True,
    sample_rate=40_000,
    feature_width=768,
    inter_channels=8,
    hidden_channels=8,
    filter_channels=8,
    heads=2,
    layers=1,
    kernel=3,
    attention_window=10,
    resblock="1",
    resblock_kernels=(3,),
    resblock_dilations=((1, 3, 5),),
    upsample_rates=(10, 10, 2, 2),
    upsample_kernels=(16, 16, 4, 4),
    upsample_channels=16,
    speakers=3,
    speaker_channels=4,
)
PITCH = RmvpeConfig(
    mel_bins=128,
    level_channels=(4, 8),
    level_blocks=1,
    bottleneck_groups=1,
    head_channels=3,
    gru_hidden=8,
    pitch_bins=360,
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RVCD_HOME", str(tmp_path))
    return tmp_path


def install(name: str, kind: Kind = "voice", *, folder: Path | None = None, key: str = "0" * 12, age: int = 0) -> Path:
    """A converted file with a real header; its weights do not matter here."""
    folder = folder or (paths.voices_dir() if kind == "voice" else paths.models_dir())
    path = folder / f"{name.replace('/', '_')}.{key}.safetensors"
    tensors = {"weight": np.zeros(3, np.float32)}
    if kind == "voice":
        tensors["index.vectors"] = np.zeros((5, 768), np.float32)
    config = VOICE if kind == "voice" else PITCH
    weights.save(path, tensors, weights.ModelCard(kind, name, key, config, {"sources": {}}))
    os.utime(path, (1_700_000_000 - age,) * 2)
    return path


def refusal(name: str) -> RvcdError:
    with pytest.raises(RvcdError) as caught:
        find_voice(name)
    return caught.value


def test_voices_are_listed_by_name_with_their_headers() -> None:
    for name in ("zoe", "Anna", "mia"):
        install(name)
    entries = list_voices()
    assert [entry.name for entry in entries] == ["Anna", "mia", "zoe"]
    assert all(entry.config == VOICE and entry.problem is None for entry in entries)
    assert entries[0].header is not None
    assert entries[0].header.index_vectors == 5


def test_without_a_folder_there_are_no_voices_and_none_is_made(home: Path) -> None:
    assert list_voices() == []
    assert "rvcd import" in refusal("Anna").sentence
    assert not list(home.iterdir())


def test_drafts_and_foreign_files_are_not_voices() -> None:
    install("Anna")
    (paths.voices_dir() / ".import-x.safetensors").write_bytes(b"half")
    (paths.voices_dir() / "notes.txt").write_bytes(b"")
    assert [entry.name for entry in list_voices()] == ["Anna"]


def test_a_name_is_found_exactly_then_in_any_case_then_by_its_beginning() -> None:
    lower, upper, longer = install("anna"), install("Anna", key="1" * 12), install("annabel")
    install("annabella")
    other = install("Zoë/live")
    assert find_voice("anna") == lower
    assert find_voice("Anna") == upper
    assert find_voice("ANNABEL") == longer
    assert find_voice("zo") == find_voice("ZOË") == other


def test_an_ambiguous_beginning_names_the_candidates() -> None:
    install("annabel")
    install("annika")
    error = refusal("ann")
    assert error.code == Code.UNKNOWN_VOICE
    assert "annabel, annika" in error.sentence


def test_an_unknown_voice_names_the_nearest() -> None:
    install("Anna")
    install("Marlene")
    error = refusal("Marleen")
    assert error.code == Code.UNKNOWN_VOICE
    assert "Marlene" in error.sentence
    assert "Anna" not in error.sentence
    assert "Anna, Marlene" in refusal("qqqq").sentence
    assert refusal("").code == Code.UNKNOWN_VOICE


def test_of_two_files_under_one_name_the_newest_is_taken() -> None:
    install("Anna", key="a" * 12, age=100)
    newest = install("Anna", key="b" * 12)
    install("Anna", key="c" * 12, age=200)
    assert find_voice("Anna") == newest


def header_of(content: object) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk" * 10,
        header_of([]),
        header_of({"__metadata__": {"format": "rvcd", "format_version": "1"}}),
        header_of({"__metadata__": {"format": "rvcd", "format_version": "1", "kind": "choir"}}),
        header_of({"__metadata__": {"format": "rvcd", "format_version": "999"}}),
        header_of({"__metadata__": {"format": "rvcd", "format_version": "1"}, "weight": {"data_offsets": [0, 99]}}),
    ],
)
def test_damaged_files_are_listed_with_their_problem(content: bytes) -> None:
    install("Anna")
    (paths.voices_dir() / "Mia.0123456789ab.safetensors").write_bytes(content)
    anna, mia = list_voices()
    assert anna.problem is None
    assert (mia.name, mia.header, mia.config) == ("Mia", None, None)
    assert mia.problem is not None
    assert refusal("Mia").sentence == mia.problem.sentence
    assert find_voice("Anna") == anna.path


def test_a_base_model_among_the_voices_is_reported() -> None:
    install("rmvpe", "pitch", folder=paths.voices_dir())
    [entry] = list_voices()
    assert entry.problem is not None
    assert "pitch" in entry.problem.sentence


def test_base_models_are_found_by_kind_and_the_newest_wins() -> None:
    install("old", "pitch", age=50)
    newest = install("new", "pitch")
    assert find_model("pitch") == newest
    with pytest.raises(RvcdError) as caught:
        find_model("content-encoder")
    assert caught.value.code == Code.MISSING_MODEL
    for remedy in ("rvcd fetch", "rvcd import FILE", "--content-encoder"):
        assert remedy in caught.value.sentence


def test_a_damaged_base_model_is_named() -> None:
    paths.models_dir().mkdir(parents=True)
    (paths.models_dir() / "rmvpe.0.safetensors").write_bytes(b"half")
    with pytest.raises(RvcdError, match=r"rmvpe\.0\.safetensors"):
        find_model("pitch")


def test_the_library_never_loads_mlx() -> None:
    install("Anna")
    program = "import sys, rvcd.voices as v; v.list_voices(); v.find_voice('Anna'); print('mlx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
