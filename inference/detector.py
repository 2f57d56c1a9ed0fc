"""Detector: uint8 RGB frames of any size in, boxes in pixels with scores and names out."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from data.transforms import resize, to_input
from inference.devices import choose_device, choose_precision
from layers.functions import Detect

LARGEST = 1e9  # pixels; a corner beyond that is no box's


@dataclass(frozen=True)
class Detections:
    """What was found in one picture, best first.

    Attributes:
        boxes: float32 [N, 4], corners x1, y1, x2, y2 in pixels, clipped to the picture (unless the Detector
            was told not to).
        scores: float32 [N], descending.
        labels: int64 [N], index into the detector's class_names (no background).
        names: list of N class names.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list

    def __len__(self):
        return len(self.scores)

    def of_classes(self, labels):
        """Only those whose label is one of `labels`: Detections."""
        keep = np.flatnonzero(np.isin(self.labels, list(labels)))
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], [self.names[i] for i in keep])


class Detector:
    """An SSD with all that belongs to it: preprocessing, channel order, device, precision, class names.

    Args:
        weights: checkpoint, a path or a name of the catalogue; None takes the best that lies here (see weights/).
        device: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda", "cuda:1", "mps".
        precision: "float32", "bfloat16", "float16" or "auto": bfloat16 on CPUs and CUDA devices that compute in it,
            float16 on other CUDA devices, else float32. Boxes and scores are computed in float32 from the network's
            outputs in any case.
        threshold: least score of a detection.
        top_k: most detections of a class; as many enter non-maximum suppression.
        keep_top_k: most detections of a picture, over all classes; all unless given.
        clip: cut boxes to the picture; the published figures were measured on boxes as they come.
    Attributes:
        net, info (CheckpointInfo), class_names, device, dtype.
    Raises InputError where the checkpoint can't be used, or there is no such device.
    """

    def __init__(
        self, weights=None, device="auto", precision="auto", threshold=0.6, top_k=200, *, keep_top_k=None, clip=True
    ):
        from weights.catalogue import resolve
        from weights.checkpoint import load_network

        device = choose_device(device)  # before the weights: a wrong device must not wait for a download
        self._set_up(*load_network(resolve(weights)), device, precision, threshold, top_k, keep_top_k, clip)

    @classmethod
    def of_network(
        cls, net, info, device="cpu", precision="auto", threshold=0.6, top_k=200, *, keep_top_k=None, clip=True
    ):
        """A Detector of a network at hand (an SSD without BatchNorm, taken over) and its CheckpointInfo."""
        detector = cls.__new__(cls)
        detector._set_up(net, info, choose_device(str(device)), precision, threshold, top_k, keep_top_k, clip)
        return detector

    def _set_up(self, net, info, device, precision, threshold, top_k, keep_top_k, clip):
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must lie in [0, 1), not {threshold}")
        self.info = info
        self.clip = clip
        self.device = device
        self.dtype = choose_precision(precision, device)
        self.class_names = tuple(self.info.class_names)
        # The priors stay in float32: half precision can't tell neighbouring cells apart.
        self._priors = net.priors.to(self.device, torch.float32)
        self.net = net.to(self.device, self.dtype, memory_format=torch.channels_last)
        self._detect = Detect(
            net.num_classes,
            top_k=top_k,
            conf_thresh=threshold,
            nms_thresh=net.detect.nms_thresh,
            variance=net.detect.variance,
            keep_top_k=keep_top_k,
        )

    @cached_property
    def size(self):
        """Side of the network's input in pixels."""
        return self.info.config.min_dim

    @torch.inference_mode()
    def __call__(self, frames):
        """Detect in a batch of frames.

        frames: list of uint8 RGB arrays [H, W, 3] of any sizes. Returns a list of as many Detections.
        Raises ValueError for anything but such frames.
        """
        if len(frames) == 0:
            return []
        for frame in frames:
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
                raise ValueError(f"a frame is uint8 RGB [H, W, 3], not {frame.dtype} {list(frame.shape)}")
        small = torch.from_numpy(np.stack([resize(frame, self.size) for frame in frames]))
        # Bytes cross over to the device, a quarter of what float32 would be; everything else happens there.
        pictures = to_input(small.to(self.device), self.info.channel_order, self.dtype)
        loc, conf = self.net.raw(pictures)
        found = self._detect(loc.float(), conf.float().softmax(dim=-1), self._priors).cpu().numpy()
        return [self._in_pixels(rows, frame.shape) for rows, frame in zip(found, frames, strict=True)]

    def _in_pixels(self, rows, shape):
        """Detect's rows of one picture, [classes, top_k, 5] with corners as fractions -> Detections."""
        label, place = np.nonzero(rows[:, :, 0] > 0)
        rows = rows[label, place]
        height, width = shape[:2]
        limits = np.array([width, height, width, height], np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            boxes = rows[:, 1:] * limits
        # A network that was hardly trained has offsets whose exponential is next to infinity, or beyond.
        usable = np.isfinite(rows).all(axis=1) & (np.abs(boxes) < LARGEST).all(axis=1)
        boxes, rows, label = boxes[usable], rows[usable], label[usable]
        order = np.argsort(-rows[:, 0], kind="stable")
        boxes, rows, label = boxes[order], rows[order], label[order].astype(np.int64) - 1
        boxes = np.clip(boxes, 0, limits) if self.clip else boxes
        return Detections(boxes, rows[:, 0].copy(), label, [self.class_names[i] for i in label])
