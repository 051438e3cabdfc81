"""The layers that all three networks are made of, channels last, with a form that is fast on each backend.

MLX's CPU convolutions are twenty to a hundred times slower than its matrix products, so there a
convolution is a sum of shifted products, one per tap. Its transcendental functions are scalar, so
there they are written with `power`, the one that is not. On a GPU the native operations are used.
"""

import math

import mlx.core as mx
from mlx import nn

from rvcd.mlx_engine.lanes import WHOLE, Ends, on_cpu


class Kernel(nn.Module):
    """A layer with a kernel. `settle` rearranges it once, after loading, into the form it is multiplied in."""

    def settle(self) -> None:
        """Replace `weight` by `taps`, the same numbers in another order."""
        raise NotImplementedError

    def _replace_weight(self, taps: mx.array) -> None:
        self.pop("weight")
        self.taps = mx.contiguous(taps)


def settle(model: nn.Module) -> None:
    """Settle every kernel of a loaded model and evaluate all its parameters."""
    for layer in model.modules():
        if isinstance(layer, Kernel):
            layer.settle()
    mx.eval(model.parameters())


class Conv1d(Kernel):
    """Convolution over time that keeps the length: odd kernel, stride 1. Weight (out, kernel, in)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, kernel, inputs))
        self.bias = mx.zeros((outputs,)) if bias else None
        self.dilation = dilation
        self.reach = (kernel - 1) // 2 * dilation

    def settle(self) -> None:
        """One (in, out) matrix per tap on the CPU; native elsewhere."""
        if on_cpu():
            self._replace_weight(self.weight.transpose(1, 2, 0))

    def __call__(self, x: mx.array, ends: Ends = WHOLE) -> mx.array:
        """(batch, frames, in) -> (batch, frames, out), shorter by `reach` at each inner side."""
        x = ends.pad(x, self.reach, self.reach)
        if "taps" in self:
            return sum_of_taps(x, self.taps, self.bias, self.dilation)
        y = mx.conv1d(x, self.weight, dilation=self.dilation)
        return y if self.bias is None else y + self.bias


def sum_of_taps(x: mx.array, taps: mx.array, bias: mx.array | None, dilation: int = 1) -> mx.array:
    """Convolution as shifted matrix products: x (batch, frames, in), taps (kernel, in, out), no padding."""
    frames = x.shape[1] - (taps.shape[0] - 1) * dilation
    y = x[:, :frames] @ taps[0] if bias is None else mx.addmm(bias, x[:, :frames], taps[0])
    for k in range(1, taps.shape[0]):
        y = mx.addmm(y, x[:, k * dilation : k * dilation + frames], taps[k])
    return y


class StridedConv1d(Kernel):
    """Convolution over time with a stride and no padding. Weight (out, kernel, in).

    Computed as products over blocks of `stride` samples, which are contiguous.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, kernel, inputs))
        self.bias = mx.zeros((outputs,)) if bias else None
        self.kernel, self.stride = kernel, stride

    def settle(self) -> None:
        """All taps stacked: (kernel * in, out)."""
        self._replace_weight(self.weight.reshape(self.weight.shape[0], -1).T)

    def __call__(self, x: mx.array) -> mx.array:
        """(batch, samples, in) -> (batch, (samples - kernel) // stride + 1, out)."""
        batch, samples, inputs = x.shape
        frames = (samples - self.kernel) // self.stride + 1
        blocks = -(-self.kernel // self.stride)
        needed = (frames + blocks - 1) * self.stride
        x = x[:, :needed] if samples >= needed else mx.pad(x, [(0, 0), (0, needed - samples), (0, 0)])
        rows = x.reshape(batch, frames + blocks - 1, self.stride * inputs)
        y = mx.zeros((1,), dtype=x.dtype) if self.bias is None else self.bias
        for block in range(blocks):
            first = block * self.stride * inputs
            taps = self.taps[first : first + self.stride * inputs]
            y = mx.addmm(y, rows[:, block : block + frames, : taps.shape[0]], taps)
        return y


class Upsample1d(Kernel):
    """Transposed convolution that makes the signal exactly `rate` times longer. Weight (out, kernel, in).

    Computed without multiplying inserted zeros: each input frame gives `rate` outputs per block of the kernel.
    An odd kernel surplus follows Applio's HiFiGANNSFGenerator (one frame of output padding).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, rate: int) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, kernel, inputs))
        self.bias = mx.zeros((outputs,))
        self.rate = rate
        surplus = kernel - rate
        self.cut = surplus // 2 if surplus % 2 == 0 else rate // 2 + 1
        self.reach = max(1, -(-max(self.cut, surplus - self.cut) // rate))

    def settle(self) -> None:
        """One (in, rate * out) matrix per block of the kernel, the last block first.

        Block `b` of frame t lands `b` frames later: reversed, it is an ordinary convolution.
        """
        outputs, kernel, inputs = self.weight.shape
        blocks = -(-kernel // self.rate)
        weight = mx.pad(self.weight, [(0, 0), (0, blocks * self.rate - kernel), (0, 0)])
        taps = weight.reshape(outputs, blocks, self.rate, inputs).transpose(1, 3, 2, 0)
        self._replace_weight(taps.reshape(blocks, inputs, self.rate * outputs)[::-1])

    def __call__(self, x: mx.array, ends: Ends = WHOLE) -> mx.array:
        """(batch, frames, in) -> (batch, rate * frames, out), shorter by `reach` input frames at each inner side."""
        batch, frames, _ = x.shape
        margin = self.taps.shape[0] - 1
        y = sum_of_taps(mx.pad(x, [(0, 0), (margin, margin), (0, 0)]), self.taps, mx.tile(self.bias, self.rate))
        y = y.reshape(batch, (frames + margin) * self.rate, self.bias.size)
        return ends.trim(y[:, self.cut : self.cut + frames * self.rate], self.reach * self.rate)


class Conv2d(Kernel):
    """Convolution over (time, mel) that keeps both lengths: kernel 3 or 1. Weight (out, kernel, kernel, in)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, kernel, kernel, inputs))
        self.bias = mx.zeros((outputs,))
        self.kernel = kernel
        self.reach = (kernel - 1) // 2

    def settle(self) -> None:
        """One (in, out) matrix per tap on the CPU, or for a kernel of one; native elsewhere."""
        if on_cpu() or self.kernel == 1:
            self._replace_weight(self.weight.transpose(1, 2, 3, 0))

    def __call__(self, x: mx.array, ends: Ends = WHOLE) -> mx.array:
        """(batch, time, mel, in) -> (batch, time, mel, out), shorter in time by `reach` at each inner side."""
        if self.kernel == 1:
            return mx.addmm(self.bias, x, self.taps[0, 0])
        x = ends.pad(x, self.reach, self.reach)
        if "taps" in self:
            return self._on_flat_image(x)
        return mx.conv2d(x, self.weight, padding=(0, self.reach)) + self.bias

    def _on_flat_image(self, x: mx.array) -> mx.array:
        # In an image laid out row after row, a tap at (dy, dx) is a shift by dy * width + dx: each tap
        # is one product over contiguous rows. Columns beyond the image are computed and dropped.
        batch, time, mel, inputs = x.shape
        width, height = mel + 2 * self.reach, time - 2 * self.reach
        flat = mx.pad(x, [(0, 0), (0, 1), (self.reach, self.reach), (0, 0)]).reshape(batch, (time + 1) * width, inputs)

        def shifted(dy: int, dx: int) -> mx.array:
            return flat[:, dy * width + dx : (dy + height) * width + dx]

        y = self.bias
        for dy in range(self.kernel):
            if inputs < 64:
                # Narrow products are slow: a row of taps becomes one product three times as deep.
                rows = mx.concatenate([shifted(dy, dx) for dx in range(self.kernel)], axis=-1)
                y = mx.addmm(y, rows, self.taps[dy].reshape(self.kernel * inputs, -1))
            else:
                for dx in range(self.kernel):
                    y = mx.addmm(y, shifted(dy, dx), self.taps[dy, dx])
        return y.reshape(batch, height, width, -1)[:, :, :mel]


