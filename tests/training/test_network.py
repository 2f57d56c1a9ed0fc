"""What a run starts from (base, checkpoint to fine-tune), what stays frozen, what optimises it, and its average."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch

from data import voc
from ssd import build_ssd
from training import network
from training.network import (
    averaged,
    build_network,
    build_optimizer,
    freeze_base,
    load_base,
    load_fitting,
    training_memory_format,
)
from utils.errors import InputError
from weights.checkpoint import CheckpointInfo, save_checkpoint

WIDTH = 0.05
CONVOLUTIONS = 31  # layers before conv6


def make_net(classes=4, seed=0, width=WIDTH, batch_norm=False):
    torch.manual_seed(seed)
    return build_ssd("train", 300, classes, width=width, batch_norm=batch_norm)


def base_state(seed=1, prefix="", convolutions_only=False):
    """The state dict of a trained base, as a file of published weights has it."""
    state = make_net(seed=seed).vgg.state_dict()
    return {
        prefix + key: value + 0.01
        for key, value in state.items()
        if not convolutions_only or int(key.partition(".")[0]) < CONVOLUTIONS
    }


def saved(contents, path):
    torch.save(contents, path)
    return path


def refusal(function, *arguments):
    """The message of an InputError: one line."""
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def said():
    return []


@pytest.mark.parametrize("load", [load_base, load_fitting])
@pytest.mark.parametrize(
    "contents",
    [
        b"no weights",
        {"layer1.weight": torch.zeros(3)},
        {1: torch.zeros(3)},
        pytest.param({"model": 1, "state_dict": 2}, id="other dict"),
        pytest.param({"0.weight": 3, "vgg.0.weight": 3}, id="numbers"),
    ],
)
def test_a_file_without_a_network(load, contents, tmp_path, said):
    path = tmp_path / "foreign.pth"
    path.write_bytes(contents) if isinstance(contents, bytes) else torch.save(contents, path)
    assert str(path) in refusal(load, make_net(), str(path), said.append)
    assert said == []


def test_a_base_in_a_list(tmp_path, said):
    path = saved([torch.zeros(3)], tmp_path / "list.pth")
    assert str(path) in refusal(load_base, make_net(), str(path), said.append)


@pytest.mark.parametrize("load", [load_base, load_fitting])
def test_a_file_that_is_cut_off(load, tmp_path, said):
    path = saved(base_state(prefix="vgg."), tmp_path / "cut.pth")
    path.write_bytes(path.read_bytes()[:2000])
    assert str(path) in refusal(load, make_net(), str(path), said.append)


class TestBase:
    @pytest.mark.parametrize("prefix", ["", "vgg.", "module.vgg.", "features."])
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_the_reduced_one(self, prefix, wrapped, tmp_path, said):
        state = base_state(prefix=prefix)
        path = saved({"state_dict": state} if wrapped else state, tmp_path / "vgg16_reducedfc.pth")
        net = make_net()
        others = {key: value.clone() for key, value in net.state_dict().items() if not key.startswith("vgg.")}
        load_base(net, str(path), said.append)
        for key, value in net.vgg.state_dict().items():
            assert torch.equal(value, state[prefix + key]), key
        for key, value in others.items():
            assert torch.equal(value, net.state_dict()[key]), key
        assert said == [
            f"base: loaded from {path}; initialised: none of it",
            "extra layers and heads: initialised",
        ]

    def test_torchvisions_convolutions(self, tmp_path, said):
        """Its classifier is left aside; fc6 and fc7 stay as they were initialised, and that is said."""
        state = base_state(prefix="features.", convolutions_only=True)
        path = saved({**state, "classifier.0.weight": torch.zeros(4, 4)}, tmp_path / "features.pth")
        net = make_net()
        fc = {key: value.clone() for key, value in net.vgg.state_dict().items() if int(key.split(".")[0]) > 30}
        load_base(net, str(path), said.append)
        for key, value in net.vgg.state_dict().items():
            assert torch.equal(value, fc[key] if key in fc else state["features." + key]), key
        assert said[0] == f"base: loaded from {path}; initialised: 31.bias, 31.weight, 33.bias, 33.weight"
        assert len(said) == 2

    def test_another_width(self, tmp_path, said):
        path = saved(base_state(), tmp_path / "base.pth")
        before = make_net(width=0.1)
        net = deepcopy(before)
        message = refusal(load_base, net, str(path), said.append)
        assert str(path) in message
        assert "width 0.1" in message
        assert torch.equal(net.vgg[0].weight, before.vgg[0].weight)

    def test_a_base_that_lacks_a_convolution(self, tmp_path, said):
        state = base_state()
        del state["28.bias"]
        path = saved(state, tmp_path / "base.pth")
        message = refusal(load_base, make_net(), str(path), said.append)
        assert str(path) in message
        assert "28.bias" in message


class TestFallback:
    def unreachable(self, monkeypatch, *there):
        """Catalogue files that can't be downloaded, except those paths."""

        def resolve(name):
            for path in there:
                if path.name == name:
                    return path
            raise InputError(f"{name} can't be downloaded; put it into weights/")

        monkeypatch.setattr(network, "resolve", resolve)

    @pytest.mark.parametrize("name", ["vgg16_reducedfc.pth", "weights/vgg16_reducedfc.pth"])
    def test_torchvisions_copy_takes_its_place(self, name, tmp_path, monkeypatch, said):
        state = base_state(prefix="features.", convolutions_only=True)
        path = saved(state, tmp_path / network.FALLBACK_BASE)
        self.unreachable(monkeypatch, path)
        net = make_net()
        load_base(net, name, said.append)
        assert torch.equal(net.vgg[28].weight, state["features.28.weight"])
        assert "can't be downloaded" in said[0]
        assert network.FALLBACK_BASE in said[0]
        assert f"loaded from {path}; initialised: 31.bias" in said[1]
        assert all("\n" not in line for line in said)

    def test_neither_can_be_had(self, monkeypatch, said):
        self.unreachable(monkeypatch)
        message = refusal(load_base, make_net(), "vgg16_reducedfc.pth", said.append)
        assert network.FALLBACK_BASE in message

    def test_nothing_takes_the_place_of_a_users_own_file(self, tmp_path, monkeypatch, said):
        path = saved(base_state(prefix="features."), tmp_path / network.FALLBACK_BASE)
        self.unreachable(monkeypatch, path)
        assert "mine.pth" in refusal(load_base, make_net(), "mine.pth", said.append)
        assert said == []


