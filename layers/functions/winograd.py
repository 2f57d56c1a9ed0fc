"""3x3 convolution with a quarter of the multiplications, for CPUs in float32.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), F(4x4, 3x3): four neighbouring
outputs each way come from a patch of six inputs each way. Patch and kernel are transformed so that the convolution
becomes 36 products instead of 144, and over all channels and patches 36 matrix products. The result differs from the
direct one by some 1e-5 of its magnitude, since the transforms round, too.
"""

import torch
from torch.autograd.function import once_differentiable

OUTPUTS, PATCH = 4, 6  # outputs of a patch and its side, each way
POINTS = PATCH * PATCH
STRIP = 400  # patches worked on at a time: enough for the products to be quick, few enough for a CPU's cache

# Kernel (3 values) to 6 points: each row gives one.
KERNEL = (
    torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64) / 24
)
KERNEL_2D = torch.kron(KERNEL, KERNEL)  # both ways at once: [36, 9]


def transform_kernels(weight):
    """Kernels of a convolution [K, C, 3, 3] -> their points [36, C, K]."""
    outputs, inputs = weight.shape[:2]
    by_place = weight.detach().permute(2, 3, 1, 0).reshape(9, inputs * outputs)
    return (KERNEL_2D.to(weight.dtype) @ by_place).view(POINTS, inputs, outputs)


def convolve(x, kernels, bias=None):
    """Convolution with 3x3 kernels, stride 1 and padding 1, without a gradient.

    Args:
        x: float32 [B, C, H, W].
        kernels: from `transform_kernels`, [36, C, K].
        bias: [K] or None.

    Returns:
        [B, K, H, W], channels last in memory.
    """
    height, width = x.shape[2:]
    padded, down, across = _padded(x)
    result = x.new_empty(len(x), OUTPUTS * down, OUTPUTS * across, kernels.shape[2])
    for pictures, rows in _strips(len(x), down, across):
        points = _points_of(padded[pictures], rows, across)
        _outputs_of(torch.bmm(points, kernels), bias, _cells(result[pictures])[:, :, :, rows])
    return result[:, :height, :width].permute(0, 3, 1, 2)


def kernel_gradient(x, gradient):
    """Gradient by the kernels, [K, C, 3, 3], of `convolve` for inputs [B, C, H, W] and the outputs' gradient."""
    padded, down, across = _padded(x)
    channels = gradient.shape[1]
    # Behind the last outputs there are none: zeros.
    whole = gradient.new_zeros(len(x), OUTPUTS * down, OUTPUTS * across, channels)
    whole[:, : x.shape[2], : x.shape[3]] = gradient.permute(0, 2, 3, 1)
    total = x.new_zeros(POINTS, x.shape[1], channels)
    for pictures, rows in _strips(len(x), down, across):
        points = _points_of(padded[pictures], rows, across)
        spread = _spread(_cells(whole[pictures])[:, :, :, rows])
        total.baddbmm_(points.transpose(1, 2), spread)
    by_place = KERNEL_2D.to(x.dtype).T @ total.view(POINTS, -1)
    return by_place.view(3, 3, x.shape[1], channels).permute(3, 2, 0, 1)


