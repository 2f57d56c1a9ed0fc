"""Checkpoints: one file that holds a network's weights and what is needed to use them.

A checkpoint of this project is a dict of plain values and tensors, so that `torch.load(weights_only=True)` reads it and
no code in a file is ever run. Bare state dicts of the lineage load too.
"""

import math
import os
import pickle
import zipfile
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from data.config import SSDConfig, coco, coco512, voc, voc512
from data.voc0712 import VOC_CLASSES
from layers.functions import PriorBox
from ssd import build_ssd, plain_state_dict
from utils.errors import InputError, name_problem

FORMAT = "ssd-checkpoint-1"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a network is, beside its weights.

    Attributes:
        config: its input size and priors.
        class_names: without the background; index 0 is class 1 of the network.
        width: factor on the paper's channel counts.
        batch_norm: whether the weights still have BatchNorm beside the convolutions.
        channel_order: "RGB" or "BGR", of the input.
        mAP: measured mean average precision in 0..1, if known.
        mAP_on: on what it was measured.
        trained_with: command, data and length of the training, for people.
        path: file it came from.
    """

    config: SSDConfig = voc
    class_names: tuple[str, ...] = VOC_CLASSES
    width: float = 1.0
    batch_norm: bool = False
    channel_order: str = "RGB"
    mAP: float | None = None
    mAP_on: str = ""
    threshold: float | None = None
    trained_with: str = ""
    path: Path | None = None

    @property
    def num_classes(self):
        """Number of classes with the background."""
        return len(self.class_names) + 1

    def build(self, phase="test"):
        """The network that this describes, freshly initialised."""
        return build_ssd(
            phase,
            num_classes=self.num_classes,
            config=self.config,
            width=self.width,
            batch_norm=self.batch_norm,
        )


def save_checkpoint(path, net, info, half=False):
    """Write a network to a file, whole or not at all.

    Args:
        path: the file; an existing one is replaced once the new one is complete.
        net: an SSD.
        info: its CheckpointInfo; `path` isn't stored.
        half: store float16.

    Raises:
        InputError: the file can't be written.
    """
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in net.state_dict().items()}
    if half:
        state = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    stored = {field.name: getattr(info, field.name) for field in fields(info) if field.name not in ("config", "path")}
    save_file({"format": FORMAT, "state_dict": state, "config": asdict(info.config), **stored}, path)


def save_file(contents, path):
    """torch.save to a temporary name beside `path`, synced to the disk, renamed, and that synced as well.

    Raises:
        InputError: it can't be written; nothing is left behind, and an earlier file of that name stays.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise InputError(f"{path}: can't write the checkpoint ({_first_line(error)}); is the disk full?") from error
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder):
    """Have the names in a folder reach the disk: once a caller removes older files, this one outlives a power cut.

    Not every system has that (Windows, some network drives); the file itself is whole there, too.
    """
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_file(path):
    """torch.load with weights_only=True: what a .pth file holds, on the CPU.

    Raises:
        InputError: the file is missing, incomplete, no PyTorch file, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; see weights/README.md for those that can be downloaded")
    try:
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise InputError(
                f"{path}: not loaded, as it holds more than weights (code); get a plain state dict"
            ) from error
        raise InputError(f"{path}: not a PyTorch checkpoint, or a broken one; get it anew") from error
    except Exception as error:  # a damaged file makes torch fail in many ways, and none of them is a bug of ours
        raise InputError(f"{path}: the checkpoint is cut off or broken ({_first_line(error)}); get it anew") from error


def _check_archive(path):
    """Raise InputError for a zip bomb. torch.save stores its records as they are; what unpacks to more is none of its.

    The old format of torch.save is a pickle, and no zip file.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(record.file_size for record in archive.infolist())
    if unpacked > path.stat().st_size:
        raise InputError(
            f"{path}: not loaded, as it would unpack to {unpacked:,} bytes from {path.stat().st_size:,}; "
            "torch.save doesn't compress, get the file anew"
        )