class TestBuild:
    def build(self, said, **settings):
        args = SimpleNamespace(**{"basenet": "none", "finetune": None, "width": WIDTH, **settings})
        return build_network(args, voc, 4, said.append)

    def test_from_scratch(self, said):
        net = self.build(said)
        assert any(key.endswith("bn.weight") for key in net.state_dict())
        assert said == ["base: initialised, with BatchNorm; extra layers and heads: initialised"]

    def test_from_a_checkpoint(self, said, tmp_path):
        trained = make_net(seed=3)
        path = tmp_path / "trained.pth"
        save_checkpoint(path, trained, CheckpointInfo(voc, ("a", "b", "c"), WIDTH))
        net = self.build(said, basenet="never asked for", finetune=str(path))
        assert torch.equal(net.conf[0].weight, trained.conf[0].weight)
        assert said == [f"loaded {len(trained.state_dict())} tensors of {path}; initialised anew: nothing"]


class TestMemoryFormat:
    @pytest.mark.parametrize(
        ("device", "precision", "width", "expected"),
        [
            ("cpu", torch.float32, 1.0, torch.contiguous_format),
            ("cpu", torch.float32, 0.25, torch.channels_last),
            ("cpu", torch.bfloat16, 1.0, torch.channels_last),
            ("cuda", torch.float32, 1.0, torch.channels_last),
        ],
    )
    def test_only_a_wide_network_on_a_cpu_in_float32_lies_otherwise(self, device, precision, width, expected):
        assert training_memory_format(torch.device(device), precision, width) == expected


class TestFinetune:
    def source(self, kind, path, net):
        """A file of the network, in one of the forms that --finetune takes."""
        if kind == "checkpoint":
            save_checkpoint(path, net, CheckpointInfo(voc, ("a", "b", "c"), WIDTH))
        elif kind == "bare":
            saved(net.state_dict(), path)
        elif kind == "averaged run state":
            mean = averaged(net, 0.99)
            state = {"format": "ssd-run-1", "model": make_net(seed=5).state_dict(), "average": mean.state_dict()}
            saved(state, path)
        else:
            saved({"format": "ssd-run-1", "iteration": 7, "model": net.state_dict(), "average": None}, path)
        return path

    @pytest.mark.parametrize("kind", ["checkpoint", "bare", "run state", "averaged run state"])
    def test_heads_of_another_class_count_are_initialised_anew(self, kind, tmp_path, said):
        trained, net = make_net(seed=3), make_net(classes=7)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        path = self.source(kind, tmp_path / "trained.pth", trained)
        load_fitting(net, str(path), said.append)
        fresh = sorted(f"conf.{index}.{kind}" for index in range(6) for kind in ("bias", "weight"))
        for key, value in net.state_dict().items():
            expected = before[key] if key in fresh else trained.state_dict()[key]
            assert torch.equal(value, expected), key
        count = len(before) - len(fresh)
        assert said == [f"loaded {count} tensors of {path}; initialised anew: {', '.join(fresh)}"]

    def test_batchnorm_that_was_folded_away(self, tmp_path, said):
        path = self.source("checkpoint", tmp_path / "trained.pth", make_net(seed=3, batch_norm=True).fuse())
        net = make_net(batch_norm=True)
        load_fitting(net, str(path), said.append)
        assert "no BatchNorm" in said[0]
        assert said[1].endswith("initialised anew: nothing")
        assert len(said) == 2

    def test_batchnorm_that_is_there(self, tmp_path, said):
        trained = make_net(seed=3, batch_norm=True)
        trained.vgg[0].bn.running_mean.fill_(0.25)
        path = self.source("run state", tmp_path / "state_7.pth", trained)
        net = make_net(batch_norm=True)
        load_fitting(net, str(path), said.append)
        assert (net.vgg[0].bn.running_mean == 0.25).all()
        assert said == [f"loaded {len(trained.state_dict())} tensors of {path}; initialised anew: nothing"]

    def test_nothing_fits(self, tmp_path, said):
        path = self.source("checkpoint", tmp_path / "trained.pth", make_net(width=0.3))
        message = refusal(load_fitting, make_net(), str(path), said.append)
        assert str(path) in message
        assert "--width" in message


