"""The network in OpenVINO, on the CPU: float32, bfloat16 where the CPU multiplies in it, or int8."""

import threading
from io import BytesIO

import torch

from inference.engines.onnx_file import HEADS, INPUT, build_model
from inference.engines.packages import require
from utils.errors import InputError

HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.int8: "f32"}  # in int8: of what isn't quantised


def packages(precision):
    """Names of the packages that a precision needs."""
    return ("onnx", "openvino", "nncf") if precision == "int8" else ("onnx", "openvino")


def choose_precision(name):
    """torch.dtype for a precision's name; "auto" keeps the accuracy: it is never int8. Raises InputError."""
    if name in ("float32", "int8"):
        return {"float32": torch.float32, "int8": torch.int8}[name]
    if name not in ("auto", "bfloat16"):
        raise InputError(f"--precision {name}: engine openvino takes auto, float32, bfloat16 or int8")
    (openvino,) = require("openvino")
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return torch.bfloat16
    if name == "bfloat16":
        raise InputError("--precision bfloat16: this CPU doesn't multiply in it; take float32 or int8")
    return torch.float32


class OpenVinoEngine:
    """Pictures to the heads' outputs in OpenVINO, with as many threads as PyTorch has. May be called from threads.

    Args:
        net: an SSD without BatchNorm.
        info: its CheckpointInfo.
        dtype: torch.float32, torch.bfloat16 or torch.int8. The int8 network is made at the first use and kept.
        calibration: for int8, a folder of pictures; see `inference.engines.quantisation`.
    """

    def __init__(self, net, info, dtype, calibration=None):
        (openvino,) = require("openvino")
        model = build_model(net, info).SerializeToString()
        core = openvino.Core()
        if dtype == torch.int8:
            from inference.engines.quantisation import quantised

            network = quantised(core, model, net.size, calibration)
        else:
            network = core.read_model(BytesIO(model))
        self.compiled = core.compile_model(
            network,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": 1,
                "INFERENCE_PRECISION_HINT": HINTS[dtype],
                "ENABLE_CPU_PINNING": False,  # the cores are also for decoding and encoding
            },
        )
        self._of_thread = threading.local()  # a request is for one caller at a time

    def __call__(self, pictures):
        """pictures: uint8 RGB array [B, S, S, 3] -> (loc [B, P, 4], conf [B, P, C]), float32."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self.compiled.create_infer_request()
        found = self._of_thread.request.infer({INPUT: pictures})  # copies: the request's memory is used again
        loc, conf = (torch.from_numpy(found[name]) for name in HEADS)
        return loc, conf
