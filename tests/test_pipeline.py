"""What a conversion promises about length, place, level, silence, channels and repeatability."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine import Engine, pipeline
from rvcd.mlx_engine.dsp import resample
from rvcd.mlx_engine.voice import Voice
from rvcd.settings import Settings
from tests.support import seeded

PLAIN = Settings(f0_method="yin", index_rate=0.0)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000, 88200, 96000, 176400, 192000])
def test_every_rate_keeps_its_length(engine: Engine, voice: Voice, rate: int) -> None:
    stem = seeded.sung_stem(0.7003, rate, seed=1)
    converted = engine.convert(stem, rate, voice, PLAIN)
    assert converted.shape == stem.shape
    assert converted.dtype == np.float32
    assert np.abs(converted).max() > 0.001


@pytest.mark.parametrize("samples", [1, 2, 18, 19, 159, 160, 161, 319, 320, 400, 1023, 4410])
def test_every_length_is_kept(engine: Engine, voice: Voice, samples: int) -> None:
    stem = (0.3 * np.sin(np.arange(samples) / 20 + 1)).astype(np.float32)
    converted = engine.convert(stem, 44100, voice, PLAIN)
    assert converted.shape == (samples,)
    assert np.isfinite(converted).all()


@pytest.fixture
def local(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, Voice]:
    """An engine whose networks see only what is near, that knows the pitch, and that draws no noise.

    What a pulse changes then lies around the pulse, and the reference and the pipeline differ in timing alone.
    """
    engine = Engine(models_folder / "content", models_folder / "rmvpe.pt")
    voice = engine.load_voice(models_folder / "voice.pth")
    encoder = engine._stages._encoder
    encoder.position.taps = encoder.position.taps * 0
    for layer in encoder.layers:
        layer.attention.out_proj.weight = layer.attention.out_proj.weight * 0
    for attention in voice.synthesizer.enc_p.attn_layers:
        attention.conv_o.weight = attention.conv_o.weight * 0
    monkeypatch.setattr(engine._stages, "f0", lambda samples, *_: np.full(1 + len(samples) // 160, 150.0))
    monkeypatch.setattr(pipeline, "_LATENT_NOISE", 0.0)
    monkeypatch.setattr(pipeline, "_SOURCE_NOISE", 0.0)
    return engine, voice


ONSETS = np.arange(0.7, 3.3, 0.2503)
SECONDS = 4.0


def voiced_pulses(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """A voiced carrier, and a train of pulses on it whose period is no multiple of any frame."""
    at = np.arange(round(SECONDS * rate)) / rate
    carrier = sum(0.2 * np.sin(2 * np.pi * 150 * k * at) / k for k in range(1, 8))
    pulses = sum(0.4 * np.exp(-(((at - onset) / 0.001) ** 2)) * np.sin(5000 * (at - onset) + 1) for onset in ONSETS)
    return carrier.astype(np.float32), pulses.astype(np.float32)


def centres(with_pulses: np.ndarray, without: np.ndarray, rate: int) -> np.ndarray:
    """Where each pulse's change of the sound has its centre, in seconds."""
    energy, at = (with_pulses - without) ** 2, np.arange(len(without)) / rate
    around = [np.abs(at - onset) < 0.1 for onset in ONSETS]
    return np.array([(energy[near] * at[near]).sum() / energy[near].sum() for near in around])


