"""The way a course script drives SSD over a video, written from its description.

One frame at a time: resize, float32, the network in its own memory layout, a loop over classes and boxes, drawing,
encoding before the next frame is read. The video goes in and out through imageio; the sound is lost.
"""

import cv2
import imageio.v2 as imageio
import torch

from benchmarks import plain
from data import VOC_CLASSES, BaseTransform

COLOUR = (255, 0, 0)


def run(net, source, target, threshold=0.6):
    """Annotate a video: an SSD in train phase (the plain Detect follows), paths of source and target; frames done."""
    transform = BaseTransform(net.size, (104, 117, 123))
    reader = imageio.get_reader(source)
    writer = imageio.get_writer(target, fps=reader.get_meta_data()["fps"], macro_block_size=2)
    count = 0
    for frame in reader:
        writer.append_data(detect(frame, net, transform, threshold))
        count += 1
    writer.close()
    reader.close()
    return count


def detect(frame, net, transform, threshold):
    """Detect in one frame and draw what is found: uint8 RGB [H, W, 3]."""
    height, width = frame.shape[:2]
    x = torch.from_numpy(transform(frame)[0]).permute(2, 0, 1).contiguous()[None]
    with torch.no_grad():
        loc, conf, priors = net(x)
        detections = plain.detect(loc, torch.softmax(conf, dim=-1), priors)
    scale = torch.tensor([width, height, width, height])
    frame = frame.copy()
    for label in range(detections.shape[1]):
        place = 0
        while place < detections.shape[2] and detections[0, label, place, 0] >= threshold:
            x1, y1, x2, y2 = (detections[0, label, place, 1:] * scale).int().tolist()
            cv2.rectangle(frame, (x1, y1), (x2, y2), COLOUR, 2)
            name = VOC_CLASSES[label - 1]
            cv2.putText(frame, name, (x1, y1), cv2.FONT_HERSHEY_SIMPLEX, 2, (255, 255, 255), 2, cv2.LINE_AA)
            place += 1
    return frame
