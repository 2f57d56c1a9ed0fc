"""The log of a run: its rows after an interruption, and a disk that is full."""

import errno
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checks import refused
from test_train import log_of

from training.log import COLUMNS, Log, draw_curves, read_rows
from utils.errors import InputError

VALUES = torch.tensor([1.0, 2.0, 3.0])
FIRST = torch.tensor([0])  # the index of the first image
SCORES = (SimpleNamespace(mean_ap_11=0.5, classes=()), np.zeros((2, 2, 3), np.uint8))


def make_log(folder, first=0, **settings):
    return Log(folder, first, 9, **{"print_every": 1, "batch_size": 1, "image_path": "image {}".format, **settings})


def test_a_row_covers_its_iterations_across_an_interruption(tmp_path):
    with make_log(tmp_path, print_every=3) as log:
        for iteration in range(4):
            log.step(iteration, 1e-3, VALUES * iteration, FIRST)
        log.settle()
    with make_log(tmp_path, 4, state=log.state(), print_every=3) as log:
        for iteration in (4, 5):
            log.step(iteration, 1e-3, VALUES * iteration, FIRST)
    assert [list(row.values())[:5] for row in log_of(tmp_path)] == [
        ["3", "0.001", "1.000000", "2.000000", "3.000"],
        ["6", "0.001", "4.000000", "8.000000", "12.000"],
    ]


def test_seconds_are_those_of_an_iteration(tmp_path, monkeypatch):
    """After a validation, too: the time of the row's iterations before it is not counted."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    with make_log(tmp_path, print_every=3) as log:
        for iteration in range(6):
            clock.now += 2
            log.step(iteration, 1e-3, VALUES, FIRST)
            if iteration == 3:
                log.scores(4, *SCORES)
    assert [row["seconds"] for row in read_rows(tmp_path / "log.csv")] == ["2.0000", "", "2.0000"]


@pytest.mark.parametrize(("unscored", "kept"), [(False, ["1", "2", "2"]), (True, ["1", "2"])])
def test_rows_that_the_interruption_undid_are_removed(tmp_path, unscored, kept):
    with make_log(tmp_path) as log:
        for iteration in range(4):
            log.step(iteration, 1e-3, VALUES, FIRST)
            if iteration == 1:
                log.scores(2, *SCORES)
    with make_log(tmp_path, 2, state={"sums": [0, 0, 0], "count": 0, "unscored": unscored}):
        assert [row["iteration"] for row in log_of(tmp_path)] == kept


def test_a_loss_that_is_not_finite_names_iteration_and_images(tmp_path):
    with make_log(tmp_path, print_every=5) as log:
        log.step(0, 1e-3, VALUES, torch.tensor([3]))
        log.step(1, 1e-3, VALUES / 0, torch.tensor([4, 7]))
        refused("not finite at iteration 1.*image 4 image 7", log.settle)


def test_rows_that_are_damaged_are_ignored(tmp_path):
    good = "1,1e-05,2.500000,3.500000,9.000,,0.5000"
    bad = ["²,1,1,1,1,,1", "2,x,1,1,1,,1", "2,1", "3,1,1,1,1,,\0x", '2,"1', "\udcff,,,,,,"]
    text = "\r\n".join([",".join(COLUMNS), *bad, good, ""])
    (tmp_path / "log.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert [row["iteration"] for row in read_rows(tmp_path / "log.csv")] == ["1"]
    with make_log(tmp_path, 5):
        assert [list(row.values()) for row in log_of(tmp_path)] == [good.split(",")[:-1]]
    draw_curves(tmp_path)
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("write", [lambda log: log.step(0, 1e-3, VALUES, FIRST), lambda log: log.scores(1, *SCORES)])
def test_tensorboards_full_disk_is_one_line(tmp_path, write):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    said = pytest.raises(InputError, match=r"can't be written \(No space left on device\)")
    with said as caught, make_log(tmp_path) as log:
        log.board = SimpleNamespace(add_scalar=refuse, add_image=refuse, close=refuse)
        write(log)
    assert str(tmp_path) in str(caught.value)
