"""Eight images cut from the bundled clip, with their objects, in VOC format."""

from pathlib import Path

import cv2
import imageio.v3 as imageio
from synthetic import write_annotation, write_split

CLIP = Path(__file__).resolve().parents[1] / "data" / "sample.mp4"
# Frames of the clip with the objects on them, and the windows of them that make the eight images.
SCENES = {
    20: [("cat", (30, 1, 490, 360))],
    100: [("person", (60, 5, 450, 360))],
    185: [("person", (30, 5, 300, 360)), ("person", (385, 1, 640, 360))],
}
WINDOWS = (
    (20, (0, 0, 640, 360)), (20, (0, 0, 500, 360)), (20, (20, 0, 400, 300)), (100, (0, 0, 640, 360)),
    (100, (50, 0, 460, 360)), (185, (0, 0, 640, 360)), (185, (0, 0, 320, 360)), (185, (320, 0, 640, 360)),
)  # fmt: skip


def make_clip_images(folder, rename=None):
    """Write the data set, with a split `train`; returns the folder. rename: {class: another name}."""
    (folder / "JPEGImages").mkdir(parents=True)
    for number, (frame, (left, top, right, bottom)) in enumerate(WINDOWS):
        image = imageio.imread(CLIP, index=frame, plugin="FFMPEG")[top:bottom, left:right]
        cv2.imwrite(str(folder / "JPEGImages" / f"p{number}.jpg"), image[:, :, ::-1])
        objects = []
        for name, (x1, y1, x2, y2) in SCENES[frame]:
            box = (max(x1 - left, 1), max(y1 - top, 1), min(x2, right) - left, min(y2, bottom) - top)
            if box[2] - box[0] > 100:
                objects.append(((rename or {}).get(name, name), box, 0))
        write_annotation(folder, f"p{number}", objects, (right - left, bottom - top))
    write_split(folder, "train", [f"p{number}" for number in range(len(WINDOWS))])
    return folder
