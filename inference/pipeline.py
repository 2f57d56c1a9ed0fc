"""Run a Detector over many frames or images: in several threads, in order, with few images in memory.

On CPU, several frames at once with one thread each are faster than one frame with all threads. Threads of one frame
wait for each other after every layer, and use the cores that other processes (ffmpeg) need.
"""

import errno
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, takewhile

import torch
from tqdm import tqdm

from inference.detector import Detector
from inference.drawing import draw_detections
from inference.output import Crops, Display, Summary
from utils.errors import InputError
from utils.images import read_image, write_image
from utils.system import StopSignals, report_out_of_memory, thread_counts

MAX_WORKERS = 8  # each holds feature maps
SLACK = 2  # items submitted beyond one per worker
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # no other image could be written either
_LESS_MEMORY = "lower --batch_size, close other programs, or use smaller images"


def share_threads(device):
    """Return (number of workers, PyTorch threads of each) for a torch.device."""
    threads = torch.get_num_threads()
    if device.type == "mps":
        return 1, threads
    workers = min(threads, MAX_WORKERS)
    if device.type == "cuda":  # workers read, resize and draw while one of them waits for the device
        return max(workers, 2), 1
    return workers, threads // workers


def in_order(function, items, workers, threads=1):
    """Yield function(item) for each item, in order, computed by several threads ahead of the caller.

    At most `workers` + SLACK items are in progress. `items` is consumed by the calling thread. An exception of
    `function` is raised in the order of the items. Close the generator if you stop early (contextlib.closing).

    Args:
        workers: number of threads. threads: number of PyTorch and OpenCV threads for each of them.
    """
    pending = deque()
    with thread_counts(threads), ThreadPoolExecutor(workers, "work", torch.set_num_threads, (threads,)) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                del item  # only its result is kept
                if len(pending) == workers + SLACK:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def batches(items, size):
    """Yield lists of `size` items; the last one may be shorter."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


@dataclass
class Pipeline:
    """Run a Detector over images and videos; write them with their detections."""

    detector: Detector
    labels: list | None = None  # keep only detections of these classes; None keeps all
    batch_size: int | None = None  # images per pass; None is 16 on CUDA, and 1 elsewhere and for live sources
    draw: Callable | None = draw_detections  # called with each image and its Detections, to draw them in place
    on_result: Callable | None = None  # called in order, with the arguments of output.Results.add
    crops: Crops | None = None
    display: Display | None = None
    stop: StopSignals | bool = False  # ends the work early once it is true; closing the display does the same
    show_progress: bool = True  # a progress bar, if stderr is a terminal

    @property
    def stopped(self):
        """True if the work should end."""
        return bool(self.stop or (self.display and self.display.closed))

    @property
    def _batch_size(self):
        return self.batch_size or (16 if self.detector.device.type == "cuda" else 1)

    @report_out_of_memory(_LESS_MEMORY)
    def video(self, reader, writer=None, name="video"):
        """Detect in the frames of a VideoReader or CameraReader; write them to a VideoWriter. Returns a Summary."""
        workers, threads = (1, 1) if reader.live else share_threads(self.detector.device)
        summary = Summary("frame", {"decode": 1, "network": workers, "draw": workers, "encode": 1})

        def work(batch):
            frames = [frame for _, (_, frame) in batch]
            found = self._detect_and_draw(frames, [(name, index) for index, _ in batch], summary)
            return [(index, time, frame, one) for (index, (time, frame)), one in zip(batch, found, strict=True)]

        if reader.live:  # frames of a camera would be shown late if they waited for a worker
            results = (work(batch) for batch in batches(enumerate(reader.timed(self.stop)), self.batch_size or 1))
        else:
            results = in_order(work, batches(enumerate(reader.timed()), self._batch_size), workers, threads)
        hidden = None if self.show_progress else True  # None: tqdm hides it unless stderr is a terminal
        bar = tqdm(total=reader.expected, unit="frame", dynamic_ncols=True, disable=hidden)
        with closing(results), bar:
            for batch in results:
                for index, time, frame, detections in batch:
                    if self.on_result:
                        self.on_result(detections, file=name, frame=index, time=round(time, 6))
                    summary.add(detections)
                    if writer:
                        writer.write(frame, time)
                    if self.display:
                        self.display.show(frame)
                bar.update(len(batch))
                if self.stopped:
                    break
        summary.seconds.update(decode=reader.seconds, encode=writer.seconds if writer else 0.0)
        return summary

    def images(self, paths, targets=None):
        """Detect in image files, and write each to its target. Returns a Summary, which holds the errors.

        An image that can't be read or written is left out. A full disk or memory ends the work early.
        """
        workers, threads = share_threads(self.detector.device)
        stages = ("read", "network", "draw", "write") if targets else ("read", "network", "draw")
        summary = Summary("image", dict.fromkeys(stages, workers))

        def work(batch):
            read, errors = [], []
            for path, target in batch:
                try:
                    with summary.timing("read"):
                        read.append((path, target, read_image(path)))
                except InputError as error:
                    errors.append(error)
            found = self._detect_and_draw([image for *_, image in read], [(str(path),) for path, *_ in read], summary)
            finished = []
            for (path, target, image), detections in zip(read, found, strict=True):
                try:
                    if targets:
                        with summary.timing("write"):
                            write_image(target, image)
                    finished.append((path, image, detections))
                except InputError as error:
                    if getattr(error.__cause__, "errno", None) in _NO_ROOM:
                        raise
                    errors.append(error)
            return errors, finished

        waiting = batches(zip(paths, targets or paths, strict=True), self._batch_size)
        waiting = takewhile(lambda _: not self.stopped, waiting)  # after a stop, batches in progress are finished
        shown = self.show_progress and len(paths) > 1
        bar = tqdm(total=len(paths), unit="image", dynamic_ncols=True, disable=None if shown else True)
        try:
            with closing(in_order(work, waiting, workers, threads)) as results, bar, report_out_of_memory(_LESS_MEMORY):
                for errors, finished in results:
                    summary.errors += errors
                    for path, image, detections in finished:
                        if self.on_result:
                            self.on_result(detections, file=str(path))
                        summary.add(detections)
                        if self.display and not self.stopped:
                            self.display.show(image, wait=True, stop=self.stop)
                    bar.update(len(errors) + len(finished))
        except InputError as error:
            summary.errors.append(error)
        return summary

    def _detect_and_draw(self, images, keys, summary):
        """Run the detector on images, crop, draw the results in place, and return the Detections of `labels`.

        keys: for each image (file,) or (file, frame), for the crops.
        """
        if not images:
            return []
        with summary.timing("network"):
            found = self.detector(images)
        with summary.timing("draw"):
            if self.labels is not None:
                found = [detections.of_classes(self.labels) for detections in found]
            for image, key, detections in zip(images, keys, found, strict=True):
                if self.crops:
                    self.crops.write(image, detections, *key)
                if self.draw:
                    self.draw(image, detections)
        return found
