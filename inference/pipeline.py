"""Detect in many frames at once: in several threads, in order, with few frames in memory.

On a CPU, frames side by side with one thread each get further than one frame with all threads: these wait for each
other after every layer, the longer the more ffmpeg's processes take of the cores at the same time.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import cv2
import numpy as np
import torch

from inference.planar import PlanarFrame

MOST_WORKERS = 8  # each holds a network's feature maps; where there are more cores, workers get several
SLACK = 2  # items that may wait for a worker, or for their turn, besides those in work


def detect(detector, frames):
    """Detect in frames: a list of uint8 RGB [H, W, 3] or PlanarFrames -> list of Detections, boxes in pixels."""
    pictures = [frame.rgb(detector.size) if isinstance(frame, PlanarFrame) else frame for frame in frames]
    return [
        enlarged(found, detector.size, frame.size) if isinstance(frame, PlanarFrame) else found
        for found, frame in zip(detector(pictures), frames, strict=True)
    ]


def enlarged(detections, side, size):
    """Detections in a picture that was resized to a square of `side` pixels, for its own size (width, height)."""
    return replace(detections, boxes=detections.boxes / side * np.array(size * 2, np.float32))


def share_threads(device):
    """How to spread the work on a device: (workers, threads of PyTorch for each)."""
    if device.type == "cuda":
        return 2, torch.get_num_threads()  # one prepares its frames, or draws, while the other waits for the device
    if device.type != "cpu":
        return 1, torch.get_num_threads()
    workers = min(torch.get_num_threads(), MOST_WORKERS)
    return workers, torch.get_num_threads() // workers


def in_order(function, items, workers, threads=1):
    """Yield function(item) of each item, in order, computed by several threads ahead of whoever takes the results.

    At most `workers` + SLACK items are under way: taken from `items` and not yet handed on. `items` is used by the
    thread that iterates. What function raises is raised here, in its item's turn. Close the generator (as by
    contextlib.closing) where it isn't used up: it waits for the items in work and drops the others.

    Args:
        workers: number of threads. threads: of PyTorch, for each of them.
    """
    pending = deque()
    with computing(threads), ThreadPoolExecutor(workers, "work", torch.set_num_threads, (threads,)) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                del item  # its result is what is kept
                if len(pending) == workers + SLACK:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def computing(threads):
    """While entered, OpenCV uses as many threads as given; afterwards PyTorch's and OpenCV's settings are as before.

    PyTorch keeps the number by thread, but takes the last one that was set anywhere for threads that start later.
    """
    before = torch.get_num_threads(), cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
