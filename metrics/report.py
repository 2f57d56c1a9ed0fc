"""What an evaluation leaves behind: detection files, results.json, pr_curves.png and mistakes.html."""

import hashlib
import json
import math
import platform
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from metrics.coco_files import write_results
from metrics.curves import write_curves
from metrics.evaluation import coco_results
from metrics.mistakes import find_mistakes
from metrics.mistakes_page import write_mistakes_page
from metrics.tables import means
from metrics.voc_files import write_detection_files
from utils.errors import InputError

_PACKAGES = ("torch", "torchvision", "numpy", "opencv-python", "pycocotools", "matplotlib")
_MISSED_BELOW = 0.6  # what Object_Detection.py shows by default


def prepare_folder(folder, data_folder):
    """Make the folder of a report and return it. Raises InputError where it lies in the data or can't be written."""
    folder = Path(folder).expanduser()
    if folder.resolve().is_relative_to(Path(data_folder).resolve()):
        raise InputError(f"--save_folder {folder} lies in the data set {data_folder}, which is never written into")
    with _writing_into(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("results.json", "pr_curves.png", "mistakes.html"):  # old ones must not pass for this run's
            (folder / name).unlink(missing_ok=True)
    return folder


def write_detections(folder, pictures, scored):
    """Write a network's detections: the devkit's files, for COCO data detections.json. Returns their paths."""
    with _writing_into(folder):
        if pictures.coco:
            paths = [folder / "detections.json"]
            write_results(paths[0], coco_results(pictures, scored))
        else:
            paths = write_detection_files(folder, pictures.split, pictures.ids, scored.class_names, scored.detections)
    return paths


def write_report(folder, evaluation, details):
    """Write pr_curves.png, mistakes.html (where the pictures are at hand) and, last, results.json.

    details: what results.json is to hold beside the figures. Returns the content of results.json.
    """
    pictures, scored, result = evaluation.pictures, evaluation.scored, evaluation.voc_results[0]
    with _writing_into(folder):
        write_curves(
            folder / "pr_curves.png", result, f"{evaluation.title} ({result.rule.name} rule, IoU 0.5, area AP)"
        )
        if scored.read_image:
            write_mistakes_page(
                folder / "mistakes.html",
                title=f"Mistakes: {evaluation.title}",
                summary=[f"{len(pictures.ids)} pictures", *means(evaluation)],
                result=result,
                mistakes=find_mistakes(result, scored.detections, evaluation.ground_truth, _MISSED_BELOW),
                threshold=_MISSED_BELOW,
                picture_ids=pictures.ids,
                read_image=lambda index: scored.read_image(pictures.paths[index]),
            )
        content = {
            "scored": scored.source,
            "dataset": {
                "title": pictures.title,
                "folder": str(pictures.folder),
                "split": pictures.split,
                "pictures": len(pictures.ids),
            },
            "voc": {result.rule.name: _voc_figures(result) for result in evaluation.voc_results},
            "coco": _coco_figures(evaluation.coco_result) if evaluation.coco_result else None,
            "notes": list(evaluation.notes),
            **details,
            "versions": _versions(),
        }
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        (folder / "results.json").write_text(text, encoding="utf-8")
    return content


def sha256(path):
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _writing_into(folder):
    """Turn an OSError (no permission, disk full) into an InputError that names the folder."""
    try:
        yield
    except OSError as error:
        raise InputError(f"can't write into {folder} ({error}): choose another --save_folder") from error


def _voc_figures(result):
    return {
        "mAP_11_points": _number(result.mean_ap_11),
        "mAP_area": _number(result.mean_ap_area),
        "left_out_without_ground_truth": list(result.left_out),
        "classes": {
            of_class.name: {
                "AP_11_points": _number(of_class.ap_11),
                "AP_area": _number(of_class.ap_area),
                "objects": of_class.objects,
                "difficult": of_class.difficult,
                "detections": of_class.detections,
            }
            for of_class in result.classes
        },
    }


def _coco_figures(result):
    return {
        **{name: _number(figure) for name, figure in result.figures.items()},
        "classes": {
            name: {"AP": _number(figure), "AP50": _number(result.class_ap50[name])}
            for name, figure in result.class_ap.items()
        },
    }


def _versions():
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _number(figure):
    """None for NaN, which JSON doesn't have."""
    return None if math.isnan(figure) else float(figure)
