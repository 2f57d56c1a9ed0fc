"""The log of a run: progress bar, log.csv, TensorBoard, and curves.png at the end."""

import csv
import re
import time
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.errors import InputError, say
from utils.files import whole_file

NUMBER = re.compile(r"|[0-9]{1,15}(\.[0-9]+)?(e[-+]?[0-9]+)?", re.ASCII)  # as written here: without a sign
COLUMNS = ("iteration", "lr", "loss_l", "loss_c", "positives", "mAP", "seconds")


class Log(AbstractContextManager):
    """Losses and speed of a run. Reads values from the device only when it prints.

    Args:
        folder: of the run.
        first, last: iterations, the last one excluded.
        print_every: iterations that a row covers.
        batch_size: over all ranks.
        image_path: function from the index of an image to its path, for the message about a loss that isn't finite.
        is_main: False on all ranks but 0, which write nothing.
        state: the log's own state from the last saved state of the run, or None.

    Raises:
        InputError: it can't be written (a full disk), or a loss is not finite.
    """

    def __init__(self, folder, first, last, print_every, batch_size, image_path, is_main=True, state=None):
        self.folder, self.print_every, self.batch_size = Path(folder), print_every, batch_size
        self.image_path, self.is_main = image_path, is_main
        self.pending = []  # (iteration, values on the device, image indices)
        self.sums, self.count = (list(state["sums"]), state["count"]) if state else ([0.0, 0.0, 0.0], 0)
        self.since, self.timed = time.perf_counter(), 0  # start of the timing, and iterations since then
        self.bar = tqdm(
            total=last, initial=first, unit="it", mininterval=5, dynamic_ncols=True, disable=None if is_main else True
        )
        if is_main:
            with self._writing():
                _keep_rows(self.folder / "log.csv", first, drop_score=bool(state and state["unscored"]))
                self.file = (self.folder / "log.csv").open("a", newline="", encoding="utf-8")
                self.board = SummaryWriter(self.folder / "log", purge_step=first + 1)  # rows are numbered from 1

    def __exit__(self, *_):
        self.bar.close()  # so that an error starts on its own line
        if self.is_main:
            with suppress(OSError):  # an InputError has reported it before
                self.board.close()
                self.file.close()

    def state(self, unscored=False):
        """Return the sums of the row that isn't written yet, so that a resumed run writes the same rows."""
        return {"sums": self.sums, "count": self.count, "unscored": unscored}

    def step(self, iteration, rate, values, indices):
        """Add an iteration: float32 [3] on the device (loss_l, loss_c, matched priors), and image indices [B]."""
        self.pending.append((iteration, values, indices.clone()))  # it may be in shared memory
        self.bar.update()
        self.timed += 1
        if (iteration + 1) % self.print_every == 0:
            self._print(iteration + 1, rate)

    def settle(self):
        """Read the pending values from the device. Raises InputError at the first loss that is not finite."""
        for iteration, values, indices in self.pending:
            if not values.isfinite().all():
                names = " ".join(str(self.image_path(int(index))) for index in indices)
                raise InputError(
                    f"the loss is not finite at iteration {iteration}; lower --lr or look at the images, and resume "
                    f"from the last state that was saved (--resume auto). The images: {names}"
                )
            self.sums = [total + value for total, value in zip(self.sums, values.tolist(), strict=True)]
            self.count += 1
        self.pending = []

    def _print(self, iteration, rate):
        self.settle()
        now = time.perf_counter()
        seconds = (now - self.since) / self.timed
        self.since, self.timed = now, 0
        loss_l, loss_c, positives = (total / self.count for total in self.sums)
        positives /= self.batch_size
        self.sums, self.count = [0.0, 0.0, 0.0], 0
        speed = self.batch_size / seconds
        self._row(iteration, lr=f"{rate:.6g}", loss_l=f"{loss_l:.6f}", loss_c=f"{loss_c:.6f}",
                  positives=f"{positives:.3f}", seconds=f"{seconds:.4f}")  # fmt: skip
        losses = {"loss/loc": loss_l, "loss/conf": loss_c, "positives": positives}
        self._scalars(iteration, {**losses, "lr": rate, "images_per_second": speed})
        self.bar.set_postfix(loc=f"{loss_l:.3f}", conf=f"{loss_c:.3f}", lr=f"{rate:.2g}", images_s=f"{speed:.1f}")

    def scores(self, iteration, result, grid):
        """Write the mAP and AP of each class of a validation (VOCResult), and a grid of images with predictions."""
        self._row(iteration, mAP=f"{result.mean_ap_11:.6f}")
        scored = {f"val_AP/{item.name}": item.ap_11 for item in result.classes if item.objects}
        self._scalars(iteration, {"val/mAP": result.mean_ap_11, **scored})
        with self._writing():
            self.board.add_image("val/predictions", grid, iteration, dataformats="HWC")
        with tqdm.external_write_mode():
            say(f"iteration {iteration}: val mAP {result.mean_ap_11:.4f}")
        self.since, self.timed = time.perf_counter(), 0

    def _row(self, iteration, **values):
        if self.is_main:
            with self._writing():
                csv.writer(self.file).writerow([iteration, *(values.get(name, "") for name in COLUMNS[1:])])
                self.file.flush()

    def _scalars(self, iteration, scalars):
        if self.is_main:
            with self._writing():
                for name, value in scalars.items():
                    self.board.add_scalar(name, value, iteration)

    @contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.folder}: can't be written ({error.strerror or error}); make room there and continue with "
                "--resume auto"
            ) from error


def read_rows(path):
    """Return the complete rows of a log.csv, dictionaries of text by column; a crash may have cut one off."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [cells for line in lines if len(cells := line.split(",")) == len(COLUMNS)]
    rows = [cells for cells in rows if all(map(NUMBER.fullmatch, cells)) and cells[0].isdecimal()]
    return [dict(zip(COLUMNS, cells, strict=True)) for cells in rows]


def _keep_rows(path, first, drop_score):
    """Remove the rows after iteration `first`, and the score at `first` if the validation has to be repeated."""
    rows = read_rows(path) if first and path.exists() else []
    rows = [row for row in rows if int(row["iteration"]) <= first]
    if drop_score:  # the row of a score has no learning rate
        rows = [row for row in rows if int(row["iteration"]) < first or row["lr"]]
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *(row.values() for row in rows)])


def draw_curves(folder):
    """Draw log.csv as curves.png: losses, learning rate, and mAP if there was a validation."""
    rows = read_rows(Path(folder) / "log.csv")
    panels = {"loss": {"loss_l": "localization", "loss_c": "confidence"}, "learning rate": {"lr": None}}
    if any(row["mAP"] for row in rows):
        panels["mAP on the validation split"] = {"mAP": None}
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")  # pyplot needs a display
    axes = figure.subplots(1, len(panels))
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, label in curves.items():
            points = [(int(row["iteration"]), float(row[name])) for row in rows if row[name]]
            marker = "o" if name == "mAP" else None
            axis.plot(*zip(*points, strict=True) if points else ([], []), label=label, linewidth=1, marker=marker)
        axis.set(title=title, xlabel="iteration", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend()
    with whole_file(Path(folder) / "curves.png") as temporary:
        figure.savefig(temporary, dpi=110)
