"""The RVC synthesizer up to its vocoder: text encoder, reversed flow, speaker embedding.

Architecture: VITS (Kim et al. 2021) as adapted by RVC WebUI (`infer/lib/infer_pack/models.py`:
TextEncoder, ResidualCouplingBlock, SynthesizerTrnMs768NSFsid). Attention with windowed relative positions
follows Shaw et al. 2018. Only inference exists.
"""

import math

import mlx.core as mx
from mlx import nn

from rvcd.mlx_engine.configs import VoiceConfig
from rvcd.mlx_engine.lanes import lane, lane_count, spans
from rvcd.mlx_engine.layers import Conv1d, leaky_relu, sigmoid, softmax, tanh
from rvcd.mlx_engine.vocoder import Vocoder

_ATTENTION_ROWS = 1024


class RelativeAttention(nn.Module):
    """Self-attention whose scores and values know how far apart two near frames are."""

    def __init__(self, config: VoiceConfig) -> None:
        super().__init__()
        channels, width = config.hidden_channels, config.hidden_channels // config.heads
        self.conv_q = nn.Linear(channels, channels)
        self.conv_k = nn.Linear(channels, channels)
        self.conv_v = nn.Linear(channels, channels)
        self.conv_o = nn.Linear(channels, channels)
        self.emb_rel_k = mx.zeros((1, 2 * config.attention_window + 1, width))
        self.emb_rel_v = mx.zeros((1, 2 * config.attention_window + 1, width))
        self._heads, self._window = config.heads, config.attention_window

    def __call__(self, x: mx.array) -> mx.array:
        """(1, frames, channels) -> (1, frames, channels)."""
        frames = x.shape[1]
        queries = self._split(self.conv_q(x)) * (self.emb_rel_k.shape[-1] ** -0.5)
        keys, values = self._split(self.conv_k(x)), self._split(self.conv_v(x))
        longest = min(_ATTENTION_ROWS, -(-frames // lane_count()))
        mixed = []
        for number, (start, stop) in enumerate(spans(frames, longest)):
            with lane(number):
                mixed.append(self._attend(queries[:, start:stop], keys, values, start))
        y = mx.concatenate(mixed, axis=1)
        return self.conv_o(y.transpose(1, 0, 2).reshape(x.shape))

    def _split(self, x: mx.array) -> mx.array:
        return x[0].reshape(x.shape[1], self._heads, -1).transpose(1, 0, 2)

    def _attend(self, queries: mx.array, keys: mx.array, values: mx.array, start: int) -> mx.array:
        """Queries (heads, rows, width) of the frames from `start` on -> (heads, rows, width)."""
        heads, rows, _ = queries.shape
        frames, window = keys.shape[1], self._window
        band = 2 * window + 1
        # In a matrix whose rows are one element longer than those of the scores, flattening moves each
        # row one step to the right: a block (rows, band) becomes a diagonal band.
        near = queries @ self.emb_rel_k[0].T
        diagonal = mx.pad(near, [(0, 0), (0, 0), (0, rows)]).reshape(heads, -1)[:, : rows * (rows + band - 1)]
        diagonal = diagonal.reshape(heads, rows, rows + band - 1)
        before, after = max(0, window - start), max(0, start + rows + window - frames)
        diagonal = diagonal[:, :, before : rows + band - 1 - after]
        first = start - window + before
        diagonal = mx.pad(diagonal, [(0, 0), (0, 0), (first, frames - first - diagonal.shape[2])])
        weights = softmax(queries @ keys.swapaxes(-1, -2) + diagonal)
        # And back: the band of the weights, read along the diagonal.
        beside = mx.pad(
            weights[:, :, first : frames if after else start + rows + window], [(0, 0), (0, 0), (before, after)]
        )
        width = rows + band - 1
        near = mx.as_strided(mx.contiguous(beside), (heads, rows, band), (rows * width, width + 1, 1))
        return weights @ values + near @ self.emb_rel_v[0]


class TextEncoder(nn.Module):
    """Content features and coarse pitch -> mean and log deviation of the latent."""

    def __init__(self, config: VoiceConfig) -> None:
        super().__init__()
        hidden = config.hidden_channels
        self.emb_phone = nn.Linear(config.feature_width, hidden)
        self.emb_pitch = nn.Embedding(256, hidden) if config.uses_f0 else None
        self.attn_layers = [RelativeAttention(config) for _ in range(config.layers)]
        self.norm_layers_1 = [nn.LayerNorm(hidden) for _ in range(config.layers)]
        self.ffn_1 = [Conv1d(hidden, config.filter_channels, config.kernel) for _ in range(config.layers)]
        self.ffn_2 = [Conv1d(config.filter_channels, hidden, config.kernel) for _ in range(config.layers)]
        self.norm_layers_2 = [nn.LayerNorm(hidden) for _ in range(config.layers)]
        self.proj = nn.Linear(hidden, 2 * config.inter_channels)

    def __call__(self, features: mx.array, coarse_pitch: mx.array | None) -> tuple[mx.array, mx.array]:
        """(1, frames, width) and (1, frames) -> two of (1, frames, inter channels)."""
        x = self.emb_phone(features)
        if self.emb_pitch is not None and coarse_pitch is not None:
            x = x + self.emb_pitch(coarse_pitch)
        x = leaky_relu(x * math.sqrt(x.shape[-1]))
        layers = zip(self.attn_layers, self.norm_layers_1, self.ffn_1, self.ffn_2, self.norm_layers_2, strict=True)
        for attention, norm_1, ffn_1, ffn_2, norm_2 in layers:
            x = norm_1(x + attention(x))
            x = norm_2(x + ffn_2(mx.maximum(ffn_1(x), 0.0)))
        mean, log_deviation = mx.split(self.proj(x), 2, axis=-1)
        return mean, log_deviation


class WaveNet(nn.Module):
    """Gated convolutions, conditioned on the speaker."""

    def __init__(self, config: VoiceConfig) -> None:
        super().__init__()
        hidden, layers = config.hidden_channels, config.flow_layers
        self.in_layers = [Conv1d(hidden, 2 * hidden, config.flow_kernel) for _ in range(layers)]
        self.cond_layer = nn.Linear(config.speaker_channels, 2 * hidden * layers)
        self.res_skip_layers = [nn.Linear(hidden, (2 if i < layers - 1 else 1) * hidden) for i in range(layers)]

    def __call__(self, x: mx.array, speaker: mx.array) -> mx.array:
        """(1, frames, hidden) and (1, 1, speaker channels) -> (1, frames, hidden)."""
        conditions = mx.split(self.cond_layer(speaker), len(self.in_layers), axis=-1)
        output = mx.zeros_like(x)
        for convolve, res_skip, condition in zip(self.in_layers, self.res_skip_layers, conditions, strict=True):
            wave, gate = mx.split(convolve(x) + condition, 2, axis=-1)
            y = res_skip(tanh(wave) * sigmoid(gate))
            if y.shape[-1] > x.shape[-1]:
                residual, y = mx.split(y, 2, axis=-1)
                x = x + residual
            output = output + y
        return output


class CouplingLayer(nn.Module):
    """Half of the channels decide how far the other half is moved."""

    def __init__(self, config: VoiceConfig) -> None:
        super().__init__()
        half = config.inter_channels // 2
        self.pre = nn.Linear(half, config.hidden_channels)
        self.enc = WaveNet(config)
        self.post = nn.Linear(config.hidden_channels, half)

    def undo(self, z: mx.array, speaker: mx.array) -> mx.array:
        """(1, frames, inter channels) -> the same shape."""
        fixed, moved = mx.split(z, 2, axis=-1)
        return mx.concatenate([fixed, moved - self.post(self.enc(self.pre(fixed), speaker))], axis=-1)


class Synthesizer(nn.Module):
    """A voice."""

    def __init__(self, config: VoiceConfig) -> None:
        super().__init__()
        self.config = config
        self.emb_g = nn.Embedding(config.speakers, config.speaker_channels)
        self.enc_p = TextEncoder(config)
        self.flow = [CouplingLayer(config) for _ in range(config.flows)]
        self.dec = Vocoder(config)

    def latent(
        self, features: mx.array, coarse_pitch: mx.array | None, speaker_id: int, noise: mx.array | None = None
    ) -> mx.array:
        """What the vocoder reads.

        features (1, frames, width), coarse_pitch (1, frames) or None, noise (1, frames, inter channels),
        already scaled, or None. Returns (1, frames, inter channels).
        """
        mean, log_deviation = self.enc_p(features, coarse_pitch)
        z = mean if noise is None else mean + mx.exp(log_deviation) * noise
        speaker = self.speaker(speaker_id)
        for coupling in reversed(self.flow):
            z = coupling.undo(z[..., ::-1], speaker)
        return z

    def speaker(self, speaker_id: int) -> mx.array:
        """Embedding of a speaker: (1, 1, speaker channels)."""
        return self.emb_g(mx.array([[speaker_id]]))
