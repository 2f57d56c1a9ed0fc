"""Scripts written for the ssd.pytorch lineage run as they are, from the repository's root."""

import subprocess
import sys
from pathlib import Path

import imageio
import numpy as np
import pytest
import torch
from torch import nn

from data import voc
from ssd import build_ssd

ROOT = Path(__file__).resolve().parent.parent

# What a student has after the course: a network, a function that draws on one frame, a loop over a video.
SCRIPT = """
import sys
import torch
from torch.autograd import Variable
import cv2
from data import BaseTransform, VOC_CLASSES as labelmap
from ssd import build_ssd
import imageio

weights, source, target = sys.argv[1:]

def detect(frame, net, transform):
    height, width = frame.shape[:2]
    frame_t = transform(frame)[0]
    x = torch.from_numpy(frame_t).permute(2, 0, 1)
    x = Variable(x.unsqueeze(0))
    y = net(x)
    detections = y.data
    scale = torch.Tensor([width, height, width, height])
    for i in range(detections.size(1)):
        j = 0
        while detections[0, i, j, 0] >= 0.6:
            pt = (detections[0, i, j, 1:] * scale).numpy()
            cv2.rectangle(frame, (int(pt[0]), int(pt[1])), (int(pt[2]), int(pt[3])), (255, 0, 0), 2)
            cv2.putText(frame, labelmap[i - 1], (int(pt[0]), int(pt[1])), cv2.FONT_HERSHEY_SIMPLEX, 2, (0, 0, 0), 2)
            print(labelmap[i - 1], *(round(float(side)) for side in pt))
            j += 1
    return frame

net = build_ssd('test')
net.load_state_dict(torch.load(weights, map_location=lambda storage, loc: storage))
transform = BaseTransform(net.size, (104, 117, 123))
reader = imageio.get_reader(source)
fps = reader.get_meta_data()['fps']
writer = imageio.get_writer(target, fps=fps)
for i, frame in enumerate(reader):
    frame = detect(frame, net.eval(), transform)
    writer.append_data(frame)
writer.close()
"""

# The imports and calls of a training script.
TRAINING = """
from data import *
from data import (BaseTransform, COCO_CLASSES, COCO_ROOT, COCOAnnotationTransform, COCODetection, HOME, MEANS,
                  SSDAugmentation, VOC_CLASSES, VOC_ROOT, VOCAnnotationTransform, VOCDetection, coco,
                  detection_collate, voc)
from layers import *
from layers.box_utils import center_size, decode, encode, jaccard, match, nms, point_form
from layers.functions import Detect, PriorBox
from layers.modules import L2Norm, MultiBoxLoss
from ssd import build_ssd
import torch, torch.optim as optim, torch.utils.data

cfg = voc
dataset = VOCDetection(root=VOC_ROOT_HERE, image_sets=[('2007', 'trainval')],
                       transform=SSDAugmentation(cfg['min_dim'], MEANS))
net = build_ssd('train', cfg['min_dim'], cfg['num_classes'])
optimizer = optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
criterion = MultiBoxLoss(cfg['num_classes'], 0.5, True, 0, True, 3, 0.5, False, False)
loader = torch.utils.data.DataLoader(dataset, 1, num_workers=0, shuffle=True, collate_fn=detection_collate)
net.train()
images, targets = next(iter(loader))
out = net(images)
optimizer.zero_grad()
loss_l, loss_c = criterion(out, targets)
loss = loss_l + loss_c
loss.backward()
optimizer.step()
print(tuple(images.shape), tuple(out[0].shape), tuple(out[1].shape), tuple(out[2].shape), loss.item() > 0)
"""


def run(folder, script, *arguments):
    """Run a script that lies in the repository's root, as the lineage's users put theirs; here: as if it lay there."""
    path = folder / "script.py"
    path.write_text(f"import sys\nsys.path[0] = {str(ROOT)!r}\n" + script)
    command = [sys.executable, path, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A full-width state dict that sees a dog in the whole of any picture: the first prior of the coarsest map."""
    net = build_ssd("train")
    for head in (*net.loc, *net.conf):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    with torch.no_grad():
        for head in net.conf:
            head.bias.view(-1, 21)[:, 0] = 12
        net.conf[-1].bias.view(-1, 21)[0, 12] = 14
    path = tmp_path_factory.mktemp("weights") / "ssd.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.mark.slow
def test_a_course_script(weights, tmp_path):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    with imageio.get_writer(source, fps=10) as writer:
        for _ in range(3):
            writer.append_data(np.full((96, 160, 3), 90, np.uint8))
    printed = run(tmp_path, SCRIPT, weights, source, target)
    x1, x2 = 160 * 18 / 300, 160 * 282 / 300  # a square of 264 of 300 pixels, around the centre
    y1, y2 = 96 * 18 / 300, 96 * 282 / 300
    assert printed.splitlines() == [f"dog {x1:.0f} {y1:.0f} {x2:.0f} {y2:.0f}"] * 3
    with imageio.get_reader(target) as reader:
        frames = list(reader.iter_data())
    assert len(frames) == 3
    left = np.asarray(frames[1])[48, round(x1) - 3 : round(x1) + 4].astype(int)
    assert (left[:, 0] - left[:, 2]).max() > 60  # a red line at the box's left side


@pytest.mark.slow
def test_a_training_script(tmp_path):
    from synthetic import make_voc

    make_voc(tmp_path / "VOC2007", {"a": [("dog", (10, 10, 90, 70), 0)]}, split="trainval")
    printed = run(tmp_path, TRAINING.replace("VOC_ROOT_HERE", repr(str(tmp_path))))
    assert printed.splitlines()[-1] == "(1, 3, 300, 300) (1, 8732, 4) (1, 8732, 21) (8732, 4) True"


def test_priors_of_the_lineages_script():
    from layers.functions import PriorBox

    net = build_ssd("test", 300, 21, width=0.05)
    assert torch.equal(net.priors, PriorBox(voc).forward())
    assert net.size == 300
    assert net.phase == "test"
