"""Training samples: their order and their augmentation are pure functions of the position in the run.

Sample number p of a run (counted over all epochs, batches and ranks) is image order[p], augmented with a generator
seeded with (seed, p). So the samples don't depend on the number of workers or on interruptions. A run that resumes at
iteration i starts at p = i * batch size.
"""

import math
import os
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import torch

from data.coco import COCO_ROOT, COCODetection
from data.ilsvrc import ILSVRC_ROOT, ILSVRCDetection
from data.transforms import resize
from data.voc0712 import VOC_CLASSES, VOC_ROOT, VOCAnnotationTransform, VOCDetection, read_annotation
from utils.errors import InputError
from utils.system import keep_freed_memory

PREFETCH = 4  # batches that each worker loads in advance


def open_images(dataset, root=None, splits=None, classes=None, keep_difficult=False):
    """Open the training images that train.py's flags name.

    Args:
        dataset: "VOC", "COCO", "ILSVRC", or a folder in VOC format.
        root: folder of the VOC years, of COCO or of ILSVRC; None for the default.
        splits: such as "2007_trainval" (of VOC2007) or "train" (of a folder); None for the usual ones.
        classes: class names; None for the data set's, or those found in the folder's annotations.
        keep_difficult: also train on difficult objects.

    Returns:
        (images, class_names).

    Raises:
        InputError: data set, split or annotations are missing, or a class is listed twice.
    """
    root = Path(root).expanduser() if root else None
    dataset = str(Path(dataset).expanduser())
    if dataset in ("COCO", "ILSVRC") and classes:
        raise InputError(f"--classes: {dataset} has its own; leave it out")
    if dataset == "COCO":
        if splits and len(splits) > 1:
            raise InputError("--train_split: COCO takes one split, such as train2017")
        images = COCODetection(root or COCO_ROOT, splits[0] if splits else "train2017")
        return images, tuple(images.class_names)
    if dataset == "ILSVRC":
        images = ILSVRCDetection(root or ILSVRC_ROOT, tuple(splits or ("train", "val1")))
        return images, images.class_names
    if dataset == "VOC":
        root, classes = root or VOC_ROOT, classes or VOC_CLASSES
        image_sets = [_year_and_split(name) for name in splits or ("2007_trainval", "2012_trainval")]
    elif Path(dataset).is_dir():
        root, image_sets = dataset, [("", name) for name in splits or ("train",)]
    else:
        raise InputError(f"--dataset {dataset}: not VOC, COCO, ILSVRC or a folder")
    images = VOCDetection(root, image_sets, dataset_name=dataset)
    classes = tuple(classes or _annotated_classes(images))
    if repeated := [name for index, name in enumerate(classes) if name in classes[:index]]:
        raise InputError(f"--classes: {repeated[0]} is listed twice")
    images.target_transform = VOCAnnotationTransform({name: i for i, name in enumerate(classes)}, keep_difficult)
    return images, classes


def _year_and_split(name):
    """Return ("2007", "trainval") for "2007_trainval" and ("", "train") for "train"."""
    year, _, split = name.rpartition("_")
    return (year, split) if year.isdigit() else ("", name)


def _annotated_classes(images):
    """Return the class names in the annotations, sorted. Damaged annotations are skipped; the check reports them."""
    names, problem = set(), None
    for index in range(len(images)):
        try:
            names.update(read_annotation(images.annotation_path(index)).names)
        except InputError as error:
            problem = problem or error
    if not names:
        problem = problem or "check its Annotations folder"
        raise InputError(f"{images.root}: no readable annotation contains an object; {problem}")
    return sorted(names)


class Shuffle:
    """A new order of n items in each epoch: position in the run -> item.

    Args:
        n: number of items.
        seed: of the run.
        weights: float [n]; item i occurs n * weights[i] / sum(weights) times in an epoch, rounded up or down.
    """

    def __init__(self, n, seed, weights=None):
        self.n, self.seed = n, seed
        self.ends = None if weights is None else np.cumsum(weights) / np.sum(weights) * n
        self._epoch, self._order = None, None

    def __getitem__(self, position):
        epoch, place = divmod(position, self.n)
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, epoch))
            items = np.arange(self.n)
            if self.ends is not None:
                items = np.searchsorted(self.ends, items + rng.random()).clip(max=self.n - 1)
            self._epoch, self._order = epoch, rng.permutation(items)
        return int(self._order[place])


def balancing_weights(images):
    """Return the sampling weight of each image, higher for rare classes: float [images].

    The weight of a class in a fraction f of the images is f ** -0.5. An image has the weight of its rarest class, or 1
    without objects (Gupta et al., arXiv 1908.03195, appendix).
    """
    # A width and height of 1 give corners in pixels; only the classes count here.
    classes = [np.unique(usable_rows(images.pull_target(i, 1, 1), clip=False)[:, 4]) for i in range(len(images))]
    labels = np.concatenate([np.empty(0), *classes]).astype(int)
    weight_of = (np.bincount(labels).clip(min=1) / len(images)) ** -0.5
    return np.array([weight_of[found.astype(int)].max(initial=1.0) for found in classes])


