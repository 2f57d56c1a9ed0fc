"""The learning rate as a pure function of the iteration: a resumed run continues exactly by construction."""

import math


def learning_rate(iteration, *, base_lr, max_iter, schedule="step", steps=(), gamma=0.1, warmup=500):
    """The learning rate of one iteration.

    Args:
        iteration: from 0.
        base_lr: highest rate.
        max_iter: length of the run.
        schedule: "step" (times `gamma` at each of `steps`, the paper's), "cosine" (falls to 0 at max_iter),
            or "constant".
        steps: iterations at which the rate falls.
        gamma: factor at each step.
        warmup: iterations of linear rise from 0; 0 turns it off.

    Raises:
        ValueError: the schedule is unknown.
    """
    ramp = min(1.0, (iteration + 1) / warmup) if warmup else 1.0
    if schedule == "step":
        factor = gamma ** sum(iteration >= step for step in steps)
    elif schedule == "cosine":
        progress = (iteration - warmup) / max(1, max_iter - warmup)
        factor = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    elif schedule == "constant":
        factor = 1.0
    else:
        raise ValueError(f"schedule must be step, cosine or constant, not {schedule!r}")
    return base_lr * ramp * factor
