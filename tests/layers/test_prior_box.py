"""The default boxes, against the golden values and against the sentences of the paper, written out."""

import math
from dataclasses import replace

import pytest
import torch

from data.config import CONFIGS, coco, coco512, voc, voc512
from layers.functions import PriorBox


def written_out(config, clip):
    """The priors one by one: maps, rows, columns, then the boxes of a cell."""
    rows = []
    for side, step, small, large, ratios in zip(
        config.feature_maps, config.steps, config.min_sizes, config.max_sizes, config.aspect_ratios, strict=True
    ):
        for y in range(side):
            for x in range(side):
                cx, cy = (x + 0.5) * step / config.min_dim, (y + 0.5) * step / config.min_dim
                size = small / config.min_dim
                between = math.sqrt(small * large) / config.min_dim
                rows += [(cx, cy, size, size), (cx, cy, between, between)]
                for ratio in ratios:
                    rows.append((cx, cy, size * math.sqrt(ratio), size / math.sqrt(ratio)))
                    rows.append((cx, cy, size / math.sqrt(ratio), size * math.sqrt(ratio)))
    if clip:
        rows = [[min(max(value, 0), 1) for value in row] for row in rows]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("config", "name"), [(voc, "priors_voc300"), (coco, "priors_coco300")])
def test_priors_equal_the_golden_ones(golden, config, name):
    priors = PriorBox(config).forward()
    assert priors.dtype == torch.float32
    torch.testing.assert_close(priors, torch.from_numpy(golden[name]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("clip", [True, False])
def test_priors_equal_the_formula_of_the_paper(config, clip):
    priors = PriorBox(replace(config, clip=clip)).forward()
    torch.testing.assert_close(priors.double(), written_out(config, clip), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("config", "count"), [(voc, 8732), (coco, 8732), (voc512, 24564), (coco512, 24564)])
def test_number_of_priors(config, count):
    assert len(PriorBox(config).forward()) == count == config.num_priors


def test_clipping_changes_134_of_the_8732_and_is_on_by_default():
    clipped, whole = PriorBox(voc).forward(), PriorBox(replace(voc, clip=False)).forward()
    assert int((clipped != whole).any(dim=1).sum()) == 134
    assert all(config.clip for config in CONFIGS.values())


def test_a_plain_dict_of_the_lineage_does_as_well():
    """Lists, as the lineage writes them, and its `name` key."""
    cfg = {
        "feature_maps": [38, 19, 10, 5, 3, 1],
        "min_dim": 300,
        "steps": [8, 16, 32, 64, 100, 300],
        "min_sizes": [30, 60, 111, 162, 213, 264],
        "max_sizes": [60, 111, 162, 213, 264, 315],
        "aspect_ratios": [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        "variance": [0.1, 0.2],
        "clip": True,
        "name": "VOC",
    }
    assert torch.equal(PriorBox(cfg).forward(), PriorBox(voc).forward())


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="variances must be greater than 0"):
        PriorBox(replace(voc, variance=(0.1, 0.0)))
    with pytest.raises(ValueError, match="one length"):
        PriorBox(replace(voc, steps=voc.steps[:-1]))
