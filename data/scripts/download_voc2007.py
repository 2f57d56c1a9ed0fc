"""Fetch Pascal VOC2007 (0.9 GB; 9,963 pictures: trainval and test).

    python data/scripts/download_voc2007.py                  # to ~/data/VOCdevkit/VOC2007
    python data/scripts/download_voc2007.py /big/disk        # then: train.py --dataset_root /big/disk/VOCdevkit

Interrupted, it goes on where it stopped. Archives are checked by their MD5, and what was unpacked is counted.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # run by its path, a script sees only its own folder


def get_args_parser():
    """The command line of this script."""
    parser = argparse.ArgumentParser(description="Fetch Pascal VOC2007 (0.9 GB; 9,963 pictures: trainval and test).")
    parser.add_argument("folder", nargs="?", default="~/data", help="VOCdevkit goes there (default: ~/data)")
    parser.add_argument("--keep_archives", action="store_true", help="keep the archives after unpacking")
    return parser


def main(args):
    """Bring the data set to args.folder."""
    from data.scripts.voc import bring_voc

    bring_voc("2007", args.folder, keep_archives=args.keep_archives)


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    sys.path.insert(0, str(ROOT))
    from utils.errors import exit_on_input_error

    with exit_on_input_error():
        main(arguments)
