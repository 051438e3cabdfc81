"""A pitch tracker that needs no model file.

Source: de Cheveigné and Kawahara 2002, "YIN, a fundamental frequency estimator" (steps 1 to 5), computed
for many frames at once.
"""

import numpy as np
import numpy.typing as npt

from rvcd.mlx_engine.dsp import HOP_SAMPLES, SAMPLE_RATE_16K, reflect_pad

_WINDOW_SAMPLES = 1024
_LOWEST_HZ, _HIGHEST_HZ = 50.0, 1100.0
_APERIODICITY = 0.15  # below it a dip is a period
_QUIET_RMS = 1e-4
_BLOCK_FRAMES = 2048


def yin_f0(samples: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """f0 in Hz, 0 where unvoiced: (samples,) at 16 kHz -> (1 + samples // 160,), frames centred."""
    longest = int(SAMPLE_RATE_16K / _LOWEST_HZ) + 2
    span = _WINDOW_SAMPLES + longest
    padded = reflect_pad(samples.astype(np.float64), span // 2, span)
    windows = np.lib.stride_tricks.sliding_window_view(padded, span)[::HOP_SAMPLES]
    frames = 1 + len(samples) // HOP_SAMPLES
    return np.concatenate(
        [_block_f0(windows[start : min(frames, start + _BLOCK_FRAMES)]) for start in range(0, frames, _BLOCK_FRAMES)]
    )


def _block_f0(windows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    normalised = _normalised_difference(windows)
    lags = np.arange(normalised.shape[1])
    shortest = int(SAMPLE_RATE_16K / _HIGHEST_HZ)
    inner = normalised[:, 1:-1]
    is_dip = (inner <= normalised[:, :-2]) & (inner < normalised[:, 2:]) & (lags[1:-1] >= shortest)
    is_period = is_dip & (inner < _APERIODICITY)
    voiced = is_period.any(axis=1) & (np.sqrt(np.mean(windows**2, axis=1)) > _QUIET_RMS)
    lag = is_period.argmax(axis=1) + 1
    rows = np.arange(len(windows))
    before, at, after = (normalised[rows, lag + offset] for offset in (-1, 0, 1))
    curvature = before - 2.0 * at + after
    offset = np.where(curvature > 0, 0.5 * (before - after) / np.where(curvature > 0, curvature, 1.0), 0.0)
    return np.where(voiced, SAMPLE_RATE_16K / (lag + offset.clip(-0.5, 0.5)), 0.0)


def _normalised_difference(windows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Cumulative mean normalised difference: (frames, window + lags) -> (frames, lags)."""
    lags = windows.shape[1] - _WINDOW_SAMPLES
    size = 1 << (windows.shape[1] - 1).bit_length()
    head = np.fft.rfft(windows[:, :_WINDOW_SAMPLES], size)
    correlation = np.fft.irfft(np.conj(head) * np.fft.rfft(windows, size), size)[:, :lags]
    energy = np.cumsum(np.pad(windows**2, [(0, 0), (1, 0)]), axis=1)
    moving = energy[:, _WINDOW_SAMPLES : _WINDOW_SAMPLES + lags] - energy[:, :lags]
    difference = np.maximum(moving[:, :1] + moving - 2.0 * correlation, 0.0)
    running = np.cumsum(difference[:, 1:], axis=1) / np.arange(1, lags)
    return np.concatenate([np.ones((len(windows), 1)), difference[:, 1:] / np.maximum(running, 1e-12)], axis=1)
