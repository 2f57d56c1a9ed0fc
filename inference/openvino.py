"""The network in OpenVINO, on CPU: float32, bfloat16 if the CPU supports it, or int8.

int8 is post-training quantization by NNCF: it runs calibration images through the network to learn the range of each
feature map, and values beyond that range are clipped later. The default images are frames of the bundled clip with
SSD's data augmentation, which extends the ranges of the feature maps to those of real photographs.
"""

import contextlib
import hashlib
import logging
import os
import sys
import threading
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from data.config import RGB_MEANS
from data.transforms import resize, to_input
from inference.video import VideoReader
from ssd import Heads
from utils.augmentations import SSDAugmentation
from utils.errors import InputError, say
from utils.files import cache_folder, file_hash, whole_file
from utils.images import is_image, read_image
from utils.system import choose_precision

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample.mp4"
CALIBRATION_IMAGES = 128
# Layers that stay in float32, because int8 saves almost no time here and costs accuracy: the first convolution (int8
# drops a bit of its input) and the heads of the small feature maps.
FLOAT_LAYERS = [r".*\.vgg\.0/.*", r".*\.(loc|conf)\.[2-9]/.*"]
_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.int8: "f32"}  # int8: for the layers in float32
_CACHE_FORMAT = "5"  # increase it when the quantization changes


def require(*names):
    """Import packages of requirements-engines.txt by name; return the modules.

    Raises InputError if a package is missing, or can't be imported.
    """
    os.environ.setdefault("NNCF_CI", "1")  # otherwise NNCF reports its use over the network
    modules = []
    for name in names:
        try:
            modules.append(import_module(name))
        except ImportError as error:
            state = "is not installed" if getattr(error, "name", None) == name else f"can't be imported ({error})"
            raise InputError(f"{name} {state}; pip install -r requirements-engines.txt") from error
    return modules


def choose_openvino_precision(name):
    """Return the torch.dtype for a precision's name; "auto" is the fastest one that keeps the accuracy, never int8.

    Raises InputError if OpenVINO or this CPU does not support it, or a package is missing.
    """
    (openvino,) = require("openvino")
    if name == "int8" and find_spec("nncf") is None:
        require("nncf")  # raises; otherwise NNCF is imported only to quantize (0.6 s)
    if name not in ("auto", "float32", "bfloat16", "int8"):
        raise InputError(f"--precision {name}: unsupported by --engine openvino; use auto, float32, bfloat16 or int8")
    dtype = torch.int8 if name == "int8" else choose_precision(name, torch.device("cpu"))
    if dtype == torch.bfloat16 and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise InputError("--precision bfloat16: this CPU does not compute in it; use float32 or int8")
    return dtype


class OpenVINONetwork:
    """The network in OpenVINO, with PyTorch's current number of threads. Can be called from several threads.

    Args:
        net: an SSD without BatchNorm, float32 on CPU; its weights are shared.
        dtype: torch.float32, torch.bfloat16 or torch.int8. The int8 network is cached on disk.
        channel_order, calibration: for int8, see `quantized`.
    """

    def __init__(self, net, dtype, channel_order="RGB", calibration=None):
        (openvino,) = require("openvino")
        core = openvino.Core()
        model = quantized(core, net, channel_order, calibration) if dtype == torch.int8 else convert(net)
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": _HINTS[dtype],
            "ENABLE_CPU_PINNING": False,  # the cores also decode and encode video
        }
        self.compiled = core.compile_model(model, "CPU", settings)
        openvino.Tensor(np.zeros(1))  # loads OpenVINO's interface to NumPy; two threads at once would deadlock
        self._net = net  # owns the weights
        self._local = threading.local()  # an inference request serves one thread at a time

    def __call__(self, x):
        """x: float32 [B, 3, S, S] -> (loc [B, P, 4], conf [B, P, C] before softmax), float32."""
        if not hasattr(self._local, "request"):
            self._local.request = self.compiled.create_infer_request()
        outputs = self._local.request.infer([x.contiguous().numpy()])  # copies
        return torch.from_numpy(outputs[0]), torch.from_numpy(outputs[1])


