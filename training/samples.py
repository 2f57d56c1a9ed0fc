"""The order and the randomness of training samples, as pure functions of the sample's position in the run.

Sample number p of a run (counted over all epochs, batches and ranks) is picture permutation(seed, epoch)[p mod n],
augmented with a generator seeded by (seed, p). So neither the number of workers nor an interruption changes what the
network sees: resuming at iteration i means starting at p = i * batch size.
"""

import cv2
import numpy as np
import torch

from data.transforms import resize
from utils.images import read_bgr


class Shuffle:
    """A new order of n items in each epoch: position in the run -> item."""

    def __init__(self, n, seed):
        self.n, self.seed = n, seed
        self._epoch = None
        self._order = None

    def __getitem__(self, position):
        epoch, place = divmod(position, self.n)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.n)
        return int(self._order[place])


class TrainingSamples(torch.utils.data.Dataset):
    """A data set addressed by position in the run.

    Args:
        pictures: a data set with `pull_image(i)` (uint8 BGR), `pull_target(i, width, height)` (rows of corners as
            fractions and class) and a length.
        augmentation: an SSDAugmentation that gives uint8, or NoAugmentation.
        seed: of the run.
        size_at: position -> side of the network's input, for runs that begin at a low resolution.
    """

    def __init__(self, pictures, augmentation, seed, size_at):
        self.pictures = pictures
        self.augmentation = augmentation
        self.seed = seed
        self.size_at = size_at
        self.order = Shuffle(len(pictures), seed)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, position):
        """(image, target, index): uint8 RGB [S, S, 3], float32 [objects, 5], and the picture's index."""
        index = self.order[position]
        image = self.pictures.pull_image(index)
        height, width = image.shape[:2]
        target = usable(self.pictures.pull_target(index, width, height))
        self.augmentation.rng = np.random.default_rng((self.seed, position))
        self.augmentation.size = self.size_at(position)
        image, boxes, labels = self.augmentation(image, target[:, :4], target[:, 4])
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return torch.from_numpy(image), torch.from_numpy(np.column_stack([boxes, labels]).astype(np.float32)), index


class NoAugmentation:
    """Pictures as they are, resized: in SSDAugmentation's place for --no-augment."""

    def __init__(self, size):
        self.size, self.rng = size, None

    def __call__(self, image, boxes, labels):
        return resize(image, self.size), boxes, labels


def usable(target):
    """Boxes cut to the picture, without those that have no area then: rows -> float32 [objects, 5]."""
    target = np.array(target, dtype=np.float32).reshape(-1, 5)
    target[:, :4] = target[:, :4].clip(0, 1)
    return target[(target[:, 2] > target[:, 0]) & (target[:, 3] > target[:, 1])]


class MatchedBatch:
    """Collate samples, and match their objects to the priors: in the loader's workers, off the device's way.

    Args:
        criterion: the MultiBoxLoss.
        priors: side of the input -> priors [P, 4] on the CPU.
    """

    def __init__(self, criterion, priors):
        self.criterion, self.priors = criterion, priors

    def __call__(self, samples):
        """(images uint8 RGB [B, S, S, 3], loc_t [B, P, 4], conf_t int64 [B, P], picture indices [B])."""
        images, targets, indices = zip(*samples, strict=True)
        images = torch.stack(images)
        loc_t, conf_t = self.criterion.match_targets(list(targets), self.priors[images.shape[1]])
        return images, loc_t, conf_t, torch.tensor(indices)


class InputSize:
    """Position in the run -> side of the input: --low_resolution for the first --low_resolution_iter iterations."""

    def __init__(self, args):
        self.size, self.early_size = args.size, args.low_resolution
        self.early = args.low_resolution_iter * args.batch_size if args.low_resolution else 0

    def __call__(self, position):
        return self.early_size if position < self.early else self.size


class RunBatches(torch.utils.data.Sampler):
    """The positions of each batch from one iteration of the run to another; a rank's share of them.

    Args:
        first, last: iterations, the last one not included.
        batch_size: over all ranks.
        rank, world_size: of this process.
    """

    def __init__(self, first, last, batch_size, rank=0, world_size=1):
        self.first, self.last, self.batch_size = first, last, batch_size
        self.rank, self.share = rank, batch_size // world_size

    def __len__(self):
        return self.last - self.first

    def __iter__(self):
        for iteration in range(self.first, self.last):
            start = iteration * self.batch_size + self.rank * self.share
            yield list(range(start, start + self.share))


class Subset:
    """Some pictures of a data set, counted anew from 0.

    Args:
        pictures: the data set.
        indices: of the pictures to keep, in order.
    """

    def __init__(self, pictures, indices):
        self.pictures, self.indices = pictures, list(indices)

    def __len__(self):
        return len(self.indices)

    def pull_image(self, index):
        return self.pictures.pull_image(self.indices[index])

    def pull_target(self, index, width, height):
        return self.pictures.pull_target(self.indices[index], width, height)

    def image_path(self, index):
        return self.pictures.image_path(self.indices[index])


class InMemory:
    """A data set whose decoded pictures are kept in memory that all workers share (`--cache ram`).

    One flat tensor, as shared memory works the same way whether workers are forked or started anew.

    Args:
        pictures: the data set.
        threads: that decode.
    """

    def __init__(self, pictures, threads=4):
        from concurrent.futures import ThreadPoolExecutor

        from tqdm import tqdm

        self.pictures = pictures
        with ThreadPoolExecutor(max(1, threads)) as pool:
            paths = [pictures.image_path(index) for index in range(len(pictures))]
            decoded = list(tqdm(pool.map(read_bgr, paths), total=len(paths), desc="reading pictures", unit="picture"))
        self.shapes = [image.shape for image in decoded]
        self.starts = np.concatenate([[0], np.cumsum([image.size for image in decoded])])
        self.pixels = torch.empty(int(self.starts[-1]), dtype=torch.uint8).share_memory_()
        for start, image in zip(self.starts, decoded, strict=False):
            self.pixels[start : start + image.size] = torch.from_numpy(image.reshape(-1))

    def __len__(self):
        return len(self.pictures)

    def pull_image(self, index):
        return self.pixels[self.starts[index] : self.starts[index + 1]].numpy().reshape(self.shapes[index])

    def __getattr__(self, name):
        if name == "pictures":  # not there yet while a worker unpickles this object
            raise AttributeError(name)
        return getattr(self.pictures, name)
