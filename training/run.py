"""A training run: what it is made of, and one step of it."""

import random
import sys
from argparse import Namespace
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from data.config import MEANS
from data.transforms import to_input
from layers.modules import MultiBoxLoss
from layers.modules.multibox_loss import matched_priors
from utils.augmentations import SSDAugmentation
from utils.errors import InputError, printable
from utils.system import choose_precision
from weights.checkpoint import CheckpointInfo, save_checkpoint

from . import run_state
from .batch_norm import lacks_statistics, start_batch_norm
from .check import check_pictures
from .crops import pretrain_base
from .datasets import training_pictures
from .distributed import sum_over_ranks
from .log import draw_curves
from .low_resolution import priors_at
from .network import Heads, averaged, bring_to, build_network, build_optimizer, freeze_base
from .samples import InMemory, InputSize, MatchedBatch, NoAugmentation, RunBatches, Subset, TrainingSamples
from .schedule import learning_rate
from .validation import Validation
from .workers import set_up_worker

PICTURES_TO_MEASURE = 64  # when BatchNorm is put behind a network that was trained; each has thousands of cells


class Run:
    """All that a training run is made of: pictures, network, optimiser, criterion; and one step of it.

    Args:
        args: train.py's command line.
        device: torch device.
        ranks: this process among those of the job.
    """

    def __init__(self, args, device, ranks):
        self.args, self.device, self.ranks = args, device, ranks
        self.folder = _make_folder(args.save_folder)
        self.precision = choose_precision(args.precision, device)
        seed_everything(args.seed)
        if device.type == "cuda":  # all batches have one shape: worth trying which convolutions are fastest
            torch.backends.cudnn.benchmark = True

        self.pictures, class_names, config = training_pictures(
            args.dataset, args.dataset_root, args.train_split, args.classes, args.keep_difficult, args.size
        )
        if not args.skip_check:
            usable = check_pictures(self.pictures, class_names, ranks.say, args.num_workers, name_all=args.check_only)
            self.pictures = Subset(self.pictures, usable)
        if args.check_only:
            raise SystemExit(0)
        if args.cache == "ram":
            self.pictures = InMemory(self.pictures, args.num_workers)
        self.max_iter = args.max_iter or config.max_iter
        command = " ".join(["train.py", *sys.argv[1:]])
        self.info = CheckpointInfo(config, class_names, args.width, trained_with=command)
        self.validation, self.best = None, -1.0
        if args.val_split and ranks.writes:
            self.validation = Validation(args.dataset, args.dataset_root, args.val_split, self.info, device)

        net = build_network(args, config, len(class_names) + 1, ranks.say)
        self.net, self.memory_format = bring_to(device, net, self.precision, args.width, args.compile)
        self.criterion = MultiBoxLoss(self.net.num_classes, variance=config.variance)

    def resume(self):
        """Make everything ready for the first iteration; returns its number and the log's open sums (or None)."""
        args, net = self.args, self.net
        if self.ranks.writes:
            run_state.remove_unfinished(self.folder)
        path = run_state.find(args.resume, self.folder, self.ranks.say)
        if path is None and args.finetune and lacks_statistics(net):
            self._start_batch_norm()
        if args.crop_passes and path is None:
            with one_line_errors():
                state_file, writes = self.folder / "crops.pth", self.ranks.writes
                pretrain_base(net, self.pictures, args, self.device, state_file, writes=writes)
            net.to(memory_format=self.memory_format)  # crops are learned in float32, and may lie otherwise
        self._train_mode()
        self.average = averaged(net, args.ema)
        self.optimizer = build_optimizer(net, args, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        first, log_state = 0, None
        if path is not None:
            first, log_state, self.best = run_state.load(path, net, self.average, self.optimizer, self.scaler)
            self.ranks.say(f"going on from {path}, iteration {first}")
        self.heads = wrap(Heads(net), args, self.ranks, self.device)
        return (first if args.start_iter is None else args.start_iter), log_state

    def _start_batch_norm(self):
        """Measure what BatchNorm has to know on the run's first pictures, all at its full size."""
        full_size = Namespace(**{**vars(self.args), "low_resolution": None})
        count = max(PICTURES_TO_MEASURE // self.args.batch_size, 1)
        with one_line_errors():
            batches = islice(build_loader(self, full_size, first=0), count)
            start_batch_norm(self.net, (to_input(images.to(self.device)) for images, *_ in batches))

    def _train_mode(self):
        self.net.train()
        freeze_base(self.net, self.args.freeze)

    @property
    def network_to_keep(self):
        """The averaged network where there is one, else the trained one."""
        return self.net if self.average is None else self.average.module

    def batches(self, first):
        """Yields ((images, loc_t, conf_t) on the device, picture indices) of this rank, from iteration `first` on.

        Raises:
            InputError: a picture or annotation can't be read any more.
        """
        with one_line_errors():
            for *batch, indices in build_loader(self, self.args, first):
                yield tuple(tensor.to(self.device, non_blocking=True) for tensor in batch), indices

    def learning_rate(self, iteration):
        args, config = self.args, self.info.config
        return learning_rate(
            iteration,
            base_lr=args.lr,
            max_iter=self.max_iter,
            schedule=args.schedule,
            steps=args.lr_steps or config.lr_steps,
            gamma=args.gamma,
            warmup=args.warmup,
        )

    def step(self, batch, rate):
        """One iteration of this rank's share of a batch.

        Returns ((loss_l, loss_c), matched priors) of the whole batch, tensors on the device; nothing waits for them.
        """
        images, loc_t, conf_t = batch
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
        n = matched_priors(conf_t)
        sums = []
        parts = (tensor.chunk(self.args.accumulate) for tensor in batch)
        for part_images, part_loc_t, part_conf_t in zip(*parts, strict=True):
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                loc, conf = self.heads(to_input(part_images, memory_format=self.memory_format))
            loss_l, loss_c = self.criterion.sums(loc, conf, part_loc_t, part_conf_t)
            self.scaler.scale((loss_l + loss_c) / n).backward()
            sums.append(torch.stack([loss_l.detach(), loss_c.detach()]))
        if self.args.clip_grad:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.args.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.net)
        losses = torch.stack(sums).sum(dim=0) / (n * self.ranks.world)  # n is the mean over the ranks
        loss_l, loss_c, positives = sum_over_ranks(torch.cat([losses, (conf_t > 0).sum()[None]]))
        return (loss_l, loss_c), positives

    def validate(self, iteration, log):
        """Score the network on the validation split, if there is one, and keep it where it is the best so far.

        The state is saved before and after: scoring may take long, and a picture of the split may be unreadable.

        Raises:
            InputError: a picture of the split can't be read.
        """
        if self.validation is None:
            return
        self.save(iteration, log, unscored=True)
        net = self.network_to_keep
        try:
            result = self.validation.score(net)
        except InputError as error:
            raise InputError(f"{error}; the run is saved, go on with --resume auto") from error
        log.scores(iteration, result)
        log.pictures(iteration, self.validation.grid(net))
        if result.mean_ap_11 > self.best:
            self.best = result.mean_ap_11
            info = replace(self.info, mAP=round(self.best, 4), mAP_on=self.validation.pictures.title)
            save_for_use(self.folder / "best.pth", net, info)
        self.save(iteration, log)

    def save(self, iteration, log, unscored=False):
        """Write the state of the run; `unscored`: the validation that is due at this iteration hasn't been done."""
        open_sums = {"iteration": iteration, "unscored": unscored, **log.state()}
        if self.ranks.writes:
            run_state.save(self, iteration, open_sums)

    def finish(self):
        """Write the network for use, and the curves."""
        args = self.args
        target = self.folder / f"ssd{args.size}_w{round(args.width * 100):03d}_final.pth"
        save_for_use(target, self.network_to_keep, self.info)
        draw_curves(self.folder)
        curves = self.folder / "curves.png"
        print(printable(f"trained {self.max_iter} iterations; the network is in {target}, curves in {curves}"))


@contextmanager
def one_line_errors():
    """Within it an InputError of a loader's worker is one line again; torch hands it on with the worker's traceback."""
    try:
        yield
    except InputError as error:
        # What was raised stands at the traceback's end; an error of this process has none, and is taken whole.
        message = str(error).rpartition("InputError: ")[2].strip()
        raise InputError(f"{message}; then go on with --resume auto, from the last state that was saved") from error


def seed_everything(seed):
    """Seed the generators that initialise the network; samples have generators of their own."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)  # denormal weights and moments would slow a CPU down many times


def build_loader(run, args, first):
    """The loader of a rank's share of the batches, from iteration `first` to the run's last."""
    sizes = {args.size, args.low_resolution or args.size}
    priors = {size: priors_at(run.net, size).cpu() for size in sizes}
    augmentation = NoAugmentation(args.size)
    if args.augment:
        augmentation = SSDAugmentation(
            args.size,
            MEANS,
            args.max_expand,
            args.channel_shuffle,
            subtract_mean=False,
            min_crop=args.min_crop,
            frame_aspect=args.frame_aspect,
        )
    return torch.utils.data.DataLoader(
        TrainingSamples(run.pictures, augmentation, args.seed, InputSize(args)),
        batch_sampler=RunBatches(first, run.max_iter, args.batch_size, run.ranks.rank, run.ranks.world),
        collate_fn=MatchedBatch(run.criterion, priors),
        num_workers=args.num_workers,
        pin_memory=run.device.type == "cuda",
        prefetch_factor=4 if args.num_workers else None,
        worker_init_fn=set_up_worker,
    )


def wrap(heads, args, ranks, device):
    """Compile and distribute a network, as asked for."""
    if args.compile:
        heads = torch.compile(heads)
    if ranks.world == 1:
        return heads
    return torch.nn.parallel.DistributedDataParallel(
        heads,
        device_ids=[ranks.local] if device.type == "cuda" else None,
        find_unused_parameters=bool(args.low_resolution),  # the coarsest heads sit the first part out
    )


def save_for_use(path, net, info, half=False):
    """Write a network with its BatchNorm folded away."""
    save_checkpoint(path, deepcopy(net).fuse(), replace(info, batch_norm=False), half)


def _make_folder(folder):
    folder = Path(folder)
    try:
        str(folder).encode()
        folder.mkdir(parents=True, exist_ok=True)
    except UnicodeEncodeError as error:
        raise InputError(f"--save_folder {folder}: TensorBoard can't write to it, as it isn't Unicode") from error
    except OSError as error:
        raise InputError(f"--save_folder {folder}: can't be made ({error.strerror})") from error
    return folder
