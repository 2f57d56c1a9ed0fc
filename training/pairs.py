"""Two training pictures side by side in one: their objects appear narrower, each in its own surroundings.

So does a video of 16:9 look to a network whose input is square, and few photographs do. As in the mosaic of YOLOv4
(Bochkovskiy et al., arXiv 2004.10934, section 3.3) the surroundings are those of photographs, not a filling.
"""

import cv2
import numpy as np


def side_by_side(left, right):
    """Join two pictures, the right one resized to the height of the left one.

    Args:
        left, right: pairs (image, target): uint8 [H, W, 3]; float32 [objects, 5], corners as fractions of the
            picture, and class.

    Returns:
        (image, target) of the whole.
    """
    (image, target), (other, other_target) = left, right
    (height, width), (other_height, other_width) = image.shape[:2], other.shape[:2]
    size = max(round(other_width * height / other_height), 1), height
    other = cv2.resize(other, size, interpolation=cv2.INTER_AREA if height < other_height else cv2.INTER_LINEAR)
    share = width / (width + size[0])
    target, other_target = target.copy(), other_target.copy()
    target[:, [0, 2]] *= share
    other_target[:, [0, 2]] = share + (1 - share) * other_target[:, [0, 2]]
    return np.hstack([image, other]), np.concatenate([target, other_target])
