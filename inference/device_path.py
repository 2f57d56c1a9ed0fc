"""From frames in host memory to detections in host memory by way of a GPU, with a single wait in between.

Frames go over as bytes, from memory that the device can read while the program goes on; they are resized there, and
what comes back is one piece. For few pictures at a time, where launching hundreds of kernels takes longer than running
them, network and Detect are one CUDA graph.
"""

import gc
import sys
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from itertools import groupby
from threading import Lock

import numpy as np
import torch
from tqdm import tqdm

from data.transforms import averages_areas

from .memory import is_out_of_memory

GRAPHED = 16  # largest batch that is run as a CUDA graph: in larger ones the kernels take longer than their launch
WARM_UPS = 3  # before a capture, as PyTorch's notes on CUDA graphs ask for
PORTION = 64 * 2**20  # bytes of frames that are resized at a time; as float32 they are four times as many


class DevicePath:
    """Frames to Detect's rows. May be called from several threads, which take turns.

    Works on any device; pinned memory and graphs are CUDA's.

    Args:
        engine: a TorchEngine.
        detect: a Detect layer.
        priors: float32 [P, 4] on the engine's device.
        size: side of the network's input.
    """

    def __init__(self, engine, detect, priors, size):
        self.device = engine.device
        self._engine = engine
        self._detect = detect
        self._priors = priors
        self._size = size
        self._cuda = self.device.type == "cuda"
        self._uploaded_from = Staging(self._cuda)
        self._downloaded_to = Staging(self._cuda)
        self._graphs = {}  # by batch size; None where it came once so far
        self._pool = torch.cuda.graph_pool_handle() if self._cuda else None
        self._lock = Lock()

    @torch.inference_mode()
    def __call__(self, frames):
        """list of uint8 RGB arrays [H, W, 3] of any sizes -> float32 array [B, C, top_k, 5], as from Detect."""
        with self._lock, torch.cuda.device(self.device) if self._cuda else nullcontext():
            return self._rows(self._upload(frames))

    def _upload(self, frames):
        """Resized pictures, uint8 [B, S, S, 3] on the device."""
        waiting = self._uploaded_from.room(sum(frame.nbytes for frame in frames))
        pictures = []
        start = 0
        for shape, group in groupby(frames, key=lambda frame: frame.shape):
            same = list(group)
            most = max(1, PORTION // same[0].nbytes)
            for first in range(0, len(same), most):
                portion = same[first : first + most]
                end = start + len(portion) * portion[0].nbytes
                staged = waiting[start:end].view(len(portion), *shape)
                np.stack(portion, out=staged.numpy())  # while the device works on the portion before
                pictures.append(resize(staged.to(self.device, non_blocking=True), self._size))
                start = end
        return pictures[0] if len(pictures) == 1 else torch.cat(pictures)

    def _rows(self, pictures):
        flat = self._download(self._run(pictures))
        rows = flat[:-1].reshape(len(pictures), -1, self._detect.top_k, 5)
        if flat[-1]:
            return rows
        return self._detect(*self._outputs(pictures), self._priors).cpu().numpy()  # NMS needs more rounds

    def _outputs(self, pictures):
        """loc [B, P, 4] and class probabilities [B, P, C]."""
        loc, conf = self._engine.network(pictures)
        return loc, conf.softmax(dim=-1)

    def _compute(self, pictures):
        """Detect's rows, and behind them whether NMS came to its end (0 or 1): float32 [B * C * top_k * 5 + 1]."""
        rows, settled = self._detect.without_a_look(*self._outputs(pictures), self._priors)
        return torch.cat([rows.flatten(), settled.float()[None]])

    def _run(self, pictures):
        """`_compute`, as a CUDA graph from the second time on that a batch of this size comes, if it is small."""
        batch = len(pictures)
        if not self._cuda or batch > GRAPHED:
            return self._compute(pictures)
        if batch not in self._graphs:
            self._graphs[batch] = None
            return self._compute(pictures)
        if self._graphs[batch] is None:
            self._graphs[batch] = self._recorded(pictures)
        return self._graphs[batch](pictures)

    def _recorded(self, pictures):
        """`_compute` as a Graph; itself, after a note, where this PyTorch or driver can't record it."""
        try:
            return Graph(self._compute, pictures, self._pool)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            tqdm.write(f"note: detecting without a CUDA graph, as it can't be recorded: {reason:.200}", file=sys.stderr)
            return self._compute

    def _download(self, flat):
        """To an array of the host, and wait for it: everything before has ended then."""
        host = self._downloaded_to.room(flat.numel() * 4).view(torch.float32)
        host.copy_(flat, non_blocking=True)
        if self._cuda:
            torch.cuda.current_stream().synchronize()
        return host.numpy().copy()  # the memory is used again


class Staging:
    """Host memory that is kept and grows; pinned, so that the device copies from and to it by itself."""

    def __init__(self, pinned):
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")

    def room(self, size):
        """uint8 tensor [size]. What was handed out before is overwritten."""
        if len(self._memory) < size:
            self._memory = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=self._pinned)
        return self._memory[:size]


