"""A synthetic sung stem: gliding notes with vibrato, breaths, consonants and silent pauses."""

import numpy as np

_CONTROL_RATE = 200  # contours per second
_SCALE = np.array([0, 2, 4, 5, 7, 9, 11, 12])
_VOWELS = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]])


def sung_stem(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """Mono float32 in ±0.7, `round(seconds * rate)` samples; the pauses between phrases are digital silence."""
    rng = np.random.default_rng((seed, 77))
    frames = int(np.ceil(seconds * _CONTROL_RATE)) + 1
    notes, voiced, breath, hiss, vowels = _contours(rng, frames)
    count = round(seconds * rate)
    position = np.arange(count) / rate * _CONTROL_RATE

    def at_rate(contour: np.ndarray) -> np.ndarray:
        return np.interp(position, np.arange(frames), contour)

    f0 = at_rate(notes)
    phase = np.cumsum(f0 / rate)
    sung = np.zeros(count)
    for harmonic in range(1, int(min(7000, 0.45 * rate) / notes.min()) + 1):
        gain = at_rate(_vowel_gain(harmonic * notes, vowels)) * (harmonic * f0 < 0.45 * rate) / harmonic**0.7
        sung += gain * np.sin(2 * np.pi * harmonic * phase)
    noise = rng.standard_normal(count)
    bright = np.diff(noise, prepend=0.0)
    stem = (
        at_rate(voiced) * (0.9 * sung + 0.01 * noise) + 0.03 * at_rate(breath) * noise + 0.08 * at_rate(hiss) * bright
    )
    return (0.7 * np.tanh(stem)).astype(np.float32)


def _contours(rng: np.random.Generator, frames: int) -> tuple[np.ndarray, ...]:
    """Pitch in Hz, three levels (voice, breath, consonant) and the vowel's formants, per control frame."""
    pitch, voiced, breath, hiss = (np.zeros(frames) for _ in range(4))
    vowels = np.zeros((frames, 3))
    root, at = rng.integers(48, 58), int(0.1 * _CONTROL_RATE)
    pitch[:] = root
    while at < frames:
        breath[at : at + 30] = rng.uniform(0.5, 1.0)
        at += 40
        for _ in range(rng.integers(2, 6)):
            length, consonant = rng.integers(60, 180), rng.integers(8, 20)
            hiss[at : at + consonant] = rng.uniform(0.3, 1.0)
            note = slice(at + consonant, at + length)
            pitch[at:] = root + rng.choice(_SCALE)
            voiced[note] = rng.uniform(0.5, 1.0)
            vowels[at:] = rng.choice(_VOWELS)
            at += length
        at += rng.integers(40, 110)
    seconds = np.arange(frames) / _CONTROL_RATE
    pitch = _smooth(pitch, 25) + 0.35 * np.sin(2 * np.pi * 5.6 * seconds) * _smooth(voiced, 61)
    return 440 * 2 ** ((pitch - 69) / 12), _smooth(voiced, 7), _smooth(breath, 21), _smooth(hiss, 3), vowels


def _smooth(contour: np.ndarray, width: int) -> np.ndarray:
    window = np.hanning(width + 2)
    return np.convolve(np.pad(contour, width // 2, "edge"), window[1:-1] / window.sum(), "valid")


def _vowel_gain(frequency: np.ndarray, vowels: np.ndarray) -> np.ndarray:
    widths = np.array([90.0, 120.0, 160.0])
    return (1 / (1 + ((frequency[:, None] - vowels) / widths) ** 2)).sum(axis=1) + 0.03
