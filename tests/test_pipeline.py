"""What a conversion promises about length, place, level, silence, channels and repeatability."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine import Engine
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


def response(engine: Engine, voice: Voice, carrier: np.ndarray, pulse: np.ndarray, rate: int | None) -> np.ndarray:
    """Energy of what a pulse changes, per sample; by the reference's own timing where no rate is given."""
    settings = replace(PLAIN, loudness=0.0, protect=0.5)
    if rate is None:
        f0 = np.full(len(carrier) // 160 + 400, 150.0)
        with_pulse, without = (engine.convert_reference(x, voice, settings, f0=f0) for x in (carrier + pulse, carrier))
    else:
        with_pulse, without = (engine.convert(x, rate, voice, settings) for x in (carrier + pulse, carrier))
    return (with_pulse - without) ** 2


@pytest.mark.parametrize("rate", [16000, 44100, 96000])
def test_pulses_come_out_when_the_reference_puts_them(engine: Engine, voice: Voice, rate: int) -> None:
    """Pulses on a voiced carrier: the mean onset error against the reference's timing is below 1 ms."""
    seconds, onsets = 4.0, np.arange(0.7, 3.3, 0.2503)

    def signals(at_rate: int) -> tuple[np.ndarray, np.ndarray]:
        at = np.arange(round(seconds * at_rate)) / at_rate
        carrier = sum(0.2 * np.sin(2 * np.pi * 150 * k * at) / k for k in range(1, 8))
        pulses = sum(0.4 * np.exp(-(((at - onset) / 0.001) ** 2)) * np.sin(7000 * (at - onset) + 1) for onset in onsets)
        return carrier.astype(np.float32), pulses.astype(np.float32)

    def centres(energy: np.ndarray, at_rate: int) -> np.ndarray:
        at = np.arange(len(energy)) / at_rate
        around = [np.abs(at - onset) < 0.1 for onset in onsets]
        return np.array([(energy[near] * at[near]).sum() / energy[near].sum() for near in around])

    ours = centres(response(engine, voice, *signals(rate), rate), rate)
    reference = centres(response(engine, voice, *signals(16000), None), voice.config.sample_rate)
    assert abs(np.mean(ours - reference)) < 0.001
    assert np.abs(ours - reference).max() < 0.004


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
    assert np.corrcoef(cut, whole)[0, 1] > 0.98
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
    assert not converted[-2000:].any()
    assert np.abs(converted[20000:40000]).max() > 0.001
    assert np.abs(converted[100000:120000]).max() > 0.001
    assert not engine.convert(np.zeros((5000, 2), dtype=np.float32), 48000, voice, PLAIN).any()


def test_level_is_not_normalised(engine: Engine, voice: Voice, stem_16k: np.ndarray) -> None:
    """With its loudness followed, a stem keeps its level: quiet, ordinary, and far over full scale."""
    settings = replace(PLAIN, loudness=1.0)
    for gain in (0.01, 1.0, 30.0):
        converted = engine.convert(stem_16k * np.float32(gain), 16000, voice, settings)
        ratio = np.sqrt(np.mean(converted**2) / np.mean((stem_16k * gain) ** 2))
        assert 0.7 < ratio < 1.4


def test_dual_mono_is_converted_once_and_stays_dual_mono(engine: Engine, voice: Voice, stem_16k: np.ndarray) -> None:
    mono = engine.convert(stem_16k, 16000, voice, PLAIN)
    for stereo in ("mid", "per-channel"):
        stages: list[str] = []
        both = engine.convert(
            np.stack([stem_16k, stem_16k], axis=1),
            16000,
            voice,
            replace(PLAIN, stereo=stereo),
            lambda stage, _: stages.append(stage),
        )
        np.testing.assert_array_equal(both[:, 0], mono)
        np.testing.assert_array_equal(both[:, 1], mono)
        assert stages.count("pitch") == 1


def test_true_stereo_by_its_middle_or_channel_by_channel(engine: Engine, voice: Voice, stem_16k: np.ndarray) -> None:
    left, right = stem_16k, seeded.sung_stem(3.0, 16000, seed=8)
    stem = np.stack([left, right, np.zeros_like(left)], axis=1)
    middle = engine.convert(stem, 16000, voice, PLAIN)
    sounding = (left != 0) & (right != 0)
    np.testing.assert_allclose(middle[sounding, 0], middle[sounding, 1], atol=1e-3)
    each = engine.convert(stem, 16000, voice, replace(PLAIN, stereo="per-channel"))
    np.testing.assert_array_equal(each[:, 0], engine.convert(left, 16000, voice, PLAIN))
    np.testing.assert_array_equal(each[:, 1], engine.convert(right, 16000, voice, PLAIN))
    assert not middle[:, 2].any()
    assert not each[:, 2].any()


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
