"""A training step and a validation: parts equal the whole, averages equal their formula, scores equal eval.py's."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from synthetic import make_voc

from layers.modules import MultiBoxLoss
from metrics.ground_truth import open_evaluation_set
from ssd import build_ssd
from training import engine
from training.distributed import Ranks
from training.engine import EMA, Trainer, prediction_grid, validate
from training.optimizer import build_optimizer
from weights.checkpoint import CheckpointInfo


def make_batch(net, count=4):
    rng = np.random.RandomState(0)
    corner, side = rng.uniform(0, 0.5, (count, 2, 2)), rng.uniform(0.2, 0.5, (count, 2, 2))
    rows = np.concatenate([corner, corner + side, rng.randint(0, 20, (count, 2, 1))], axis=2)
    loc_t, conf_t = MultiBoxLoss(21).match_targets([torch.from_numpy(row).float() for row in rows], net.priors)
    return torch.from_numpy(rng.randint(0, 256, (count, 300, 300, 3), dtype=np.uint8)), loc_t, conf_t


def make_trainer(net, **settings):
    optimizer = build_optimizer(net, "sgd", 1e-3, torch.device("cpu"))
    return Trainer(net, MultiBoxLoss(21), optimizer, Ranks(), **{"precision": torch.float32, **settings})


@pytest.fixture
def net():
    torch.manual_seed(0)
    return build_ssd("train", width=0.05).train()


@pytest.mark.parametrize("accumulate", [2, 3])
def test_a_batch_in_parts_is_the_whole_batch(net, accumulate):
    """Without BatchNorm, which sees each part by itself; parts are as even as can be."""
    other, batch = deepcopy(net), make_batch(net)
    whole = make_trainer(net).step(batch, 1e-3, 0)
    parts = make_trainer(other, accumulate=accumulate).step(batch, 1e-3, 0)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    for (name, one), two in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5, msg=name)
    assert whole[2] == (batch[2] > 0).sum()


def test_the_gradient_is_clipped(net):
    other, batch = deepcopy(net), make_batch(net)
    make_trainer(net).step(batch, 1.0, 0)
    before = [parameter.clone() for parameter in other.parameters()]
    trainer = make_trainer(other, clip_grad=0.01)
    trainer.optimizer.param_groups[0]["weight_decay"] = trainer.optimizer.param_groups[1]["weight_decay"] = 0
    trainer.optimizer.param_groups[2]["weight_decay"] = 0
    trainer.step(batch, 1.0, 0)
    moved = torch.cat([(a - b).flatten() for a, b in zip(other.parameters(), before, strict=True)]).norm().item()
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_float16_is_scaled(net):
    """The scaler multiplies the loss; the reported loss is the plain one."""
    values = make_trainer(net, precision=torch.float16).step(make_batch(net), 1e-3, 0)
    expected = make_trainer(deepcopy(net)).step(make_batch(net), 0, 0)
    torch.testing.assert_close(values, expected, rtol=0.05, atol=0.05)


def test_the_average_is_its_formula():
    """average = d * average + (1 - d) * network with d = min(decay, (1 + i) / (10 + i)); of statistics, too."""
    net = build_ssd("train", width=0.05, batch_norm=True)
    ema, keys = EMA(net, 0.15), [key for key, value in net.state_dict().items() if value.is_floating_point()]
    expected = {key: net.state_dict()[key].double() for key in keys}
    for iteration in range(4):
        with torch.no_grad():
            for value in net.state_dict().values():
                value.add_(torch.randn_like(value) if value.is_floating_point() else 1)
        ema.update(net, iteration)
        decay = [0.1, 0.15, 0.15, 0.15][iteration]
        expected = {key: decay * expected[key] + (1 - decay) * net.state_dict()[key].double() for key in keys}
    for key in keys:
        torch.testing.assert_close(ema.net.state_dict()[key].double(), expected[key], rtol=1e-4, atol=1e-5, msg=key)
    assert ema.net.vgg[0].bn.num_batches_tracked == net.vgg[0].bn.num_batches_tracked == 4


def test_the_state_of_a_trainer_comes_back(net):
    first, batch = make_trainer(net, ema=0.9), make_batch(net)
    first.step(batch, 1e-3, 0)
    other = make_trainer(build_ssd("train", width=0.05).train(), ema=0.9)
    other.load_state_dict(deepcopy(first.state_dict()))
    assert torch.equal(first.step(batch, 1e-3, 1), other.step(batch, 1e-3, 1))
    for one, two in zip(first.result.state_dict().values(), other.result.state_dict().values(), strict=True):
        assert torch.equal(one, two)


class TestValidate:
    @pytest.fixture
    def images(self, tmp_path):
        objects = {f"v{i}": [("dog", (10, 10, 90, 70), 0)] for i in range(3)}
        return open_evaluation_set(str(make_voc(tmp_path, objects, split="val")), None, "val")

    def test_the_network_is_not_changed(self, images):
        net = build_ssd("train", num_classes=2, width=0.05, batch_norm=True).train()
        before = deepcopy(net.state_dict())
        result, threshold = validate(net, CheckpointInfo(class_names=("dog",), width=0.05), images, torch.device("cpu"))
        assert [item.name for item in result.classes] == ["dog"]
        assert 0 <= threshold <= 1
        assert net.training
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())

    def test_a_perfect_detector_scores_1(self, images, monkeypatch):
        from inference import Detections

        class Perfect:
            size, device = 300, torch.device("cpu")

            def __call__(self, frames):
                box = np.array([[9, 9, 89, 69]], np.float32) * ([3, 300 / 80] * 2 if len(frames[0]) == 300 else 1)
                return [Detections(box.astype(np.float32), np.array([0.7], np.float32), np.array([0]), ["dog"])] * len(
                    frames
                )

        monkeypatch.setattr(engine, "_detector", lambda *_, **__: Perfect())
        result, threshold = validate(None, CheckpointInfo(class_names=("dog",)), images, torch.device("cpu"))
        assert result.mean_ap_11 == 1
        assert threshold <= 0.7

    def test_a_grid_of_predictions(self, images):
        net = build_ssd("train", num_classes=2, width=0.05)
        grid = prediction_grid(net, CheckpointInfo(class_names=("dog",), width=0.05), images, torch.device("cpu"))
        assert (grid.shape, grid.dtype) == ((600, 1200, 3), np.uint8)
        assert grid.std() > 0
