"""Detector: images in, boxes in pixels with scores and names out."""

import copy
from dataclasses import dataclass
from os import PathLike

import numpy as np
import torch
from PIL import Image

from data.transforms import resize, resize_on_device, to_input
from inference.drawing import draw_detections
from inference.fused import fuse_relus
from inference.openvino import OpenVINONetwork, choose_openvino_precision
from inference.winograd import use_winograd
from layers.functions import Detect
from utils.errors import InputError
from utils.images import read_image
from utils.system import choose_device, choose_precision, cpu_computes_bfloat16, report_out_of_memory
from weights.catalogue import resolve
from weights.checkpoint import load_network

ENGINES = ("auto", "torch", "openvino")
DEFAULT_THRESHOLD = 0.6
LARGEST = 1e9  # pixels; a box with a corner beyond that is dropped


@dataclass(frozen=True)
class Detections:
    """The detections in one image, sorted by descending score."""

    boxes: np.ndarray  # float32 [N, 4], corners x1, y1, x2, y2 in pixels, clipped to the image (see Detector's `clip`)
    scores: np.ndarray  # float32 [N]
    labels: np.ndarray  # int64 [N], indices into the detector's class_names (without background)
    names: list  # N class names

    def __len__(self):
        return len(self.scores)

    def as_dicts(self):
        """Return a dict per detection: "label", "score", and "box" as [x1, y1, x2, y2] in pixels."""
        return [
            {"label": name, "score": float(score), "box": [float(side) for side in box]}
            for name, score, box in zip(self.names, self.scores, self.boxes, strict=True)
        ]

    def draw(self, image, **settings):
        """Return a copy of an image, uint8 RGB [H, W, 3], with boxes and labels; `settings`: see draw_detections."""
        image = np.array(image)
        draw_detections(image, self, **settings)
        return image

    def of_classes(self, labels):
        """Return the Detections whose label is one of `labels`."""
        keep = np.flatnonzero(np.isin(self.labels, list(labels)))
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], [self.names[i] for i in keep])


