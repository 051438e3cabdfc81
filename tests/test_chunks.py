"""Chunks cover what sounds, and put a stem back together without a seam."""

import numpy as np
import pytest

from rvcd.mlx_engine.chunks import (
    FADE_FRAMES,
    LONGEST_FRAMES,
    SHORTEST_GAP_FRAMES,
    frame_energy,
    place_chunks,
    plan_chunks,
)


def covered(chunks: list, frames: int) -> np.ndarray:
    mask = np.zeros(frames + 2, dtype=int)
    for chunk in chunks:
        mask[chunk.start : chunk.stop] += 1
    return mask[:frames]


@pytest.mark.parametrize(
    "frames", [2, 100, LONGEST_FRAMES, LONGEST_FRAMES + 1, LONGEST_FRAMES + 2, 4 * LONGEST_FRAMES + 123]
)
def test_every_sounding_frame_is_in_exactly_one_chunk(frames: int) -> None:
    energy = np.random.default_rng(frames).uniform(0.1, 1.0, frames)
    chunks = plan_chunks(energy)
    assert (covered(chunks, frames) == 1).all()
    assert all(0 < chunk.stop - chunk.start <= LONGEST_FRAMES for chunk in chunks)
    assert all(chunk.start % 2 == 0 for chunk in chunks)


@pytest.mark.parametrize("frames", [LONGEST_FRAMES + 1, 2 * LONGEST_FRAMES - 1])
def test_a_fade_out_leaves_no_scrap_at_the_end(frames: int) -> None:
    chunks = plan_chunks(np.linspace(1.0, 0.001, frames))
    assert min(chunk.stop - chunk.start for chunk in chunks) > 2 * FADE_FRAMES


def test_cuts_fall_where_it_is_quiet() -> None:
    energy = np.ones(LONGEST_FRAMES + 500)
    energy[LONGEST_FRAMES - 222] = 0.01
    first, second = plan_chunks(energy)
    assert first.stop == second.start == LONGEST_FRAMES - 222


def test_long_digital_silence_is_left_out_and_short_is_not() -> None:
    energy = np.ones(1000)
    energy[200 : 200 + SHORTEST_GAP_FRAMES - 2] = 0.0
    energy[600 : 600 + SHORTEST_GAP_FRAMES + 50] = 0.0
    chunks = plan_chunks(energy)
    assert [(c.start, c.stop) for c in chunks] == [(0, 600), (700, 1000)]
    assert not any(c.fades_in or c.fades_out for c in chunks)
    assert plan_chunks(np.zeros(300)) == []


def test_placing_chunks_restores_the_signal() -> None:
    """Cross-fades of one and the same sound are that sound."""
    frames, per_frame = 2 * LONGEST_FRAMES + 700, 7
    sound = np.random.default_rng(0).standard_normal(frames * per_frame).astype(np.float32)
    chunks = plan_chunks(np.random.default_rng(1).uniform(0.5, 1.0, frames))
    assert len(chunks) == 3

    def render(chunk: object) -> np.ndarray:
        start, stop = chunk.sounding
        return sound[start * per_frame : stop * per_frame].copy()

    np.testing.assert_allclose(place_chunks(chunks, render, frames, per_frame), sound, atol=1e-6)
    assert chunks[1].sounding == (chunks[1].start - FADE_FRAMES, chunks[1].stop + FADE_FRAMES)


def test_frame_energy_is_zero_only_in_digital_silence() -> None:
    samples = np.zeros(1600)
    samples[400] = 1e-9
    assert np.flatnonzero(frame_energy(samples, 10)).tolist() == [2]
