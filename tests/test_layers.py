"""The layers against MLX's own operations, whole and in tiles."""

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from scipy.special import ndtr

from rvcd.mlx_engine.lanes import map_tiles, spans, tiles
from rvcd.mlx_engine.layers import (
    Conv1d,
    Conv2d,
    Kernel,
    StridedConv1d,
    Upsample1d,
    Upsample2d,
    gelu,
    settle,
    sigmoid,
    softmax,
    tanh,
)

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def seeded_layer(layer: Kernel) -> tuple[mx.array, mx.array | float]:
    """Give a layer random parameters; return them as they were before settling."""
    mx.random.seed(7)
    layer.weight = mx.random.normal(layer.weight.shape)
    if layer.bias is not None:
        layer.bias = mx.random.normal(layer.bias.shape)
    weight, bias = layer.weight, 0.0 if layer.bias is None else layer.bias
    settle(layer)
    return weight, bias


@pytest.fixture
def signal() -> mx.array:
    return mx.random.normal((2, 50, 8), key=mx.random.key(1))


@pytest.fixture
def image() -> mx.array:
    return mx.random.normal((2, 20, 16, 8), key=mx.random.key(2))


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (5, 3), (11, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_conv1d_is_mlx_conv1d(signal: mx.array, kernel: int, dilation: int, bias: bool) -> None:
    layer = Conv1d(8, 12, kernel, dilation, bias=bias)
    weight, offset = seeded_layer(layer)
    expected = mx.conv1d(signal, weight, padding=layer.reach, dilation=dilation) + offset
    np.testing.assert_allclose(layer(signal), expected, **CLOSE)
    np.testing.assert_allclose(map_tiles(layer, signal, longest=13, reach=layer.reach), expected, **CLOSE)


@pytest.mark.parametrize(("kernel", "stride"), [(10, 5), (3, 2), (2, 2), (5, 3), (1, 1)])
def test_strided_conv1d_is_mlx_conv1d(signal: mx.array, kernel: int, stride: int) -> None:
    layer = StridedConv1d(8, 6, kernel, stride)
    weight, bias = seeded_layer(layer)
    np.testing.assert_allclose(layer(signal), mx.conv1d(signal, weight, stride=stride) + bias, **CLOSE)


@pytest.mark.parametrize(
    ("kernel", "rate", "padding", "output_padding"),
    [(16, 10, 3, 0), (20, 10, 5, 0), (24, 12, 6, 0), (4, 2, 1, 0), (14, 7, 4, 1), (6, 3, 2, 1), (11, 5, 3, 0)],
)
def test_upsample1d_is_mlx_conv_transpose1d(
    signal: mx.array, kernel: int, rate: int, padding: int, output_padding: int
) -> None:
    layer = Upsample1d(8, 6, kernel, rate)
    weight, bias = seeded_layer(layer)
    expected = mx.conv_transpose1d(signal, weight, stride=rate, padding=padding, output_padding=output_padding) + bias
    assert expected.shape[1] == 50 * rate
    np.testing.assert_allclose(layer(signal), expected, **CLOSE)
    np.testing.assert_allclose(map_tiles(layer, signal, longest=7, reach=layer.reach, rate=rate), expected, **CLOSE)


@pytest.mark.parametrize("inputs", [8, 64])
@pytest.mark.parametrize("kernel", [1, 3])
def test_conv2d_is_mlx_conv2d(inputs: int, kernel: int) -> None:
    image = mx.random.normal((2, 20, 16, inputs), key=mx.random.key(3))
    layer = Conv2d(inputs, 6, kernel)
    weight, bias = seeded_layer(layer)
    expected = mx.conv2d(image, weight, padding=kernel // 2) + bias
    np.testing.assert_allclose(layer(image), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(map_tiles(layer, image, longest=6, reach=layer.reach), expected, rtol=1e-4, atol=1e-4)


def test_upsample2d_is_mlx_conv_transpose2d(image: mx.array) -> None:
    layer = Upsample2d(8, 6)
    weight, bias = seeded_layer(layer)
    expected = mx.conv_transpose2d(image, weight, stride=2, padding=1, output_padding=1) + bias
    np.testing.assert_allclose(layer(image), expected, **CLOSE)
    np.testing.assert_allclose(map_tiles(layer, image, longest=6, reach=1, rate=2), expected, **CLOSE)


def test_activations_are_their_definitions() -> None:
    x = np.linspace(-30, 30, 20001, dtype=np.float32)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(gelu(mx.array(x)), exact * ndtr(exact), atol=4e-6)
    np.testing.assert_allclose(tanh(mx.array(x)), np.tanh(exact), atol=3e-7)
    np.testing.assert_allclose(sigmoid(mx.array(x)), 1 / (1 + np.exp(-exact)), atol=3e-7)
    rows = mx.array(x[:20000].reshape(100, 200) * 10)
    np.testing.assert_allclose(softmax(rows), mx.softmax(rows, axis=-1), atol=1e-6)


@pytest.mark.parametrize(("length", "longest"), [(1, 5), (5, 5), (6, 5), (1000, 7), (3, 1)])
def test_spans_cover_every_frame_once(length: int, longest: int) -> None:
    pieces = spans(length, longest)
    assert [frame for start, stop in pieces for frame in range(start, stop)] == list(range(length))
    assert all(0 < stop - start <= longest for start, stop in pieces)


def test_windows_reach_into_neighbours_but_not_beyond_the_ends() -> None:
    for tile in tiles(100, 9, reach=4):
        assert tile.window_start == max(0, tile.start - 4)
        assert tile.window_stop == min(100, tile.stop + 4)
        assert (tile.ends.left, tile.ends.right) == (tile.window_start == 0, tile.window_stop == 100)


def test_settling_keeps_a_models_numbers() -> None:
    """No array is lost or doubled when kernels are rearranged."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [Conv1d(4, 4, 3), Upsample1d(4, 2, 4, 2), Conv2d(2, 2)]

    model = Model()
    sizes = sorted(v.size for layer in model.layers for v in layer.parameters().values() if v is not None)
    settle(model)
    assert sorted(v.size for layer in model.layers for v in layer.parameters().values() if v is not None) == sizes
