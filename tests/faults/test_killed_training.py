"""Training that is killed or stopped at any moment ends, once resumed, bitwise as a run that was left alone.

Each run is struck twice, or 20 times with `--long`.
"""

import os
import random
import re
import signal
import time
from itertools import product
from signal import SIGINT, SIGKILL, SIGTERM

import pytest
from processes import die_while_writing
from synthetic import make_voc
from test_train import FINAL, OBJECTS, SMALL, assert_same, log_of

from training import engine
from training.state import list_states
from weights.checkpoint import read_file

pytestmark = pytest.mark.slow

SGD = "--momentum 0.9 --warmup 16 --save_every 8 --print_every 1"
ADAMW = "--optimizer adamw --ema 0.9 --schedule cosine --num_workers 1 --save_every 5 --print_every 2"
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
    runs = {}

    def whole(settings):
        if settings not in runs:
            runs[settings] = train(f"whole{len(runs)}", settings)
        return runs[settings]

    return whole


def logged(run):
    """Return the iteration of the last complete row of log.csv, 0 if there is none."""
    table = run.folder / "log.csv"
    return int(([0] + re.findall(r"^(\d+),.*\n", table.read_text() if table.exists() else "", re.MULTILINE))[-1])


def saved(run):
    """Return the iteration of the newest state, 0 if there is none. All states must be complete."""
    return max((read_file(path)["iteration"] for path in list_states(run.folder)), default=0)


def resumed(run):
    """Return the iteration that the run says it resumes at, 0 if it starts from the beginning."""
    found = re.search(r"resuming from .*state_\d+\.pth at iteration (\d+)", run.out)
    return int(found[1]) if found else 0


def results(run):
    """Wait for the end; return all that must not depend on interruptions: weights, last state, log, names of files."""
    assert run.wait().code == 0, run.err
    found = {"log": log_of(run.folder)}
    found["files"] = sorted(re.sub(r"state_\d+", "state", path.name) for path in run.folder.iterdir())
    for name in {f"state_{saved(run)}.pth", FINAL, "best.pth", "crops.pth"}:
        if (run.folder / name).exists():
            found[name] = read_file(run.folder / name)
            found[name].pop("trained_with", None)  # the command, with or without --resume
            found[name].pop("rng", None)  # torch draws from it for each loader that is opened, but no step does
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
        if number == SIGKILL:
            assert run.code == -SIGKILL
        else:
            assert run.code == 128 + number, run.err
            assert f"stopped by {number.name} after iteration {state}; resume with --resume auto" in run.out
            assert "Traceback" not in run.err
        assert state > 0 or turn == 0
    run = train(run.folder.name, settings)
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
        assert number == SIGKILL or "Traceback" not in run.err
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


def test_killed_while_learning_from_crops(train, whole, times):
    """Between the passes and within them."""
    settings = f"--optimizer adamw --num_workers 1 --crop_size 32 --max_iter 1 --crop_passes {times + 1}"
    alone, moments, done = whole(settings), random.Random(0), 0
    for _ in range(times):
        run = train("crops", settings)
        run.wait_until(lambda run=run, line=f"crops, pass {done + 1}/": line in run.out)
        time.sleep(moments.uniform(0, 0.5))  # about a pass
        run.signal(SIGKILL, group=True)
        run.wait()
        assert (f"crops.pth, after pass {done}" in run.out) == (done > 0)
        path = run.folder / "crops.pth"
        done = read_file(path)["passes"] if path.exists() else 0
    assert done > 0
    assert_same(results(train("crops", settings)), results(alone))


def stop_at(count):
    """From now on, SIGTERM comes within the `count`-th step of this process."""
    step, steps = engine.Trainer.step, iter(range(1, count + 1))

    def last_step(*arguments):
        if next(steps) == count:
            os.kill(os.getpid(), SIGTERM)
        return step(*arguments)

    engine.Trainer.step = last_step


def test_stopped_just_before_a_validation(train, whole):
    """A run that stops doesn't wait for the validation of its last iteration: the resumed one begins with it."""
    settings = "--max_iter 3 --val_split train --eval_every 2 --save_every 3 --print_every 1"
    alone = whole(settings)
    for count in (2, 1):
        assert train("validated", settings, (stop_at, (count,))).wait().code == 128 + SIGTERM
    run = train("validated", settings)
    assert_same(results(run), results(alone))
    assert [row["iteration"] for row in log_of(run.folder) if row["mAP"]] == ["2", "3"]
