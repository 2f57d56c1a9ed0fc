"""BatchNorm for a network that was saved without: it is folded away there (SSD.fuse)."""

from contextlib import ExitStack

import torch

from ssd import ConvBN

INITIAL_NORM = 2**0.5  # of a filter as He et al. initialise it, whatever its size


def lacks_statistics(net):
    """Whether a network has BatchNorm, none of which has seen a picture.

    Where some has, it belongs to what was learned: layers that a low resolution never reached, or that were frozen, may
    have seen none in a network that is trained.
    """
    seen = [int(layer.bn.num_batches_tracked) for layer in net.modules() if isinstance(layer, ConvBN)]
    return bool(seen) and not any(seen)


@torch.no_grad()
def start_batch_norm(net, batches):
    """Let each BatchNorm start with the scale and shift that undo its normalisation.

    A network then computes in training what it did before BatchNorm was put behind its convolutions; as identities
    the layers would normalise activations that the weights behind them expect as they are. Filters are brought to the
    norm that they would be initialised with, which BatchNorm takes back: folding made most of them a fraction of that,
    and a learning rate meant for fresh filters would destroy them within a few steps.

    Args:
        net: an SSD with BatchNorm; it is changed, and stays in the mode that it is in.
        batches: iterable of inputs, float [B, 3, S, S] of the network's size; what the convolutions give on them is
            measured.
    """
    convolutions = [layer for layer in net.modules() if isinstance(layer, ConvBN)]
    sums = {conv.bn: torch.zeros(3, conv.out_channels, dtype=torch.float64) for conv in convolutions}

    def measure(bn, inputs, output):
        values = inputs[0].double().transpose(0, 1).flatten(1)  # [C, B * H * W]
        counts = torch.full_like(values[:, 0], values.shape[1])
        sums[bn] += torch.stack([counts, values.sum(dim=1), values.square().sum(dim=1)]).cpu()
        return inputs[0]  # as if there were no BatchNorm

    training = net.training
    net.eval()
    with ExitStack() as hooks:
        for bn in sums:
            hooks.callback(bn.register_forward_hook(measure).remove)
        for batch in batches:
            net.raw(batch)
    net.train(training)

    for conv in convolutions:
        count, total, squares = sums[conv.bn]
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        norm = conv.weight.flatten(1).norm(dim=1).cpu()
        growth = torch.where(norm > 0, INITIAL_NORM / norm, 1).double()
        set_batch_norm(conv.bn, mean * growth, variance * growth.square(), growth)
        conv.weight.mul_(growth.to(conv.weight)[:, None, None, None])
        conv.bias.mul_(growth.to(conv.bias))


def set_batch_norm(bn, mean, variance, growth):
    """Give a BatchNorm statistics [C], and what makes its output the input divided by `growth` [C]."""
    bn.running_mean.copy_(mean)
    bn.running_var.copy_(variance)
    bn.weight.copy_((variance + bn.eps).sqrt() / growth)
    bn.bias.copy_(mean / growth)
    bn.num_batches_tracked.fill_(1)
