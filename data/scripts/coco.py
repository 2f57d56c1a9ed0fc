"""COCO's archives, and the check of what they hold."""

from functools import partial
from pathlib import Path

from data.scripts.bring import Archive, bring

# The addresses are those on cocodataset.org. COCO publishes no checksums; these MD5 and sizes are the ones that
# libraries which fetch COCO agree on (PaddleDetection's download.py among them), and with them http is safe enough.
HOST = "http://images.cocodataset.org"
# {split: (pictures, objects)}
SPLIT_SIZES = {
    "train2017": (118_287, 860_001),
    "val2017": (5_000, 36_781),
    "train2014": (82_783, 604_907),
    "val2014": (40_504, 291_875),
}


def check_pictures(split, root):
    """Count a split's pictures under `root`/coco/images: (problem or None, what is there in words)."""
    folder = root / "coco" / "images" / split
    found = 0
    if folder.is_dir():
        found = sum(path.suffix == ".jpg" and path.stat().st_size > 0 for path in folder.iterdir())
    if found < SPLIT_SIZES[split][0]:
        return f"{folder} has {found:,} pictures, not {SPLIT_SIZES[split][0]:,}", ""
    return None, f"{split}: {found:,} pictures"


def check_annotations(splits, root):
    """Count pictures and objects of the splits' instances JSON: (problem or None, what is there in words)."""
    words = []
    for split in splits:
        path = root / "coco" / "annotations" / f"instances_{split}.json"
        if not path.is_file():
            return f"{path} isn't there", ""
        # Both keys stand once in each entry. Counting them takes no memory; parsing 450 MB of JSON takes gigabytes.
        found = (count(path, b'"file_name"'), count(path, b'"category_id"'))
        if found != SPLIT_SIZES[split]:
            expected = "{:,} pictures and {:,} objects".format(*SPLIT_SIZES[split])
            return f"{path} has {found[0]:,} pictures and {found[1]:,} objects, not {expected}", ""
        words.append(f"{split} {found[1]:,}")
    return None, f"annotated objects: {', '.join(words)}"


def count(path, word, block=1 << 22):
    """How often `word` stands in a file."""
    total, rest = 0, b""
    with path.open("rb") as file:
        while data := file.read(block):
            data = rest + data
            total += data.count(word)
            rest = data[-(len(word) - 1) :]  # too short to hold the word once more
    return total


def pictures(split, size, md5):
    """The archive of a split's pictures."""
    name = f"{split}.zip"
    return Archive(name, f"{HOST}/zips/{name}", size, md5, "coco/images", partial(check_pictures, split))


def annotations(year, size, md5):
    """The archive of a year's annotations."""
    name = f"annotations_trainval{year}.zip"
    check = partial(check_annotations, (f"train{year}", f"val{year}"))
    return Archive(name, f"{HOST}/annotations/{name}", size, md5, "coco", check)


ARCHIVES = {
    "2017": (
        annotations("2017", 252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c"),
        pictures("val2017", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80"),
        pictures("train2017", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
    ),
    "2014": (
        annotations("2014", 252_872_794, "0a379cfc70b0e71301e0f377548639bd"),
        pictures("val2014", 6_645_013_297, "a3d79f5ed8d289b7a7554ce06a5782b3"),
        pictures("train2014", 13_510_573_713, "0da8c0bd3d6becc4dcb32757491aca88"),
    ),
}


def bring_coco(year, folder, *, keep_archives=False):
    """Bring one year's pictures and annotations to `folder`/coco (or to `folder`, where that is its name)."""
    folder = Path(folder)
    if folder.name == "coco":
        folder = folder.parent
    bring(f"COCO{year}", ARCHIVES[year], folder, keep_archives=keep_archives)
