"""Detect objects in a video, an image, a folder of images, or the frames of a camera.

    python Object_Detection.py                                  # Funny_dog.mp4 if it is there, else data/sample.mp4
    python Object_Detection.py street.mp4 --output found.mp4    # with boxes; same size, frame rate and sound
    python Object_Detection.py photos/ --classes dog person     # writes photos/NAME_detections.jpg for each image
    python Object_Detection.py 0 --show                         # camera 0, in a window; q quits
    python Object_Detection.py rtsp://address/stream --show     # a network stream
    python Object_Detection.py street.mp4 --json found.jsonl --trained_model weights/ssd300_mAP_77.43_v2.pth

Ctrl-C ends a run early; the video made so far is closed and plays.
"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path

from utils.errors import InputError, exit_on_input_error
from utils.flags import Parser, number

HERE = Path(__file__).resolve().parent
PUBLISHED = "weights/ssd300_mAP_77.43_v2.pth"


def get_args_parser():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("input", nargs="?", metavar="INPUT", help="video, image, folder of images, number of a camera, stream address")
    add("--output", help="file to write, or folder if INPUT is one (default: output.mp4, and beside each image)")
    help_text = f"checkpoint, or one to download such as {PUBLISHED} (default: the best one here)"
    add("--trained_model", metavar="FILE", help=help_text)
    help_text = "minimum score of a detection (default: the checkpoint's own, else 0.6)"
    add("--threshold", type=number(float, 0, below=1), help=help_text)
    add("--classes", nargs="+", metavar="NAME", help="only these classes, as in --classes dog person")
    add("--device", default="auto", help="auto (CUDA if available), cpu, cuda or mps")
    add("--precision", default="auto", choices=["auto", "float32", "bfloat16", "float16", "int8"])
    add("--engine", default="torch", choices=["torch", "openvino"], help="openvino needs requirements-engines.txt")
    add("--calibration", metavar="DIR", help="images to quantize with, for --engine openvino --precision int8")
    help_text = "images per pass of the network (default: 1 on CPU and for a camera, else 16)"
    add("--batch_size", type=number(int, 1), help=help_text)
    add("--json", metavar="FILE", help="also write one JSON line per image: index, time, detections; - is stdout")
    add("--show", action="store_true", help="also show the images in a window")
    return parser


def main(args):
    """Detect in what `args` name. Raises InputError for mistakes; after Ctrl-C it exits with 128 + the signal."""
    source = find_input(args.input)

    from inference import Detector
    from inference.camera import CameraReader
    from inference.output import Display, json_lines, say
    from inference.pipeline import detect_images, detect_video
    from inference.video import VideoReader, VideoWriter
    from utils.system import StopSignals, keep_freed_memory
    from weights.catalogue import resolve
    from weights.checkpoint import read_checkpoint

    out = sys.stderr if args.json == "-" else sys.stdout  # stdout is for JSON alone
    is_file = isinstance(source, Path)  # else a camera or a stream
    paths, targets = find_targets(source, args.output)
    check_outputs(paths or [source], targets, args.json)
    display = Display() if args.show else None
    weights = resolve(args.trained_model)
    labels = find_labels(args.classes, read_checkpoint(weights)[1].class_names) if args.classes else None
    keep_freed_memory()

    stop = StopSignals()
    with ExitStack() as opened:
        if not paths:  # a video is closed and plays; a folder has its finished images anyway
            opened.enter_context(stop)
            reader = opened.enter_context(VideoReader(source) if is_file else CameraReader(source))
        write_line = opened.enter_context(json_lines(args.json))
        detector = Detector(
            weights,
            device=args.device,
            precision=args.precision,
            threshold=args.threshold,
            engine=args.engine,
            calibration=args.calibration,
        )
        say(f"network: {detector.description}; {detector.info.quality}; threshold {detector.threshold:g}", out)
        if weights.name != Path(PUBLISHED).name and not args.trained_model:
            say(f"hint: --trained_model {PUBLISHED} is more accurate", out)
        batch_size = args.batch_size or (16 if is_file and detector.device.type == "cuda" else 1)
        settings = {"labels": labels, "batch_size": batch_size, "write_line": write_line, "display": display}
        notes = []
        if paths:
            summary = detect_images(detector, paths, targets, **settings)
        else:
            with VideoWriter(targets[0], reader.size, reader.rate, reader if is_file else None) as writer:
                summary = detect_video(detector, reader, writer, stop, **settings)
            notes += [*writer.notes, *reader.notes]
    for note in notes:
        say(f"note: {note}", sys.stderr)
    if stop:
        say(f"interrupted after {summary.images} of {reader.expected or 'an unknown number of'} frames", sys.stderr)
    written = targets[0] if len(targets) == 1 else targets[0].parent
    say(f"{summary}\noutput: {written}" + (f", {args.json}" if args.json else ""), out)
    if stop:
        sys.exit(128 + stop.number)


def find_input(name):
    """Return the Path of a file or folder, the number of a camera as int, or the address of a stream as str.

    Raises:
        InputError: there is no such file.
    """
    if name is None:
        places = [Path("Funny_dog.mp4"), HERE / "Funny_dog.mp4", HERE / "data" / "sample.mp4"]
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise InputError(
                "no INPUT, and neither Funny_dog.mp4 nor data/sample.mp4 is there; name a video or an image"
            )
        return found
    if not name:
        raise InputError("INPUT is empty; name a video, an image, a folder or the number of a camera")
    if os.path.lexists(name):
        return Path(name)
    if "://" in name:
        return name
    if name.isdecimal():
        return int(name)
    raise InputError(f"{name}: no such file or folder; check the name")


def find_targets(source, output):
    """Return the images that a source stands for, [] if it is a video or a camera, and the paths of the results.

    Raises:
        InputError: a folder has no image, or a result can't be written.
    """
    from inference.folder import is_still_image, list_images, result_paths
    from inference.output import say
    from inference.video import check_container

    if isinstance(source, Path) and source.is_dir():
        paths, others = list_images(source)
        if others:
            names = ", ".join(path.name for path in others[:10]) + ", ..." * (len(others) > 10)
            say(f"note: skipped, not images: {names}", sys.stderr)
        return paths, result_paths(paths, output, source)
    if isinstance(source, Path) and is_still_image(source):
        return [source], result_paths([source], output)
    target = Path(output or "output.mp4")
    check_container(target)
    return [], [target]


def find_labels(names, class_names):
    """Return the labels (indices into `class_names`) of classes; upper and lower case are the same.

    Raises:
        InputError: a class is unknown.
    """
    known = {name.lower(): label for label, name in enumerate(class_names)}
    for name in names:
        if name.lower() not in known:
            hint = " (INPUT goes before --classes)" if Path(name).exists() else ""
            raise InputError(f"--classes {name}: unknown{hint}; the network knows {', '.join(class_names)}")
    return [known[name.lower()] for name in names]


def check_outputs(inputs, targets, json):
    """Raise InputError if an output would overwrite an input or another output."""
    read = {identity(path) for path in inputs if isinstance(path, Path)}
    written = {identity(path) for path in targets}
    if read & written:
        raise InputError(f"--output {targets[0]}: this is the input; name another file")
    if json and json != "-":
        if identity(json) in read:
            raise InputError(f"--json {json}: this is the input; name another file")
        if identity(json) in written:
            raise InputError(f"--json {json}: this is the output already; name another file")


def identity(path):
    """Return what two names of the same file have in common."""
    try:
        info = Path(path).stat()
    except (OSError, ValueError):
        return os.path.realpath(path)
    return info.st_dev, info.st_ino


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    with exit_on_input_error():
        main(arguments)
