"""The benchmark cases. Each stage is a generator of Cases for a torch.device; `quick` reduces the work."""

import contextlib
import re
import time
from collections import namedtuple
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch

from benchmarks import peers
from data import MEANS, SSDAugmentation
from data.transforms import to_input
from inference import Detector
from inference.pipeline import Pipeline
from inference.video import VideoReader, VideoWriter
from layers import MultiBoxLoss
from metrics.evaluation import detect_images
from ssd import build_ssd
from training.distributed import Ranks
from training.engine import Trainer
from training.optimizer import build_optimizer
from utils.errors import InputError
from utils.images import read_image, write_image
from utils.system import choose_precision, thread_counts
from weights.catalogue import EMBEDDED
from weights.checkpoint import CheckpointInfo, load_network

TORCHVISION = "torchvision's ssd300_vgg16"

# A row of the table. ours and peer are functions without arguments; images is the number of images of a call. precision
# is only set for rows of SSD300 alone, at width 1.
Case = namedtuple("Case", "name ours peer peer_name images precision", defaults=(1, None))


def network(device, quick):
    """SSD300 alone: resized uint8 images on the device -> offsets and class probabilities."""
    net, image = paper_network(device), torch.from_numpy(clip_frames(1, (300, 300))[0]).to(device)
    peer, dtypes = peers.torchvision_ssd(net), precisions(device)
    ways = [("torch", name) for name in dtypes]
    if device.type == "cpu" and not quick:  # the first int8 run takes a minute to quantize
        ways += [("openvino", list(dtypes)[-1]), ("openvino", "int8")]
    for batch in (1, 64) if device.type == "cuda" else (1,):
        for engine, name in ways:
            with contextlib.suppress(InputError):  # OpenVINO is not installed
                detector = Detector.of_network(net, CheckpointInfo(), device, name, engine=engine)
                ours = partial(torch.inference_mode()(detector.outputs), [image] * batch)
                peer_precision = "float32" if name == "int8" else name
                theirs = partial(peers.torchvision_outputs, peer, [image] * batch, dtypes[peer_precision])
                peer_name = f"{TORCHVISION}, {peer_precision}"
                yield Case(f"{engine}, {name}, batch {batch}", ours, theirs, peer_name, batch, name)


def layers(device, quick):
    """Detect on the outputs for a frame and on random crowded ones."""
    net, (frame,) = load_network(EMBEDDED, "train")[0].to(device), clip_frames(1, (300, 300))
    with torch.inference_mode():
        *ordinary, priors = net(to_input(torch.from_numpy(frame)[None].to(device)))
    torch.manual_seed(0)
    crowded = torch.randn(1, 8732, 4).to(device), torch.randn(1, 8732, 21).to(device)
    crowded[1][..., 0] += 4
    for kind, outputs in (("ordinary", ordinary), ("crowded", crowded)):
        scene = outputs[0], outputs[1].softmax(dim=-1), priors
        name = f"Detect, {kind} ({int((scene[1][..., 1:] > 0.01).sum()):,} scores above 0.01)"
        yield Case(name, partial(net.detect, *scene), partial(peers.detect, *scene), "loops over classes and boxes")


def training(device, quick):
    """A training step with its matching, and the augmentation."""
    batch = 32 if device.type == "cuda" else 2 if quick else 8
    net, criterion = paper_network(device).train(), MultiBoxLoss(21)
    images = torch.randint(0, 256, (batch, 300, 300, 3), dtype=torch.uint8, device=device)
    targets, optimizer = random_targets(batch, device), build_optimizer(net, "sgd", 1e-6)
    for name, dtype in precisions(device).items():
        step = Trainer(net, criterion, optimizer, Ranks(), precision=dtype).step
        sides = [lambda step=step: step([images, *criterion.match_targets(targets, net.priors)], 1e-6, 0)]
        sides += [peers.torchvision_step(net, images, targets, dtype)]
        yield Case(f"training step, {name}, batch {batch}", *sides, f"{TORCHVISION}, {name}", batch)
    (image,), boxes, labels = clip_frames(1, (500, 375)), np.array([[50, 75, 250, 260], [200, 190, 450, 350]]), [1, 2]
    augmentation = SSDAugmentation(300, MEANS, subtract_mean=False, rng=np.random.default_rng(0))
    ours = partial(augmentation, image, boxes / [500, 375, 500, 375], np.array(labels))
    theirs = peers.torchvision_augmentation(image, boxes, labels)
    with thread_counts(1):  # of OpenCV; restores both counts at the end
        torch.set_num_threads(1)
        yield Case("augmentation of a 500x375 image, one thread", ours, theirs, "torchvision's v2 transforms")


