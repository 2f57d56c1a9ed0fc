"""Winograd convolution: a 3x3 convolution with a quarter of the multiplications, for float32 inference on CPU.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), F(4x4, 3x3): a tile of 4x4
outputs depends on 6x6 inputs. Tile and kernel are transformed to 36 points, where the convolution of all tiles is one
matrix product over channels per point: 36 products for each tile instead of 144. The transforms round, too, so results
differ from those of a direct convolution by about 1e-5 of their magnitude.
"""

import torch
from torch import nn

MIN_CHANNELS = 128  # in and out; with fewer, the transforms cost more than the products save
OUTPUTS, TILE = 4, 6  # side of a tile's outputs and inputs
POINTS = TILE * TILE
CHUNK = 400  # tiles in work at a time: large enough for fast matrix products, small enough for the CPU's cache

# Transforms 3 kernel values to 6 points. The Kronecker product, [36, 9], transforms both directions at once.
_KERNEL = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64)
_KERNEL_2D = torch.kron(_KERNEL / 24, _KERNEL / 24)


def use_winograd(net):
    """Replace each 3x3 convolution that becomes faster by a WinogradConv2d, in place; return their number.

    The network is for float32 inference on CPU from then on. Its state dict keeps its keys and its tensors.
    """
    count = 0
    for module in list(net.modules()):
        for name, child in module.named_children():
            if _gains(child):
                setattr(module, name, WinogradConv2d(child))
                count += 1
    return count


def _gains(module):
    return (
        type(module) is nn.Conv2d
        and (module.kernel_size, module.stride, module.padding, module.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and (module.groups, module.padding_mode) == (1, "zeros")
        and min(module.in_channels, module.out_channels) >= MIN_CHANNELS
    )


class WinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1, for inference.

    Args:
        conv: nn.Conv2d; its parameters are shared. The transformed kernels are computed once and take four times the
            memory, so later changes of the weight have no effect.
    """

    def __init__(self, conv):
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.register_buffer("kernels", transform_kernels(conv.weight), persistent=False)

    def forward(self, x):
        """float32 [B, C, H, W] -> [B, K, H, W], channels last in memory."""
        return convolve(x, self.kernels, self.bias)


def transform_kernels(weight):
    """Kernels of a convolution [K, C, 3, 3] -> their points [36, C, K]."""
    outputs, inputs = weight.shape[:2]
    kernels = weight.detach().permute(2, 3, 1, 0).reshape(9, inputs * outputs)
    return (_KERNEL_2D.to(weight.dtype) @ kernels).view(POINTS, inputs, outputs)


@torch.no_grad()
def convolve(x, kernels, bias=None):
    """Convolution with 3x3 kernels, stride 1 and padding 1.

    Args:
        x: float [B, C, H, W].
        kernels: from `transform_kernels`, [36, C, K].
        bias: [K] or None.

    Returns:
        [B, K, H, W], channels last in memory.
    """
    batch, channels, height, width = x.shape
    rows, columns = -(-height // OUTPUTS), -(-width // OUTPUTS)  # of tiles
    padded = x.new_zeros(batch, OUTPUTS * rows + 2, OUTPUTS * columns + 2, channels)
    padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
    result = x.new_empty(batch, OUTPUTS * rows, OUTPUTS * columns, kernels.shape[2])
    tiles = result.view(batch, rows, OUTPUTS, columns, OUTPUTS, -1).permute(2, 4, 0, 1, 3, 5)  # [4, 4, B, rows, ., K]
    for images, chunk in _chunks(batch, rows, columns):
        points = _input_points(padded[images], chunk, columns)
        _write_outputs(torch.bmm(points, kernels), bias, tiles[:, :, images, chunk])
    return result[:, :height, :width].permute(0, 3, 1, 2)


def _chunks(batch, rows, columns):
    """Yield (slice of images, slice of rows of tiles) of about CHUNK tiles: parts of one image, or whole images."""
    parts = -(-rows * columns // CHUNK)
    step = -(-rows // parts)
    images = max(1, CHUNK // (rows * columns)) if step == rows else 1
    for image in range(0, batch, images):
        for row in range(0, rows, step):
            yield slice(image, min(image + images, batch)), slice(row, min(row + step, rows))


def _input_points(padded, chunk, columns):
    """Transform some rows of tiles: padded inputs [B, ., ., C] -> [36, tiles, C]."""
    batch, _, width, channels = padded.shape
    rows, top = chunk.stop - chunk.start, OUTPUTS * chunk.start
    down = [padded[:, top + i : top + i + OUTPUTS * rows - 3 : OUTPUTS] for i in range(TILE)]
    half = padded.new_empty(TILE, batch, rows, width, channels)
    _transform_inputs(down, half)
    across = [half[:, :, :, i : i + OUTPUTS * columns - 3 : OUTPUTS] for i in range(TILE)]
    points = padded.new_empty(TILE, TILE, batch, rows, columns, channels)
    _transform_inputs(across, points.transpose(0, 1))
    return points.view(POINTS, -1, channels)


def _write_outputs(points, bias, tiles):
    """Transform products [36, tiles, K] back to outputs, written into tiles [4, 4, B, rows, columns, K]."""
    points = points.view(TILE, TILE, *tiles.shape[2:])
    half = points.new_empty(OUTPUTS, *points.shape[1:])
    _transform_products(points, half)
    outputs = points.new_empty(tiles.shape)
    _transform_products(half.transpose(0, 1), outputs.transpose(0, 1))
    if bias is None:
        tiles.copy_(outputs)
    else:
        torch.add(outputs, bias, out=tiles)


# The transforms in one direction, over the first dimension. They are written out because most of their factors are 0
# or shared, and in place because memory bandwidth limits their speed.


def _transform_inputs(d, out):
    """6 inputs to 6 points: d is a sequence of 6 tensors, out is [6, ...]."""
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
    """6 products to 4 outputs: m is [6, ...], out is [4, ...]."""
    inner, outer = m[1] + m[2], m[3] + m[4]
    torch.add(inner, outer, out=out[0]).add_(m[0])
    torch.add(inner, outer, alpha=4, out=out[2])
    torch.sub(m[1], m[2], out=inner)
    torch.sub(m[3], m[4], out=outer)
    torch.add(inner, outer, alpha=2, out=out[1])
    torch.add(inner, outer, alpha=8, out=out[3]).add_(m[5])
