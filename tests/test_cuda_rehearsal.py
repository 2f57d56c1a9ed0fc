"""What runs on CUDA, rehearsed without CUDA: every tensor on its device, and where the host waits for it."""

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, rehearsal
from synthetic import make_voc
from torch._subclasses.fake_tensor import FakeTensor

from data.transforms import to_input
from inference import Detector
from layers.modules import MultiBoxLoss
from metrics import evaluation
from metrics.ground_truth import open_evaluation_set
from ssd import build_ssd
from training import engine
from training.distributed import Ranks
from training.log import Log
from training.optimizer import build_optimizer
from training.samples import batches_on, build_loader
from weights.checkpoint import CheckpointInfo, out_of_range

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Candidates are counted, batched_nms copies a constant to the device, and NMS counts the boxes that it keeps.
DETECT = ["nonzero", "nms"]


@pytest.fixture
def cuda(monkeypatch):
    # Pinned memory needs a driver, and a fake tensor has no values for NumPy.
    monkeypatch.setattr(Detector, "_upload", lambda self, image: torch.empty(image.shape, device=self.device).byte())
    monkeypatch.setattr(FakeTensor, "numpy", lambda rows: np.zeros(rows.shape, np.float32))
    with rehearsal(monkeypatch) as mode:
        yield mode


def make_net(cuda, size=300, device=CUDA, dtype=torch.float32, **settings):
    with cuda.allowing("_to_copy"):
        net = build_ssd("train", size, **{"width": 1 / 16, **settings})
        return net.to(device, dtype, memory_format=torch.channels_last)


def make_batch(device=CUDA):
    with device:
        images = torch.empty(4, 300, 300, 3, dtype=torch.uint8)
        return images, torch.empty(4, 8732, 4), torch.empty(4, 8732, dtype=torch.int64)


def make_trainer(cuda, name="sgd", precision=torch.float32, device=CUDA, batch_norm=False, **settings):
    net = make_net(cuda, device=device, batch_norm=batch_norm).train()
    optimizer = build_optimizer(net, name, 1e-3)
    return engine.Trainer(net, MultiBoxLoss(21), optimizer, Ranks(), precision=precision, **settings)


def test_what_makes_the_host_wait_and_what_fails(cuda):
    x, on_cpu = torch.zeros(3, device=CUDA), torch.zeros(3)
    with pytest.raises(RuntimeError, match="device"):
        x + on_cpu
    for call in (
        x[0].item, lambda: x.to("cpu", non_blocking=True), lambda: torch.tensor([1.0], device=CUDA), lambda: x[x > 0],
        lambda: x[on_cpu.long()], lambda: x.index_put_((x > 0,), x),
    ):  # fmt: skip
        for inference in (False, True):
            with pytest.raises(AssertionError, match="host wait"), torch.inference_mode(inference):
                call()
    x.copy_(on_cpu.to(CUDA, non_blocking=True).masked_fill(x > 0, 1).double()[x.long()], non_blocking=True)


@pytest.mark.parametrize("size", [300, 512])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", [{"width": 1.0}, {"width": 0.5, "batch_norm": True}])
def test_network(cuda, size, dtype, settings):
    net, images = make_net(cuda, size, dtype=dtype, **settings), torch.empty(2, 3, size, size, device=CUDA, dtype=dtype)
    loc, conf, priors = net(images)
    assert (loc.shape, conf.shape) == ((2, len(priors), 4), (2, len(priors), 21))
    assert {(tensor.device, tensor.dtype) for tensor in (loc, conf, priors)} == {(CUDA, dtype)}
    net.phase, net.detect.keep_top_k = "test", 100 if size == 512 else None
    with cuda.allowing(*DETECT) as waits:
        rows = net(images)
    assert (rows.device, rows.dtype, rows.shape, waits) == (CUDA, torch.float32, (2, 21, 200, 5), DETECT)


