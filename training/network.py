"""The network at the start of a run, and what optimises it."""

from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssd import build_ssd
from utils.errors import InputError
from weights.catalogue import resolve
from weights.checkpoint import is_plain, read_file

from .widening import widened, widening

FALLBACK_BASE = "vgg16_features-amdegroot-88682ab5.pth"


class Heads(nn.Module):
    """A network's raw outputs as a module's forward, which DistributedDataParallel and torch.compile wrap."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net.raw(x)


def build_network(args, config, num_classes, say):
    """The network that a run starts from, on the CPU.

    Args:
        args: train.py's --basenet, --finetune, --width.
        config: SSDConfig.
        num_classes: with the background.
        say: prints one line.

    Raises:
        InputError: a file of weights is missing or doesn't fit.
    """
    from_scratch = args.basenet == "none"
    net = build_ssd("train", num_classes=num_classes, config=config, width=args.width, batch_norm=from_scratch)
    if args.finetune:
        load_fitting(net, args.finetune, say)
    elif from_scratch:
        say("base: initialised, with BatchNorm; extra layers and heads: initialised")
    else:
        load_base(net, args.basenet, say)
    return net


def training_memory_format(device, precision, width):
    """How pictures and weights lie in memory in training, for speed.

    channels_last, except in float32 on a CPU: there it gains a fifth at width 0.25, but at width 1 the gradients of
    the weights cost a fifth to a third more than in PyTorch's own layout (benchmarks/training.py).
    """
    if device.type == "cpu" and precision == torch.float32 and width > 0.5:
        return torch.contiguous_format
    return torch.channels_last


def bring_to(device, net, precision, width, compiled=False):
    """Make a network ready to be trained on a device.

    Args:
        device, precision: what it computes on and in.
        net: an SSD; it is changed.
        width: its width.
        compiled: it is to go through torch.compile, which has convolutions of its own.

    Returns:
        (the network, memory format of its input).
    """
    memory_format = training_memory_format(device, precision, width)
    net = net.to(device, memory_format=memory_format)
    return net, memory_format


def load_base(net, name, say):
    """Load a VGG16 base: the reduced one of the lineage, or torchvision's copy of its convolutions.

    Where the reduced one is asked for by its name and can't be had, torchvision's copy takes its place.

    Raises:
        InputError: neither can be had, or the file doesn't fit.
    """
    try:
        path = resolve(name)
    except InputError as error:
        if Path(name).name != "vgg16_reducedfc.pth":
            raise
        say(f"{error}; trying {FALLBACK_BASE} instead")
        path = resolve(FALLBACK_BASE)
    loaded = tensors_in(read_file(path))
    state = {key.removeprefix("features.").removeprefix("vgg."): value for key, value in loaded.items()}
    own = net.vgg.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    convolutions = {key for key in own if int(key.partition(".")[0]) < 31}
    if not convolutions <= fitting.keys():
        missing = ", ".join(sorted(convolutions - fitting.keys())[:3])
        raise InputError(f"{path}: not a VGG16 base of width {net.width} ({missing} lacks or doesn't fit)")
    net.vgg.load_state_dict(fitting, strict=False)
    fresh = sorted(own.keys() - fitting.keys())
    say(f"base: loaded from {path}; initialised: {', '.join(fresh) or 'none of it'}")
    say("extra layers and heads: initialised")


def load_fitting(net, name, say):
    """Load what fits from a checkpoint or a run's state, and say what is initialised anew.

    Raises:
        InputError: the file is missing, broken, or nothing in it fits.
    """
    path = resolve(name)
    state = tensors_in(read_file(path))
    own = net.state_dict()
    factor = widening(state, own)
    if factor:
        state = widened(state, own)
        say(f"widened by {factor}: the network starts with as many copies of each channel, and computes what it did")
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if not any(key.startswith("vgg.") for key in fitting):
        raise InputError(f"{path}: nothing in it fits this network; give the --width and --size it was trained with")
    net.load_state_dict(fitting, strict=False)
    fresh = sorted(own.keys() - fitting.keys())
    if any(".bn." in key for key in fresh) and not any(".bn." in key for key in fitting):
        say("the checkpoint has no BatchNorm (it is folded away when a network is saved): it starts without effect")
    shown = [key for key in fresh if ".bn." not in key]
    say(f"loaded {len(fitting)} tensors of {path}; initialised anew: {', '.join(shown) or 'nothing'}")


def tensors_in(contents):
    """The state dict in what a file held (a checkpoint, a run's state, a bare state dict); empty where none is.

    Of a run that averages its weights (--ema) the average, as that is what the run is scored by.
    """
    contents = contents if isinstance(contents, dict) else {}
    average = contents.get("average")
    state = average if isinstance(average, dict) else contents.get("model", contents)
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    if not isinstance(state, dict):
        return {}
    return {
        name.removeprefix("module."): value
        for name, value in state.items()
        if isinstance(name, str) and is_plain(value)
    }


def freeze_base(net, layers):
    """Keep the base's first layers as they are, BatchNorm statistics included."""
    for layer in net.vgg[:layers]:
        layer.eval().requires_grad_(False)


def build_optimizer(net, args, device):
    """SGD as in the paper or AdamW, in one of the usual groupings.

    With `args.caffe_bias` biases learn at twice the rate and without decay, as in the paper's own code. AdamW never
    decays biases and normalisation.
    """
    adamw = args.optimizer == "adamw"
    learning = [(name.endswith(".bias"), p) for name, p in net.named_parameters() if p.requires_grad]
    biases = [p for is_bias, p in learning if is_bias]
    scales = [p for is_bias, p in learning if not is_bias and p.dim() <= 1]  # of L2Norm and BatchNorm
    weights = [p for is_bias, p in learning if not is_bias and p.dim() > 1]
    decay = args.weight_decay
    groups = [
        {"params": weights, "weight_decay": decay, "lr_factor": 1.0},
        {"params": scales, "weight_decay": 0.0 if adamw else decay, "lr_factor": 1.0},
        {
            "params": biases,
            "weight_decay": 0.0 if adamw or args.caffe_bias else decay,
            "lr_factor": 2.0 if args.caffe_bias else 1.0,
        },
    ]
    fused = device.type == "cuda"
    if not adamw:
        return torch.optim.SGD(groups, args.lr, momentum=args.momentum, fused=fused)
    return torch.optim.AdamW(groups, args.lr, fused=fused)


def averaged(net, decay):
    """An exponential moving average of the network's weights and buffers, or None where decay is 0."""
    if not decay:
        return None
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
