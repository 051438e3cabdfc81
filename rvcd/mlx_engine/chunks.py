"""Where a stem is cut, and how its pieces are put back.

A chunk is placed at its offset under a weight, never appended: nothing can drift, seams cross-fade, and
the result has the stem's length by construction. (The idea is demucs's, `apply.py`.)

Frames are 10 ms, counted from the start of the stem; a chunk begins on an even one, so that content
features (20 ms) of all chunks lie on one grid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rvcd.mlx_engine.dsp import HOP_SAMPLES

LONGEST_FRAMES = 3000
_QUERY_FRAMES = 600
"""How far before the longest chunk's end a quiet place is looked for."""
_SHORTEST_FRAMES = 100
"""What is left at the end of a passage is no shorter."""
FADE_FRAMES = 4
"""Half of a cross-fade."""
SHORTEST_GAP_FRAMES = 50
"""Digital silence of this length and more is not converted at all."""


@dataclass(frozen=True)
class Chunk:
    """Frames start..stop of a stem; the neighbours it fades into, if any."""

    start: int
    stop: int
    fades_in: bool
    fades_out: bool

    @property
    def sounding(self) -> tuple[int, int]:
        """Frames that are synthesised: the chunk and its share of the cross-fades."""
        return self.start - FADE_FRAMES * self.fades_in, self.stop + FADE_FRAMES * self.fades_out


def plan_chunks(energy: npt.NDArray[np.floating]) -> list[Chunk]:
    """Cut a stem into chunks of at most `LONGEST_FRAMES`, at quiet places, leaving out long digital silence.

    energy: (frames,) of the stem; exactly 0 means digital silence.
    """
    chunks = []
    for start, stop in _sounding_passages(energy):
        cuts = [start]
        while stop - cuts[-1] > LONGEST_FRAMES:
            latest = min(cuts[-1] + LONGEST_FRAMES, stop - _SHORTEST_FRAMES)
            quiet = latest - _QUERY_FRAMES + int(energy[latest - _QUERY_FRAMES : latest].argmin())
            cuts.append(quiet // 2 * 2)
        edges = [*cuts, stop]
        chunks += [Chunk(a, b, fades_in=a != start, fades_out=b != stop) for a, b in pairwise(edges)]
    return chunks


def _sounding_passages(energy: npt.NDArray[np.floating]) -> list[tuple[int, int]]:
    sounding = np.flatnonzero(energy)
    if not len(sounding):
        return []
    breaks = np.flatnonzero(np.diff(sounding) > SHORTEST_GAP_FRAMES)
    starts = sounding[np.concatenate([[0], breaks + 1])]
    stops = sounding[np.concatenate([breaks, [len(sounding) - 1]])] + 1
    return [(int(a) // 2 * 2, int(b)) for a, b in zip(starts, stops, strict=True)]


def frame_energy(samples_16k: npt.NDArray[np.floating], frames: int) -> npt.NDArray[np.float64]:
    """Sum of magnitudes of each frame: (samples,) at 16 kHz -> (frames,)."""
    padded = np.zeros(frames * HOP_SAMPLES)
    padded[: min(len(samples_16k), len(padded))] = samples_16k[: len(padded)]
    energy: npt.NDArray[np.float64] = np.abs(padded).reshape(frames, HOP_SAMPLES).sum(axis=1)
    return energy


def place_chunks(
    chunks: list[Chunk],
    render: Callable[[Chunk], npt.NDArray[np.float32]],
    frames: int,
    samples_per_frame: int,
) -> npt.NDArray[np.float32]:
    """Render every chunk's sounding frames and add them at their offsets: (frames * samples_per_frame,)."""
    output = np.zeros(frames * samples_per_frame, dtype=np.float32)
    fade = np.linspace(0.0, 1.0, 2 * FADE_FRAMES * samples_per_frame, endpoint=False, dtype=np.float32)
    for chunk in chunks:
        samples = render(chunk)
        if chunk.fades_in:
            samples[: len(fade)] *= fade
        if chunk.fades_out:
            samples[-len(fade) :] *= 1.0 - fade
        first = chunk.sounding[0] * samples_per_frame
        room = output[first : first + len(samples)]
        room += samples[: len(room)]
    return output