class Upsample2d(Kernel):
    """Transposed 3x3 convolution, stride 2, that doubles (time, mel). Weight (out, 3, 3, in).

    torch's ConvTranspose2d with padding 1 and output_padding 1. Each of the four output phases is a sum
    over the input pixel and its later neighbours, so no inserted zeros are multiplied.
    """

    reach = 1

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, 3, 3, inputs))
        self.bias = mx.zeros((outputs,))

    def settle(self) -> None:
        """One (in, 4 * out) matrix for each of the four input pixels that reach an output: (2, 2, in, 4 * out)."""
        self._replace_weight(mx.stack([mx.stack([self._phases(dy, dx) for dx in range(2)]) for dy in range(2)]))

    def _phases(self, dy: int, dx: int) -> mx.array:
        # An even phase has tap 1; an odd one has tap 2 from the pixel itself and tap 0 from the next.
        zero = mx.zeros_like(self.weight[:, 0, 0])
        columns = []
        for odd_y in range(2):
            for odd_x in range(2):
                ky, kx = (2 - 2 * dy if odd_y else 1), (2 - 2 * dx if odd_x else 1)
                columns.append(self.weight[:, ky, kx] if dy <= odd_y and dx <= odd_x else zero)
        return mx.concatenate(columns, axis=0).T

    def __call__(self, x: mx.array, ends: Ends = WHOLE) -> mx.array:
        """(batch, time, mel, in) -> (batch, 2 time, 2 mel, out), shorter by `reach` input rows at each inner side."""
        batch, time, mel, inputs = x.shape
        outputs = self.bias.size
        padded = mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])
        y = mx.tile(self.bias, 4)
        for dy in range(2):
            for dx in range(2):
                part = padded[:, dy : dy + time, dx : dx + mel].reshape(batch, time * mel, inputs)
                y = mx.addmm(y, part, self.taps[dy, dx])
        y = y.reshape(batch, time, mel, 2, 2, outputs).transpose(0, 1, 3, 2, 4, 5)
        return ends.trim(y.reshape(batch, 2 * time, 2 * mel, outputs), 2 * self.reach)


