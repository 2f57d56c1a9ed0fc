"""The report of an evaluation: the printed table, detection files, pr_curves.png, mistakes.html and results.json."""

import json
import math
import platform
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from metrics.detection_files import write_detection_files
from metrics.evaluation import coco_results
from metrics.mistakes import write_mistakes_page
from utils.errors import InputError, count
from utils.files import make_folder, whole_file


def columns(evaluation):
    """Return a tuple for each kind of AP in the table: (heading, rule as text, mean, list of the AP per class)."""
    if evaluation.images.coco:
        figures, classes = evaluation.coco
        found = [classes.get(name, {"AP": math.nan, "AP50": math.nan}) for name in evaluation.scored.class_names]
        kinds = (("AP", "COCO, IoU 0.50 to 0.95"), ("AP50", "COCO, IoU 0.50"))
        return [(kind, rule, figures[kind], [each[kind] for each in found]) for kind, rule in kinds]
    found = []
    for result in evaluation.voc:
        rule, ap_11 = result.rule.name, [each.ap_11 for each in result.classes]
        found.append((f"{rule} 11", f"{rule} rule, 11 points", result.mean_ap_11, ap_11))
        ap_area = [each.ap_area for each in result.classes]
        found.append((f"{rule} area", f"{rule} rule, area", result.mean_ap_area, ap_area))
    return found


def table(evaluation):
    """Return the table as text: AP and counts of each class, their means and sums."""
    headings, _, means, ap = zip(*columns(evaluation), strict=True)
    classes, is_coco = evaluation.voc[0].classes, evaluation.images.coco is not None
    counts = [[each.objects, each.difficult, len(each.rows)] for each in classes]
    rows = [["class", *headings, "objects", "crowds" if is_coco else "difficult", "detections"]]
    for each, of_class, numbers in zip(classes, zip(*ap, strict=True), counts, strict=True):
        rows.append([each.name, *map(decimals, of_class), *numbers])
    means = [""] * len(means) if is_coco else map(decimals, means)  # COCO's are among the figures below the table
    rows.append(["sum" if is_coco else "mean / sum", *means, *np.sum(counts, axis=0)])
    align = ["left"] + ["right"] * (len(rows[0]) - 1)
    return tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=align)


def summary(evaluation):
    """Return the lines below the table: the title, each mean with its rule, and the classes that are left out of it."""
    lines = [f"{evaluation.title}: {count(len(evaluation.images.ids), 'image')}"]
    if not evaluation.images.coco:
        lines += [f"mAP {decimals(mean)}  {rule}" for _, rule, mean, _ in columns(evaluation)]
    if evaluation.coco:
        lines += [f"{name:<9} {decimals(figure)}  COCO" for name, figure in evaluation.coco[0].items()]
    lines.append(f"best mean F1 {evaluation.mean_f1:.3f} at threshold {evaluation.threshold:.2f}")
    if left_out := evaluation.voc[0].left_out:
        lines.append(f"without ground truth, so left out of the mean: {', '.join(left_out)}")
    return lines


def decimals(figure):
    """Return a figure as text with four decimals; "-" for NaN."""
    return "-" if math.isnan(figure) else f"{figure:.4f}"


def prepare_folder(folder, data_folder, new_detections=False):
    """Create the folder of a report and remove an earlier report. Raises InputError if it is inside the data set.

    With `new_detections`, the detection files that the earlier report lists are removed, too.
    """
    folder = Path(folder).expanduser()
    if folder.resolve().is_relative_to(Path(data_folder).resolve()):
        raise InputError(f"--save_folder {folder}: inside the data set {data_folder}; choose another folder")
    make_folder(folder, "--save_folder")
    earlier = []
    if new_detections:
        with suppress(OSError, ValueError, TypeError, LookupError, RecursionError):
            earlier = list(map(str, json.loads((folder / "results.json").read_text("utf-8"))["detection_files"]))
    try:
        for name in (*earlier, "results.json", "pr_curves.png", "mistakes.html"):
            (folder / Path(name).name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"--save_folder {folder}: can't be written ({error.strerror}); choose another") from error
    return folder