def convert(net):
    """Convert an SSD to an openvino.Model, float32 [B, 3, S, S] -> loc and conf, of any batch size.

    openvino.convert_model does the same, but slower, and reports its use over the network.
    """
    (frontend,) = require("openvino.frontend")
    (decoder,) = require("openvino.frontend.pytorch.ts_decoder")
    example = torch.zeros(1, 3, net.size, net.size)
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")  # of tracing, which is deprecated
        traced = decoder.TorchScriptPythonDecoder(
            Heads(net), example_input=(example,), trace_kwargs={"check_trace": False}
        )
    pytorch = frontend.FrontEndManager().load_by_framework("pytorch")
    model = pytorch.convert(pytorch.load(traced))
    for node in model.get_ops():
        # PyTorch's ceil_mode keeps the next convolution in float32. The older kind gives the same here.
        if node.get_type_name() == "MaxPool" and node.get_attributes()["rounding_type"] == "ceil_torch":
            node.set_attribute("rounding_type", "ceil")
    model.reshape([-1, *example.shape[1:]])
    return model


def quantized(core, net, channel_order="RGB", calibration=None):
    """Return the int8 network as an openvino.Model: quantized once, then read from the user's cache folder.

    Args:
        core: an openvino.Core.
        net: an SSD without BatchNorm, float32 on CPU.
        channel_order: "RGB" or "BGR", of the network's input.
        calibration: folder of images to calibrate with; augmented frames of the bundled clip unless given.

    Raises:
        InputError: a package is missing, or the images can't be read.
    """
    (openvino,) = require("openvino")
    sources = [SAMPLE] if calibration is None else _images_of(calibration)
    state = hashlib.sha256(
        f"{_CACHE_FORMAT} {CALIBRATION_IMAGES} {net.size} {channel_order} {openvino.__version__}"
        f" {[file_hash(path) for path in sources]}".encode()
    )
    for key, tensor in net.state_dict().items():
        state.update(key.encode())
        state.update(tensor.numpy().tobytes())
    path = cache_folder() / f"int8-{state.hexdigest()[:32]}.xml"
    with contextlib.suppress(RuntimeError):  # not there yet, or damaged
        return core.read_model(path)
    require("nncf")
    say(f"quantizing to int8 with {calibration or SAMPLE.name}, cached in {path.parent}", sys.stderr)
    chosen = (resize(read_image(path), net.size) for path in sources)
    images = sample_images(net.size) if calibration is None else chosen
    model = quantize(convert(net), [to_input(torch.from_numpy(image)[None], channel_order) for image in images])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as xml, whole_file(path.with_suffix(".bin")) as weights:
            openvino.serialize(model, xml, weights)
    except (OSError, InputError, RuntimeError) as error:  # RuntimeError: of OpenVINO, such as for a full disk
        say(f"note: not cached: {error}", sys.stderr)
    return model


def quantize(model, inputs):
    """Quantize an openvino.Model; inputs: list of float32 tensors [1, 3, S, S]. Return the int8 openvino.Model."""
    (nncf,) = require("nncf")
    nncf.set_log_level(logging.ERROR)
    ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet
    with contextlib.redirect_stdout(sys.stderr):  # progress bars
        return nncf.quantize(
            model,
            nncf.Dataset([x.contiguous().numpy() for x in inputs]),
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(patterns=FLOAT_LAYERS),
            # The widest range over the images. NNCF's default is the mean of their ranges, which half of the images
            # exceed; it doubles the error of the scores.
            advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges.MINMAX),
        )


def sample_images(size):
    """Yield CALIBRATION_IMAGES augmented frames of the bundled clip, always the same: uint8 RGB [size, size, 3]."""
    with VideoReader(SAMPLE) as reader:
        frames = list(reader)
    augment = SSDAugmentation(size, RGB_MEANS, subtract_mean=False, rng=np.random.default_rng(0))
    for index in range(CALIBRATION_IMAGES):
        frame = frames[index * len(frames) // CALIBRATION_IMAGES]
        yield augment(frame, np.zeros((0, 4)), np.zeros(0))[0]


def _images_of(folder):
    """Return the paths of up to CALIBRATION_IMAGES images, spread evenly over a folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--calibration {folder}: no such folder; name a folder of images similar to your inputs")
    paths = sorted(path for path in folder.iterdir() if is_image(path) and path.is_file())
    if not paths:
        raise InputError(f"--calibration {folder}: no images in this folder")
    return [paths[index] for index in np.unique(np.linspace(0, len(paths) - 1, CALIBRATION_IMAGES).astype(int))]
