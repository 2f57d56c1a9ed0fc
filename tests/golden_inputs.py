"""The inputs of the golden values, made again from numpy's RandomState, which is stable across versions.

What the reference implementation computes from them with seed 0 lies in tests/golden; other seeds give fresh inputs.
"""

import zlib

import numpy as np
import torch

PRIORS, CLASSES = 8732, 21


def weights(shapes, seed=0):
    """A state dict for {key: shape}: each tensor from a generator of its own."""
    state = {}
    for key, shape in shapes.items():
        r = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
        values = r.standard_normal(shape) * (0.01 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[1:])))
        state[key] = torch.from_numpy((values if key != "L2Norm.weight" else np.full(shape, 20)).astype(np.float32))
    return state


def images(seed=0):
    """float32 [2, 3, 300, 300], RGB minus the mean."""
    noise = np.random.RandomState(1000 + seed).uniform(0, 255, (2, 3, 300, 300))
    return torch.from_numpy((noise - np.array([123, 117, 104]).reshape(1, 3, 1, 1)).astype(np.float32))


def detect(seed=0):
    """(loc [2, 8732, 4], scores [2, 8732, 21]): random offsets, and 400 confident priors per image."""
    r = np.random.RandomState(2000 + seed)
    loc = (r.standard_normal((2, PRIORS, 4)) * 0.5).astype(np.float32)
    conf = r.standard_normal((2, PRIORS, CLASSES)).astype(np.float32)
    conf[..., 0] += 6
    for image in range(2):
        hot = r.permutation(PRIORS)[:400]
        conf[image, hot, r.randint(1, CLASSES, 400)] += 8
    return torch.from_numpy(loc), torch.from_numpy(conf).softmax(dim=-1)


def loss(seed=0):
    """(loc [4, 8732, 4], conf [4, 8732, 21], targets: four float32 [n, 5])."""
    r = np.random.RandomState(3000 + seed)
    targets = []
    for _ in range(4):
        n = r.randint(1, 9)
        corner = r.uniform(0, 0.6, (n, 2))
        size = r.uniform(0.04, 0.39, (n, 2))
        targets.append(np.hstack([corner, corner + size, r.randint(0, 20, (n, 1))]).astype(np.float32))
    loc = r.standard_normal((4, PRIORS, 4)).astype(np.float32)
    conf = r.standard_normal((4, PRIORS, CLASSES)).astype(np.float32)
    return torch.from_numpy(loc), torch.from_numpy(conf), [torch.from_numpy(target) for target in targets]