def leaky_relu(x: mx.array, slope: float = 0.1) -> mx.array:
    """max(x, slope * x)."""
    return mx.maximum(x, x * slope)


_LOG2_E = math.log2(math.e)


def sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + mx.power(2.0, x * -_LOG2_E)) if on_cpu() else mx.sigmoid(x)


def tanh(x: mx.array) -> mx.array:
    """Hyperbolic tangent, absolute error below 2e-7."""
    return 1.0 - 2.0 / (1.0 + mx.power(2.0, x * (2 * _LOG2_E))) if on_cpu() else mx.tanh(x)


def softmax(scores: mx.array) -> mx.array:
    """Softmax over the last axis."""
    if not on_cpu():
        return mx.softmax(scores, axis=-1, precise=True)
    powers = mx.power(2.0, (scores - scores.max(axis=-1, keepdims=True)) * _LOG2_E)
    return powers * (1.0 / powers.sum(axis=-1, keepdims=True))


# Base-2 log odds of the normal distribution function, divided by x, as a polynomial in x squared: a
# least-maximum fit on |x| < 6.5 that keeps gelu within 4e-6 everywhere.
_GELU_LOG_ODDS = (
    2.302045390952711,
    0.10522668608789194,
    -3.60273422006689e-4,
    -8.823835653567195e-5,
    3.229001834156143e-6,
)


def gelu(x: mx.array) -> mx.array:
    """Multiply x by the normal distribution function of x (the exact, erf form)."""
    if not on_cpu():
        return nn.gelu(x)
    square = mx.square(x)
    odds = square * _GELU_LOG_ODDS[-1]
    for coefficient in _GELU_LOG_ODDS[-2:0:-1]:
        odds = (odds + coefficient) * square
    return x / (1.0 + mx.power(2.0, x * (-_GELU_LOG_ODDS[0] - odds)))
