"""Export of the network to ONNX, checked against PyTorch."""

import copy
import json
import logging
import warnings
from dataclasses import asdict
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import nms

from data.transforms import resize, to_input
from inference.openvino import SAMPLE, require
from inference.video import VideoReader
from layers.box_utils import decode
from utils.errors import InputError
from utils.files import whole_file

BATCH_SIZES = (1, 3)  # of the check
STRAY = 0.02  # maximum fraction of detections that may differ, because of rounding


class FromBytes(nn.Module):
    """The network with its preprocessing: uint8 RGB [B, S, S, 3] -> (loc [B, P, 4], conf [B, P, C], priors [P, 4]).

    Args:
        net: an SSD without BatchNorm on CPU.
        channel_order: "RGB" or "BGR", as the network expects it.
        half: compute in float16; the outputs are always float32.
        detect: a Detect layer; the output is then its result, [B, C, top_k, 5].
    """

    def __init__(self, net, channel_order, half=False, detect=None):
        super().__init__()
        self.register_buffer("priors", net.priors)
        self.dtype = torch.float16 if half else torch.float32
        self.net = copy.deepcopy(net).to(self.dtype)
        self.channel_order, self.detect = channel_order, detect

    def forward(self, images):
        loc, conf = self.net.raw(to_input(images, self.channel_order, self.dtype, torch.contiguous_format))
        loc, conf = loc.float(), conf.float()
        if self.detect is None:
            return loc, conf, self.priors
        return traceable_detect(self.detect, loc, conf.softmax(dim=-1), self.priors)


def traceable_detect(detect, loc, scores, priors):
    """Compute `detect(loc, scores, priors)` with operations that ONNX supports; class 0 is the background."""
    k = min(detect.top_k, len(priors))
    scores, prior = scores.transpose(1, 2)[:, 1:].topk(k)  # [B, C - 1, K]
    boxes = decode(loc, priors, detect.variance)[:, None].expand(-1, scores.shape[1], -1, -1)
    boxes = boxes.gather(2, prior[..., None].expand(-1, -1, -1, 4))  # [B, C - 1, K, 4]

    candidate = (scores > detect.conf_thresh).flatten().nonzero()[:, 0]
    row = candidate // k
    # NMS applies to the boxes of one class and image, so each such group is shifted into its own cell of a grid.
    label, image = row % scores.shape[1], row // scores.shape[1]
    cells = 4.0 * torch.stack([label, image, label, image], dim=1)
    kept = nms(boxes.flatten(0, 2)[candidate].clamp(-1, 2) + cells, scores.flatten()[candidate], detect.nms_thresh)
    kept = torch.zeros_like(scores).flatten().scatter(0, candidate[kept], 1.0).view_as(scores)

    scores, order = torch.where(kept > 0, scores, 0.0).topk(k)  # the kept ones first
    boxes = boxes.gather(2, order[..., None].expand(-1, -1, -1, 4))
    rows = torch.cat([scores[..., None], boxes * (scores > 0)[..., None]], dim=-1)
    return F.pad(rows, (0, 0, 0, detect.top_k - k, 1, 0))  # [B, C, top_k, 5]


def export(path, net, info, detect, *, with_nms=False, half=False):
    """Write a network as an ONNX file: complete and checked against PyTorch, or not at all.

    Args:
        path: of the file.
        net, info: an SSD without BatchNorm, float32 on CPU, and its CheckpointInfo.
        detect: a Detect layer, part of the file if `with_nms`.
        half: float16 weights and arithmetic.

    Returns:
        (number of detections compared, their threshold). The threshold is lower than detect's if nothing is detected
        in the bundled clip; a file with NMS is then checked with both.

    Raises:
        InputError: a package is missing, the file can't be written, or ONNX Runtime and PyTorch disagree.
    """
    require("onnx", "onnxscript", "onnxruntime")
    with VideoReader(SAMPLE) as reader:
        images = torch.from_numpy(np.stack([resize(frame, net.size) for frame in islice(reader, max(BATCH_SIZES))]))
    with torch.inference_mode():
        heads = FromBytes(net, info.channel_order)(images)
    compared = detect
    while not _detect(compared, heads).any() and compared.conf_thresh > 1e-9:
        compared = copy.copy(compared)
        compared.conf_thresh /= 2
    with whole_file(path) as temporary:
        for layer in dict.fromkeys([compared, detect] if with_nms else [compared]):
            module = FromBytes(net, info.channel_order, half, layer if with_nms else None)
            _write(temporary, module.eval(), images[:2], info)
            if problem := _disagreement(temporary, images, heads, layer, half):
                raise InputError(f"{path}: not written, because ONNX Runtime and PyTorch disagree: {problem}")
    return int((_detect(compared, heads)[..., 0] > 0).sum()), compared.conf_thresh


def _detect(detect, heads):
    loc, conf, priors = heads
    return detect(loc, conf.softmax(dim=-1), priors)


def _write(path, module, images, info):
    import onnx

    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    names = ["loc", "conf", "priors"] if module.detect is None else ["detections"]
    batch = ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within torchvision
        program = torch.onnx.export(
            module, (images,), input_names=["images"], output_names=names, dynamic_shapes=batch, verbose=False
        )
    model = program.model_proto
    metadata = {"class_names": json.dumps(info.class_names), "config": json.dumps(asdict(info.config))}
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def _disagreement(path, images, heads, detect, half):
    """Run a file on batches of images and compare it with PyTorch's heads; return what differs, or None."""
    import onnxruntime

    tolerance = 2e-2 if half else 1e-4
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in BATCH_SIZES:
        expected = [heads[0][:size], heads[1][:size], heads[2]]
        found = [torch.from_numpy(output) for output in session.run(None, {"images": images[:size].numpy()})]
        if len(found) == 1:
            (rows,) = found
        else:
            for name, one, other in zip(("loc", "conf", "priors"), found, expected, strict=True):
                error = float((one - other).abs().max() / other.abs().max().clamp(min=1e-6))
                if not error <= tolerance:  # or NaN
                    return f"{name} differs by {error:.1e} of its magnitude"
            rows = _detect(detect, found)
        stray, count = _stray(rows, _detect(detect, expected), tolerance)
        if stray > STRAY * count:
            return f"{stray} of {count} detections differ"
    return None


def _stray(found, expected, tolerance):
    """Compare detections [B, C, K, 5]; return (number without a match in the other, number of all).

    The match may be anywhere in the class, because the order of close scores can change.
    """
    stray = count = 0
    for one, other in zip(found.flatten(0, 1), expected.flatten(0, 1), strict=True):
        rows, others = one[one[:, 0] > 0], other[other[:, 0] > 0]
        like = torch.isclose(rows[:, None], others, rtol=tolerance, atol=tolerance).all(dim=2)  # [N, M]
        stray += int((~like.any(dim=1)).sum() + (~like.any(dim=0)).sum())
        count += len(rows) + len(others)
    return stray, count
