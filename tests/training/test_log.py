"""The log of a run: its rows after an interruption, and a disk that is full."""

import csv
import errno

import numpy as np
import pytest
import torch

from training.log import COLUMNS, Log, draw_curves, read_rows
from utils.errors import InputError

VALUES = torch.tensor([1.0, 2.0, 3.0])


def make_log(folder, first=0, state=None, **settings):
    settings = {"print_every": 1, "batch_size": 1, "image_path": str, **settings}
    return Log(folder, first, 9, state=state, **settings)


def rows_of(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def result(score=0.5):
    """A validation's figures."""
    return type("Result", (), {"mean_ap_11": score, "classes": ()})


def test_a_row_covers_its_iterations_across_an_interruption(tmp_path):
    with make_log(tmp_path, print_every=3) as log:
        for iteration in range(4):
            log.step(iteration, 1e-3, VALUES * iteration, [0])
        log.settle()
        state = log.state()
    with make_log(tmp_path, 4, state, print_every=3) as log:
        for iteration in (4, 5):
            log.step(iteration, 1e-3, VALUES * iteration, [0])
    assert [row[:5] for row in rows_of(tmp_path)] == [
        ["3", "0.001", "1.000000", "2.000000", "3.000"],
        ["6", "0.001", "4.000000", "8.000000", "12.000"],
    ]


@pytest.mark.parametrize(("unscored", "kept"), [(False, ["1", "2", "2"]), (True, ["1", "2"])])
def test_rows_that_the_interruption_undid_are_removed(tmp_path, unscored, kept):
    with make_log(tmp_path) as log:
        for iteration in range(4):
            log.step(iteration, 1e-3, VALUES, [0])
            if iteration == 1:
                log.scores(2, result(), np.zeros((2, 2, 3), np.uint8))
    make_log(tmp_path, 2, {"sums": [0, 0, 0], "count": 0, "unscored": unscored}).__exit__()
    assert [row[0] for row in rows_of(tmp_path)] == kept


def test_a_loss_that_is_not_finite_names_iteration_and_images(tmp_path):
    with make_log(tmp_path, print_every=5, image_path="image {}".format) as log:
        log.step(0, 1e-3, VALUES, [3])
        log.step(1, 1e-3, VALUES / 0, [4, 7])
        with pytest.raises(InputError, match="not finite at iteration 1.*image 4 image 7"):
            log.settle()


def test_rows_that_are_damaged_are_ignored(tmp_path):
    good = "1,1e-05,2.500000,3.500000,9.000,,0.5000"
    bad = ["²,1,1,1,1,,1", "2,x,1,1,1,,1", "2,1", "3,1,1,1,1,,\0x", '2,"1', "\udcff,,,,,,"]
    text = "\r\n".join([",".join(COLUMNS), *bad, good, ""])
    (tmp_path / "log.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert [row["iteration"] for row in read_rows(tmp_path / "log.csv")] == [1]
    make_log(tmp_path, 5).__exit__()
    assert rows_of(tmp_path) == [good.split(",")]
    draw_curves(tmp_path)
    assert (tmp_path / "curves.png").stat().st_size > 1000


def refuse(*_args, **_settings):
    raise OSError(errno.ENOSPC, "No space left on device")


class FullBoard:
    """TensorBoard's writer on a full disk."""

    add_scalar = add_image = close = refuse


@pytest.mark.parametrize(
    "write",
    [
        lambda log: log.step(0, 1e-3, VALUES, [0]),
        lambda log: log.scores(1, result(), np.zeros((2, 2, 3), np.uint8)),
    ],
)
def test_a_full_disk_is_one_line(tmp_path, write):
    with (
        pytest.raises(InputError, match=r"can't be written \(No space left on device\)") as caught,
        make_log(tmp_path) as log,
    ):
        log.board = FullBoard()
        write(log)
    assert str(tmp_path) in str(caught.value)


def test_a_table_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    path.write_text(f"{','.join(COLUMNS)}\n1,1,1,1,1,,1\n")
    before = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(InputError, match="No space"):
        make_log(tmp_path, 1)
    assert [found.name for found in tmp_path.iterdir()] == ["log.csv"]
    assert path.read_bytes() == before
