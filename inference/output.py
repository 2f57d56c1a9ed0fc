"""Output besides images and videos: JSON lines, CSV, COCO results, crops, a summary, a window."""

import csv
import json
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from threading import Lock
from urllib.parse import quote

import cv2

from data.coco import coco_category_id
from inference.inputs import CROPS_MARK
from utils.errors import InputError, count, print_or_drop
from utils.files import make_folder, whole_file
from utils.images import write_image

STDOUT = "-"
CSV_COLUMNS = ("file", "frame", "time", "label", "score", "x1", "y1", "x2", "y2")


class Results:
    """Writes detections as JSON lines, CSV and COCO results. Each file is written completely or not at all.

    A JSON line contains the file's name, the frame's index (for images a running number), its time in seconds, and
    "detections": label, score, and box as x1, y1, x2, y2 in pixels. The CSV has a row per detection. COCO results are
    for images only; the image id is the number in the file's name, or the name without suffix if it is not COCO's.

    Args:
        inputs: list of inference.inputs.Input.
        json, csv, coco: paths, or None; "-" as `json` is stdout.
        ranks: the Ranks of the job (training.distributed); rank 0 writes the results of all, at the end.

    Raises:
        InputError: a file can't be written.
    """

    def __init__(self, inputs, json=None, csv=None, coco=None, ranks=None):
        self._places = {str(one.source): (index, one.name) for index, one in enumerate(inputs)}
        self._json, self._csv, self._coco = json, csv, coco
        self._ranks = ranks if ranks and ranks.world > 1 else None
        self._kept = []  # with several processes, until the end: (index of the input, record)
        self._coco_results, self._images = [], 0
        self._files = {}

    @contextmanager
    def open(self):
        """A context in which results can be added. The files are written at its end, but not if it raises."""
        with ExitStack() as stack:
            if not self._ranks or self._ranks.is_main:
                for kind, path in (("json", self._json), ("csv", self._csv), ("coco", self._coco)):
                    if path is not None and path != STDOUT:
                        partial = stack.enter_context(whole_file(path))
                        file = partial.open("w", encoding="utf-8", errors="backslashreplace", newline="")
                        self._files[kind] = stack.enter_context(file)
            if "csv" in self._files:
                csv.writer(self._files["csv"]).writerow(CSV_COLUMNS)
            yield self
            if "coco" in self._files:
                json.dump(self._coco_results, self._files["coco"])

    def add(self, detections, file, frame=None, time=None):
        """Add the Detections of an image, or of a frame of a video; `file` is the source of its input."""
        place, name = self._places[file]
        found = [
            {**one, "score": round(one["score"], 4), "box": [round(side, 1) for side in one["box"]]}
            for one in detections.as_dicts()
        ]
        record = {"file": name, "frame": frame, "time": time, "detections": found}
        if self._ranks:
            self._kept.append((place, record))
        else:
            self._write(record)

    def gather(self):
        """Write the results of all processes, in order. Each process must call this once, at the end."""
        if self._ranks:
            kept = self._ranks.gather([self._kept])
            if self._ranks.is_main:
                for _, record in sorted(chain.from_iterable(kept), key=lambda pair: (pair[0], pair[1]["frame"] or 0)):
                    self._write(record)

    def _write(self, record):
        if record["frame"] is None:
            record["frame"] = self._images
            self._images += 1
        if self._json == STDOUT:
            print_or_drop(json.dumps(record), sys.stdout)  # ASCII: a terminal may not support all letters
        elif "json" in self._files:
            self._files["json"].write(json.dumps(record) + "\n")
        if "csv" in self._files:
            where = [record["file"], record["frame"], record["time"]]
            rows = [[*where, one["label"], one["score"], *one["box"]] for one in record["detections"]]
            csv.writer(self._files["csv"]).writerows(rows)
        if "coco" in self._files:
            stem = Path(record["file"]).stem
            number = re.fullmatch(r"(?:COCO_\w+_)?(\d+)", stem)  # COCO_val2014_000000000042
            for one in record["detections"]:
                x1, y1, x2, y2 = one["box"]
                box = [x1, y1, round(x2 - x1, 1), round(y2 - y1, 1)]
                entry = {"image_id": int(number[1]) if number else stem, "category_id": coco_category_id(one["label"])}
                self._coco_results.append({**entry, "bbox": box, "score": one["score"]})


