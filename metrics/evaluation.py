"""Run a detector on a split, or read saved detections, and score them."""

import time
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from inference.pipeline import in_order, share_threads
from metrics.coco import annotations_from_arrays, evaluate_coco, results_from_arrays
from metrics.detection_files import read_detection_files, read_results
from metrics.ground_truth import EvaluationSet
from metrics.voc import PLAIN, RULES, DetectionArrays, GroundTruthArrays, VOCResult, best_threshold, evaluate_detections
from utils.errors import printable


def detect_images(detector, paths, *, batch_size=None, show_progress=True, num_workers=0, ranks=None):
    """Run a Detector on image files. Returns (DetectionArrays in the order of the images, images per second).

    Each worker thread reads a batch and runs the detector; num_workers 0: see `share_threads`. batch_size None: 16 on
    CUDA, else 4, which is up to 15 % faster on CPU than 8. The progress bar needs a terminal. With `ranks`, each
    process handles its share of the batches, and all get the whole result.
    Raises InputError if an image can't be read.
    """
    workers, threads = share_threads(detector.device)
    if num_workers:
        workers, threads = num_workers, max(1, workers * threads // num_workers)
    batch_size = batch_size or (16 if detector.device.type == "cuda" else 4)
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    if ranks:
        batches, show_progress = batches[ranks.rank :: ranks.world], show_progress and ranks.is_main
    found, started = [], time.perf_counter()
    bar = tqdm(total=sum(map(len, batches)), unit="image", disable=None if show_progress else True, dynamic_ncols=True)
    with bar, closing(in_order(detector, batches, workers, threads)) as results:
        for batch in results:
            found.append(batch)
            bar.update(len(batch))
    found = list(chain.from_iterable(ranks.gather(found) if ranks else found))
    rate = len(paths) / (time.perf_counter() - started)
    detections = DetectionArrays(
        np.repeat(np.arange(len(found)), [len(one.scores) for one in found]),
        np.concatenate([one.labels for one in found]),
        np.concatenate([one.scores for one in found]),
        np.concatenate([one.boxes + np.float32(1) for one in found]),  # float32, as the detection files
    )
    return detections, rate


@dataclass(frozen=True)
class Scored:
    """Detections of a network or of files."""

    title: str  # as printed
    class_names: tuple[str, ...]  # of the labels
    detections: DetectionArrays
    source: dict  # their origin, for results.json
    notes: tuple[str, ...] = ()  # a line for each kind of detections that were left out


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation."""

    title: str  # such as "NAME on VOC2007 test"
    images: EvaluationSet
    scored: Scored
    ground_truth: GroundTruthArrays  # of the scored classes
    voc: tuple[VOCResult, ...]  # one for each rule; for COCO data by the plain rule
    coco: tuple[dict, dict] | None  # COCO's figures, and those of the classes, as from evaluate_coco
    threshold: float  # from best_threshold, on voc[0]
    mean_f1: float
    notes: tuple[str, ...]  # a line for each kind of data that was left out


def read_detections(path, images):
    """Read a folder of det_<split>_<class>.txt or, for COCO data, a results JSON. Returns a Scored.

    Raises InputError if a file is missing or invalid.
    """
    path, names = Path(path).expanduser(), images.class_names
    if images.coco and not path.is_dir():
        detections, notes = read_results(path, images.ids, images.coco.category_ids)
    else:
        names, detections, notes = read_detection_files(path, images.split, images.ids, names, not images.coco)
    return Scored(f"detections in {path.resolve().name}", names, detections, {"detections": str(path)}, tuple(notes))


def evaluate(images, scored, rule="both", coco_metrics=False):
    """Score detections (Scored) on an EvaluationSet. Returns an Evaluation.

    rule: "reference", "devkit" or "both", for VOC's AP. coco_metrics: compute COCO's figures for other data, too.
    Raises InputError if none of the objects is of a scored class.
    """
    names, detections = scored.class_names, scored.detections
    ground_truth, notes = images.ground_truth(names)
    rules = [PLAIN] if images.coco else [RULES[name] for name in RULES if rule in (name, "both")]
    coco = None
    if images.coco or coco_metrics:
        content = images.coco.content if images.coco else annotations_from_arrays(ground_truth, images.ids, names)
        categories = [category for category in images.category_ids(names) if category is not None]
        coco = evaluate_coco(content, coco_results(images, scored), categories, images.ids)
    voc = tuple(evaluate_detections(detections, ground_truth, names, rule) for rule in rules)
    threshold, mean_f1 = best_threshold(detections, voc[0])
    title, notes = printable(f"{scored.title} on {images.title}"), (*images.notes, *scored.notes, *notes)
    return Evaluation(title, images, scored, ground_truth, voc, coco, threshold, mean_f1, notes)


def coco_results(images, scored):
    """Return the detections as COCO result dicts, without classes that are not in the COCO set."""
    return results_from_arrays(scored.detections, images.ids, images.category_ids(scored.class_names))
