"""Run a Detector over many frames or images: in several threads, in order, with few images in memory.

On CPU, frames side by side with one thread each are faster than one frame with all threads: these wait for each other
after every layer, and spin while other processes (ffmpeg) need the cores.
"""

import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice

import numpy as np
import torch
from tqdm import tqdm

from inference.drawing import draw_detections
from inference.folder import make_folder
from inference.output import Summary, say
from utils.errors import InputError, count
from utils.images import read_image, write_image
from utils.system import report_out_of_memory, thread_counts

MAX_WORKERS = 8  # each holds feature maps
SLACK = 2  # items that wait for a worker, or for their turn, besides those in progress
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
    `function` is raised here, in its item's turn. Close the generator if it is not used up (contextlib.closing).

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


@report_out_of_memory(_LESS_MEMORY)
def detect_video(detector, reader, writer, stop, *, labels=None, batch_size=1, write_line=None, display=None):
    """Detect in the frames of a VideoReader or CameraReader and write them with their detections.

    Args:
        stop: ends the run early once it is true (utils.system.StopSignals), as does the closed display.
        labels: keep only detections of these classes; None keeps all.
        write_line: called with the Detections of each frame, and with frame=index, time=seconds.
        display: output.Display, or None.

    Returns:
        output.Summary.
    """
    live = reader.expected is None and not hasattr(reader, "info")
    workers, threads = (1, 1) if live else share_threads(detector.device)
    summary = Summary("frame", {"decode": 1, "network": workers, "draw": workers, "encode": 1})

    def work(batch):
        times, frames = zip(*batch, strict=True)
        return list(zip(times, frames, _detect_and_draw(detector, frames, labels, summary), strict=True))

    waiting = batches(reader.timed(), batch_size)
    # Frames of a camera would be shown late if they waited for a worker.
    results = (work(batch) for batch in waiting) if live else in_order(work, waiting, workers, threads)
    bar = tqdm(total=reader.expected, unit="frame", dynamic_ncols=True, disable=None)
    with closing(results), bar:
        for batch in results:
            for time, frame, detections in batch:
                if write_line:
                    write_line(detections, frame=summary.images, time=round(time, 6))
                summary.add(detections)
                writer.write(frame, time)
                if display:
                    display.show(frame)
            bar.update(len(batch))
            if stop or (display and display.closed):
                break
    summary.seconds.update(decode=reader.seconds, encode=writer.seconds)
    return summary


@report_out_of_memory(_LESS_MEMORY)
def detect_images(detector, paths, targets, *, labels=None, batch_size=1, write_line=None, display=None):
    """Detect in image files and write each with its detections to its target; otherwise as `detect_video`.

    An image that can't be read is named on stderr and left out. The folder of the targets is made.

    Raises:
        InputError: no image can be read, or a target can't be written.
    """
    make_folder(targets[0].parent)
    workers, threads = share_threads(detector.device)
    summary = Summary("image", dict.fromkeys(("read", "network", "draw", "write"), workers))

    def read(path):
        with summary.timing("read"):
            try:
                return read_image(path)
            except InputError as error:
                return error

    def work(batch):
        images = [read(path) for path, _ in batch]
        readable = [image for image in images if isinstance(image, np.ndarray)]
        found = iter(_detect_and_draw(detector, readable, labels, summary))
        results = []
        for (path, target), image in zip(batch, images, strict=True):
            if isinstance(image, np.ndarray):
                with summary.timing("write"):
                    write_image(target, image)
                results.append((path, image, next(found)))
            else:
                results.append((path, image, None))
        return results

    results = in_order(work, batches(zip(paths, targets, strict=True), batch_size), workers, threads)
    bar = tqdm(total=len(paths), unit="image", dynamic_ncols=True, disable=True if len(paths) == 1 else None)
    with closing(results), bar:
        for path, image, detections in chain.from_iterable(results):
            bar.update()
            if detections is None:
                if len(paths) == 1:
                    raise image
                say(f"note: left out: {image}", sys.stderr)
                continue
            if write_line:
                write_line(detections, frame=summary.images, time=None, file=str(path))
            summary.add(detections)
            if display:
                display.show(image, wait=True)
                if display.closed:
                    break
    if not summary.images:
        raise InputError(f"{paths[0].parent}: none of its {count(len(paths), 'image')} can be read")
    return summary


def _detect_and_draw(detector, images, labels, summary):
    """Run the detector on images, draw the results in place, and return the Detections, filtered to `labels`."""
    if not images:
        return []
    with summary.timing("network"):
        found = detector(list(images))
    with summary.timing("draw"):
        found = found if labels is None else [detections.of_classes(labels) for detections in found]
        for image, detections in zip(images, found, strict=True):
            draw_detections(image, detections)
    return found
