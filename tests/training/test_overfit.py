"""A network that can't learn eight images by heart has a fault somewhere between image and loss."""

import pytest
import torch
from clip_images import make_clip_images
from test_train import BASE, train

from metrics.ground_truth import open_evaluation_set
from training.engine import validate
from weights.checkpoint import load_network


@pytest.mark.slow
def test_eight_images_are_learned_by_heart(tmp_path):
    folder = make_clip_images(tmp_path / "eight")
    settings = (
        "--basenet none --width 0.125 --no-augment --batch_size 8 --optimizer adamw --lr 0.003 --schedule cosine "
        "--warmup 6 --max_iter 60"
    )
    train(folder, tmp_path / "run", settings, BASE)
    net, info = load_network(tmp_path / "run" / "ssd300_w012_final.pth")
    assert info.class_names == ("cat", "person")
    result, threshold = validate(net, info, open_evaluation_set(str(folder), None, "train"), torch.device("cpu"))
    assert result.mean_ap_11 >= 0.95
    assert 0.1 < threshold < 1
