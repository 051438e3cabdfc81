"""How far two results lie apart."""

import numpy as np


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """L2 norm of the difference over that of the reference; shapes must agree."""
    assert ours.shape == theirs.shape, f"{ours.shape} against {theirs.shape}"
    return float(np.linalg.norm(ours.astype(np.float64) - theirs) / np.linalg.norm(theirs.astype(np.float64)))


def signal_to_error_db(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The same in decibels: 50 dB is a relative error of 0.3 %."""
    return float(-20 * np.log10(max(relative_error(ours, theirs), 1e-12)))


def voicing_differences(ours: np.ndarray, theirs: np.ndarray) -> int:
    """Frames that only one of two f0 contours (Hz, 0 where unvoiced) calls voiced."""
    assert ours.shape == theirs.shape, f"{ours.shape} against {theirs.shape}"
    return int(np.count_nonzero((ours > 0) != (theirs > 0)))


def largest_cents(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest distance of two f0 contours, over the frames that both call voiced; they must share some."""
    both = (ours > 0) & (theirs > 0)
    return float(np.abs(1200 * np.log2(ours[both] / theirs[both])).max())
