"""Time Detect, MultiBoxLoss and the augmentation against their plain forms, in turn in one run.

    python benchmarks/layers.py [--rounds 15]

Prints the medians in milliseconds and the ratio of each pair's median. Nothing else should run on the machine.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch

from benchmarks import plain
from data import MEANS, SSDAugmentation, voc
from layers import Detect, MultiBoxLoss, PriorBox


def get_args_parser():
    parser = argparse.ArgumentParser(description="Time SSD's layers against their plain forms.")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each side")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    return parser


def crowded_scene():
    """Offsets and scores of a crowded picture: 400 confident priors, thousands just above the threshold."""
    random = np.random.RandomState(2000)
    loc = (random.standard_normal((1, 8732, 4)) * 0.5).astype(np.float32)
    conf = random.standard_normal((1, 8732, 21)).astype(np.float32)
    conf[..., 0] += 6
    conf[0, random.permutation(8732)[:400], random.randint(1, 21, 400)] += 8
    return torch.from_numpy(loc), torch.softmax(torch.from_numpy(conf), dim=-1)


def training_batch(pictures=32):
    """Predictions and targets of a batch: one to eight objects a picture."""
    random = np.random.RandomState(3000)
    targets = []
    for _ in range(pictures):
        count = random.randint(1, 9)
        corner, side = random.uniform(0, 0.6, (count, 2)), random.uniform(0.04, 0.39, (count, 2))
        label = random.randint(0, 20, (count, 1))
        targets.append(torch.from_numpy(np.hstack([corner, corner + side, label]).astype(np.float32)))
    loc = torch.randn(pictures, 8732, 4, requires_grad=True)
    conf = torch.randn(pictures, 8732, 21, requires_grad=True)
    return loc, conf, targets


def cases():
    """(name, ours, plain form): functions without arguments that do the same work."""
    priors = PriorBox(voc).forward()
    loc, scores = crowded_scene()
    layer = Detect(21)
    yield "Detect, one crowded picture", lambda: layer(loc, scores, priors), lambda: plain.detect(loc, scores, priors)

    loc_p, conf_p, targets = training_batch()
    criterion = MultiBoxLoss(21)

    def step(loss):
        loc_p.grad = conf_p.grad = None
        sum(loss()).backward()

    yield (
        "MultiBoxLoss, 32 pictures, forward and backward",
        lambda: step(lambda: criterion((loc_p, conf_p, priors), targets)),
        lambda: step(lambda: plain.multibox_loss(loc_p, conf_p, priors, targets)),
    )

    image = cv2.GaussianBlur(np.random.RandomState(0).randint(0, 256, (375, 500, 3), np.uint8), (9, 9), 3)
    boxes = np.array([[0.1, 0.2, 0.5, 0.7], [0.4, 0.5, 0.9, 0.95]], np.float32)
    labels = np.array([1, 2])
    ours, rng = SSDAugmentation(rng=np.random.default_rng(0)), np.random.default_rng(0)
    yield (
        "augmentation, 40 pictures of 500x375 (a picture)",
        lambda: [ours(image, boxes, labels) for _ in range(40)],
        lambda: [plain.augment(image, boxes, MEANS, rng) for _ in range(40)],
    )


def milliseconds(function):
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1000


def main(args):
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)  # as in a loader's worker
    print(f"{'':<50}{'ours, ms':>10}{'plain, ms':>11}{'ratio':>8}")
    for name, ours, peer in cases():
        ours(), peer()
        pairs = [(milliseconds(ours), milliseconds(peer)) for _ in range(args.rounds)]
        mine, theirs = (median(side) / (40 if "40" in name else 1) for side in zip(*pairs, strict=True))
        print(f"{name:<50}{mine:>10.1f}{theirs:>11.1f}{theirs / mine:>8.1f}")


if __name__ == "__main__":
    main(get_args_parser().parse_args())
