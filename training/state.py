"""The folder of a run: its identity (the settings that can't change), and the states to resume from."""

import hashlib
import json
import re
from contextlib import contextmanager
from pathlib import Path

import filelock

from utils.errors import InputError
from utils.files import make_folder, whole_file
from weights.checkpoint import is_run_state, read_file, save_file

FORMAT = "ssd-run-2"
NAME = re.compile(r"state_([0-9]{1,15})\.pth")
# Exceptions of torch and our own code if a state is damaged or belongs to another network.
DAMAGED = (LookupError, ValueError, RuntimeError, TypeError, AttributeError, ArithmeticError, AssertionError)


@contextmanager
def open_folder(folder, ranks, lock=True):
    """Create the folder of a run and, with `lock`, lock it: two processes would overwrite each other's states.

    Raises InputError if it can't be created, or another process trains in it.
    """
    try:
        str(folder).encode()  # TensorBoard needs it
        folder = make_folder(folder, "--save_folder")
        held = filelock.FileLock(folder / ".lock")
        if ranks.is_main and lock:
            held.acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError(f"--save_folder {folder}: another process trains in it; choose another folder") from error
    except UnicodeEncodeError as error:
        raise InputError(f"--save_folder {folder}: the name is not valid Unicode; choose another folder") from error
    except OSError as error:
        raise InputError(f"--save_folder {folder}: can't be written ({error.strerror}); choose another one") from error
    try:
        yield folder
    finally:
        held.release()


def identify_run(dataset, images, class_names, net, optimizer, seed, batch_size):
    """Return the settings that must be the same when a run is resumed, as plain values.

    Length, learning rate, workers, device, precision and logging may change; `restore` refuses another --freeze.
    """
    names = [entry[-1] if isinstance(entry, tuple) else entry for entry in images.ids]  # without the data's folder
    listed = "\n".join(map(str, names)).encode("utf-8", "surrogateescape")
    return {
        "dataset": dataset if dataset in ("VOC", "COCO", "ILSVRC") else Path(dataset).resolve().name,
        "splits": str(images.image_set),
        "images": hashlib.sha256(listed).hexdigest()[:16],
        "classes": list(class_names),
        "size": net.size,
        "width": net.width,
        "batch_norm": any(".bn." in key for key in net.state_dict()),
        "config": net.config.name,
        "optimizer": optimizer,
        "seed": seed,
        "batch_size": batch_size,
    }


def check_folder(folder, resume, resumed, run):
    """Raise InputError if a folder contains a run that isn't resumed, or states of another run than `run`.

    resume: the value of --resume, or None. resumed: whether a state was loaded.
    """
    states, crops = list_states(folder), list(folder.glob("crops.pth"))
    results = [*folder.glob("best.pth"), *folder.glob("ssd*_final.pth"), *states]
    if (results and not resumed) or (crops and not resume):
        remedy = "resume it with --resume auto, or " if (states or crops) and not resume else ""
        name = (results + crops)[-1].name
        raise InputError(f"--save_folder {folder}: already holds a run ({name}); {remedy}choose another --save_folder")
    path = folder / "run.json"
    if (states or crops) and path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: can't be read ({error}); remove it to resume from the newest state") from error
        check_identity(stored, run, path)


def check_identity(stored, run, path):
    """Raise InputError unless a stored identity equals that of the current run."""
    for name, value in run.items():
        found = stored.get(name) if isinstance(stored, dict) else None
        if type(found) is not type(value) or found != value:  # comparing a tensor returns a tensor
            raise InputError(
                f"{path}: made by a run with other settings ({name}: found {found!r:.120}, expected {value!r:.120}); "
                "use the flags it was started with, or another --save_folder"
            )


def write_identity(folder, run):
    """Write the identity of a run into its folder."""
    with whole_file(folder / "run.json") as temporary:
        temporary.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


def save_state(folder, iteration, contents, keep):
    """Write `state_<iteration>.pth` and keep the `keep` newest states up to it.

    Later states are removed: the run was continued from an earlier one. No random generator is saved, because samples
    and augmentation depend only on the iteration and the seed.

    Raises InputError if it can't be written; the earlier states remain.
    """
    contents = {"format": FORMAT, "iteration": iteration, **contents}
    path = folder / f"state_{iteration}.pth"
    save_file(contents, path)
    states = list_states(folder)
    end = states.index(path) + 1
    for other in states[: max(0, end - keep)] + states[end:]:
        other.unlink(missing_ok=True)


def find_state(resume, folder, say):
    """Return (path, contents) of the state that --resume means, or (None, None).

    resume: a file, "auto" for the newest complete state in the folder, or None. say: prints a line.
    """
    if resume is None:
        return None, None
    if resume != "auto":
        return Path(resume), read_file(resume)
    for path in reversed(list_states(folder)):
        try:
            return path, read_file(path)
        except InputError as error:  # such as a disk that lost a write
            say(f"skipped: {error}")
    say(f"--resume auto: no usable state in {folder}")
    return None, None


def restore(path, state, trainer, run):
    """Load a state into a Trainer. Returns (iteration, state of the log, best mAP so far).

    Raises InputError if the state is damaged, or belongs to another run.
    """
    check_identity(state.get("run"), run, path)
    try:
        trainer.load_state_dict(state)
        log = state["log"]
        loc, conf, positives = map(float, log["sums"])
        log = {"sums": [loc, conf, positives], "count": as_count(log["count"]), "unscored": bool(log.get("unscored"))}
        return as_count(state["iteration"]), log, float(state["best"])
    except DAMAGED as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise InputError(
            f"{path}: damaged, or the state of another network or another --freeze ({reason}); use the flags that the "
            "run was started with, or another state"
        ) from error


def usable_images(state, count):
    """Return the indices (below `count`) of the usable images that a state lists, or None if it has no valid list."""
    indices = state.get("usable") if is_run_state(state) else None
    valid = isinstance(indices, list) and all(type(i) is int and 0 <= i < count for i in indices) and len(indices) > 0
    return indices if valid else None


def as_count(value):
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{value!r:.60} is not a count")
    return value


def list_states(folder):
    """Return the states in a folder, oldest first."""
    found = [(int(match[1]), path) for path in Path(folder).glob("state_*.pth") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]