@pytest.mark.parametrize(("device", "precision", "dtype"), [
    ("cuda:0", "float32", torch.float32), ("cuda", "float16", torch.float16), ("auto", "auto", torch.bfloat16),
])  # fmt: skip
def test_detector(cuda, device, precision, dtype):
    """The host waits in Detect and for its result, nowhere else."""
    with cuda.allowing("_to_copy"):
        detector = Detector((build_ssd("test", width=1 / 16), CheckpointInfo(channel_order="BGR")), device, precision)
        to_input(torch.empty(1, 300, 300, 3, dtype=torch.uint8, device=CUDA))  # copies the means, once
    assert (detector.device, detector.dtype) == (CUDA, dtype)
    frames = [np.zeros((*size, 3), np.uint8) for size in ((300, 300), (375, 500), (1080, 1920), (200, 640))]
    for output, columns in zip(detector.outputs([detector._upload(frame) for frame in frames]), (4, 21), strict=True):
        assert (output.device, output.dtype, output.shape) == (CUDA, torch.float32, (4, 8732, columns))
    with cuda.allowing(*DETECT, "_to_copy") as waits:
        assert [len(found) for found in detector(frames)] == [0] * 4
    assert waits == [*DETECT, "_to_copy"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_multibox_loss(cuda, dtype):
    """Matching on the device, as scripts of the lineage do it, waits; the loss doesn't."""
    loc, conf, priors = (torch.empty(*s, device=CUDA, dtype=dtype) for s in ((2, 8732, 4), (2, 8732, 21), (8732, 4)))
    with cuda.allowing("nonzero", "equal") as waits:
        targets = MultiBoxLoss(21).match_targets([torch.empty(n, 5, device=CUDA) for n in (3, 0)], priors.float())
    assert waits == ["nonzero", "equal", "nonzero", "nonzero"]
    losses = MultiBoxLoss(21).sums(loc.requires_grad_(), conf.requires_grad_(), *targets)
    sum(losses).backward()
    assert {(loss.device, loss.dtype) for loss in losses} == {(CUDA, torch.float32)}
    assert {(tensor.grad.device, tensor.grad.dtype) for tensor in (loc, conf)} == {(CUDA, dtype)}


@pytest.mark.parametrize(("name", "precision", "settings"), [
    ("sgd", torch.float32, {}),
    ("sgd", torch.bfloat16, {"accumulate": 2, "ema": 0.9}),
    ("sgd", torch.float16, {"clip_grad": 1.0, "ema": 0.9}),
    ("adamw", torch.bfloat16, {"clip_grad": 1.0, "batch_norm": True, "ema": 0.9}),
    ("adamw", torch.float16, {"accumulate": 3}),
])  # fmt: skip
def test_a_training_step_never_waits(cuda, name, precision, settings):
    trainer, batch, seen = make_trainer(cuda, name, precision, **settings), make_batch(), []
    assert trainer.scaler.is_enabled() == (precision == torch.float16)
    with cuda.allowing("_to_copy") as waits:
        trainer.step(batch, 1e-3, 0)
    assert waits == ["_to_copy"]  # the means of preprocessing, once in a process
    trainer.net.conf[0].register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    values = trainer.step(batch, 1e-3, 1)
    assert seen == [precision] * settings.get("accumulate", 1)
    assert (values.device, values.dtype, values.shape) == (CUDA, torch.float32, (3,))
    states = [*trainer.optimizer.state.values(), trainer.net.state_dict(), trainer.result.state_dict()]
    assert {tensor.device for state in states for tensor in state.values()} == {CUDA}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_run_from_cpu_continues_on_cuda(cuda, name):
    first = make_trainer(cuda, name, device=CPU)
    first.step(make_batch(CPU), 1e-3, 0)
    trainer = make_trainer(cuda, name, ema=0.99)
    with cuda.allowing("_to_copy", "copy_"):
        trainer.load_state_dict(first.state_dict())
        trainer.step(make_batch(), 1e-3, 1)
    trainer.step(make_batch(), 1e-3, 2)
    with cuda.allowing("_local_scalar_dense"):
        assert out_of_range(trainer.net.state_dict()) is None


def test_the_loop_waits_when_it_prints(cuda, tmp_path):
    """Batches come from pinned memory, which is copied without waiting."""
    assert build_loader([], [], list, 0, CUDA).pin_memory
    batches = batches_on(CUDA, [[*make_batch(CPU), torch.arange(4)]] * 3)
    with Log(tmp_path, 0, 9, print_every=3, batch_size=4, image_path=str, is_main=False) as log:
        for iteration, (tensors, indices) in zip(range(2), batches, strict=False):
            assert ({tensor.device for tensor in tensors}, indices.device) == ({CUDA}, CPU)
            log.step(iteration, 1e-3, tensors[1][0, 0], indices)
        with pytest.raises(AssertionError, match="host wait"):
            log.step(2, 1e-3, tensors[1][0, 0], indices)


def test_validation(cuda, tmp_path, monkeypatch):
    folder = make_voc(tmp_path, {f"v{i}": [("dog", (10, 10, 90, 70), 0)] for i in range(17)}, split="val")
    images, info = open_evaluation_set(str(folder), None, "val"), CheckpointInfo(width=1 / 16)
    # Workers are threads, and a fake mode belongs to one.
    monkeypatch.setattr(evaluation, "in_order", lambda function, items, *_: (function(item) for item in items))
    net = make_trainer(cuda, ema=0.9, batch_norm=True).result
    with cuda.allowing(*DETECT, "_to_copy", "copy_") as waits:
        assert engine.validate(net, info, images, CUDA)[0].mean_ap_11 == 0
        assert waits.count("nms") == 2  # once per batch, of 16 and 1
        assert engine.prediction_grid(net, info, images, CUDA).shape == (600, 1200, 3)
