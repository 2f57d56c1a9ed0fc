"""The folder of a run: its identity, its states, and files that somebody else wrote."""

from copy import deepcopy

import pytest
import torch
from checks import refused
from synthetic import make_voc

from layers.modules import MultiBoxLoss
from ssd import build_ssd
from training import state
from training.distributed import Ranks
from training.engine import Trainer
from training.optimizer import build_optimizer
from training.samples import open_images

LOG = {"sums": [1.0, 2.0, 30.0], "count": 2, "unscored": False}
RUN = {"classes": ["a", "b"], "width": 0.05}


def make_trainer(name="adamw", momentum=0.9):
    torch.manual_seed(0)
    net = build_ssd("train", num_classes=3, width=0.05, batch_norm=True)
    optimizer = build_optimizer(net, name, 1e-3, momentum=momentum)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return Trainer(net, MultiBoxLoss(3), optimizer, Ranks(), precision=torch.float32, ema=0.99)


def save(folder, trainer, iteration=2, keep=3):
    state.save_state(folder, iteration, {"run": RUN, "log": LOG, "best": 0.25, **trainer.state_dict()}, keep)
    return folder / f"state_{iteration}.pth"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(contents of a state, the trainer that saved it)."""
    trainer = make_trainer()
    return torch.load(save(tmp_path_factory.mktemp("run"), trainer), weights_only=True), trainer


@pytest.mark.parametrize("settings", [{}, {"name": "sgd"}, {"name": "sgd", "momentum": 0.0}], ids=str)
def test_a_state_comes_back(tmp_path, settings):
    trainer, other = make_trainer(**settings), make_trainer(**settings)
    path = save(tmp_path, trainer)
    found = state.restore(path, state.find_state("auto", tmp_path, print)[1], other, RUN)
    assert found == (2, LOG, 0.25)
    for ours, theirs in zip(trainer.optimizer.state.values(), other.optimizer.state.values(), strict=True):
        assert all(value is None or torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(("keys", "value"), [
    (["iteration"], "2"), (["iteration"], -1), (["iteration"], 10**400), (["best"], "high"), (["best"], 10**400),
    (["log"], {}), (["log", "sums"], [1.0, 2.0]), (["log", "sums"], ["a", "b", "c"]), (["log", "count"], None),
    (["model"], []), (["average"], {"vgg.0.weight": 3}),
    (["optimizer"], {"param_groups": [], "state": {10**6: {}}}), (["optimizer", "state", 0, "step"], "once"),
    (["optimizer", "state", 0, "exp_avg"], torch.zeros(3)), (["optimizer", "state", 0, "exp_avg"], None),
    (["optimizer", "state", 0, "momentum_buffer"], None), (["optimizer", "state", 0, "step"], -1.0),
], ids=lambda value: ".".join(map(str, value)) if isinstance(value, list) else None)  # fmt: skip
def test_a_damaged_state_is_refused(saved, keys, value):
    contents = node = deepcopy(saved[0])
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    words = r"state_2\.pth: damaged, or the state of another network"
    refused(words, state.restore, "state_2.pth", contents, saved[1], RUN)


@pytest.mark.parametrize("run", [{**RUN, "width": 0.1}, {**RUN, "classes": ["b", "a"]}])
def test_the_state_of_another_run_is_refused(saved, run):
    words = r"state_2\.pth: made by a run with other settings \((width|classes): found"
    refused(words, state.restore, "state_2.pth", *saved, run)


def test_a_damaged_newest_state_is_skipped(tmp_path):
    trainer, lines = make_trainer(), []
    save(tmp_path, trainer, 1)
    newest = save(tmp_path, trainer, 2)
    newest.write_bytes(newest.read_bytes()[:1000])
    assert state.find_state("auto", tmp_path, lines.append)[0].name == "state_1.pth"
    assert str(newest) in lines[0]
    refused(r"state_9\.pth", state.find_state, tmp_path / "state_9.pth", tmp_path, lines.append)


def test_states_of_an_abandoned_continuation_are_removed(tmp_path):
    """The run was resumed from state 3, so that 5 and 6 are not its newest states any more."""
    trainer = make_trainer()
    for iteration in (2, 3, 5, 6, 4):
        save(tmp_path, trainer, iteration, keep=2)
    assert [path.name for path in state.list_states(tmp_path)] == ["state_4.pth"]


class TestFolder:
    def test_two_processes_in_one_folder(self, tmp_path):
        with state.open_folder(tmp_path, Ranks()):
            refused("another process trains in it", state.open_folder(tmp_path, Ranks()).__enter__)

    @pytest.mark.parametrize("content", ["{", "[]", "[" * 9999, '{"width": null}'])
    def test_a_damaged_identity(self, tmp_path, content):
        (tmp_path / "run.json").write_text(content)
        (tmp_path / "state_4.pth").write_bytes(b"")
        refused(r"run\.json", state.check_folder, tmp_path, "auto", True, RUN)

    def test_the_identity_is_that_of_the_data_wherever_they_lie(self, tmp_path):
        runs = []
        for place, second in (("a", "p2"), ("b", "p2"), ("c", "p3")):
            objects = {"p1": [("dog", (5, 5, 60, 60), 0)], second: []}
            images, classes = open_images(str(make_voc(tmp_path / place / "data", objects, split="train")))
            settings = {"optimizer": "sgd", "seed": 0, "batch_size": 2, "net": build_ssd("train", width=0.05)}
            runs.append(state.identify_run(dataset=images.root, images=images, class_names=classes, **settings))
        assert runs[0] == runs[1]
        assert runs[0]["images"] != runs[2]["images"]


def test_usable_images_of_a_state():
    contents = {"format": "ssd-run-2", "usable": [0, 2]}
    assert state.usable_images(contents, 3) == [0, 2]
    assert state.usable_images(contents, 2) is None
    assert state.usable_images({**contents, "usable": ["0"]}, 3) is None
