"""The random parts of synthesis, a function of seed and place alone.

Noise belongs to the frame it falls on, however the stem is cut into chunks: chunks that overlap hear
the same noise, and the same seed gives the same bytes.
"""

from typing import Literal

import mlx.core as mx
import numpy as np

_BLOCK_FRAMES = 100
_KINDS = {"latent": 0, "source": 1}


def frame_noise(kind: Literal["latent", "source"], seed: int, start: int, stop: int, width: int) -> mx.array:
    """Standard normal noise of the frames start..stop (start may be negative): (stop - start, width)."""
    first = start // _BLOCK_FRAMES
    blocks = [_block(kind, seed, number, width) for number in range(first, -(-stop // _BLOCK_FRAMES))]
    offset = first * _BLOCK_FRAMES
    return mx.concatenate(blocks)[start - offset : stop - offset]


def _block(kind: str, seed: int, number: int, width: int) -> mx.array:
    # Block numbers may be negative in a stem's leading context; entropy must not be.
    entropy = [seed, _KINDS[kind], number + 2**31]
    (state,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return mx.random.normal((_BLOCK_FRAMES, width), key=mx.random.key(int(state)))
