"""RMVPE: log-mel -> deep U-Net -> bidirectional GRU -> salience of 360 pitch bins.

Architecture: Wei et al. 2023, "RMVPE: A Robust Model for Vocal Pitch Estimation in Polyphonic Music", as
in RVC WebUI (`infer/lib/rmvpe.py`: E2E, DeepUnet, BiGRU, MelSpectrogram). Batch norms are folded into the
convolutions when a checkpoint is converted, except the one before the first.
"""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from rvcd.mlx_engine.configs import RmvpeConfig
from rvcd.mlx_engine.dsp import SAMPLE_RATE_16K, log_mel
from rvcd.mlx_engine.lanes import Ends, lane_count, map_tiles, on_cpu
from rvcd.mlx_engine.layers import Conv2d, Kernel, Upsample2d, sigmoid, tanh

_CPU_TILE_ROWS = 128
_WINDOW_FRAMES = 8000
_GRU_BLOCK_FRAMES = 512
_REFERENCE_MULTIPLE = 32  # frames


class ConvBlock(nn.Module):
    """Two convolutions, each followed by a relu, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, outputs)
        self.conv2 = Conv2d(outputs, outputs)
        self.shortcut = Conv2d(inputs, outputs, kernel=1) if inputs != outputs else None
        self.reach = self.conv1.reach + self.conv2.reach

    def __call__(self, x: mx.array) -> mx.array:
        """(1, time, mel, in) -> (1, time, mel, out)."""
        longest = min(_CPU_TILE_ROWS, -(-x.shape[1] // lane_count())) if on_cpu() else x.shape[1]
        return map_tiles(self._on_window, x, longest=longest, reach=self.reach)

    def _on_window(self, x: mx.array, ends: Ends) -> mx.array:
        h = mx.maximum(self.conv1(x, ends), 0.0)
        h = mx.maximum(self.conv2(h, ends), 0.0)
        return h + ends.trim(x if self.shortcut is None else self.shortcut(x), self.reach)


def _blocks(count: int, inputs: int, outputs: int) -> list[ConvBlock]:
    return [ConvBlock(inputs if i == 0 else outputs, outputs) for i in range(count)]


def _through(blocks: list[ConvBlock], x: mx.array) -> mx.array:
    for block in blocks:
        x = block(x)
    return x


class DecoderLevel(nn.Module):
    """Double the image, put the encoder's beside it, refine."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.up = Upsample2d(inputs, outputs)
        self.blocks = _blocks(blocks, 2 * outputs, outputs)

    def __call__(self, x: mx.array, skip: mx.array) -> mx.array:
        """(1, time, mel, in) and (1, 2 time, 2 mel, out) -> (1, 2 time, 2 mel, out)."""
        up = mx.maximum(self.up(x), 0.0)
        return _through(self.blocks, mx.concatenate([up, skip], axis=-1))


