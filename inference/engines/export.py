"""An ONNX file of a network, compared with PyTorch before it gets its name."""

import os
from pathlib import Path

import numpy as np
import torch

from data.transforms import to_input
from inference.engines.onnx_file import HEADS, INPUT, build_model
from inference.engines.onnxruntime_engine import open_session
from inference.engines.packages import require
from utils.errors import InputError

TOLERANCE = 1e-4  # of the largest magnitude of an output
BATCHES = (1, 2)
STRAY_ROWS = 0.01  # share of detections that rounding may decide otherwise, where two scores or an overlap are so close


def export(path, net, info, **options):
    """Write a network as an ONNX file, whole or not at all; an existing file is replaced once the new one is right.

    Args:
        path: of the file.
        net: an SSD without BatchNorm, float32, on the CPU.
        info: its CheckpointInfo.
        options: opset, with_nms, see `build_model`.

    Returns:
        Lines that say how close ONNX Runtime comes to PyTorch.

    Raises:
        InputError: a package is missing, the file can't be written, or the two disagree.
    """
    path = Path(path)
    onnx, _ = require("onnx", "onnxruntime")
    model = build_model(net, info, **options)
    onnx.checker.check_model(model)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(model.SerializeToString())
        lines = compare(part, net, info)
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}; choose another --output") from error
    except Disagreement as error:
        raise InputError(f"{path}: not kept, as ONNX Runtime computes something else from it: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return lines


class Disagreement(Exception):
    """What a file computes isn't what the network computes."""


def compare(path, net, info):
    """Run a file and its network on random pictures; returns lines of text. Raises Disagreement."""
    outputs, run = _open(path)
    apart, rows = 0.0, 0
    for batch in BATCHES:
        pictures = np.random.RandomState(batch).randint(0, 256, (batch, net.size, net.size, 3), np.uint8)
        found = run(pictures)
        with torch.inference_mode():
            expected = net.eval().raw(to_input(torch.from_numpy(pictures), info.channel_order))
            for name, tensor in zip(HEADS, expected, strict=True):
                apart = max(apart, relative_difference(found[name], tensor.numpy(), name))
            if "detections" in outputs:
                loc, conf = (torch.from_numpy(found[name]) for name in HEADS)
                detections = net.detect(loc, conf.softmax(dim=-1), net.priors).numpy()
                rows += compare_detections(found["detections"], detections)
    batches = " and ".join(map(str, BATCHES))
    lines = [f"largest difference from PyTorch in batches of {batches}: {apart:.1e} of the largest magnitude"]
    if "detections" in outputs:
        lines.append(f"detections as Detect gives them: {rows} rows")
    return lines


def _open(path):
    """Names of a file's outputs, and a function from pictures to {name: array} that has loc and conf in any case."""
    onnx, _ = require("onnx", "onnxruntime")
    model = onnx.load(path)
    outputs = [output.name for output in model.graph.output]
    for name in HEADS:
        if name not in outputs:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = open_session(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return outputs, lambda pictures: dict(zip(names, session.run(names, {INPUT: pictures}), strict=True))


def relative_difference(found, expected, name):
    """Largest difference, as a share of the largest magnitude. Raises Disagreement beyond TOLERANCE."""
    if found.shape != expected.shape:
        raise Disagreement(f"{name} is {list(found.shape)}, not {list(expected.shape)}")
    apart = float(np.abs(found - expected).max() / (np.abs(expected).max() or 1))
    if not apart <= TOLERANCE:  # NaN isn't
        raise Disagreement(f"{name} differs by {apart:.1e} of its largest magnitude")
    return apart


def compare_detections(found, expected):
    """Compare [B, C, K, 5]; returns the number of expected rows. Raises Disagreement.

    Each row must have its like in its class, wherever: close scores may change places.
    """
    if found.shape != expected.shape:
        raise Disagreement(f"the detections are {list(found.shape)}, not {list(expected.shape)}")
    shape = (-1, *expected.shape[2:])
    stray = sum(
        without_like(one, other) + without_like(other, one)
        for one, other in zip(found.reshape(shape), expected.reshape(shape), strict=True)
    )
    total = int((expected[..., 0] > 0).sum())
    if stray > STRAY_ROWS * 2 * total:
        raise Disagreement(f"{stray} detections have no like on the other side, of {total}")
    return total


def without_like(rows, others):
    """How many of one class's detections [K, 5] are within TOLERANCE of none of the others."""
    rows, others = rows[rows[:, 0] > 0], others[others[:, 0] > 0]
    like = np.isclose(rows[:, None], others[None], rtol=TOLERANCE, atol=TOLERANCE).all(axis=2)  # [N, M]
    return int((~like.any(axis=1)).sum())
