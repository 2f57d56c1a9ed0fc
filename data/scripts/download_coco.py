"""Download COCO (20 GB, 123,287 images with boxes of 80 classes).

python data/scripts/download_coco.py                    # to ~/data/coco: train2017 and val2017; run it again to resume
python data/scripts/download_coco.py /big/disk --year 2014

The train and val split of 2017 are called trainval35k and minival in papers that use the images of 2014.
"""

import argparse
import sys
from pathlib import Path


def get_args_parser():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", default="~/data", help="target of coco (default: ~/data)")
    parser.add_argument("--year", choices=("2014", "2017"), default="2017", help="of the splits (default: 2017)")
    parser.add_argument("--keep_archives", action="store_true", help="keep the archives after unpacking")
    return parser


def main(args):
    from data.scripts.archives import download

    download(f"COCO{args.year}", args.folder, args.keep_archives)


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script sees only its own folder
    from utils.errors import exit_on_input_error

    with exit_on_input_error():
        main(arguments)
