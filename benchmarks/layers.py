"""Detect, MultiBoxLoss and the augmentation against their plain forms."""

import cv2
import numpy as np
import torch

from benchmarks import plain
from benchmarks.measure import Case
from data import MEANS, SSDAugmentation, voc
from data.transforms import resize, to_input
from inference.engines.quantisation import SAMPLE
from layers import Detect, MultiBoxLoss, PriorBox
from weights.catalogue import EMBEDDED
from weights.checkpoint import load_network

SURE = 0.3  # what Object_Detection.py is told to show in README


def cases(settings):
    """Yields Cases."""
    device = settings.device
    priors = PriorBox(voc).forward().to(device)
    loc, scores = (tensor.to(device) for tensor in crowded_scene())
    layer = Detect(21)
    yield Case(
        "Detect, one crowded picture",
        lambda: layer(loc, scores, priors),
        lambda: plain.detect(loc, scores, priors),
    )

    found = [tensor.to(device) for tensor in photographed_scene()]
    layer_at = Detect(21, conf_thresh=SURE)
    yield Case(
        f"Detect, a frame of data/sample.mp4 by the embedded network, scores above {SURE}",
        lambda: layer_at(*found),
        lambda: plain.detect(*found, conf_thresh=SURE),
    )

    loc_p, conf_p, targets = training_batch(device)
    criterion = MultiBoxLoss(21)

    def step(loss):
        loc_p.grad = conf_p.grad = None
        sum(loss()).backward()

    yield Case(
        "MultiBoxLoss, 32 pictures, forward and backward (a batch)",
        lambda: step(lambda: criterion((loc_p, conf_p, priors), targets)),
        lambda: step(lambda: plain.multibox_loss(loc_p, conf_p, priors, targets)),
    )

    cv2.setNumThreads(1)  # as in a loader's worker
    image, boxes, labels = photograph()
    ours, rng = SSDAugmentation(rng=np.random.default_rng(0)), np.random.default_rng(0)
    yield Case(
        "augmentation of a picture of 500x375",
        lambda: [ours(image, boxes, labels) for _ in range(40)],
        lambda: [plain.augment(image, boxes, MEANS, rng) for _ in range(40)],
        items=40,
    )
    cv2.setNumThreads(-1)


def crowded_scene():
    """Offsets and scores of a crowded picture: 400 confident priors, thousands just above the threshold."""
    random = np.random.RandomState(2000)
    loc = (random.standard_normal((1, 8732, 4)) * 0.5).astype(np.float32)
    conf = random.standard_normal((1, 8732, 21)).astype(np.float32)
    conf[..., 0] += 6
    conf[0, random.permutation(8732)[:400], random.randint(1, 21, 400)] += 8
    return torch.from_numpy(loc), torch.softmax(torch.from_numpy(conf), dim=-1)


def photographed_scene():
    """Offsets [1, P, 4], scores [1, P, C] and priors [P, 4] of the embedded network in a frame of the bundled clip."""
    net, info = load_network(EMBEDDED, "train")
    frame = cv2.cvtColor(cv2.VideoCapture(str(SAMPLE)).read()[1], cv2.COLOR_BGR2RGB)
    with torch.inference_mode():
        picture = torch.from_numpy(resize(frame, net.size))[None]
        loc, conf, priors = net.eval()(to_input(picture, info.channel_order))
        return loc, conf.softmax(-1), priors


def training_batch(device, pictures=32):
    """Predictions and targets of a batch: one to eight objects a picture."""
    random = np.random.RandomState(3000)
    targets = []
    for _ in range(pictures):
        count = random.randint(1, 9)
        corner, side = random.uniform(0, 0.6, (count, 2)), random.uniform(0.04, 0.39, (count, 2))
        label = random.randint(0, 20, (count, 1))
        targets.append(torch.from_numpy(np.hstack([corner, corner + side, label]).astype(np.float32)).to(device))
    loc = torch.randn(pictures, 8732, 4, device=device, requires_grad=True)
    conf = torch.randn(pictures, 8732, 21, device=device, requires_grad=True)
    return loc, conf, targets


def photograph():
    """A smooth random picture uint8 [375, 500, 3] with two objects: (image, boxes as fractions [2, 4], labels [2])."""
    image = cv2.GaussianBlur(np.random.RandomState(0).randint(0, 256, (375, 500, 3), np.uint8), (9, 9), 3)
    boxes = np.array([[0.1, 0.2, 0.5, 0.7], [0.4, 0.5, 0.9, 0.95]], np.float32)
    return image, boxes, np.array([1, 2])
