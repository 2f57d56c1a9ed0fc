"""The state of a training run: all that is needed to go on exactly where it stopped."""

import math
import re
from pathlib import Path

import torch

from utils.errors import InputError
from weights.checkpoint import is_plain, read_file, save_file

NAME = re.compile(r"state_(\d+)\.pth")
UNFINISHED = re.compile(r"\.(state_\d+|crops|best|ssd\d+_w\d+_final)\.pth\.\d+\.part")
FORMAT = "ssd-run-1"
# What torch and our own code raise on the state of another network, or on a file that only looks like a state.
UNFIT = (LookupError, ValueError, RuntimeError, TypeError, AttributeError, ArithmeticError, AssertionError)


def save(run, iteration, log):
    """Write `state_<iteration>.pth` of a run and remove all but the newest `--keep` states.

    The order of the samples and their augmentation are functions of the iteration and the seed, so of the generators
    only torch's own are kept beside model, average, optimizer, scaler, the log's open sums and the best mAP.

    Raises:
        InputError: it can't be written; the earlier states are still there then.
    """
    contents = {
        "format": FORMAT,
        "iteration": iteration,
        "model": run.net.state_dict(),
        "average": run.average.state_dict() if run.average is not None else None,
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "log": log,
        "best": run.best,
        "rng": torch.get_rng_state(),
        "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    save_file(contents, run.folder / f"state_{iteration}.pth")
    for old in _states(run.folder)[: -run.args.keep]:
        old.unlink(missing_ok=True)


def load(path, net, average, optimizer, scaler):
    """Load a state; returns (iteration to go on with, the log's open sums, best mAP so far).

    Raises:
        InputError: the file is missing, broken, or belongs to another network or other flags.
    """
    state = read_file(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path}: not the state of a training run; start from its weights with --finetune")
    try:
        net.load_state_dict(state["model"])
        load_optimizer(optimizer, state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        if average is not None:
            average.load_state_dict(state["average"])
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available() and len(state["rng_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["rng_cuda"])
        return whole(state["iteration"]), _open_sums(state["log"]), float(state["best"])
    except UNFIT as error:
        raise InputError(f"{path}: the state of another network or run; give the flags it was started with") from error


def load_optimizer(optimizer, stored):
    """Load an optimizer's state dict; raises one of UNFIT where a step with it couldn't be made.

    How a step is computed (fused, foreach, ...) stays as it was: that belongs to this machine and not to the file.
    """
    before = optimizer.state_dict()["param_groups"]
    # Already while loading, as a fused optimizer's count of steps must get onto the device.
    groups = [{**theirs, **_way(ours)} for ours, theirs in zip(before, stored["param_groups"], strict=True)]
    optimizer.load_state_dict({**stored, "param_groups": groups})
    for ours, loaded in zip(before, optimizer.param_groups, strict=True):
        for name in ours.keys() - _way(ours).keys() - {"params"}:
            if not _alike(loaded[name], ours[name]):
                raise ValueError(f"the optimizer's {name} can't be {loaded[name]!r:.60}")
        needed = {"step", "exp_avg", "exp_avg_sq"} if "betas" in ours else {"momentum_buffer"}
        for parameter in loaded["params"]:
            state = optimizer.state.get(parameter)
            if state and (state.keys() != needed or not all(_fits(parameter, *item) for item in state.items())):
                raise ValueError("the moments of the optimizer aren't those of the weights")


def _way(group):
    """Those settings of an optimizer's group that say how a step is computed."""
    return {name: value for name, value in group.items() if value is None or isinstance(value, bool)}


def _alike(loaded, ours):
    """Whether a setting from a file is a number where ours is one, or as many numbers."""
    if isinstance(ours, tuple):
        return isinstance(loaded, tuple) and len(loaded) == len(ours) and all(map(_alike, loaded, ours))
    return type(loaded) in (int, float) and math.isfinite(loaded)


def _fits(parameter, name, value):
    """Whether an optimizer's moment from a file is one of the parameter's."""
    if value is None:
        return name == "momentum_buffer"  # without momentum
    shape = torch.Size() if name == "step" else parameter.shape
    return is_plain(value) and value.is_floating_point() and value.shape == shape


def whole(value):
    """A count from a file. Raises TypeError or ValueError."""
    if type(value) is not int:
        raise TypeError(f"{value!r:.60} is no count")
    if not 0 <= value < 2**53:
        raise ValueError(f"{value} is no count")
    return value


def _open_sums(log):
    """The log's open sums from a file, or None. Raises one of UNFIT."""
    if log is None:
        return None
    sums = [float(value) for value in log["sums"]]
    if len(sums) != 3:
        raise ValueError("the log has three sums")
    unscored = bool(log.get("unscored"))
    return {"iteration": whole(log["iteration"]), "unscored": unscored, "sums": sums, "count": whole(log["count"])}


def remove_unfinished(folder):
    """Remove the files that an earlier run of the folder was killed in the middle of writing."""
    for path in Path(folder).glob(".*.part"):
        if UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def find(resume, folder, say):
    """The state file that --resume means: a path, `auto` for the newest complete one in the folder, None for none.

    A state that doesn't load (a disk that lied about writing it) is passed over with a line.
    """
    if resume != "auto":
        return Path(resume) if resume else None
    for path in reversed(_states(folder)):
        try:
            read_file(path)
        except InputError as error:
            say(f"passed over: {error}")
            continue
        return path
    return None


def _states(folder):
    """The states in a folder, oldest first."""
    found = [(int(match[1]), path) for path in Path(folder).glob("state_*.pth") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]
