"""A wider network that starts where a narrower one ended (Chen et al., Net2Net, arXiv 1511.05641)."""

import torch

HEADS = ("loc.", "conf.")


def widening(state, own):
    """By which whole factor the base of `own` is wider than that of `state`, both state dicts; None if it isn't."""
    ratios = set()
    for key, tensor in state.items():
        if key.startswith(("vgg.", "L2Norm.")) and tensor.dim():
            if key not in own or own[key].dim() != tensor.dim() or not tensor.numel():
                return None
            ratios.add(own[key].shape[0] / tensor.shape[0])
    ratio = max(ratios, default=0)
    return int(ratio) if len(ratios) == 1 and ratio > 1 and ratio.is_integer() else None


def widened(state, own, seed=0):
    """The state dict of a network that is wider by a whole factor, and computes the same.

    Each channel is there several times, and what reads it shares its weight among the copies. The shares are drawn at
    random, so that the copies get gradients of their own, and part.

    Args:
        state: state dict of the narrower network.
        own: that of the wider one; its shapes alone count.
        seed: of the shares.

    Returns:
        the tensors that can be widened; those of heads for other classes are left out.
    """
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for key, tensor in state.items():
        if key not in own or own[key].dim() != tensor.dim() or not tensor.numel():
            continue
        copies = [wide // narrow for wide, narrow in zip(own[key].shape, tensor.shape, strict=True)]
        fits = [narrow * times for narrow, times in zip(tensor.shape, copies, strict=True)] == list(own[key].shape)
        if not fits or (key.startswith(HEADS) and copies[0] != 1):
            continue
        if tensor.dim() == 4:
            result[key] = _widened_convolution(tensor.float(), *copies[:2], generator)
        elif key == "L2Norm.weight":  # the norm counts each channel as often as it is there
            result[key] = tensor.float().repeat(copies) * copies[0] ** 0.5
        else:
            result[key] = tensor.repeat(copies) if copies else tensor
    return result


def _widened_convolution(weight, outputs, inputs, generator):
    """Copies of the filters, each over copies of the channels: [O, I, h, w] -> [O * outputs, I * inputs, h, w]."""
    filters = weight.repeat(outputs, 1, 1, 1)
    shares = torch.rand(inputs, *filters.shape, generator=generator)
    shares /= shares.sum(dim=0)
    return torch.cat(list(shares * filters), dim=1)
