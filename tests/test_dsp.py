"""Signal processing against scipy, and against what it promises."""

import numpy as np
import pytest
from scipy import signal

from rvcd.mlx_engine import dsp


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(16000 * 3).astype(np.float32)


def test_high_pass_uses_the_reference_coefficients(noise: np.ndarray) -> None:
    b = [
        0.9699606451838447,
        -4.849803225919223,
        9.699606451838447,
        -9.699606451838447,
        4.849803225919223,
        -0.9699606451838447,
    ]
    a = [1.0, -4.939001819168364, 9.757863526739543, -9.639544849413458, 4.761506797356209, -0.9408236532054606]
    np.testing.assert_allclose(dsp.high_pass(noise), signal.filtfilt(b, a, noise.astype(np.float64)), atol=1e-6)


def test_signals_too_short_to_filter_pass() -> None:
    np.testing.assert_array_equal(dsp.high_pass(np.ones(18, dtype=np.float32)), np.ones(18))


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000, 192000])
def test_resampling_has_no_delay(rate: int) -> None:
    """A pulse stays where it was, to a hundredth of a sample."""
    at = np.arange(rate) / rate
    pulse = np.exp(-(((at - 0.4321) / 0.001) ** 2)).astype(np.float32)
    out = dsp.resample(pulse, rate, 16000).astype(np.float64)
    centre = (out * np.arange(len(out))).sum() / out.sum() / 16000
    assert abs(centre - 0.4321) < 0.01 / 16000


def test_mel_filters_have_unit_area_and_the_reference_range() -> None:
    filters = dsp.mel_filters(128, 16000)
    assert filters.shape == (128, 513)
    step_hz = 16000 / 1024
    assert filters[40:].sum(axis=1) * step_hz == pytest.approx(np.ones(88), abs=0.04)
    assert filters[:, : int(30 / step_hz) + 1].sum() == 0.0


def test_log_mel_peaks_at_the_tone() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    mel = np.array(dsp.log_mel(tone, 128, 16000))
    assert mel.shape == (101, 128)
    edges = np.linspace(2595 * np.log10(1 + 30 / 700), 2595 * np.log10(1 + 8000 / 700), 130)
    assert mel[50].argmax() == np.abs(700 * (10 ** (edges[1:-1] / 2595) - 1) - 1000).argmin()


def test_loudness_is_followed_fully_partly_or_not_at_all(noise: np.ndarray) -> None:
    model = noise * np.repeat([0.1, 0.1, 0.1], 16000)
    loud = np.tile(noise, 3)[: 40000 * 3]
    full = dsp.follow_loudness(loud, 40000, model, 16000, 1.0)
    inner = slice(40000, 80000)
    assert np.sqrt(np.mean(full[inner] ** 2)) == pytest.approx(0.1, rel=0.03)
    half = dsp.follow_loudness(loud, 40000, model, 16000, 0.5)
    assert np.sqrt(np.mean(half[inner] ** 2)) == pytest.approx(np.sqrt(0.1), rel=0.03)
    np.testing.assert_array_equal(dsp.follow_loudness(loud, 40000, model, 16000, 0.0), loud)


def test_mirroring_repeats_for_short_signals() -> None:
    assert dsp.reflect_pad(np.array([1.0, 2.0]), 3, 3).tolist() == [2, 1, 2, 1, 2, 1, 2, 1]
    assert dsp.reflect_pad(np.array([5.0]), 2, 1).tolist() == [5, 5, 5, 5]
