"""Make data/sample.mp4, the clip that Object_Detection.py runs on when it is given nothing else.

    python -m data.make_sample                        # writes data/sample.mp4
    python -m data.make_sample --output /tmp/s.mp4

Photographs that ship inside two well-known packages are filmed with a slowly moving camera: SAMPLE_LICENSE.md says
whose they are. Only this script needs those packages (pip install scikit-image matplotlib); using the clip doesn't.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT, FPS = 640, 360, 25
FADE = 5  # frames of a cross-fade: long enough not to jump, short enough that few frames show two pictures at once
OUTPUT = Path(__file__).with_name("sample.mp4")


@dataclass(frozen=True)
class View:
    """Where the camera stands: the centre of what it sees and its width, in pixels of the picture."""

    x: float
    y: float
    width: float


@dataclass(frozen=True)
class Shot:
    """One picture and the camera's way over it, in `frames` frames (the cross-fade into the next shot included)."""

    picture: str
    start: View
    end: View
    frames: int


# 16:9 views of pictures that are not: as much of the cat and of each person as fits, at every moment. Where a view
# reaches past the cat's picture, on its blurred right side, the border is mirrored.
SHOTS = (
    Shot("cat", View(252, 150, 504), View(234, 148, 446), 76),
    Shot("astronaut", View(256, 145, 508), View(250, 140, 452), 60),
    Shot("hopper", View(256, 304, 512), View(256, 282, 496), 74),
)


def get_args_parser():
    """The command line of this script."""
    parser = argparse.ArgumentParser(description="Make the sample clip from freely licensed photographs.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the clip to write (default: data/sample.mp4)")
    parser.add_argument("--crf", type=int, default=20, help="H.264 quality: lower is better and larger (default: 20)")
    return parser


def load_pictures():
    """The pictures by name, uint8 RGB [H, W, 3]. Raises InputError where a package is missing."""
    import cv2

    from utils.errors import InputError

    try:
        import matplotlib
        import skimage.data
    except ImportError as error:
        raise InputError(f"{error.name} is missing: pip install scikit-image matplotlib") from error
    hopper_path = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    hopper = cv2.imread(str(hopper_path))
    if hopper is None:
        raise InputError(f"{hopper_path} can't be read: install matplotlib again")
    hopper = cv2.cvtColor(hopper, cv2.COLOR_BGR2RGB)  # [600, 512, 3]
    return {"cat": skimage.data.chelsea(), "astronaut": skimage.data.astronaut(), "hopper": hopper}


def view_at(shot, index):
    """The camera's place at frame `index` of the shot: it starts and stops gently (smoothstep)."""
    t = index / (shot.frames - 1)
    t = t * t * (3 - 2 * t)

    def between(a, b):
        return a + (b - a) * t

    # The width changes by a constant factor a step, which is what looks like an even zoom.
    width = shot.start.width * (shot.end.width / shot.start.width) ** t
    return View(between(shot.start.x, shot.end.x), between(shot.start.y, shot.end.y), width)


def render(picture, view):
    """What the camera sees: uint8 RGB [HEIGHT, WIDTH, 3], sampled at fractions of a pixel so that nothing jitters."""
    import cv2
    import numpy as np

    scale = view.width / WIDTH  # picture pixels to one pixel of the frame
    if scale > 1:  # a smaller rendering needs a low-pass first, else fine texture flickers as the camera moves
        picture = cv2.GaussianBlur(picture, (0, 0), 0.45 * scale)
    # Maps frame to picture; pixel centres lie at whole numbers in both.
    matrix = np.array(
        [
            [scale, 0, view.x - scale * (WIDTH - 1) / 2],
            [0, scale, view.y - scale * (HEIGHT - 1) / 2],
        ]
    )
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, matrix, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def make_frames(pictures, shots=SHOTS):
    """Yield the clip's frames, uint8 RGB [HEIGHT, WIDTH, 3]; neighbouring shots overlap by FADE frames."""
    import cv2

    tail = []  # the last FADE frames of the shot before
    for number, shot in enumerate(shots):
        frames = [render(pictures[shot.picture], view_at(shot, i)) for i in range(shot.frames)]
        for i, before in enumerate(tail):
            weight = (i + 1) / (FADE + 1)
            frames[i] = cv2.addWeighted(frames[i], weight, before, 1 - weight, 0)
        tail = frames[-FADE:] if number + 1 < len(shots) else []
        yield from frames[: len(frames) - len(tail)]


def write_clip(path, frames, crf):
    """Write uint8 RGB frames as H.264, yuv420p, with the index first so that a browser starts at once."""
    import imageio_ffmpeg
    import numpy as np

    writer = imageio_ffmpeg.write_frames(
        str(path),
        (WIDTH, HEIGHT),
        fps=FPS,
        codec="libx264",
        pix_fmt_out="yuv420p",
        quality=None,
        macro_block_size=1,
        # One thread and no encoder version in the file: the same pictures make the same bytes.
        output_params=["-crf", str(crf), "-preset", "veryslow", "-threads", "1", "-movflags", "+faststart"]
        + ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"],
    )
    writer.send(None)
    try:
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()


def main(args):
    """Make the clip and say what came out."""
    from utils.errors import InputError

    if not args.output.parent.is_dir():
        raise InputError(f"{args.output}: there is no folder {args.output.parent}; make it first")
    frames = list(make_frames(load_pictures()))
    write_clip(args.output, frames, args.crf)
    seconds = len(frames) / FPS
    print(f"{args.output}: {len(frames)} frames, {seconds:.1f} s, {args.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    from utils.errors import exit_on_input_error

    with exit_on_input_error():
        main(arguments)
