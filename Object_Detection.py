"""Detect objects in a video, a picture, a folder of pictures, or what a camera sees.

    python Object_Detection.py                                  # Funny_dog.mp4 where it lies, else data/sample.mp4
    python Object_Detection.py street.mp4 --output found.mp4    # boxes drawn in; same size, frame rate and sound
    python Object_Detection.py photos/ --classes dog person     # photos/NAME_detections.jpg beside each picture
    python Object_Detection.py 0 --show                         # camera 0, in a window; q ends
    python Object_Detection.py street.mp4 --json found.jsonl --trained_model weights/ssd300_mAP_77.43_v2.pth

Ctrl-C ends a run early; the video made so far is closed and plays.
"""

import argparse
import signal
import sys
import time
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

HERE = Path(__file__).resolve().parent
BEST = "weights/ssd300_mAP_77.43_v2.pth"


def get_args_parser():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("input", nargs="?", metavar="INPUT", help="video, picture, folder of pictures, or the number of a camera")
    add("--output", help="file (for a folder: folder) to write; default output.mp4, for pictures beside each of them")
    add(
        "--trained_model",
        metavar="FILE",
        help=f"checkpoint, or one to download ({BEST}); default the best that is here",
    )
    add("--threshold", type=float, default=0.6, help="least score of a detection, default 0.6")
    add("--classes", nargs="+", metavar="NAME", help="only these classes, as in --classes dog person")
    add("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda or mps")
    add("--precision", default="auto", choices=["auto", "float32", "bfloat16", "float16", "int8"])
    add("--engine", default="torch", help="torch, or on a CPU openvino or onnxruntime (requirements-engines.txt)")
    add("--calibration", metavar="DIR", help="pictures to quantise with, for --engine openvino --precision int8")
    add("--batch_size", type=int, help="frames a pass of the network, default 1 on a CPU and for a camera, else 16")
    add("--json", metavar="FILE", help="also write one JSON line a frame: index, time in seconds, detections")
    add("--show", action="store_true", help="also show the frames in a window")
    return parser


def main(args):
    """Detect as args say. Raises InputError for what the user can mend; ends the process with 130 after Ctrl-C."""
    with StopSignal() as stop:
        from inference.display import Display, ask_for_display
        from utils.errors import InputError
        from utils.system import keep_freed_memory

        if not 0 <= args.threshold < 1:
            raise InputError(f"--threshold {args.threshold}: it must be at least 0 and below 1")
        if args.batch_size is not None and args.batch_size < 1:
            raise InputError(f"--batch_size {args.batch_size}: it must be 1 or more")
        if args.show:
            ask_for_display()
        source = find_input(args.input)
        keep_freed_memory()
        run = run_pictures if is_for_pictures(source) else run_video
        run(args, source, stop, Display() if args.show else None)
    if stop.number:
        sys.exit(128 + stop.number)


def find_input(name):
    """The input that is meant: a Path, or the int of a camera. Raises InputError where it doesn't exist."""
    from utils.errors import InputError

    if name is None:
        places = [Path("Funny_dog.mp4"), HERE / "Funny_dog.mp4", HERE / "data" / "sample.mp4"]
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise InputError("no INPUT is named, and neither Funny_dog.mp4 nor data/sample.mp4 is there")
        return found
    path = Path(name)
    if path.exists():
        return path
    if name.isdecimal():
        return int(name)
    raise InputError(f"{name}: no such file or folder; check the name")


def is_for_pictures(source):
    """Whether an input is a picture or a folder of them."""
    from utils.images import is_image as is_picture

    return isinstance(source, Path) and (source.is_dir() or is_picture(source))


