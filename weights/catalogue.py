"""The published checkpoints that this project knows, and from a name to a file.

Nothing is downloaded unless its name is asked for.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

FOLDER = Path(__file__).resolve().parent
EMBEDDED = FOLDER / "ssd300_w050_voc.pth"
LIGHT = FOLDER / "ssd300_w025_voc.pth"  # embedded as well: half as wide, a quarter of the work
PREFERRED = "ssd300_mAP_77.43_v2.pth"  # used without being asked for, where it lies


@dataclass(frozen=True)
class CatalogueEntry:
    """A published file.

    size: bytes, None where unknown. sha256: None where unknown; may be its first digits only, as torchvision puts them
    into a file's name. channel_order: what the network was trained on. clip: whether its priors are clipped to the
    picture, None for a base without priors. mAP: VOC2007 test, a fraction, as published.
    """

    name: str
    address: str
    description: str
    channel_order: str
    size: int | None = None
    sha256: str | None = None
    clip: bool | None = None
    mAP: float | None = None
    notes: str = ""


_AMDEGROOT = "https://s3.amazonaws.com/amdegroot-models"
_ENTRIES = (
    CatalogueEntry(
        name=PREFERRED,
        address=f"{_AMDEGROOT}/ssd300_mAP_77.43_v2.pth",
        description="SSD300, trained on VOC2007+2012 trainval in PyTorch",
        channel_order="RGB",
        size=105_151_288,
        sha256="3d147eb48c8f3771101e12ff14d8105b935d2e4e08fa471e2ee5a2426c20d61e",
        clip=True,
        mAP=0.7743,
        notes="size and sha256 are those that the Git LFS pointer of a public copy records",
    ),
    CatalogueEntry(
        name="ssd_300_VOC0712.pth",
        address=f"{_AMDEGROOT}/ssd_300_VOC0712.pth",
        description="SSD300, trained on VOC2007+2012 trainval in Caffe by the paper's authors, converted",
        channel_order="BGR",
        clip=False,
        mAP=0.7726,
        notes="its users measured 0.7718 with BGR input and 0.7247 with RGB",
    ),
    CatalogueEntry(
        name="vgg16_reducedfc.pth",
        address=f"{_AMDEGROOT}/vgg16_reducedfc.pth",
        description="VGG16 trained on ImageNet, fc6 and fc7 decimated to convolutions: the base to train from",
        channel_order="RGB",
        notes="its keys have no 'vgg.' in front; the lineage feeds it RGB",
    ),
    CatalogueEntry(
        name="vgg16_features-amdegroot-88682ab5.pth",
        address="https://download.pytorch.org/models/vgg16_features-amdegroot-88682ab5.pth",
        description="the same base as torchvision publishes it (528 MB), its fc6 and fc7 to be initialised",
        channel_order="RGB",
        sha256="88682ab5",
        notes="of its keys only 'features.*' count; the sha256's first digits are in its name",
    ),
)

CATALOGUE = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def resolve(name_or_path=None):
    """The checkpoint file that a user means, downloaded where it is one of the catalogue's that isn't there.

    None is the 77.43 file where it lies in weights/, else the embedded checkpoint. A name of the catalogue, with or
    without "weights/" before it, is this project's weights/NAME. Anything else is a path. A path that exists is always
    taken as it is.

    Raises:
        InputError: no such file, or the download fails.
    """
    if name_or_path is None:
        preferred = FOLDER / PREFERRED
        return preferred if preferred.is_file() else _existing(EMBEDDED)
    path = Path(name_or_path).expanduser()
    if path.exists():
        return _existing(path)
    entry = CATALOGUE.get(path.name)
    if entry is None or not _means_our_folder(path):
        return _existing(path)
    target = FOLDER / entry.name
    return target if target.is_file() else download(entry, FOLDER)


def download(entry, folder=FOLDER, *, progress=True):
    """Bring a catalogue entry's file into `folder`; returns its path.

    It is resumed where an earlier run stopped, checked by size and sha256 as far as they are published, and takes its
    name only when right. progress: show a bar where stderr is a terminal.

    Raises:
        InputError: it can't be had, in one line that says what to put where, and from which address.
    """
    from data.fetch import Remote, fetch

    return fetch(Remote(entry.name, entry.address, size=entry.size, sha256=entry.sha256), folder, progress=progress)


def _means_our_folder(path):
    return path.parent in (Path(), Path("weights")) or path.parent.resolve() == FOLDER


def _existing(path):
    """`path`, if it is a file. Raises InputError with the nearest remedy otherwise."""
    if path.is_file():
        return path
    from utils.errors import InputError

    if path.is_dir():
        raise InputError(f"{path} is a folder; name the checkpoint file in it")
    if path.name in CATALOGUE:
        raise InputError(f"{path} isn't there; give only the name, {path.name}, to have it downloaded to {FOLDER}")
    if path in (EMBEDDED, LIGHT):
        raise InputError(
            f"{path}, which belongs to this project, is missing; get it back with git, or name another file"
        )
    near = difflib.get_close_matches(path.name, CATALOGUE, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}?" if near else f"files that can be downloaded by name: {', '.join(CATALOGUE)}"
    raise InputError(f"{path} isn't there; {hint}")
