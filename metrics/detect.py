"""A Detector over the pictures of a split, with decoding on threads so that the network doesn't wait for it."""

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from data.transforms import resize
from metrics.voc import DetectionArrays


def detect_pictures(detector, paths, read_image, *, batch_size=8, num_workers=2, show_progress=True):
    """Run an inference.Detector over picture files; returns (DetectionArrays, pictures a second).

    read_image: function from a path to uint8 RGB [H, W, 3]. It and the resizing to the network's input run on
    num_workers threads (OpenCV works outside Python's lock; 0: in this thread), so that the network doesn't wait.
    Detections keep the pictures' order whatever the threads do. Boxes are in pixels of the file, counted from 1, with
    the precision of float32, as in the detection files. show_progress: a progress bar, where stderr is a
    terminal.
    """

    def load(path):
        picture = read_image(path)
        return resize(picture, detector.size), picture.shape[:2]

    found = []
    started = time.perf_counter()
    with tqdm(
        total=len(paths), unit="picture", disable=None if show_progress else True, dynamic_ncols=True
    ) as progress:
        for loaded in _batches(paths, load, batch_size, num_workers):
            # The detector's own resizing has nothing left to do, and its boxes are in pixels of the small picture.
            for detections, (_, shape) in zip(detector([small for small, _ in loaded]), loaded, strict=True):
                found.append((detections, shape))
            progress.update(len(loaded))
    rate = len(paths) / (time.perf_counter() - started)
    return _as_arrays(found, detector.size), rate


def _as_arrays(found, size):
    """DetectionArrays of [(inference.Detections in pixels of a size x size picture, (height, width) of the file)]."""
    boxes = [np.empty((0, 4), np.float32)]
    for detections, (height, width) in found:
        scale = np.array([width, height, width, height], np.float32) / np.float32(size)
        boxes.append(detections.boxes * scale + np.float32(1))
    counts = [len(detections.scores) for detections, _ in found]
    return DetectionArrays(
        np.repeat(np.arange(len(found)), counts),
        np.concatenate([np.empty(0, np.int64), *(detections.labels for detections, _ in found)]),
        np.concatenate([np.empty(0, np.float32), *(detections.scores for detections, _ in found)]),
        np.concatenate(boxes),
    )


def _batches(paths, load, batch_size, num_workers):
    """Yields what load makes of the paths, a list for each batch, with two batches read ahead."""
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    if not num_workers:
        yield from ([load(path) for path in batch] for batch in batches)
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="read")
    ahead = deque()
    try:
        for batch in batches:
            ahead.append([pool.submit(load, path) for path in batch])
            if len(ahead) > 2:
                yield [future.result() for future in ahead.popleft()]
        while ahead:
            yield [future.result() for future in ahead.popleft()]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
