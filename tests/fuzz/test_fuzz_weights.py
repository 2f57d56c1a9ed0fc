"""Checkpoints and states of training runs: used, or refused; none costs memory or writes a file."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from mutation import HOSTILE, HOSTILE_TENSORS, mutate_bytes, mutate_value, repacked, stored

from data.config import voc
from inference import Detector
from inference.drawing import draw_detections
from layers.modules import MultiBoxLoss
from ssd import build_ssd
from training import network, state
from training.distributed import Ranks
from training.engine import Trainer
from training.optimizer import build_optimizer
from weights.checkpoint import CheckpointInfo, is_run_state, load_network, read_file, save_checkpoint

INFO = CheckpointInfo(config=voc, class_names=("left shoe", "größe"), width=1 / 16, mAP=0.5, trained_with="train.py")
FRAME = np.random.RandomState(0).randint(0, 256, (60, 80, 3), np.uint8)
PICKLE = [b"cos\nsystem\n", b"ctorch\nTensor\n", b"cbuiltins\neval\n", *b"R b \x81 0 t ] } .".split()]
PICKLE += [b"\x8a\xff" + b"\x7f" * 255, *(letter + b"\xff\xff\xff\x7f" for letter in (b"J", b"X", b"r"))]
VALUES = [*HOSTILE, *HOSTILE_TENSORS]


def damaged_pickle(rng, data):
    """Return a file of torch.save with a description, the pickle in the zip file, of changed bytes."""

    def change(name, content):
        return mutate_bytes(rng, [content], PICKLE) if name.endswith("data.pkl") else content

    return repacked(data, change)


def changed(rng, contents, *weights):
    """Return a file of torch.save with changed values; those of `weights`, which are many, once in five times."""
    return stored(mutate_value(rng, contents, VALUES, spared=weights if rng.random() < 0.8 else ()))


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """What a checkpoint contains."""
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


def test_checkpoints_of_changed_bytes(contents, tmp_path, attack):
    bare = {"state_dict": contents["state_dict"]}
    seeds = [stored(what, zipped) for what in (contents, bare) for zipped in (True, False)]

    def make(rng):
        seed = rng.choice(seeds)
        if rng.random() < 0.5 and seed[:2] == b"PK":
            return damaged_pickle(rng, seed)
        if rng.random() < 0.5:  # a pickle's first bytes say what the rest is
            return mutate_bytes(rng, [seed[:4000]], PICKLE) + seed[4000:]
        return mutate_bytes(rng, [seed], PICKLE)

    attack("checkpoint, bytes", tmp_path / "a.pth", make, use)


def test_checkpoints_and_state_dicts_of_other_values(contents, tmp_path, attack):
    attack("checkpoint, values", tmp_path / "a.pth", lambda rng: changed(rng, contents, "state_dict"), use)
    attack("state dict", tmp_path / "a.pth", lambda rng: changed(rng, contents["state_dict"]), use)


RUN = {"dataset": "VOC", "splits": "[]", "classes": ["left shoe", "größe"], "size": 300, "width": 1 / 16, "seed": 0}


def test_states_of_training_runs(tmp_path, attack):
    net = build_ssd("train", num_classes=3, width=1 / 16)
    optimizer = build_optimizer(net, "adamw", 1e-3)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    trainer = Trainer(net, MultiBoxLoss(3), optimizer, Ranks(), precision=torch.float32, ema=0.99)
    log = {"sums": [1.0, 2.0, 30.0], "count": 2, "unscored": False}
    contents = {"run": RUN, "config": asdict(voc), "log": log, "best": 0.25, **trainer.state_dict()}
    state.save_state(tmp_path, 2, contents, keep=1)
    whole = torch.load(tmp_path / "state_2.pth", weights_only=True)

    def make(rng):
        return damaged_pickle(rng, stored(whole)) if rng.random() < 0.3 else changed(rng, whole, "model", "average")

    def read(path):
        """Do what train.py does with a file that it resumes."""
        contents = read_file(path)
        network.read_start(path, contents)
        if is_run_state(contents):
            first, log, best = state.restore(path, contents, trainer, RUN)
            assert first >= 0 and isinstance(best, float)
            assert log["count"] + sum(log["sums"]) is not None
            trainer.optimizer.step()

    attack("run state", tmp_path / "state_2.pth", make, read)
