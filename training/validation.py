"""mAP on the validation split in the middle of a run: the figures that eval.py gives."""

from copy import deepcopy

import cv2
import numpy as np
import torch

from inference import Detector
from inference.drawing import draw_detections
from metrics.detect import detect_pictures
from metrics.ground_truth import open_evaluation_set
from metrics.voc import evaluate_detections
from utils.images import read_image

TILE = 300  # side of a picture in the grid of predictions


class Validation:
    """A validation split, scored with a network as it stands.

    Args:
        dataset, root, split: as eval.py takes them.
        info: CheckpointInfo of the network.
        device: where it runs.
        batch_size, num_workers: of the scoring.

    Raises:
        InputError: the split is missing or empty.
    """

    def __init__(self, dataset, root, split, info, device, batch_size=16, num_workers=2):
        self.pictures = open_evaluation_set(dataset, root, split)
        self.info, self.device = info, device
        self.batch_size, self.num_workers = batch_size, num_workers

    def score(self, net):
        """Score the network: a VOCResult in the reference rule. The network itself isn't changed."""
        detector = self._detector(net, threshold=0.01)
        detections, _ = detect_pictures(
            detector,
            self.pictures.paths,
            read_image,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            show_progress=False,
        )
        ground_truth, _ = self.pictures.ground_truth(self.info.class_names)
        return evaluate_detections(detections, ground_truth, self.info.class_names)

    def grid(self, net, threshold=0.4, rows=2, columns=4):
        """Pictures of the split with their detections, side by side: uint8 RGB [H, W, 3]."""
        chosen = np.linspace(0, len(self.pictures.paths) - 1, rows * columns).astype(int)
        frames = [cv2.resize(read_image(self.pictures.paths[index]), (TILE, TILE)) for index in chosen]
        for frame, detections in zip(frames, self._detector(net, threshold)(frames), strict=True):
            draw_detections(frame, detections)
        return np.vstack([np.hstack(frames[row * columns : (row + 1) * columns]) for row in range(rows)])

    def _detector(self, net, threshold):
        with torch.no_grad():
            copy = deepcopy(net).fuse()
        return Detector.of_network(copy, self.info, self.device, threshold=threshold, clip=False)
