"""Configurations and constants, under the lineage's names."""

from dataclasses import FrozenInstanceError, asdict

import pytest

import data
from data.config import CONFIGS, MEANS, RGB_MEANS, coco, coco512, voc, voc512


def test_the_lineages_keys_answer():
    assert (voc["min_dim"], voc["max_iter"], voc["lr_steps"]) == (300, 120_000, (80_000, 100_000))
    assert (coco["max_iter"], coco["lr_steps"], coco["num_classes"]) == (400_000, (280_000, 360_000), 81)
    assert voc["variance"] == (0.1, 0.2)
    for key, value in asdict(voc).items():
        assert voc[key] == value


@pytest.mark.parametrize("key", ["boxes", "__class__", "num_priors", 0])
def test_other_keys_are_key_errors(key):
    with pytest.raises(KeyError):
        voc[key]


def test_they_are_frozen_and_hashable():
    with pytest.raises(FrozenInstanceError):
        voc.min_dim = 512
    assert len({voc, coco, voc512, coco512}) == 4


def test_boxes_per_cell():
    assert voc.boxes_per_cell == coco.boxes_per_cell == (4, 6, 6, 6, 4, 4)
    assert voc512.boxes_per_cell == coco512.boxes_per_cell == (4, 6, 6, 6, 6, 4, 4)


def test_each_is_found_by_its_name():
    assert {config.name: config for config in (voc, coco, voc512, coco512)} == CONFIGS


def test_the_mean_in_both_orders():
    assert MEANS == (104, 117, 123)
    assert MEANS[::-1] == RGB_MEANS


def test_classes():
    assert len(data.VOC_CLASSES) == len(set(data.VOC_CLASSES)) == 20 == voc.num_classes - 1
    assert list(data.VOC_CLASSES) == sorted(data.VOC_CLASSES)
    assert "background" not in data.VOC_CLASSES
