"""Pitch arithmetic against the constants of the reference, and YIN against tones of known pitch."""

import numpy as np
import pytest

from rvcd.mlx_engine import pitch
from rvcd.mlx_engine.yin import yin_f0


def salience_of(cents: float, height: float = 0.8) -> np.ndarray:
    """One frame with a symmetric peak at this many cents above 10 Hz."""
    bins = 20.0 * np.arange(360) + 1997.3794084376191
    return (height * np.exp(-(((bins - cents) / 25.0) ** 2)))[None].astype(np.float32)


@pytest.mark.parametrize("hz", [40.0, 110.0, 440.0, 997.0])
def test_a_peak_between_bins_is_found(hz: float) -> None:
    f0 = pitch.salience_to_f0(salience_of(1200 * np.log2(hz / 10)))
    assert abs(1200 * np.log2(f0[0] / hz)) < 0.5


def test_the_edges_of_the_bins_do_not_wrap() -> None:
    edge = np.zeros((2, 360), dtype=np.float32)
    edge[0, 0], edge[1, 359] = 0.9, 0.9
    lowest, highest = pitch.salience_to_f0(edge)
    assert lowest == pytest.approx(31.70, abs=0.01)
    assert highest == pytest.approx(10 * 2 ** ((20 * 359 + 1997.3794084376191) / 1200))


def test_weak_salience_is_unvoiced() -> None:
    """The threshold itself still counts as unvoiced."""
    flat = np.zeros((2, 360), dtype=np.float32)
    flat[0, 100], flat[1, 100] = np.float32(0.03), np.nextafter(np.float32(0.03), np.float32(1))
    assert (pitch.salience_to_f0(flat) > 0).tolist() == [False, True]


def test_coarse_pitch_follows_the_reference_scale() -> None:
    f0 = np.array([0.0, 1.0, 50.0, 110.0, 440.0, 1100.0, 3000.0])
    mel = 1127 * np.log(1 + f0 / 700)
    scaled = (mel - 77.75496616579426) * 254 / (1064.4082331636394 - 77.75496616579426) + 1
    expected = np.rint(np.clip(np.where(mel > 0, scaled, 0), 1, 255))
    assert pitch.f0_to_coarse(f0).tolist() == expected.tolist()
    assert expected[[0, 2, 5, 6]].tolist() == [1, 1, 255, 255]


def test_unvoiced_frames_are_filled_between_neighbours() -> None:
    f0 = np.array([0.0, 0.0, 100.0, 0.0, 200.0, 0.0])
    assert pitch.fill_unvoiced(f0).tolist() == [100, 100, 100, 150, 200, 200]
    assert pitch.fill_unvoiced(np.zeros(3)).tolist() == [0, 0, 0]


def test_transposition_is_fractional() -> None:
    assert pitch.transpose(np.array([0.0, 440.0]), 12.5).tolist() == [0.0, pytest.approx(440 * 2 ** (12.5 / 12))]


def test_phase_counts_cycles_before_each_frame() -> None:
    f0 = np.array([100.0, 0.0, 250.0, 300.0])
    np.testing.assert_allclose(pitch.f0_to_phase(f0, 40000, 400), [0.0, 0.0, 0.0, 0.5], atol=1e-12)


@pytest.mark.parametrize("hz", [60.0, 82.4, 220.0, 440.3, 987.8])
def test_yin_reads_tones(hz: float) -> None:
    at = np.arange(16000) / 16000
    tone = sum(np.sin(2 * np.pi * hz * k * at) / k for k in range(1, 6))
    f0 = yin_f0(0.1 * tone)
    assert len(f0) == 101
    inner = f0[10:-10]
    assert (inner > 0).all()
    assert np.abs(1200 * np.log2(inner / hz)).max() < 10


def test_yin_leaves_noise_and_silence_unvoiced() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    assert (yin_f0(noise) > 0).mean() < 0.02
    assert not yin_f0(np.zeros(8000)).any()
    assert len(yin_f0(np.zeros(1))) == 1
