"""Score a detector, or detections that already lie in files, on VOC, COCO or a folder in VOC format.

    python eval.py --trained_model weights/ssd300_mAP_77.43_v2.pth                 # VOC2007 test
    python eval.py --dataset my_boxes --split val                                  # a folder in VOC format
    python eval.py --dataset COCO --trained_model weights/my_coco.pth              # COCO val2017
    python eval.py --detections results                                            # the devkit's det_test_*.txt

It prints a table and writes the devkit's detection files, results.json, pr_curves.png and mistakes.html into
--save_folder: each of them whole or not at all, whatever interrupts it.
"""

import argparse
import signal
import sys
from contextlib import contextmanager
from datetime import datetime, timezone
from time import perf_counter


def get_args_parser():
    parser = argparse.ArgumentParser(description="Score a detector, or finished detection files.")
    what = parser.add_argument_group("what is scored")
    what.add_argument("--trained_model", metavar="FILE", help="checkpoint (default: the best one that is there)")
    what.add_argument(
        "--detections",
        metavar="DIR",
        help="score the files det_<split>_<class>.txt in DIR (for COCO also a results JSON) without any network",
    )
    where = parser.add_argument_group("on which pictures")
    where.add_argument("--dataset", default="VOC", metavar="VOC|COCO|DIR", help="DIR: a folder in VOC format")
    where.add_argument(
        "--voc_root",
        "--dataset_root",
        metavar="DIR",
        help="VOCdevkit, or COCO's folder (default: ~/data/VOCdevkit, ~/data/coco)",
    )
    where.add_argument(
        "--split", help="such as test or 2012_val, val2017, val (default: VOC2007 test, COCO val2017, a folder's val)"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--rule", choices=("reference", "devkit", "both"), default="both", help="of VOC AP (%(default)s)")
    how.add_argument("--coco_metrics", action="store_true", help="COCO's twelve figures for VOC data too")
    how.add_argument("--confidence_threshold", type=float, default=0.01, help="least score (%(default)s)")
    how.add_argument("--top_k", type=int, default=200, help="boxes a class that enter suppression (%(default)s)")
    how.add_argument("--keep_top_k", type=int, help="boxes a picture kept over all classes (default: all)")
    how.add_argument("--batch_size", type=int, default=8, help="pictures at a time (%(default)s)")
    how.add_argument("--num_workers", type=int, default=2, help="threads that read pictures (%(default)s)")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (%(default)s)")
    how.add_argument("--cuda", type=true_or_false, default=True, metavar="True|False", help="False: stay on the CPU")
    how.add_argument("--precision", default="auto", help="auto, float32, bfloat16, float16, int8 (%(default)s)")
    how.add_argument("--engine", default="torch", help="torch, or on a CPU openvino, onnxruntime (%(default)s)")
    how.add_argument("--calibration", metavar="DIR", help="pictures to quantise with, for openvino in int8")
    out = parser.add_argument_group("what is written")
    out.add_argument("--save_folder", default="eval", metavar="DIR", help="for the report (%(default)s)")
    out.add_argument(
        "--cleanup",
        type=true_or_false,
        nargs="?",
        const=True,
        default=False,
        metavar="True|False",
        help="remove the detection files that this run wrote (%(default)s)",
    )
    return parser


def true_or_false(text):
    """The lineage's flags take a word: --cuda True."""
    if text.lower() in ("true", "t", "yes", "y", "1"):
        return True
    if text.lower() in ("false", "f", "no", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"True or False is expected, not {text!r}")


def main(args):
    """Score as args say, print the figures and write the report; returns what results.json holds.

    Raises InputError; ends the process with 128 + the signal's number after Ctrl-C or SIGTERM.
    """
    from utils.system import keep_freed_memory

    check(args)
    keep_freed_memory()
    with clean_end():
        return score(args)


def score(args):
    """What main does, but for signals."""
    from metrics.evaluation import evaluate, read_detections
    from metrics.ground_truth import open_evaluation_set
    from metrics.report import prepare_folder, write_detections, write_report
    from metrics.tables import summary, table
    from utils.errors import printable

    date, started = datetime.now(timezone.utc), perf_counter()
    pictures = open_evaluation_set(args.dataset, args.voc_root, args.split, pictures=args.detections is None)
    folder = prepare_folder(args.save_folder, pictures.folder)
    detection_files = []
    if args.detections:
        scored = read_detections(args.detections, args.dataset, pictures)
        print("note: no mistakes.html, as it shows pictures and --detections reads none", file=sys.stderr)
    else:
        scored = run_detector(args, pictures)
        with whole_files(folder) as unfinished:
            written = write_detections(unfinished, pictures, scored)
        detection_files = [folder / path.name for path in written]
    evaluation = evaluate(pictures, scored, args.rule, args.coco_metrics)
    for line in evaluation.notes:
        print(printable(f"note: {line}"), file=sys.stderr)
    print("\n".join([*table(evaluation), "", *summary(evaluation)]))
    if args.cleanup:
        for path in detection_files:
            path.unlink()
        detection_files = []
    details = {
        "configuration": vars(args),
        "date": date.isoformat(timespec="seconds"),
        "seconds": round(perf_counter() - started, 1),
    }
    with whole_files(folder) as unfinished:
        content = write_report(unfinished, evaluation, details)
    written = [f"{len(detection_files)} detection files"] if detection_files else []
    written += [name for name in ("results.json", "pr_curves.png", "mistakes.html") if (folder / name).is_file()]
    print(printable(f"report in {folder}: {', '.join(written)}"))
    return content


@contextmanager
def whole_files(folder):
    """A folder in `folder` for files that get to their place when all of them are written; removed with what is left.

    Raises InputError where that fails, which names `folder`.
    """
    from secrets import token_hex
    from shutil import rmtree

    from utils.errors import InputError

    unfinished = folder / f".writing-{token_hex(4)}"
    try:
        unfinished.mkdir()
        try:
            yield unfinished
        except InputError as error:
            raise InputError(str(error).replace(str(unfinished), str(folder))) from error
        # results.json comes last: where it stands, the others do too
        for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "results.json"):
            path.replace(folder / path.name)
    except OSError as error:
        raise InputError(f"can't write into {folder} ({error.strerror}): choose another --save_folder") from error
    finally:
        try:
            rmtree(unfinished, ignore_errors=True)
        finally:  # a signal may have ended the first attempt; none comes through after it
            rmtree(unfinished, ignore_errors=True)


