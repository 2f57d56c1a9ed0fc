"""A run's log where the disk is full or gone: one line, nothing half-written, and nothing left to fail at the end."""

import errno
import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from training import log as module
from training.log import COLUMNS, Log, _open_table, draw_curves
from utils.errors import InputError

HEADING = ",".join(COLUMNS)
FULL = r"can't be written \(No space left on device\): make room there, and go on with --resume auto"


def refuse(*_args, **_settings):
    raise OSError(errno.ENOSPC, "No space left on device")


class FullDisk(io.RawIOBase):
    """A file that takes nothing."""

    def writable(self):
        return True

    write = refuse


class FullBoard:
    """TensorBoard's writer on that disk."""

    add_scalar = add_image = close = refuse


def result():
    """A validation's figures."""
    return type("Result", (), {"mean_ap_11": 0.5, "classes": ()})


@pytest.fixture
def log(tmp_path):
    made = Log(tmp_path, 0, 2, print_every=1, batch_size=1, paths=str, writes=True)
    board, file = made.board, made.file
    yield made
    board.close()
    file.close()


STEPS = {
    "a row": lambda log: log.row(1, lr="1"),
    "an iteration": lambda log: log.step(0, 1e-3, (torch.tensor(1.0), torch.tensor(2.0)), torch.tensor(3), [0]),
    "a validation": lambda log: log.scores(1, result()),
    "pictures": lambda log: log.pictures(1, np.zeros((2, 2, 3), np.uint8)),
    "the end": lambda log: log.close(),
}


@pytest.mark.parametrize("step", ["an iteration", "a validation", "pictures", "the end"])
def test_a_board_that_can_not_be_written(log, tmp_path, step):
    log.board = FullBoard()
    with pytest.raises(InputError, match=FULL) as caught:
        STEPS[step](log)
    assert str(tmp_path) in str(caught.value)
    assert log.file.closed


@pytest.mark.parametrize("step", ["a row", "an iteration", "a validation", "the end"])
def test_a_table_that_can_not_be_written(log, step):
    """It is closed with what it still holds: else Python tries to write that once more when it ends."""
    log.file.close()
    log.file = io.TextIOWrapper(io.BufferedWriter(FullDisk()))
    log.rows = module.csv.writer(log.file)
    log.file.write("what was left")
    with pytest.raises(InputError, match=FULL):
        STEPS[step](log)
    assert log.file.closed


@pytest.mark.parametrize("name", ["SummaryWriter", "_open_table"])
def test_a_folder_that_can_not_be_written(tmp_path, monkeypatch, name):
    monkeypatch.setattr(module, name, refuse)
    with pytest.raises(InputError, match=FULL):
        Log(tmp_path, 0, 2, print_every=1, batch_size=1, paths=str, writes=True)


def test_a_table_that_can_not_be_replaced_stays(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    path.write_text(f"{HEADING}\n1,1,1,1,1,,1\n")
    before = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(OSError, match="No space"):
        _open_table(path, 1)
    assert [found.name for found in tmp_path.iterdir()] == ["log.csv"]
    assert path.read_bytes() == before


def test_curves_that_can_not_be_written_leave_the_old_ones(tmp_path, monkeypatch):
    def half(_figure, path, **_settings):
        path.write_bytes(b"half a picture")
        refuse()

    (tmp_path / "log.csv").write_text(f"{HEADING}\n1,1,1,1,1,,1\n")
    (tmp_path / "curves.png").write_bytes(b"the curves of before")
    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(InputError, match=FULL):
        draw_curves(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "log.csv"]
    assert (tmp_path / "curves.png").read_bytes() == b"the curves of before"