def optimizer_of(net, **settings):
    args = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "caffe_bias": False, **settings}
    return build_optimizer(net, SimpleNamespace(**args), torch.device("cpu"))


def train_steps(net, optimizer, steps=2):
    """Some steps on random pictures, small enough to be quick."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        loc, conf = net.raw(torch.randn(4, 3, 64, 64, generator=generator) * 50)
        ((loc - 1) ** 2).mean().add(conf.logsumexp(-1).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_what_is_frozen_stays_and_the_rest_moves():
    """Weights, biases, and BatchNorm's parameters and statistics of conv1 and conv2 (--freeze 10)."""
    net = make_net(batch_norm=True).train()
    freeze_base(net, 10)
    before = deepcopy(net.state_dict())
    train_steps(net, optimizer_of(net))
    still = {key for key, value in net.state_dict().items() if torch.equal(value, before[key])}
    frozen = {key for key in before if key.startswith("vgg.") and int(key.split(".")[1]) < 10}
    assert len(frozen) == 4 * 7
    assert frozen <= still
    moved = {key for key in before if key.startswith(("vgg.", "L2Norm.", "loc.0.", "conf.1."))} - frozen
    assert not moved & still


class TestOptimizer:
    @pytest.mark.parametrize("kind", ["sgd", "adamw"])
    @pytest.mark.parametrize("caffe_bias", [False, True])
    def test_each_parameter_is_in_one_group_with_its_decay_and_rate(self, kind, caffe_bias):
        net = make_net(batch_norm=True)
        freeze_base(net, 10)
        groups = optimizer_of(net, optimizer=kind, caffe_bias=caffe_bias).param_groups
        group_of = {}
        for group in groups:
            for parameter in group["params"]:
                assert id(parameter) not in group_of
                group_of[id(parameter)] = group
        names = {name for name, parameter in net.named_parameters() if id(parameter) in group_of}
        assert len(names) == len(group_of)
        assert names == {name for name, parameter in net.named_parameters() if parameter.requires_grad}
        for name, parameter in net.named_parameters():
            if name not in names:
                continue
            group, bias, vector = group_of[id(parameter)], name.endswith(".bias"), parameter.dim() == 1
            undecayed = kind == "adamw" if vector and not bias else bias and (caffe_bias or kind == "adamw")
            assert group["weight_decay"] == (0 if undecayed else 0.1), name
            assert group["lr_factor"] == (2 if bias and caffe_bias else 1), name

    def test_l2norms_scale_is_no_bias(self):
        net = make_net()
        groups = optimizer_of(net, caffe_bias=True).param_groups
        (group,) = (group for group in groups if any(p is net.L2Norm.weight for p in group["params"]))
        assert (group["lr_factor"], group["weight_decay"]) == (1, 0.1)

    def test_kind_and_settings(self):
        sgd, adamw = optimizer_of(make_net(), momentum=0.7), optimizer_of(make_net(), optimizer="adamw", lr=0.3)
        assert type(sgd) is torch.optim.SGD
        assert {group["momentum"] for group in sgd.param_groups} == {0.7}
        assert type(adamw) is torch.optim.AdamW
        assert {group["lr"] for group in adamw.param_groups} == {0.3}


class TestAverage:
    def test_it_is_the_formula(self):
        """average = decay * average + (1 - decay) * network, from the first step's network on; statistics too."""
        net, decay = make_net(batch_norm=True).train(), 0.6
        average, optimizer, expected = averaged(net, decay), optimizer_of(net), None
        for _ in range(4):
            train_steps(net, optimizer, 1)
            average.update_parameters(net)
            now = {key: value.double() for key, value in net.state_dict().items() if value.is_floating_point()}
            expected = {key: decay * expected[key] + (1 - decay) * now[key] for key in now} if expected else now
        assert any(key.endswith("running_var") for key in expected)
        state = average.module.state_dict()
        for key, value in expected.items():
            torch.testing.assert_close(state[key].double(), value, rtol=1e-5, atol=1e-6, msg=key)
        assert not torch.allclose(state["vgg.0.bn.running_mean"], net.vgg[0].bn.running_mean)
        assert not torch.allclose(state["vgg.0.weight"], net.vgg[0].weight)

    def test_none_is_kept_without_a_decay(self):
        assert averaged(make_net(), 0.0) is None
