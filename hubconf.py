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


def ssd300(weights=None, phase="test", num_classes=21):
    """SSD300 (arXiv 1512.02325) in evaluation mode: an nn.Module, see ssd.SSD for its input and output.

    Args:
        weights: checkpoint, or name of a published one to download; None initializes from scratch.
        phase: "test" gives detections, "train" gives loc, conf and priors.
        num_classes: including the background; ignored if `weights` are given.

    Raises:
        InputError: the weights are missing, or belong to another network.
    """
    return _network(300, weights, phase, num_classes)


def ssd512(weights=None, phase="test", num_classes=21):
    """SSD512; otherwise as `ssd300`."""
    return _network(512, weights, phase, num_classes)


def detector(weights=None, **settings):
    """A Detector, which takes images and gives boxes in pixels; see inference.Detector for its settings."""
    from inference import Detector

    return Detector(weights, **settings)


def _network(size, weights, phase, num_classes):
    from ssd import build_ssd
    from utils.errors import InputError
    from weights.catalogue import resolve
    from weights.checkpoint import load_network

    if weights is None:
        return build_ssd(phase, size, num_classes).eval()
    path = resolve(weights)
    net, info = load_network(path, phase)
    if info.config.min_dim != size:
        raise InputError(f"{path}: a network of {info.config.name}; load it as ssd{info.config.min_dim}")
    return net.eval()
