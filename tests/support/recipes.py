"""The inputs of the recorded reference outputs: made again from seeds, here and where they were recorded."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.support import seeded

SEED = 11
"""Of every checkpoint and input below."""


@dataclass(frozen=True)
class ModelRecipe:
    """A content encoder or a pitch model, heard on a stem."""

    name: str
    tiny: bool
    seconds: float
    thin: int
    """Every how many channels (content features) or frames (salience) were kept."""

    def stem(self) -> np.ndarray:
        return seeded.sung_stem(self.seconds, 16000, SEED)


@dataclass(frozen=True)
class VoiceRecipe:
    """A synthesizer, given random features and a pitch contour."""

    version: str
    sample_rate: int
    f0: bool
    tiny: bool = True
    frames: int = 14

    @property
    def name(self) -> str:
        size = "tiny" if self.tiny else "full"
        return f"{self.version}-{self.sample_rate}-{'f0' if self.f0 else 'no-f0'}-{size}"

    def checkpoint(self, folder: Path) -> Path:
        return seeded.voice(
            folder / f"{self.name}.pth",
            version=self.version,
            sample_rate=self.sample_rate,
            f0=self.f0,
            seed=SEED,
            tiny=self.tiny,
        )

    def features(self) -> np.ndarray:
        """(frames, width), repeated twice in time as the pipeline does."""
        width = seeded.feature_width(self.version, tiny=self.tiny)
        half = np.random.default_rng(SEED).standard_normal((self.frames // 2, width), np.float32)
        return np.repeat(half, 2, axis=0)

    def contour(self) -> np.ndarray:
        return pitch_contour(self.frames)


@dataclass(frozen=True)
class PipelineRecipe:
    """A whole conversion by the reference's rules, with a given pitch contour; everything tiny."""

    name: str
    version: str
    sample_rate: int
    f0: bool
    index_rate: float
    protect: float
    loudness: float
    semitones: float
    seconds: float = 5.3
    thin: int = 7
    windows: tuple[int, int, int, int] = (1, 1, 2, 3)

    def stem(self) -> np.ndarray:
        return seeded.sung_stem(self.seconds, 16000, SEED)

    def contour(self) -> np.ndarray | None:
        """For the padded stem."""
        return pitch_contour(1 + round((self.seconds + 2 * self.windows[0]) * 100)) if self.f0 else None

    def checkpoint(self, folder: Path) -> Path:
        return VoiceRecipe(self.version, self.sample_rate, self.f0).checkpoint(folder)

    def index(self, folder: Path) -> Path | None:
        if not self.index_rate:
            return None
        width = seeded.feature_width(self.version, tiny=True)
        return seeded.retrieval_index(folder / f"{self.name}.index", vectors=800, width=width, seed=SEED)


def pitch_contour(frames: int) -> np.ndarray:
    """Hz per 10 ms: a gliding voice, unvoiced for three frames in ten, once above the highest coarse bin."""
    at = np.arange(frames)
    contour = 220.0 * 2 ** (np.sin(at / 9.0) + 0.05 * np.sin(at / 1.7))
    contour[at % 10 >= 7] = 0.0
    contour[5:7] = 1180.0
    return contour.astype(np.float32)


CONTENT = (ModelRecipe("tiny", tiny=True, seconds=2.03, thin=1), ModelRecipe("full", tiny=False, seconds=1.0, thin=8))
PITCH = (ModelRecipe("tiny", tiny=True, seconds=2.03, thin=4), ModelRecipe("full", tiny=False, seconds=1.0, thin=4))
VOICES = (
    *(VoiceRecipe(version, rate, f0=True) for version, rate in seeded.UPSAMPLING),
    VoiceRecipe("v1", 32000, f0=False),
    VoiceRecipe("v2", 40000, f0=False),
    VoiceRecipe("v2", 44100, f0=False),
    VoiceRecipe("v2", 40000, f0=True, tiny=False),
)
PIPELINES = (
    PipelineRecipe("plain", "v2", 40000, True, index_rate=0.0, protect=0.5, loudness=0.0, semitones=0.0),
    PipelineRecipe("everything", "v2", 32000, True, index_rate=0.75, protect=0.33, loudness=0.75, semitones=3.5),
    PipelineRecipe("v1", "v1", 48000, True, index_rate=0.4, protect=0.2, loudness=1.0, semitones=-12.0),
    PipelineRecipe("no-f0", "v2", 48000, False, index_rate=0.75, protect=0.33, loudness=1.0, semitones=0.0),
)
