"""mistakes.html: each class's most confident false positives and its worst misses, on one self-contained page."""

import base64
from dataclasses import dataclass
from html import escape
from itertools import groupby

import cv2
import numpy as np

from metrics.voc import FALSE_POSITIVE, TRUE_POSITIVE, best_overlaps, paired_iou
from utils.errors import count
from utils.files import whole_file
from utils.images import read_image

FALSE, TRUTH, OTHER = (230, 57, 40), (46, 175, 80), (245, 170, 40)  # RGB of boxes; the page's legend names them
_SIDE = 240  # of a crop, in pixels
_NEAR = 0.1  # boxes with a lower IoU are unrelated

_STYLE = """
body { font: 15px/1.45 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #222; background: #fafafa;
       margin: 0 auto; padding: 1.5rem; max-width: 1180px; }
h1 { font-size: 1.5rem; margin: 0; } p { margin: .3rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 0; border-top: 1px solid #ddd; padding-top: 1rem; }
h3 { font-size: .95rem; margin: 1rem 0 .5rem; color: #555; }
nav { display: flex; flex-wrap: wrap; gap: .4rem; margin: 1rem 0; }
nav a { color: inherit; text-decoration: none; padding: .15rem .55rem; }
nav a, figure { background: #fff; border: 1px solid #ddd; border-radius: .4rem; overflow: hidden; margin: 0; }
nav span, .quiet { color: #707070; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: .8rem; align-items: start; }
figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #ececec; }
figcaption { padding: .4rem .6rem .5rem; font-size: .85rem; overflow-wrap: anywhere; }
.key { display: inline-block; box-sizing: border-box; width: .9em; height: .9em; border: 3px solid;
       margin: 0 .3em 0 0; vertical-align: -.1em; }
"""


@dataclass(frozen=True)
class Mistake:
    """A false positive or a missed object; boxes are corners in pixels counted from 1."""

    missed: bool
    image: int  # index
    box: np.ndarray  # float64 [4], of the detection or of the missed object
    reason: str
    objects: np.ndarray  # float64 [N, 4], the class's objects in the image
    detected: np.ndarray  # float64 [M, 4], detections near the missed object


def find_mistakes(result, detections, ground_truth, threshold, most=6):
    """Find the worst mistakes of each class of a VOCResult, with the detections above a score threshold.

    An object that is not difficult is missed if no detection above the threshold found it. Objects that were never
    found come first, then those found at a lower score, large ones before small ones.

    Returns:
        For each class: (at most `most` Mistakes of each kind, number of false positives, number of missed objects).
    """
    names, found = [each.name for each in result.classes], []
    scores, threshold = detections.scores.astype(np.float32), np.float32(threshold)  # compared as Detect does
    confident = detections.take(scores > threshold)
    for label, each in enumerate(result.classes):
        false = np.flatnonzero((each.outcome == FALSE_POSITIVE) & (scores[each.rows] > threshold))
        hits = each.outcome == TRUE_POSITIVE
        found_at = np.zeros(len(ground_truth))
        found_at[each.best[hits]] = scores[each.rows[hits]]
        objects = ground_truth.labels == label
        missed = np.flatnonzero(objects & ~ground_truth.difficult & (found_at <= threshold))
        corners = ground_truth.boxes[missed]
        missed = missed[np.lexsort((-(corners[:, 2:] - corners[:, :2]).prod(axis=1), found_at[missed]))]
        mistakes = []
        for place in false[:most]:
            detection = detections.take(each.rows[[place]])
            reason = _why_false(detection, each, place, ground_truth, result.rule, names)
            image, box, none = detection.images[0], detection.boxes[0], np.empty((0, 4))
            own = ground_truth.boxes[objects & (ground_truth.images == image)]
            mistakes.append(Mistake(False, image, box, reason, own, none))
        for row in missed[:most]:
            image, box = ground_truth.images[row], ground_truth.boxes[row]
            nearby = confident.take(confident.images == image)
            shifted = np.tile(box + result.rule.ground_truth_shift, (len(nearby), 1))
            iou = paired_iou(nearby.boxes, shifted, result.rule.size_offset)
            reason = _why_missed(found_at[row], nearby.take((iou >= 0.5) & (nearby.labels != label)), names)
            own = ground_truth.boxes[objects & (ground_truth.images == image)]
            mistakes.append(Mistake(True, image, box, reason, own, nearby.boxes[iou >= _NEAR]))
        found.append((mistakes, len(false), len(missed)))
    return found


def _why_false(detection, of_class, place, ground_truth, rule, names):
    (iou,), (nearest,) = best_overlaps(detection, ground_truth, rule)
    own_iou = of_class.iou[place]
    reason = f"badly placed: IoU {own_iou:.2f}" if own_iou >= _NEAR else f"no {of_class.name} there"
    if iou >= 0.5:
        reason = "second detection of an object" if own_iou >= 0.5 else f"on {names[ground_truth.labels[nearest]]}"
    return f"{detection.scores[0]:.2f}: {reason}"


