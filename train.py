"""Train SSD.

SSD300 on VOC2007 and VOC2012 trainval from the reduced VGG16, as in the paper:

    python train.py --dataset VOC

Fine-tune a trained network on your own boxes, in a folder in VOC format:

    python train.py --dataset path/to/folder --val_split val --finetune weights/ssd300_mAP_77.43_v2.pth \\
        --max_iter 4000 --save_folder runs/mine

From scratch, with BatchNorm and half of the channels:

    python train.py --dataset path/to/folder --val_split val --basenet none --width 0.5 --optimizer adamw --lr 0.002 \\
        --schedule cosine --ema 0.998 --max_iter 8000 --save_folder runs/mine

Resume an interrupted run with the same command and `--resume auto`. On several GPUs:

    torchrun --nproc_per_node=4 train.py --dataset VOC
"""

import argparse
import signal
import sys
from dataclasses import asdict, replace

from utils.errors import InputError, count, exit_on_input_error
from utils.flags import Parser, boolean, number

FLAG = argparse.BooleanOptionalAction
# For the paper's 120,000 iterations; shorter runs use the same fractions of their length.
ITERATIONS, WARMUP, SAVE_PERIOD = 120_000, 500, 5_000


def get_args_parser():
    parser = Parser(__doc__)
    at_least_0, at_least_1 = number(int, 0), number(int, 1)

    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="VOC", help="VOC, COCO, ILSVRC, or a folder in VOC format")
    add("--dataset_root", help="folder of the data (default: ~/data/VOCdevkit, ~/data/coco, ~/data/ILSVRC)")
    help_text = "default: VOC 2007_trainval 2012_trainval; COCO train2017; ILSVRC train val1; a folder's train"
    add("--train_split", nargs="+", metavar="SPLIT", help=help_text)
    add("--val_split", metavar="SPLIT", help="to validate on, such as 2007_test or val")
    help_text = "class names (default: the data set's; for a folder, all annotated)"
    add("--classes", nargs="+", metavar="NAME", help=help_text)
    add("--balance", action=FLAG, default=False, help="draw images with rare classes more often")
    add("--keep_difficult", action=FLAG, default=False, help="also train on difficult objects")
    add("--augment", action=FLAG, default=True, help="augment the images; off: only resize them")
    add("--max_expand", type=number(float, 1, 100), default=4.0, help="maximum side ratio of an expanded image")
    add("--min_crop", type=number(float, maximum=1, above=0), default=0.3, help="minimum side of a crop, as a fraction")
    add("--channel_shuffle", type=number(float, 0, 1), default=0.5, help="probability of permuted color channels")
    help_text = "extend half of the crops to this width / height, for videos (16:9 is 1.78)"
    add("--frame_aspect", type=number(float, 0.1, 10), metavar="RATIO", help=help_text)
    add("--num_workers", type=at_least_0, default=4, help="processes that load and augment images")
    check = parser.add_mutually_exclusive_group()
    check.add_argument("--check_only", action="store_true", help="check the data, print what it contains, and exit")
    check.add_argument("--skip_check", action="store_true", help="train without checking the data")

    add = parser.add_argument_group("network").add_argument
    add("--size", type=int, choices=(300, 512), help="side of the input (default: --finetune's, else 300)")
    add("--width", type=number(float, maximum=4, above=0), help="channel factor (default: --finetune's, else 1)")
    add("--basenet", help="pre-trained base; none: from scratch with BatchNorm (default: vgg16_reducedfc.pth)")
    add("--finetune", metavar="FILE", help="checkpoint to start from; layers that don't fit start from scratch")
    add("--freeze", type=at_least_0, default=0, metavar="N", help="freeze the base's first N layers (conv1, conv2: 10)")
    add("--crop_passes", type=at_least_0, default=0, help="pre-train the base on object crops for this many passes")
    add("--crop_size", type=number(int, 16, 512), default=96, help="side of these crops in pixels")

    add = parser.add_argument_group("optimization").add_argument
    add("--batch_size", type=at_least_1, default=32, help="images per iteration, over all processes")
    add("--max_iter", type=at_least_1, help="iterations (default: the configuration's, for VOC 120,000)")
    add("--optimizer", choices=("sgd", "adamw"), default="sgd", help="sgd: as in the paper")
    rate = number(float, maximum=1000, above=0)
    add("--lr", "--learning-rate", type=rate, default=1e-3, help="maximum learning rate")
    add("--momentum", type=number(float, 0, below=1), default=0.9, help="momentum of SGD")
    add("--weight_decay", type=number(float, 0, 1000), default=5e-4, help="weight decay")
    add("--gamma", type=number(float, maximum=1, above=0), default=0.1, help="factor of the learning rate at each step")
    help_text = "iterations at which --gamma applies (default: the configuration's, scaled by the run's length)"
    add("--lr_steps", type=at_least_0, nargs="+", metavar="N", help=help_text)
    add("--caffe_bias", action=FLAG, default=False, help="biases: twice the rate, no decay (the paper's code)")
    add("--ema", type=number(float, 0, below=1), default=0.0, metavar="DECAY", help="average the weights; 0: off")
    add("--clip_grad", type=number(float, 0), default=0.0, metavar="NORM", help="maximum norm of the gradient; 0: off")
    add("--accumulate", type=at_least_1, default=1, metavar="K", help="compute a batch in K parts, to save memory")
    add("--schedule", choices=("step", "cosine"), default="step", help="learning-rate schedule")
    add("--warmup", type=at_least_0, help="iterations of linear warm-up; 0: off (default: max_iter / 240, at most 500)")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="random seed of the initial weights and the samples")

    add = parser.add_argument_group("run").add_argument
    add("--cuda", type=boolean, default=True, help="use CUDA if it is available")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    precisions = ("auto", "float32", "bfloat16", "float16")
    add("--precision", default="auto", choices=precisions, help="precision of the network")
    add("--compile", action=FLAG, default=False, help="compile the network (torch.compile)")
    add("--resume", metavar="FILE", help="state to resume from; auto: the newest in --save_folder")
    add("--start_iter", type=at_least_0, help="iteration to resume at (default: the state's)")
    add("--save_folder", default="weights/", help="folder for states, checkpoints and the log")
    add("--save_every", type=at_least_1, help="iterations between states (default: max_iter / 24, at most 5,000)")
    add("--eval_every", type=at_least_1, help="iterations between validations (default: as --save_every)")
    add("--keep", type=at_least_1, default=3, help="number of states to keep")
    add("--print_every", type=at_least_1, default=10, help="iterations between rows of the log")
    add("--visdom", type=boolean, default=False, help="removed; TensorBoard shows the curves")
    return parser


