"""What is in a data set and what is wrong with it: every picture and every box, judged as training would treat them."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from data.coco import COCODetection
from data.voc0712 import Annotation
from utils.errors import InputError

from .facts import as_annotation, read_files, read_objects, read_size

GRACE = 1  # pixel that a box may reach beyond the picture without a word: some tools count from 0, some from 1


@dataclass(frozen=True)
class Problem:
    """A kind of problem: its name, what training does about it, and where it occurs (a line of text each)."""

    name: str
    treatment: str
    places: list[str]


@dataclass(frozen=True)
class Findings:
    """What a data set holds.

    Attributes:
        usable: indices of the pictures to train on.
        class_rows: (class, objects to train on, pictures that hold them, objects marked difficult, or crowds).
        holders: number of pictures that hold any object to train on.
        set_aside: number of objects left out because they are difficult, or crowds.
        unknown: a line for each class that isn't in the list.
        failed: a message for each picture that can't be used, since it or its annotation can't be read.
        problems: a Problem of each kind, those that don't occur included.
    """

    usable: list[int]
    class_rows: list[tuple[str, int, int, int]]
    holders: int
    set_aside: int
    unknown: list[str]
    failed: list[str]
    problems: list[Problem]

    @property
    def num_objects(self):
        """Objects to train on."""
        return sum(row[1] for row in self.class_rows)


def examine(pictures, class_names, threads, say):
    """Read the files of a data set and judge them.

    Args:
        pictures: a VOCDetection or COCODetection.
        class_names: without background.
        threads: that read.
        say: prints one line.

    Returns:
        Findings.
    """
    image_paths = [str(pictures.image_path(index)) for index in range(len(pictures))]
    contents = _read(pictures, image_paths, threads, say)
    usable, failed, of_pictures = _sort_out(pictures, image_paths, contents)

    names = [image_paths[index] for index in usable]
    sizes, annotations = zip(*(contents[index] for index in usable), strict=True) if usable else ((), ())
    keep_difficult = getattr(pictures.target_transform, "keep_difficult", False)
    objects = Objects(annotations, sizes, class_names, keep_difficult)
    class_rows = objects.by_class()
    unknown = objects.unknown([str(pictures.annotation_path(index)) for index in usable])
    empty = np.setdiff1d(np.arange(len(usable)), objects.owner[objects.trained])
    problems = [
        *of_pictures,
        Problem("boxes without extent (min >= max)", "dropped", objects.places(objects.degenerate, names)),
        Problem("boxes wholly outside the picture", "dropped", objects.places(objects.lost, names)),
        Problem("boxes that reach outside the picture", "cut to it", objects.places(objects.reaching, names)),
        Problem("pictures without objects to train on", "kept as background", [names[place] for place in empty]),
        Problem("classes that aren't in the class list", "the run can't start", unknown),
        Problem("classes without objects to train on", "never learned", [row[0] for row in class_rows if not row[1]]),
    ]
    set_aside = int(objects.set_aside.sum())
    return Findings(usable, class_rows, len(usable) - len(empty), set_aside, unknown, failed, problems)


def _sort_out(pictures, image_paths, contents):
    """(indices of the usable pictures, a message for each that can't be read, the Problems of pictures as such)."""
    usable, failed, unreadable, broken, repeated, resized = [], [], [], [], [], []
    seen = set()
    for index, (path, (size, annotation)) in enumerate(zip(image_paths, contents, strict=True)):
        errors = [found for found in (size, annotation) if isinstance(found, InputError)]
        if pictures.ids[index] in seen:
            repeated.append(path)
        elif errors:
            unreadable += [str(error) for error in errors if error is size]
            broken += [str(error) for error in errors if error is annotation]
            failed.append(str(errors[0]))
        else:
            usable.append(index)
            annotated = [annotation.width, annotation.height]
            if all(annotated) and annotated != size:
                resized.append("{}: annotated as {} x {}, in fact {} x {}".format(path, *annotated, *size))
        seen.add(pictures.ids[index])
    problems = [
        Problem("pictures that can't be read", "left out", unreadable),
        Problem("annotations that can't be read", "left out with their pictures", broken),
        Problem("pictures listed more than once", "used once", repeated),
        Problem("pictures of another size than annotated", "boxes taken as pixels of the real picture", resized),
    ]
    return usable, failed, problems


def _read(pictures, image_paths, threads, say):
    """For each picture ([width, height], Annotation), with an InputError for what can't be read."""
    root, name = pictures.root, str(pictures.image_set)
    readers = dict.fromkeys(image_paths, read_size)
    if isinstance(pictures, COCODetection):  # whose one file of annotations was read when it was opened
        contents = read_files(readers, root, name, threads, say)
        return list(zip((contents[path] for path in image_paths), _coco_annotations(pictures), strict=True))
    paths = [str(pictures.annotation_path(index)) for index in range(len(pictures))]
    contents = read_files(readers | dict.fromkeys(paths, read_objects), root, name, threads, say)
    return [
        (contents[image], found if isinstance(found := contents[path], InputError) else as_annotation(found))
        for image, path in zip(image_paths, paths, strict=True)
    ]


def _coco_annotations(pictures):
    """Yields the Annotation of each COCO picture: boxes counted from 1 as VOC's are, crowds as difficult objects."""
    class_of = dict(zip(pictures.annotations.category_ids, pictures.class_names, strict=True))
    for index, image_id in enumerate(pictures.ids):
        rows, picture = pictures.pull_anno(index), pictures.annotations.images[image_id]
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        yield Annotation(
            boxes=(boxes + 1).astype(np.float32),
            names=tuple(class_of[row["category_id"]] for row in rows),
            difficult=np.array([bool(row.get("iscrowd")) for row in rows], dtype=bool),
            width=picture.get("width", 0),
            height=picture.get("height", 0),
        )


class Objects:
    """All objects of a data set side by side, and what training makes of them.

    Args:
        annotations: an Annotation for each picture.
        sizes: [width, height] of the pictures in pixels.
        class_names: of the run.
        keep_difficult: whether difficult objects are trained on.

    Attributes (N objects):
        boxes: float32 [N, 4], pixels counted from 1; names: [N]; owner: int [N], place of the picture in the list.
        known: bool [N], of the run's classes; difficult, set_aside: bool [N], marked so, and not trained on therefore.
        degenerate, lost: bool [N], of the others those without extent, and those wholly outside their picture.
        trained: bool [N], what is left of the known ones; reaching: bool [N], those of them that have to be cut.
    """

    def __init__(self, annotations, sizes, class_names, keep_difficult):
        self.class_names = class_names
        counts = [len(annotation.names) for annotation in annotations]
        self.owner = np.repeat(np.arange(len(annotations)), counts)
        self.names = np.array([name for annotation in annotations for name in annotation.names], dtype=object)
        self.boxes = np.concatenate([np.empty((0, 4), np.float32), *(a.boxes for a in annotations)])
        known = set(class_names)
        self.known = np.array([name in known for name in self.names], dtype=bool)
        self.difficult = np.concatenate([np.empty(0, bool), *(a.difficult for a in annotations)])

        limits = np.array(sizes, dtype=np.float32).reshape(-1, 2)[self.owner]  # [N, 2]
        corners = self.boxes.reshape(-1, 2, 2) - 1  # [N, 2, 2], counted from 0
        cut = np.clip(corners, 0, limits[:, None])
        self.set_aside = self.difficult & (not keep_difficult)
        self.degenerate = ~self.set_aside & (corners[:, 0] >= corners[:, 1]).any(axis=1)
        self.lost = ~self.set_aside & ~self.degenerate & (cut[:, 0] >= cut[:, 1]).any(axis=1)
        self.trained = self.known & ~(self.set_aside | self.degenerate | self.lost)
        self.reaching = self.trained & (np.abs(cut - corners) > GRACE).any(axis=(1, 2))

    def by_class(self):
        """A row (class, objects to train on, pictures that hold them, difficult objects) for each class."""
        trained, difficult = Counter(self.names[self.trained]), Counter(self.names[self.difficult])
        pairs = set(zip(self.owner[self.trained].tolist(), self.names[self.trained], strict=True))
        holders = Counter(name for _, name in pairs)
        return [(name, trained[name], holders[name], difficult[name]) for name in self.class_names]

    def unknown(self, files):
        """A line for each class that isn't the run's: how often it occurs and where first (files: one a picture)."""
        counts = Counter(self.names[~self.known])
        firsts = {name: files[self.owner[(self.names == name).argmax()]] for name in counts}
        return [f"{name!r} ({count:,} objects, first in {firsts[name]})" for name, count in counts.most_common()]

    def places(self, mask, pictures):
        """A line for each object of the mask bool [N]: its picture, class and box."""
        return [
            f"{pictures[self.owner[row]]}: {self.names[row]} at ({', '.join(f'{x:g}' for x in self.boxes[row])})"
            for row in np.flatnonzero(mask)
        ]
