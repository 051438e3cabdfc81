"""From a stem to the converted stem.

1. Per channel (or for the middle): resample to 16 kHz, limit the peak, high-pass: the analysis signal.
2. f0 over the whole of it.
3. Per chunk: content features with real context, retrieval, protection, latent, vocoder.
4. Place the chunks at their offsets, cross-faded.
5. Loudness envelope, the stem's own rate, length and level; digital silence stays digital silence.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine import pitch
from rvcd.mlx_engine.chunks import Chunk, frame_energy, place_chunks, plan_chunks
from rvcd.mlx_engine.dsp import (
    HOP_SAMPLES,
    SAMPLE_RATE_16K,
    follow_loudness,
    high_pass,
    limit_peak,
    reflect_pad,
    resample,
)
from rvcd.mlx_engine.stages import Decode, Noise, Stages
from rvcd.mlx_engine.voice import Voice
from rvcd.settings import Settings

Progress = Callable[[str, float], None]

LOWEST_RATE, HIGHEST_RATE = 8_000, 192_000
_ANALYSIS_PEAK = 0.95
FRAMES_PER_SECOND = 100
_EDGE_FRAMES = 50  # mirrored beyond the stem's ends, where there is no real context
_CONTEXT_FRAMES = 100  # of real signal that content features see to each side of a chunk
_LATENT_NOISE, _SOURCE_NOISE = 0.66666, 1.0  # the reference's
_TAIL_SAMPLES = 80  # the content encoder's window is longer than its hop
_SHORTEST_SILENCE_SECONDS = 0.01
_SILENCE_FADE_SECONDS = 0.003
_FAINTEST_MIDDLE = 0.1  # of a channel's level

# Shares of the whole, for progress: measured on two CPU cores with full-size models.
_PITCH_DONE, _VOICE_DONE = 0.12, 0.98
_CONTENT_SHARE = 0.15  # of a chunk


def convert(
    stages: Stages,
    samples: npt.NDArray[np.floating],
    sample_rate: int,
    voice: Voice,
    settings: Settings,
    on_progress: Progress,
) -> npt.NDArray[np.float32]:
    """See `Engine.convert`."""
    _check(samples, sample_rate)
    voice.check_speaker(settings.speaker_id)
    channels = samples[:, None] if samples.ndim == 1 else samples
    output = np.zeros(channels.shape, dtype=np.float32)
    parts = _parts(channels, settings)
    for number, part in enumerate(parts):

        def part_progress(stage: str, fraction: float, number: int = number) -> None:
            on_progress(stage, (number + fraction) / len(parts))

        mono = channels[:, part].mean(axis=1, dtype=np.float64) if len(part) > 1 else channels[:, part[0]]
        levels = [_level_in(channels[:, channel], mono) for channel in part]
        converted = _convert_mono(stages, mono, sample_rate, voice, settings, part_progress)
        for channel, level in zip(part, levels, strict=True):
            gated = converted * (level * _silence_gate(channels[:, channel], sample_rate))
            output[:, channel] = gated + np.float32(0.0)  # silence is 0, never -0
    on_progress("output", 1.0)
    return output.reshape(samples.shape)


def _check(samples: npt.NDArray[np.floating], sample_rate: int) -> None:
    if samples.ndim not in (1, 2) or samples.shape[0] == 0:
        raise RvcdError(Code.EMPTY_STEM, "The stem holds no samples.")
    if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
        raise RvcdError(
            Code.BAD_SAMPLE_RATE,
            f"A stem's rate must lie between {LOWEST_RATE} and {HIGHEST_RATE} Hz, not {sample_rate}.",
        )
    if not np.isfinite(samples).all():
        raise RvcdError(Code.NOT_FINITE, "The stem holds samples that are not numbers; render it again.")


def _parts(channels: npt.NDArray[np.floating], settings: Settings) -> list[list[int]]:
    """Groups of channels that are converted as one. Silent channels are in none."""
    sounding = [c for c in range(channels.shape[1]) if channels[:, c].any()]
    if settings.stereo == "mid":
        return [sounding] if sounding else []
    parts: list[list[int]] = []
    for channel in sounding:
        same = next((p for p in parts if np.array_equal(channels[:, p[0]], channels[:, channel])), None)
        if same is None:
            parts.append([channel])
        else:
            same.append(channel)
    return parts


def _level_in(channel: npt.NDArray[np.floating], mono: npt.NDArray[np.floating]) -> np.float32:
    """How loud a channel is beside the middle, which keeps a panned voice in its place.

    Raises `RvcdError("bad_setting")` where the channels cancel each other and there is no middle.
    """
    if np.array_equal(channel, mono):
        return np.float32(1.0)
    loud, middle = (float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) for x in (channel, mono))
    if middle < _FAINTEST_MIDDLE * loud:
        raise RvcdError(
            Code.BAD_SETTING,
            "The channels cancel each other, so there is no middle to convert; use stereo per-channel.",
        )
    return np.float32(loud / middle)


@dataclass(frozen=True)
class _Analysis:
    """What the networks read of a stem."""

    samples: npt.NDArray[np.float64]
    """High-passed, at 16 kHz, with `_EDGE_FRAMES` mirrored at the start and a little more at the end."""
    stem_samples: int
    """How many of them are the stem's."""
    frames: int
    f0: npt.NDArray[np.float64] | None
    """Transposed; of the padded signal."""
    phase: npt.NDArray[np.float64] | None
    """Cycles of the source before each frame, so that chunks sound on in phase."""

    def stem(self) -> npt.NDArray[np.float64]:
        first = _EDGE_FRAMES * HOP_SAMPLES
        return self.samples[first : first + self.stem_samples]


