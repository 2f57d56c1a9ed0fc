"""The parts of SSD in the plainest way: picture by picture, class by class, box by box, written from their description.

This is how a course script works, and what the benchmarks compare with.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from layers.box_utils import decode, encode, jaccard, point_form


def detect(loc, scores, priors, num_classes=21, top_k=200, conf_thresh=0.01, nms_thresh=0.45):
    """Detect, with a loop over pictures and classes and a loop over boxes in each NMS."""
    output = torch.zeros(len(loc), num_classes, top_k, 5, device=loc.device)
    for picture in range(len(loc)):
        boxes = decode(loc[picture], priors, (0.1, 0.2))
        for label in range(1, num_classes):
            chosen = scores[picture, :, label] > conf_thresh
            if not chosen.any():
                continue
            kept = _nms(boxes[chosen], scores[picture, chosen, label], nms_thresh, top_k)
            rows = torch.cat([scores[picture, chosen, label][kept, None], boxes[chosen][kept]], dim=1)
            output[picture, label, : len(kept)] = rows
    return output


def _nms(boxes, scores, nms_thresh, top_k):
    order = scores.argsort(descending=True)[:top_k]
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        if len(order):
            order = order[jaccard(boxes[best][None], boxes[order])[0] <= nms_thresh]
    return torch.stack(kept)


def multibox_loss(loc, conf, priors, targets, num_classes=21):
    """The loss, with a loop over pictures for the matching and two sorts for the mining."""
    loc_t = torch.zeros_like(loc)
    conf_t = torch.zeros(conf.shape[:2], dtype=torch.int64, device=loc.device)
    for picture, target in enumerate(targets):
        overlaps = jaccard(target[:, :4], point_form(priors))
        best_overlap, best_truth = overlaps.max(dim=0)
        for truth, prior in enumerate(overlaps.max(dim=1).indices):
            best_overlap[prior], best_truth[prior] = 2, truth
        loc_t[picture] = encode(target[best_truth, :4], priors, (0.1, 0.2))
        conf_t[picture] = (target[best_truth, 4].long() + 1) * (best_overlap >= 0.5)
    positive = conf_t > 0
    loss_l = F.smooth_l1_loss(loc[positive], loc_t[positive], reduction="sum")
    flat = conf.view(-1, num_classes)
    mining = (torch.logsumexp(flat, dim=1) - flat.gather(1, conf_t.view(-1, 1))[:, 0]).view_as(conf_t)
    mining = mining.masked_fill(positive, 0)
    rank = mining.argsort(dim=1, descending=True).argsort(dim=1)
    negative = rank < 3 * positive.sum(dim=1, keepdim=True)
    chosen = positive | negative
    loss_c = F.cross_entropy(conf[chosen], conf_t[chosen], reduction="sum")
    n = positive.sum().clamp(min=1)
    return loss_l / n, loss_c / n


def augment(image, boxes, mean, rng, size=300):
    """Photometric distortion, expansion, crop, mirror and resize one after the other, on the whole picture in float."""
    image = image.astype(np.float32)
    if rng.random() < 0.5:
        image += rng.uniform(-32, 32)
    if rng.random() < 0.5:
        image *= rng.uniform(0.5, 1.5)
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    if rng.random() < 0.5:
        hsv[:, :, 1] *= rng.uniform(0.5, 1.5)
    if rng.random() < 0.5:
        hsv[:, :, 0] = (hsv[:, :, 0] + rng.uniform(-18, 18)) % 360
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    height, width = image.shape[:2]
    boxes = boxes * [width, height, width, height]
    if rng.random() < 0.5:
        ratio = rng.uniform(1, 4)
        left, top = int(rng.uniform(0, width * (ratio - 1))), int(rng.uniform(0, height * (ratio - 1)))
        canvas = np.empty((int(height * ratio), int(width * ratio), 3), np.float32)
        canvas[:] = mean
        canvas[top : top + height, left : left + width] = image
        image, boxes = canvas, boxes + [left, top, left, top]
    image, boxes = _crop(image, boxes, rng)
    if rng.random() < 0.5:
        image = image[:, ::-1]
        boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
    boxes = boxes / [image.shape[1], image.shape[0], image.shape[1], image.shape[0]]
    return cv2.resize(image, (size, size)) - np.array(mean, np.float32), boxes


def _crop(image, boxes, rng):
    height, width = image.shape[:2]
    while True:
        limit = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)[rng.integers(7)]
        if limit is None:
            return image, boxes
        for _ in range(50):
            w, h = rng.uniform(0.3 * width, width), rng.uniform(0.3 * height, height)
            if not 0.5 <= h / w <= 2:
                continue
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            window = np.array([int(left), int(top), int(left + w), int(top + h)])
            overlap = jaccard(torch.from_numpy(window[None].astype(float)), torch.from_numpy(boxes))
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = ((centre > window[:2]) & (centre < window[2:])).all(axis=1)
            if overlap.max() < limit or not inside.any():
                continue
            kept = boxes[inside].copy()
            kept[:, :2] = np.maximum(kept[:, :2], window[:2]) - window[:2]
            kept[:, 2:] = np.minimum(kept[:, 2:], window[2:]) - window[:2]
            return image[window[1] : window[3], window[0] : window[2]], kept
