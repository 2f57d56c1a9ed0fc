"""Download VOC and COCO.

    python data/scripts/download.py VOC2007 VOC2012              # 2.9 GB, to ~/data/VOCdevkit
    python data/scripts/download.py COCO2017 --folder /disk      # 20 GB; train.py --dataset_root /disk/coco

Run it again to resume. The splits of COCO2017 have the images of 2014's trainval35k and minival.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script sees only its own folder

from utils.download import Remote, fetch, only_one, unpack
from utils.errors import InputError, exit_on_input_error
from utils.files import make_folder
from utils.flags import Parser

_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
_COCO = "http://images.cocodataset.org"


@dataclass(frozen=True)
class Archive(Remote):
    """An archive and where to unpack it. It counts as unpacked if `count` non-empty files match `pattern`."""

    unpack_to: str = "."
    pattern: str = "*"
    count: int = 1

    def problem(self, folder):
        """Return a phrase if fewer than `count` files that are not empty match the pattern, else None."""
        found = sum(path.stat().st_size > 0 for path in folder.glob(self.pattern))
        return f"{self.pattern} matches {found:,} files, expected {self.count:,}" if found < self.count else None


def download(data_set, folder, keep_archives=False):
    """Download and unpack "VOC2007", "VOC2012", "COCO2014" or "COCO2017" below `folder`.

    Complete data is skipped, and an interrupted run resumes. Raises InputError if a download or an archive fails.
    """
    folder = Path(folder).expanduser()
    if folder.name in ("VOCdevkit", "coco"):  # these folders are in the archives
        folder = folder.parent
    make_folder(folder, "--folder")
    with only_one(folder / data_set):
        # If an archive is still there, it may have been unpacked only in part.
        todo = [item for item in ARCHIVES[data_set] if (folder / item.name).exists() or item.problem(folder)]
        size = sum(archive.size for archive in todo) / 1e9
        print(f"{data_set}: {size:.1f} GB of archives to fetch or unpack in {folder}; the files take as much again")
        for archive in todo:
            path = fetch(archive, folder)
            unpack(path, folder / archive.unpack_to)
            if problem := archive.problem(folder):
                raise InputError(f"{path}: unpacked, but {problem}")
            if not keep_archives:
                path.unlink()
    print(f"{data_set}: complete in {folder}")


def _voc(year, name, size, md5, split):
    pattern = f"VOCdevkit/VOC{year}/ImageSets/Main/{split}.txt"
    return Archive(name, f"{_VOC}/voc{year}/{name}", size, f"md5 {md5}", ".", pattern)


def _coco_annotations(year, size, md5):
    name = f"annotations_trainval{year}.zip"
    pattern = f"coco/annotations/instances_*{year}.json"
    return Archive(name, f"{_COCO}/annotations/{name}", size, f"md5 {md5}", "coco", pattern, 2)


def _coco_images(split, size, md5, count):
    name, pattern = f"{split}.zip", f"coco/images/{split}/*.jpg"
    return Archive(name, f"{_COCO}/zips/{name}", size, f"md5 {md5}", "coco/images", pattern, count)


# VOC's checksums are those in torchvision. COCO publishes none; these are from libraries such as PaddleDetection.
# They make the download over http safe.
ARCHIVES = {
    "VOC2007": [
        _voc("2007", "VOCtrainval_06-Nov-2007.tar", 460032000, "c52e279531787c972589f7e41ab4ae64", "trainval"),
        _voc("2007", "VOCtest_06-Nov-2007.tar", 451020800, "b6e924de25625d8de591ea690078ad9f", "test"),
    ],
    "VOC2012": [
        _voc("2012", "VOCtrainval_11-May-2012.tar", 1999639040, "6cd6e144f989b92b3379bac3b3de84fd", "trainval"),
    ],
    "COCO2014": [
        _coco_annotations("2014", 252872794, "0a379cfc70b0e71301e0f377548639bd"),
        _coco_images("val2014", 6645013297, "a3d79f5ed8d289b7a7554ce06a5782b3", 40504),
        _coco_images("train2014", 13510573713, "0da8c0bd3d6becc4dcb32757491aca88", 82783),
    ],
    "COCO2017": [
        _coco_annotations("2017", 252907541, "f4bbac642086de4f52a3fdda2de5fa2c"),
        _coco_images("val2017", 815585330, "442b8da7639aecaf257c1dceb8ba8c80", 5000),
        _coco_images("train2017", 19336861798, "cced6f7f71b7629ddf16f17bbcfab6b2", 118287),
    ],
}


def get_args_parser():
    parser = Parser(__doc__)
    parser.add_argument("data_set", nargs="+", choices=ARCHIVES, metavar="DATA_SET", help=", ".join(ARCHIVES))
    parser.add_argument("--folder", default="~/data", help="parent folder of VOCdevkit and coco")
    parser.add_argument("--keep_archives", action="store_true", help="keep the archives after unpacking")
    return parser


def main(args):
    for data_set in args.data_set:
        download(data_set, args.folder, args.keep_archives)


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    with exit_on_input_error():
        main(arguments)