def detector(device, quick):
    """Detector from end to end: an array in host memory -> boxes in pixels."""
    net = paper_network(device)
    peer = peers.torchvision_ssd(net)
    for size in ((640, 360), (1920, 1080)):
        frames = clip_frames(1, size)
        for precision in precisions(device):
            ours = Detector.of_network(net, CheckpointInfo(), device, precision, threshold=0.01)
            theirs = partial(peers.torchvision_detect, peer, frames[0], device)
            yield Case(f"{size[0]}x{size[1]}, {precision}", partial(ours, frames), theirs, f"{TORCHVISION}, float32")


def video(device, quick):
    """Object_Detection.py's whole job, with the embedded network."""
    detector, net = Detector(EMBEDDED, device), load_network(EMBEDDED, "train")[0].to(device)
    frames = clip_frames(25 if quick else 100)
    with TemporaryDirectory() as folder:
        source, ours, theirs = (Path(folder) / f"{part}.mp4" for part in ("source", "ours", "theirs"))
        with VideoWriter(source, (640, 360), 25) as writer:
            for frame in frames:
                writer.write(frame)

        def annotate():
            with VideoReader(source) as reader, VideoWriter(ours, reader.size, reader.rate, reader) as writer:
                Pipeline(detector, show_progress=False).video(reader, writer)

        name = f"video of {len(frames)} frames, 640x360, {list(precisions(device))[-1]}"
        peer = partial(peers.annotate_video, net, source, theirs, detector.threshold)
        yield Case(name, annotate, peer, "course script, float32", len(frames))


def evaluation(device, quick):
    """eval.py's detection in image files, with the embedded network."""
    detector, frames = Detector(EMBEDDED, device, threshold=0.01, clip=False), clip_frames(16 if quick else 64)
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.jpg" for index in range(len(frames))]
        for path, frame in zip(paths, frames, strict=True):
            write_image(path, frame)
        name = f"{len(paths)} image files, 640x360, {list(precisions(device))[-1]}"
        ours = partial(detect_images, detector, paths, show_progress=False)
        yield Case(name, ours, lambda: [detector([read_image(path)]) for path in paths], "one by one", len(paths))


def precisions(device):
    """{name: dtype} of float32, and of what "auto" chooses on this device if that differs."""
    return {str(dtype)[6:]: dtype for dtype in (torch.float32, choose_precision("auto", device))}


def paper_network(device):
    """SSD300 at width 1. Its heads are scaled so that about as many scores exceed 0.01 as if trained."""
    torch.manual_seed(0)
    net = build_ssd("test").eval()
    with torch.no_grad():
        for head in (*net.loc, *net.conf):
            head.weight.mul_(0.006)
    return net.to(device, memory_format=torch.channels_last)


def clip_frames(count, size=(640, 360)):
    """The first frames of the bundled clip, resized to (width, height): uint8 RGB [H, W, 3]."""
    with VideoReader(Path(__file__).parents[1] / "data" / "sample.mp4") as reader:
        return [cv2.resize(frame, size) for _, frame in zip(range(count), reader, strict=False)]


def random_targets(batch, device):
    """Four objects in each image: list of float32 [4, 5], corners as fractions and the class from 0."""
    corner, side = torch.rand(2, batch, 4, 2).mul(torch.tensor([0.6, 0.4]).view(2, 1, 1, 1))
    return list(torch.cat([corner, corner + side, torch.randint(20, (batch, 4, 1))], dim=2).to(device))


def measure(case, device, seconds):
    """Return the median milliseconds per image of ours and of the peer, timed in turn for `seconds`."""
    synchronize = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    times, end = ([], []), time.perf_counter() + seconds
    while len(times[1]) < 3 or (time.perf_counter() < end and len(times[1]) < 200):
        for function, own in zip((case.ours, case.peer), times, strict=True):
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            own.append((time.perf_counter() - start) * 1000 / case.images)
    return [median(own[1:]) for own in times]  # the first call allocates memory and chooses kernels


def product_rate(device, dtype):
    """Return the rate of a matrix product in GFLOP/s; a multiply-add counts as two."""
    side = 8192 if device.type == "cuda" else 2048
    product = partial(torch.matmul, *torch.randn(2, side, side, device=device).to(dtype))
    return 2 * side**3 / measure(Case("matrix product", product, product, ""), device, 2)[0] / 1e6


def describe_machine(device):
    """Return a description of the machine as a dict."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    machine = {"device": (names or ["CPU"])[0], "threads": torch.get_num_threads(), "torch": torch.__version__}
    if device.type == "cuda":
        tf32 = {"products": torch.backends.cuda.matmul.allow_tf32, "convolutions": torch.backends.cudnn.allow_tf32}
        machine |= {"device": torch.cuda.get_device_name(device), "TF32": tf32}
    return machine
