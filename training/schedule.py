"""The learning rate as a pure function of the iteration: a resumed run continues exactly by construction."""

import math

# The one-cycle schedule: share of the run in which the rate rises; where it starts and ends, as parts of the highest.
CYCLE_RISE, CYCLE_START, CYCLE_END = 0.3, 1 / 25, 1 / 250_000


def learning_rate(iteration, *, base_lr, max_iter, schedule="step", steps=(), gamma=0.1, warmup=500):
    """The learning rate of one iteration.

    Args:
        iteration: from 0.
        base_lr: highest rate.
        max_iter: length of the run.
        schedule: "step" (times `gamma` at each of `steps`, the paper's), "cosine" (falls to 0 at max_iter),
            "onecycle" (rises for the first 30 % of the run, then falls to next to nothing; it has a warm-up of its own;
            Smith and Topin, arXiv 1708.07120), or "constant".
        steps: iterations at which the rate falls.
        gamma: factor at each step.
        warmup: iterations of linear rise from 0; 0 turns it off.

    Raises:
        ValueError: the schedule is unknown.
    """
    if schedule == "onecycle":
        return base_lr * one_cycle(iteration / max(1, max_iter - 1))
    ramp = min(1.0, (iteration + 1) / warmup) if warmup else 1.0
    if schedule == "step":
        factor = gamma ** sum(iteration >= step for step in steps)
    elif schedule == "cosine":
        progress = (iteration - warmup) / max(1, max_iter - warmup)
        factor = between(1.0, 0.0, min(max(progress, 0.0), 1.0))
    elif schedule == "constant":
        factor = 1.0
    else:
        raise ValueError(f"schedule must be step, cosine, onecycle or constant, not {schedule!r}")
    return base_lr * ramp * factor


def one_cycle(progress):
    """Factor of the one-cycle schedule: progress 0..1 of the run -> CYCLE_START, up to 1, down to CYCLE_END."""
    if progress < CYCLE_RISE:
        return between(CYCLE_START, 1.0, progress / CYCLE_RISE)
    return between(1.0, CYCLE_END, min((progress - CYCLE_RISE) / (1 - CYCLE_RISE), 1.0))


def between(first, last, progress):
    """From one value to another along half a cosine."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))