class Crops:
    """Writes the part of an image inside each box to FOLDER/CLASS/NAME_NUMBER.jpg.

    Args:
        inputs: list of inference.inputs.Input.
        folder: new, empty, or of an earlier run.
        overwrite: use any folder.

    Raises:
        InputError: the folder can't be used.
    """

    def __init__(self, inputs, folder, overwrite=False):
        self._names, taken = {}, set()
        for one in inputs:
            short = re.sub(r"[^\w.-]+", "_", one.name).encode()[-180:].decode(errors="ignore")  # 255 bytes are allowed
            name, number = short, 2
            while name in taken:
                name, number = f"{short}_{number}", number + 1
            taken.add(name)
            self._names[str(one.source)] = name
        self.folder = make_folder(folder, "--crops")
        try:
            names = {path.name for path in self.folder.iterdir()}
            if not names:
                (self.folder / CROPS_MARK).touch()
            elif CROPS_MARK not in names and not overwrite:
                raise InputError(f"--crops {folder}: this folder holds other files; add --overwrite, or name another")
        except OSError as error:
            raise InputError(f"--crops {folder}: can't be written ({error.strerror}); name another folder") from error

    def write(self, image, detections, file, frame=None):
        """Write the crops of uint8 RGB [H, W, 3] before boxes are drawn.

        `file` is the source of its input, and `frame` the index in a video.
        """
        height, width = image.shape[:2]
        name = self._names[file] if frame is None else f"{self._names[file]}_{frame:06d}"
        for number, (label, box) in enumerate(zip(detections.names, detections.boxes, strict=True)):
            x1, y1, x2, y2 = (int(side) for side in box.round())
            crop = image[max(y1, 0) : min(y2, height), max(x1, 0) : min(x2, width)]
            if crop.size:
                # A class name may start with a dot. Quoting makes names longer, and file systems allow 255 bytes.
                folder = self.folder / re.sub(r"^\.", "%2E", quote(label, safe=" "))[:200]
                make_folder(folder, "--crops")
                write_image(folder / f"{name}_{number}.jpg", crop)


class Summary:
    """Counts of a run and the time of its stages, which may run in several threads.

    Attributes:
        images: number of images or frames. objects: Counter by class name.
        errors: an InputError for each image that can't be read or written.
        seconds: {stage: seconds}, summed over its threads.
        threads: {stage: number of threads}; the stages overlap.
    """

    def __init__(self, noun, threads):
        self.noun = noun
        self.threads = threads
        self.images = 0
        self.errors = []
        self.objects = Counter()
        self.seconds = dict.fromkeys(threads, 0.0)
        self._started = time.perf_counter()
        self._lock = Lock()

    @contextmanager
    def timing(self, stage):
        """Add the time spent inside to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - started

    def add(self, detections):
        """Count one image."""
        self.images += 1
        self.objects.update(detections.names)

    @property
    def found(self):
        """The number of objects by class, as text."""
        return ", ".join(f"{name} {number}" for name, number in self.objects.most_common()) or "none"

    def __str__(self):
        elapsed = time.perf_counter() - self._started
        stages = ", ".join(f"{name} {1000 * t / max(self.images, 1):.1f}" for name, t in self.seconds.items())
        shared = [stage for stage, number in self.threads.items() if number > 1]
        how = f" ({' and '.join(shared)} on {max(self.threads.values())} threads)" if shared else ""
        slowest = max(self.threads, key=lambda stage: self.seconds[stage] / self.threads[stage])
        return (
            f"{count(self.images, self.noun)} in {elapsed:.1f} s ({self.images / elapsed:.1f} per second)\n"
            f"objects: {self.found}\n"
            f"milliseconds per {self.noun}: {stages}; they overlap{how}, the slowest is {slowest}"
        )


class Display:
    """A window. `closed` is True once its user has pressed q or Esc, or closed it.

    Raises InputError if no window can be opened.
    """

    TITLE = "Object detection (q quits)"

    def __init__(self):
        self.closed = False
        # OpenCV ends the process if the display does not answer, so another process tries first.
        code = "import cv2; cv2.namedWindow('test'); cv2.waitKey(1); cv2.destroyAllWindows()"
        trial = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        if trial.returncode:
            headless = "; install opencv-python in place of -headless" if b"not implemented" in trial.stderr else ""
            raise InputError(f"--show: no window can be opened{headless or '; check DISPLAY, or leave --show out'}")

    def show(self, frame, wait=False, stop=False):
        """Show uint8 RGB [H, W, 3]; with `wait`, wait for a key, or until `stop` (a StopSignals) is true."""
        cv2.namedWindow(self.TITLE, cv2.WINDOW_NORMAL)
        cv2.imshow(self.TITLE, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        while not (self.closed or stop):
            key = cv2.waitKey(50 if wait else 1)
            self.closed = key in (ord("q"), 27) or cv2.getWindowProperty(self.TITLE, cv2.WND_PROP_VISIBLE) < 1
            if not wait or key >= 0:
                break
