"""What runs the network in a Detector: PyTorch, ONNX Runtime or OpenVINO.

An engine takes resized pictures, uint8 RGB [B, S, S, 3], to the heads' outputs, loc [B, P, 4] and conf [B, P, C] before
softmax, both float32. Resizing before it and Detect behind it are the same whatever the engine.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from inference.engines import onnxruntime_engine, openvino_engine
from inference.engines.packages import require
from inference.engines.torch_engine import TorchEngine
from utils import system as devices
from utils.errors import InputError

ENGINES = ("torch", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Choice:
    """What is to run the network, and is known to be possible here.

    Attributes:
        engine: one of ENGINES.
        device, dtype: what it computes on and in; torch.int8 where convolutions multiply in int8.
        calibration: folder of pictures to quantise with, or None.
    """

    engine: str
    device: torch.device
    dtype: torch.dtype
    calibration: Path | None = None

    def make(self, net, info):
        """The engine of a network (an SSD without BatchNorm, taken over) and its CheckpointInfo."""
        if self.engine == "onnxruntime":
            return onnxruntime_engine.OnnxRuntimeEngine(net, info)
        if self.engine == "openvino":
            return openvino_engine.OpenVinoEngine(net, info, self.dtype, self.calibration)
        return TorchEngine(net, info, self.device, self.dtype)


def choose(engine="torch", device="auto", precision="auto", calibration=None):
    """Choice for names as users give them.

    Engines other than torch are for the CPU, and device "auto" is then the CPU.

    Raises:
        InputError: there is no such engine or device, it doesn't compute in that precision, or a package is missing.
    """
    if engine not in ENGINES:
        raise InputError(f"--engine {engine}: unknown; take {', '.join(ENGINES)}")
    if calibration is not None and (engine, precision) != ("openvino", "int8"):
        raise InputError(f"--calibration {calibration}: only used with --engine openvino --precision int8")
    if engine == "torch":
        if precision == "int8":
            raise InputError("--precision int8: PyTorch doesn't run this network in it; add --engine openvino")
        device = devices.choose_device(device)
        return Choice(engine, device, devices.choose_precision(precision, device))
    device = devices.choose_device("cpu" if device == "auto" else device)
    if device.type != "cpu":
        raise InputError(f"--engine {engine}: runs on the CPU only; for --device {device} take --engine torch")
    if engine == "onnxruntime":
        dtype = onnxruntime_engine.choose_precision(precision)
        require(*onnxruntime_engine.PACKAGES)
    else:
        require(*openvino_engine.packages(precision))
        dtype = openvino_engine.choose_precision(precision)
    return Choice(engine, device, dtype, calibration)