def _convert_mono(
    stages: Stages,
    mono: npt.NDArray[np.floating],
    sample_rate: int,
    voice: Voice,
    settings: Settings,
    on_progress: Progress,
) -> npt.NDArray[np.float32]:
    on_progress("analysis", 0.0)
    at_16k = resample(mono.astype(np.float32), sample_rate, SAMPLE_RATE_16K)
    if not len(at_16k):
        return np.zeros(len(mono), dtype=np.float32)  # shorter than one sample at 16 kHz
    limited = limit_peak(at_16k, _ANALYSIS_PEAK)
    level = float(np.abs(at_16k).max(initial=0.0) / max(np.abs(limited).max(initial=0.0), 1e-12))
    # Rounded at 16 kHz, a stem of a high rate would lose its last samples.
    frames = max(-(-len(at_16k) // HOP_SAMPLES), -(-len(mono) * FRAMES_PER_SECOND // sample_rate))
    analysis = _analyse(stages, limited, frames + frames % 2, voice, settings, on_progress)
    chunks = plan_chunks(frame_energy(at_16k, analysis.frames))
    total = sum(chunk.stop - chunk.start for chunk in chunks)
    done = 0

    def render(chunk: Chunk) -> npt.NDArray[np.float32]:
        nonlocal done
        length = chunk.stop - chunk.start

        def chunk_progress(fraction: float) -> None:
            on_progress("voice", _PITCH_DONE + (_VOICE_DONE - _PITCH_DONE) * (done + fraction * length) / total)

        sound = _render(stages, analysis, chunk, voice, settings, chunk_progress)
        done += length
        return sound

    sound = place_chunks(chunks, render, analysis.frames, voice.config.samples_per_frame)
    followed = follow_loudness(sound, voice.config.sample_rate, analysis.stem(), SAMPLE_RATE_16K, settings.loudness)
    converted = resample(followed * np.float32(level), voice.config.sample_rate, sample_rate)[: len(mono)]
    if not np.isfinite(converted).all():
        raise RvcdError(Code.NOT_FINITE, f"The voice {voice.name} gave no finite sound; its checkpoint may be damaged.")
    return np.pad(converted, (0, len(mono) - len(converted))).astype(np.float32)


def _analyse(
    stages: Stages,
    at_16k: npt.NDArray[np.floating],
    frames: int,
    voice: Voice,
    settings: Settings,
    on_progress: Progress,
) -> _Analysis:
    right = (frames + _EDGE_FRAMES) * HOP_SAMPLES + _TAIL_SAMPLES - len(at_16k)
    samples = reflect_pad(high_pass(at_16k), _EDGE_FRAMES * HOP_SAMPLES, right).astype(np.float64)
    f0 = phase = None
    if voice.config.uses_f0:
        on_progress("pitch", 0.0)
        f0 = stages.f0(samples, settings, lambda done: on_progress("pitch", _PITCH_DONE * done))
        if settings.fill_unvoiced:
            f0 = pitch.fill_unvoiced(f0)
        f0 = pitch.transpose(f0, settings.semitones)[: frames + 2 * _EDGE_FRAMES]
        phase = pitch.f0_to_phase(f0, voice.config.sample_rate, voice.config.samples_per_frame)
    on_progress("voice", _PITCH_DONE)
    return _Analysis(samples, len(at_16k), frames, f0, phase)


def _render(
    stages: Stages,
    analysis: _Analysis,
    chunk: Chunk,
    voice: Voice,
    settings: Settings,
    on_progress: Callable[[float], None],
) -> npt.NDArray[np.float32]:
    """The sound of a chunk's sounding frames, from a window that reaches `_CONTEXT_FRAMES` further."""
    start, stop = chunk.sounding
    low = max(-_EDGE_FRAMES, start - _CONTEXT_FRAMES)
    high = min(analysis.frames + _EDGE_FRAMES, stop + stop % 2 + _CONTEXT_FRAMES)
    first = (low + _EDGE_FRAMES) * HOP_SAMPLES
    window = analysis.samples[first : first + (high - low) * HOP_SAMPLES + _TAIL_SAMPLES]
    content = stages.content(window, voice.config.version)
    f0 = phase = None
    if analysis.f0 is not None and analysis.phase is not None:
        f0, phase = (values[low + _EDGE_FRAMES : high + _EDGE_FRAMES] for values in (analysis.f0, analysis.phase))
    features = stages.blend(voice, content, f0, settings, settings.search)
    noise = Noise(settings.seed, _LATENT_NOISE, _SOURCE_NOISE)
    decode = Decode(low, start - low, stop - low)
    on_progress(_CONTENT_SHARE)
    sound = stages.synthesize(
        *(voice, features, f0, settings.speaker_id, noise, phase, decode),
        on_progress=lambda done: on_progress(_CONTENT_SHARE + (1 - _CONTENT_SHARE) * done),
    )
    return np.array(sound.astype(mx.float32))


def _silence_gate(channel: npt.NDArray[np.floating], sample_rate: int) -> npt.NDArray[np.float32]:
    """1 where the channel sounds, exactly 0 in its digital silence, with short fades on the sounding side."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], channel == 0, [False]])))
    gate = np.ones(len(channel), dtype=np.float32)
    fade = np.linspace(0.0, 1.0, int(sample_rate * _SILENCE_FADE_SECONDS), endpoint=False, dtype=np.float32)
    for start, stop in edges.reshape(-1, 2):
        if stop - start < sample_rate * _SHORTEST_SILENCE_SECONDS:
            continue
        gate[start:stop] = 0.0
        before = gate[max(0, start - len(fade)) : start]
        before *= fade[::-1][len(fade) - len(before) :]
        after = gate[stop : stop + len(fade)]
        after *= fade[: len(after)]
    return gate
