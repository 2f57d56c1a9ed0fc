"""SSD: Single Shot MultiBox Detector (Liu et al., ECCV 2016, arXiv 1512.02325), the network.

    net = build_ssd("test")                       # SSD300 of the paper, 21 classes
    net.load_weights("weights/ssd300_mAP_77.43_v2.pth")
    detections = net(images)                      # [batch, 21, 200, 5]

The layers have the names and indices of ssd.pytorch, so that its published state dicts load with strict=True:
`vgg.N.*  L2Norm.weight  extras.N.*  loc.N.*  conf.N.*`.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from data.config import coco, coco512, voc, voc512
from layers.functions import Detect, PriorBox
from layers.modules import L2Norm

# VGG16 up to conv5_3: output channels of each 3x3 convolution; M: max pooling; C: max pooling with ceil_mode (75 -> 38,
# so that conv4_3 has 38x38 cells, as in the paper).
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "C", 512, 512, 512, "M", 512, 512, 512)
CONV4_3 = 23  # self.vgg[:23] ends with conv4_3 and its ReLU
# Extra feature layers: channels of the 1x1 convolution, then channels, kernel, stride and padding of the next one.
EXTRAS = {
    300: ((256, 512, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 1, 0), (128, 256, 3, 1, 0)),
    512: ((256, 512, 3, 2, 1), *((128, 256, 3, 2, 1),) * 3, (128, 256, 4, 1, 1)),
}


class ConvBN(nn.Conv2d):
    """A convolution followed by BatchNorm, as one layer, so that the keys of the state dict stay the same.

    The convolution keeps its bias, although BatchNorm cancels it, because the layer from `fused` needs one.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.bn = nn.BatchNorm2d(self.out_channels)

    def forward(self, x):
        return self.bn(super().forward(x))

    def fused(self):
        """Return an nn.Conv2d that computes the same in evaluation mode."""
        plain = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation
        )  # nn.utils.fuse_conv_bn_eval alone would copy this layer with its BatchNorm
        plain.load_state_dict({"weight": self.weight, "bias": self.bias})
        return nn.utils.fuse_conv_bn_eval(plain.to(self.weight).eval(), self.bn.eval())


class SSD(nn.Module):
    """VGG16 base, extra feature layers, and a box head and a class head on each feature map (section 2.1 of the paper).

    Args:
        phase: "train" or "test".
        config: an SSDConfig; sets the input size and the priors.
        num_classes: number of classes, including the background.
        width: factor on every channel count of base and extra layers (at least 16 channels); 1 is the paper's network.
        batch_norm: add BatchNorm after each convolution of base and extra layers, for training from scratch.

    Raises:
        ValueError: the phase, size, class count or width is invalid; the message says what is allowed.
    """

    def __init__(self, phase, config, num_classes, width=1.0, batch_norm=False):
        super().__init__()
        if phase not in ("train", "test"):
            raise ValueError(f"phase must be 'train' or 'test', not {phase!r}")
        if config.min_dim not in EXTRAS:
            raise ValueError(f"size must be one of {sorted(EXTRAS)}, not {config.min_dim!r}")
        if not isinstance(num_classes, int) or num_classes < 2:
            raise ValueError(f"num_classes must be 2 or more (it counts the background), not {num_classes!r}")
        if not 0 < width < math.inf:
            raise ValueError(f"width must be finite and greater than 0, not {width!r}")
        self.phase = phase
        self.config = self.cfg = config
        self.size = config.min_dim
        self.num_classes = num_classes
        self.width = width
        self.priorbox = PriorBox(config)
        self.register_buffer("priors", self.priorbox.forward(), persistent=False)

        conv = ConvBN if batch_norm else nn.Conv2d
        self.vgg = nn.ModuleList(vgg(conv, width))
        self.L2Norm = L2Norm(scaled(512, width), 20)
        self.extras = nn.ModuleList(extra_layers(conv, width, self.size))
        sources = [self.L2Norm.n_channels, *(layer.out_channels for layer in (self.vgg[-2], *self.extras[1::2]))]
        loc, conf = heads(sources, config.boxes_per_cell, num_classes)
        self.loc, self.conf = nn.ModuleList(loc), nn.ModuleList(conf)
        self.softmax = nn.Softmax(dim=-1)
        self.detect = Detect(num_classes, 0, 200, 0.01, 0.45, variance=config.variance)
        self.reset_parameters()

    def reset_parameters(self, background_probability=0.9):
        """Initialize for training from scratch.

        Base and extra layers use He initialization. The weights of the heads start near zero. The biases of the class
        heads favor the background, because nearly all priors are negatives; this saves the first epochs.
        """
        for module in (*self.vgg, *self.extras):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        for head in (*self.loc, *self.conf):
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
        odds = background_probability / (1 - background_probability)
        for head in self.conf:
            with torch.no_grad():
                head.bias.view(-1, self.num_classes)[:, 0] = math.log(odds * (self.num_classes - 1))

    def features(self, x):
        """Return the heads' input maps, from fine to coarse: images [B, 3, size, size] -> list of [B, C, H, W]."""
        for layer in self.vgg[:CONV4_3]:
            x = layer(x)
        sources = [self.L2Norm(x)]  # conv4_3
        for layer in self.vgg[CONV4_3:]:
            x = layer(x)
        sources.append(x)  # conv7
        for index, conv in enumerate(self.extras):
            x = F.relu(conv(x), inplace=True)
            if index % 2 == 1:
                sources.append(x)
        return sources

    def raw(self, x):
        """Return the heads' output in either phase: loc [B, priors, 4], conf [B, priors, classes] before softmax."""
        sources = self.features(x)
        loc = [_cells_last(head(source), 4) for head, source in zip(self.loc, sources, strict=True)]
        conf = [_cells_last(head(source), self.num_classes) for head, source in zip(self.conf, sources, strict=True)]
        return torch.cat(loc, dim=1), torch.cat(conf, dim=1)

    def forward(self, x):
        """Run the network.

        Args:
            x: float [B, 3, size, size], RGB in 0..255 minus the mean (123, 117, 104).

        Returns:
            Phase "test": detections [B, classes, 200, 5], see `Detect`. Phase "train": (loc [B, priors, 4],
            conf [B, priors, classes] before softmax, priors [priors, 4] in center-size form).

        Raises:
            ValueError: x does not have this shape.
        """
        if x.dim() != 4 or x.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"expected images of shape [batch, 3, {self.size}, {self.size}], not {list(x.shape)}")
        loc, conf = self.raw(x)
        if self.phase == "test":
            return self.detect(loc, self.softmax(conf.float()), self.priors)
        return loc, conf, self.priors

    def fuse(self):
        """Fold each BatchNorm into its convolution, in place, for evaluation only.

        Returns:
            The network itself, in evaluation mode, without BatchNorm in its state dict.
        """
        for layers in (self.vgg, self.extras):
            for index, layer in enumerate(layers):
                if isinstance(layer, ConvBN):
                    layers[index] = layer.fused()
        return self.eval()

    def load_weights(self, base_file):
        """Load a state dict (or a checkpoint that holds one) from a .pth or .pkl file, with strict=True.

        Raises:
            ValueError: the file has another suffix.
        """
        if not str(base_file).endswith((".pth", ".pkl")):
            raise ValueError(f"{base_file}: only .pth and .pkl files are supported")
        self.load_state_dict(plain_state_dict(torch.load(base_file, map_location="cpu", weights_only=True)))


