"""The figures of an Evaluation as lines of text: a table by class, and the summary below it."""

import math


def table(evaluation):
    """Lines of a table: each class's AP (under each VOC rule, or COCO's), its counts, and means and sums."""
    results, coco = evaluation.voc_results, evaluation.coco_result
    if evaluation.pictures.coco:
        header = ["AP", "AP50"]
        figures = [
            [by_name.get(c.name, math.nan) for by_name in (coco.class_ap, coco.class_ap50)] for c in results[0].classes
        ]
        averages = [coco.figures["AP"], coco.figures["AP50"]]
    else:
        header = [f"{result.rule.name} {kind}" for result in results for kind in ("11", "area")]
        figures = [
            [figure for of_class in of_rules for figure in (of_class.ap_11, of_class.ap_area)]
            for of_rules in zip(*(result.classes for result in results), strict=True)
        ]
        averages = [figure for result in results for figure in (result.mean_ap_11, result.mean_ap_area)]
    counts = ("objects", "difficult", "detections")
    rows = [["class", *header, "objects", "crowds" if evaluation.pictures.coco else "difficult", "detections"]]
    for of_class, of_figures in zip(results[0].classes, figures, strict=True):
        rows.append([of_class.name, *map(_decimals, of_figures), *(getattr(of_class, count) for count in counts)])
    sums = [sum(getattr(of_class, count) for of_class in results[0].classes) for count in counts]
    return _aligned([*rows, ["mean / sum", *map(_decimals, averages), *sums]])


def summary(evaluation):
    """Lines that say what was scored and name each mean, and the classes that it leaves out."""
    results = evaluation.voc_results
    lines = [f"{evaluation.title}: {len(evaluation.pictures.ids)} pictures", *means(evaluation)]
    if evaluation.coco_result:
        lines += [f"{name:<9} {_decimals(value)}  COCO" for name, value in evaluation.coco_result.figures.items()]
    left_out = results[0].left_out
    if left_out:
        lines.append(f"without ground truth, so left out of the mean: {', '.join(left_out)} ({len(left_out)} classes)")
    return lines


def means(evaluation):
    """One line for each mean AP, with the rule that it follows."""
    if evaluation.pictures.coco:
        return [f"AP {_decimals(evaluation.coco_result.figures['AP'])}  COCO, IoU 0.50 to 0.95"]
    lines = []
    for result in evaluation.voc_results:
        lines.append(f"mAP {_decimals(result.mean_ap_11)}  {result.rule.name} rule, 11 points")
        lines.append(f"mAP {_decimals(result.mean_ap_area)}  {result.rule.name} rule, area")
    return lines


def _aligned(rows):
    """Lines of a table whose first column is aligned left and whose others are aligned right."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _decimals(figure):
    return "-" if math.isnan(figure) else f"{figure:.4f}"
