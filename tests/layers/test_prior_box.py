"""The default boxes, against the golden values and against the sentences of the paper, written out."""

import math
from dataclasses import asdict, replace

import pytest
import torch

from data.config import CONFIGS, coco, voc
from layers.functions import PriorBox


def written_out(config):
    """The priors one by one: maps, rows, columns, then the boxes of a cell."""
    rows = []
    for side, step, small, large, ratios in zip(
        config.feature_maps, config.steps, config.min_sizes, config.max_sizes, config.aspect_ratios, strict=True
    ):
        for y in range(side):
            for x in range(side):
                cx, cy = (x + 0.5) * step / config.min_dim, (y + 0.5) * step / config.min_dim
                size, between = small / config.min_dim, math.sqrt(small * large) / config.min_dim
                rows += [(cx, cy, size, size), (cx, cy, between, between)]
                for ratio in ratios:
                    rows.append((cx, cy, size * math.sqrt(ratio), size / math.sqrt(ratio)))
                    rows.append((cx, cy, size / math.sqrt(ratio), size * math.sqrt(ratio)))
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("config", "name"), [(voc, "priors_voc300"), (coco, "priors_coco300")])
def test_priors_equal_the_golden_ones(golden, config, name):
    priors = PriorBox(config).forward()
    assert priors.dtype == torch.float32
    torch.testing.assert_close(priors, torch.from_numpy(golden[name]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_priors_equal_the_formula_of_the_paper(config):
    expected = written_out(config)
    assert len(expected) == config.num_priors == (8732 if config.min_dim == 300 else 24564)
    whole, clipped = PriorBox(replace(config, clip=False)), PriorBox(config)
    torch.testing.assert_close(whole.forward().double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(clipped.forward().double(), expected.clamp(0, 1), atol=1e-6, rtol=0)


def test_a_dict_of_the_lineage():
    """Lists, as the lineage writes them; the attributes have its names."""
    cfg = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(voc).items()}
    prior_box = PriorBox(cfg | {"name": "VOC"})
    assert torch.equal(prior_box.forward(), PriorBox(voc)())
    kept = (prior_box.image_size, prior_box.num_priors, prior_box.variance, prior_box.clip, prior_box.version)
    assert kept == (300, 6, [0.1, 0.2], True, "VOC")


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="variances must be greater than 0"):
        PriorBox(replace(voc, variance=(0.1, 0.0)))
    with pytest.raises(ValueError, match="same length"):
        PriorBox(replace(voc, steps=voc.steps[:-1]))
