"""A run that is killed at whatever moment ends, resumed, bitwise as one that was left alone.

Each run is a process of its own, killed together with its loader's workers: twice, or 20 times with `--long`.
"""

import os
import re
import signal
import time

import pytest
import torch
from killing import FINAL, Job, start_server
from synthetic import make_voc
from test_train import OBJECTS, assert_same, log_of, train
from training.run import Run

from weights.checkpoint import read_file

pytestmark = pytest.mark.slow

SGD = "--momentum 0.9 --warmup 16 --save_every 8 --print_every 1"
ADAMW = "--optimizer adamw --ema 0.9 --schedule cosine --num_workers 1 --save_every 5 --print_every 2"
CROPS = "--optimizer adamw --lr 0.003 --num_workers 1 --crop_size 32 --max_iter 2 --print_every 1"
ALIKE = "resumed, and ended as a run left alone"
CROWD = [("dog" if n % 3 else "cat", (2 + 2 * n, n, 30 + 2 * n, 28 + n), 0) for n in range(26)]


@pytest.fixture(scope="module")
def length(times):
    """Iterations of a run: with room for the kills, so that even a late one comes before the end."""
    return 18 + 3 * times


@pytest.fixture(scope="module")
def make_job(tmp_path_factory):
    """(name, settings, objects of the pictures, anew) -> a Job whose process doesn't outlive the tests."""
    start_server()
    jobs, folder = [], tmp_path_factory.mktemp("killed")

    def make(name, settings, objects=OBJECTS, anew=False):
        pictures = make_voc(folder / f"{name}_pictures", objects, split="train")
        jobs.append(Job(pictures, folder / name, settings, anew))
        return jobs[-1]

    yield make
    for job in jobs:
        job.clear()


@pytest.fixture(scope="module")
def whole_sgd(make_job, length):
    """A run that is left alone, in the background until it is asked for."""
    job = make_job("whole_sgd", f"{SGD} --max_iter {length}")
    job.start()
    return job


@pytest.fixture(scope="module")
def whole_adamw(make_job, length):
    job = make_job("whole_adamw", f"{ADAMW} --max_iter {length}")
    job.start()
    return job


def assert_end_alike(job, whole):
    """Once both have ended: what they leave is bitwise the same, and nothing else is left."""
    assert_same(job.results(), whole.results())
    assert job.files() == whole.files()


