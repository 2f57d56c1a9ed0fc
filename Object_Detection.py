"""Detect objects in videos, images, folders of images, or the frames of a camera or stream.

    python Object_Detection.py                                  # Funny_dog.mp4 if it is there, else data/sample.mp4
    python Object_Detection.py street.mp4 --output found.mp4    # with boxes; same size, frame rate and sound
    python Object_Detection.py photos/ --classes dog person     # writes photos/NAME_detections.jpg for each image
    python Object_Detection.py a.mp4 "photos/*.jpg" more/ --output results/
    python Object_Detection.py 0 --show                         # camera 0, in a window; q quits
    python Object_Detection.py rtsp://address/stream --show     # a network stream
    python Object_Detection.py street.mp4 --json found.jsonl --trained_model weights/ssd300_mAP_77.43_v2.pth

On four GPUs: torchrun --nproc_per_node=4 Object_Detection.py photos/

Ctrl-C ends a run early; the video so far is playable. The exit code is 1 if some of several inputs failed.
"""

import gc
import os
import sys
from contextlib import ExitStack
from functools import partial
from itertools import chain, groupby
from pathlib import Path

from utils.errors import InputError, count, exit_on_input_error, print_error, say
from utils.flags import Parser, number

HERE = Path(__file__).resolve().parent
PUBLISHED = "weights/ssd300_mAP_77.43_v2.pth"


def get_args_parser():
    parser = Parser(__doc__)
    add = parser.add_argument_group("input and output").add_argument
    help_text = "video, image, folder of images, glob, number of a camera, address of a file or stream, - for stdin"
    add("input", nargs="*", metavar="INPUT", help=help_text)
    add("--recursive", action="store_true", help="search subfolders, and include videos")
    add("--output", help="file; a folder for several inputs (default: output.mp4 for one video, else beside them)")
    add("--overwrite", action="store_true", help="overwrite files that this program didn't write")
    add("--no_video", action="store_true", help="write no videos and images, only results")
    add("--json", metavar="FILE", help="write a JSON line per image: file, frame, time, detections; - is stdout")
    add("--csv", metavar="FILE", help="write a row per detection")
    add("--coco", metavar="FILE", help="write COCO results (images only, COCO's category ids)")
    add("--crops", metavar="DIR", help="write each detection as an image, to DIR/CLASS")
    add("--show", action="store_true", help="show the images in a window")
    add("--quiet", action="store_true", help="print nothing but errors and notes")

    add = parser.add_argument_group("detection").add_argument
    help_text = f"checkpoint, or one to download (default: {PUBLISHED} if it exists, else the embedded one)"
    add("--trained_model", metavar="FILE", help=help_text)
    help_text = "minimum score of a detection (default: the checkpoint's own, else 0.6)"
    add("--threshold", type=number(float, 0, below=1), help=help_text)
    add("--classes", nargs="+", metavar="NAME", help="only these classes, as in --classes dog person")
    add("--device", default="auto", help="auto (CUDA if available), cpu, cuda, cuda:1 or mps")
    add("--precision", default="auto", choices=["auto", "float32", "bfloat16", "float16", "int8"])
    help_text = "auto is openvino for --precision int8, else torch; openvino needs requirements-engines.txt"
    add("--engine", default="auto", choices=["auto", "torch", "openvino"], help=help_text)
    add("--calibration", metavar="DIR", help="images to quantize with, for --precision int8")
    help_text = "images per pass of the network (default: 16 on CUDA, else 1; 1 for cameras and streams)"
    add("--batch_size", type=number(int, 1), help=help_text)

    add = parser.add_argument_group("drawing").add_argument
    help_text = "line width of the boxes (default: by the size of the image)"
    add("--line_width", type=number(int, 1), metavar="PIXELS", help=help_text)
    add("--hide_labels", action="store_true", help="draw only boxes")
    add("--hide_scores", action="store_true", help="draw class names without scores")
    return parser


def main(args):
    """Detect. Exits with 1 if some inputs failed, 2 if all did, 128 plus the signal's number after a signal."""
    from inference.inputs import open_inputs, with_targets

    with open_inputs(args.input or [default_input()], args.recursive) as (found, errors):
        if not found:
            print_error(*errors)
            sys.exit(2)
        inputs = with_targets(found, args.output, several=len(args.input) > 1)
        check_outputs(args, inputs)
        detect(args, inputs, errors)


