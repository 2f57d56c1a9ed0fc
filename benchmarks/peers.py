"""The peers: torchvision, and plain code as in course scripts, written from the paper."""

import cv2
import imageio.v2 as imageio
import numpy as np
import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.models.detection import ssd300_vgg16
from torchvision.ops import box_iou
from torchvision.transforms import v2

from data import RGB_MEANS, VOC_CLASSES, base_transform
from data.transforms import to_input


def torchvision_ssd(net):
    """torchvision's SSD300 on the device of `net` (SSD300 at width 1) and with its weights: both compute the same."""
    peer = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=net.num_classes)
    theirs = nn.ModuleList([peer.backbone, peer.head.classification_head, peer.head.regression_head])
    ours = nn.ModuleList([net.vgg, net.extras, net.conf, net.loc])
    convolutions = ([layer for layer in part.modules() if isinstance(layer, nn.Conv2d)] for part in (ours, theirs))
    for source, target in zip(*convolutions, strict=True):
        target.load_state_dict(source.state_dict())
    return peer.to(net.priors.device).train(net.training)


@torch.inference_mode()
def torchvision_outputs(peer, images, precision):
    """Run the network alone: uint8 RGB images [300, 300, 3] -> offsets [B, P, 4], class probabilities [B, P, C]."""
    x = to_input(torch.stack(images), memory_format=torch.contiguous_format)
    with torch.autocast(x.device.type, precision, enabled=precision != torch.float32):
        outputs = peer.head(list(peer.backbone(x).values()))
    return outputs["bbox_regression"].float(), outputs["cls_logits"].float().softmax(dim=-1)


@torch.inference_mode()
def torchvision_detect(peer, frame, device):
    """Detect in a frame, uint8 RGB [H, W, 3], as in torchvision's documentation."""
    (found,) = peer([torch.from_numpy(frame).to(device).permute(2, 0, 1).float() / 255])
    return {key: value.cpu().numpy() for key, value in found.items()}


def torchvision_step(net, images, targets, precision):
    """Return a function that trains torchvision's SSD300 for one step on uint8 images [B, 300, 300, 3]."""
    peer = torchvision_ssd(net)
    optimizer = torch.optim.SGD(peer.parameters(), 1e-6, momentum=0.9, weight_decay=5e-4)
    images = list(images.permute(0, 3, 1, 2).float() / 255)
    targets = [{"boxes": rows[:, :4] * 300, "labels": rows[:, 4].long() + 1} for rows in targets]

    def step():
        with torch.autocast(images[0].device.type, precision, enabled=precision != torch.float32):
            losses = peer(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step


def torchvision_augmentation(image, boxes, labels):
    """Return a function that augments a uint8 image and boxes in pixels as torchvision's training of SSD300 does."""
    zoom = v2.RandomZoomOut(fill={tv_tensors.Image: RGB_MEANS})
    change = [v2.RandomPhotometricDistort(), zoom, v2.RandomIoUCrop(), v2.RandomHorizontalFlip()]
    finish = [v2.Resize((300, 300)), v2.SanitizeBoundingBoxes(), v2.ToDtype(torch.float32, scale=True)]
    boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[:2])
    target = {"boxes": boxes, "labels": torch.tensor(labels)}
    transform, image = v2.Compose(change + finish), v2.functional.to_image(image)
    return lambda: transform(image, target)


def detect(loc, scores, priors, top_k=200, conf_thresh=0.01, nms_thresh=0.45):
    """Detect, with a loop over images and classes, and a loop over boxes for NMS: [B, C, top_k, 5]."""
    result = torch.zeros(len(loc), scores.shape[2], top_k, 5, device=loc.device)
    for image in range(len(loc)):
        center = priors[:, :2] + loc[image, :, :2] * 0.1 * priors[:, 2:]
        size = priors[:, 2:] * torch.exp(loc[image, :, 2:] * 0.2)
        boxes = torch.cat([center - size / 2, center + size / 2], dim=1)
        for label in range(1, scores.shape[2]):
            score = scores[image, :, label]
            left = score.argsort(descending=True)[:top_k]
            left, kept = left[score[left] > conf_thresh], 0
            while len(left):
                best, left = left[0], left[1:]
                result[image, label, kept, 0], result[image, label, kept, 1:] = score[best], boxes[best]
                left, kept = left[box_iou(boxes[best][None], boxes[left])[0] <= nms_thresh], kept + 1
    return result


@torch.no_grad()
def annotate_video(net, source, target, threshold):
    """Annotate a video with an SSD in train phase and `detect`, one frame after the other, and without sound."""
    with imageio.get_reader(source) as reader:
        writer = imageio.get_writer(target, fps=reader.get_meta_data()["fps"], macro_block_size=2)
        for frame in reader:
            x = torch.from_numpy(base_transform(frame, net.size, RGB_MEANS)).permute(2, 0, 1)[None]
            loc, conf, priors = net(x.to(net.priors.device))
            rows = detect(loc, conf.softmax(dim=-1), priors)[0].cpu().numpy()
            drawn = np.array(frame)
            for label, place in zip(*np.nonzero(rows[:, :, 0] > threshold), strict=True):
                score, box = rows[label, place, 0], rows[label, place, 1:]
                corners = (box * np.tile(frame.shape[1::-1], 2)).astype(int).tolist()
                cv2.rectangle(drawn, corners[:2], corners[2:], (255, 0, 0), 2)
                text = f"{VOC_CLASSES[label - 1]} {score:.2f}"
                cv2.putText(drawn, text, corners[:2], cv2.FONT_HERSHEY_SIMPLEX, 1, (255, 255, 255), 2, cv2.LINE_AA)
            writer.append_data(drawn)
        writer.close()
