"""Entry points for torch.hub.

    net = torch.hub.load("path/to/this/repository", "ssd300", source="local", weights="ssd300_mAP_77.43_v2.pth")
    detector = torch.hub.load("path/to/this/repository", "detector", source="local")
    detections = detector(["photo.jpg"])[0]

A GitHub repository ("owner/name") in place of the path works without source="local".
"""

dependencies = [
    "torch", "torchvision", "numpy", "cv2", "PIL", "imageio_ffmpeg", "tqdm", "defusedxml", "filelock", "platformdirs",
    "requests",
]  # fmt: skip


def ssd300(weights=None, phase="test", num_classes=21, size=300):
    """SSD300 (arXiv 1512.02325) in evaluation mode: an nn.Module, see ssd.SSD for its input and output.

    Args:
        weights: checkpoint, or name of a published one to download; None initializes from scratch.
        phase: "test" gives detections, "train" gives loc, conf and priors.
        num_classes: including the background; ignored if `weights` are given.
        size: side of the input, 300 or 512.

    Raises:
        InputError: the weights are missing, or belong to another network.
    """
    from ssd import build_ssd
    from utils.errors import InputError
    from weights.catalogue import resolve
    from weights.checkpoint import load_network

    if weights is None:
        return build_ssd(phase, size, num_classes).eval()
    net, info = load_network(resolve(weights), phase)
    if info.config.min_dim != size:
        raise InputError(f"{info.path}: a network of {info.config.name}; load it as ssd{info.config.min_dim}")
    return net


def ssd512(weights=None, phase="test", num_classes=21):
    """SSD512; otherwise as `ssd300`."""
    return ssd300(weights, phase, num_classes, size=512)


def detector(weights=None, **settings):
    """A Detector, which takes images and gives boxes in pixels; see inference.Detector for its settings."""
    from inference import Detector

    return Detector(weights, **settings)