class Winograd(torch.autograd.Function):
    """`convolve` with gradients; that by the input is a convolution of the same kind."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        # A copy, as autograd takes no view here that a ReLU will then work on in place.
        return convolve(x, transform_kernels(weight), bias).clone(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_x = convolve(gradient, transform_kernels(weight.flip(2, 3).transpose(0, 1)))
        if ctx.needs_input_grad[1]:
            by_weight = kernel_gradient(x, gradient)
        if ctx.needs_input_grad[2]:
            by_bias = gradient.sum(dim=(0, 2, 3))
        return by_x, by_weight, by_bias


def _padded(x):
    """x with a border of zeros, filled up to whole patches: ([B, 4 down + 2, 4 across + 2, C], down, across)."""
    batch, channels, height, width = x.shape
    down, across = -(-height // OUTPUTS), -(-width // OUTPUTS)
    padded = x.new_zeros(batch, OUTPUTS * down + 2, OUTPUTS * across + 2, channels)
    padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
    return padded, down, across


def _strips(batch, down, across):
    """Yields (slice of pictures, slice of rows of patches) that hold about STRIP patches: parts of one picture, or
    several whole ones."""
    parts = -(-down * across // STRIP)
    rows = -(-down // parts)
    pictures = max(1, STRIP // (down * across)) if rows == down else 1
    for picture in range(0, batch, pictures):
        for row in range(0, down, rows):
            yield slice(picture, min(picture + pictures, batch)), slice(row, min(row + rows, down))


def _cells(outputs):
    """[B, 4 down, 4 across, K] -> its view [4, 4, B, down, across, K]: place within a patch first."""
    batch, height, width, channels = outputs.shape
    cells = outputs.view(batch, height // OUTPUTS, OUTPUTS, width // OUTPUTS, OUTPUTS, channels)
    return cells.permute(2, 4, 0, 1, 3, 5)


def _points_of(padded, rows, across):
    """Transformed patches of some rows: padded [B, ., ., C] -> [36, patches, C]."""
    batch, _, width, channels = padded.shape
    count = rows.stop - rows.start
    first = OUTPUTS * rows.start
    down = [padded[:, first + i : first + i + OUTPUTS * count - 3 : OUTPUTS] for i in range(PATCH)]
    half = padded.new_empty(PATCH, batch, count, width, channels)
    _transform_inputs(down, half)
    right = [half[:, :, :, i : i + OUTPUTS * across - 3 : OUTPUTS] for i in range(PATCH)]
    points = padded.new_empty(PATCH, PATCH, batch, count, across, channels)
    _transform_inputs(right, points.transpose(0, 1))
    return points.view(POINTS, -1, channels)


def _outputs_of(points, bias, cells):
    """Back from products [36, patches, K] to outputs, written into cells [4, 4, B, rows, across, K]."""
    points = points.view(PATCH, PATCH, *cells.shape[2:])
    half = points.new_empty(OUTPUTS, *points.shape[1:])
    _transform_products(points, half)
    outputs = points.new_empty(cells.shape)
    _transform_products(half.transpose(0, 1), outputs.transpose(0, 1))
    if bias is None:
        cells.copy_(outputs)
    else:
        torch.add(outputs, bias, out=cells)


def _spread(cells):
    """The reverse of `_outputs_of`, for gradients: cells [4, 4, B, rows, across, K] -> [36, patches, K]."""
    half = cells.new_empty(PATCH, *cells.shape[1:])
    _transform_gradients(cells, half)
    points = cells.new_empty(PATCH, PATCH, *cells.shape[2:])
    _transform_gradients(half.transpose(0, 1), points.transpose(0, 1))
    return points.view(POINTS, -1, cells.shape[-1])


# The transforms one way, over the first dimension. Written out, as most of their factors are 0 or in common; in place,
# since they are bound by memory.


def _transform_inputs(d, out):
    """6 inputs to 6 points: d - a sequence of 6 tensors, out [6, ...]."""
    spare = torch.empty_like(out[0])
    torch.add(d[4], d[2], alpha=-5, out=out[0]).add_(d[0], alpha=4)
    torch.add(d[4], d[2], alpha=-4, out=out[1])
    torch.add(d[3], d[1], alpha=-4, out=spare)
    torch.sub(out[1], spare, out=out[2])
    out[1].add_(spare)
    torch.sub(d[4], d[2], out=out[3])
    torch.sub(d[3], d[1], out=spare)
    torch.add(out[3], spare, alpha=-2, out=out[4])
    out[3].add_(spare, alpha=2)
    torch.add(d[5], d[3], alpha=-5, out=out[5]).add_(d[1], alpha=4)


def _transform_products(m, out):
    """6 products to 4 outputs: m [6, ...], out [4, ...]."""
    inner, outer = m[1] + m[2], m[3] + m[4]
    torch.add(inner, outer, out=out[0]).add_(m[0])
    torch.add(inner, outer, alpha=4, out=out[2])
    torch.sub(m[1], m[2], out=inner)
    torch.sub(m[3], m[4], out=outer)
    torch.add(inner, outer, alpha=2, out=out[1])
    torch.add(inner, outer, alpha=8, out=out[3]).add_(m[5])


def _transform_gradients(y, out):
    """4 outputs' gradients to 6 products', `_transform_products` transposed: y [4, ...], out [6, ...]."""
    out[0].copy_(y[0])
    out[5].copy_(y[3])
    even, odd = y[0] + y[2], y[1] + y[3]
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.add(y[0], y[2], alpha=4, out=even)
    torch.add(y[1], y[3], alpha=4, out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.add(even, odd, alpha=-2, out=out[4])
