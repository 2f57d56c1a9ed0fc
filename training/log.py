"""What a run tells of itself: a progress bar, log.csv, TensorBoard, and curves.png at its end."""

import csv
import re
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.errors import InputError

NUMBER = re.compile(r"|[0-9]{1,15}(\.[0-9]+)?(e[-+]?[0-9]+)?|nan")  # as written here: none has a sign
COLUMNS = ("iteration", "lr", "loss_l", "loss_c", "positives", "mAP", "seconds")


class Log:
    """Losses and speed of a run. Looks at the device's numbers only when it prints.

    Args:
        folder: of the run.
        first, last: iterations, the last one not included.
        print_every: iterations that a row sums up.
        batch_size: over all ranks.
        paths: index of a picture -> its path, for the message on a loss that isn't finite.
        writes: False on all ranks but 0.
        scored: whether the network of the first iteration has been validated, if it was to be.
    Raises InputError where it can't be written any more (a full disk), and from then on writes nothing.
    """

    def __init__(self, folder, first, last, *, print_every, batch_size, paths, writes, scored=True):
        self.print_every, self.batch_size, self.paths, self.writes = print_every, batch_size, paths, writes
        self.pending = []  # (iteration, losses on the device, positives on the device, picture indices)
        self.sums = [0.0, 0.0, 0.0]
        self.count = 0
        self.seconds = 0.0
        self.since = time.perf_counter()
        if writes:
            self.bar = tqdm(total=last, initial=first, unit="it", mininterval=5, dynamic_ncols=True)
            with writing(folder):
                self.board = SummaryWriter(Path(folder) / "log", purge_step=first)
                self.file, self.rows = _open_table(Path(folder) / "log.csv", first, scored)
            self.folder = folder

    def state(self):
        """The sums of the row that isn't written yet, so that a resumed run writes the same rows."""
        self._settle()
        return {"sums": self.sums, "count": self.count}

    def restore(self, state):
        self.sums, self.count = list(state["sums"]), state["count"]

    def step(self, iteration, rate, losses, positives, indices):
        """Take in an iteration: losses (loc, conf) and positives as tensors on the device, picture indices [B]."""
        self.pending.append((iteration, torch.stack(losses), positives, indices))
        if self.writes:
            self.bar.update()
        if (iteration + 1) % self.print_every == 0:
            self._print(iteration, rate)

    def _settle(self):
        """Fetch what is pending; raises InputError at the first loss that isn't finite."""
        for iteration, losses, positives, indices in self.pending:
            values = [*losses.tolist(), float(positives)]
            if not all(map(torch.isfinite, torch.tensor(values))):
                names = " ".join(str(self.paths(int(index))) for index in indices)
                raise InputError(
                    f"the loss is not finite at iteration {iteration}: lower --lr or look at its pictures, {names}; "
                    "the states saved before are good"
                )
            self.sums = [total + value for total, value in zip(self.sums, values, strict=True)]
            self.count += 1
        self.pending = []

    def _print(self, iteration, rate):
        self._settle()
        now = time.perf_counter()
        seconds, self.since = (now - self.since) / self.print_every, now
        loss_l, loss_c, positives = (total / self.count for total in self.sums)
        self.sums, self.count = [0.0, 0.0, 0.0], 0
        if not self.writes:
            return
        positives /= self.batch_size
        self.row(iteration + 1, lr=f"{rate:.6g}", loss_l=f"{loss_l:.6f}", loss_c=f"{loss_c:.6f}",
                 positives=f"{positives:.3f}", seconds=f"{seconds:.4f}")  # fmt: skip
        speed = self.batch_size / seconds
        scalars = {"loss/loc": loss_l, "loss/conf": loss_c, "lr": rate, "positives": positives, "pictures_s": speed}
        with self._writing():
            for name, value in scalars.items():
                self.board.add_scalar(name, value, iteration + 1)
        self.bar.set_postfix(loc=f"{loss_l:.3f}", conf=f"{loss_c:.3f}", lr=f"{rate:.2g}", pictures_s=f"{speed:.1f}")

    def row(self, iteration, **values):
        """Write a row of log.csv."""
        with self._writing():
            self.rows.writerow([iteration, *(values.get(name, "") for name in COLUMNS[1:])])
            self.file.flush()

    @contextmanager
    def _writing(self):
        """As `writing`; what can't be written now isn't tried again when the process ends, with a traceback."""
        try:
            with writing(self.folder):
                yield
        except InputError:
            with suppress(OSError):
                self.file.close()
            raise

    def scores(self, iteration, result):
        """Write validation's mAP (11 points), and the AP of each class to TensorBoard."""
        self.row(iteration, mAP=f"{result.mean_ap_11:.6f}")
        with self._writing():
            self.board.add_scalar("val/mAP", result.mean_ap_11, iteration)
            for scored in result.classes:
                if scored.objects:
                    self.board.add_scalar(f"val_AP/{scored.name}", scored.ap_11, iteration)
        self.bar.write(f"iteration {iteration}: val mAP {result.mean_ap_11:.4f}")
        self.since = time.perf_counter()

    def pictures(self, iteration, grid):
        """Show pictures with predictions in TensorBoard: uint8 RGB [H, W, 3]."""
        with self._writing():
            self.board.add_image("val/predictions", grid, iteration, dataformats="HWC")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.writes:
            self.bar.close()  # an error begins on a line of its own

    def close(self):
        if self.writes:
            self.bar.close()
            with self._writing():
                self.board.close()
                self.file.close()


