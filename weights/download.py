"""Download published checkpoints.

python -m weights.download                                   # what there is
python -m weights.download ssd300_mAP_77.43_v2.pth           # into weights/
python -m weights.download vgg16_reducedfc.pth --folder /big/disk
"""

import argparse
from pathlib import Path

from weights.catalogue import CATALOGUE, FOLDER, download


def describe(entry):
    """Two lines on a catalogue entry, for people."""
    size = f"{entry.size / 1e6:,.0f} MB" if entry.size else "size unknown"
    score = f", {entry.mAP:.4f} mAP on VOC2007 test" if entry.mAP else ""
    notes = f" ({entry.notes})" if entry.notes else ""
    return f"{entry.name}: {size}, {entry.channel_order} input{score}\n    {entry.description}{notes}"


def get_args_parser():
    """The command line of this script."""
    parser = argparse.ArgumentParser(prog="python -m weights.download", description="Download published checkpoints.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="files to download (default: list them)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to (default: weights/ of this project)")
    return parser


def main(args):
    """Download what is named, or list what there is."""
    from utils.errors import InputError

    for name in args.names:
        if name not in CATALOGUE:
            raise InputError(f"{name} isn't known; files that can be downloaded: {', '.join(CATALOGUE)}")
    for name in args.names:
        print(f"{name}: in {download(CATALOGUE[name], args.folder).parent}")
    if not args.names:
        print("\n".join(describe(entry) for entry in CATALOGUE.values()))


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    from utils.errors import exit_on_input_error

    with exit_on_input_error():
        main(arguments)
