"""Checkpoints: one file with a network's weights and everything that is needed to rebuild and use it.

A checkpoint contains plain values and tensors only: torch.load(weights_only=True) reads it, and no code in a file is
executed. State dicts of ssd.pytorch load, too.
"""

import math
import pickle
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from data.coco import COCO_CLASSES
from data.config import SSDConfig, coco, coco512, voc, voc512
from data.voc0712 import VOC_CLASSES
from layers.functions import PriorBox
from ssd import build_ssd, plain_state_dict
from utils.errors import InputError, name_problem
from utils.files import whole_file
from weights.catalogue import CATALOGUE, missing

FORMAT = "ssd-checkpoint-1"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8)


@dataclass(frozen=True)
class CheckpointInfo:
    """Description of a network, stored beside its weights."""

    config: SSDConfig = voc  # input size and priors
    class_names: tuple[str, ...] = VOC_CLASSES  # without the background; index 0 is class 1 of the network
    width: float = 1.0  # factor on the paper's channel counts
    batch_norm: bool = False  # whether the weights contain BatchNorm layers
    channel_order: str = "RGB"  # or "BGR", of the input
    mAP: float | None = None  # measured mean average precision in 0..1, if known
    mAP_on: str = ""  # the data it was measured on
    threshold: float | None = None  # score in 0..1 with the best mean F1 over the classes, if known
    trained_with: str = ""  # command of the training
    path: Path | None = None  # file it was read from; not stored

    @property
    def num_classes(self):
        """Number of classes with the background."""
        return len(self.class_names) + 1

    @property
    def quality(self):
        """The mAP as text."""
        if self.mAP is None:
            return "mAP unknown"
        return f"mAP {self.mAP:.3f}" + (f" on {self.mAP_on}" if self.mAP_on else "")

    def build(self, phase="test"):
        """Build the network of this description, with initial weights."""
        return build_ssd(
            phase, num_classes=self.num_classes, config=self.config, width=self.width, batch_norm=self.batch_norm
        )


def save_checkpoint(path, net, info, half=False):
    """Write an SSD and its CheckpointInfo to a file, completely or not at all; in float16 if `half`.

    Raises InputError if a weight is not finite in the stored precision, or the file can't be written.
    """
    state = {key: tensor.cpu().contiguous() for key, tensor in net.state_dict().items()}
    if half:
        state = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    if key := out_of_range(state):
        raise InputError(f"{path}: not saved, {key} is not finite, or overflows float16")
    stored = {field.name: getattr(info, field.name) for field in fields(info) if field.name not in ("config", "path")}
    save_file({"format": FORMAT, "state_dict": state, "config": asdict(info.config), **stored}, path)


def save_file(contents, path):
    """Write `contents` with torch.save, completely or not at all. Raises InputError if that fails."""
    try:
        with whole_file(path) as temporary, temporary.open("wb") as file:
            torch.save(contents, file)
    except RuntimeError as error:  # torch raises it if the disk is full
        raise InputError(f"{path}: can't be written ({_first_line(error)}); is the disk full?") from error


