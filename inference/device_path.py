"""From frames in host memory to detections in host memory by way of a GPU, with a single wait in between.

Frames go over as bytes, from memory that the device can read while the program goes on; they are resized there.
"""

from contextlib import nullcontext
from functools import lru_cache
from itertools import groupby
from threading import Lock

import numpy as np
import torch

from data.transforms import averages_areas

PORTION = 64 * 2**20  # bytes of frames that are resized at a time; as float32 they are four times as many


class DevicePath:
    """Frames to Detect's rows. May be called from several threads, which take turns.

    Works on any device; pinned memory is CUDA's.

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
        return self._detect(*self._outputs(pictures), self._priors).cpu().numpy()

    def _outputs(self, pictures):
        """loc [B, P, 4] and class probabilities [B, P, C]."""
        loc, conf = self._engine.network(pictures)
        return loc, conf.softmax(dim=-1)


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
