"""Winograd convolution: a 3x3 convolution with a quarter of the multiplications, for float32 inference on CPU.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), F(4x4, 3x3): a tile of 4x4
outputs depends on 6x6 inputs. Tile and kernel are transformed to 36 points, where the convolution of all tiles is one
matrix product over channels per point: 36 products for each tile instead of 144. The transforms round, too, so results
differ from those of a direct convolution by about 1e-5 of their magnitude.
"""

import torch
from torch import nn

from utils.system import is_amd

OUTPUTS, TILE = 4, 6  # side of a tile's outputs and inputs
POINTS = TILE * TILE
CHUNK = 400  # tiles in work at a time: enough for fast matrix products, and few enough to need little memory


def _in_two_directions(rows, divisor=1):
    """Return a matrix that transforms the columns and the rows of a flattened tile at once (a Kronecker product).

    Many products are with zeros, but each value is read and written only once, and memory limits the speed.
    """
    transform = torch.tensor(rows, dtype=torch.float64) / divisor
    return torch.kron(transform, transform)


_INPUTS_TO_POINTS = _in_two_directions([
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
])  # fmt: skip
_KERNEL_TO_POINTS = _in_two_directions(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], divisor=24
)
_POINTS_TO_OUTPUTS = _in_two_directions(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)


def use_winograd(net):
    """Replace 3x3 convolutions with WinogradConv2d if that is faster, in place; return their number.

    The network is for float32 inference on CPU from then on. Its state dict keeps its keys and its tensors.
    """
    count, pack = 0, mkl_is_slow()
    for module in list(net.modules()):
        for name, child in module.named_children():
            if _gains(child):
                setattr(module, name, WinogradConv2d(child, pack))
                count += 1
    return count


def mkl_is_slow():
    """Return True on an AMD with AVX512: MKL, which PyTorch uses for matrix products, uses only AVX2 there."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and is_amd()


def _gains(module):
    # With fewer than 128 channels, the transforms cost more than the products save.
    return (
        type(module) is nn.Conv2d
        and (module.kernel_size, module.stride, module.padding, module.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and (module.groups, module.padding_mode) == (1, "zeros")
        and min(module.in_channels, module.out_channels) >= 128
    )


class WinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1, for inference.

    Args:
        conv: nn.Conv2d; its parameters are shared, but later changes of its weight have no effect. The transformed
            kernels take four times its memory; packed, four times more for each number of tiles.
        pack: multiply by oneDNN, see `convolve`.
    """

    def __init__(self, conv, pack):
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.register_buffer("kernels", transform_kernels(conv.weight), persistent=False)
        self.packed = {} if pack else None

    def __getstate__(self):  # oneDNN's tensors can't be copied
        return {**self.__dict__, "packed": None if self.packed is None else {}}

    def forward(self, x):
        """float32 [B, C, H, W] -> [B, K, H, W], channels last in memory."""
        return convolve(x, self.kernels, self.bias, self.packed)


def transform_kernels(weight):
    """Kernels of a convolution [K, C, 3, 3] -> their points [36, C, K]."""
    outputs, inputs = weight.shape[:2]
    kernels = weight.detach().permute(2, 3, 1, 0).reshape(9, inputs * outputs)
    return (_KERNEL_TO_POINTS.to(weight.dtype) @ kernels).view(POINTS, inputs, outputs)


@torch.no_grad()
def convolve(x, kernels, bias=None, packed=None):
    """Convolution with 3x3 kernels, stride 1 and padding 1.

    Args:
        x: float [B, C, H, W].
        kernels: from `transform_kernels`, [36, C, K].
        bias: [K] or None.
        packed: None to multiply by MKL; a dict to multiply by oneDNN, {number of tiles: kernels in its layout}.

    Returns:
        [B, K, H, W], channels last in memory.
    """
    batch, channels, height, width = x.shape
    rows, columns = -(-height // OUTPUTS), -(-width // OUTPUTS)  # of tiles
    padded = x.new_zeros(batch, OUTPUTS * rows + 2, OUTPUTS * columns + 2, channels)
    padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
    inputs = padded.unfold(1, TILE, OUTPUTS).unfold(2, TILE, OUTPUTS).permute(0, 1, 2, 4, 5, 3)  # [B, ., ., 6, 6, C]
    result = x.new_empty(batch, OUTPUTS * rows, OUTPUTS * columns, kernels.shape[2])
    outputs = result.view(batch, rows, OUTPUTS, columns, OUTPUTS, -1).permute(0, 1, 3, 2, 4, 5)  # [B, ., ., 4, 4, K]
    to_points, to_outputs = _INPUTS_TO_POINTS.to(x.dtype), _POINTS_TO_OUTPUTS.to(x.dtype)
    images = max(1, CHUNK // (rows * columns)) if packed is None else 1  # fewer packed kernels
    for chunk in _chunks(batch, rows, columns, images):
        points = to_points @ inputs[chunk].reshape(-1, POINTS, channels)  # [tiles, 36, C]
        tiles = outputs[chunk]
        results = to_outputs @ _multiply(points, kernels, packed)  # [tiles, 16, K]
        torch.add(results.view(tiles.shape), 0 if bias is None else bias, out=tiles)
    return result[:, :height, :width].permute(0, 3, 1, 2)


def _multiply(points, kernels, packed):
    """Multiply [tiles, 36, C] by [36, C, K] at each point -> [tiles, 36, K]."""
    tiles, outputs = len(points), kernels.shape[2]
    if packed is None:
        return torch.bmm(points.transpose(0, 1), kernels).transpose(0, 1)
    # A grouped 1x1 convolution does this: each point is a group of channels, and each tile a pixel.
    image = points.reshape(1, tiles, 1, -1).permute(0, 3, 1, 2)
    settings = [0, 0], [1, 1], [1, 1], POINTS  # padding, stride, dilation, groups
    if tiles not in packed:
        weight = kernels.transpose(1, 2).reshape(POINTS * outputs, -1, 1, 1)
        packed[tiles] = torch.ops.mkldnn._reorder_convolution_weight(weight, *settings, image.shape)
    products = torch.ops.mkldnn._convolution_pointwise(image, packed[tiles], None, *settings, "none", [], "")
    return products.permute(0, 2, 3, 1).reshape(tiles, POINTS, outputs)


def _chunks(batch, rows, columns, images):
    """Yield (slice of images, slice of rows of tiles): parts of one image of about CHUNK tiles, or whole images."""
    parts = -(-rows * columns // CHUNK)
    step = -(-rows // parts)
    for image in range(0, batch, images):
        for row in range(0, rows, step):
            yield slice(image, min(image + images, batch)), slice(row, min(row + step, rows))
