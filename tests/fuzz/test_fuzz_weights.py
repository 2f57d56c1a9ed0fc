"""Checkpoints and the state of training runs from strangers: used, or refused by name; never code, never memory."""

import io
import itertools
import os
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch
from mutation import HOSTILE, mutate_bytes, mutate_value
from torch import nn
from trials import attack

from data.config import voc
from inference import Detector
from inference.drawing import draw_detections
from training import crops, run_state
from training.log import _open_table, draw_curves
from training.network import averaged, build_network, build_optimizer
from weights.checkpoint import CheckpointInfo, load_network, save_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="inputs are tried in a forked process")

INFO = CheckpointInfo(config=voc, class_names=("left shoe", "größe"), width=1 / 16, mAP=0.5, trained_with="train.py")
FRAME = np.random.RandomState(0).randint(0, 256, (60, 80, 3), np.uint8)
PICKLE_TOKENS = [
    b"cos\nsystem\n", b"ctorch\nTensor\n", b"cbuiltins\neval\n", b"R", b"b", b"\x81", b"0", b"t", b"]", b"}", b".",
    b"\x8a\xff" + b"\x7f" * 255, b"J\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f",
]  # fmt: skip


def hostile_tensors():
    """What may stand in place of a weight."""
    return [
        torch.zeros(1).expand(2**40),
        torch.zeros(1).expand(16, 3, 3, 3),
        torch.zeros(16),
        torch.full((16,), float("nan")),
        torch.full((16,), 1e38),
        torch.zeros(16, dtype=torch.complex64),
        torch.zeros(16, dtype=torch.int8),
        torch.zeros(16, dtype=torch.float64),
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(16).to_sparse(),
        torch.zeros(16, device="meta"),
        torch.quantize_per_tensor(torch.zeros(16), 0.1, 0, torch.qint8),
        nn.Parameter(torch.zeros(16)),
    ]


def stored(contents, zipped=True):
    """The bytes that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(contents, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def repacked(data, change):
    """A checkpoint whose description, the pickle in the zip file, is what `change` makes of it; checksums are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for record in old.infolist():
            content = old.read(record)
            new.writestr(record.filename, change(content) if record.filename.endswith("data.pkl") else content)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """What a checkpoint holds."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "net.pth"
    save_checkpoint(path, INFO.build("train").eval(), INFO)
    return torch.load(path, weights_only=True)


def use(path):
    """Load a checkpoint and detect with it."""
    net, info = load_network(path)
    detections = Detector.of_network(net, info, threshold=0.01)([FRAME])[0]
    draw_detections(FRAME.copy(), detections)
    f"{info.config.name} {', '.join(info.class_names)} {info.mAP} {info.mAP_on} {info.trained_with}".encode()


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


def test_checkpoints_of_changed_bytes(contents, tmp_path, count):
    bare = {"state_dict": contents["state_dict"]}
    seeds = [stored(contents), stored(bare), stored(contents, zipped=False), stored(bare, zipped=False)]

    def make(rng, folder):
        seed = rng.choice(seeds)
        if rng.random() < 0.5 and seed[:2] == b"PK":
            return write(folder, "a.pth", repacked(seed, lambda pickle: mutate_bytes(rng, [pickle], PICKLE_TOKENS)))
        if rng.random() < 0.5:  # a pickle's first bytes say what the rest is
            return write(folder, "a.pth", mutate_bytes(rng, [seed[:4000]], PICKLE_TOKENS) + seed[4000:])
        return write(folder, "a.pth", mutate_bytes(rng, [seed], PICKLE_TOKENS))

    attack("checkpoint, bytes", make, use, count(200), tmp_path)


def test_checkpoints_of_other_values(contents, tmp_path, count):
    hostile = [*HOSTILE, *hostile_tensors()]

    def make(rng, folder):
        described = rng.random() < 0.8
        changed = mutate_value(rng, contents, hostile, lambda path: not described or path[0] != "state_dict")
        return write(folder, "a.pth", stored(changed))

    attack("checkpoint, values and configs", make, use, count(200), tmp_path)


def test_bare_state_dicts_of_other_values(contents, tmp_path, count):
    hostile = [*HOSTILE, *hostile_tensors()]

    def make(rng, folder):
        return write(folder, "a.pth", stored(mutate_value(rng, contents["state_dict"], hostile)))

    attack("state dict, values", make, use, count(80), tmp_path)


ARGUMENTS = Namespace(
    basenet="none", finetune=None, width=1 / 16, optimizer="adamw", lr=1e-3, weight_decay=5e-4, momentum=0.9,
    caffe_bias=False, keep=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A run after two steps (Namespace of its parts), and what its state file holds."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    net = build_network(ARGUMENTS, voc, 3, print)
    optimizer = build_optimizer(net, ARGUMENTS, torch.device("cpu"))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    run = Namespace(
        net=net,
        average=averaged(net, 0.99),
        optimizer=optimizer,
        scaler=scaler,
        folder=folder,
        args=ARGUMENTS,
        best=0.25,
    )
    run_state.save(run, 2, {"iteration": 2, "unscored": False, "sums": [1.0, 2.0, 30.0], "count": 2})
    return run, torch.load(folder / "state_2.pth", weights_only=True)


def test_states_of_training_runs(training, tmp_path, count):
    run, state = training
    hostile = [*HOSTILE, *hostile_tensors()]
    seed = stored(state)

    def make(rng, folder):
        if rng.random() < 0.3:
            return write(
                folder, "state_2.pth", repacked(seed, lambda pickle: mutate_bytes(rng, [pickle], PICKLE_TOKENS))
            )
        weights = rng.random() < 0.2
        changed = mutate_value(rng, state, hostile, lambda path: weights or path[0] not in ("model", "average"))
        return write(folder, "state_2.pth", stored(changed))

    def read(path):
        first, log, best = run_state.load(path, run.net, run.average, run.optimizer, run.scaler)
        assert first >= 0
        assert isinstance(best, float)
        if log is not None:
            assert log["iteration"] + log["count"] + sum(log["sums"]) is not None
        run.optimizer.step()

    attack("state of a training run", make, read, count(100), tmp_path)


def test_states_of_crop_training(training, tmp_path, count):
    run, _ = training
    model = crops.CropClassifier(run.net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "passes": 1}
    hostile = [*HOSTILE, *hostile_tensors()]

    def make(rng, folder):
        changed = mutate_value(rng, state, hostile, lambda path: path[0] != "model" or rng.random() < 0.05)
        return write(folder, "crops.pth", stored(changed))

    def read(path):
        assert crops._load_state(path, model, optimizer) >= 0
        optimizer.step()

    attack("crops.pth", make, read, count(150), tmp_path)


def test_logs_of_training_runs(tmp_path, count):
    text = "iteration,lr,loss_l,loss_c,positives,mAP,seconds\r\n1,1e-05,2.5,3.5,9.000,,0.5\r\n2,,,,,0.125,\r\n"
    tokens = [b",", b"\r\n", b"\n", b'"', b"nan", b"1e999", "²".encode(), b"\0", b"\xff", b"9" * 5000, b"-1", b"x"]

    def make(rng, folder):
        return write(folder, "log.csv", mutate_bytes(rng, [text.encode()], tokens))

    def read(path):
        _open_table(path, 2)[0].close()
        if not next(reads) % 100:
            draw_curves(path.parent)

    write(tmp_path, "log.csv", text.encode())
    draw_curves(tmp_path)  # matplotlib takes seconds to get ready
    reads = itertools.count()
    attack("log.csv", make, read, count(300), tmp_path)
