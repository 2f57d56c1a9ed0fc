"""Pascal VOC's archives, and the check of what they hold."""

from functools import partial
from pathlib import Path

from data.scripts.bring import Archive, bring

# Addresses and MD5 as in torchvision/datasets/voc.py; sizes as the server states them; splits' sizes from the
# challenge's own pages: (year, split): pictures.
HOST = "https://thor.robots.ox.ac.uk/pascal/VOC"
SPLIT_SIZES = {
    ("2007", "train"): 2501,
    ("2007", "val"): 2510,
    ("2007", "trainval"): 5011,
    ("2007", "test"): 4952,
    ("2012", "train"): 5717,
    ("2012", "val"): 5823,
    ("2012", "trainval"): 11540,
}


def check_splits(year, splits, root):
    """Look whether the splits under `root`/VOCdevkit have their pictures and annotations: (problem or None, words)."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    pictures, annotations = names_in(folder / "JPEGImages", ".jpg"), names_in(folder / "Annotations", ".xml")
    words = []
    for split in splits:
        path = folder / "ImageSets" / "Main" / f"{split}.txt"
        if not path.is_file():
            return f"{path} isn't there", ""
        ids = {line.split()[0] for line in path.read_text().splitlines() if line.strip()}
        if len(ids) != SPLIT_SIZES[year, split]:
            return f"{path} lists {len(ids):,} pictures, not {SPLIT_SIZES[year, split]:,}", ""
        for kind, names in (("picture", pictures), ("annotation", annotations)):
            if missing := ids - names:
                return f"{len(missing):,} {kind}s of {path} are missing, such as {min(missing)}", ""
        words.append(f"{split} {len(ids):,}")
    return None, f"pictures with annotations: {', '.join(words)}"


def names_in(folder, ending):
    """The names, without ending, of a folder's files of that ending; empty files don't count."""
    if not folder.is_dir():
        return set()
    return {path.stem for path in folder.iterdir() if path.suffix == ending and path.stat().st_size}


def archive(year, name, size, md5, splits):
    """One of VOC's archives; all hold paths that begin with VOCdevkit/."""
    return Archive(name, f"{HOST}/voc{year}/{name}", size, md5, ".", partial(check_splits, year, splits))


ARCHIVES = {
    "2007": (
        archive(
            "2007",
            "VOCtrainval_06-Nov-2007.tar",
            460_032_000,
            "c52e279531787c972589f7e41ab4ae64",
            ("train", "val", "trainval"),
        ),
        archive("2007", "VOCtest_06-Nov-2007.tar", 451_020_800, "b6e924de25625d8de591ea690078ad9f", ("test",)),
    ),
    "2012": (
        archive(
            "2012",
            "VOCtrainval_11-May-2012.tar",
            1_999_639_040,
            "6cd6e144f989b92b3379bac3b3de84fd",
            ("train", "val", "trainval"),
        ),
    ),
}


def bring_voc(year, folder, *, keep_archives=False):
    """Bring one year's archives to `folder`/VOCdevkit (or to `folder`, where that is its name)."""
    folder = Path(folder)
    if folder.name == "VOCdevkit":  # the archives hold that folder themselves
        folder = folder.parent
    bring(f"VOC{year}", ARCHIVES[year], folder, keep_archives=keep_archives)