class Graph:
    """A function from a tensor to a tensor, recorded as a CUDA graph for inputs of one shape.

    Args:
        function: launches kernels, and looks at no value.
        example: its input, of the shape to come.
        pool: of torch.cuda.graph_pool_handle(). Graphs of one pool share memory: a result must have been read before
            another one runs.

    Raises:
        RuntimeError: it can't be recorded.
    """

    _one_at_a_time = Lock()  # in the whole process: that is CUDA's rule

    def __init__(self, function, example, pool):
        self._input = example.clone()
        self._graph = torch.cuda.CUDAGraph()
        gc.collect()  # so that nothing is freed meanwhile
        usual, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        with self._one_at_a_time, fastest_algorithms():
            aside.wait_stream(usual)
            try:
                with torch.cuda.stream(aside):  # whatever is set up at a first call must not be recorded
                    for _ in range(WARM_UPS):
                        function(self._input)
                way = {"pool": pool, "stream": aside, "capture_error_mode": "thread_local"}
                with torch.cuda.graph(self._graph, **way):
                    self._output = function(self._input)
            finally:
                torch.cuda.set_stream(usual)  # a recording that fails may leave another one
            usual.wait_stream(aside)

    def __call__(self, value):
        """The function's result; its memory is used again by the next call."""
        self._input.copy_(value)
        self._graph.replay()
        return self._output


@contextmanager
def fastest_algorithms():
    """Within it cuDNN times its algorithms for each new shape, and takes the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def resize(frames, size):
    """As data.transforms.resize, on the device that the frames lie on, but for rounding (one level at most).

    Both of its ways are separable: each is one matrix for the rows and one for the columns.

    Args:
        frames: uint8 [B, H, W, 3].
        size: side in pixels.

    Returns:
        uint8 [B, size, size, 3].
    """
    height, width = frames.shape[1:3]
    if (height, width) == (size, size):
        return frames
    by_area = averages_areas(height, width, size)
    rows, columns = (_on(frames.device, length, size, by_area) for length in (height, width))
    channels = frames.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    resized = rows @ (channels @ columns.T)
    return resized.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


@lru_cache(maxsize=16)
def _on(device, length, size, by_area):
    """The matrix of `shares` as a tensor on a device."""
    return torch.from_numpy(shares(length, size, by_area)).to(device)


def shares(length, size, by_area):
    """How much each of `length` pixels contributes to each of `size` that they are resized to: float32 [size, length].

    by_area: each new pixel is the mean of what it covers; else it lies between the two old ones nearest to its centre.
    """
    scale = length / size
    old, new = np.arange(length), np.arange(size)[:, None]
    if by_area:
        covered = np.minimum(old + 1, (new + 1) * scale) - np.maximum(old, new * scale)
        return (covered.clip(0) / scale).astype(np.float32)
    centre = ((new + 0.5) * scale - 0.5).clip(0, length - 1)
    return (1 - np.abs(old - centre)).clip(0).astype(np.float32)
