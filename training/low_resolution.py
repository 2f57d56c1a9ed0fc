"""The same network on a smaller input, for the first part of a training from scratch.

What costs most when nothing is learned yet is the resolution. All layers are convolutions, so they also run on a small
picture; the coarsest maps, for which it leaves no room, sit it out.
"""

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
    device = net.priors.device
    training = net.training
    with torch.no_grad():
        sides = [source.shape[-1] for source in net.eval().features(torch.zeros(1, 3, size, size, device=device))]
    net.train(training)
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
    return PriorBox(small).forward().to(device)
