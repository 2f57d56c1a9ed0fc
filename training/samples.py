"""The order and the randomness of training samples, as pure functions of the sample's position in the run.

Sample number p of a run (counted over all epochs, batches and ranks) is picture permutation(seed, epoch)[p mod n],
augmented with a generator seeded by (seed, p). So neither the number of workers nor an interruption changes what the
network sees: resuming at iteration i means starting at p = i * batch size.
"""

import numpy as np
import torch


class TrainingSamples(torch.utils.data.Dataset):
    """A data set addressed by position in the run.

    Args:
        pictures: a data set with `pull_image(i)` (uint8 BGR), `pull_target(i, width, height)` (rows of corners as
            fractions and class) and a length.
        augmentation: an SSDAugmentation that gives uint8.
        seed: of the run.
        size_at: position -> side of the network's input, for runs that begin at a low resolution.
    """

    def __init__(self, pictures, augmentation, seed, size_at):
        self.pictures = pictures
        self.augmentation = augmentation
        self.seed = seed
        self.size_at = size_at
        self._epoch = None
        self._order = None

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, position):
        """(image, target, index): uint8 RGB [S, S, 3], float32 [objects, 5], and the picture's index."""
        index = self.index_at(position)
        image = self.pictures.pull_image(index)
        height, width = image.shape[:2]
        target = np.array(self.pictures.pull_target(index, width, height), dtype=np.float32).reshape(-1, 5)
        target = target[(target[:, 2] > target[:, 0]) & (target[:, 3] > target[:, 1])]  # boxes without area
        self.augmentation.rng = np.random.default_rng((self.seed, position))
        self.augmentation.size = self.size_at(position)
        image, boxes, labels = self.augmentation(image, target[:, :4].clip(0, 1), target[:, 4])
        image = np.ascontiguousarray(image[:, :, ::-1])
        return torch.from_numpy(image), torch.from_numpy(np.column_stack([boxes, labels]).astype(np.float32)), index

    def index_at(self, position):
        """The picture at a position of the run."""
        epoch, place = divmod(position, len(self.pictures))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.pictures))
        return int(self._order[place])


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


def collate(samples):
    """(images uint8 RGB [B, S, S, 3], targets: list of float32 [objects, 5], indices)."""
    images, targets, indices = zip(*samples, strict=True)
    return torch.stack(images), list(targets), list(indices)
