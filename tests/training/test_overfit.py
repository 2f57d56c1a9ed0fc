"""A network that can't learn eight images by heart has a fault somewhere between image and loss."""

import os

import pytest
import torch
from clip_images import make_clip_images

from metrics.ground_truth import open_evaluation_set
from train import get_args_parser, main
from training.engine import validate
from weights.checkpoint import load_network


@pytest.fixture
def all_threads():
    """This one test has real work for all cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("all_threads")
def test_eight_images_are_learned_by_heart(tmp_path):
    eight_images = make_clip_images(tmp_path / "eight")
    command = (
        f"--dataset {eight_images} --save_folder {tmp_path / 'run'} --basenet none --width 0.125 --no-augment "
        "--batch_size 8 --optimizer adamw --lr 0.003 --schedule cosine --warmup 10 --max_iter 120 "
        "--num_workers 0 --device cpu --precision float32"
    )
    main(get_args_parser().parse_args(command.split()))
    net, info = load_network(tmp_path / "run" / "ssd300_w012_final.pth")
    assert info.class_names == ("cat", "person")
    images = open_evaluation_set(str(eight_images), None, "train")
    result, _ = validate(net, info, images, torch.device("cpu"))
    assert result.mean_ap_11 >= 0.95