@contextmanager
def clean_end():
    """Within it Ctrl-C and SIGTERM end the process without a traceback, and what is half-written is removed."""

    def end(number, _frame):
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # the cleaning up isn't interrupted
        print(f"interrupted by {signal.Signals(number).name}", file=sys.stderr)
        raise SystemExit(128 + number)

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, end)
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check(args):
    """Raise InputError for numbers that make no sense."""
    from utils.errors import InputError

    for name, least in (("top_k", 1), ("keep_top_k", 1), ("batch_size", 1), ("num_workers", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: it must be {least} or more")
    if not 0 <= args.confidence_threshold < 1:
        raise InputError(f"--confidence_threshold {args.confidence_threshold}: it must be at least 0 and below 1")


def run_detector(args, pictures):
    """Every picture's detections by the network of --trained_model, as a metrics.evaluation.Scored."""
    from inference import Detector
    from metrics.detect import detect_pictures
    from metrics.evaluation import Scored
    from metrics.report import sha256
    from utils.errors import printable
    from utils.images import read_image
    from weights.catalogue import resolve

    path = resolve(args.trained_model)
    detector = Detector(
        path,
        device="cpu" if args.device == "auto" and not args.cuda else args.device,
        precision=args.precision,
        threshold=args.confidence_threshold,
        top_k=args.top_k,
        keep_top_k=args.keep_top_k,
        clip=False,  # as 77.43 was measured
        engine=args.engine,
        calibration=args.calibration,
    )
    info, device, precision = detector.info, str(detector.device), str(detector.dtype).removeprefix("torch.")
    print(printable(f"network: {detector.description}"))
    detections, rate = detect_pictures(
        detector, pictures.paths, read_image, batch_size=args.batch_size, num_workers=args.num_workers
    )
    print(f"{rate:.1f} pictures/s in batches of {args.batch_size}, reading included\n")
    source = {
        "checkpoint": str(path),
        "sha256": sha256(path),
        "network": info.config.name,
        "width": info.width,
        "classes": list(detector.class_names),
        "channel_order": info.channel_order,
        "trained_with": info.trained_with,
        "device": device,
        "engine": detector.engine,
        "precision": precision,
        "pictures_per_second": round(rate, 2),
    }
    return Scored(path.name, tuple(detector.class_names), detections, source, read_image=read_image)


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    from utils.errors import exit_on_input_error

    with exit_on_input_error():
        main(arguments)
