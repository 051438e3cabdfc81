"""The stages of a conversion on arrays, shared by the pipeline and the reference."""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine import pitch
from rvcd.mlx_engine.hubert import Hubert
from rvcd.mlx_engine.noise import frame_noise
from rvcd.mlx_engine.rmvpe import Rmvpe
from rvcd.mlx_engine.voice import Voice
from rvcd.mlx_engine.yin import yin_f0
from rvcd.settings import Search, Settings

Float64s = npt.NDArray[np.float64]

_V1_LAYER = 9
_VOICED_SOURCE_NOISE, _UNVOICED_SOURCE_NOISE = 0.003, 0.1 / 3


@dataclass(frozen=True)
class Noise:
    """How much of synthesis is random."""

    seed: int
    latent: float
    """Scale of the latent noise; the reference uses 0.66666."""
    source: float
    """Scale of the noise added to the source; 1 is the reference's."""


@dataclass(frozen=True)
class Decode:
    """Which frames of a window are turned into sound, and where the window lies."""

    first_frame: int
    """Of the window, counted from the start of the stem; places the noise."""
    start: int
    stop: int
    """Frames of the window that the vocoder is asked for."""


class Stages:
    """The base models and what is done with them."""

    def __init__(self, content_encoder: Hubert, rmvpe: Rmvpe | None) -> None:
        self._encoder = content_encoder
        self._rmvpe = rmvpe

    def check_voice(self, voice: Voice) -> None:
        """Raises `RvcdError("wrong_encoder")` when the voice cannot read this encoder's features."""
        config = self._encoder.config
        width = config.projection if voice.config.version == "v1" else config.hidden
        if width != voice.config.feature_width or (voice.config.version == "v1" and config.layers < _V1_LAYER):
            raise RvcdError(
                Code.WRONG_ENCODER,
                f"The voice {voice.name} reads {voice.config.version} features of width {voice.config.feature_width}; "
                f"this content encoder ({config.layers} layers, {config.hidden} wide) gives {width}. "
                "Use the encoder that the voice was trained with.",
            )

    def require_rmvpe(self) -> Rmvpe:
        """The pitch model. Raises `RvcdError("missing_model")`."""
        if self._rmvpe is None:
            raise RvcdError(
                Code.MISSING_MODEL, "No pitch model is loaded; fetch one with `rvcd fetch`, or use the f0 method yin."
            )
        return self._rmvpe

    def content(self, samples: npt.NDArray[np.floating], version: str) -> mx.array:
        """(samples,) at 16 kHz -> (frames, width), 50 per second."""
        samples = np.asarray(samples, dtype=np.float32)
        if self._encoder.config.normalize:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-5)
        if version == "v1":
            return self._encoder(samples, _V1_LAYER, project=True)
        return self._encoder(samples, self._encoder.config.layers, project=False)

    def f0(
        self,
        samples: npt.NDArray[np.floating],
        settings: Settings,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> Float64s:
        """(samples,) at 16 kHz -> (1 + samples // 160,) in Hz, before transposition."""
        if settings.f0_method == "yin":
            return yin_f0(samples)
        salience = self.require_rmvpe().salience(np.asarray(samples, dtype=np.float32), on_progress)
        return pitch.salience_to_f0(salience)

    def blend(
        self, voice: Voice, content: mx.array, f0: Float64s | None, settings: Settings, search: Search
    ) -> mx.array:
        """Retrieval and protection: (frames at 50 Hz, width) -> (frames at 100 Hz, width).

        f0: transposed, at 100 Hz, at least as long; None for a voice without f0.
        """
        retrieved = content
        if voice.has_index and settings.index_rate > 0:
            rate = settings.index_rate
            retrieved = voice.index(search).retrieve(content) * rate + content * (1.0 - rate)
        features = mx.repeat(retrieved, 2, axis=0)
        if retrieved is content or f0 is None or settings.protect >= 0.5:
            return features
        # Classic RVC compares f0 with 1 Hz here, not with 0.
        share = np.where(f0[: features.shape[0]] < 1.0, settings.protect, 1.0).astype(np.float32)
        kept = mx.array(share)[:, None].astype(features.dtype)
        return features * kept + mx.repeat(content, 2, axis=0) * (1.0 - kept)

    def synthesize(
        self,
        voice: Voice,
        features: mx.array,
        f0: Float64s | None,
        speaker_id: int,
        noise: Noise,
        phase: Float64s | None = None,
        decode: Decode | None = None,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> mx.array:
        """Features (frames, width) and f0 (frames,), 100 per second -> samples at the voice's rate.

        phase: cycles before each frame; from 0 if None. decode: which frames to turn into sound; all if
        None. The sound of a frame does not depend on how many others are decoded with it.
        """
        config, model = voice.config, voice.synthesizer
        frames = features.shape[0]
        decode = decode or Decode(0, 0, frames)
        dtype = model.emb_g.weight.dtype
        coarse = None
        if config.uses_f0:
            if f0 is None:
                raise RvcdError(Code.BAD_SETTING, f"The voice {voice.name} needs f0.")
            f0 = f0[:frames]
            coarse = mx.array(pitch.f0_to_coarse(f0))[None]
        latent_noise = None
        if noise.latent:
            first = decode.first_frame
            drawn = frame_noise("latent", noise.seed, first, first + frames, config.inter_channels)
            latent_noise = (drawn * noise.latent)[None].astype(dtype)
        z = model.latent(features[None].astype(dtype), coarse, speaker_id, latent_noise)
        reach = model.dec.reach_frames
        low, high = max(0, decode.start - reach), min(frames, decode.stop + reach)
        source = None
        if f0 is not None and config.uses_f0:
            phase = pitch.f0_to_phase(f0, config.sample_rate, config.samples_per_frame) if phase is None else phase
            source = self._source(voice, f0[low:high], phase[low:high], noise, decode.first_frame + low)
        samples = model.dec(z[:, low:high], model.speaker(speaker_id), source, on_progress)
        per_frame = config.samples_per_frame
        return samples[(decode.start - low) * per_frame : (decode.stop - low) * per_frame]

    def _source(self, voice: Voice, f0: Float64s, phase: Float64s, noise: Noise, first_frame: int) -> mx.array:
        drawn = None
        if noise.source:
            amplitude = np.where(f0 > 0, _VOICED_SOURCE_NOISE, _UNVOICED_SOURCE_NOISE).astype(np.float32) * noise.source
            width = voice.config.samples_per_frame
            drawn = frame_noise("source", noise.seed, first_frame, first_frame + len(f0), width)
            drawn = drawn * mx.array(amplitude.astype(np.float32))[:, None]
        return voice.synthesizer.dec.source(mx.array(f0.astype(np.float32)), mx.array(phase.astype(np.float32)), drawn)