def default_input():
    """Return the video to use if no input is given. Raises InputError if there is none."""
    for path in (Path("Funny_dog.mp4"), HERE / "Funny_dog.mp4", HERE / "data" / "sample.mp4"):
        if path.is_file():
            return str(path)
    raise InputError("no INPUT, and neither Funny_dog.mp4 nor data/sample.mp4 is there; name a video or an image")


def check_outputs(args, inputs):
    """Raise InputError if a result would overwrite an input, another result, or a file that is not our own."""
    from inference.inputs import CONTAINERS, IMAGE_SUFFIXES, MARK, Written

    targets = [] if args.no_video else [("--output", one.target) for one in inputs]
    files = (("--json", args.json), ("--csv", args.csv), ("--coco", args.coco))
    for flag, file in files[1:]:
        if file == "-":
            raise InputError(f"{flag} -: only --json writes to stdout; name a file")
    targets += [(flag, Path(file)) for flag, file in files if file and file != "-"]
    if args.coco and any(one.kind != "image" for one in inputs):
        raise InputError("--coco: COCO results support only images; use --json or --csv for videos")
    for flag, folder in {(flag, target.parent) for flag, target in targets}:
        if folder.is_dir() and not os.access(folder, os.W_OK):
            raise InputError(f"{folder}: this folder can't be written; choose another {flag}")
    read = {file_key(one.source) for one in inputs if isinstance(one.source, Path)}
    ours, seen = Written(), set()
    for flag, target in targets:
        key = file_key(target)
        if key in read:
            raise InputError(f"{flag} {target}: this is the input; name another file")
        if key in seen:
            raise InputError(f"{flag} {target}: already the target of another output; name another file")
        seen.add(key)
        if flag != "--output" and target.suffix.lower() in (*IMAGE_SUFFIXES, *CONTAINERS):
            raise InputError(f"{flag} {target}: the name of an image or video; choose another one")
        default_name = flag == "--output" and args.output is None and target.stem.endswith(MARK)
        if os.path.isfile(target) and not (args.overwrite or default_name or target in ours):  # noqa: PTH113 (long names)
            raise InputError(f"{target}: exists, and this program didn't write it; add --overwrite, or name another")


def file_key(path):
    """Return a key that is the same for all names of an existing file: links, and on some systems letter case."""
    try:
        info = Path(path).stat()
    except (OSError, ValueError):
        return os.path.realpath(path)
    return info.st_dev, info.st_ino


def detect(args, inputs, errors):
    """Run the detector on inputs (inference.inputs.Input) and report. `errors`: an InputError for each missing one."""
    gc.disable()  # garbage collections during the imports would take half a second
    from inference import Detector
    from inference.drawing import draw_detections
    from inference.inputs import Written
    from inference.output import Crops, Display, Results
    from inference.pipeline import Pipeline
    from training.distributed import join
    from utils.files import make_folder
    from utils.system import StopSignals, device_name, keep_freed_memory
    from weights.catalogue import resolve

    gc.freeze()
    gc.enable()
    files = [Path(file) for file in (args.json, args.csv, args.coco) if file and file != "-"]
    weights = resolve(args.trained_model)
    labels = find_labels(args.classes, weights, args.coco) if args.classes or args.coco else None
    display = Display() if args.show else None
    keep_freed_memory()
    with join(device_name(args.device, args.engine, args.precision)) as (ranks, device), ExitStack() as opened:
        out = sys.stderr if args.json == "-" else sys.stdout  # stdout is only for JSON
        tell = partial(say, file=out) if ranks.is_main and not args.quiet else lambda text: None
        detector = Detector(
            weights, str(device), args.precision, args.threshold, engine=args.engine, calibration=args.calibration
        )
        stop = opened.enter_context(StopSignals())  # until here, a signal ends the run without any result
        tell(f"network: {detector.description}; {detector.info.quality}; threshold {detector.threshold:g}")
        if weights.name != Path(PUBLISHED).name and not args.trained_model:
            tell(f"hint: --trained_model {PUBLISHED} is more accurate")
        opened.enter_context(Written().watch([*(one.target for one in inputs), *files]))
        results = opened.enter_context(Results(inputs, args.json, args.csv, args.coco, ranks).open())
        if args.output and not args.no_video and inputs[0].target != Path(args.output):
            for one in inputs:
                make_folder(one.target.parent, "--output")
        pipeline = Pipeline(
            detector,
            labels=labels,
            batch_size=args.batch_size,
            draw=None
            if args.no_video and not args.show
            else partial(
                draw_detections, line_width=args.line_width, labels=not args.hide_labels, scores=not args.hide_scores
            ),
            on_result=results.add,
            crops=Crops(inputs, args.crops, args.overwrite) if args.crops else None,
            display=display,
            stop=stop,
            show_progress=ranks.is_main and not args.quiet,
        )
        errors = errors if ranks.is_main else []  # rank 0 reports the missing inputs
        reports = detect_all(pipeline, inputs[ranks.rank :: ranks.world], errors, write=not args.no_video)
        results.gather()
        lines = chain.from_iterable(ranks.gather([report(reports, ranks)]))
        images = sum(ranks.gather([sum(summary.images for _, summary in reports)]))
        failed = sum(ranks.gather([len(errors)]))
        print_error(*errors)
        if not images and errors:
            sys.exit(2)

    targets = [] if args.no_video else [one.target for group, _ in reports for one in group]
    tell("\n".join(lines))
    places = targets if len(inputs) == 1 else [args.output or "beside the inputs"] * bool(targets)
    if places or files:
        tell(f"output: {', '.join(map(str, [*places, *files]))}")
    if stop:
        say(f"interrupted after {images:,} images and frames", sys.stderr)
        sys.exit(128 + stop.number)
    if failed and ranks.is_main:
        sys.exit(1)


