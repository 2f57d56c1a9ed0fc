"""Pictures a second through eval.py's path, against the network and Detect alone on the same pictures.

    python benchmarks/evaluation.py data/VOCdevkit/VOC2012/JPEGImages [--pictures 96] [--batch_size 8]

The path decodes and resizes on threads while the network works; what it loses against the network alone is what reading
costs. The network has the paper's width and random weights. Rounds alternate; nothing else should run on the machine.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from metrics.detect import detect_pictures

from data.transforms import resize
from inference import Detector
from inference.pictures import list_pictures
from ssd import build_ssd
from utils.images import read_image
from weights.checkpoint import CheckpointInfo


def get_args_parser():
    parser = argparse.ArgumentParser(description="Time the evaluation path against the network alone.")
    parser.add_argument("folder", help="of pictures")
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    return parser


def main(args):
    paths = list_pictures(Path(args.folder))[: args.pictures]
    detector = Detector.of_network(build_ssd("test").eval(), CheckpointInfo(), threshold=0.01, clip=False)
    small = [resize(read_image(path), detector.size) for path in paths]
    batches = [small[start : start + args.batch_size] for start in range(0, len(small), args.batch_size)]
    detector(batches[0])
    pairs = []
    for _ in range(args.rounds):
        started = time.perf_counter()
        for batch in batches:
            detector(batch)
        alone = len(paths) / (time.perf_counter() - started)
        _, whole = detect_pictures(detector, paths, read_image, batch_size=args.batch_size, show_progress=False)
        pairs.append((whole, alone))
    whole, alone = (median(side) for side in zip(*pairs, strict=True))
    ratio = median(one / other for one, other in pairs)
    print(f"evaluation path {whole:.2f} pictures/s, network and Detect alone {alone:.2f}, ratio {ratio:.3f}")


if __name__ == "__main__":
    main(get_args_parser().parse_args())
