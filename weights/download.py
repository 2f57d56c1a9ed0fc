"""Download published checkpoints.

python -m weights.download                                   # list them
python -m weights.download ssd300_mAP_77.43_v2.pth           # into weights/
python -m weights.download vgg16_reducedfc.pth --folder /big/disk
"""

from pathlib import Path

from utils.download import fetch
from utils.errors import InputError, exit_on_input_error
from utils.flags import Parser
from weights.catalogue import CATALOGUE, FOLDER


def get_args_parser():
    parser = Parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="files to download (default: list them)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="target folder (default: this project's weights/)")
    return parser


def main(args):
    for name in args.names:
        if name not in CATALOGUE:
            raise InputError(f"{name}: unknown name; choose from {', '.join(CATALOGUE)}")
    for name in args.names:
        print(f"{name}: in {fetch(CATALOGUE[name], args.folder).parent}")
    for entry in () if args.names else CATALOGUE.values():
        size = f"{entry.size / 1e6:,.0f} MB" if entry.size else "size unknown"
        score = f", {entry.mAP:.4f} mAP on VOC2007 test" if entry.mAP else ""
        print(f"{entry.name}: {size}, {entry.channel_order} input{score}\n    {entry.description}")


if __name__ == "__main__":
    with exit_on_input_error():
        main(get_args_parser().parse_args())
