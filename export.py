"""Write a checkpoint's network as an ONNX file, for ONNX Runtime, OpenVINO, TensorRT and others.

    python export.py                                     # the best checkpoint that is here, as NAME.onnx
    python export.py --trained_model weights/ssd300_mAP_77.43_v2.pth --output ssd300.onnx
    python export.py --with_nms --confidence_threshold 0.3 --top_k 50

The input, `pictures`, is uint8 RGB [batch, S, S, 3], of any batch: pictures resized to 300x300 (or 512x512), nothing
else; the mean is subtracted inside, and so is the channel order of the checkpoint dealt with. The outputs are

    loc [batch, P, 4]    offsets of the boxes from the priors
    conf [batch, P, C]   class scores before softmax; class 0 is the background
    priors [P, 4]        a constant, centre and size as fractions of the picture

or, with --with_nms,

    detections [batch, C, top_k, 5]   for each class its boxes, best first, padded with zeros: score, x1, y1, x2, y2 as
                                      fractions of the picture

Class names and configuration are in the file's metadata. What was written is run in ONNX Runtime and compared with
PyTorch; a file that differs isn't kept. Needs pip install -r requirements-engines.txt.
"""

import argparse


def get_args_parser():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--trained_model", metavar="FILE", help="checkpoint, or the name of one to download; default the best here")
    add("--output", metavar="FILE.onnx", help="default the checkpoint's name with .onnx, in the current folder")
    add("--with_nms", action="store_true", help="decoding and non-maximum suppression are part of the network")
    add("--confidence_threshold", type=float, help="with --with_nms: least score of a detection, default 0.01")
    add("--top_k", type=int, help="with --with_nms: most detections of a class, default 200")
    add("--opset", type=int, help="version of ONNX's operators, default 17")
    return parser


def main(args):
    """Export as args say, and print what the comparison gave. Raises InputError."""
    from pathlib import Path

    check(args)
    from inference.engines.export import export
    from inference.engines.onnx_file import OPSET
    from layers.functions import Detect
    from utils.errors import printable
    from weights.catalogue import resolve
    from weights.checkpoint import load_network

    checkpoint = resolve(args.trained_model)
    output = Path(args.output or f"{checkpoint.stem}.onnx")
    net, info = load_network(checkpoint)
    if args.with_nms:
        top_k = args.top_k or net.detect.top_k
        threshold = net.detect.conf_thresh if args.confidence_threshold is None else args.confidence_threshold
        net.detect = Detect(net.num_classes, 0, top_k, threshold, net.detect.nms_thresh, variance=net.detect.variance)
    agreement = export(output, net, info, opset=args.opset or OPSET, with_nms=args.with_nms)
    print(printable(f"{checkpoint.name}: SSD{net.size}, {len(info.class_names)} classes"))
    for line in agreement:
        print(line)
    print(printable(f"output: {output}, {output.stat().st_size / 1e6:.1f} MB"))


def check(args):
    """Raise InputError for flags that make no sense."""
    from utils.errors import InputError

    if args.output and not args.output.lower().endswith(".onnx"):
        raise InputError(f"--output {args.output}: the name must end in .onnx")
    for flag in ("confidence_threshold", "top_k"):
        if getattr(args, flag) is not None and not args.with_nms:
            raise InputError(f"--{flag}: only used with --with_nms")
    if args.top_k is not None and args.top_k < 1:
        raise InputError(f"--top_k {args.top_k}: it must be 1 or more")
    if args.confidence_threshold is not None and not 0 <= args.confidence_threshold < 1:
        raise InputError(f"--confidence_threshold {args.confidence_threshold}: it must be at least 0 and below 1")


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    from utils.errors import exit_on_input_error

    with exit_on_input_error():
        main(arguments)