def test_killed_inside_the_warm_up_and_across_an_epochs_end(make_job, whole_sgd, times, length, tried):
    """First before there is a state, then between iterations 8 and 16, where states are saved and the warm-up ends."""
    job, moments = make_job("sgd", f"{SGD} --max_iter {length}"), [(0, 0)]
    targets = [job.random.randint(2, 5), job.random.randint(10, 11)]
    targets += sorted(job.random.sample(range(12, length - 8), times - 2))
    for target in targets:
        job.start()
        job.wait_for_row(target)
        assert job.resumed_from() == moments[-1][1]
        moments.append(job.kill())
    job.start()
    assert_end_alike(job, whole_sgd)
    tried("training, SIGKILL", ALIKE, times)
    assert job.resumed_from() == moments[-1][1]
    assert any(0 < state < row < 16 for row, state in moments)
    assert any(0 < 2 * state // 5 < 2 * row // 5 for row, state in moments)  # 2 pictures a batch, 5 an epoch


def test_killed_with_workers_at_work(make_job, whole_adamw, times, length, tried):
    """AdamW, averaged weights, cosine; also killed between the log's rows, each of which sums up two iterations."""
    job, state = make_job("adamw", f"{ADAMW} --max_iter {length}"), 0
    for target in sorted(job.random.sample(range(2, length - 8), times)):
        job.start()
        job.wait_for_row(target)
        assert job.resumed_from() == state
        _, state = job.kill()
    job.start()
    assert_end_alike(job, whole_adamw)
    tried("training, SIGKILL with workers", ALIKE, times)
    assert job.resumed_from() == state > 0


def test_killed_while_writing(make_job, whole_sgd, length, tried):
    """The run goes on from the newest whole state, and the next start clears away what the killed one left."""
    job, state = make_job("writing", f"{SGD} --max_iter {length} --save_every 4"), 0
    for target, moment, newest in (
        ("state_8.", "within its bytes", 4),
        ("log.csv", "before its rows", 4),
        ("state_12.", "before the sync", 8),
        ("state_16.", "before the rename", 12),
        ("state_20.", "after the rename", 20),
        (FINAL, "within its bytes", length),
    ):
        job.start(death=(target, moment))
        assert job.died()[1] == newest
        assert job.resumed_from() == state
        parts = [path.name for path in job.folder.glob(".*")]
        assert [target in part for part in parts] == [True] * (moment not in ("before its rows", "after the rename"))
        state = newest
        tried("training, SIGKILL while writing", ALIKE)
    assert not (job.folder / FINAL).exists()
    job.start()
    assert_end_alike(job, whole_sgd)
    assert job.resumed_from() == length


def test_killed_while_learning_from_crops(make_job, times, tried):
    """Between the passes and within them."""
    settings, crowd = f"{CROPS} --crop_passes {times + 1}", {f"p{n}": CROWD for n in range(5)}
    whole, job = (make_job(name, settings, crowd) for name in ("whole_crops", "crops"))
    whole.start()
    state, done = job.folder / "crops.pth", 0
    for number in range(1, times + 1):
        job.start()
        job.wait_until(lambda line=f"pass {number} of": line in job.said())
        time.sleep(job.random.uniform(0, 0.3))  # about a pass
        job.kill()
        assert re.findall(r"pass (\d+) of", job.said())[0] == str(done + 1)
        done = read_file(state)["passes"] if state.exists() else 0
        assert done in (number - 1, number)
    job.start()
    assert_end_alike(job, whole)
    assert_same(read_file(state), read_file(whole.folder / "crops.pth"))
    assert done > 0
    tried("training on crops, SIGKILL", ALIKE, times)


def test_asked_to_stop(make_job, whole_adamw, times, length, tried):
    """SIGTERM for the process alone, as `kill` sends it, or for its workers too, as job schedulers do."""
    job, state = make_job("stopped", f"{ADAMW} --max_iter {length}", anew=True), 0
    for number, target in enumerate(sorted(job.random.sample(range(2, length - 8), times))):
        job.start()
        job.wait_for_row(target)
        assert job.resumed_from() == state
        (os.killpg if number % 2 else os.kill)(job.process.pid, signal.SIGTERM)
        assert job.exit_code() == 128 + signal.SIGTERM, job.said()
        found = re.search(r"stopped by SIGTERM after iteration (\d+); go on with --resume auto", job.said())
        state = job.newest_state()
        assert int(found[1]) == state
    job.start()
    assert_end_alike(job, whole_adamw)
    assert job.resumed_from() == state
    tried("training, SIGTERM", ALIKE, times)


def test_asked_to_stop_just_before_a_scoring(tmp_path, monkeypatch, tried):
    """A run that stops doesn't wait for the scoring of its last iteration: the resumed one begins with it."""
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
    pictures = make_voc(tmp_path / "pictures", OBJECTS, split="train")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    settings = "--max_iter 3 --val_split train --eval_every 2 --save_every 3 --print_every 1"
    step = Run.step

    def last_step(run, batch, rate):
        nonlocal steps
        steps -= 1
        if not steps:
            signal.raise_signal(signal.SIGTERM)
        return step(run, batch, rate)

    try:
        train(pictures, whole, settings)
        for number in (2, 1):
            steps = number
            with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
                patch.setattr(Run, "step", last_step)
                train(pictures, resumed, f"{settings} --resume auto")
            assert stopped.value.code == 128 + signal.SIGTERM
        train(pictures, resumed, f"{settings} --resume auto")
    finally:
        torch.set_flush_denormal(False)
    assert [row["iteration"] for row in log_of(whole) if row["mAP"]] == ["2", "3"]
    assert log_of(resumed) == log_of(whole)
    for name in ("best.pth", "state_3.pth"):
        contents = [read_file(folder / name) for folder in (resumed, whole)]
        for content in contents:
            content.pop("trained_with", None)
            content.pop("rng", None)
        assert_same(*contents)
    tried("training, SIGTERM just before a scoring", ALIKE, 2)
