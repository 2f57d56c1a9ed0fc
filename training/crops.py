"""Base pre-training without ImageNet: learn to classify crops of the training objects, and of background.

Detection from scratch on a few thousand pictures spends most of its time on finding out what objects look like at all.
Classifying small crops teaches the base just that, at a tenth of the cost of a picture.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import box_iou
from tqdm import tqdm

from data.config import RGB_MEANS
from data.transforms import to_input
from utils.augmentations import Window, distort, warp
from utils.errors import InputError, printable
from weights.checkpoint import read_file, save_file

from .network import training_memory_format
from .run_state import UNFIT, load_optimizer, whole
from .samples import Shuffle
from .schedule import learning_rate
from .workers import set_up_worker

BATCH_SIZE = 64
BACKGROUND_SHARE = 0.1
MIN_SIDE = 20  # pixels; smaller objects are left out


class ObjectCrops(torch.utils.data.Dataset):
    """Square crops around the objects of a detection data set, with some context; one in ten is background.

    Addressed by position in the run, as TrainingSamples is.

    Args:
        pictures: a data set with `pull_image(i)` and `pull_target(i, width, height)`.
        size: side of a crop in pixels.
        seed: of the run.
    """

    def __init__(self, pictures, size, seed):
        self.pictures, self.size, self.seed = pictures, size, seed
        # With a width and height of 1, corners come in pixels.
        self.targets = [
            np.array(pictures.pull_target(i, 1, 1), np.float32).reshape(-1, 5) for i in range(len(pictures))
        ]
        self.objects = [
            (picture, row)
            for picture, target in enumerate(self.targets)
            for row in np.flatnonzero((target[:, 2:4] - target[:, :2] >= MIN_SIDE).all(axis=1))
        ]
        self.order = Shuffle(len(self.objects), seed)

    def __len__(self):
        return len(self.objects)

    def __getitem__(self, position):
        """(crop uint8 RGB [size, size, 3], class with 0 for background)."""
        picture, row = self.objects[self.order[position]]
        rng = np.random.default_rng((self.seed, position))
        image, target = self.pictures.pull_image(picture), self.targets[picture]
        window, label = None, 0
        if rng.random() < BACKGROUND_SHARE:
            window = background_window(rng, *image.shape[1::-1], target[:, :4])
        if window is None:
            window, label = object_window(rng, target[row, :4]), int(target[row, 4]) + 1
        crop = distort(warp(image, window, self.size, RGB_MEANS[::-1]), rng, channel_shuffle=0)
        return torch.from_numpy(np.ascontiguousarray(crop[:, :, ::-1])), label


def object_window(rng, box):
    """A square around a box (corners in pixels), shifted and scaled at random, mirrored half the time."""
    side = max(box[2:] - box[:2]) * rng.uniform(0.75, 1.35)
    centre = (box[:2] + box[2:]) / 2 + rng.uniform(-0.12, 0.12, 2) * side
    return Window(*(centre - side / 2), side, side, bool(rng.random() < 0.5))


def background_window(rng, width, height, boxes):
    """A square of the picture that overlaps no object much, or None where ten tries find none."""
    sides = rng.uniform(0.2, 0.8, 10) * min(width, height)
    corners = rng.random((10, 2)) * (np.array([width, height]) - sides[:, None])
    squares = torch.from_numpy(np.hstack([corners, corners + sides[:, None]]))
    free = (box_iou(squares, torch.from_numpy(boxes).double()) < 0.1).all(dim=1).nonzero()
    if not len(free):
        return None
    first = int(free[0])
    return Window(*corners[first], sides[first], sides[first], bool(rng.random() < 0.5))


class CropClassifier(nn.Module):
    """The base of an SSD with a linear classifier on the mean of conv7."""

    def __init__(self, net):
        super().__init__()
        self.vgg = net.vgg
        self.classifier = nn.Linear(net.vgg[-2].out_channels, net.num_classes)

    def forward(self, x):
        for layer in self.vgg:
            x = layer(x)
        return self.classifier(F.dropout(x.mean(dim=(2, 3)), 0.2, self.training))


def pretrain_base(net, pictures, args, device, state_file, *, writes=True):
    """Train the base of `net`, in place, to classify object crops (AdamW, cosine schedule).

    Args:
        net: an SSD on `device`.
        pictures: the training data set.
        args: train.py's --crop_passes, --crop_size, --lr, --seed, --num_workers, --width.
        device: torch device.
        state_file: written after each pass; where it exists the training goes on from it.
        writes: False for all ranks of a distributed job but the first; they compute the same, and write nothing.

    Raises:
        InputError: there is no object to learn from, or the state is that of another network.
    """
    crops = ObjectCrops(pictures, args.crop_size, args.seed)
    if not len(crops):
        raise InputError(f"--crop_passes: no training object is {MIN_SIDE} pixels wide and high; leave the flag out")
    memory_format = training_memory_format(device, torch.float32, args.width)
    model = CropClassifier(net).to(device, memory_format=memory_format).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    first = 0
    if state_file.exists():
        first = _load_state(state_file, model, optimizer)
        if writes:
            print(printable(f"crops: going on from {state_file}, after pass {first}"), flush=True)
    for number in range(first, args.crop_passes):
        share = _one_pass(model, optimizer, crops, number, args, device, show=writes)
        if not writes:
            continue
        print(f"crops, pass {number + 1} of {args.crop_passes}: {share:.3f} classified right", flush=True)
        contents = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "passes": number + 1}
        save_file(contents, state_file)


def _load_state(path, model, optimizer):
    """Load what pretrain_base wrote; returns the number of passes done. Raises InputError."""
    state = read_file(path)
    try:
        model.load_state_dict(state["model"])
        load_optimizer(optimizer, state["optimizer"])
        return whole(state["passes"])
    except UNFIT as error:
        raise InputError(f"{path}: of another network or other classes; remove it to train on crops anew") from error


def _one_pass(model, optimizer, crops, number, args, device, show):
    """One pass over the crops, at least one batch; returns the share that was classified right."""
    steps = max(1, len(crops) // BATCH_SIZE)  # a few objects come several times, each time another crop
    torch.manual_seed(args.seed + number)  # for dropout: a pass is the same after an interruption
    positions = range(number * steps * BATCH_SIZE, (number + 1) * steps * BATCH_SIZE)
    loader = torch.utils.data.DataLoader(
        crops, BATCH_SIZE, sampler=positions, num_workers=args.num_workers, worker_init_fn=set_up_worker
    )
    right = 0
    title = f"crops, pass {number + 1}/{args.crop_passes}"
    for step, batch in enumerate(tqdm(loader, desc=title, mininterval=5, disable=not show)):
        rate = learning_rate(
            number * steps + step,
            base_lr=args.lr,
            max_iter=args.crop_passes * steps,
            schedule="cosine",
            warmup=steps // 2,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, labels = (tensor.to(device) for tensor in batch)
        scores = model(to_input(images, memory_format=training_memory_format(device, torch.float32, args.width)))
        F.cross_entropy(scores, labels, label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        right += (scores.argmax(1) == labels).sum()
    return int(right) / (steps * BATCH_SIZE)