def _why_missed(found_at, others, names):
    reason = f"found only at {found_at:.2f}" if found_at else "never found"
    if not len(others):
        return reason
    best = others.scores.argmax()
    return f"{reason}; taken for {names[others.labels[best]]} ({others.scores[best]:.2f})"


def write_mistakes_page(path, evaluation, headline, class_ap):
    """Write the page of an Evaluation. headline: its mAP and rule, as text; class_ap: AP of each class, as text."""
    result, images, title = evaluation.voc[0], evaluation.images, escape(evaluation.title)
    mistakes = find_mistakes(result, evaluation.scored.detections, evaluation.ground_truth, evaluation.threshold)
    cards, by_image = {}, sorted((one for found, _, _ in mistakes for one in found), key=lambda one: one.image)
    for index, shown in groupby(by_image, key=lambda one: one.image):  # each image is read once
        image = read_image(images.paths[index])
        cards.update({id(one): _card(one, draw_mistake(image, one), str(images.ids[index])) for one in shown})
    links, sections = [], []
    for label, (each, ap, (found, false, missed)) in enumerate(zip(result.classes, class_ap, mistakes, strict=True)):
        if found:
            links.append(f'<a href="#class-{label}">{escape(each.name)} <span>{ap}</span></a>')
            counts = (count(each.objects, "object"), count(false, "false positive"), count(missed, "missed object"))
            sections.append(f'<h2 id="class-{label}">{escape(each.name)}</h2>')
            sections.append(f'<p class="quiet">AP {ap} · {" · ".join(counts)}</p>')
        for is_missed, heading in enumerate(("False positives, highest score first", "Missed objects, worst first")):
            if row := [cards[id(one)] for one in found if one.missed == is_missed]:
                sections += [f'<h3>{heading}</h3>\n<div class="row">', *row, "</div>"]
    texts = ("false positive", "object of the class (thick: a missed one)", "detection near a missed object")
    key = '<span class="key" style="border-color: rgb{}"></span>{}'
    legend = "&emsp;".join(key.format(color, text) for color, text in zip((FALSE, TRUTH, OTHER), texts, strict=True))
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Mistakes: {title}</title>
<style>{_STYLE}</style></head>
<body><h1>Mistakes: {title}</h1>
<p>{headline} · {count(len(images.ids), "image")}</p>
<p>Detections above score {evaluation.threshold:.2f}, which gives the best mean F1 ({evaluation.mean_f1:.3f})</p>
<p>{legend}</p>
<nav>{"".join(links) or "No mistakes."}</nav>
{chr(10).join(sections)}
</body></html>
"""
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _card(mistake, crop, image_id):
    # Without subsampling of colors, which would blur thin lines.
    settings = [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), settings)
    reason = escape(mistake.reason)
    return (
        f'<figure><img src="data:image/jpeg;base64,{base64.b64encode(data).decode()}" alt="{reason}" loading="lazy">'
        f'<figcaption>{reason}<br><span class="quiet">{escape(image_id)}</span></figcaption></figure>'
    )


def draw_mistake(image, mistake):
    """Return the part of an image around a mistake with its boxes: uint8 RGB, the longer side 240 pixels."""
    limits = np.array(image.shape[1::-1])
    side = (mistake.box[2:] - mistake.box[:2]).max()
    margin = max(side / 2, 24 - side / 2)  # at least 48 pixels are shown
    low = np.clip(mistake.box[:2] - 1 - margin, 0, limits - 1).astype(int)
    high = np.ceil(np.clip(mistake.box[2:] - 1 + margin, low + 1, limits)).astype(int)
    scale = _SIDE / (high - low).max()
    size = np.maximum(1, np.round((high - low) * scale)).astype(int)
    crop = np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]])
    crop = cv2.resize(crop, size.tolist(), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    own = TRUTH if mistake.missed else FALSE
    for boxes, color, width in ((mistake.objects, TRUTH, 2), (mistake.detected, OTHER, 2), (mistake.box[None], own, 3)):
        boxes_here = boxes[(boxes[:, 2:] - 1 >= low).all(axis=1) & (boxes[:, :2] - 1 <= high).all(axis=1)]
        corners = np.clip((boxes_here - 1 - np.tile(low, 2)) * scale, 1, np.tile(size, 2) - 2)  # all edges are visible
        for x1, y1, x2, y2 in corners.round().astype(int).tolist():
            if width > 2:
                cv2.rectangle(crop, (x1, y1), (x2, y2), (20, 20, 20), width + 2)  # a rim, visible on any background
            cv2.rectangle(crop, (x1, y1), (x2, y2), color, width)
    return crop