def report(reports, ranks):
    """Return the lines about this process's inputs, from what `detect_all` returned."""
    if ranks.world == len(reports) == 1:
        return [str(reports[0][1])]
    names = [group[0].name if len(group) == 1 else count(len(group), "image") for group, _ in reports]
    return [
        f"{name}: {count(summary.images, summary.noun)}; {summary.found}"
        for name, (_, summary) in zip(names, reports, strict=True)
    ]


def detect_all(pipeline, inputs, errors, write):
    """Run the Pipeline on all inputs, consecutive images together; if `write`, write each to its target.

    Returns [(list of Input, output.Summary)]. Adds an InputError for each input that failed to `errors`.
    """
    reports = []
    for _, items in groupby(inputs, lambda one: one.kind == "image" or id(one)):
        group = list(items)
        try:
            summary, notes = detect_group(pipeline, group, write)
        except InputError as error:
            errors.append(error)
            continue
        errors += summary.errors
        reports.append((group, summary))
        for note in notes:
            say(f"note: {note}", sys.stderr)
        if pipeline.stopped:
            break
    return reports


def detect_group(pipeline, group, write):
    """Run the Pipeline on a list of images, or of one video or live source; return (output.Summary, notes)."""
    from inference.camera import CameraReader
    from inference.video import VideoReader, VideoWriter

    if group[0].kind == "image":
        return pipeline.images([one.source for one in group], [one.target for one in group] if write else None), []
    (one,) = group
    is_file = one.kind == "video"
    with VideoReader(one.source) if is_file else CameraReader(one.source) as reader:
        if not write:
            return pipeline.video(reader, name=str(one.source)), reader.notes
        with VideoWriter(one.target, reader.size, reader.rate, reader if is_file else None) as writer:
            summary = pipeline.video(reader, writer, str(one.source))
        return summary, [*writer.notes, *reader.notes]


def find_labels(names, weights, coco):
    """Return the labels of class names, ignoring case; None, for all classes, if `names` is None.

    Raises InputError if the network of the checkpoint `weights` lacks a class, or, with `coco`, COCO does.
    """
    from data.coco import coco_category_id
    from weights.checkpoint import read_checkpoint

    class_names = read_checkpoint(weights)[1].class_names
    known = {name.lower(): label for label, name in enumerate(class_names)}
    for name in names or ():
        if name.lower() not in known:
            hint = " (INPUT goes before --classes)" if Path(name).exists() else ""
            raise InputError(f"--classes {name}: unknown{hint}; the network knows {', '.join(class_names)}")
    labels = [known[name.lower()] for name in names] if names else None
    kept = [class_names[label] for label in labels] if names else class_names
    if coco and (unknown := [name for name in kept if coco_category_id(name) is None]):
        raise InputError(f"--coco: COCO has no class {unknown[0]}; name the others with --classes")
    return labels


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    with exit_on_input_error():
        main(arguments)
