"""Check a data set before a run: read every image and annotation once, and count objects and problems."""

from contextlib import closing
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from inference.pipeline import in_order
from utils.errors import InputError, count
from utils.images import read_image

MAX_UNUSABLE = 0.05  # fraction of the images; above it, the data set is probably incomplete
MAX_EXAMPLES = 3  # named for each problem
SLACK = 1  # pixel that a box may reach outside its image: some tools count from 0, some from 1


@dataclass(frozen=True)
class Found:
    """The labels of an image's boxes to train on, and its number of boxes with each problem."""

    error: str = ""
    labels: tuple[int, ...] = ()
    empty: int = 0
    outside: int = 0
    reaching: int = 0


def check_images(images, class_names, ranks, num_workers=4, name_all=False):
    """Read a data set once, and print its objects per class and its problems. Returns the indices of usable images.

    All ranks must call this; each reads its share of the images. name_all: print all files with a problem instead of
    the first ones. Raises InputError if more than MAX_UNUSABLE of the images are unusable, or none has an object.
    """
    share = range(ranks.rank, len(images), ranks.world)
    with closing(in_order(lambda index: _examine(images, index), share, max(1, num_workers))) as reading:
        bar = tqdm(reading, "checking the data set", len(share), unit="image", disable=None if ranks.is_main else True)
        found = ranks.gather(list(bar))
    first_of = {image_id: index for index, image_id in reversed(list(enumerate(images.ids)))}
    repeated = [index for index, image_id in enumerate(images.ids) if first_of[image_id] != index]
    failed = [index for index, item in enumerate(found) if item.error]
    usable = sorted(set(range(len(images))) - set(repeated) - set(failed))

    def names(indices):
        return [str(images.image_path(index)) for index in indices]

    problems = [
        ("with an unusable file or annotation: left out", [found[index].error for index in failed]),
        ("listed more than once: used once", names(repeated)),
        ("with boxes without area (min >= max): boxes dropped", names(i for i in usable if found[i].empty)),
        ("with boxes outside the image: boxes dropped", names(i for i in usable if found[i].outside)),
        ("with boxes partly outside: boxes clipped", names(i for i in usable if found[i].reaching)),
        ("without objects to train on: background", names(i for i in usable if not found[i].labels)),
    ]
    objects = sum(len(found[index].labels) for index in usable)
    ranks.say(_class_table([found[index].labels for index in usable], class_names))
    shown = len(images) if name_all else MAX_EXAMPLES
    for text, places in problems:
        if places:
            ranks.say("\n    ".join([f"{count(len(places), 'image')} {text}", *places[:shown]]))
        if len(places) > shown:
            ranks.say(f"    and {len(places) - shown:,} more (--check_only names them all)")
    if len(failed) > MAX_UNUSABLE * len(images):
        raise InputError(
            f"{images.root}: {len(failed):,} of {len(images):,} images can't be used; is the data set complete? "
            f"The first: {found[failed[0]].error}"
        )
    if not objects:
        raise InputError(
            f"{images.root}: no objects to train on in {count(len(images), 'image')}; use another --train_split, "
            "or --keep_difficult"
        )
    ranks.say(f"training on {count(len(usable), 'image')} with {count(objects, 'object')}")
    return usable


def check_readable(paths, num_workers=4):
    """Read the image files of a validation split. Raises InputError if one is not readable."""
    with closing(in_order(read_image, paths, max(1, num_workers))) as reading:
        for _ in reading:
            pass


def _examine(images, index):
    """Read an image and its annotation."""
    try:
        height, width = images.pull_image(index).shape[:2]
        rows = np.array(images.pull_target(index, width, height), dtype=np.float64).reshape(-1, 5)
    except InputError as error:
        return Found(error=str(error))
    has_area = (rows[:, 2:4] > rows[:, :2]).all(axis=1)
    clipped = rows[:, :4].clip(0, 1)
    inside = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    excess = np.abs(rows[:, :4] - clipped) * [width, height, width, height]  # pixels
    reaching = inside & (excess > SLACK).any(axis=1)
    labels = tuple(rows[inside, 4].astype(int).tolist())
    return Found("", labels, int((~has_area).sum()), int((has_area & ~inside).sum()), int(reaching.sum()))


def _class_table(labels_of_images, class_names):
    """Return a table of the objects of each class and the images that contain them."""
    objects = np.zeros(len(class_names), dtype=int)
    images = np.zeros(len(class_names), dtype=int)
    for labels in labels_of_images:
        objects += np.bincount(labels, minlength=len(class_names)) if labels else 0
        images[list(set(labels))] += 1
    rows = [[name, f"{objects[i]:,}", f"{images[i]:,}"] for i, name in enumerate(class_names)]
    rows.append(["all", f"{objects.sum():,}", f"{sum(map(bool, labels_of_images)):,}"])
    return tabulate(rows, ["class", "objects", "images"], disable_numparse=True, colalign=("left", "right", "right"))