def is_plain(tensor):
    """Whether a tensor from a file has the form of weights: real numbers that lie in memory one after the other."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and not (tensor.is_quantized or tensor.is_complex() or tensor.is_nested)
    )


def read_checkpoint(path):
    """Read weights and description from a file, own or lineage.

    Returns:
        (state, info): state dict (tensors as stored) and CheckpointInfo.

    Raises:
        InputError: the file is missing, broken, holds code, or no SSD.
    """
    contents = read_file(path)
    if not isinstance(contents, dict) or not all(isinstance(key, str) for key in contents):
        raise InputError(f"{path}: holds {type(contents).__name__}, not a state dict of an SSD")
    wrapped = contents.get("state_dict", contents)
    if not isinstance(wrapped, dict) or not all(
        isinstance(key, str) and is_plain(value) for key, value in wrapped.items()
    ):
        raise InputError(f"{path}: holds no state dict of an SSD")
    state = plain_state_dict(contents)
    # A tensor may repeat one number any number of times, and two may share theirs: what is loaded would have its own.
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > Path(path).stat().st_size:
        raise InputError(f"{path}: claims more weights than it holds; get a plain state dict")
    info = _own_info(contents, path) if contents.get("format") == FORMAT else _lineage_info(state, path)
    return state, replace(info, path=Path(path))


def load_network(path, phase="test"):
    """Build the network of a checkpoint, for use.

    Returns:
        (net, info): an SSD in evaluation mode, float32, on the CPU, BatchNorm folded; and its CheckpointInfo.

    Raises:
        InputError: the file is missing, broken, holds code, or isn't an SSD of a known shape.
    """
    state, info = read_checkpoint(path)
    with torch.device("meta"):  # shapes only: a file that claims a huge network must not cost memory
        expected = {key: tensor.shape for key, tensor in info.build(phase).state_dict().items()}
    wrong = sorted(expected.keys() ^ state.keys())
    wrong = wrong or [key for key, shape in expected.items() if state[key].shape != shape]
    if wrong:
        what = f"{len(wrong)} of its tensors don't fit, the first is {wrong[0]}"
        raise InputError(f"{path}: not an SSD{info.config.min_dim} with {info.num_classes} classes ({what})")
    net = info.build(phase)
    net.load_state_dict(state, strict=True)
    return net.fuse(), replace(info, batch_norm=False)


def _own_info(contents, path):
    """CheckpointInfo of a checkpoint in this project's format."""
    try:
        config = SSDConfig(**{key: _tuples(value) for key, value in contents["config"].items()})
        known = {field.name for field in fields(CheckpointInfo)} - {"config", "path"}
        info = CheckpointInfo(config=config, **{key: _tuples(contents[key]) for key in known & contents.keys()})
        _check_info(info)
    except Exception as error:  # whatever stands there in place of a description
        raise InputError(f"{path}: its description can't be used ({_first_line(error)}); get the file anew") from error
    return info


def _lineage_info(state, path):
    """CheckpointInfo of a bare state dict, read off its shapes and the file's name."""
    try:
        extras = {key.split(".")[1] for key in state if key.startswith("extras.")}
        size = {8: 300, 10: 512}[len(extras)]
        num_classes = state["conf.0.weight"].shape[0] // (state["loc.0.weight"].shape[0] // 4)
        from_coco = num_classes == 81
        config = {(300, False): voc, (300, True): coco, (512, False): voc512, (512, True): coco512}[size, from_coco]
        names = VOC_CLASSES if num_classes == 21 else _coco_names() if from_coco else _numbered_names(num_classes)
        info = CheckpointInfo(
            config=config,
            class_names=names,
            width=state["vgg.31.weight"].shape[0] / 1024,
            batch_norm=any(".bn." in key for key in state),
        )
        _check_info(info)
    except Exception as error:  # the shapes of something else
        raise InputError(f"{path}: not an SSD300 or SSD512; it lacks or has other layers") from error
    if Path(path).name == "ssd300_mAP_77.43_v2.pth":
        info = replace(info, mAP=0.7743, mAP_on="VOC2007 test")
    if Path(path).name == "ssd_300_VOC0712.pth":  # converted from Caffe
        config = replace(config, clip=False)
        info = replace(info, config=config, channel_order="BGR", mAP=0.7726, mAP_on="VOC2007 test")
    return info


def _check_info(info):
    """Raise ValueError or TypeError for a description that no network can have."""
    if not isinstance(info.class_names, tuple):
        raise TypeError(f"the class names are {info.class_names!r}")
    for name in info.class_names:
        if problem := name_problem(name):
            raise ValueError(f"the class name {name!r:.60} can't be used, {problem}")
    if info.mAP is not None and not isinstance(info.mAP, float):
        raise TypeError(f"the mAP is {info.mAP!r}")
    if not isinstance(info.trained_with, str) or not isinstance(info.mAP_on, str):
        raise TypeError("how it was trained and measured isn't said in words")
    if info.channel_order not in ("RGB", "BGR"):
        raise ValueError(f"the channel order is {info.channel_order!r}")
    config = info.config
    if name_problem(config.name):
        raise ValueError(f"the configuration's name is {config.name!r:.60}")
    if len(config.variance) != 2 or not all(map(math.isfinite, config.variance)):
        raise ValueError(f"the variance is {config.variance!r}")
    if not 0 < config.num_priors < 10**6 or config.min_dim not in (300, 512) or not 0 < info.width <= 4:
        raise ValueError(f"no SSD has {config.num_priors} priors, size {config.min_dim} and width {info.width}")
    with torch.device("cpu"):  # the numbers themselves are needed, wherever the caller builds its networks
        if not PriorBox(config).forward().isfinite().all():
            raise ValueError("its priors aren't finite")
    with torch.device("meta"):  # shapes only: a file that claims a huge network must not cost memory
        loc, _ = info.build().eval().raw(torch.zeros(1, 3, config.min_dim, config.min_dim))
    if loc.shape[1] != config.num_priors:
        raise ValueError(f"its feature maps {config.feature_maps} aren't those of the network")


def _coco_names():
    from data.coco import COCO_CLASSES

    return tuple(COCO_CLASSES)


def _numbered_names(num_classes):
    return tuple(f"class {index}" for index in range(1, num_classes))


def _tuples(value):
    """Lists back to the tuples that frozen dataclasses hold. Raises TypeError for anything that isn't a plain value."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"it holds a {type(value).__name__}")


def _first_line(error):
    return str(error).strip().partition("\n")[0][:200]