def main(args):
    """Train as the flags say, from the first (or the resumed) iteration to the last.

    Raises InputError if data, weights or flags are invalid, a loss is not finite, or a file can't be written.
    """
    if args.finetune and args.basenet:
        raise InputError("--finetune contains a base network; leave out --basenet")

    import torch

    from data.config import MEANS, get_config
    from layers.modules import MultiBoxLoss
    from metrics.ground_truth import open_evaluation_set
    from ssd import build_ssd
    from training import distributed, network, samples, state
    from training.check import check_images, check_readable
    from training.engine import Trainer, prediction_grid, save_for_use, validate
    from training.log import Log, draw_curves
    from training.optimizer import build_optimizer, learning_rate
    from training.pretrain import ObjectCrops, pretrain_base
    from utils.augmentations import SSDAugmentation
    from utils.system import StopSignals, choose_precision, device_name, keep_freed_memory, report_out_of_memory
    from weights.checkpoint import CheckpointInfo, is_run_state, out_of_range

    keep_freed_memory()
    torch.set_flush_denormal(True)  # denormal weights and moments make a CPU many times slower
    torch.manual_seed(args.seed)
    remedy = f"use a smaller --batch_size (now {args.batch_size}) or more parts (--accumulate)"
    with (
        report_out_of_memory(remedy),
        distributed.join(device_name(args.device, cuda=args.cuda)) as (ranks, device),
        state.open_folder(args.save_folder, ranks, lock=not args.check_only) as folder,
    ):
        say = ranks.say
        if args.visdom:
            say(f"--visdom is removed; see the curves with: tensorboard --logdir {folder / 'log'}")
        precision = choose_precision(args.precision, device)
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all batches have one shape

        # The data, and the weights to start from
        images, class_names = samples.open_images(
            args.dataset, args.dataset_root, args.train_split, args.classes, args.keep_difficult
        )
        if args.check_only:
            check_images(images, class_names, ranks, args.num_workers, name_all=True)
            return
        val_images = None
        if args.val_split and ranks.is_main:
            val_images = open_evaluation_set(args.dataset, args.dataset_root, args.val_split)
            _, notes = val_images.ground_truth(class_names)  # raises InputError now if it has none of the classes
            for note in (*val_images.notes, *notes):
                say(f"note: validation: {note}")
            if not (args.skip_check or args.resume):
                check_readable(val_images.paths, args.num_workers)
        path, resumed = state.find_state(args.resume, folder, say)
        if len(set(ranks.gather([path and path.name]))) > 1:
            raise InputError(f"{folder}: the processes found different states; all machines must share this folder")
        weights = start = None
        if path is not None:
            weights, start = network.read_start(path, resumed)
            if not is_run_state(resumed):
                say(f"{path}: contains only weights, not the state of a run; starting from them")
                resumed = None
        elif args.finetune:
            weights, start = network.read_start(args.finetune)

        # The network
        size = args.size or (start.config.min_dim if start else 300)
        width = args.width or (start.width if start else 1.0)
        if width != 1 and not start and not args.basenet:
            raise InputError(f"--width {width:g}: the VGG16 base has width 1; start from --basenet none or --finetune")
        batch_norm = start.batch_norm if start else args.basenet == "none"
        config = get_config(args.dataset, size)
        if start:
            network.check_size(start, size, width)
            # The priors are those of the weights, the schedule is that of the data set.
            config = replace(start.config, lr_steps=config.lr_steps, max_iter=config.max_iter)
        check_batch(args.batch_size, args.accumulate, ranks.world, batch_norm)
        net = build_ssd("train", config=config, num_classes=len(class_names) + 1, width=width, batch_norm=batch_norm)
        run = state.identify_run(args.dataset, images, class_names, net, args.optimizer, args.seed, args.batch_size)
        state.check_folder(folder, args.resume, resumed is not None, run)
        if resumed is None:
            if start:
                network.load_fitting(net, weights, start, class_names, say)
            elif batch_norm:
                say("base network, extra layers and heads initialized from scratch, with BatchNorm")
            else:
                network.load_base(net, args.basenet or network.BASE, say)
        net.to(device, memory_format=torch.channels_last)

        # The images that can be used
        usable = state.usable_images(resumed, len(images))
        if usable is None:
            usable = list(range(len(images)))
            if not args.skip_check:
                usable = check_images(images, class_names, ranks, args.num_workers)
        images.ids = [images.ids[index] for index in usable]

        # The schedule: the paper's, scaled to the length of the run
        max_iter = args.max_iter or config.max_iter
        period = max(1, min(SAVE_PERIOD, max_iter * SAVE_PERIOD // ITERATIONS))
        save_every = args.save_every or period
        eval_every = args.eval_every or save_every
        warmup = min(WARMUP, max_iter * WARMUP // ITERATIONS) if args.warmup is None else args.warmup
        lr_steps = args.lr_steps or [round(step * max_iter / config.max_iter) for step in config.lr_steps]

        # The trainer, at the first or the resumed iteration
        if ranks.is_main:
            state.write_identity(folder, run)
        if args.crop_passes and resumed is None:
            crops = ObjectCrops(images, args.crop_size, args.seed)
            pretrain_base(net, crops, ranks, folder / "crops.pth", args.crop_passes, args.lr, args.num_workers)
        net.train()
        network.freeze_base(net, args.freeze)
        criterion = MultiBoxLoss(net.num_classes, variance=config.variance)
        optimizer = build_optimizer(net, args.optimizer, args.lr, args.momentum, args.weight_decay, args.caffe_bias)
        trainer = Trainer(
            net, criterion, optimizer, ranks, precision, args.accumulate, args.clip_grad, args.ema, args.compile
        )
        first, log_state, best = 0, None, -1.0
        if resumed is not None:
            first, log_state, best = state.restore(path, resumed, trainer, run)
            say(f"resuming from {path} at iteration {first}")
            if not (folder / "best.pth").exists():  # the state is from another folder
                best = -1.0
            if args.val_split and first == max_iter and log_state:
                log_state["unscored"] = True  # the final checkpoint contains mAP and threshold
        if args.start_iter is not None:
            first, log_state = args.start_iter, None
        info = CheckpointInfo(config, class_names, width, trained_with=" ".join(["train.py", *sys.argv[1:]]))
        final = folder / f"ssd{size}_w{round(width * 100):03d}_final.pth"
        # A final file that is older than the state is from a shorter run, which this one continues.
        complete = path and final.is_file() and final.stat().st_mtime_ns >= path.stat().st_mtime_ns
        if first > max_iter or (first == max_iter and complete):
            say(f"nothing to do: the run is at iteration {first}, and --max_iter is {max_iter}")
            return

        # The loader: order and augmentation of the samples depend only on the seed and the iteration
        augmentation = samples.NoAugmentation(size)
        if args.augment:
            augmentation = SSDAugmentation(
                size,
                MEANS,
                args.max_expand,
                args.channel_shuffle,
                subtract_mean=False,
                min_crop=args.min_crop,
                frame_aspect=args.frame_aspect,
            )
        chances = samples.balancing_weights(images) if args.balance else None
        samples.check_shared_memory(args.num_workers, args.batch_size // ranks.world, net)
        loader = samples.build_loader(
            samples.TrainingSamples(images, augmentation, args.seed, chances),
            samples.run_batches(first, max_iter, args.batch_size, ranks),
            samples.MatchedBatch(criterion, net.priors.cpu()),
            args.num_workers,
            device,
        )
        log = Log(
            folder, first, max_iter, args.print_every, args.batch_size, images.image_path, ranks.is_main, log_state
        )

        def save(done, unscored=False):
            """Write the state after `done` iterations; `unscored`: it is not validated yet."""
            log.settle()
            if key := out_of_range(net.state_dict()):
                raise InputError(
                    f"{key} is not finite, or overflows float16, after iteration {done}; lower --lr and continue from "
                    "the last state that was saved (--resume auto)"
                )
            if ranks.is_main:
                contents = {"run": run, "config": asdict(config), "usable": usable, "best": best}
                contents |= {"log": log.state(unscored), **trainer.state_dict()}
                state.save_state(folder, done, contents, args.keep)

        def score(done):
            """Validate, save the network if it is the best, and save the state again with its score."""
            nonlocal best, info
            if ranks.is_main:
                result, threshold = validate(trainer.result, info, val_images, device)
                log.scores(done, result, prediction_grid(trainer.result, info, val_images, device))
                mean_ap = round(result.mean_ap_11, 4)
                title = f"{val_images.title} at IoU 0.5" if val_images.coco else val_images.title
                info = replace(info, mAP=mean_ap, mAP_on=title, threshold=threshold)
                if result.mean_ap_11 > best:
                    best = result.mean_ap_11
                    save_for_use(folder / "best.pth", trainer.result, info)
            ranks.wait()
            save(done)

        # The loop
        with StopSignals() as stop, log:
            if log_state and log_state["unscored"] and args.val_split:
                score(first)
            for iteration, (batch, indices) in enumerate(samples.batches_on(device, loader), start=first):
                rate = learning_rate(iteration, args.lr, max_iter, args.schedule, lr_steps, args.gamma, warmup)
                values = trainer.step(batch, rate, iteration)
                log.step(iteration, rate, values, indices)
                done = iteration + 1
                stopping = ranks.any(stop)  # all ranks must stop at the same iteration
                scoring = bool(args.val_split) and (done % eval_every == 0 or done == max_iter)
                if scoring or stopping or done % save_every == 0 or done == max_iter:
                    save(done, unscored=scoring)
                if stopping:
                    number = signal.Signals(stop.number or signal.SIGTERM)  # 0 if only another rank received one
                    say(f"stopped by {number.name} after iteration {done}; resume with --resume auto")
                    sys.exit(128 + number)
                if scoring:
                    score(done)
        if ranks.is_main:
            draw_curves(folder)
            save_for_use(final, trainer.result, info)  # last: it marks a complete run
            say(f"trained {count(max_iter, 'iteration')}; the network is {final}, the curves are in curves.png")


def check_batch(batch_size, accumulate, world, batch_norm):
    """Raise InputError unless a batch can be split among the processes and into parts."""
    if batch_size % world:
        raise InputError(f"--batch_size {batch_size}: not a multiple of the {world} processes; choose another one")
    part, least = batch_size // world // accumulate, 2 if batch_norm else 1
    if part < least:
        raise InputError(
            f"--batch_size {batch_size}: {part} images per part and process, but "
            f"{'BatchNorm' if batch_norm else 'a step'} needs {least}; raise it, or lower --accumulate ({accumulate})"
        )


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    with exit_on_input_error():
        main(arguments)
