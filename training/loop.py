"""The training loop: one place that reads from top to bottom."""

import csv
import sys
import time
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data.augmentation import SSDAugmentation
from data.config import MEANS
from data.errors import InputError
from data.transforms import to_input
from layers.modules import MultiBoxLoss
from ssd import build_ssd, plain_state_dict
from weights.checkpoint import CheckpointInfo, read_file, save_checkpoint

from .crops import pretrain_base
from .datasets import training_pictures
from .low_resolution import priors_at
from .run_state import load_state, newest_state, save_state
from .samples import RunBatches, TrainingSamples, collate
from .schedule import learning_rate


def train(args):
    """Run train.py's command line `args` from the first (or the resumed) iteration to the last."""
    folder = Path(args.save_folder)
    folder.mkdir(parents=True, exist_ok=True)
    device = choose_device(args.device, args.cuda)
    precision = choose_precision(args.precision, device)
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)

    pictures, class_names, config = training_pictures(
        args.dataset, args.dataset_root, args.train_split, args.classes, args.keep_difficult, args.size
    )
    from_scratch = args.basenet == "none"
    net = build_ssd("train", num_classes=len(class_names) + 1, config=config, width=args.width, batch_norm=from_scratch)
    net.to(device, memory_format=torch.channels_last)
    start_from(net, args, pictures, device)
    max_iter = args.max_iter or config.max_iter

    optimizer = build_optimizer(net, args)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    first = resume(args, folder, net, optimizer, scaler)
    criterion = MultiBoxLoss(net.num_classes, variance=config.variance)
    priors = {size: priors_at(net, size) for size in {args.low_resolution or args.size, args.size}}

    def size_at(position):
        return args.low_resolution if position < args.low_resolution_iter * args.batch_size else args.size

    augmentation = SSDAugmentation(
        args.size, MEANS, args.max_expand, args.channel_shuffle, subtract_mean=False, rng=object()
    )
    loader = torch.utils.data.DataLoader(
        TrainingSamples(pictures, augmentation, args.seed, size_at),
        batch_sampler=RunBatches(first, max_iter, args.batch_size),
        collate_fn=collate,
        num_workers=args.num_workers,
        pin_memory=device.type == "cuda",
    )
    log = Log(folder, first, max_iter, args.print_every, args.batch_size)
    net.train()
    freeze_base(net, args.freeze)
    for iteration, (images, targets, indices) in enumerate(loader, start=first):
        rate = learning_rate(
            iteration,
            base_lr=args.lr,
            max_iter=max_iter,
            schedule=args.schedule,
            steps=config.lr_steps,
            gamma=args.gamma,
            warmup=args.warmup,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate

        x = to_input(images.to(device, non_blocking=True))
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            loc, conf = net.raw(x)
        loss_l, loss_c = criterion((loc, conf, priors[images.shape[1]]), targets)
        scaler.scale(loss_l + loss_c).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

        log.step(iteration, rate, loss_l.detach(), loss_c.detach(), [pictures.image_path(i) for i in indices])
        if (iteration + 1) % args.save_every == 0 or iteration + 1 == max_iter:
            save_state(folder, iteration + 1, net, optimizer, scaler, args.keep)
    log.close()

    info = CheckpointInfo(
        config, class_names, args.width, from_scratch, trained_with=" ".join(["train.py", *sys.argv[1:]])
    )
    target = folder / f"ssd{args.size}_w{round(args.width * 100):03d}_final.pth"
    save_checkpoint(target, net, info)
    print(f"trained {max_iter} iterations; the network is in {target}")


def choose_device(name, cuda):
    """The device of --device and the lineage's --cuda.

    Raises:
        InputError: a device is insisted on that this machine lacks.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(name for name in ("cuda", "mps", "cpu") if available[name] and (cuda or name != "cuda"))
    if not available[name]:
        raise InputError(f"--device {name}: this machine (or this PyTorch) has none; use --device cpu")
    return torch.device(name)


def choose_precision(name, device):
    """The dtype of --precision; auto: bfloat16 where the device computes faster in it."""
    if name != "auto":
        return getattr(torch, name)
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_fast_bfloat16_cpu(device)
    return torch.bfloat16 if fast else torch.float32


def has_fast_bfloat16_cpu(device):
    """Whether this is a CPU with bfloat16 instructions; without them the emulation is many times slower."""
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def start_from(net, args, pictures, device):
    """Initialise the base (and more, with --finetune) as the command line says, and say what was done."""
    if args.finetune:
        load_fitting(net, args.finetune)
    elif args.basenet == "none":
        print("base: from scratch, with BatchNorm")
    else:
        from weights.catalogue import resolve

        path = resolve(args.basenet)
        net.vgg.load_state_dict(read_file(path))
        print(f"base: {path}; extra layers and heads are initialised")
    if args.crop_passes and not args.finetune:
        pretrain_base(
            net,
            pictures,
            passes=args.crop_passes,
            size=args.crop_size,
            batch_size=64,
            lr=args.lr,
            seed=args.seed,
            device=device,
            num_workers=args.num_workers,
            state_file=Path(args.save_folder) / "crops.pth",
        )


def load_fitting(net, path):
    """Load what fits from a checkpoint or a run's state, and say what doesn't."""
    contents = read_file(path)
    state = plain_state_dict(contents.get("model", contents))
    own = net.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    net.load_state_dict(fitting, strict=False)
    fresh = sorted(own.keys() - fitting.keys())
    print(f"loaded {len(fitting)} tensors of {path}; initialised anew: {', '.join(fresh) or 'nothing'}")


def freeze_base(net, layers):
    """Keep the base's first layers as they are, BatchNorm statistics included."""
    for layer in net.vgg[:layers]:
        layer.eval().requires_grad_(False)


def build_optimizer(net, args):
    """SGD as in the paper, or AdamW."""
    if args.optimizer == "sgd":
        return torch.optim.SGD(net.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    decayed = [p for p in net.parameters() if p.dim() > 1]
    plain = [p for p in net.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, args.lr)


def resume(args, folder, net, optimizer, scaler):
    """Load the state of --resume, if any; the iteration to begin with."""
    path = newest_state(folder) if args.resume == "auto" else args.resume
    if path is None:
        return args.start_iter or 0
    iteration = load_state(path, net, optimizer, scaler)
    print(f"going on from {path}, iteration {iteration}")
    return iteration if args.start_iter is None else args.start_iter


class Log:
    """Losses and speed of a run: a progress bar, TensorBoard, and log.csv. Looks at the losses only when it prints."""

    def __init__(self, folder, first, max_iter, print_every, batch_size):
        self.print_every, self.batch_size = print_every, batch_size
        self.bar = tqdm(total=max_iter, initial=first, unit="it", mininterval=5)
        self.board = SummaryWriter(folder / "log", purge_step=first)
        path = folder / "log.csv"
        kept = []
        if first and path.exists():
            kept = [row for row in csv.reader(path.open()) if row and row[0].isdigit() and int(row[0]) <= first]
        self.file = path.open("w", newline="")
        self.rows = csv.writer(self.file)
        self.rows.writerow(("iteration", "lr", "loss_l", "loss_c", "seconds"))
        self.rows.writerows(kept)
        self.sums, self.count, self.since = torch.zeros(2), 0, time.perf_counter()

    def step(self, iteration, rate, loss_l, loss_c, paths):
        """Take in the losses of one iteration (tensors on the device)."""
        self.sums = self.sums.to(loss_l.device) + torch.stack([loss_l, loss_c])
        self.count += 1
        self.bar.update()
        if (iteration + 1) % self.print_every:
            return
        mean_l, mean_c = (self.sums / self.count).tolist()
        if not torch.isfinite(self.sums).all():
            names = " ".join(str(path) for path in paths)
            raise InputError(f"the loss is not finite at iteration {iteration}; lower --lr; last pictures: {names}")
        seconds = (time.perf_counter() - self.since) / self.count
        self.rows.writerow((iteration + 1, f"{rate:.6g}", f"{mean_l:.6f}", f"{mean_c:.6f}", f"{seconds:.3f}"))
        self.file.flush()
        for name, value in (("loss/loc", mean_l), ("loss/conf", mean_c), ("lr", rate), ("seconds", seconds)):
            self.board.add_scalar(name, value, iteration + 1)
        self.bar.set_postfix(loc=f"{mean_l:.3f}", conf=f"{mean_c:.3f}", pictures_s=f"{self.batch_size / seconds:.1f}")
        self.sums, self.count, self.since = torch.zeros(2), 0, time.perf_counter()

    def close(self):
        self.bar.close()
        self.board.close()
        self.file.close()
