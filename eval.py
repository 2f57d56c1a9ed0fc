"""Score a detector, or saved detection files.

On VOC2007 test:

    python eval.py --trained_model weights/ssd300_mAP_77.43_v2.pth

On a folder in VOC format, COCO val2017, and the devkit's det_test_<class>.txt:

    python eval.py --dataset my_boxes --split val
    python eval.py --dataset COCO --trained_model weights/my_coco.pth
    python eval.py --detections results

On four GPUs: torchrun --nproc_per_node=4 eval.py ...

Prints a table, and writes results.json, pr_curves.png and, for a network, detection files and mistakes.html to
--save_folder.
"""

import gc
import sys

from utils.errors import count, exit_on_input_error, say
from utils.flags import Parser, boolean, number


def get_args_parser():
    parser = Parser(__doc__)
    at_least_1 = number(int, 1)

    add = parser.add_argument_group("what is scored").add_argument
    help_text = "checkpoint (default: the 77.43 network if it is in weights/, else the embedded one)"
    add("--trained_model", metavar="FILE", help=help_text)
    help_text = "score the det_<split>_<class>.txt in this folder (COCO data: or a results JSON) instead of a network"
    add("--detections", metavar="PATH", help=help_text)

    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="VOC", metavar="VOC|COCO|ILSVRC|DIR", help="DIR: a folder in VOC format")
    help_text = "folder of the data (default: ~/data/VOCdevkit, ~/data/coco, ~/data/ILSVRC)"
    add("--voc_root", "--dataset_root", metavar="DIR", help=help_text)
    help_text = "such as test or 2012_val (default: VOC2007 test, COCO val2017, ILSVRC val2, a folder's val or test)"
    add("--split", help=help_text)

    add = parser.add_argument_group("detection").add_argument
    add("--confidence_threshold", type=number(float, 0, below=1), default=0.01, help="minimum score")
    add("--top_k", type=at_least_1, default=200, help="boxes per class that enter non-maximum suppression")
    add("--keep_top_k", type=at_least_1, help="boxes per image over all classes (default: all)")
    add("--batch_size", type=at_least_1, help="images per pass (default: 16 on CUDA, else 4)")
    add("--num_workers", type=number(int, 0), default=0, help="threads that read and detect; 0: by device and cores")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--cuda", type=boolean, default=True, metavar="True|False", help="use CUDA if it is available")
    precisions = ("auto", "float32", "bfloat16", "float16", "int8")
    add("--precision", choices=precisions, default="auto", help="int8: on CPU, by OpenVINO")
    help_text = "auto is openvino for --precision int8, else torch; openvino: on CPU"
    add("--engine", choices=("auto", "torch", "openvino"), default="auto", help=help_text)
    add("--calibration", metavar="DIR", help="images for int8's calibration")

    add = parser.add_argument_group("figures and files").add_argument
    add("--rule", choices=("reference", "devkit", "both"), default="both", help="rule of VOC's AP")
    add("--coco_metrics", action="store_true", help="compute COCO's twelve figures for other data, too")
    add("--save_folder", default="eval", metavar="DIR", help="folder for the report")
    help_text = "remove the detection files that this run wrote"
    add("--cleanup", type=boolean, nargs="?", const=True, default=False, metavar="True|False", help=help_text)
    return parser


def main(args):
    """Score, print the figures and write the report. Returns the content of results.json; None if not on rank 0."""
    from datetime import datetime, timezone
    from time import perf_counter

    gc.disable()  # garbage collections during the imports would take half a second
    from inference import Detector
    from metrics.evaluation import Scored, detect_images, evaluate, read_detections
    from metrics.ground_truth import open_evaluation_set
    from metrics.report import prepare_folder, summary, table, write_detections, write_report
    from training.distributed import join
    from utils.files import file_hash
    from utils.system import device_name, keep_freed_memory
    from weights.catalogue import resolve

    gc.freeze()
    gc.enable()
    keep_freed_memory()
    date, started = datetime.now(timezone.utc), perf_counter()
    images = open_evaluation_set(args.dataset, args.voc_root, args.split, images=args.detections is None)
    detection_files = []
    if args.detections is not None:
        scored = read_detections(args.detections, images)
        folder = prepare_folder(args.save_folder, images.folder)
    else:
        path = resolve(args.trained_model)
        with join(device_name(args.device, args.engine, args.precision, args.cuda)) as (ranks, device):
            detector = Detector(
                path,
                device=str(device),
                precision=args.precision,
                threshold=args.confidence_threshold,
                top_k=args.top_k,
                keep_top_k=args.keep_top_k,
                clip=False,  # as 77.43 was measured
                engine=args.engine,
                calibration=args.calibration,
            )
            images.ground_truth(detector.class_names)  # raises InputError now if the network has none of the classes
            folder = prepare_folder(args.save_folder, images.folder, new_detections=True)
            ranks.say(f"network: {detector.description}")
            detections, rate = detect_images(
                detector, images.paths, batch_size=args.batch_size, num_workers=args.num_workers, ranks=ranks
            )
        if not ranks.is_main:
            return None
        say(f"{rate:.1f} images/s, including reading\n")
        source = {
            "checkpoint": str(path),
            "sha256": file_hash(path),
            "network": detector.info.config.name,
            "width": detector.info.width,
            "classes": list(detector.class_names),
            "channel_order": detector.info.channel_order,
            "trained_with": detector.info.trained_with,
            "device": str(detector.device),
            "engine": detector.engine,
            "precision": str(detector.dtype).removeprefix("torch."),
            "images_per_second": round(rate, 2),
        }
        scored = Scored(path.name, detector.class_names, detections, source)
        detection_files = write_detections(folder, images, scored)

    evaluation = evaluate(images, scored, args.rule, args.coco_metrics)
    for note in evaluation.notes:
        say(f"note: {note}", sys.stderr)
    say(f"{table(evaluation)}\n\n" + "\n".join(summary(evaluation)))
    if args.cleanup:
        for path in detection_files:
            path.unlink()
        detection_files = []
    details = {
        "configuration": vars(args),
        "detection_files": [path.name for path in detection_files],
        "date": date.isoformat(timespec="seconds"),
        "seconds": round(perf_counter() - started, 1),
    }
    content = write_report(folder, evaluation, details)
    names = [name for name in ("pr_curves.png", "mistakes.html", "results.json") if (folder / name).is_file()]
    written = [count(len(detection_files), "detection file")] if detection_files else []
    say(f"report in {folder}: {', '.join(written + names)}")
    return content


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    with exit_on_input_error():
        main(arguments)
