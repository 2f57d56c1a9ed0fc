"""Scripts written for the ssd.pytorch lineage run as they are, from the repository's root."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from media import decode, make_video
from synthetic import make_voc
from tiny import make_network

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

# A training script: the lineage's imports, initialization and loop.
TRAINING = """
from data import *
from utils import SSDAugmentation
from layers.modules import MultiBoxLoss
from ssd import build_ssd
import sys
import torch
from torch.autograd import Variable
import torch.nn as nn
import torch.optim as optim
import torch.nn.init as init
import torch.utils.data as data

dataset_root, save_path, batch_size, max_iter, lr = sys.argv[1], sys.argv[2], 2, 20, 1e-4
torch.set_default_tensor_type('torch.FloatTensor')
torch.manual_seed(0)

def train():
    cfg = voc
    dataset = VOCDetection(root=dataset_root, transform=SSDAugmentation(cfg['min_dim'], MEANS))
    net = build_ssd('train', cfg['min_dim'], cfg['num_classes'])
    for part in (net.vgg, net.extras, net.loc, net.conf):
        part.apply(weights_init)
    optimizer = optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    criterion = MultiBoxLoss(cfg['num_classes'], 0.5, True, 0, True, 3, 0.5, False, False)
    net.train()
    print('Training SSD on:', dataset.name, len(dataset))
    data_loader = data.DataLoader(dataset, batch_size, num_workers=1, shuffle=True, collate_fn=detection_collate)
    batch_iterator = iter(data_loader)
    for iteration in range(max_iter):
        try:
            images, targets = next(batch_iterator)
        except StopIteration:
            batch_iterator = iter(data_loader)
            images, targets = next(batch_iterator)
        out = net(Variable(images))
        optimizer.zero_grad()
        loss_l, loss_c = criterion(out, [Variable(ann) for ann in targets])
        loss = loss_l + loss_c
        loss.backward()
        optimizer.step()
        print('iter ' + repr(iteration) + ' || Loss: %.4f ||' % (loss.item()))
    torch.save(net.state_dict(), save_path)

def weights_init(m):
    if isinstance(m, nn.Conv2d):
        init.xavier_uniform_(m.weight.data)
        m.bias.data.zero_()

if __name__ == '__main__':
    train()
"""

# The star imports that scripts rely on, and the names of the lineage's first version.
NAMES = """
from data.config import *
assert os.path.exists(HOME) and MEANS and COLORS and voc and coco
from data import *
from data import (AnnotationTransform, BaseTransform, COCO_CLASSES, COCO_ROOT, COCOAnnotationTransform, COCODetection,
                  COCOroot, SSDAugmentation, VOC_CLASSES, VOC_ROOT, VOCAnnotationTransform, VOCDetection, VOCroot,
                  base_transform, detection_collate, get_label_map, v2)
from layers import *
from layers.box_utils import center_size, decode, encode, intersect, jaccard, log_sum_exp, match, nms, point_form
from layers.functions import Detect, PriorBox
from layers.modules import L2Norm, MultiBoxLoss
assert torch.Tensor and cv2.resize and np.array and os.path
"""


def run(folder, script, *arguments):
    """Run a script as if it lay in the repository's root, where the lineage's users put theirs."""
    path = folder / "script.py"
    path.write_text(f"import sys\nsys.path[0] = {str(ROOT)!r}\n" + script)
    command = [sys.executable, path, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_course_script(tmp_path):
    weights, source, target = tmp_path / "ssd.pth", tmp_path / "in.mp4", tmp_path / "out.mp4"
    torch.save(make_network(width=1.0)[0].state_dict(), weights)
    make_video(source, "160x96", rate="10", frames=3, source="color=gray")
    printed = run(tmp_path, SCRIPT, weights, source, target)
    assert printed.splitlines() == ["dog 10 6 150 90", "person 3 2 157 94"] * 3  # the boxes of tiny.py
    frames = decode(target, (160, 96))
    assert len(frames) == 3
    left = frames[1, 48, 7:14].astype(int)
    assert (left[:, 0] - left[:, 2]).max() > 60  # a red line at the box's left side


@pytest.mark.slow
def test_a_training_script(tmp_path):
    """It trains the network at the paper's width for twenty iterations."""
    for year in ("2007", "2012"):
        objects = {f"{year}_{i}": [("dog", (10 + i, 10, 90, 70), 0), ("cat", (5, 5, 40, 60), i % 2)] for i in range(3)}
        make_voc(tmp_path / f"VOC{year}", objects, split="trainval")
    lines = run(tmp_path, TRAINING, f"{tmp_path}/", tmp_path / "VOC.pth").splitlines()
    assert lines[0] == "Training SSD on: VOC0712 6"
    losses = [float(line.split()[4]) for line in lines[1:]]
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < 0.85 * losses[0]
    build_ssd("test").load_state_dict(torch.load(tmp_path / "VOC.pth", weights_only=True), strict=True)


def test_names_that_scripts_import(tmp_path):
    run(tmp_path, NAMES)
