"""A training step, the average of the weights, and a validation."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from synthetic import make_voc

from layers.modules import MultiBoxLoss
from metrics.ground_truth import open_evaluation_set
from ssd import build_ssd
from training.distributed import Ranks
from training.engine import EMA, Trainer, prediction_grid, validate
from training.optimizer import build_optimizer
from weights.checkpoint import CheckpointInfo

CPU = torch.device("cpu")


def make_batch(net, empty=0):
    """Four images and their matched targets; `empty` of the last images have no objects."""
    rng = np.random.RandomState(0)
    targets = []
    for image in range(4):
        count = 0 if image >= 4 - empty else rng.randint(1, 4)
        corner, side = rng.uniform(0, 0.5, (count, 2)), rng.uniform(0.2, 0.5, (count, 2))
        targets.append(torch.from_numpy(np.hstack([corner, corner + side, rng.randint(0, 20, (count, 1))])).float())
    images = torch.from_numpy(rng.randint(0, 256, (4, 300, 300, 3), dtype=np.uint8))
    return images, *MultiBoxLoss(21).match_targets(targets, net.priors)


def make_trainer(net, ranks=None, weight_decay=5e-4, **settings):
    optimizer = build_optimizer(net, "sgd", 1e-3, net.priors.device, weight_decay=weight_decay)
    return Trainer(net, MultiBoxLoss(21), optimizer, ranks or Ranks(), **{"precision": torch.float32, **settings})


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
    torch.testing.assert_close(other.state_dict(), net.state_dict(), rtol=1e-4, atol=1e-5)
    assert whole[2] == (batch[2] > 0).sum()


def test_the_gradient_is_clipped(net):
    before = deepcopy(net)
    make_trainer(net, weight_decay=0, clip_grad=0.01).step(make_batch(net), 1.0, 0)
    moved = [(a - b).flatten() for a, b in zip(net.parameters(), before.parameters(), strict=True)]
    assert torch.cat(moved).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_a_scaled_loss_takes_the_same_step(net):
    """float16 needs the scaler. The reported loss is the plain one."""
    other, batch = deepcopy(net), make_batch(net)
    plain, scaled = make_trainer(net, clip_grad=1.0), make_trainer(other, clip_grad=1.0)
    scaled.scaler = torch.amp.GradScaler("cpu")
    torch.testing.assert_close(scaled.step(batch, 1e-3, 0), plain.step(batch, 1e-3, 0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.state_dict(), net.state_dict(), rtol=1e-4, atol=1e-5)


def test_a_state_in_float32_is_resumed_in_float16(net):
    state, resumed = make_trainer(net).state_dict(), make_trainer(deepcopy(net))
    resumed.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    resumed.load_state_dict(state)
    assert resumed.scaler.get_scale() == 8.0


def test_the_average_is_its_formula():
    """average = d * average + (1 - d) * network with d = min(decay, (1 + i) / (10 + i)); of statistics, too."""
    net = build_ssd("train", width=0.05, batch_norm=True)
    ema, keys = EMA(net, 0.15), [key for key, value in net.state_dict().items() if value.is_floating_point()]
    expected = {key: net.state_dict()[key].double() for key in keys}
    for iteration, decay in enumerate([0.1, 0.15, 0.15, 0.15]):
        with torch.no_grad():
            for value in net.state_dict().values():
                value.add_(torch.randn_like(value) if value.is_floating_point() else 1)
        ema.update(net, iteration)
        expected = {key: decay * expected[key] + (1 - decay) * net.state_dict()[key].double() for key in keys}
    found = {key: ema.net.state_dict()[key].double() for key in keys}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert ema.net.vgg[0].bn.num_batches_tracked == net.vgg[0].bn.num_batches_tracked == 4


def test_a_validation_leaves_the_network_as_it_is(tmp_path):
    objects = {f"v{i}": [("dog", (10, 10, 90, 70), 0)] for i in range(3)}
    images = open_evaluation_set(str(make_voc(tmp_path, objects, split="val")), None, "val")
    net = build_ssd("train", num_classes=2, width=0.05, batch_norm=True).train()
    info, before = CheckpointInfo(class_names=("dog",), width=0.05), deepcopy(net.state_dict())
    result, _ = validate(net, info, images, CPU)
    grid = prediction_grid(net, info, images, CPU)
    assert [item.name for item in result.classes] == ["dog"]
    assert (grid.shape, grid.dtype) == ((600, 1200, 3), np.uint8)
    assert grid.std() > 0
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", [
    {}, {"precision": torch.bfloat16, "accumulate": 2, "ema": 0.9}, {"precision": torch.float16, "clip_grad": 1.0},
], ids=str)  # fmt: skip
def test_a_step_on_cuda_does_not_wait_for_the_device(net, settings):
    batch = [tensor.cuda() for tensor in make_batch(net)]
    trainer = make_trainer(net.cuda(), **settings)
    for iteration in range(3):  # the first ones choose kernels
        trainer.step(batch, 1e-3, iteration)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(batch, 1e-3, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
