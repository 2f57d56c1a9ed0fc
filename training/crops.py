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

from data.augmentation import Window, distort, warp
from data.config import RGB_MEANS
from data.transforms import to_input
from weights.checkpoint import read_file, save_atomically

from .schedule import learning_rate

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
        self._epoch = None
        self._order = None

    def __len__(self):
        return len(self.objects)

    def __getitem__(self, position):
        """(crop uint8 RGB [size, size, 3], class with 0 for background)."""
        epoch, place = divmod(position, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self))
        picture, row = self.objects[self._order[place]]
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


def pretrain_base(net, pictures, *, passes, size, batch_size, lr, seed, device, num_workers, state_file):
    """Train the base of `net`, in place, to classify object crops. Goes on from `state_file` after an interruption.

    Args:
        net: an SSD on `device`.
        pictures: the training data set.
        passes: over all objects.
        size: side of a crop in pixels.
        batch_size, lr, seed, num_workers: as in the training itself (AdamW, cosine schedule).
        device: torch device.
        state_file: where the state is kept, after each pass.
    """
    crops = ObjectCrops(pictures, size, seed)
    steps = len(crops) // batch_size
    model = CropClassifier(net).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    first = 0
    if state_file.exists():
        state = read_file(state_file)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["passes"]
    for number in range(first, passes):
        positions = range(number * steps * batch_size, (number + 1) * steps * batch_size)
        loader = torch.utils.data.DataLoader(crops, batch_size, sampler=positions, num_workers=num_workers)
        right = total = 0
        bar = tqdm(loader, desc=f"crops, pass {number + 1}/{passes}", mininterval=5)
        for step, batch in enumerate(bar):
            rate = learning_rate(
                number * steps + step, base_lr=lr, max_iter=passes * steps, schedule="cosine", warmup=steps // 2
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            images, labels = (tensor.to(device) for tensor in batch)
            scores = model(to_input(images))
            F.cross_entropy(scores, labels, label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            right, total = right + (scores.argmax(1) == labels).sum(), total + len(labels)
        print(
            f"crops, pass {number + 1} of {passes}: {right.item() / total:.3f} of the crops classified right",
            flush=True,
        )
        contents = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "passes": number + 1}
        save_atomically(contents, state_file)