class StopSignal:
    """While entered, Ctrl-C and SIGTERM only ask to stop (`number` is then the signal's); the second Ctrl-C insists."""

    def __init__(self):
        self.number = 0
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not in the main thread: whoever runs us there handles signals
                break

    def _ask(self, number, _frame):
        if self.number:
            raise KeyboardInterrupt
        self.number = number

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def load_detector(args):
    """The Detector that args ask for, the labels to keep (None: all), after one line that says which network runs."""
    from inference import Detector
    from utils.errors import InputError, printable

    detector = Detector(
        args.trained_model,
        device=args.device,
        precision=args.precision,
        threshold=args.threshold,
        engine=args.engine,
        calibration=args.calibration,
    )
    info = detector.info
    quality = f"mAP {info.mAP:.3f}" if info.mAP is not None else "mAP unknown"
    quality += f" on {info.mAP_on}" if info.mAP is not None and info.mAP_on else ""
    print(printable("; ".join([f"network: {detector.description}", quality, *other_networks(detector)])))
    if not args.classes:
        return detector, None
    known = {name.lower(): label for label, name in enumerate(detector.class_names)}
    for name in args.classes:
        if name.lower() not in known:
            hint = " (INPUT goes before --classes)" if Path(name).exists() else ""
            raise InputError(f"--classes {name}: unknown{hint}; the network knows {', '.join(detector.class_names)}")
    return detector, [known[name.lower()] for name in args.classes]


def other_networks(detector):
    """What else to take for better, or for quicker, results: a list of hints."""
    import torch

    from weights import EMBEDDED, LIGHT

    hints = []
    if detector.info.path.name != Path(BEST).name:
        hints.append(f"for .774 on VOC2007 test: --trained_model {BEST}")
    if detector.info.path == EMBEDDED and detector.device.type == "cpu" and detector.dtype == torch.float32:
        hints.append(f"for a quarter of the work: --trained_model weights/{LIGHT.name}")
    return hints


def run_video(args, source, stop, display):
    """Detect in a video file or a camera, and write a video."""
    from tqdm import tqdm

    from inference.camera import CameraReader
    from inference.encoding import check_target
    from inference.pipeline import in_order, share_threads
    from inference.records import JsonLines, Tally
    from inference.video import VideoReader, VideoWriter
    from utils.errors import printable

    target = check_target(args.output or "output.mp4")
    check_apart([source], target, args.json)
    camera = isinstance(source, int)
    tally = Tally("decode", "network", "draw", "encode")
    with ExitStack() as opened:
        lines = opened.enter_context(JsonLines(args.json)) if args.json else None
        reader = opened.enter_context(CameraReader(source) if camera else VideoReader(source, planar=True))
        detector, labels = load_detector(args)
        batch_size = args.batch_size or (1 if camera or detector.device.type == "cpu" else 16)
        writer = opened.enter_context(VideoWriter(target, reader.size, reader.rate, None if camera else reader))
        started = time.perf_counter()

        def annotate(batch):
            shown, frames = zip(*batch, strict=True)
            return list(zip(shown, frames, detect_and_draw(detector, frames, labels, tally), strict=True))

        if camera:  # one after the other: whatever waits would be shown late
            annotated = map(annotate, batches(reader.timed(), batch_size))
        else:
            workers, threads = share_threads(detector.device)
            tally.threads = {"decode": 1, "network": workers, "draw": workers, "encode": 1}
            annotated = in_order(annotate, batches(reader.timed(), batch_size), workers, threads)
            opened.enter_context(closing(annotated))
        with tqdm(total=reader.expected, unit="frame", dynamic_ncols=True) as bar:
            for batch in annotated:
                for moment, frame, detections in batch:
                    if lines:
                        lines.write(detections, frame=tally.frames, time=round(moment, 6))
                    tally.add(detections)
                    writer.write(frame, moment)
                    if display:
                        display.show(frame if camera else frame.rgb())
                bar.update(len(batch))
                if stop.number or (display and display.closed):
                    break
    tally.seconds.update(decode=reader.seconds, encode=writer.seconds)
    for note in [*writer.notes, *reader.notes]:
        print(f"note: {printable(' '.join(note.split()))}", file=sys.stderr)
    if stop.number:
        print(f"interrupted after {tally.frames} of {reader.expected or 'any number of'} frames", file=sys.stderr)
    print("\n".join([*tally.lines(time.perf_counter() - started), outputs(target, lines)]))


