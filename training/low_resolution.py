"""The same network on a smaller input, for the first part of a training from scratch.

What costs most when nothing is learned yet is the resolution. All layers are convolutions, so they also run on a small
picture; the coarsest maps, for which it leaves no room, sit it out.
"""

from copy import deepcopy
from dataclasses import replace

import torch

from layers.functions import PriorBox


def priors_at(net, size):
    """Priors of the maps that remain at an input of `size` pixels: float32 [priors, 4], as fractions.

    The boxes are as large, in fractions of the picture, as at full size.
    """
    config = net.config
    if size == config.min_dim:
        return net.priors
    probe = deepcopy(net).eval()  # a copy, as what is in which mode is for the training to say
    with torch.no_grad():
        sides = [source.shape[-1] for source in probe.features(net.priors.new_zeros(1, 3, size, size))]
    scale = size / config.min_dim
    small = replace(
        config,
        min_dim=size,
        feature_maps=tuple(sides),
        steps=tuple(size / side for side in sides),
        min_sizes=tuple(scale * value for value in config.min_sizes[: len(sides)]),
        max_sizes=tuple(scale * value for value in config.max_sizes[: len(sides)]),
        aspect_ratios=config.aspect_ratios[: len(sides)],
    )
    return PriorBox(small).forward().to(net.priors)
