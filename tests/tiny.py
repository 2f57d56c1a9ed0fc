"""Small, fast networks: one detects the same two objects in any image; the lively one's results depend on the image."""

import torch

from data.config import voc
from weights.checkpoint import CheckpointInfo, save_checkpoint

DOG, PERSON = 11, 14  # index in VOC_CLASSES
# The two square priors of the coarsest map, which score high: sides 264 and sqrt(264 * 315) of 300, centered, clipped.
DOG_BOX = [0.06, 0.06, 0.94, 0.94]  # fractions of the image
DOG_SCORE, PERSON_SCORE = 0.98, 0.70


def make_network(**changes):
    """(net, info) with scores that depend on the biases alone; changes: of the info, whose width is 1/16 otherwise."""
    info = CheckpointInfo(**{"config": voc, "width": 1 / 16, "mAP": 0.123, "mAP_on": "nothing", **changes})
    torch.manual_seed(0)
    net = info.build()
    with torch.no_grad():
        for head in (*net.loc, *net.conf):
            head.weight.zero_()
            head.bias.zero_()
        for head in net.conf:
            head.bias.view(-1, 21)[:, 0] = 12
        coarsest = net.conf[-1].bias.view(4, 21)
        coarsest[0, 1 + DOG] = 12 + torch.logit(torch.tensor(DOG_SCORE))
        coarsest[1, 1 + PERSON] = 12 + torch.logit(torch.tensor(PERSON_SCORE))
    return net, info


def make_checkpoint(path, **changes):
    """Save such a network and return the path."""
    save_checkpoint(path, *make_network(**changes))
    return path


def lively_network(**changes):
    """Return (net, info) of width 1/16, with random heads that find some hundred boxes in an image."""
    net, info = make_network(**changes)
    torch.manual_seed(1)
    with torch.no_grad():
        for head in (*net.loc, *net.conf):
            head.weight.normal_(std=0.02)
            head.bias.zero_()
        for head in net.conf:
            head.bias.view(-1, info.num_classes)[:, 0] = 4
    return net.eval(), info


def lively_checkpoint(path, **changes):
    """Save such a network and return the path."""
    save_checkpoint(path, *lively_network(**changes))
    return path
