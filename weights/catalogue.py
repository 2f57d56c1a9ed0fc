"""The published checkpoints with their addresses and checksums, and the search for a checkpoint by name."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from utils.download import Remote, fetch
from utils.errors import InputError

FOLDER = Path(__file__).resolve().parent
EMBEDDED = FOLDER / "ssd300_w050_voc.pth"
PREFERRED = "ssd300_mAP_77.43_v2.pth"  # the default if it is in FOLDER


@dataclass(frozen=True)
class CatalogueEntry(Remote):
    """A published file and what is known about it."""

    description: str = ""
    channel_order: str = "RGB"  # or "BGR", of the input that the network was trained on
    clip: bool | None = None  # whether its priors are clipped to [0, 1]; None for a base network, without priors
    mAP: float | None = None  # on VOC2007 test, as published, in 0..1


_AMDEGROOT = "https://s3.amazonaws.com/amdegroot-models"
_ENTRIES = (
    CatalogueEntry(
        name=PREFERRED,
        address=f"{_AMDEGROOT}/{PREFERRED}",
        description="SSD300, trained on VOC2007+2012 trainval in PyTorch",
        size=105_151_288,  # size and checksum are from the Git LFS pointer of a public copy
        checksum="sha256 3d147eb48c8f3771101e12ff14d8105b935d2e4e08fa471e2ee5a2426c20d61e",
        clip=True,
        mAP=0.7743,
    ),
    CatalogueEntry(
        name="ssd_300_VOC0712.pth",
        address=f"{_AMDEGROOT}/ssd_300_VOC0712.pth",
        description="SSD300, trained on VOC2007+2012 trainval in Caffe by the paper's authors, converted",
        channel_order="BGR",  # users measured 0.7718 mAP with BGR and 0.7247 with RGB
        clip=False,
        mAP=0.7726,
    ),
    CatalogueEntry(
        name="vgg16_reducedfc.pth",
        address=f"{_AMDEGROOT}/vgg16_reducedfc.pth",
        description="base network to train from: VGG16 of ImageNet, fc6 and fc7 decimated to convolutions",
    ),
    CatalogueEntry(
        name="vgg16_features-amdegroot-88682ab5.pth",
        address="https://download.pytorch.org/models/vgg16_features-amdegroot-88682ab5.pth",
        description="the same base network from torchvision (528 MB), without fc6 and fc7",
        checksum="sha256 88682ab5",
    ),
)
CATALOGUE = {entry.name: entry for entry in _ENTRIES}


def resolve(name_or_path=None):
    """Return the path of a checkpoint, and download it if necessary.

    None means the 77.43 file if it is in weights/, else the embedded checkpoint. An existing path is returned as it is.
    Otherwise, NAME and weights/NAME mean the file in this project's weights/ folder. If it is missing, and the
    catalogue contains it, it is downloaded.

    Raises InputError if there is no such file, or the download failed.
    """
    if name_or_path is None:
        preferred = FOLDER / PREFERRED
        name_or_path = preferred if preferred.is_file() else EMBEDDED
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise InputError(f"{path}: this is a folder; name the checkpoint file in it")
    if path.parent in (Path(), Path("weights")) or path.parent.resolve() == FOLDER:
        if (FOLDER / path.name).is_file():
            return FOLDER / path.name
        if path.name in CATALOGUE:
            return fetch(CATALOGUE[path.name], FOLDER)
    raise InputError(missing(path))


def missing(path):
    """Return the error message for a missing checkpoint, with its address and checksum."""
    path = Path(path)
    if path == EMBEDDED:
        return f"{path}: no such file, but it belongs to this project; restore it with git, or name another file"
    if entry := CATALOGUE.get(path.name):
        source = f"{entry.address} ({entry.checksum})" if entry.checksum else entry.address
        return f"{path}: no such file; get it from {source}, or download it: python -m weights.download {entry.name}"
    similar = difflib.get_close_matches(path.name, CATALOGUE, n=1, cutoff=0.7)
    remedy = f"did you mean {similar[0]}?" if similar else f"published checkpoints: {', '.join(CATALOGUE)}"
    return f"{path}: no such file; {remedy}"
