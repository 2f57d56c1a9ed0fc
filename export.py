"""Export a checkpoint's network to ONNX, for ONNX Runtime, OpenVINO, TensorRT and others.

    python export.py                                      # the embedded network, as NAME.onnx
    python export.py --trained_model weights/ssd300_mAP_77.43_v2.pth --output ssd300.onnx
    python export.py --with_nms --confidence_threshold 0.3 --top_k 50
    python export.py --half                               # float16 weights, half the size

The input `images` is uint8 RGB [batch, S, S, 3]: images resized to 300x300 (or 512x512). The network subtracts the mean
and handles the checkpoint's channel order. The outputs are

    loc [batch, P, 4]                 offsets of the boxes from the priors
    conf [batch, P, C]                class scores before softmax; class 0 is the background
    priors [P, 4]                     a constant, center-size form, as fractions of the image

or, with --with_nms,

    detections [batch, C, top_k, 5]   boxes per class, sorted by score and padded with zeros: score, x1, y1, x2, y2 as
                                      fractions of the image

Class names and configuration are in the file's metadata. The file is checked before it is saved: ONNX Runtime and
PyTorch must agree on frames of data/sample.mp4. Needs pip install -r requirements-engines.txt.
"""

from utils.errors import InputError, exit_on_input_error, printable
from utils.flags import Parser, number


def get_args_parser():
    parser = Parser(__doc__)
    add = parser.add_argument
    help_text = "checkpoint, or one to download; default the 77.43 network if it is in weights/, else the embedded one"
    add("--trained_model", metavar="FILE", help=help_text)
    add("--output", metavar="FILE.onnx", help="default the checkpoint's name with .onnx, in the current folder")
    add("--half", action="store_true", help="float16 weights and arithmetic")
    add("--with_nms", action="store_true", help="include decoding and non-maximum suppression")
    help_text = "with --with_nms: minimum score of a detection, default 0.01"
    add("--confidence_threshold", type=number(float, 0, below=1), help=help_text)
    add("--top_k", type=number(int, 1), help="with --with_nms: maximum number of detections per class, default 200")
    return parser


def main(args):
    from pathlib import Path

    from inference.onnx import export
    from layers.functions import Detect
    from weights.catalogue import resolve
    from weights.checkpoint import load_network

    if args.output and not args.output.lower().endswith(".onnx"):
        raise InputError(f"--output {args.output}: the name must end in .onnx")
    if not args.with_nms and (args.confidence_threshold, args.top_k) != (None, None):
        raise InputError("--confidence_threshold and --top_k: only used with --with_nms")
    threshold = 0.01 if args.confidence_threshold is None else args.confidence_threshold
    top_k = args.top_k or 200

    checkpoint = resolve(args.trained_model)
    output = Path(args.output or f"{checkpoint.stem}.onnx")
    net, info = load_network(checkpoint)
    detect = Detect(net.num_classes, 0, top_k, threshold, net.detect.nms_thresh, variance=net.detect.variance)
    count, threshold = export(output, net, info, detect, with_nms=args.with_nms, half=args.half)
    print(printable(f"{checkpoint.name}: SSD{net.size}, {len(info.class_names)} classes"))
    print(f"compared with PyTorch: {count} detections with scores over {threshold:.2g}")
    print(printable(f"output: {output}, {output.stat().st_size / 1e6:.1f} MB"))


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    with exit_on_input_error():
        main(arguments)
