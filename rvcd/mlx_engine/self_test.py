"""Does this machine compute right? The engine's own layers on the default device against plain operations.

Each layer runs in the form that the engine uses here (on a GPU its native kernels, on a CPU products
split over tiles and lanes), at the width it has in real models. The reference is always computed on the
CPU, layer by layer, from the textbook form. Where there is a GPU, two devices are compared.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from rvcd.mlx_engine import layers
from rvcd.mlx_engine.lanes import map_tiles, on_cpu
from rvcd.mlx_engine.layers import Conv1d, Conv2d
from rvcd.mlx_engine.rmvpe import BiGRU

_CPU_TOLERANCE = 1e-4
_GPU_TOLERANCE = 2e-3  # CUDA rounds factors to ten bits (TF32), which gives 4e-4
_SECONDS = 2


@dataclass(frozen=True)
class Comparison:
    """How far the default device strays."""

    device: str
    """What kind of device computes, and its name: `gpu, Apple M2`."""
    uses_gpu: bool
    deviations: dict[str, float]
    """Layer -> norm of the difference, relative to the norm of the reference."""
    tolerance: float

    @property
    def failed(self) -> list[str]:
        """Layers beyond the tolerance; what is no number is beyond it too."""
        return [name for name, deviation in self.deviations.items() if not deviation <= self.tolerance]


def compare() -> Comparison:
    """Compute two seconds of every kind of layer, twice."""
    random = np.random.default_rng(0)
    cases = {"convolution": _conv1d, "image": _conv2d, "recurrence": _gru, "product": _linear, "activation": _gelu}
    deviations = {name: _deviation(*case(random)) for name, case in cases.items()}
    kind = "cpu" if on_cpu() else "gpu"
    name = mx.device_info(mx.default_device()).get("device_name", "unknown")
    return Comparison(f"{kind}, {name}", not on_cpu(), deviations, _CPU_TOLERANCE if on_cpu() else _GPU_TOLERANCE)


Layer = Callable[[mx.array], mx.array]
Case = tuple[Layer, Layer, mx.array]
"""The engine's form, the plain form, and what both get."""


def _deviation(fast: Layer, plain: Layer, x: mx.array) -> float:
    with mx.stream(mx.cpu):
        expected = np.array(plain(x), dtype=np.float64)
    difference = np.array(fast(x), dtype=np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))


def _normal(random: np.random.Generator, *shape: int) -> mx.array:
    return mx.array(random.standard_normal(shape).astype(np.float32))


def _fill(random: np.random.Generator, layer: nn.Module, fan_in: int) -> dict[str, mx.array]:
    """Give a layer random parameters of sensible size, settle it, and return them as they were before."""
    shapes: dict[str, Any] = {name: value.shape for name, value in layer.parameters().items() if value is not None}
    weights = {name: _normal(random, *shape) / math.sqrt(fan_in) for name, shape in shapes.items()}
    layer.load_weights(list(weights.items()))
    layers.settle(layer)
    return weights


def _conv1d(random: np.random.Generator) -> Case:
    channels, kernel, dilation, frames = 64, 11, 5, 1000 * _SECONDS
    conv = Conv1d(channels, channels, kernel, dilation)
    w = _fill(random, conv, channels * kernel)

    def plain(x: mx.array) -> mx.array:
        return mx.conv1d(x, w["weight"], padding=conv.reach, dilation=dilation) + w["bias"]

    def tiled(x: mx.array) -> mx.array:
        return map_tiles(conv, x, longest=300 if on_cpu() else frames, reach=conv.reach)

    return tiled, plain, _normal(random, 1, frames, channels)


def _conv2d(random: np.random.Generator) -> Case:
    channels, mel_bins, frames = 32, 64, 100 * _SECONDS
    conv = Conv2d(channels, channels)
    w = _fill(random, conv, 9 * channels)

    def plain(x: mx.array) -> mx.array:
        return mx.conv2d(x, w["weight"], padding=1) + w["bias"]

    def tiled(x: mx.array) -> mx.array:
        return map_tiles(conv, x, longest=64 if on_cpu() else frames, reach=conv.reach)

    return tiled, plain, _normal(random, 1, frames, mel_bins, channels)


def _gru(random: np.random.Generator) -> Case:
    inputs, hidden, frames = 384, 256, 100 * _SECONDS
    gru = BiGRU(inputs, hidden)
    w = _fill(random, gru, hidden)

    def plain(x: mx.array) -> mx.array:
        forward, backward = (_plain_gru(x[::step], w, way) for way, step in enumerate((1, -1)))
        return mx.concatenate([forward, backward[::-1]], axis=-1)

    return gru, plain, _normal(random, frames, inputs)


def _plain_gru(x: mx.array, w: dict[str, mx.array], way: int) -> mx.array:
    """torch.nn.GRU's equations, one direction: (frames, inputs) -> (frames, hidden)."""
    gates = x @ w["input_weight"][way].T + w["input_bias"][way]
    hidden_weight, hidden_bias = w["hidden_weight"][way].T, w["hidden_bias"][way]
    h = mx.zeros((hidden_weight.shape[0],))
    steps = []
    for gate in gates:
        reset_x, update_x, new_x = mx.split(gate, 3)
        reset_h, update_h, new_h = mx.split(h @ hidden_weight + hidden_bias, 3)
        update = mx.sigmoid(update_x + update_h)
        new = mx.tanh(new_x + mx.sigmoid(reset_x + reset_h) * new_h)
        h = (1 - update) * new + update * h
        mx.eval(h)
        steps.append(h)
    return mx.stack(steps)


def _linear(random: np.random.Generator) -> Case:
    inputs, outputs, frames = 768, 3072, 50 * _SECONDS
    linear = nn.Linear(inputs, outputs)
    w = _fill(random, linear, inputs)
    weight, bias = (np.array(w[name], dtype=np.float64) for name in ("weight", "bias"))

    def plain(x: mx.array) -> mx.array:
        return mx.array(np.array(x, dtype=np.float64) @ weight.T + bias)  # numpy's own BLAS

    return linear, plain, _normal(random, frames, inputs)


def _gelu(random: np.random.Generator) -> Case:
    def fast(x: mx.array) -> mx.array:
        return layers.softmax(layers.gelu(x) + layers.tanh(x))

    def plain(x: mx.array) -> mx.array:
        return mx.softmax(nn.gelu(x) + mx.tanh(x), axis=-1)

    return fast, plain, 3.0 * _normal(random, 50 * _SECONDS, 768)
