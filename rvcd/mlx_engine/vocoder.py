"""NSF HiFi-GAN: a sine at the sung pitch and a latent, upsampled to sound.

Architecture: HiFi-GAN (Kong et al. 2020) with a neural source filter (Wang et al. 2019), as in RVC WebUI
(`infer/lib/infer_pack/models.py`: GeneratorNSF, SineGen; odd rates as in Applio's HiFiGANNSFGenerator).
"""

import math
from collections.abc import Callable

import mlx.core as mx
from mlx import nn

from rvcd.mlx_engine.configs import VoiceConfig
from rvcd.mlx_engine.lanes import WHOLE, Ends, Tile, join, lane, map_tiles, on_cpu, tiles
from rvcd.mlx_engine.layers import Conv1d, StridedConv1d, Upsample1d, leaky_relu, tanh

_SINE_AMPLITUDE = 0.1
_CPU_TILE_ELEMENTS = 1 << 18  # of one activation: what stays in a core's cache
_LAST_SLOPE = 0.01  # torch's default, which the reference falls back to before the last convolution


class ResBlock(nn.Module):
    """Dilated convolutions with shortcuts: pairs in type "1", single ones in type "2"."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], kind: str) -> None:
        super().__init__()
        self.convs1 = [Conv1d(channels, channels, kernel, dilation) for dilation in dilations]
        self.convs2 = [Conv1d(channels, channels, kernel) for _ in dilations] if kind == "1" else []
        self.reach = sum(conv.reach for conv in (*self.convs1, *self.convs2))

    def __call__(self, x: mx.array, ends: Ends) -> mx.array:
        """(batch, samples, channels), shorter by `reach` at each inner side."""
        for i, conv in enumerate(self.convs1):
            y = conv(leaky_relu(x), ends)
            reach = conv.reach
            if self.convs2:
                y = self.convs2[i](leaky_relu(y), ends)
                reach += self.convs2[i].reach
            x = ends.trim(x, reach) + y
        return x


class Stage(nn.Module):
    """Upsample, add the source, refine by the mean of several residual blocks."""

    def __init__(self, config: VoiceConfig, number: int) -> None:
        super().__init__()
        rate = config.upsample_rates[number]
        inputs, channels = config.upsample_channels >> number, config.upsample_channels >> (number + 1)
        self.up = Upsample1d(inputs, channels, config.upsample_kernels[number], rate)
        self.source_hop_samples = math.prod(config.upsample_rates[number + 1 :])
        hop = self.source_hop_samples
        kernel = 1 if hop == 1 else 2 * hop - hop % 2
        self.source_padding = (kernel - hop) // 2
        self.source = StridedConv1d(1, channels, kernel, hop) if config.uses_f0 else None
        self.blocks = [
            ResBlock(channels, kernel, dilations, config.resblock)
            for kernel, dilations in zip(config.resblock_kernels, config.resblock_dilations, strict=True)
        ]
        self._longest = max(1, _CPU_TILE_ELEMENTS // (channels * rate))

    def __call__(self, x: mx.array, source: mx.array | None) -> mx.array:
        """(1, frames, in) and the whole source (1, samples, 1) -> (1, rate * frames, channels)."""
        rate = self.up.rate
        blocks_reach = max(block.reach for block in self.blocks)
        reach = self.up.reach + -(-blocks_reach // rate)

        def piece(tile: Tile) -> mx.array:
            with lane(tile.number):
                y = self.up(leaky_relu(x[:, tile.window_start : tile.window_stop]), tile.ends)
                first_row = (tile.window_start + (0 if tile.ends.left else self.up.reach)) * rate
                if self.source is not None and source is not None:
                    y = y + self._excite(source, first_row, y.shape[1])
                refined = self._refine(y, tile.ends, blocks_reach)
                first_row += 0 if tile.ends.left else blocks_reach
                skip = tile.start * rate - first_row
                return refined[:, skip : skip + (tile.stop - tile.start) * rate]

        longest = self._longest if on_cpu() else x.shape[1]
        return join(piece(tile) for tile in tiles(x.shape[1], longest, reach))

    def _excite(self, source: mx.array, first_row: int, rows: int) -> mx.array:
        """The source as this stage hears it, for rows from `first_row` on."""
        assert self.source is not None
        hop, padding, kernel = self.source_hop_samples, self.source_padding, self.source.kernel
        start = first_row * hop - padding
        stop = start + (rows - 1) * hop + kernel
        inside = source[:, max(0, start) : stop]
        before = max(0, -start)
        missing = stop - start - before - inside.shape[1]
        return self.source(mx.pad(inside, [(0, 0), (before, missing), (0, 0)]))

    def _refine(self, x: mx.array, ends: Ends, reach: int) -> mx.array:
        total = None
        for block in self.blocks:
            y = ends.trim(block(x, ends), reach - block.reach)
            total = y if total is None else total + y
        assert total is not None
        return total * (1.0 / len(self.blocks))


class Vocoder(nn.Module):
    """Latent and f0 -> samples."""

    def __init__(self, config: VoiceConfig) -> None:
        super().__init__()
        self._sample_rate = config.sample_rate
        self._samples_per_frame = config.samples_per_frame
        self.conv_pre = Conv1d(config.inter_channels, config.upsample_channels, 7)
        self.cond = nn.Linear(config.speaker_channels, config.upsample_channels)
        self.source_linear = nn.Linear(1, 1) if config.uses_f0 else None
        self.stages = [Stage(config, number) for number in range(len(config.upsample_rates))]
        last_channels = config.upsample_channels >> len(config.upsample_rates)
        self.conv_post = Conv1d(last_channels, 1, 7, bias=False)
        self._post_longest = _CPU_TILE_ELEMENTS // last_channels
        self.reach_frames = self._reach_frames()
        self._shares = self._shares_of_work()

    def _reach_frames(self) -> int:
        """How many neighbours to each side a frame's sound depends on."""
        reach = float(self.conv_pre.reach)
        samples = 1
        for stage in self.stages:
            reach += stage.up.reach / samples
            samples *= stage.up.rate
            reach += max(block.reach for block in stage.blocks) / samples
        return math.ceil(reach + self.conv_post.reach / samples)

    def _shares_of_work(self) -> list[float]:
        """What part of the arithmetic each stage has: its samples times its channels squared."""
        samples, work = 1, []
        for stage in self.stages:
            samples *= stage.up.rate
            work.append(float(samples * stage.up.bias.size**2))
        return [part / sum(work) for part in work]

    def source(self, f0: mx.array, phase: mx.array, noise: mx.array | None) -> mx.array:
        """The excitation: a sine where voiced, noise everywhere.

        f0 (frames,) in Hz and phase (frames,) in cycles before each frame, both float32; noise
        (frames, samples per frame), already scaled, or None. Returns (1, samples, 1).
        """
        assert self.source_linear is not None
        steps = mx.arange(1, self._samples_per_frame + 1, dtype=mx.float32)
        cycles = phase[:, None] + (f0 / self._sample_rate)[:, None] * steps
        sine = _SINE_AMPLITUDE * mx.sin(2 * math.pi * (cycles - mx.floor(cycles)))
        wave = mx.where(f0[:, None] > 0, sine, 0.0)
        if noise is not None:
            wave = wave + noise
        weight, bias = self.source_linear.weight, self.source_linear.bias
        return tanh(wave.reshape(1, -1, 1).astype(weight.dtype) * weight[0, 0] + bias[0])

    def __call__(
        self,
        z: mx.array,
        speaker: mx.array,
        source: mx.array | None,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> mx.array:
        """(1, frames, inter channels), (1, 1, speaker channels), (1, samples, 1) or None -> (samples,)."""
        x = self.conv_pre(z) + self.cond(speaker)
        done = 0.0
        for stage, share in zip(self.stages, self._shares, strict=True):
            x = stage(x, source)
            done += share
            on_progress(done)
        longest = self._post_longest if on_cpu() else x.shape[1]
        return map_tiles(self._to_samples, x, longest=longest, reach=self.conv_post.reach).reshape(-1)

    def _to_samples(self, x: mx.array, ends: Ends = WHOLE) -> mx.array:
        return tanh(self.conv_post(leaky_relu(x, _LAST_SLOPE), ends))
