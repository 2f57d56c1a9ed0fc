"""A network that can't learn eight pictures by heart has a fault somewhere between picture and loss."""

import os
from pathlib import Path

import cv2
import imageio.v3 as imageio
import pytest
import torch
from synthetic import write_annotation, write_split

from train import get_args_parser, main
from training.validation import Validation
from weights.checkpoint import load_network

CLIP = Path(__file__).resolve().parents[2] / "data" / "sample.mp4"
# Frames of the clip with the objects on them, and the windows of them that make the eight pictures.
SCENES = {
    20: [("cat", (30, 1, 490, 360))],
    100: [("person", (60, 5, 450, 360))],
    185: [("person", (30, 5, 300, 360)), ("person", (385, 1, 640, 360))],
}
WINDOWS = (
    (20, (0, 0, 640, 360)),
    (20, (0, 0, 500, 360)),
    (20, (20, 0, 400, 300)),
    (100, (0, 0, 640, 360)),
    (100, (50, 0, 460, 360)),
    (185, (0, 0, 640, 360)),
    (185, (0, 0, 320, 360)),
    (185, (320, 0, 640, 360)),
)


@pytest.fixture
def eight_pictures(tmp_path):
    """A folder in VOC format with eight cuts from the clip's photographs."""
    folder = tmp_path / "eight"
    (folder / "JPEGImages").mkdir(parents=True)
    for number, (frame, (left, top, right, bottom)) in enumerate(WINDOWS):
        picture = imageio.imread(CLIP, index=frame, plugin="FFMPEG")[top:bottom, left:right]
        cv2.imwrite(str(folder / "JPEGImages" / f"p{number}.jpg"), picture[:, :, ::-1])
        objects = []
        for name, (x1, y1, x2, y2) in SCENES[frame]:
            box = (max(x1 - left, 1), max(y1 - top, 1), min(x2, right) - left, min(y2, bottom) - top)
            if box[2] - box[0] > 100:
                objects.append((name, box, 0))
        write_annotation(folder, f"p{number}", objects, (right - left, bottom - top))
    write_split(folder, "train", [f"p{number}" for number in range(len(WINDOWS))])
    return folder


@pytest.fixture
def all_threads():
    """This one test has real work for all cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("all_threads")
def test_eight_pictures_are_learned_by_heart(eight_pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
    command = (
        f"--dataset {eight_pictures} --save_folder {tmp_path / 'run'} --basenet none --width 0.125 --no-augment "
        "--batch_size 8 --optimizer adamw --lr 0.003 --schedule cosine --warmup 10 --max_iter 120 "
        "--num_workers 0 --device cpu --precision float32"
    )
    main(get_args_parser().parse_args(command.split()))
    net, info = load_network(tmp_path / "run" / "ssd300_w012_final.pth")
    assert info.class_names == ("cat", "person")
    result = Validation(str(eight_pictures), None, "train", info, "cpu").score(net)
    assert result.mean_ap_11 >= 0.95