def _halve(x: mx.array) -> mx.array:
    batch, time, mel, channels = x.shape
    return x.reshape(batch, time // 2, 2, mel // 2, 2, channels).mean(axis=(2, 4))


class UNet(nn.Module):
    """(1, time, mel, 1) -> (1, time, mel, channels of the first level); time a multiple of `2 ** levels`."""

    def __init__(self, config: RmvpeConfig) -> None:
        super().__init__()
        channels = config.level_channels
        self.input_scale = mx.ones((1,))
        self.input_shift = mx.zeros((1,))
        self.encoder = [
            _blocks(config.level_blocks, inputs, outputs)
            for inputs, outputs in zip((1, *channels), channels, strict=False)
        ]
        bottom = 2 * channels[-1]
        self.bottleneck = [
            _blocks(config.level_blocks, channels[-1] if group == 0 else bottom, bottom)
            for group in range(config.bottleneck_groups)
        ]
        self.decoder = [
            DecoderLevel(inputs, outputs, config.level_blocks)
            for inputs, outputs in zip((bottom, *channels[:0:-1]), channels[::-1], strict=True)
        ]

    def __call__(self, x: mx.array) -> mx.array:
        """See the class."""
        x = x * self.input_scale + self.input_shift
        skips = []
        for blocks in self.encoder:
            x = _through(blocks, x)
            skips.append(x)
            x = _halve(x)
        for blocks in self.bottleneck:
            x = _through(blocks, x)
        for level in self.decoder:
            x = level(x, skips.pop())
        return x


class BiGRU(Kernel):
    """One bidirectional layer with torch's two biases, both directions computed in step.

    Weights (2, 3 * hidden, inputs) and (2, 3 * hidden, hidden), gates in the order reset, update, new;
    index 0 runs forward, 1 backward.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input_weight = mx.zeros((2, 3 * hidden, inputs))
        self.hidden_weight = mx.zeros((2, 3 * hidden, hidden))
        self.input_bias = mx.zeros((2, 3 * hidden))
        self.hidden_bias = mx.zeros((2, 3 * hidden))

    def settle(self) -> None:
        """Transpose once, for row vectors."""
        self.input_weight = mx.contiguous(self.input_weight.swapaxes(1, 2))
        self.hidden_weight = mx.contiguous(self.hidden_weight.swapaxes(1, 2))

    def __call__(self, x: mx.array) -> mx.array:
        """(frames, inputs) -> (frames, 2 * hidden), forward beside backward."""
        frames, hidden = x.shape[0], self.hidden_weight.shape[1]
        both = mx.stack([x, x[::-1]])
        h = mx.zeros((2, 1, hidden), dtype=x.dtype)
        blocks = []
        for start in range(0, frames, _GRU_BLOCK_FRAMES):
            gates = both[:, start : start + _GRU_BLOCK_FRAMES] @ self.input_weight + self.input_bias[:, None]
            steps = []
            for t in range(gates.shape[1]):
                h = self._step(gates[:, t : t + 1], h)
                steps.append(h)
            blocks.append(mx.concatenate(steps, axis=1))
            mx.eval(h, blocks[-1])
        y = mx.concatenate(blocks, axis=1)
        return mx.concatenate([y[0], y[1, ::-1]], axis=-1)

    def _step(self, x: mx.array, h: mx.array) -> mx.array:
        hidden = h.shape[-1]
        recurrent = h @ self.hidden_weight + self.hidden_bias[:, None]
        reset_update = sigmoid(x[..., : 2 * hidden] + recurrent[..., : 2 * hidden])
        reset, update = reset_update[..., :hidden], reset_update[..., hidden:]
        new = tanh(x[..., 2 * hidden :] + reset * recurrent[..., 2 * hidden :])
        return new + update * (h - new)


class Rmvpe(nn.Module):
    """Pitch model."""

    def __init__(self, config: RmvpeConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config)
        self.head = Conv2d(config.level_channels[0], config.head_channels)
        self.gru = BiGRU(config.head_channels * config.mel_bins, config.gru_hidden)
        self.output = nn.Linear(2 * config.gru_hidden, config.pitch_bins)
        # The reference pads time to this for its five levels, and so were smaller models trained.
        self._multiple = max(_REFERENCE_MULTIPLE, 2 ** len(config.level_channels))

    def salience(
        self, samples: npt.NDArray[np.float32], on_progress: Callable[[float], None] = lambda _: None
    ) -> npt.NDArray[np.float32]:
        """Likelihood of each pitch bin: (samples,) at 16 kHz -> (frames, bins), 100 frames per second."""
        mel = log_mel(samples, self.config.mel_bins, SAMPLE_RATE_16K)
        frames = mel.shape[0]
        padding = -frames % self._multiple
        mel = mx.pad(mel, [(0, padding), (0, 0)])
        hidden = self.gru(self._features(mel, on_progress))
        blocks = [
            np.array(sigmoid(self.output(hidden[start : start + _WINDOW_FRAMES])).astype(mx.float32))
            for start in range(0, frames, _WINDOW_FRAMES)
        ]
        return np.concatenate(blocks)[:frames]

    def _features(self, mel: mx.array, on_progress: Callable[[float], None]) -> mx.array:
        """(frames, mel) -> (frames, head channels * mel), in windows that overlap by all that a frame can see.

        The result is that of one pass over the whole; the memory is that of one window.
        """
        frames = mel.shape[0]
        reach = self._reach_frames() if frames > _WINDOW_FRAMES else 0
        core = _WINDOW_FRAMES // self._multiple * self._multiple - 2 * reach
        pieces = []
        for start in range(0, frames, core):
            stop = min(frames, start + core)
            low, high = max(0, start - reach), min(frames, stop + reach)
            image = self.head(self.unet(mel[None, low:high, :, None].astype(self.output.weight.dtype)))[0]
            piece = image[start - low : stop - low].transpose(0, 2, 1).reshape(stop - start, -1)
            mx.eval(piece)
            pieces.append(piece)
            on_progress(stop / frames)
        return mx.concatenate(pieces)

    def _reach_frames(self) -> int:
        """How far a frame of the U-Net sees, rounded up to what its levels divide."""
        config = self.config
        per_level = 2 * config.level_blocks
        levels = len(config.level_channels)
        around = 2**levels - 1  # rows of all levels, in frames
        bottleneck = config.bottleneck_groups * per_level * 2**levels
        reach = 2 * per_level * around + 2 * around + bottleneck + self.head.reach
        return -(-reach // self._multiple) * self._multiple
