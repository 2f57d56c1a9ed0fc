"""The network with Detect, against torchvision's SSD300 and against the machine's limit; and the preprocessing."""

import math
from contextlib import suppress

import numpy as np
import torch
from torchvision.models.detection import ssd300_vgg16

from benchmarks.measure import Case
from data import VOC_CLASSES, BaseTransform, voc
from data.transforms import resize, to_input
from inference import Detector
from inference.engines import choose
from ssd import build_ssd
from utils.errors import InputError
from utils.system import choose_precision
from weights.checkpoint import CheckpointInfo

GFLOP = 62.8  # of SSD300 at width 1 and 21 classes, a picture


def cases(settings):
    """Yields Cases."""
    device = settings.device
    frames = [np.random.RandomState(i).randint(0, 256, (360, 640, 3), np.uint8) for i in range(64)]
    yield from preprocessing(frames[0])
    peer = torchvisions_network(device)
    picture = torch.rand(1, 3, 300, 300, device=device)
    for engine, precision in engines(device):
        detector = paper_network(device, engine, precision)
        small = [resize(frames[0], 300)]
        name = f"one picture through network and Detect, {engine}, {precision_name(detector)}"
        yield Case(name, lambda d=detector, s=small: d(s), lambda: peer(picture), "torchvision's ssd300_vgg16, float32")
    if device.type == "cuda":
        detector = paper_network(device, "torch", "auto")
        small = torch.from_numpy(np.stack([resize(frame, 300) for frame in frames])).to(device)
        x = to_input(small, "RGB", detector.dtype)
        with torch.inference_mode():
            many = picture.expand(64, -1, -1, -1).contiguous()
            name = f"network at batch 64, {precision_name(detector)}"
            yield Case(name, lambda: detector.net.raw(x), lambda: peer(many), "torchvision's ssd300_vgg16, float32", 64)
        yield Case("Detector, 64 frames of 640x360 in host memory", lambda: detector(frames), items=64)


def precision_name(detector):
    return str(detector.dtype).removeprefix("torch.")


def preprocessing(frame):
    transform = BaseTransform(300, (104, 117, 123))

    def theirs():
        x = transform(frame)[0].astype(np.float32)[:, :, ::-1].copy()
        return torch.from_numpy(x).permute(2, 0, 1).contiguous()[None]

    yield Case(
        "preprocessing of a frame of 640x360",
        lambda: to_input(torch.from_numpy(resize(frame, 300))[None]),
        theirs,
        "a course script's",
        rounds=100,
    )


def engines(device):
    """(engine, precision) pairs that can be measured here."""
    yield "torch", "float32"
    if choose_precision("auto", device) != torch.float32:
        yield "torch", "auto"
    if device.type == "cpu":
        for engine, precision in (("onnxruntime", "float32"), ("openvino", "auto"), ("openvino", "int8")):
            with suppress(InputError):  # requirements-engines.txt isn't installed
                choose(engine, "cpu", precision)
                yield engine, precision


def fastest(device):
    """The engine and precision that take the least time here, as far as it is installed."""
    return list(engines(device))[-1]


def paper_network(device, engine, precision):
    """A Detector at the paper's width, with random weights that find next to nothing."""
    torch.manual_seed(0)
    info = CheckpointInfo(voc, VOC_CLASSES, 1.0)
    return Detector.of_network(build_ssd("test").eval(), info, device, precision, threshold=0.01, engine=engine)


def torchvisions_network(device):
    """torchvision's SSD300 of 21 classes; its class heads believe in background as ours do: Detect has little to do."""
    torch.manual_seed(0)
    net = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=21).to(device).eval()
    for head in net.head.classification_head.module_list:
        with torch.no_grad():
            head.bias.view(-1, 21)[:, 0] += math.log(9 * 20)

    @torch.inference_mode()
    def detect(pictures):
        return net(list(pictures))

    return detect
