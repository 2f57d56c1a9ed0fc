"""The network in ONNX Runtime, on the CPU in float32."""

import torch

from inference.engines.onnx_file import HEADS, INPUT, build_model
from inference.engines.packages import require
from utils.errors import InputError

PACKAGES = ("onnx", "onnxruntime")


def choose_precision(name):
    """torch.dtype for a precision's name. Raises InputError."""
    if name not in ("auto", "float32"):
        raise InputError(f"--precision {name}: engine onnxruntime computes in float32; take --engine openvino or torch")
    return torch.float32


class OnnxRuntimeEngine:
    """Pictures to the heads' outputs in ONNX Runtime, with as many threads as PyTorch has. May be called from threads.

    The model is written anew each time, which takes a fraction of a second, so that there is no file to keep.
    """

    def __init__(self, net, info):
        self.session = open_session(build_model(net, info).SerializeToString())

    def __call__(self, pictures):
        """pictures: uint8 RGB array [B, S, S, 3] -> (loc [B, P, 4], conf [B, P, C]), float32."""
        loc, conf = self.session.run(HEADS, {INPUT: pictures})
        return torch.from_numpy(loc), torch.from_numpy(conf)


def open_session(model):
    """An onnxruntime.InferenceSession on the CPU; model: a path, or the bytes of an ONNX model."""
    (onnxruntime,) = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    # Between pictures its threads would wait at full load, and the video's decoder wants the cores then.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
