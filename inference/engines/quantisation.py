"""Post-training quantisation: from the float32 network to one whose convolutions multiply in int8.

NNCF passes pictures through the network to learn the range of each feature map; what lies beyond it is cut off later.
The default pictures are frames of the bundled clip, changed as in training: distorted colours, filling and enlargement
take the feature maps as far as photographs of the network's own subjects do. A folder of pictures is taken as it is.
"""

import contextlib
import hashlib
import logging
import os
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np

from data.config import RGB_MEANS
from data.transforms import resize
from inference.engines.cache import kept
from inference.engines.packages import require
from inference.pictures import list_pictures
from inference.video import VideoReader
from utils.augmentations import SSDAugmentation
from utils.errors import InputError
from utils.images import read_image

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample.mp4"
COUNT = 128  # pictures that calibrate
# Nodes that stay in float32, as that costs next to no time and int8 would cost accuracy: the first convolution, of
# whose input (bytes minus the mean) int8 loses a bit, and the heads of the small feature maps.
IN_FLOAT = [r"vgg\.0/.*", r"(loc|conf)\.[2-9]/.*"]
FORMAT = "2"  # of what is kept, and the way it is made; to be raised when either changes
FILES = ("model.xml", "model.bin")


def quantised(core, model, size, calibration=None):
    """The int8 network of a float32 one: made at the first use, and kept in the user's cache folder.

    Args:
        core: an openvino.Core.
        model: an ONNX model's bytes.
        size: side of its input.
        calibration: folder of pictures to calibrate with; the bundled clip unless given.

    Returns:
        An openvino.Model.

    Raises:
        InputError: a package is missing, or the pictures can't be read.
    """
    openvino, nncf = packages()
    sources = [SAMPLE] if calibration is None else folder_pictures(calibration)
    contents = [model, *(_content(path) for path in sources)]
    settings = f"{FORMAT} {COUNT} {size} {openvino.__version__} {nncf.__version__} "
    key = settings + " ".join(hashlib.sha256(content).hexdigest() for content in contents)

    def make():
        print(f"quantising to int8, this once, with {calibration or f'frames of {SAMPLE.name}'}", file=sys.stderr)
        read = (resize(read_image(path), size) for path in sources)
        pictures = list(sample_pictures(size) if calibration is None else read)
        return _serialised(openvino, quantise(nncf, core.read_model(BytesIO(model)), pictures))

    xml, weights = map(kept(f"int8-{hashlib.sha256(key.encode()).hexdigest()[:32]}", make).get, FILES)
    return core.read_model(xml, openvino.Tensor(np.frombuffer(weights, np.uint8)))


def packages():
    """The modules openvino and nncf. Raises InputError where one is missing."""
    # Otherwise NNCF tells its makers over the network that it is used; that isn't ours to allow.
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        return require("openvino", "nncf")
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before


def quantise(nncf, network, pictures):
    """Quantise an openvino.Model; pictures: a list of uint8 RGB [S, S, 3]. Returns the new model."""
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        return nncf.quantize(
            network,
            nncf.Dataset([picture[None] for picture in pictures]),
            subset_size=len(pictures),
            ignored_scope=nncf.IgnoredScope(patterns=IN_FLOAT),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # The widest range over the pictures, not the mean of theirs, from which half of them stick out: that
                # alone halves the error of the scores.
                activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
            ),
        )


def sample_pictures(size):
    """Yields COUNT augmented frames of the bundled clip, the same ones each time: uint8 RGB [size, size, 3]."""
    with VideoReader(SAMPLE) as reader:
        frames = list(reader)
    augment = SSDAugmentation(size, RGB_MEANS, subtract_mean=False, rng=np.random.default_rng(0))
    for index in range(COUNT):
        frame = frames[index * len(frames) // COUNT]
        yield augment(frame, np.zeros((0, 4)), np.zeros(0))[0]


def folder_pictures(folder):
    """Paths of up to COUNT pictures of a folder, spread over it. Raises InputError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--calibration {folder}: no such folder; name one with pictures like those to come")
    paths = list_pictures(folder)
    return [paths[index] for index in np.unique(np.linspace(0, len(paths) - 1, COUNT).astype(int))]


def _content(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error


def _serialised(openvino, network):
    """{name: bytes} of an openvino.Model."""
    with tempfile.TemporaryDirectory() as folder:
        xml, weights = (Path(folder) / name for name in FILES)
        openvino.save_model(network, xml, compress_to_fp16=False)
        return {path.name: path.read_bytes() for path in (xml, weights)}
