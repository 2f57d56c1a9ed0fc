"""Configurations and constants, under the lineage's names."""

import copy
import pickle
from dataclasses import FrozenInstanceError, asdict

import pytest

import data
from data.config import COLORS, CONFIGS, MEANS, RGB_MEANS, coco, coco512, get_config, ilsvrc, ilsvrc512, v2, voc, voc512


def test_a_configuration_is_a_mapping_like_the_lineages():
    assert {"num_classes", "feature_maps", "steps", "min_sizes", "aspect_ratios", "clip", "name"} < set(voc)
    assert dict(voc) == asdict(voc) == dict(voc.items())
    assert (voc["min_dim"], voc["max_iter"], voc["lr_steps"]) == (300, 120_000, (80_000, 100_000))
    assert (coco["max_iter"], coco["lr_steps"], coco["num_classes"]) == (400_000, (280_000, 360_000), 81)
    assert (voc.get("variance"), voc.get("learning_rate", 1)) == ((0.1, 0.2), 1)
    assert v2 is voc


def test_they_are_frozen_hashable_and_have_no_other_keys():
    with pytest.raises(FrozenInstanceError):
        voc.min_dim = 512
    for key in ("boxes", "__class__", "num_priors", 0):
        assert key not in voc
        with pytest.raises(KeyError):
            voc[key]
    assert len(set(CONFIGS.values())) == 6
    assert copy.deepcopy(voc) == pickle.loads(pickle.dumps(voc)) == voc


def test_ilsvrc_has_cocos_priors_and_the_papers_schedule():
    for own, other in ((ilsvrc, coco), (ilsvrc512, coco512)):
        assert (own.num_classes, own.lr_steps, own.max_iter) == (201, (320_000, 400_000), 440_000)
        assert (own.min_sizes, own.max_sizes, own.steps) == (other.min_sizes, other.max_sizes, other.steps)


def test_get_config():
    for name, size, config in (("VOC", 300, voc), ("COCO", 512, coco512), ("ILSVRC", 300, ilsvrc), ("x", 512, voc512)):
        assert get_config(name, size) is CONFIGS[config.name] is config
        with pytest.raises(KeyError):
            get_config(name, 400)


def test_the_lineages_constants():
    assert MEANS == RGB_MEANS[::-1] == (104, 117, 123)
    assert (len(COLORS), COLORS[0]) == (6, (255, 0, 0, 128))
    assert data.VOC_ROOT == data.VOCroot == data.HOME + "/data/VOCdevkit/"
    assert data.COCO_ROOT == data.COCOroot == data.HOME + "/data/coco/"
    assert list(data.VOC_CLASSES) == sorted(set(data.VOC_CLASSES))
    assert len(data.VOC_CLASSES) == voc.num_classes - 1
