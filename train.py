"""Train SSD.

As the paper does it, SSD300 on VOC2007 and VOC2012 trainval from the reduced VGG16:

    python train.py --dataset VOC

A narrow network from scratch, on any folder in VOC format:

    python train.py --dataset path/to/folder --train_split train --basenet none --width 0.25 \\
        --optimizer adamw --lr 0.002 --schedule cosine --max_iter 4000

After an interruption the same command goes on with `--resume auto`.
"""

import argparse
from pathlib import Path

FLAG = argparse.BooleanOptionalAction


def get_args_parser():
    parser = argparse.ArgumentParser(description="Train SSD.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_data_arguments(parser)
    add_network_arguments(parser)
    add_optimisation_arguments(parser)
    add_run_arguments(parser.add_argument)
    return parser


def add_data_arguments(parser):
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", default="VOC", help="VOC, COCO, or a folder in VOC format")
    data.add_argument("--dataset_root", help="folder of the VOC or COCO data (default: ~/data/VOCdevkit, ~/data/coco)")
    data.add_argument("--train_split", nargs="+", metavar="SPLIT", help="e.g. 2007_trainval 2012_trainval, or train")
    data.add_argument("--val_split", nargs="?", metavar="SPLIT", help="score the network on it, e.g. 2007_test, or val")
    data.add_argument("--classes", nargs="+", metavar="NAME", help="class names; those of the annotations unless given")
    data.add_argument("--keep_difficult", action=FLAG, default=False, help="train on difficult objects too")
    data.add_argument(
        "--augment", action=FLAG, default=True, help="off: pictures as they are, to see a network overfit"
    )
    data.add_argument("--max_expand", type=float, default=4.0, help="largest side ratio of the zoomed-out picture")
    data.add_argument("--min_crop", type=float, default=0.3, help="smallest share of a picture's sides in a crop")
    data.add_argument("--channel_shuffle", type=float, default=0.5, help="probability of permuted colour channels")
    data.add_argument(
        "--frame_aspect",
        type=float,
        metavar="RATIO",
        help="show half of the samples in windows of this width:height, as frames of a video are seen (16:9: 1.78)",
    )
    data.add_argument("--num_workers", type=int, default=4, help="processes that read and augment pictures")
    data.add_argument(
        "--cache", choices=("none", "ram"), default="none", help="ram: keep the decoded pictures in memory"
    )
    check = data.add_mutually_exclusive_group()
    check.add_argument("--check_only", action="store_true", help="read the data, say what is in it, and end")
    check.add_argument("--skip_check", action="store_true", help="train without reading all data first")


def add_network_arguments(parser):
    net = parser.add_argument_group("network")
    net.add_argument("--size", type=int, default=300, choices=(300, 512), help="side of the input")
    net.add_argument("--width", type=float, default=1.0, help="factor on the paper's channel counts")
    net.add_argument(
        "--basenet", default="vgg16_reducedfc.pth", help="pre-trained base, or none: from scratch with BatchNorm"
    )
    net.add_argument(
        "--finetune",
        metavar="FILE",
        help="start from a checkpoint: one of half the --width is widened, what doesn't fit is initialised anew",
    )
    net.add_argument(
        "--freeze", type=int, default=0, metavar="N", help="keep the base's first N layers (conv1, conv2: 10)"
    )
    net.add_argument("--crop_passes", type=int, default=0, help="first train the base on object crops, so many passes")
    net.add_argument("--crop_size", type=int, default=96, help="side of these crops")


def add_optimisation_arguments(parser):
    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--batch_size", type=int, default=32)
    optim.add_argument(
        "--max_iter", type=int, help="length of the run; the configuration's (VOC: 120,000) unless given"
    )
    optim.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    optim.add_argument("--lr", "--learning-rate", type=float, default=1e-3)
    optim.add_argument("--momentum", type=float, default=0.9)
    optim.add_argument("--weight_decay", type=float, default=5e-4)
    optim.add_argument("--gamma", type=float, default=0.1, help="factor of the learning rate at each step")
    optim.add_argument(
        "--lr_steps", type=int, nargs="+", metavar="N", help="iterations of the steps (VOC: 80000 100000)"
    )
    optim.add_argument(
        "--caffe_bias", action=FLAG, default=False, help="biases: twice the rate, no decay (paper's code)"
    )
    optim.add_argument(
        "--ema", type=float, default=0.0, metavar="DECAY", help="score and keep averaged weights; 0: none"
    )
    optim.add_argument(
        "--clip_grad", type=float, default=0.0, metavar="NORM", help="clip the gradient's norm; 0: don't"
    )
    optim.add_argument(
        "--accumulate", type=int, default=1, metavar="K", help="compute a batch in K parts, to save memory"
    )
    optim.add_argument("--schedule", choices=("step", "cosine", "onecycle", "constant"), default="step")
    optim.add_argument("--warmup", type=int, default=500, help="iterations of linear warm-up; 0: none")
    optim.add_argument("--low_resolution", type=int, metavar="SIZE", help="input of the run's first part, from scratch")
    optim.add_argument("--low_resolution_iter", type=int, default=0, metavar="N", help="length of that part")
    optim.add_argument("--seed", type=int, default=0)


def add_run_arguments(add):
    add("--cuda", type=_boolean, default=True, help="use CUDA where there is one")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--precision", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="of the network")
    add("--resume", metavar="FILE", help="go on from a run's state, or `auto`: from the newest in --save_folder")
    add("--start_iter", type=int, help="iteration to resume at; the state's own unless given")
    add("--save_folder", default="weights/", help="where states and the checkpoint go")
    add("--compile", action=FLAG, default=False, help="compile the network (torch.compile)")
    add("--eval_every", type=int, default=5000, help="iterations between two scorings on --val_split")
    add("--save_every", type=int, default=5000, help="iterations between two saved states")
    add("--keep", type=int, default=3, help="states to keep")
    add("--print_every", type=int, default=10, help="iterations between two lines of the log")
    add("--visdom", type=_boolean, default=False, help="gone: curves are shown by TensorBoard")


def _boolean(text):
    """The lineage's `--cuda True` and `--cuda False`."""
    if text.lower() in ("yes", "true", "t", "1"):
        return True
    if text.lower() in ("no", "false", "f", "0"):
        return False
    raise argparse.ArgumentTypeError(f"True or False expected, not {text!r}")


def main(args):
    from training.loop import train
    from utils.system import keep_freed_memory

    if args.visdom:
        print("--visdom is gone; see the curves with: tensorboard --logdir", Path(args.save_folder) / "log")
    keep_freed_memory()
    train(args)


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    from utils.errors import exit_on_input_error

    with exit_on_input_error():
        main(arguments)