class Heads(nn.Module):
    """A module that computes SSD.raw in its forward, for DistributedDataParallel, torch.compile and OpenVINO."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net.raw(x)


def plain_state_dict(loaded):
    """Return the state dict of a loaded file, plain or under "state_dict", without DataParallel's "module." prefix."""
    state = loaded.get("state_dict", loaded)
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def scaled(channels, width):
    """Return the paper's channel count times `width`, at least 16."""
    return max(16, round(channels * width))


def vgg(conv, width):
    """Return the base's layers: VGG16 to conv5_3, pool5 with stride 1, fc6 and fc7 as convolutions (section 3)."""
    layers, channels = [], 3
    for out in VGG16:
        if out in ("M", "C"):
            layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=out == "C"))
        else:
            layers += [conv(channels, scaled(out, width), 3, padding=1), nn.ReLU(inplace=True)]
            channels = scaled(out, width)
    pool5 = nn.MaxPool2d(3, stride=1, padding=1)
    conv6 = conv(channels, scaled(1024, width), 3, padding=6, dilation=6)
    conv7 = conv(scaled(1024, width), scaled(1024, width), 1)
    return [*layers, pool5, conv6, nn.ReLU(inplace=True), conv7, nn.ReLU(inplace=True)]


def extra_layers(conv, width, size):
    """Return the layers after conv7: pairs of a 1x1 convolution and one that reduces the size of the map."""
    layers, channels = [], scaled(1024, width)
    for narrow, out, kernel, stride, padding in EXTRAS[size]:
        layers.append(conv(channels, scaled(narrow, width), 1))
        layers.append(conv(scaled(narrow, width), scaled(out, width), kernel, stride, padding))
        channels = scaled(out, width)
    return layers


def heads(source_channels, boxes_per_cell, num_classes):
    """Return the 3x3 convolutions on each feature map that predict offsets and class scores."""
    pairs = list(zip(source_channels, boxes_per_cell, strict=True))
    loc = [nn.Conv2d(channels, boxes * 4, 3, padding=1) for channels, boxes in pairs]
    conf = [nn.Conv2d(channels, boxes * num_classes, 3, padding=1) for channels, boxes in pairs]
    return loc, conf


def _cells_last(prediction, values):
    """[B, boxes * values, H, W] -> [B, H * W * boxes, values]."""
    return prediction.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, values))


def build_ssd(phase, size=300, num_classes=21, *, config=None, width=1.0, batch_norm=False):
    """Build SSD300 or SSD512.

    Args:
        phase: "train" or "test".
        size: 300 or 512; ignored if `config` is given.
        num_classes: number of classes, including the background.
        config: an SSDConfig. If None, the priors are chosen as in ssd.pytorch: VOC's for 21 classes, COCO's for any
            other number.
        width, batch_norm: see `SSD`.

    Raises:
        ValueError: the phase, size, class count or width is invalid; the message says what is allowed.
    """
    if config is None:
        if size not in EXTRAS:
            raise ValueError(f"size must be one of {sorted(EXTRAS)}, not {size!r}")
        for_voc, for_coco = {300: (voc, coco), 512: (voc512, coco512)}[size]
        config = for_voc if num_classes == 21 else for_coco
    return SSD(phase, config, num_classes, width, batch_norm)
