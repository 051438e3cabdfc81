"""Loading, refusing, and the parts of the stage API that parity tests do not reach."""

import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine import Engine, import_checkpoint, weights
from rvcd.mlx_engine.noise import frame_noise
from rvcd.mlx_engine.voice import Voice
from rvcd.settings import Settings
from tests.support import seeded


def test_a_checkpoint_is_converted_once(models_folder: Path, tmp_path: Path) -> None:
    source, index = models_folder / "voice.pth", models_folder / "voice.index"
    first = import_checkpoint(source, index=index, directory=tmp_path)
    assert first.fresh
    stamp = first.path.stat().st_mtime_ns
    again = import_checkpoint(source, index=index, directory=tmp_path)
    assert (again.fresh, again.path, again.path.stat().st_mtime_ns) == (False, first.path, stamp)
    header = weights.read_header(first.path)
    assert (header.kind, header.name, header.index_vectors) == ("voice", "voice", 500)
    assert header.provenance["sources"] == {p.name: weights.sha256_of(p) for p in (source, index)}


def test_another_index_makes_another_file_that_replaces_the_first(models_folder: Path, tmp_path: Path) -> None:
    source = models_folder / "voice.pth"
    bare = import_checkpoint(source, directory=tmp_path)
    indexed = import_checkpoint(source, index=models_folder / "voice.index", directory=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [indexed.path.name]
    assert bare.path != indexed.path


def test_a_named_voice_replaces_only_its_namesake(models_folder: Path, tmp_path: Path) -> None:
    source = models_folder / "voice.pth"
    for name in ("Anna", "Anna (live)", "Anna"):
        import_checkpoint(source, directory=tmp_path, name=name)
    assert sorted(weights.read_header(p).name for p in tmp_path.iterdir()) == ["Anna", "Anna (live)"]


def test_a_converted_file_sounds_like_its_original(
    engine: Engine, voice: Voice, models_folder: Path, tmp_path: Path, stem_16k: np.ndarray
) -> None:
    imported = import_checkpoint(models_folder / "voice.pth", index=models_folder / "voice.index", directory=tmp_path)
    for search in ("exact", "ivf"):
        a, b = (
            engine.convert(stem_16k, 16000, v, Settings(search=search))
            for v in (voice, engine.load_voice(imported.path))
        )
        np.testing.assert_array_equal(a, b)


def test_models_are_refused_in_each_others_place(engine: Engine, models_folder: Path) -> None:
    for load in (
        lambda: Engine(models_folder / "rmvpe.pt"),
        lambda: Engine(models_folder / "content", models_folder / "voice.pth"),
        lambda: engine.load_voice(models_folder / "rmvpe.pt"),
    ):
        with pytest.raises(RvcdError) as caught:
            load()
        assert caught.value.code == Code.NOT_A_CHECKPOINT


def test_a_voice_of_another_content_encoder_is_refused(tmp_path: Path) -> None:
    """This encoder has neither nine layers for v1 nor the standard width."""
    engine = Engine(seeded.content_encoder(tmp_path / "content", tiny=True, layers=2))
    for version, tiny in (("v1", True), ("v2", False)):
        path = seeded.voice(tmp_path / f"{version}.pth", version=version, tiny=tiny)
        with pytest.raises(RvcdError) as caught:
            engine.load_voice(path)
        assert caught.value.code == Code.WRONG_ENCODER


def test_an_index_of_another_width_is_refused(engine: Engine, models_folder: Path, tmp_path: Path) -> None:
    index = seeded.retrieval_index(tmp_path / "other.index", vectors=100, width=48, seed=0)
    for use in (
        lambda: engine.load_voice(models_folder / "voice.pth", index),
        lambda: import_checkpoint(models_folder / "voice.pth", index=index, directory=tmp_path / "voices"),
    ):
        with pytest.raises(RvcdError) as caught:
            use()
        assert caught.value.code == Code.INDEX_WIDTH
    assert not list((tmp_path / "voices").glob("*"))


def test_without_a_pitch_model_yin_still_works(models_folder: Path, stem_16k: np.ndarray) -> None:
    engine = Engine(models_folder / "content")
    voice = engine.load_voice(models_folder / "voice.pth")
    with pytest.raises(RvcdError) as caught:
        engine.convert(stem_16k, 16000, voice, Settings())
    assert caught.value.code == Code.MISSING_MODEL
    assert engine.convert(stem_16k, 16000, voice, Settings(f0_method="yin")).any()


def test_frames_of_the_stage_api(engine: Engine, voice: Voice, stem_16k: np.ndarray) -> None:
    features = engine.content_features(stem_16k)
    assert features.shape == ((len(stem_16k) - 400) // 320 + 1, seeded.feature_width("v2", tiny=True))
    f0 = engine.f0(stem_16k)
    assert f0.shape == (1 + len(stem_16k) // 160,)
    assert {f0.dtype, features.dtype} == {np.dtype(np.float32)}
    doubled = np.repeat(features, 2, axis=0)
    sound = engine.synthesize(voice, doubled, f0[: len(doubled)])
    assert sound.shape == (len(doubled) * voice.config.samples_per_frame,)
    np.testing.assert_array_equal(sound, engine.synthesize(voice, doubled, f0[: len(doubled)]))
    noisy = engine.synthesize(voice, doubled, f0[: len(doubled)], noise_scale=0.66666, source_noise=1.0)
    assert not np.array_equal(sound, noisy)
    for scales in ({"noise_scale": 0.66666}, {"source_noise": 1.0}):
        assert not np.array_equal(sound, engine.synthesize(voice, doubled, f0[: len(doubled)], **scales))


def test_long_stems_are_pitched_in_windows_that_change_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    stem = seeded.sung_stem(6.0, 16000, seed=6)
    whole = engine.salience(stem)
    monkeypatch.setattr("rvcd.mlx_engine.rmvpe._WINDOW_FRAMES", 400)
    np.testing.assert_allclose(engine.salience(stem), whole, atol=1e-5)


def test_a_frames_sound_does_not_depend_on_how_many_are_decoded(engine: Engine, voice: Voice) -> None:
    """The vocoder is asked for a few frames and their reach; the rest of the window is not synthesised."""
    from rvcd.mlx_engine.stages import Decode, Noise

    rng = np.random.default_rng(0)
    features = mx.array(rng.standard_normal((200, 64)).astype(np.float32))
    f0 = rng.uniform(100, 300, 200)
    stages, noise = engine._stages, Noise(seed=1, latent=0.66666, source=1.0)
    whole = np.array(stages.synthesize(voice, features, f0, 0, noise))
    part = np.array(stages.synthesize(voice, features, f0, 0, noise, decode=Decode(0, 70, 110)))
    np.testing.assert_allclose(part, whole[70 * 400 : 110 * 400], atol=1e-5)


def test_noise_belongs_to_its_frame() -> None:
    whole = np.array(frame_noise("latent", 5, -150, 350, 4))
    np.testing.assert_array_equal(frame_noise("latent", 5, 37, 264, 4), whole[187:414])
    assert not np.array_equal(frame_noise("source", 5, 37, 264, 4), whole[187:414])
    assert abs(float(whole.std()) - 1.0) < 0.05


def test_a_converted_file_can_be_imported_elsewhere(models_folder: Path, tmp_path: Path) -> None:
    """Whole, with its index and provenance, and under another name if wanted."""
    first = import_checkpoint(
        models_folder / "voice.pth", index=models_folder / "voice.index", directory=tmp_path / "here"
    )
    second = import_checkpoint(first.path, directory=tmp_path / "there", name="Anna")
    assert (second.kind, second.name, second.fresh) == ("voice", "Anna", True)
    a, b = weights.read_header(first.path), weights.read_header(second.path)
    assert (a.key, a.config, a.provenance, a.index_vectors) == (b.key, b.config, b.provenance, b.index_vectors)
    assert not import_checkpoint(first.path, directory=tmp_path / "there", name="Anna").fresh


def test_a_damaged_conversion_is_made_again(models_folder: Path, tmp_path: Path) -> None:
    first = import_checkpoint(models_folder / "voice.pth", directory=tmp_path)
    first.path.write_bytes(first.path.read_bytes()[:-1000])
    assert import_checkpoint(models_folder / "voice.pth", directory=tmp_path).fresh
    assert not import_checkpoint(models_folder / "voice.pth", directory=tmp_path).fresh


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda data: data[:-1000], Code.TRUNCATED_FILE),
        (lambda data: data[:20], Code.NOT_A_CHECKPOINT),
        (lambda data: data.replace(b'"format_version":"1"', b'"format_version":"9"'), Code.NOT_A_CHECKPOINT),
        (lambda data: data.replace(b'"kind":"voice"', b'"kind":"vocie"'), Code.NOT_A_CHECKPOINT),
        (lambda data: data.replace(b"enc_p.proj.bias", b"enc_p.porj.bias"), Code.WRONG_SHAPE),
    ],
)
def test_a_damaged_converted_file_is_refused(
    engine: Engine, models_folder: Path, tmp_path: Path, damage: object, code: Code
) -> None:
    path = import_checkpoint(models_folder / "voice.pth", directory=tmp_path).path
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RvcdError) as caught:
        engine.load_voice(path)
    assert caught.value.code == code