def write_detections(folder, images, scored):
    """Write a network's detections: the devkit's files, or detections.json for COCO data. Returns the paths."""
    if not images.coco:
        return write_detection_files(folder, images.split, images.ids, scored.class_names, scored.detections)
    with whole_file(folder / "detections.json") as temporary:
        temporary.write_text(json.dumps(coco_results(images, scored)), encoding="utf-8")
    return [folder / "detections.json"]


def write_report(folder, evaluation, details):
    """Write pr_curves.png, mistakes.html (if there are image files), and finally results.json with `details`.

    Returns the content of results.json.
    """
    images, shown = evaluation.images, columns(evaluation)
    _, rule, mean, ap = shown[0]
    if images.paths:
        headline = f"mAP {decimals(mean)} ({rule})"
        write_mistakes_page(folder / "mistakes.html", evaluation, headline, list(map(decimals, ap)))
    _, rule, mean, ap = shown[1 if images.coco else 0]  # the curves are those at IoU 0.5
    _write_curves(folder / "pr_curves.png", evaluation, f"mAP {decimals(mean)} ({rule})", ap)
    dataset = {"title": images.title, "folder": str(images.folder), "split": images.split, "images": len(images.ids)}
    content = {
        "scored": evaluation.scored.source,
        "dataset": dataset,
        "voc": {result.rule.name: _voc_figures(result) for result in evaluation.voc},
        "coco": {**evaluation.coco[0], "classes": evaluation.coco[1]} if evaluation.coco else None,
        "best_mean_F1": {"mean_F1": evaluation.mean_f1, "threshold": evaluation.threshold},
        "notes": evaluation.notes,
        **details,
        "versions": {"python": platform.python_version(), "torch": version("torch"), "numpy": np.__version__},
    }
    content = json.loads(json.dumps(content), parse_constant=lambda name: None)  # JSON has no NaN
    with whole_file(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def _voc_figures(result):
    figures = {"mAP_11_points": result.mean_ap_11, "mAP_area": result.mean_ap_area}
    figures |= {"left_out_without_ground_truth": result.left_out, "classes": {}}
    for each in result.classes:
        of_class = {"AP_11_points": each.ap_11, "AP_area": each.ap_area, "objects": each.objects}
        figures["classes"][each.name] = {**of_class, "difficult": each.difficult, "detections": len(each.rows)}
    return figures


def _write_curves(path, evaluation, headline, ap):
    """Draw precision over recall, one panel for each class with ground truth."""
    shown = [(each, figure) for each, figure in zip(evaluation.voc[0].classes, ap, strict=True) if each.objects]
    wide = min(5, len(shown))
    high = math.ceil(len(shown) / wide)
    # Not with pyplot, which needs a display. Names are not parsed, because "$" would start a formula.
    figure = Figure(figsize=(max(6, 2.6 * wide + 0.6), 2.3 * high + 1.3), layout="constrained")
    figure.suptitle(f"{evaluation.title}\n{headline}", fontsize=12, parse_math=False)
    figure.supxlabel("recall", fontsize=11)
    figure.supylabel("precision", fontsize=11)
    panels = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False).ravel()
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    for panel, (each, class_ap) in zip(panels, shown, strict=False):
        counted = each.outcome >= 0
        recall, precision = np.append(0, each.recall[counted]), each.precision[counted]
        precision = np.append(precision[:1] if len(precision) else 0, precision)
        panel.plot(recall, precision, color="#1f5fa8", linewidth=1.4, drawstyle="steps-pre")
        panel.fill_between(recall, precision, color="#1f5fa8", alpha=0.15, linewidth=0, step="pre")
        panel.set_title(f"{each.name}  {decimals(class_ap)}", fontsize=10, parse_math=False)
        panel.set(xlim=(0, 1), ylim=(0, 1.03), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)
