"""The network at the start of a run."""

from dataclasses import replace
from pathlib import Path

from data.config import SSDConfig
from data.voc0712 import known_name
from utils.errors import InputError
from weights.catalogue import resolve
from weights.checkpoint import CheckpointInfo, is_plain, is_run_state, read_checkpoint, read_file

BASE = "vgg16_reducedfc.pth"
FALLBACK_BASE = "vgg16_features-amdegroot-88682ab5.pth"


def read_start(name, contents=None):
    """Read a checkpoint, a plain state dict, or the state of a run (the averaged weights if it has them).

    Args:
        name: a path, or a name in the catalogue.
        contents: what the file contains, if it has been read already.

    Returns:
        (state dict, CheckpointInfo); its class_names are None if the file does not contain them.

    Raises:
        InputError: the file is missing, damaged, or not an SSD.
    """
    path = resolve(name)
    contents = read_file(path) if contents is None else contents
    if not is_run_state(contents):
        state, info = read_checkpoint(path)
        if info.channel_order == "BGR":  # training is in RGB, so the input channels are swapped
            state["vgg.0.weight"] = state["vgg.0.weight"].flip(1)
        return state, info if "format" in contents else replace(info, class_names=None)
    average = contents.get("average")
    weights = average if isinstance(average, dict) else contents.get("model")
    if not isinstance(weights, dict):
        raise InputError(f"{path}: damaged: the state of a run without a network; use another one")
    state = {str(key): value for key, value in weights.items() if is_plain(value)}
    batch_norm = any(".bn." in key for key in state)
    try:
        config, run = SSDConfig(**contents["config"]), contents["run"]
        return state, CheckpointInfo(config, tuple(run["classes"]), float(run["width"]), batch_norm, path=path)
    except (TypeError, ValueError, LookupError) as error:
        raise InputError(f"{path}: damaged, or of an early version ({error}); use another state") from error


def check_size(start, size, width):
    """Raise InputError unless size and width are those of a CheckpointInfo."""
    # The width of a plain state dict is computed from a rounded number of channels, at most 1,024.
    if size != start.config.min_dim or not abs(width - start.width) <= 1e-3:  # NaN in a damaged state, too
        raise InputError(
            f"{start.path}: an SSD{start.config.min_dim} of width {start.width:g} (found --size {size}, --width "
            f"{width:g}); leave out --size and --width"
        )


def load_fitting(net, weights, start, class_names, say):
    """Load the tensors of a state dict that fit, and print which ones are initialized from scratch.

    If the CheckpointInfo `start` has class names, the class heads are loaded per class, by name.

    Raises InputError if the base network doesn't fit.
    """
    own = net.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    if start.class_names not in (None, class_names):
        theirs_of = {name: known_name(name, start.class_names) for name in class_names}
        known = [name for name in class_names if theirs_of[name] in start.class_names]
        theirs = [0, *(1 + start.class_names.index(theirs_of[name]) for name in known)]  # and the background
        ours = [0, *(1 + class_names.index(name) for name in known)]
        for key in [key for key in own.keys() & weights.keys() if key.startswith("conf.")]:
            boxes = len(own[key]) // (1 + len(class_names))
            value = weights[key]
            if value.shape == (boxes * (1 + len(start.class_names)), *own[key].shape[1:]):
                fitting[key] = own[key].clone()
                value = value.unflatten(0, (boxes, -1))  # [boxes, classes, ...]
                fitting[key].unflatten(0, (boxes, -1))[:, ours] = value[:, theirs].float()
        say(f"classes known to {start.path}: {', '.join(known) or 'none'}")
    if not any(key.startswith("vgg.") for key in fitting):
        raise InputError(f"{start.path}: does not fit an SSD{net.size} of width {net.width}; leave out --width, --size")
    net.load_state_dict(fitting, strict=False)
    missing = sorted(own.keys() - fitting.keys())
    say(f"loaded {len(fitting)} tensors of {start.path}; initialized from scratch: {', '.join(missing) or 'none'}")


def load_base(net, name, say):
    """Load a VGG16 base: the reduced one of ssd.pytorch, or torchvision's copy of its convolutions.

    If the reduced one is requested but not available, torchvision's copy is used instead.

    Raises InputError if neither is available, or the file does not fit.
    """
    try:
        path = resolve(name)
    except InputError as error:
        if Path(name).name != BASE:
            raise
        say(f"{error}; trying {FALLBACK_BASE} instead")
        path = resolve(FALLBACK_BASE)
    contents = read_file(path)
    items = contents.items() if isinstance(contents, dict) else ()
    state = {str(key).removeprefix("features.").removeprefix("vgg."): value for key, value in items if is_plain(value)}
    own = net.vgg.state_dict()
    fitting = {key: state[key] for key in own.keys() & state.keys() if state[key].shape == own[key].shape}
    convolutions = {key for key in own if int(key.partition(".")[0]) < 31}
    if missing := sorted(convolutions - fitting.keys()):
        raise InputError(f"{path}: not a VGG16 base of width {net.width} (missing keys: {', '.join(missing[:3])})")
    net.vgg.load_state_dict(fitting, strict=False)
    missing = ", ".join(sorted(own.keys() - fitting.keys()))
    say(f"base network loaded from {path}; initialized from scratch: {missing and missing + ', '}extras, heads")


def freeze_base(net, layers):
    """Freeze the base network's first layers, including their BatchNorm statistics."""
    for layer in net.vgg[:layers]:
        layer.eval().requires_grad_(False)
