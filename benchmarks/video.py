"""A video from file to file, and its stages: decoding, drawing, encoding."""

import contextlib
import io
import tempfile
from itertools import product
from pathlib import Path

import cv2
import imageio.v2 as imageio
import numpy as np

import Object_Detection
from benchmarks import course
from benchmarks.measure import Case
from benchmarks.network import fastest
from inference import Detections
from inference.drawing import draw_detections
from inference.video import VideoReader, VideoWriter
from ssd import build_ssd
from weights.catalogue import EMBEDDED
from weights.checkpoint import CheckpointInfo, load_network, save_checkpoint


def cases(settings):
    """Yields Cases."""
    with tempfile.TemporaryDirectory() as folder:
        yield from stages(settings.clip, Path(folder))
        yield from whole(settings, Path(folder))


def stages(clip, folder):
    frames = read_plainly(clip)
    yield Case(
        "decoding, a frame",
        lambda: list(read(clip)),
        lambda: read_plainly(clip),
        "imageio",
        len(frames),
        rounds=5,
    )
    yield Case(
        "encoding, a frame",
        lambda: write(folder / "ours.mp4", frames),
        lambda: imageio.mimwrite(folder / "peer.mp4", frames, fps=25, macro_block_size=2),
        "imageio",
        len(frames),
        rounds=5,
    )
    frame = np.full((1080, 1920, 3), 90, np.uint8)
    found = ten_objects()
    yield Case(
        "drawing of ten boxes with labels on 1920x1080",
        lambda: draw_detections(frame, found),
        lambda: draw_plainly(frame, found),
        "cv2.rectangle, cv2.putText",
        rounds=50,
    )


def whole(settings, folder):
    """Object_Detection.py, with the embedded checkpoint and at the paper's width (random weights)."""
    clip = settings.clip
    paper = folder / "paper.pth"
    save_checkpoint(paper, build_ssd("test"), CheckpointInfo())
    frames = sum(1 for _ in imageio.get_reader(clip))
    ways = dict.fromkeys((("torch", "auto"), fastest(settings.device)))
    for (name, weights), way in product((("embedded", EMBEDDED), ("width 1", paper)), ways):
        net, _ = load_network(weights, phase="train")
        yield Case(
            f"video {Path(clip).name}, {name}, {way[0]}, {way[1]}, a frame",
            lambda weights=weights, way=way: detect_objects(clip, folder / "ours.mp4", weights, settings.device, way),
            lambda net=net: course.run(net, clip, folder / "peer.mp4"),
            "a course script's way (no sound), on the CPU",
            frames,
            rounds=1 if settings.quick else 5,
        )


def detect_objects(clip, target, weights, device, way):
    """Run the script, without its words. way: (engine, precision)."""
    command = [clip, "--output", str(target), "--trained_model", str(weights), "--device", str(device)]
    command += ["--engine", way[0], "--precision", way[1]]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        Object_Detection.main(Object_Detection.get_args_parser().parse_args(command))


def read(clip):
    with VideoReader(clip) as reader:
        yield from reader


def read_plainly(clip):
    """All frames by imageio, whose reader says that it is infinitely long: list() would believe it."""
    with imageio.get_reader(clip) as reader:
        return list(iter(reader.iter_data()))


def write(path, frames):
    height, width = frames[0].shape[:2]
    with VideoWriter(path, (width, height), 25) as writer:
        for frame in frames:
            writer.write(frame)


def ten_objects():
    """Ten detections spread over a frame of 1920x1080."""
    corner = np.random.RandomState(0).uniform(0, [1500, 800], (10, 2))
    boxes = np.hstack([corner, corner + 250]).astype(np.float32)
    return Detections(boxes, np.linspace(0.9, 0.5, 10, dtype=np.float32), np.arange(10), ["diningtable"] * 10)


def draw_plainly(frame, found):
    for box, score, name in zip(found.boxes.astype(int).tolist(), found.scores, found.names, strict=True):
        cv2.rectangle(frame, box[:2], box[2:], (255, 0, 0), 3)
        cv2.putText(frame, f"{name} {score:.2f}", box[:2], cv2.FONT_HERSHEY_SIMPLEX, 1, (255, 255, 255), 2, cv2.LINE_AA)
