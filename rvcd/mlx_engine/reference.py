"""RVC WebUI's own conversion, stage for stage, so that a whole run can be held against it.

Source: RVC WebUI (2024-06) `infer/modules/vc/pipeline.py`, Pipeline.pipeline and Pipeline.vc. Everything
that rvcd does better on purpose (exact search, cross-fades, context, length) is off here.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvcd.mlx_engine import pitch
from rvcd.mlx_engine.dsp import HOP_SAMPLES, SAMPLE_RATE_16K, follow_loudness, high_pass, limit_peak, reflect_pad
from rvcd.mlx_engine.stages import Noise, Stages
from rvcd.mlx_engine.voice import Voice
from rvcd.settings import Settings

_WINDOWS_SECONDS = (1.0, 6.0, 38.0, 41.0)
_INPUT_PEAK, _OUTPUT_PEAK = 0.95, 0.99


@dataclass(frozen=True)
class _Windows:
    """The reference's chunking constants, in samples at 16 kHz."""

    pad: int
    query: int
    centre: int
    longest: int


def convert_reference(
    stages: Stages,
    samples_16k: npt.NDArray[np.floating],
    voice: Voice,
    settings: Settings,
    f0: npt.NDArray[np.floating] | None,
    noise: Noise,
) -> npt.NDArray[np.float32]:
    """See `Engine.convert_reference`."""
    voice.check_speaker(settings.speaker_id)
    windows = _Windows(*(int(SAMPLE_RATE_16K * seconds) for seconds in settings.windows or _WINDOWS_SECONDS))
    samples = high_pass(limit_peak(samples_16k, _INPUT_PEAK))
    padded = reflect_pad(samples, windows.pad, windows.pad)
    hz = _prepare_f0(stages, voice, settings, padded, f0)

    def synthesize(start: int, stop: int | None, last_frame: int | None) -> npt.NDArray[np.float32]:
        content = stages.content(padded[start:stop], voice.config.version)
        segment_f0 = None if hz is None else hz[start // HOP_SAMPLES : last_frame]
        features = stages.blend(voice, content, segment_f0, settings, "ivf")
        sound = np.array(stages.synthesize(voice, features, segment_f0, settings.speaker_id, noise).astype(mx.float32))
        cut = voice.config.sample_rate * windows.pad // SAMPLE_RATE_16K
        return sound[cut:-cut]

    pieces, start = [], 0
    for cut in _split_points(samples, windows):
        stop = cut + 2 * windows.pad
        pieces.append(synthesize(start, stop + HOP_SAMPLES, stop // HOP_SAMPLES))
        start = cut
    pieces.append(synthesize(start, None, None))
    joined = np.concatenate(pieces)
    followed = follow_loudness(joined, voice.config.sample_rate, samples, SAMPLE_RATE_16K, settings.loudness)
    return limit_peak(followed, _OUTPUT_PEAK).astype(np.float32)


def _prepare_f0(
    stages: Stages,
    voice: Voice,
    settings: Settings,
    padded: npt.NDArray[np.floating],
    given: npt.NDArray[np.floating] | None,
) -> npt.NDArray[np.float64] | None:
    if not voice.config.uses_f0:
        return None
    hz = stages.f0(padded, settings) if given is None else np.asarray(given, dtype=np.float64)
    if settings.fill_unvoiced:
        hz = pitch.fill_unvoiced(hz)
    return pitch.transpose(hz, settings.semitones)[: len(padded) // HOP_SAMPLES]


def _split_points(samples: npt.NDArray[np.floating], windows: _Windows) -> list[int]:
    """Where the reference cuts: the quietest point near every centre, on whole hops."""
    if len(samples) + HOP_SAMPLES <= windows.longest:
        return []
    cuts = []
    for centre in range(windows.centre, len(samples), windows.centre):
        cut = quietest(samples, centre - windows.query, min(centre + windows.query, len(samples)))
        cuts.append(cut // HOP_SAMPLES * HOP_SAMPLES)
    return cuts


def quietest(samples: npt.NDArray[np.floating], start: int, stop: int) -> int:
    """The first sample in start..stop with the least sum of magnitudes over one hop around it."""
    half = HOP_SAMPLES // 2
    low, high = max(0, start - half), min(len(samples), stop + half)
    around = reflect_pad(samples[low:high], half - (start - low), half - (high - stop))
    sums = np.lib.stride_tricks.sliding_window_view(np.abs(around), HOP_SAMPLES).sum(axis=1)
    return start + int(sums[: stop - start].argmin())
