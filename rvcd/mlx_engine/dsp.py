"""Signal processing around the networks: resampling, high-pass, mel spectrogram, loudness envelope."""

from functools import cache

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import soxr
from scipy import signal

SAMPLE_RATE_16K = 16000
HOP_SAMPLES = 160  # at 16 kHz: 10 ms

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

_FFT_SAMPLES = 1024
_MEL_RANGE_HZ = (30.0, 8000.0)
_MEL_BLOCK_FRAMES = 4096
_SMALLEST_MEL = 1e-5
_LOUDNESS_BLOCK_SAMPLES = 1 << 20


def resample(samples: npt.NDArray[np.floating], from_rate: int, to_rate: int) -> npt.NDArray[np.floating]:
    """Resample with soxr's best quality; linear phase, no delay; (samples,) or (samples, channels)."""
    if from_rate == to_rate:
        return samples
    resampled: npt.NDArray[np.floating] = soxr.resample(samples, from_rate, to_rate, quality="VHQ")
    return resampled


# RVC WebUI's analysis filter: scipy's butter(5, 48 Hz, "high", fs=16000), applied as transfer function.
_HIGH_PASS = signal.butter(N=5, Wn=48, btype="high", fs=SAMPLE_RATE_16K)


def high_pass(samples: npt.NDArray[np.floating]) -> Float64s:
    """48 Hz high-pass, zero phase, in float64; signals too short for the filter pass unchanged."""
    b, a = _HIGH_PASS
    wide = samples.astype(np.float64)
    if len(wide) <= 3 * max(len(a), len(b)):
        return wide
    filtered: Float64s = signal.filtfilt(b, a, wide)
    return filtered


def reflect_pad(samples: npt.NDArray[np.floating], left: int, right: int) -> npt.NDArray[np.floating]:
    """Mirror the signal beyond its ends (the edge sample is not repeated), as often as needed."""
    if len(samples) == 1:
        return np.repeat(samples, left + 1 + right)
    return np.pad(samples, (left, right), mode="reflect")


def limit_peak(samples: npt.NDArray[np.floating], peak: float) -> npt.NDArray[np.floating]:
    """Scale down to a peak if the signal exceeds it."""
    excess = float(np.abs(samples).max(initial=0.0)) / peak
    return samples / excess if excess > 1.0 else samples


@cache
def mel_filters(bins: int, sample_rate: int) -> Float32s:
    """Triangular mel filters, area-normalised, HTK scale: (bins, fft samples / 2 + 1). Source: librosa.filters.mel."""
    low, high = (2595.0 * np.log10(1.0 + hz / 700.0) for hz in _MEL_RANGE_HZ)
    edges = 700.0 * (10.0 ** (np.linspace(low, high, bins + 2) / 2595.0) - 1.0)
    fft_hz = np.arange(_FFT_SAMPLES // 2 + 1) * sample_rate / _FFT_SAMPLES
    rising = (fft_hz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - fft_hz) / np.diff(edges)[1:, None]
    area = 2.0 / (edges[2:] - edges[:-2])
    return (np.minimum(rising, falling).clip(min=0.0) * area[:, None]).astype(np.float32)


def log_mel(samples: Float32s, bins: int, sample_rate: int) -> mx.array:
    """Natural logarithm of the mel magnitude spectrogram: (samples,) -> (1 + samples // hop, bins).

    Hann window of 1024, hop 160, centred, reflect padding. Source: RVC WebUI MelSpectrogram.
    """
    frames = 1 + len(samples) // HOP_SAMPLES
    half = _FFT_SAMPLES // 2
    padded = mx.array(reflect_pad(samples, half, half).astype(np.float32))
    window = mx.array(signal.get_window("hann", _FFT_SAMPLES).astype(np.float32))
    filters = mx.array(mel_filters(bins, sample_rate).T)
    blocks = []
    for start in range(0, frames, _MEL_BLOCK_FRAMES):
        count = min(_MEL_BLOCK_FRAMES, frames - start)
        windows = mx.as_strided(padded, (count, _FFT_SAMPLES), (HOP_SAMPLES, 1), offset=start * HOP_SAMPLES)
        magnitude = mx.abs(mx.fft.rfft(windows * window))
        blocks.append(mx.log(mx.maximum(magnitude @ filters, _SMALLEST_MEL)))
        mx.eval(blocks[-1])
    return mx.concatenate(blocks)


def _rms_per_half_second(samples: npt.NDArray[np.floating], sample_rate: int) -> Float64s:
    """RMS over one second, every half second, centred with zeros outside. Source: librosa.feature.rms."""
    hop = sample_rate // 2
    full = len(samples) // hop
    whole, rest = samples[: full * hop].reshape(full, hop), samples[full * hop :]
    energies = np.zeros(full + 2)
    energies[1 : full + 1] = np.einsum("ij,ij->i", whole, whole, dtype=np.float64)
    energies[full + 1] = np.sum(np.square(rest, dtype=np.float64))
    return np.sqrt((energies[:-1] + energies[1:]) / (2 * hop))


def follow_loudness(
    samples: npt.NDArray[np.floating], sample_rate: int, model: npt.NDArray[np.floating], model_rate: int, amount: float
) -> Float32s:
    """Bring the loudness envelope of `samples` towards that of `model`: 0 leaves it, 1 follows fully.

    Source: RVC WebUI `change_rms`, with rate = 1 - amount.
    """
    result = samples.astype(np.float32)
    if amount == 0.0 or not len(samples):
        return result
    wanted, found = _rms_per_half_second(model, model_rate), _rms_per_half_second(samples, sample_rate)
    for start in range(0, len(result), _LOUDNESS_BLOCK_SAMPLES):
        block = result[start : start + _LOUDNESS_BLOCK_SAMPLES]
        at = (np.arange(start, start + len(block)) + 0.5) / len(result)
        block *= (_interpolate(wanted, at) / np.maximum(_interpolate(found, at), 1e-6)) ** amount
    return result


def _interpolate(values: Float64s, at: Float64s) -> Float64s:
    """Values at relative positions 0..1, linear between the centres of equal cells, ends held."""
    return np.interp(at * len(values) - 0.5, np.arange(len(values)), values)
