"""The state of a training run: all that is needed to go on exactly where it stopped."""

import re
from pathlib import Path

import torch

from data.errors import InputError
from weights.checkpoint import read_file, save_atomically

NAME = re.compile(r"state_(\d+)\.pth")
FORMAT = "ssd-run-1"


def save_state(folder, iteration, net, optimizer, scaler, keep):
    """Write `state_<iteration>.pth` and remove all but the newest `keep` states.

    The order of the samples and their augmentation are functions of the iteration and the seed, so no more than the
    generator of torch itself has to be kept beside model and optimizer.

    Raises:
        InputError: it can't be written; the earlier states are still there then.
    """
    contents = {
        "format": FORMAT,
        "iteration": iteration,
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "rng": torch.get_rng_state(),
    }
    save_atomically(contents, Path(folder) / f"state_{iteration}.pth")
    for old in states(folder)[:-keep]:
        old.unlink(missing_ok=True)


def states(folder):
    """The states in a folder, oldest first."""
    found = [(int(match[1]), path) for path in Path(folder).glob("state_*.pth") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def load_state(path, net, optimizer, scaler):
    """Load a state into model, optimizer and scaler, and return the iteration to go on with.

    Raises:
        InputError: the file is missing, broken, or belongs to another network.
    """
    state = read_file(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path}: not the state of a training run; start from its weights with --finetune")
    try:
        net.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: the state of another network or run; give the flags it was started with") from error
    return state["iteration"]


def newest_state(folder):
    """The newest state that loads, or None; a broken one (written by an earlier program) is passed over with a line."""
    for path in reversed(states(folder)):
        try:
            read_file(path)
        except InputError as error:
            print(f"passed over: {error}")
            continue
        return path
    return None
