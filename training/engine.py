"""One training step, and one validation."""

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace

import cv2
import numpy as np
import torch

from data.transforms import to_input
from inference import Detector
from inference.drawing import draw_detections
from layers.modules.multibox_loss import matched_priors
from metrics.evaluation import detect_images
from metrics.voc import PLAIN, best_threshold, evaluate_detections
from ssd import Heads
from utils.images import read_image
from weights.checkpoint import save_checkpoint

from .optimizer import load_moments, set_learning_rate


class Trainer:
    """A network in training: one step, and the state to resume from.

    Args:
        net: an SSD on its device, in training mode.
        criterion: MultiBoxLoss.
        optimizer: torch optimizer.
        ranks: the Ranks of the job.
        precision: torch dtype of autocast; float32 turns it off.
        accumulate: number of parts that a batch is computed in, to save memory.
        clip_grad: maximum norm of the gradient; 0 turns clipping off.
        ema: decay of the averaged weights; 0 turns averaging off.
        compiled: compile the network with torch.compile.
    """

    def __init__(
        self, net, criterion, optimizer, ranks, precision, accumulate=1, clip_grad=0.0, ema=0.0, compiled=False
    ):
        self.net, self.criterion, self.optimizer, self.ranks = net, criterion, optimizer, ranks
        self.device, self.precision = net.priors.device, precision
        self.accumulate, self.clip_grad = accumulate, clip_grad
        self.average = EMA(net, ema) if ema else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        self.heads = torch.compile(Heads(net)) if compiled else Heads(net)
        if ranks.world > 1:
            device_ids = [ranks.local] if self.device.type == "cuda" else None
            self.heads = torch.nn.parallel.DistributedDataParallel(self.heads, device_ids=device_ids)

    def step(self, batch, rate, iteration):
        """Train on this rank's share of a batch. Does not synchronize with the host.

        Args:
            batch: (images uint8 RGB [B, S, S, 3], loc_t [B, P, 4], conf_t int64 [B, P]) on the device.
            rate: learning rate.
            iteration: from 0.

        Returns:
            float32 [3] on the device: localization loss, confidence loss and matched priors of the whole batch.
        """
        set_learning_rate(self.optimizer, rate)
        n = matched_priors(batch[2])
        losses = torch.zeros(2, device=self.device)
        parts = list(zip(*(tensor.tensor_split(self.accumulate) for tensor in batch), strict=True))
        for number, (images, loc_t, conf_t) in enumerate(parts, start=1):
            # DistributedDataParallel averages the gradients over the ranks once, in the last part.
            waits = number < len(parts) and self.ranks.world > 1
            with self.heads.no_sync() if waits else nullcontext():
                with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                    loc, conf = self.heads(to_input(images))
                part = torch.stack(self.criterion.sums(loc, conf, loc_t, conf_t)) / n
                self.scaler.scale(part.sum()).backward()
            losses += part.detach()
        if self.clip_grad:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.net, iteration)
        # n is the mean over the ranks, so the sum over the ranks is divided by their number.
        positives = (batch[2] > 0).sum()[None]
        values = torch.cat([losses / self.ranks.world, positives])
        if self.ranks.world > 1:
            torch.distributed.all_reduce(values)
        return values

    @property
    def result(self):
        """The network to validate and to save: the averaged one if averaging is on."""
        return self.net if self.average is None else self.average.net

    def state_dict(self):
        return {
            "model": self.net.state_dict(),
            "average": None if self.average is None else self.average.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state):
        """Load a state. Raises one of `state.DAMAGED` if the state is damaged or belongs to another network."""
        self.net.load_state_dict(state["model"])
        load_moments(self.optimizer, state["optimizer"])
        if state["scaler"]:  # empty if the run was not in float16 before
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.net.load_state_dict(state["average"] or state["model"])


class EMA:
    """Exponential moving average of a network's weights and buffers, without synchronizing with the host.

    The decay increases with the iteration, so that the initial weights have little effect in a short run. `net` is the
    averaged network, in evaluation mode.
    """

    def __init__(self, net, decay):
        self.net, self.decay = deepcopy(net).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, net, iteration):
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        floats, others = [], []
        for average, current in zip(self.net.state_dict().values(), net.state_dict().values(), strict=True):
            (floats if average.is_floating_point() else others).append((average, current))
        torch._foreach_lerp_(*map(list, zip(*floats, strict=True)), 1 - decay)
        for average, current in others:  # BatchNorm's count of batches
            average.copy_(current)


def validate(net, info, images, device):
    """Score an SSD with its CheckpointInfo on an EvaluationSet by the reference rule; COCO data by the plain rule.

    Returns (VOCResult, threshold); the threshold is the score with the best mean F1 over the classes.
    Raises InputError if an image can't be read.
    """
    detector = Detector.of_network(net, info, device, threshold=0.01, clip=False)
    detections, _ = detect_images(detector, images.paths, show_progress=False)
    ground_truth, _ = images.ground_truth(info.class_names)
    rule = PLAIN if images.coco else "reference"
    result = evaluate_detections(detections, ground_truth, info.class_names, rule)
    return result, best_threshold(detections, result)[0]


def prediction_grid(net, info, images, device, threshold=0.4, rows=2, columns=4, side=300):
    """Return a grid of validation images with their detections: uint8 RGB [rows * side, columns * side, 3]."""
    chosen = np.linspace(0, len(images.paths) - 1, rows * columns).astype(int)
    frames = [cv2.resize(read_image(images.paths[index]), (side, side)) for index in chosen]
    detector = Detector.of_network(net, info, device, threshold=threshold)
    for frame, detections in zip(frames, detector(frames), strict=True):
        draw_detections(frame, detections)
    return np.vstack([np.hstack(frames[row * columns : (row + 1) * columns]) for row in range(rows)])


def save_for_use(path, net, info):
    """Write a checkpoint of a network with its BatchNorm folded."""
    save_checkpoint(path, deepcopy(net).fuse(), replace(info, batch_norm=False))
