"""Training that is killed or stopped at any moment ends, once resumed, bitwise as a run that was left alone."""

import random
import re
import signal
import time
from functools import cache
from itertools import count, product
from signal import SIGINT, SIGKILL, SIGTERM

import pytest
from processes import die_while_writing, signal_within
from synthetic import make_voc
from test_train import FINAL, OBJECTS, SMALL, assert_same, log_of

from training.engine import Trainer
from training.state import list_states
from weights.checkpoint import read_file

pytestmark = pytest.mark.slow

SGD = "--momentum 0.9 --warmup 16 --save_every 8 --print_every 1"
ADAMW = "--optimizer adamw --ema 0.9 --schedule cosine --balance --num_workers 1 --save_every 5 --print_every 2"
SHORT = "--max_iter 6 --save_every 2 --print_every 1"


@pytest.fixture(scope="module")
def train(start, tmp_path_factory):
    """(name of the run, settings, prepare=None) -> Script: start train.py, or resume it."""
    folder = tmp_path_factory.mktemp("runs")
    images = make_voc(folder / "images", OBJECTS, split="train")

    def train(name, settings, prepare=None):
        flags = f"--dataset {images} --save_folder {folder / name} {SMALL} {settings} --resume auto"
        return start("train.py", flags, folder / name, prepare=prepare)

    return train


@pytest.fixture(scope="module")
def whole(train):
    """settings -> Script: a run that is left alone, in the background until it is asked for."""
    numbers = count()
    return cache(lambda settings: train(f"whole{next(numbers)}", settings))


def logged(run):
    """Return the iteration of the last complete row of log.csv, 0 if there is none."""
    table = run.folder / "log.csv"
    rows = re.findall(r"^(\d+),.*\n", table.read_text(), re.MULTILINE) if table.exists() else []
    return max(map(int, rows), default=0)


def saved(run):
    """Return the iteration of the newest state, 0 if there is none. All states must be complete."""
    return max((read_file(path)["iteration"] for path in list_states(run.folder)), default=0)


def resumed(run):
    """Return the iteration that the run says it resumes at, 0 if it starts from the beginning."""
    return max(map(int, re.findall(r"resuming from .*state_\d+\.pth at iteration (\d+)", run.out)), default=0)


def results(run):
    """Wait for the end; return all that must not depend on interruptions: weights, last state, log, names of files."""
    assert run.wait().code == 0, run.err
    found = {"log": log_of(run.folder)}
    found["files"] = sorted(re.sub(r"state_\d+", "state", path.name) for path in run.folder.iterdir())
    for name in {f"state_{saved(run)}.pth", FINAL, "best.pth", "crops.pth"}:
        if (run.folder / name).exists():
            found[name] = read_file(run.folder / name)
            found[name].pop("trained_with", None)  # the command, with or without --resume
            for group in found[name].get("optimizer", {}).get("param_groups", []):
                del group["lr"]  # each step sets it
    return found


@pytest.mark.parametrize(("settings", "signals"), [(SGD, [SIGKILL]), (ADAMW, [SIGTERM, SIGKILL, SIGINT])])
def test_struck_between_two_rows(train, whole, times, settings, signals):
    """Before the first state, after it within the warm-up and the second epoch, and later; every second time the
    loader's worker as well, as job schedulers and Ctrl-C do."""
    settings += f" --max_iter {18 + 3 * times}"
    alone, moments, state = whole(settings), random.Random(settings), 0
    targets = [moments.randint(2, 4), 10, *sorted(moments.sample(range(12, 10 + 3 * times), times - 2))]
    for turn, target in enumerate(targets):
        run, number = train(f"struck_{len(signals)}", settings), signals[turn % len(signals)]
        row = max(target, logged(run) + 1)
        run.wait_until(lambda run=run, row=row: logged(run) >= row)
        time.sleep(moments.uniform(0, 0.15))  # about an iteration
        run.signal(number, group=number == SIGKILL or turn % 4 > 1)
        run.wait()
        assert resumed(run) == state
        state = saved(run)
        assert run.code == (-SIGKILL if number == SIGKILL else 128 + number), run.err
        said = f"stopped by {number.name} after iteration {state}; resume with --resume auto" in run.out
        assert said == (number != SIGKILL)
        assert "Traceback" not in run.err
        assert state > 0 or turn == 0
    run = train(run.folder.name, f"{settings} --num_workers 0")
    assert_same(results(run), results(alone))
    assert resumed(run) == state


@pytest.mark.parametrize("number", [SIGINT, SIGTERM, SIGKILL], ids=lambda number: number.name)
def test_struck_at_a_random_moment(train, whole, times, number):
    """Also before the first iteration, and while the script ends."""
    alone, moments = whole(SHORT), random.Random(number)
    expected = results(alone)
    for turn in range(times):
        run = train(f"random_{number.name}", SHORT)
        time.sleep((turn + moments.random()) / times * alone.seconds)
        run.signal(number, group=True)
        assert run.wait().code in (0, -number, 128 + number), run.err
        assert "Traceback" not in run.err
        assert number == SIGKILL or not list(run.folder.glob(".writing-*"))
    assert_same(results(train(run.folder.name, SHORT)), expected)


def test_killed_while_writing(train, whole):
    """Each of its files, at each moment. The next start removes what the killed one left."""
    alone, state = whole(SHORT), 0
    moments = "before the sync", "before the rename", "after the rename"
    deaths = [*product([".json", ".csv"], moments), (".pth", "within its bytes"), *product([".pth"], moments)]
    deaths += [(".pth", moments[2])] * 2 + [*product([".png"], moments), (".pth", "within its bytes")]
    deaths += product([".pth"], moments)  # the final weights
    for suffix, moment in deaths:
        run = train("writing", SHORT, (die_while_writing, (suffix, moment)))
        assert run.wait().code == -(signal.SIGXFSZ if moment == "within its bytes" else SIGKILL), run.err
        assert resumed(run) == state
        state = min(state + 2 * ((suffix, moment) == (".pth", moments[2])), 6)
        assert saved(run) == state
        assert [path.suffix for path in run.folder.glob(".writing-*")] == [suffix] * (moment != moments[2])
    run = train("writing", SHORT)
    assert_same(results(run), results(alone))
    assert "nothing to do" in run.out


def test_killed_while_learning_from_crops(train, whole):
    """Within a pass, and between two."""
    settings, done = "--optimizer adamw --num_workers 1 --crop_size 32 --max_iter 1 --crop_passes 3", 0
    for moment in ("before the sync", "after the rename", "before the rename", "after the rename"):
        run = train("crops", settings, (die_while_writing, (".pth", moment))).wait()
        assert run.code == -SIGKILL, run.err
        assert (f"crops.pth, after pass {done}" in run.out) == (done > 0)
        done += moment == "after the rename"
    assert_same(results(train("crops", settings)), results(whole(settings)))


def test_stopped_just_before_a_validation(train, whole):
    """A run that stops doesn't wait for the validation of its last iteration: the resumed one begins with it."""
    settings = "--max_iter 3 --val_split train --eval_every 2 --save_every 3 --print_every 1"
    for step in (2, 1):
        run = train("validated", settings, (signal_within, (Trainer, "step", step, SIGTERM))).wait()
        assert run.code == 128 + SIGTERM, run.err
    assert_same(results(train("validated", settings)), results(whole(settings)))
    assert [row["iteration"] for row in log_of(run.folder) if row["mAP"]] == ["2", "3"]
