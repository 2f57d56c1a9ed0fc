"""Pre-train the base network without ImageNet: classify crops of the training objects and of the background.

Training from scratch on a few thousand images spends most of its time on the features of objects. The base network
learns them from small crops at a tenth of the cost per image.
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
from utils.errors import InputError
from weights.checkpoint import read_file, save_file

from .optimizer import learning_rate, load_moments, set_learning_rate
from .samples import Shuffle, batches_on, set_up_worker
from .state import DAMAGED, as_count

BATCH_SIZE = 64
BACKGROUND_SHARE = 0.1
MIN_SIDE = 20  # pixels; smaller objects are left out


class ObjectCrops(torch.utils.data.Dataset):
    """Square crops around the objects of a detection data set, with some context; one in ten is background.

    Indexed by the position in the run, like TrainingSamples.

    Args:
        images: a data set with `pull_image(i)` and `pull_target(i, width, height)`.
        size: side of a crop in pixels.
        seed: of the run.
    """

    def __init__(self, images, size, seed):
        self.images, self.size, self.seed = images, size, seed
        # A width and height of 1 give corners in pixels.
        self.targets = [np.array(images.pull_target(i, 1, 1), np.float32).reshape(-1, 5) for i in range(len(images))]
        self.objects = [
            (image, row)
            for image, target in enumerate(self.targets)
            for row in np.flatnonzero((target[:, 2:4] - target[:, :2] >= MIN_SIDE).all(axis=1))
        ]
        self.order = Shuffle(len(self.objects), seed)

    def __len__(self):
        return len(self.objects)

    def __getitem__(self, position):
        """Return (crop uint8 RGB [size, size, 3], class with 0 for background)."""
        index, row = self.objects[self.order[position]]
        rng = np.random.default_rng((self.seed, position))
        image, target = self.images.pull_image(index), self.targets[index]
        window, label = None, 0
        if rng.random() < BACKGROUND_SHARE:
            window = background_window(rng, *image.shape[1::-1], target[:, :4])
        if window is None:
            window, label = object_window(rng, target[row, :4]), int(target[row, 4]) + 1
        crop = distort(warp(image, window, self.size, RGB_MEANS[::-1]), rng, channel_shuffle=0)
        return torch.from_numpy(np.ascontiguousarray(crop[:, :, ::-1])), label


def object_window(rng, box):
    """Return a square around a box (corners in pixels), shifted and scaled at random, mirrored half the time."""
    side = max(box[2:] - box[:2]) * rng.uniform(0.75, 1.35)
    center = (box[:2] + box[2:]) / 2 + rng.uniform(-0.12, 0.12, 2) * side
    return Window(*(center - side / 2), side, side, bool(rng.random() < 0.5))


def background_window(rng, width, height, boxes):
    """Return a square of the image with an IoU below 0.1 with each object, or None if ten tries fail."""
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


def pretrain_base(net, crops, ranks, state_file, passes, lr, num_workers):
    """Train the base of an SSD, in place, to classify ObjectCrops, for `passes` passes (AdamW, cosine schedule).

    All ranks do the same computation. Rank 0 writes `state_file` after each pass; if it exists, training continues
    from it. Raises InputError if no object is large enough, or the state belongs to another network.
    """
    if not len(crops):
        raise InputError(f"--crop_passes: all training objects are under {MIN_SIDE} pixels wide or high; leave it out")
    device = net.priors.device
    model = CropClassifier(net).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    steps = max(1, len(crops) // BATCH_SIZE)  # per pass; a small set is repeated, with other crops each time
    first = 0
    if state_file.exists():
        first = _load_state(state_file, model, optimizer)
        ranks.say(f"crops: resuming from {state_file}, after pass {first}")
    for number in range(first, passes):
        torch.manual_seed(crops.seed + number)  # for dropout: a resumed run repeats a pass exactly
        positions = range(number * steps * BATCH_SIZE, (number + 1) * steps * BATCH_SIZE)
        loader = torch.utils.data.DataLoader(
            crops, BATCH_SIZE, sampler=positions, num_workers=num_workers, worker_init_fn=set_up_worker
        )
        title = f"crops, pass {number + 1}/{passes}"
        correct = torch.zeros((), device=device)
        batches = batches_on(device, loader)
        bar = tqdm(batches, title, steps, mininterval=5, disable=None if ranks.is_main else True)
        for step, ((crop,), labels) in enumerate(bar):
            iteration = number * steps + step
            rate = learning_rate(iteration, base_lr=lr, max_iter=passes * steps, schedule="cosine", warmup=steps // 2)
            set_learning_rate(optimizer, rate)
            label = labels.to(device)
            scores = model(to_input(crop))
            F.cross_entropy(scores, label, label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            correct += (scores.argmax(1) == label).sum()
        ranks.say(f"{title}: accuracy {float(correct) / (steps * BATCH_SIZE):.3f}")
        if ranks.is_main:
            contents = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "passes": number + 1}
            save_file(contents, state_file)


def _load_state(path, model, optimizer):
    """Load what pretrain_base wrote; return the number of passes done. Raises InputError."""
    state = read_file(path)
    try:
        model.load_state_dict(state["model"])
        load_moments(optimizer, state["optimizer"])
        return as_count(state["passes"])
    except DAMAGED as error:
        raise InputError(f"{path}: damaged, or another network's; remove it to repeat the pre-training") from error
