"""Content features: a HuBERT-shaped encoder (HuBERT base, ContentVec, and smaller ones).

Architecture: Hsu et al. 2021, "HuBERT"; post-norm layers and a group-normed first convolution, as in
fairseq's hubert_base and transformers' HubertModel with `feat_extract_norm="group"`.
"""

import math

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from rvcd.mlx_engine.configs import HubertConfig
from rvcd.mlx_engine.lanes import join, lane, lane_count, on_cpu, spans
from rvcd.mlx_engine.layers import Kernel, StridedConv1d, gelu, softmax

_FRONT_END_TILE_FRAMES = 32
_POSITION_BLOCK_TAPS = 8


class FrontEnd(nn.Module):
    """Seven strided convolutions: samples at 16 kHz -> frames at 50 Hz."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        widths = (1, *config.conv_channels)
        self.conv_layers = [
            StridedConv1d(inputs, outputs, kernel, stride, bias=False)
            for inputs, outputs, kernel, stride in zip(
                widths, widths[1:], config.conv_kernels, config.conv_strides, strict=False
            )
        ]
        self.norm = nn.LayerNorm(config.conv_channels[0], eps=config.norm_eps)
        self.hop_samples = math.prod(config.conv_strides)
        # Samples that one frame sees.
        self.window_samples = 1
        for kernel, stride in zip(reversed(config.conv_kernels), reversed(config.conv_strides), strict=True):
            self.window_samples = (self.window_samples - 1) * stride + kernel

    def frames(self, samples: int) -> int:
        """Frames that so many samples give."""
        return max(0, (samples - self.window_samples) // self.hop_samples + 1)

    def __call__(self, samples: npt.NDArray[np.float32]) -> mx.array:
        """(samples,) -> (1, frames, channels)."""
        scale, shift = self._group_norm(samples)
        frames = self.frames(samples.size)
        longest = _FRONT_END_TILE_FRAMES if on_cpu() else frames
        x = mx.array(samples)[None, :, None].astype(self.norm.weight.dtype)

        def piece(number: int, start: int, stop: int) -> mx.array:
            with lane(number):
                first = start * self.hop_samples
                y = x[:, first : first + (stop - start - 1) * self.hop_samples + self.window_samples]
                y = gelu(self.conv_layers[0](y) * scale + shift)
                for conv in self.conv_layers[1:]:
                    y = gelu(conv(y))
                return y

        return join(piece(number, *span) for number, span in enumerate(spans(frames, longest)))

    def _group_norm(self, samples: npt.NDArray[np.float32]) -> tuple[mx.array, mx.array]:
        """The norm after the first convolution, as one gain and offset per channel.

        Each channel is normalised over all time. Its mean and variance follow exactly from the mean and
        covariance of the input windows, so that no pass over the wide signal is needed.
        """
        first = self.conv_layers[0]
        windows = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), first.kernel)[:: first.stride]
        weight = np.array(first.taps.astype(mx.float32), dtype=np.float64).T
        mean = windows.mean(axis=0)
        covariance = windows.T @ windows / len(windows) - np.outer(mean, mean)
        variance = np.einsum("ok,kl,ol->o", weight, covariance, weight).clip(min=0.0)
        scale = np.array(self.norm.weight.astype(mx.float32)) / np.sqrt(variance + self.norm.eps)
        shift = np.array(self.norm.bias.astype(mx.float32)) - weight @ mean * scale
        dtype = self.norm.weight.dtype
        return mx.array(scale.astype(np.float32)).astype(dtype), mx.array(shift.astype(np.float32)).astype(dtype)


class PositionalConv(Kernel):
    """Grouped convolution with an even kernel; its surplus last frame is dropped. Weight (out, kernel, in / groups)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width = config.hidden // config.position_groups
        self.weight = mx.zeros((config.hidden, config.position_kernel, width))
        self.bias = mx.zeros((config.hidden,))
        self.kernel, self.groups = config.position_kernel, config.position_groups

    def settle(self) -> None:
        """On the CPU: (groups, blocks, taps of a block * in, out): a few deep products replace many thin ones."""
        if not on_cpu():
            return
        outputs, kernel, inputs = self.weight.shape
        block = math.gcd(kernel, _POSITION_BLOCK_TAPS)
        taps = self.weight.reshape(self.groups, outputs // self.groups, kernel // block, block * inputs)
        self._replace_weight(taps.transpose(0, 2, 3, 1))

    def __call__(self, x: mx.array) -> mx.array:
        """(1, frames, hidden) -> (1, frames, hidden)."""
        left = self.kernel // 2
        padded = mx.pad(x, [(0, 0), (left, self.kernel - 1 - left), (0, 0)])
        if "taps" not in self:
            return mx.conv1d(padded, self.weight, groups=self.groups) + self.bias
        outputs = []
        for number, columns in enumerate(mx.split(padded[0], self.groups, axis=-1)):
            with lane(number):
                outputs.append(self._convolve(columns, self.taps[number], x.shape[1]))
        return (mx.concatenate(outputs, axis=-1) + self.bias)[None]

    def _convolve(self, columns: mx.array, taps: mx.array, frames: int) -> mx.array:
        block = taps.shape[1] // columns.shape[1]
        rows = columns.shape[0] - block + 1
        stacked = mx.concatenate([columns[i : i + rows] for i in range(block)], axis=-1)
        y = stacked[:frames] @ taps[0]
        for i in range(1, taps.shape[0]):
            y = mx.addmm(y, stacked[i * block : i * block + frames], taps[i])
        return y


class Attention(nn.Module):
    """Multi-head self-attention with biases."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.q_proj = nn.Linear(config.hidden, config.hidden)
        self.k_proj = nn.Linear(config.hidden, config.hidden)
        self.v_proj = nn.Linear(config.hidden, config.hidden)
        self.out_proj = nn.Linear(config.hidden, config.hidden)
        self._heads = config.heads

    def split_heads(self, x: mx.array) -> mx.array:
        """(1, frames, hidden) -> (1, heads, frames, hidden / heads)."""
        return x.reshape(1, x.shape[1], self._heads, -1).transpose(0, 2, 1, 3)

    def attend(self, x: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """Rows x (1, rows, hidden) look at all keys and values (1, heads, frames, width)."""
        scale = keys.shape[-1] ** -0.5
        queries = self.split_heads(self.q_proj(x))
        if on_cpu():
            mixed = softmax((queries * scale) @ keys.swapaxes(-1, -2)) @ values
        else:
            mixed = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale)
        return self.out_proj(mixed.transpose(0, 2, 1, 3).reshape(x.shape))


class FeedForward(nn.Module):
    """Two linear layers with a gelu between them."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden, config.intermediate)
        self.output_dense = nn.Linear(config.intermediate, config.hidden)

    def __call__(self, x: mx.array) -> mx.array:
        """(1, rows, hidden) -> (1, rows, hidden)."""
        return self.output_dense(gelu(self.intermediate_dense(x)))


class Layer(nn.Module):
    """A post-norm transformer layer, computed on parts of the frames side by side."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.layer_norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)

    def __call__(self, parts: list[mx.array]) -> list[mx.array]:
        """Consecutive parts (1, rows, hidden) of all frames -> the same parts, one layer on."""
        keys, values = [], []
        for number, x in enumerate(parts):
            with lane(number):
                keys.append(self.attention.split_heads(self.attention.k_proj(x)))
                values.append(self.attention.split_heads(self.attention.v_proj(x)))
        all_keys, all_values = mx.concatenate(keys, axis=2), mx.concatenate(values, axis=2)
        outputs = []
        for number, x in enumerate(parts):
            with lane(number):
                h = self.layer_norm(x + self.attention.attend(x, all_keys, all_values))
                outputs.append(self.final_layer_norm(h + self.feed_forward(h)))
        return outputs


class Hubert(nn.Module):
    """Content encoder."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.config = config
        self.feature_extractor = FrontEnd(config)
        self.feature_norm = nn.LayerNorm(config.conv_channels[-1], eps=config.norm_eps)
        self.feature_projection = nn.Linear(config.conv_channels[-1], config.hidden)
        self.position = PositionalConv(config)
        self.encoder_norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.layers = [Layer(config) for _ in range(config.layers)]
        self.final_proj = nn.Linear(config.hidden, config.projection) if config.projection else None

    def __call__(self, samples: npt.NDArray[np.float32], layer: int, *, project: bool) -> mx.array:
        """Output of a layer (counted from 1), projected or not.

        samples: (samples,) at 16 kHz. Returns (frames, hidden | projection), 50 frames per second.
        """
        x = self.feature_projection(self.feature_norm(self.feature_extractor(samples)))
        x = self.encoder_norm(x + gelu(self.position(x)))
        rows = spans(x.shape[1], -(-x.shape[1] // lane_count()))
        parts = [x[:, start:stop] for start, stop in rows]
        for block in self.layers[:layer]:
            parts = block(parts)
        x = mx.concatenate(parts, axis=1)[0]
        return self.final_proj(x) if project and self.final_proj is not None else x