class TrainingSamples(torch.utils.data.Dataset):
    """A data set indexed by the position in the run.

    Args:
        images: a data set with `pull_image(i)` (uint8 BGR) and `pull_target(i, width, height)`.
        augmentation: an SSDAugmentation that returns uint8, or NoAugmentation.
        seed: of the run.
        weights: sampling weight of each image, see Shuffle.
    """

    def __init__(self, images, augmentation, seed, weights=None):
        self.images, self.augmentation, self.seed = images, augmentation, seed
        self.order = Shuffle(len(images), seed, weights)

    def __getitem__(self, position):
        """Return (image uint8 RGB [S, S, 3], target float32 [objects, 5], index of the image)."""
        index = self.order[position]
        image = self.images.pull_image(index)
        height, width = image.shape[:2]
        target = usable_rows(self.images.pull_target(index, width, height))
        self.augmentation.rng = np.random.default_rng((self.seed, position))
        image, boxes, labels = self.augmentation(image, target[:, :4], target[:, 4])
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return torch.from_numpy(image), torch.from_numpy(np.column_stack([boxes, labels]).astype(np.float32)), index


class NoAugmentation:
    """Resized images, for --no-augment."""

    def __init__(self, size):
        self.size, self.rng = size, None

    def __call__(self, image, boxes, labels):
        return resize(image, self.size), boxes, labels


def usable_rows(target, clip=True):
    """Return the rows (x1, y1, x2, y2, class) with an area as float32 [objects, 5]; `clip`: clip to the image first."""
    target = np.array(target, dtype=np.float32).reshape(-1, 5)
    if clip:
        target[:, :4] = target[:, :4].clip(0, 1)
    return target[(target[:, 2] > target[:, 0]) & (target[:, 3] > target[:, 1])]


class MatchedBatch:
    """Collate samples and match their objects to the priors, [P, 4] on the CPU, in the loader's workers."""

    def __init__(self, criterion, priors):
        self.criterion, self.priors = criterion, priors

    def __call__(self, samples):
        """Return (images uint8 RGB [B, S, S, 3], loc_t [B, P, 4], conf_t int64 [B, P], image indices [B])."""
        images, targets, indices = zip(*samples, strict=True)
        loc_t, conf_t = self.criterion.match_targets(list(targets), self.priors)
        return torch.stack(images), loc_t, conf_t, torch.tensor(indices)


def run_batches(first, last, batch_size, ranks):
    """Yield the positions of this rank's share of each batch, from iteration `first` to `last` (excluded)."""
    share = batch_size // ranks.world
    for iteration in range(first, last):
        start = iteration * batch_size + ranks.rank * share
        yield list(range(start, start + share))


def check_shared_memory(num_workers, batch_size, net):
    """Raise InputError if /dev/shm is too small for the batches of this machine's workers; they would wait forever."""
    images = PREFETCH * num_workers * batch_size * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes
    needed = math.ceil(images * (3 * net.size**2 + 24 * len(net.priors)) / 2**20)
    if Path("/dev/shm").is_dir() and needed > (free := shutil.disk_usage("/dev/shm").free >> 20):
        raise InputError(
            f"--num_workers {num_workers}: the batches need {needed} MB of shared memory, and /dev/shm has {free} MB; "
            "enlarge it (docker run --shm-size), or use fewer workers"
        )


def build_loader(samples, batches, collate, num_workers, device):
    """Return a DataLoader of (images, loc_t, conf_t, indices) over the batches of a run."""
    return torch.utils.data.DataLoader(
        samples,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=PREFETCH if num_workers else None,
        worker_init_fn=set_up_worker,
    )


def batches_on(device, loader):
    """Yield ((images, loc_t, conf_t) on the device, image indices) of a loader.

    Raises InputError if an image or annotation can't be read any more.
    """
    try:
        for *batch, indices in loader:
            yield [tensor.to(device, non_blocking=True) for tensor in batch], indices
    except InputError as error:
        # torch puts the worker's traceback in front of the message.
        message = str(error).rpartition("InputError: ")[2].strip()
        message = message.replace("repair or remove it", "put a readable file in its place")  # the run needs it
        raise InputError(f"{message}; then continue with --resume auto") from error


def set_up_worker(_):
    """Prepare a DataLoader's worker: keep freed memory, and ignore the first SIGTERM or Ctrl-C.

    Terminals and schedulers signal all processes of a job, but the run needs its workers to finish the iteration.
    """
    keep_freed_memory()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: signal.signal(number, signal.SIG_DFL))
