"""What feeds a training step, and the step itself."""

import os
from types import SimpleNamespace

import cv2
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from benchmarks import plain
from benchmarks.layers import photograph, training_batch
from benchmarks.measure import Case
from data import MEANS, SSDAugmentation, voc
from data.config import RGB_MEANS
from data.transforms import to_input
from layers import MultiBoxLoss, PriorBox
from layers.modules.multibox_loss import matched_priors
from ssd import build_ssd
from training.network import Heads, bring_to, build_optimizer
from training.samples import MatchedBatch, RunBatches, TrainingSamples
from utils.system import choose_precision

PLAIN_SGD = SimpleNamespace(weight_decay=5e-4, caffe_bias=False, optimizer="sgd", lr=1e-6, momentum=0.9)


class Photographs:
    """A data set of 64 decoded pictures in memory."""

    def __init__(self):
        self.image, self.boxes, self.labels = photograph()

    def __len__(self):
        return 64

    def pull_image(self, index):
        return self.image

    def pull_target(self, index, width, height):
        return [[*box, label] for box, label in zip(self.boxes.tolist(), self.labels.tolist(), strict=True)]


def cases(settings):
    """Yields Cases."""
    yield from loader_cases()
    yield from step_cases(settings.device)


def loader_cases():
    """What one worker of the loader does for a batch, on one core."""
    cv2.setNumThreads(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    samples = TrainingSamples(Photographs(), SSDAugmentation(300, MEANS, subtract_mean=False), 0, lambda _: 300)
    collate = MatchedBatch(MultiBoxLoss(21), {300: PriorBox(voc).forward()})
    theirs = torchvision_pipeline()
    image, boxes, labels = photograph()
    picture = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1).contiguous())
    pixels = torch.from_numpy(boxes) * torch.tensor([500, 375, 500, 375])
    target = {
        "boxes": tv_tensors.BoundingBoxes(pixels, format="XYXY", canvas_size=(375, 500)),
        "labels": torch.from_numpy(labels),
    }
    yield Case(
        "loader, a picture of 500x375 in memory, matching included",
        lambda: collate([samples[position] for position in range(32)]),
        lambda: torch.stack([theirs(picture, target)[0] for _ in range(32)]),
        "torchvision's v2 transforms, without matching",
        items=32,
    )
    cv2.setNumThreads(-1)
    torch.set_num_threads(threads)


def torchvision_pipeline():
    """The augmentation that torchvision trains its SSD300 with, up to a float picture of 300x300."""
    return v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=dict.fromkeys([tv_tensors.Image], RGB_MEANS)),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.Resize((300, 300), antialias=True),
            v2.SanitizeBoundingBoxes(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def step_cases(device):
    """A whole step of SGD at width 1."""
    batch = 4 if device.type == "cpu" else 32
    _, _, targets = training_batch(device, batch)
    pictures = torch.randint(0, 256, (batch, 300, 300, 3), dtype=torch.uint8, device=device)
    criterion = MultiBoxLoss(21)
    for precision in dict.fromkeys((torch.float32, choose_precision("auto", device))):
        step = our_step(device, precision, pictures, targets, criterion)
        name = f"training step, width 1, {batch} pictures, {str(precision).removeprefix('torch.')}"
        peer = plain_step(device, pictures, targets)
        yield Case(name, step, peer, "float32, own layout, plain loss", batch, rounds=5)
    if device.type == "cuda":
        yield from loop_cases(device, precision)


def loop_cases(device, precision, batch=128, steps=20):
    """A whole training loop, and its two halves alone: the slower one bounds it."""
    workers = len(os.sched_getaffinity(0))
    _, _, targets = training_batch(device, batch)
    pictures = torch.randint(0, 256, (batch, 300, 300, 3), dtype=torch.uint8, device=device)
    criterion = MultiBoxLoss(21)
    step = our_step(device, precision, pictures, targets, criterion)
    kind = str(precision).removeprefix("torch.")
    yield Case(f"training step alone, width 1, {batch} pictures, {kind}", step, items=batch)

    def batches():
        samples = TrainingSamples(Photographs(), SSDAugmentation(300, MEANS, subtract_mean=False), 0, lambda _: 300)
        collate = MatchedBatch(criterion, {300: PriorBox(voc).forward()})
        return torch.utils.data.DataLoader(
            samples,
            batch_sampler=RunBatches(0, 10**9, batch),
            collate_fn=collate,
            num_workers=workers,
            pin_memory=True,
            prefetch_factor=4,
        )

    endless = iter(batches())
    yield Case(f"loader alone, {workers} workers", lambda: [next(endless) for _ in range(steps)], items=steps * batch)
    train = our_training(device, precision, criterion)

    def loop():
        for _ in range(steps):
            *tensors, _ = next(endless)
            train(*(tensor.to(device, non_blocking=True) for tensor in tensors))

    yield Case(f"training with its loader, width 1, {kind}", loop, items=steps * batch)


def our_training(device, precision, criterion):
    """A step as train.py takes it: a function of pictures uint8 RGB [B, 300, 300, 3] and what they were matched to."""
    net, memory_format = bring_to(device, build_ssd("train"), precision, width=1)
    optimizer, heads = build_optimizer(net, PLAIN_SGD, device), Heads(net)

    def train(pictures, loc_t, conf_t):
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            loc, conf = heads(to_input(pictures, memory_format=memory_format))
        loss_l, loss_c = criterion.sums(loc, conf, loc_t, conf_t)
        ((loss_l + loss_c) / matched_priors(conf_t)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return train


def our_step(device, precision, pictures, targets, criterion):
    """Such a step with the matching, which the loader's workers do otherwise."""
    train, priors = our_training(device, precision, criterion), PriorBox(voc).forward().to(device)
    return lambda: train(pictures, *criterion.match_targets(targets, priors))


def plain_step(device, pictures, targets):
    """A step in float32, in PyTorch's own memory layout, matching and loss picture by picture."""
    net = build_ssd("train").to(device)
    optimizer = torch.optim.SGD(net.parameters(), PLAIN_SGD.lr, PLAIN_SGD.momentum, weight_decay=PLAIN_SGD.weight_decay)

    def step():
        x = pictures.permute(0, 3, 1, 2).contiguous().float() - torch.tensor(RGB_MEANS, device=device).view(1, 3, 1, 1)
        optimizer.zero_grad()
        sum(plain.multibox_loss(*net(x.contiguous()), targets)).backward()
        optimizer.step()

    return step