def run_pictures(args, source, stop, display):
    """Detect in a picture, or in each of a folder, and write pictures."""
    from tqdm import tqdm

    from inference.pictures import list_pictures, targets_for
    from inference.records import JsonLines, Tally
    from utils.errors import InputError
    from utils.images import write_image

    paths = list_pictures(source) if source.is_dir() else [source]
    targets = targets_for(paths, args.output, folder=source if source.is_dir() else None)
    check_apart(paths, targets[0], args.json)
    tally = Tally("read", "network", "draw", "write")
    with ExitStack() as opened:
        lines = opened.enter_context(JsonLines(args.json)) if args.json else None
        detector, labels = load_detector(args)
        batch_size = args.batch_size or (1 if detector.device.type == "cpu" else 16)
        started = time.perf_counter()
        bar = opened.enter_context(tqdm(total=len(paths), unit="picture", dynamic_ncols=True, disable=len(paths) == 1))
        for batch in batches(readable(paths, targets, tally), batch_size):
            named, written, pictures = zip(*batch, strict=True)
            found = detect_and_draw(detector, pictures, labels, tally)
            for path, target, picture, detections in zip(named, written, pictures, found, strict=True):
                if lines:
                    lines.write(detections, frame=tally.frames, time=None, file=str(path))
                tally.add(detections)
                with tally.timing("write"):
                    write_image(target, picture)
                if display:
                    display.show(picture, wait=True)
            bar.update(len(batch))
            if stop.number or (display and display.closed):
                break
        if not tally.frames and not stop.number:
            raise InputError(f"{source}: none of its {len(paths)} pictures can be read")
    where = targets[0] if len(targets) == 1 else targets[0].parent
    print("\n".join([*tally.lines(time.perf_counter() - started, "picture"), outputs(where, lines)]))


def readable(paths, targets, tally):
    """Yield (path, target, picture uint8 RGB [H, W, 3]) of those that can be read; say which of several can't."""
    from utils.errors import InputError, printable
    from utils.images import read_image

    for path, target in zip(paths, targets, strict=True):
        try:
            with tally.timing("read"):
                picture = read_image(path)
        except InputError as error:
            if len(paths) == 1:
                raise
            print(f"note: left out: {printable(str(error))}", file=sys.stderr)
            continue
        yield path, target, picture


def detect_and_draw(detector, frames, labels, tally):
    """Detect in frames and draw into them what is found: a list of Detections, of the labels to keep."""
    from inference.drawing import draw_detections
    from inference.pipeline import detect

    with tally.timing("network"):
        found = detect(detector, frames)
    with tally.timing("draw"):
        found = found if labels is None else [detections.of_classes(labels) for detections in found]
        for frame, detections in zip(frames, found, strict=True):
            draw_detections(frame, detections)
    return found


def batches(items, size):
    """Yield lists of `size` items, the last one shorter."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def check_apart(sources, target, json):
    """Raise InputError where an output would overwrite an input, or the other output."""
    from utils.errors import InputError

    inputs = [path for path in sources if isinstance(path, Path)]
    for flag, output in (("--output", target), ("--json", json and Path(json))):
        if output and output.exists() and any(output.samefile(path) for path in inputs):
            raise InputError(f"{output} is the input: name another file with {flag}")
    if json and Path(json).resolve() == Path(target).resolve():
        raise InputError(f"--json {json}: this file is the output already; name another one")


def outputs(target, lines):
    """The line that says where the results lie."""
    from utils.errors import printable

    return printable(f"output: {target}" + (f", {lines.path}" if lines else ""))


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    from utils.errors import exit_on_input_error

    with exit_on_input_error():
        main(arguments)
