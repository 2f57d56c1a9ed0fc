"""The folder of a run: its identity, its states, and files that somebody else wrote."""

from copy import deepcopy

import pytest
import torch
from synthetic import make_voc

from layers.modules import MultiBoxLoss
from ssd import build_ssd
from training import pretrain, state
from training.distributed import Ranks
from training.engine import Trainer
from training.optimizer import build_optimizer
from training.samples import open_images
from utils.errors import InputError

LOG = {"sums": [1.0, 2.0, 30.0], "count": 2, "unscored": False}
RUN = {"classes": ["a", "b"], "width": 0.05}
CPU = torch.device("cpu")


def make_trainer(**changes):
    torch.manual_seed(0)
    net = build_ssd("train", num_classes=3, width=0.05, batch_norm=True)
    optimizer = build_optimizer(net, changes.get("name", "adamw"), 1e-3, CPU, momentum=changes.get("momentum", 0.9))
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
    found = state.restore(path, state.find_state("auto", tmp_path, print)[1], other, RUN, print)
    assert found == (2, LOG, 0.25)
    for ours, theirs in zip(trainer.optimizer.state.values(), other.optimizer.state.values(), strict=True):
        assert all(value is None or torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["iteration"], "2"),
        (["iteration"], -1),
        (["iteration"], 10**400),
        (["best"], "high"),
        (["best"], 10**400),
        (["log"], {}),
        (["log", "sums"], [1.0, 2.0]),
        (["log", "sums"], ["a", "b", "c"]),
        (["log", "count"], None),
        (["model"], []),
        (["average"], {"vgg.0.weight": 3}),
        (["optimizer"], {"param_groups": [], "state": {10**6: {}}}),
        (["optimizer", "state", 0, "exp_avg"], torch.zeros(3)),
        (["rng"], torch.zeros(3, dtype=torch.uint8)),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, list) else None,
)
def test_a_damaged_state_is_refused(saved, keys, value):
    contents = deepcopy(saved[0])
    *way, last = keys
    node = contents
    for key in way:
        node = node[key]
    node[last] = value
    with pytest.raises(InputError, match=r"state_2\.pth: damaged, or the state of another network") as caught:
        state.restore("state_2.pth", contents, saved[1], RUN, print)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("run", [{**RUN, "width": 0.1}, {**RUN, "classes": ["b", "a"]}])
def test_the_state_of_another_run_is_refused(saved, run):
    with pytest.raises(InputError, match=r"state_2\.pth: belongs to another run \((width|classes): found"):
        state.restore("state_2.pth", saved[0], saved[1], run, print)


def test_a_state_of_the_first_version_loads_and_says_so(saved):
    """It has no identity, torch's AveragedModel, and a log with its iteration."""
    contents = {**deepcopy(saved[0]), "format": "ssd-run-1", "log": {**LOG, "iteration": 2}}
    del contents["run"]
    contents["average"] = {f"module.{key}": value for key, value in contents["average"].items()}
    contents["average"]["n_averaged"] = torch.tensor(7)
    lines, trainer = [], make_trainer()
    assert state.restore("state_2.pth", contents, trainer, RUN, lines.append)[0] == 2
    assert "earlier version" in lines[0]
    assert torch.equal(trainer.average.net.vgg[0].weight, saved[1].average.net.vgg[0].weight)


def test_only_the_newest_states_are_kept(tmp_path):
    trainer = make_trainer()
    for iteration in (1, 2, 10):
        save(tmp_path, trainer, iteration, keep=2)
    assert [path.name for path in state.list_states(tmp_path)] == ["state_2.pth", "state_10.pth"]


def test_a_damaged_newest_state_is_skipped(tmp_path):
    trainer, lines = make_trainer(), []
    save(tmp_path, trainer, 1)
    newest = save(tmp_path, trainer, 2)
    newest.write_bytes(newest.read_bytes()[:1000])
    assert state.find_state("auto", tmp_path, lines.append)[0].name == "state_1.pth"
    assert str(newest) in lines[0]
    assert state.find_state("auto", tmp_path / "new", lines.append) == (None, None)
    assert "starting from the beginning" in lines[1 if len(lines) == 2 else -1]
    with pytest.raises(InputError, match=r"state_9\.pth"):
        state.find_state(tmp_path / "state_9.pth", tmp_path, lines.append)


class TestFolder:
    def test_two_processes_in_one_folder(self, tmp_path):
        refused = pytest.raises(InputError, match="another process trains in it")
        with state.open_folder(tmp_path, Ranks()), refused, state.open_folder(tmp_path, Ranks()):
            pass
        with state.open_folder(tmp_path, Ranks()) as folder:
            assert folder == tmp_path

    def test_a_run_is_not_overwritten(self, tmp_path):
        state.check_folder(tmp_path, None, RUN)
        state.write_identity(tmp_path, RUN)
        (tmp_path / "state_4.pth").write_bytes(b"")
        with pytest.raises(InputError, match=r"already holds a run \(state_4\.pth\); resume it with --resume auto"):
            state.check_folder(tmp_path, None, RUN)
        state.check_folder(tmp_path, "auto", RUN)
        with pytest.raises(InputError, match=r"run\.json: belongs to another run \(width: found 0\.05"):
            state.check_folder(tmp_path, "auto", {**RUN, "width": 1.0})

    @pytest.mark.parametrize("content", ["{", "[]", '{"width": null}'])
    def test_a_damaged_identity(self, tmp_path, content):
        (tmp_path / "run.json").write_text(content)
        (tmp_path / "state_4.pth").write_bytes(b"")
        with pytest.raises(InputError, match=r"run\.json"):
            state.check_folder(tmp_path, "auto", RUN)

    def test_the_identity_is_that_of_the_data_wherever_they_lie(self, tmp_path):
        runs = []
        for place, second in (("a", "p2"), ("b", "p2"), ("c", "p3")):
            objects = {"p1": [("dog", (5, 5, 60, 60), 0)], second: []}
            images, classes = open_images(str(make_voc(tmp_path / place / "data", objects, split="train")))
            net = build_ssd("train", num_classes=2, width=0.05)
            runs.append(
                state.identify_run(
                    dataset=str(tmp_path / place / "data"),
                    images=images,
                    class_names=classes,
                    net=net,
                    optimizer="sgd",
                    seed=0,
                    batch_size=2,
                )  # fmt: skip
            )
        assert runs[0] == runs[1]
        assert runs[0]["images"] != runs[2]["images"]


def test_usable_images_of_a_state():
    contents = {"format": "ssd-run-2", "usable": [0, 2]}
    assert state.usable_images(contents, 3) == [0, 2]
    assert state.usable_images(contents, 2) is None
    assert state.usable_images({**contents, "usable": ["0"]}, 3) is None
    assert state.usable_images(None, 3) is None


@pytest.mark.parametrize("change", [{"passes": "x"}, {"passes": None}, {"optimizer": {}}, {"model": {}}], ids=str)
def test_a_damaged_state_of_pre_training_is_refused(saved, tmp_path, change):
    model = pretrain.CropClassifier(saved[1].net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    contents = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "passes": 1}
    torch.save(contents, tmp_path / "crops.pth")
    assert pretrain._load_state(tmp_path / "crops.pth", model, optimizer) == 1
    torch.save({**contents, **change}, tmp_path / "crops.pth")
    with pytest.raises(InputError, match=r"crops\.pth: damaged"):
        pretrain._load_state(tmp_path / "crops.pth", model, optimizer)
