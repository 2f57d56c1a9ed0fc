"""Detector: uint8 RGB frames of any size in, boxes in pixels with scores and names out."""

from dataclasses import dataclass

import numpy as np
import torch

from data.transforms import resize
from inference.device_path import DevicePath
from inference.engines import choose
from inference.memory import WithinMemory
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

    May be called from several threads at once. Where a batch doesn't fit into memory, it goes on with smaller ones, and
    says so on stderr.

    Args:
        weights: checkpoint, a path or a name of the catalogue; None takes the best that lies here (see weights/).
        device: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda", "cuda:1", "mps".
        precision: "float32", "bfloat16", "float16", "int8" or "auto": bfloat16 on CPUs and CUDA devices that compute
            in it, float16 on other CUDA devices, else float32. Boxes and scores are computed in float32 from the
            network's outputs in any case. "int8" is for engine "openvino" and costs a little accuracy.
        threshold: least score of a detection.
        top_k: most detections of a class; as many enter non-maximum suppression.
        keep_top_k: most detections of a picture, over all classes; all unless given.
        clip: cut boxes to the picture; the published figures were measured on boxes as they come.
        engine: what runs the network, "torch", or on the CPU "onnxruntime" (float32) or "openvino" (all but float16);
            these two need requirements-engines.txt. They take as many threads as PyTorch is set to use.
        calibration: for "int8", folder of pictures like those to come; frames of the bundled clip unless given.
    Attributes:
        net, info (CheckpointInfo), class_names, device, dtype (torch.int8 for "int8"), engine.
    Raises InputError where the checkpoint can't be used, there is no such device, or a package is missing.
    """

    def __init__(
        self,
        weights=None,
        device="auto",
        precision="auto",
        threshold=0.6,
        top_k=200,
        *,
        keep_top_k=None,
        clip=True,
        engine="torch",
        calibration=None,
    ):
        from weights.catalogue import resolve
        from weights.checkpoint import load_network

        choice = choose(engine, device, precision, calibration)  # before the weights: it mustn't wait for a download
        self._set_up(*load_network(resolve(weights)), choice, threshold, top_k, keep_top_k, clip)

    @classmethod
    def of_network(
        cls,
        net,
        info,
        device="cpu",
        precision="auto",
        threshold=0.6,
        top_k=200,
        *,
        keep_top_k=None,
        clip=True,
        engine="torch",
        calibration=None,
    ):
        """A Detector of a network at hand (an SSD without BatchNorm, taken over) and its CheckpointInfo."""
        detector = cls.__new__(cls)
        choice = choose(engine, str(device), precision, calibration)
        detector._set_up(net, info, choice, threshold, top_k, keep_top_k, clip)
        return detector

    def _set_up(self, net, info, choice, threshold, top_k, keep_top_k, clip):
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must lie in [0, 1), not {threshold}")
        self.info = info
        self.clip = clip
        self.device = choice.device
        self.dtype = choice.dtype
        self.engine = choice.engine
        self.class_names = tuple(self.info.class_names)
        # The priors stay in float32: half precision can't tell neighbouring cells apart.
        self._priors = net.priors.to(self.device, torch.float32)
        self._run = choice.make(net, info)
        self.net = net
        self._within_memory = WithinMemory(self._detect_batch)
        self._detect = Detect(
            net.num_classes,
            top_k=top_k,
            conf_thresh=threshold,
            nms_thresh=net.detect.nms_thresh,
            variance=net.detect.variance,
            keep_top_k=keep_top_k,
        )
        cuda = self.device.type == "cuda"
        self._rows_of = DevicePath(self._run, self._detect, self._priors, self.size) if cuda else self._rows_on_host

    @property
    def size(self):
        """Side of the network's input in pixels."""
        return self.info.config.min_dim

    @property
    def description(self):
        """What runs, and on what, in a few words for the user."""
        precision = str(self.dtype).removeprefix("torch.")
        engine = "" if self.engine == "torch" else f" by {self.engine}"
        classes = f"{len(self.class_names)} classes"
        name = self.info.path.name if self.info.path else "a network without a file"
        return f"{name}, {self.info.config.name}, {classes}, on {self.device} in {precision}{engine}"

    def __call__(self, frames):
        """Detect in a batch of frames.

        frames: list of uint8 RGB arrays [H, W, 3] of any sizes. Returns a list of as many Detections.
        Raises ValueError for anything but such frames, and InputError where there isn't memory for a single one.
        """
        for frame in frames:
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
                raise ValueError(f"a frame is uint8 RGB [H, W, 3], not {frame.dtype} {list(frame.shape)}")
        return self._within_memory(frames)

    @torch.inference_mode()
    def _detect_batch(self, frames):
        """Detections of a batch of checked frames that goes through the network at once."""
        return [self._in_pixels(rows, frame.shape) for rows, frame in zip(self._rows_of(frames), frames, strict=True)]

    def _rows_on_host(self, frames):
        """Detect's rows, all but the network computed on the host: float32 array [B, classes, top_k, 5]."""
        loc, conf = self._run(np.stack([resize(frame, self.size) for frame in frames]))
        return self._detect(loc, conf.softmax(dim=-1), self._priors).cpu().numpy()

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
