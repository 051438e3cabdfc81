"""The engine: base models and voices in memory, and every stage of a conversion as a call.

One thread owns an engine: MLX's streams belong to the thread that made them.
"""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvcd import paths
from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine import models, pipeline, reference, weights
from rvcd.mlx_engine.convert import import_checkpoint
from rvcd.mlx_engine.hubert import Hubert
from rvcd.mlx_engine.lanes import let_lanes_interleave, on_cpu
from rvcd.mlx_engine.pitch import salience_to_f0
from rvcd.mlx_engine.rmvpe import Rmvpe
from rvcd.mlx_engine.stages import Noise, Stages
from rvcd.mlx_engine.voice import Voice, load_voice
from rvcd.settings import Settings

Float32s = npt.NDArray[np.float32]

_FEWEST_SAMPLES = 400


class Engine:
    """RVC inference.

    content_encoder, pitch: an original `.pt`, a HuggingFace folder, a `.safetensors` file, or a file
    converted by rvcd; originals are converted once into the user's cache. Without a pitch model only
    `f0_method="yin"` and voices without f0 can be used. precision: `float32` or `float16`.
    """

    def __init__(
        self, content_encoder: Path | str, pitch: Path | str | None = None, precision: models.Precision = "float32"
    ) -> None:
        if precision not in ("float32", "float16"):
            raise RvcdError(Code.BAD_SETTING, f"precision must be float32 or float16, not {precision!r}.")
        self._precision: models.Precision = precision
        let_lanes_interleave()
        encoder_header, encoder, _ = models.load(_converted(Path(content_encoder)), precision)
        if not isinstance(encoder, Hubert):
            raise RvcdError(
                Code.NOT_A_CHECKPOINT, f"{content_encoder} is a {encoder_header.kind}, not a content encoder."
            )
        self._stages = Stages(encoder, None if pitch is None else _load_pitch_model(Path(pitch), precision))

    @property
    def device(self) -> str:
        """What the engine computes on: `cpu` or `gpu`."""
        return "cpu" if on_cpu() else "gpu"

    def load_voice(self, path: Path | str, index: Path | str | None = None) -> Voice:
        """Load a voice from an export (`.pth`) or a converted file, with its faiss index if that is a file of its own.

        Raises `RvcdError` with the checkpoint and index codes, and `wrong_encoder` when the voice reads
        features of another width than the content encoder gives.
        """
        voice = load_voice(_converted(Path(path)), Path(index) if index else None, self._precision)
        self._stages.check_voice(voice)
        return voice

    def content_features(self, samples_16k: Float32s, version: str = "v2") -> Float32s:
        """Content features, 50 per second: (samples,) at 16 kHz -> (frames, width).

        v1: layer 9, projected (256 wide in HuBERT base); v2: the last layer (768 wide).
        """
        if version not in ("v1", "v2"):
            raise RvcdError(Code.UNKNOWN_VERSION, f"There are features for v1 and v2 voices, not for {version!r}.")
        return np.array(self._stages.content(_checked(samples_16k), version).astype(mx.float32))

    def salience(self, samples_16k: Float32s) -> Float32s:
        """Likelihood of each pitch bin, 100 frames per second: (samples,) at 16 kHz -> (frames, bins)."""
        return self._stages.require_rmvpe().salience(_checked(samples_16k))

    def f0(self, samples_16k: Float32s) -> Float32s:
        """Pitch in Hz, 100 per second, 0 where unvoiced: (samples,) at 16 kHz -> (frames,)."""
        return salience_to_f0(self.salience(samples_16k)).astype(np.float32)

    def synthesize(
        self,
        voice: Voice,
        features: Float32s,
        f0: Float32s | None,
        speaker_id: int = 0,
        noise_scale: float = 0.0,
        source_noise: float = 0.0,
        seed: int = 0,
    ) -> Float32s:
        """Sound from content features and pitch.

        features (frames, width) and f0 (frames,) in Hz, both 100 per second; f0 is not read by a voice
        without f0. noise_scale scales the latent noise (the reference uses 0.66666), source_noise the
        additive noise of the source (1 is the reference's). Returns (samples,) at the voice's rate.
        """
        voice.check_speaker(speaker_id)
        samples = self._stages.synthesize(
            voice,
            mx.array(np.asarray(features, dtype=np.float32)),
            None if f0 is None else np.asarray(f0, dtype=np.float64),
            speaker_id,
            noise=Noise(seed, noise_scale, source_noise),
        )
        return np.array(samples.astype(mx.float32))

    def convert(
        self,
        samples: npt.NDArray[np.floating],
        sample_rate: int,
        voice: Voice,
        settings: Settings,
        on_progress: Callable[[str, float], None] | None = None,
    ) -> Float32s:
        """Convert a stem: (frames,) or (frames, channels) -> the same shape, aligned to the sample.

        on_progress gets the stage (`analysis`, `pitch`, `voice`, `output`) and the fraction of the whole
        that is done. Raises `RvcdError`: `empty_stem`, `not_finite`, `bad_sample_rate`, `bad_speaker`,
        `missing_model`.
        """
        return pipeline.convert(self._stages, samples, sample_rate, voice, settings, on_progress or (lambda *_: None))

    def convert_reference(
        self,
        samples_16k: Float32s,
        voice: Voice,
        settings: Settings,
        f0: Float32s | None = None,
        noise_scale: float = 0.0,
        source_noise: float = 0.0,
    ) -> Float32s:
        """Convert exactly as RVC WebUI (2024) does, for comparison: its chunks, butt joints, search and ends.

        samples_16k (samples,); f0, if given, replaces the pitch model: Hz per 10 ms frame of the padded
        signal, before transposition. Returns samples at the voice's rate within ±1, a little shorter than the input.
        """
        return reference.convert_reference(
            self._stages, _checked(samples_16k), voice, settings, f0, Noise(settings.seed, noise_scale, source_noise)
        )


def _checked(samples_16k: npt.NDArray[np.floating]) -> Float32s:
    """What a stage can work on: mono, finite, one window of the content encoder long at least.

    Raises `RvcdError`: `empty_stem`, `not_finite`.
    """
    samples = np.asarray(samples_16k, dtype=np.float32)
    if samples.ndim != 1 or samples.size < _FEWEST_SAMPLES:
        raise RvcdError(
            Code.EMPTY_STEM,
            f"A stage takes mono samples at 16 kHz, {_FEWEST_SAMPLES} or more; this has shape {samples.shape}.",
        )
    if not np.isfinite(samples).all():
        raise RvcdError(Code.NOT_FINITE, "The signal holds samples that are not numbers.")
    return samples


def _load_pitch_model(path: Path, precision: models.Precision) -> Rmvpe:
    header, model, _ = models.load(_converted(path), precision)
    if not isinstance(model, Rmvpe):
        raise RvcdError(Code.NOT_A_CHECKPOINT, f"{path} is a {header.kind}, not a pitch model.")
    return model


def _converted(path: Path) -> Path:
    if path.is_file() and weights.is_converted(path):
        return path
    return import_checkpoint(path, directory=paths.cache_dir()).path