def test_onsets_come_out_when_the_reference_puts_them(local: tuple[Engine, Voice]) -> None:
    """A pulse train on a voiced signal: every onset within 1 ms of the timing that voices are trained with."""
    engine, voice = local
    settings = replace(PLAIN, loudness=0.0)
    carrier, pulses = voiced_pulses(16000)
    f0 = np.full(len(carrier) // 160 + 201, 150.0)
    base, base_with = (engine.convert_reference(x, voice, settings, f0=f0) for x in (carrier, carrier + pulses))
    expected = centres(base_with, base, voice.config.sample_rate)
    for rate in (44100, 48000, 96000):
        carrier, pulses = voiced_pulses(rate)
        plain, with_pulses = (engine.convert(x, rate, voice, settings) for x in (carrier, carrier + pulses))
        assert np.abs(centres(with_pulses, plain, rate) - expected).max() < 0.001
        at_rate = resample(base_with, voice.config.sample_rate, rate)
        inner = slice(rate // 2, -rate // 2)
        error = (at_rate[: len(with_pulses)] - with_pulses[: len(at_rate)])[inner]
        assert 10 * np.log10(np.mean(at_rate[inner] ** 2) / np.mean(error**2)) > 40


def test_cutting_a_stem_does_not_move_or_break_it(
    engine: Engine, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks with real context sound like one pass; where they meet nothing clicks."""
    stem = np.concatenate([seeded.sung_stem(2.0, 16000, seed=s) + 1e-4 for s in range(4)])
    whole = engine.convert(stem, 16000, voice, PLAIN)
    monkeypatch.setattr("rvcd.mlx_engine.chunks.LONGEST_FRAMES", 300)
    monkeypatch.setattr("rvcd.mlx_engine.chunks._QUERY_FRAMES", 100)
    cut = engine.convert(stem, 16000, voice, PLAIN)
    assert not np.array_equal(cut, whole)
    lags = np.arange(-40, 41)
    likeness = [np.dot(cut[100:-100], np.roll(whole, lag)[100:-100]) for lag in lags]
    assert lags[int(np.argmax(likeness))] == 0
    assert np.corrcoef(cut, whole)[0, 1] > 0.8
    steps = [np.abs(np.diff(x)).max() for x in (cut, whole)]
    assert steps[0] < 1.1 * steps[1]


def test_same_seed_same_bytes(engine: Engine, voice: Voice, stem_16k: np.ndarray) -> None:
    first, second = (engine.convert(stem_16k, 16000, voice, Settings(seed=9)) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert engine.convert(stem_16k, 16000, voice, Settings(seed=10)).tobytes() != first.tobytes()


def test_digital_silence_stays_digital_silence(engine: Engine, voice: Voice) -> None:
    stem = seeded.sung_stem(4.0, 44100, seed=3) + np.float32(1e-4)
    stem[44100:88200] = 0.0
    stem[-2000:] = 0.0
    converted = engine.convert(stem, 44100, voice, PLAIN)
    assert not converted[44100:88200].any()
    assert not np.signbit(converted[44100:88200]).any()
    assert not converted[-2000:].any()
    assert np.abs(converted[20000:40000]).max() > 0.001
    assert np.abs(converted[100000:120000]).max() > 0.001
    assert not engine.convert(np.zeros((5000, 2), dtype=np.float32), 48000, voice, PLAIN).any()


def test_level_is_not_normalised(engine: Engine, voice: Voice) -> None:
    """With its loudness followed, a stem keeps its level: quiet, ordinary, and far over full scale."""
    settings = replace(PLAIN, loudness=1.0)
    carrier, _ = voiced_pulses(44100)
    for gain in (0.01, 1.0, 30.0):
        converted = engine.convert(carrier * np.float32(gain), 44100, voice, settings)
        assert np.sqrt(np.mean(converted**2) / np.mean((carrier * gain) ** 2)) == pytest.approx(1.0, rel=0.1)


def test_dual_mono_is_converted_once_and_stays_dual_mono(engine: Engine, voice: Voice, stem_16k: np.ndarray) -> None:
    mono = engine.convert(stem_16k, 16000, voice, PLAIN)
    for stereo in ("mid", "per-channel"):
        stages: list[str] = []
        both = engine.convert(
            np.stack([stem_16k, stem_16k], axis=1),
            16000,
            voice,
            replace(PLAIN, stereo=stereo),
            lambda stage, _, stages=stages: stages.append(stage),
        )
        np.testing.assert_array_equal(both[:, 0], mono)
        np.testing.assert_array_equal(both[:, 1], mono)
        assert stages.count("pitch") == 1


def test_true_stereo_by_its_middle_or_channel_by_channel(engine: Engine, voice: Voice, stem_16k: np.ndarray) -> None:
    left, right = stem_16k + np.float32(1e-3), seeded.sung_stem(3.0, 16000, seed=8) + np.float32(1e-3)
    stem = np.stack([left, right, np.zeros_like(left)], axis=1)
    middle = engine.convert(stem, 16000, voice, PLAIN)
    mono = engine.convert(np.stack([left, right], axis=1).mean(axis=1, dtype=np.float64), 16000, voice, PLAIN)
    level = [np.sqrt(np.mean(x.astype(np.float64) ** 2)) for x in (left, right, (left + right) / 2)]
    np.testing.assert_allclose(middle[:, 0], mono * level[0] / level[2], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(middle[:, 1], mono * level[1] / level[2], rtol=1e-4, atol=1e-7)
    each = engine.convert(stem, 16000, voice, replace(PLAIN, stereo="per-channel"))
    np.testing.assert_array_equal(each[:, 0], engine.convert(left, 16000, voice, PLAIN))
    np.testing.assert_array_equal(each[:, 1], engine.convert(right, 16000, voice, PLAIN))
    assert not middle[:, 2].any()
    assert not each[:, 2].any()


def test_a_panned_voice_keeps_its_place(engine: Engine, voice: Voice) -> None:
    """A hard-panned bounce has only dither on its other side; channels that cancel have no middle."""
    carrier, _ = voiced_pulses(44100)
    panned = np.stack([carrier, 1e-6 * carrier], axis=1).astype(np.float32)
    converted = engine.convert(panned, 44100, voice, replace(PLAIN, loudness=1.0))
    levels = np.sqrt(np.mean(converted.astype(np.float64) ** 2, axis=0))
    assert levels[0] == pytest.approx(np.sqrt(np.mean(carrier**2)), rel=0.1)
    assert levels[1] < 1e-5
    with pytest.raises(RvcdError) as caught:
        engine.convert(np.stack([carrier, -carrier], axis=1), 44100, voice, PLAIN)
    assert caught.value.code == Code.BAD_SETTING


def test_the_last_samples_of_a_high_rate_are_not_lost(engine: Engine, voice: Voice) -> None:
    stem = (0.3 * np.sin(np.arange(19205) / 30 + 1)).astype(np.float32)
    assert np.abs(engine.convert(stem, 192000, voice, PLAIN)[-4:]).max() > 0


def test_an_engine_works_in_whichever_thread_made_it(models_folder: Path, stem_16k: np.ndarray, engine: Engine) -> None:
    """Streams are not shared between threads, though another engine computed before."""
    results: list[np.ndarray] = []

    def work() -> None:
        own = Engine(models_folder / "content")
        results.append(own.convert(stem_16k, 16000, own.load_voice(models_folder / "voice.pth"), PLAIN))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0].any()


def test_settings_are_heard(engine: Engine, voice: Voice, stem_16k: np.ndarray) -> None:
    """Each setting changes the sound; protection does so only where something was retrieved."""
    base = Settings(f0_method="yin")
    reference = engine.convert(stem_16k, 16000, voice, base)
    for change in (
        {"semitones": 3.5},
        {"index_rate": 0.2},
        {"protect": 0.0},
        {"loudness": 0.1},
        {"speaker_id": 2},
        {"f0_method": "rmvpe"},
        {"fill_unvoiced": True},
        {"search": "ivf"},
    ):
        assert not np.array_equal(engine.convert(stem_16k, 16000, voice, replace(base, **change)), reference), change
    bare = replace(base, index_rate=0.0)
    np.testing.assert_array_equal(
        engine.convert(stem_16k, 16000, voice, bare), engine.convert(stem_16k, 16000, voice, replace(bare, protect=0.0))
    )


def test_progress_only_grows_and_ends_at_one(engine: Engine, voice: Voice, stem_16k: np.ndarray) -> None:
    heard: list[tuple[str, float]] = []
    engine.convert(stem_16k, 16000, voice, Settings(), lambda *event: heard.append(event))
    fractions = [fraction for _, fraction in heard]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert list(dict.fromkeys(stage for stage, _ in heard)) == ["analysis", "pitch", "voice", "output"]


@pytest.mark.parametrize(
    ("stem", "rate", "code"),
    [
        (np.zeros(0, dtype=np.float32), 44100, Code.EMPTY_STEM),
        (np.zeros((0, 2), dtype=np.float32), 44100, Code.EMPTY_STEM),
        (np.ones(100, dtype=np.float32), 0, Code.BAD_SAMPLE_RATE),
        (np.ones(100, dtype=np.float32), 400000, Code.BAD_SAMPLE_RATE),
        (np.array([0.0, np.nan], dtype=np.float32), 44100, Code.NOT_FINITE),
        (np.array([0.0, np.inf], dtype=np.float32), 44100, Code.NOT_FINITE),
    ],
)
def test_what_cannot_be_converted_is_refused(
    engine: Engine, voice: Voice, stem: np.ndarray, rate: int, code: Code
) -> None:
    with pytest.raises(RvcdError) as caught:
        engine.convert(stem, rate, voice, PLAIN)
    assert caught.value.code == code


def test_a_speaker_that_is_not_there_is_refused(engine: Engine, voice: Voice, stem_16k: np.ndarray) -> None:
    for convert in (
        lambda s: engine.convert(stem_16k, 16000, voice, s),
        lambda s: engine.convert_reference(stem_16k, voice, s),
    ):
        with pytest.raises(RvcdError) as caught:
            convert(Settings(speaker_id=3))
        assert caught.value.code == Code.BAD_SPEAKER


@pytest.mark.parametrize(
    ("version", "sample_rate", "f0"),
    [("v1", 32000, True), ("v1", 48000, False), ("v2", 24000, True), ("v2", 44100, True), ("v2", 48000, True)],
)
def test_every_geometry_converts(
    tmp_path: Path, version: str, sample_rate: int, f0: bool, stem_16k: np.ndarray, models_folder: Path
) -> None:
    """v1 reads layer 9, so its content encoder needs that many."""
    content = seeded.content_encoder(tmp_path / "content", seed=1, tiny=True, layers=9)
    engine = Engine(content, models_folder / "rmvpe.pt")
    path = seeded.voice(tmp_path / "v.pth", version=version, sample_rate=sample_rate, f0=f0, tiny=True)
    converted = engine.convert(stem_16k, 44100, engine.load_voice(path), Settings())
    assert converted.shape == stem_16k.shape
    assert np.abs(converted).max() > 0.001
