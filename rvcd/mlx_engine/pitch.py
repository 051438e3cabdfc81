"""From salience to pitch, and from pitch to what the synthesizer reads: pure functions named x_to_y.

f0 is in Hz, one value per 10 ms frame, 0 where unvoiced. Reference: RVC WebUI `infer/lib/rmvpe.py`
(to_local_average_cents, decode) and `infer/modules/vc/pipeline.py` (get_f0).
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_BIN_CENTS = 20.0
_FIRST_BIN_CENTS = 1997.3794084376191  # above 10 Hz
_VOICED_SALIENCE = 0.03
_NEIGHBOURS = 4  # bins to each side that refine the strongest one

_LOWEST_HZ, _HIGHEST_HZ = 50.0, 1100.0
_COARSE_BINS = 254


def salience_to_f0(salience: npt.NDArray[np.float32], threshold: float = _VOICED_SALIENCE) -> Floats:
    """(frames, bins) -> (frames,): the salience-weighted mean of the bins around the strongest, in Hz."""
    bins = salience.shape[1]
    strongest = salience.argmax(axis=1)
    around = strongest[:, None] + np.arange(-_NEIGHBOURS, _NEIGHBOURS + 1)
    inside = (around >= 0) & (around < bins)
    weights = np.where(inside, np.take_along_axis(salience, around.clip(0, bins - 1), axis=1), 0.0).astype(np.float64)
    cents = np.where(inside, _BIN_CENTS * around + _FIRST_BIN_CENTS, 0.0)
    total = weights.sum(axis=1)
    mean_cents = (weights * cents).sum(axis=1) / np.where(total > 0, total, 1.0)
    voiced = salience.max(axis=1) > threshold
    return np.where(voiced, 10.0 * 2.0 ** (mean_cents / 1200.0), 0.0)


def fill_unvoiced(f0: Floats) -> Floats:
    """Interpolate through unvoiced frames, holding the ends; all-unvoiced stays 0."""
    voiced = f0 > 0
    if not voiced.any():
        return f0
    frames = np.arange(len(f0))
    filled: Floats = np.interp(frames, frames[voiced], f0[voiced])
    return filled


def transpose(f0: Floats, semitones: float) -> Floats:
    """Move the pitch by (fractional) semitones."""
    return f0 * 2.0 ** (semitones / 12.0)


def hz_to_mel(hz: Floats | float) -> Floats:
    """Mel scale of the coarse pitch (natural logarithm, 1127)."""
    mel: Floats = 1127.0 * np.log1p(np.asarray(hz, dtype=np.float64) / 700.0)
    return mel


def f0_to_coarse(f0: Floats) -> npt.NDArray[np.int32]:
    """f0 in Hz -> mel-spaced bins 1..255; unvoiced frames give 1."""
    low, high = hz_to_mel(_LOWEST_HZ), hz_to_mel(_HIGHEST_HZ)
    mel = hz_to_mel(f0)
    bins = np.where(mel > 0, (mel - low) * _COARSE_BINS / (high - low) + 1.0, mel)
    coarse: npt.NDArray[np.int32] = np.rint(bins.clip(1.0, _COARSE_BINS + 1.0)).astype(np.int32)
    return coarse


def f0_to_phase(f0: Floats, sample_rate: int, samples_per_frame: int) -> Floats:
    """Cycles completed before each frame, wrapped to [0, 1): (frames,) -> (frames,).

    f0 is held over its frame and unvoiced frames do not advance. Summed in float64, so the phase does
    not drift in long stems. Source: RVC WebUI SineGen, whose per-frame sum this is.
    """
    advance = f0 / sample_rate * samples_per_frame
    return np.concatenate([[0.0], np.cumsum(advance)[:-1]]) % 1.0
