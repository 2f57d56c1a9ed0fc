"""A training step, the average of the weights, and a validation."""

from copy import deepcopy

import golden_inputs
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
    _, _, targets = golden_inputs.loss()
    targets[4 - empty :] = [torch.zeros(0, 5)] * empty
    images = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (4, 300, 300, 3), dtype=np.uint8))
    return images, *MultiBoxLoss(21).match_targets(targets, net.priors)


def make_trainer(net, ranks=None, weight_decay=5e-4, **settings):
    optimizer = build_optimizer(net, "sgd", 1e-3, weight_decay=weight_decay)
    return Trainer(net, MultiBoxLoss(21), optimizer, ranks or Ranks(), **{"precision": torch.float32, **settings})


@pytest.fixture
def net():
    torch.manual_seed(0)
    return build_ssd("train", width=0.05).train()


@pytest.mark.parametrize(("accumulate", "scaled", "clip_grad"), [(2, False, 0), (3, False, 0), (1, True, 1.0)])
def test_parts_and_a_scaled_loss_take_the_step_of_the_whole_batch(net, accumulate, scaled, clip_grad):
    """Without BatchNorm, which sees each part by itself. float16 needs the scaler; the reported loss is plain."""
    other, batch = deepcopy(net), make_batch(net)
    plain = make_trainer(net, clip_grad=clip_grad)
    trainer = make_trainer(other, clip_grad=clip_grad, accumulate=accumulate)
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    trainer.load_state_dict(plain.state_dict())  # a run in float32, without a scaler, may go on in float16
    whole = plain.step(batch, 1e-3, 0)
    torch.testing.assert_close(trainer.step(batch, 1e-3, 0), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.state_dict(), net.state_dict(), rtol=1e-4, atol=1e-5)
    assert whole[2] == (batch[2] > 0).sum()


def test_the_gradient_is_clipped(net):
    before = deepcopy(net)
    make_trainer(net, weight_decay=0, clip_grad=0.01).step(make_batch(net), 1.0, 0)
    moved = [(a - b).flatten() for a, b in zip(net.parameters(), before.parameters(), strict=True)]
    assert torch.cat(moved).norm().item() == pytest.approx(0.01, rel=1e-3)


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
