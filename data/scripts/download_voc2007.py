"""Download PASCAL VOC2007 (0.9 GB, 9,963 images: trainval and test).

python data/scripts/download_voc2007.py                  # to ~/data/VOCdevkit/VOC2007; run it again to resume
python data/scripts/download_voc2007.py /big/disk        # then: train.py --dataset_root /big/disk/VOCdevkit
"""

import argparse
import sys
from pathlib import Path


def get_args_parser():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", default="~/data", help="target of VOCdevkit (default: ~/data)")
    parser.add_argument("--keep_archives", action="store_true", help="keep the archives after unpacking")
    return parser


def main(args):
    from data.scripts.archives import download

    download("VOC2007", args.folder, args.keep_archives)


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script sees only its own folder
    from utils.errors import exit_on_input_error

    with exit_on_input_error():
        main(arguments)