def read_file(path):
    """Return the contents of a .pth file, tensors on the CPU.

    Raises InputError if the file is missing, damaged, not a PyTorch file, or contains code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: this is a folder" if path.is_dir() else missing(path))
    try:
        _check_form(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of exceptions on a damaged file
        if isinstance(error, pickle.UnpicklingError) and ("weights_only" in str(error) or "Unsupported" in str(error)):
            raise InputError(f"{path}: refused, it contains code besides weights; get a plain state dict") from error
        raise InputError(f"{path}: truncated, damaged or unsafe ({_first_line(error)}); get it again") from error


def _check_form(path):
    """Raise an exception unless a file is a pickle, or a zip file without compression, as torch.save writes them."""
    with path.open("rb") as file:
        if file.read(1) == b"\x80":
            return  # the old format of torch.save
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(record.file_size for record in archive.infolist())
    if unpacked > path.stat().st_size:
        raise ValueError(f"it would unpack to {unpacked:,} bytes")


def is_plain(tensor):
    """Return whether an object from a file is a dense tensor of real numbers on the CPU, as weights are."""
    if not isinstance(tensor, torch.Tensor) or tensor.is_nested:
        return False
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.dtype in _DTYPES


def is_run_state(contents):
    """Return whether the contents of a file are the state of a training run."""
    return isinstance(contents, dict) and str(contents.get("format")).startswith("ssd-run-")


def read_checkpoint(path):
    """Read weights and description from a checkpoint or a state dict of ssd.pytorch.

    Returns:
        (state, info): the state dict with the tensors as stored, and its CheckpointInfo.

    Raises:
        InputError: the file is missing, damaged, contains code, is not an SSD, or a weight is not finite.
    """
    contents = read_file(path)
    if is_run_state(contents):
        raise InputError(f"{path}: the state of a run, for --resume and --finetune; use its best.pth or *_final.pth")
    wrapped = contents.get("state_dict", contents) if isinstance(contents, dict) else None
    if not isinstance(wrapped, dict) or not all(isinstance(key, str) for key in (*contents, *wrapped)):
        raise InputError(f"{path}: contains no state dict")
    if wrong := [key for key, tensor in wrapped.items() if not is_plain(tensor)]:
        raise InputError(f"{path}: not the state dict of an SSD ({wrong[0]:.60} is not a tensor of weights)")
    state = plain_state_dict(contents)
    # In a small file, a tensor can repeat one stored number (stride 0), and tensors can share their storage.
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > Path(path).stat().st_size:
        raise InputError(f"{path}: claims more weights than the file holds; get a plain state dict")
    if key := out_of_range(state):
        raise InputError(f"{path}: {key:.60} is not finite, or overflows float16; get another checkpoint")
    info = _own_info(contents, path) if contents.get("format") == FORMAT else _lineage_info(state, path)
    return state, replace(info, path=Path(path))


def out_of_range(state):
    """Return the name of a tensor that is not finite or overflows float16 (a supported precision), or None.

    BatchNorm's statistics may be larger, since they are folded into the weights first.
    """
    for key, tensor in state.items():
        limit = torch.finfo(torch.float32 if ".bn." in key else torch.float16).max
        if not (tensor.float().abs() <= limit).all():
            return key
    return None


def load_network(path, phase="test"):
    """Build the network of a checkpoint, for inference.

    Returns:
        (net, info): an SSD in evaluation mode, float32, on the CPU, BatchNorm folded; and its CheckpointInfo.

    Raises:
        InputError: see `read_checkpoint`; or names or shapes of the tensors don't match the network.
    """
    state, info = read_checkpoint(path)
    with torch.device("meta"):  # shapes only: a file that claims a huge network must not cost memory
        expected = {key: tensor.shape for key, tensor in info.build(phase).state_dict().items()}
    wrong = sorted(expected.keys() ^ state.keys())
    wrong = wrong or [key for key, shape in expected.items() if state[key].shape != shape]
    if wrong:
        problem = f"{len(wrong)} tensors don't fit, the first is {wrong[0]:.60}"
        raise InputError(f"{path}: not an SSD{info.config.min_dim} with {info.num_classes} classes ({problem})")
    net = info.build(phase)
    net.load_state_dict(state, strict=True)
    return net.fuse(), replace(info, batch_norm=False)


def _own_info(contents, path):
    """Return the CheckpointInfo in the contents of a checkpoint."""
    try:
        config = SSDConfig(**{key: _tuples(value) for key, value in contents["config"].items()})
        stored = {field.name for field in fields(CheckpointInfo)} - {"config", "path"}
        info = CheckpointInfo(config=config, **{key: _tuples(contents[key]) for key in stored & contents.keys()})
        _check_info(info)
    except Exception as error:  # a damaged description can contain anything
        raise InputError(f"{path}: invalid description ({_first_line(error)}); get the file again") from error
    return info


def _lineage_info(state, path):
    """Return the CheckpointInfo of a plain state dict, from its shapes and its file name's entry in the catalogue."""
    try:
        size = {8: 300, 10: 512}[len({key.split(".")[1] for key in state if key.startswith("extras.")})]
        num_classes = state["conf.0.weight"].shape[0] // (state["loc.0.weight"].shape[0] // 4)
        # As in ssd.pytorch: VOC's priors for 21 classes, COCO's for any other number.
        config = ({300: voc, 512: voc512} if num_classes == 21 else {300: coco, 512: coco512})[size]
        names = {21: tuple(VOC_CLASSES), 81: tuple(COCO_CLASSES)}.get(num_classes)
        info = CheckpointInfo(
            config=config,
            class_names=names or tuple(f"class {index}" for index in range(1, num_classes)),
            width=state["vgg.31.weight"].shape[0] / 1024,
            batch_norm=any(".bn." in key for key in state),
        )
        _check_info(info)
    except Exception as error:  # the tensors of another network
        raise InputError(f"{path}: not an SSD300 or SSD512 (layers are missing or unexpected)") from error
    entry = CATALOGUE.get(Path(path).name)
    if entry is None or entry.clip is None:
        return info
    config = replace(config, clip=entry.clip)
    return replace(info, config=config, channel_order=entry.channel_order, mAP=entry.mAP, mAP_on="VOC2007 test")


def _check_info(info):
    """Raise an exception unless a description is valid."""
    config = info.config
    valid = {
        "class_names": isinstance(info.class_names, tuple),
        "channel_order": info.channel_order in ("RGB", "BGR"),
        "width": 0 < info.width <= 4,
        "mAP": info.mAP is None or (isinstance(info.mAP, float) and 0 <= info.mAP <= 1),
        "threshold": info.threshold is None or (isinstance(info.threshold, float) and 0 <= info.threshold < 1),
        "mAP_on": isinstance(info.mAP_on, str),
        "trained_with": isinstance(info.trained_with, str),
        "min_dim": config.min_dim in (300, 512),
        "feature_maps": 0 < config.num_priors < 10**6,
        "variance": len(config.variance) == 2 and all(map(math.isfinite, config.variance)),
    }
    if wrong := [name for name, is_valid in valid.items() if not is_valid]:
        raise ValueError(f"{wrong[0]} is invalid")
    for name in (*info.class_names, config.name):
        if problem := name_problem(name):
            raise ValueError(f"the name {name!r:.60}: {problem}")
    if repeated := [name for name, count in Counter(info.class_names).items() if count > 1]:
        raise ValueError(f"the class name {repeated[0]!r:.60} occurs twice")
    with torch.device("cpu"):  # values are needed, even if the caller uses the meta device
        if not PriorBox(config).forward().isfinite().all():
            raise ValueError("its priors are not finite")
    with torch.device("meta"):
        loc, _ = info.build().eval().raw(torch.zeros(1, 3, config.min_dim, config.min_dim))
    if loc.shape[1] != config.num_priors:
        raise ValueError(f"the network doesn't have the feature maps {config.feature_maps}")


def _tuples(value):
    """Convert the lists in a value to tuples. Raises TypeError if the value is not plain."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"it contains a {type(value).__name__}")


def _first_line(error):
    return str(error).strip().partition("\n")[0][:200]