def test_importing_a_voice_alone_again_keeps_its_index(models_folder: Path, tmp_path: Path) -> None:
    source = models_folder / "voice.pth"
    indexed = import_checkpoint(source, index=models_folder / "voice.index", directory=tmp_path)
    again = import_checkpoint(source, directory=tmp_path)
    assert (again.path, again.fresh) == (indexed.path, False)


@pytest.mark.parametrize("header", [b"[1,2]", b'{"a":{}}', b'{"a":3}', b"[" * 60000 + b"]" * 60000])
def test_a_senseless_header_is_no_checkpoint(engine: Engine, tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(RvcdError) as caught:
        engine.load_voice(path)
    assert caught.value.code == Code.NOT_A_CHECKPOINT


@pytest.mark.parametrize(
    ("samples", "code"),
    [
        (np.zeros(0), Code.EMPTY_STEM),
        (np.zeros(399), Code.EMPTY_STEM),
        (np.zeros((1000, 2)), Code.EMPTY_STEM),
        (np.full(1000, np.nan), Code.NOT_FINITE),
    ],
)
def test_stages_refuse_what_they_cannot_work_on(engine: Engine, voice: Voice, samples: np.ndarray, code: Code) -> None:
    for stage in (
        engine.content_features,
        engine.f0,
        engine.salience,
        lambda x: engine.convert_reference(x, voice, Settings()),
    ):
        with pytest.raises(RvcdError) as caught:
            stage(samples)
        assert caught.value.code == code
    with pytest.raises(RvcdError) as caught:
        engine.content_features(np.zeros(1000), version="v3")
    assert caught.value.code == Code.UNKNOWN_VERSION