@contextmanager
def writing(folder):
    """Within it an OSError is an InputError that names the run's folder."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder} can't be written ({error.strerror or error}): make room there, and go on with --resume auto; "
            "the states saved before are good"
        ) from error


def read_rows(path):
    """The rows of a log.csv that are whole and hold nothing but numbers (and gaps); others are passed over."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        lines = [line.rstrip("\r\n").split(",") for line in file]
    return [row for row in lines if len(row) == len(COLUMNS) and all(map(NUMBER.fullmatch, row))]


def _open_table(path, first, scored=True):
    """log.csv with the rows up to an iteration; later ones belong to what the interruption undid.

    scored: False where the interruption also undid the score of that very iteration.
    """
    kept = []
    if first and path.exists():
        rows = [row for row in read_rows(path) if row[0].isdigit()]
        undone = None if scored else (str(first), "")  # a score's row has no learning rate
        kept = [row for row in rows if int(row[0]) <= first and (row[0], row[1]) != undone]
    unfinished = path.with_suffix(".csv.new")
    try:
        with unfinished.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *kept])
        unfinished.replace(path)  # whoever kills the run now finds the old table or the new one
    finally:
        unfinished.unlink(missing_ok=True)
    file = path.open("a", newline="")
    return file, csv.writer(file)


def draw_curves(folder):
    """Draw log.csv as curves.png: losses, learning rate, and mAP where there was a validation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [dict(zip(COLUMNS, row, strict=True)) for row in read_rows(Path(folder) / "log.csv")]
    trained = [row for row in rows if row["loss_l"]]
    scored = [row for row in rows if row["mAP"]]
    figure, axes = plt.subplots(1, 3 if scored else 2, figsize=(15 if scored else 10, 4), layout="constrained")
    iterations = [int(row["iteration"]) for row in trained]
    for name, label in (("loss_l", "localisation"), ("loss_c", "confidence")):
        axes[0].plot(iterations, [float(row[name]) for row in trained], label=label, linewidth=1)
    axes[0].set(title="loss", xlabel="iteration", ylim=(0, None))
    axes[0].legend()
    axes[1].plot(iterations, [float(row["lr"]) for row in trained])
    axes[1].set(title="learning rate", xlabel="iteration", ylim=(0, None))
    if scored:
        axes[2].plot([int(row["iteration"]) for row in scored], [float(row["mAP"]) for row in scored], marker="o")
        axes[2].set(title="mAP on val", xlabel="iteration", ylim=(0, None))
    for axis in axes:
        axis.grid(alpha=0.3)
    unfinished = Path(folder) / ".curves.png.part"
    try:
        with writing(folder):
            figure.savefig(unfinished, dpi=110, format="png")
            unfinished.replace(Path(folder) / "curves.png")
    finally:
        unfinished.unlink(missing_ok=True)
    plt.close(figure)
