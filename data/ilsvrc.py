"""ILSVRC DET: a placeholder with the names of the data set's own module, until that is merged."""

from pathlib import Path

from .config import HOME
from .voc0712 import VOCDetection

ILSVRC_ROOT = str(Path(HOME) / "data" / "ILSVRC")
ILSVRC_SYNSETS = {"n02672831": "accordion", "n02691156": "airplane", "n02084071": "dog"}


class ILSVRCDetection(VOCDetection):
    def __init__(self, root, image_set):
        self.root, self.image_set = Path(root), image_set
        path = self.root / "ImageSets" / "DET" / f"{image_set}.txt"
        self.ids = [line.split()[0] for line in path.read_text().splitlines()]

    def image_path(self, index):
        return self.root / "Data" / "DET" / "val" / f"{self.ids[index]}.JPEG"

    def annotation_path(self, index):
        return self.root / "Annotations" / "DET" / "val" / f"{self.ids[index]}.xml"