class Detector:
    """An SSD with its preprocessing and postprocessing. Can be called from several threads.

    Args:
        weights: path of a checkpoint, or name of one in the catalogue; None is the 77.43 network if it is in weights/,
            else the embedded one.
        device: "auto" (CUDA if available, else CPU), "cpu", "cuda", "cuda:1" or "mps".
        precision: "float32", "bfloat16", "float16", "int8" (on CPU; costs a little accuracy) or "auto",
            the fastest floating-point one on the device; on CPU, bfloat16 with AMX or on AMD, else float32. Boxes and
            scores are always float32.
        threshold: minimum score of a detection, in [0, 1), else ValueError; None is the checkpoint's own, else 0.6.
        top_k: maximum number of detections per class, and of boxes per class before non-maximum suppression.
        keep_top_k: maximum number of detections per image; None is no limit.
        clip: clip boxes to the image. Published mAP was measured without clipping.
        engine: "torch", or on CPU "openvino" (requirements-engines.txt); "auto" is "openvino" for "int8", else "torch".
        calibration: folder of images to calibrate int8 with; None is frames of the bundled clip.
        compile: run the network with torch.compile, which is faster but takes about a minute to compile.

    Attributes:
        net, info (CheckpointInfo), class_names, device, dtype (torch.int8 for "int8"), engine, size (side of the
        network's input), threshold, description.

    Raises:
        InputError: the checkpoint is not usable, the device does not exist, or a package is missing.
    """

    def __init__(
        self,
        weights=None,
        device="auto",
        precision="auto",
        threshold=None,
        top_k=200,
        *,
        keep_top_k=None,
        clip=True,
        engine="auto",
        calibration=None,
        compile=False,
    ):
        if engine == "auto":
            engine = "openvino" if precision == "int8" else "torch"
        # First, because `resolve` may download a file.
        self.device, self.dtype = _choose(engine, device, precision, calibration, compile)
        net, info = weights if isinstance(weights, tuple) else load_network(resolve(weights))
        if threshold is None:
            threshold = info.threshold
        self.threshold = DEFAULT_THRESHOLD if threshold is None else threshold
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must be in [0, 1), not {threshold}")
        self.info = info
        self.class_names = tuple(info.class_names)
        self.size = net.size
        self.clip = clip
        self.engine = engine
        # The priors stay in float32: half precision can't represent their positions.
        self._priors = net.priors.to(self.device, torch.float32)
        self._detect = Detect(
            net.num_classes,
            top_k=top_k,
            conf_thresh=self.threshold,
            nms_thresh=net.detect.nms_thresh,
            variance=net.detect.variance,
            keep_top_k=keep_top_k,
        )
        if engine == "openvino":
            self.net = net
            self._raw = OpenVINONetwork(net, self.dtype, info.channel_order, calibration)
        else:
            self.net = net.to(self.device, self.dtype, memory_format=torch.channels_last)
            if self.device.type == "cpu" and not compile:
                if self.dtype == torch.float32:
                    use_winograd(self.net)
                elif self.dtype == torch.bfloat16 and cpu_computes_bfloat16():
                    fuse_relus(self.net)
            self._raw = torch.compile(self.net.raw) if compile else self.net.raw

    @classmethod
    def of_network(cls, net, info, device="cpu", *args, **settings):
        """Make a Detector of a copy of `net`, an SSD, and its CheckpointInfo.

        The other arguments are the constructor's.
        """
        return cls((copy.deepcopy(net).fuse(), info), device, *args, **settings)

    @property
    def description(self):
        """A short text for the user: the network, its device and its precision."""
        name = self.info.path.name if self.info.path else "network without a file"
        precision = str(self.dtype).removeprefix("torch.")
        engine = "" if self.engine == "torch" else f" with {self.engine}"
        classes = f"{len(self.class_names)} classes"
        return f"{name}, {self.info.config.name}, {classes}, on {self.device} in {precision}{engine}"

    @torch.inference_mode()
    def __call__(self, images):
        """Detect in a batch of images.

        Args:
            images: list of uint8 RGB arrays [H, W, 3] or tensors [3, H, W], PIL images and paths of image files, of
                any sizes.

        Returns:
            A list with the Detections of each image.

        Raises:
            TypeError: `images` is not such a list.
            ValueError: an array is not uint8 [H, W, 3], or a tensor not uint8 [3, H, W].
            InputError: a file is not a readable image, or the batch runs out of memory.
        """
        if isinstance(images, str | PathLike | np.ndarray | torch.Tensor | Image.Image):
            raise TypeError(f"expected a list of images, found {type(images).__name__}; use detector([image])")
        images = [_to_array(image) for image in images]
        if not images:
            return []
        remedy = f"lower --batch_size (now {len(images)}), close other programs or use a smaller --trained_model"
        with report_out_of_memory(remedy):
            rows = self._detect(*self.outputs([self._upload(image) for image in images]), self._priors).cpu().numpy()
        return [self._in_pixels(*pair) for pair in zip(rows, images, strict=True)]

    def _upload(self, image):
        """Return an array uint8 [H, W, 3] as a tensor on the device. Only CUDA resizes faster than the host."""
        if self.device.type != "cuda":
            return torch.from_numpy(resize(image, self.size)).to(self.device)
        pinned = torch.empty(image.shape, dtype=torch.uint8, pin_memory=True)  # PyTorch caches pinned memory
        pinned.numpy()[:] = image
        return pinned.to(self.device, non_blocking=True)

    def outputs(self, images):
        """Run the network, on the device and without synchronizing with the host.

        Args:
            images: list of uint8 RGB tensors [H, W, 3] on the device, of any sizes.

        Returns:
            (loc [B, P, 4], class probabilities [B, P, C]), float32 on the device.
        """
        batch = torch.stack([resize_on_device(image, self.size) for image in images])  # [B, S, S, 3]
        dtype = self.dtype if self.engine == "torch" else torch.float32
        loc, conf = self._raw(to_input(batch, self.info.channel_order, dtype))
        return loc.float(), conf.float().softmax(dim=-1)

    def _in_pixels(self, rows, image):
        """Convert Detect's rows of one image, [C, top_k, 5] with corners as fractions, to Detections."""
        label, place = np.nonzero(rows[:, :, 0] > 0)
        rows = rows[label, place]
        height, width = image.shape[:2]
        limits = np.array([width, height, width, height], np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            boxes = rows[:, 1:] * limits
        # The exponential of an untrained network's offsets can be close to infinity.
        usable = np.isfinite(rows).all(axis=1) & (np.abs(boxes) < LARGEST).all(axis=1)
        order = np.flatnonzero(usable)[np.argsort(-rows[usable, 0], kind="stable")]
        boxes, scores, label = boxes[order], rows[order, 0], label[order].astype(np.int64) - 1
        boxes = np.clip(boxes, 0, limits) if self.clip else boxes
        return Detections(boxes, scores, label, [self.class_names[i] for i in label])


def _to_array(image):
    """Return an image as an array uint8 RGB [H, W, 3]; see Detector.__call__."""
    if isinstance(image, str | PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":  # 16 or 32 bits, which Pillow would clip to white
            raise ValueError(f"expected a PIL image of 8 bits, found mode {image.mode}")
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, torch.Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"expected a tensor of uint8 RGB [3, H, W], found {image.dtype} {list(image.shape)}")
        image = image.permute(1, 2, 0).cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"expected an array, a tensor, a PIL image or a path, found {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"expected an image of uint8 RGB [H, W, 3], found {image.dtype} {list(image.shape)}")
    return image


def _choose(engine, device, precision, calibration, compile):
    """Return (torch.device, torch.dtype); "auto" is the CPU for OpenVINO. Raises InputError if one is unsupported."""
    if engine not in ENGINES:
        raise InputError(f"--engine {engine}: unknown; use auto, torch or openvino")
    if calibration is not None and (engine, precision) != ("openvino", "int8"):
        raise InputError(f"--calibration {calibration}: only used with --engine openvino --precision int8")
    if engine == "torch":
        if precision == "int8":
            raise InputError("--precision int8: unsupported by PyTorch; use --engine openvino")
        device = choose_device(device)
        return device, choose_precision(precision, device)
    if compile:
        raise InputError('compile=True: only used with engine="torch"')
    device = choose_device("cpu" if device == "auto" else device)
    if device.type != "cpu":
        raise InputError(f"--engine openvino: runs on CPU only; use --engine torch for --device {device}")
    return device, choose_openvino_precision(precision)
