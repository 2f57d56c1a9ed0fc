"""Fetch COCO (20 GB; 123,287 pictures with boxes of 80 classes).

    python data/scripts/download_coco.py                    # to ~/data/coco, splits train2017 and val2017
    python data/scripts/download_coco.py /big/disk --year 2014

2017's train split is what papers on 2014's pictures call trainval35k, its val split their minival.

Interrupted, it goes on where it stopped. Archives are checked by their MD5, and what was unpacked is counted.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # run by its path, a script sees only its own folder


def get_args_parser():
    """The command line of this script."""
    parser = argparse.ArgumentParser(description="Fetch COCO (20 GB; 123,287 pictures with boxes of 80 classes).")
    parser.add_argument("folder", nargs="?", default="~/data", help="coco goes there (default: ~/data)")
    parser.add_argument(
        "--year",
        choices=("2017", "2014"),
        default="2017",
        help="how the pictures are split: 2017's train and val are trainval35k and minival of 2014 (default: 2017)",
    )
    parser.add_argument("--keep_archives", action="store_true", help="keep the archives after unpacking")
    return parser


def main(args):
    """Bring the data set to args.folder."""
    from data.scripts.coco import bring_coco

    bring_coco(args.year, args.folder, keep_archives=args.keep_archives)


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    sys.path.insert(0, str(ROOT))
    from utils.errors import exit_on_input_error

    with exit_on_input_error():
        main(arguments)
