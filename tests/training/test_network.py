"""What a run starts from: a base, a checkpoint, a state; and what stays frozen."""

from copy import deepcopy
from dataclasses import asdict

import pytest
import torch

from data.config import coco, voc
from ssd import build_ssd
from training import network
from training.network import check_finite, freeze_base, load_base, load_fitting, read_start
from utils.errors import InputError
from weights.checkpoint import CheckpointInfo, save_checkpoint

WIDTH = 0.05
CONVOLUTIONS = 31  # layers before conv6


def make_net(classes=4, seed=0, width=WIDTH, batch_norm=False, config=voc):
    torch.manual_seed(seed)
    return build_ssd("train", num_classes=classes, config=config, width=width, batch_norm=batch_norm)


def base_state(prefix="", convolutions_only=False):
    """The state dict of a trained base, as a file of published weights has it."""
    state = make_net(seed=1).vgg.state_dict()
    keys = [key for key in state if not convolutions_only or int(key.partition(".")[0]) < CONVOLUTIONS]
    return {prefix + key: state[key] + 0.01 for key in keys}


def saved(contents, path):
    torch.save(contents, path)
    return path


@pytest.fixture
def said():
    return []


class TestBase:
    @pytest.mark.parametrize("prefix", ["", "vgg.", "features."])
    def test_the_reduced_one(self, prefix, tmp_path, said):
        state = base_state(prefix)
        path = saved(state, tmp_path / "vgg16_reducedfc.pth")
        net = make_net()
        others = {key: value.clone() for key, value in net.state_dict().items() if not key.startswith("vgg.")}
        load_base(net, str(path), said.append)
        assert all(torch.equal(value, state[prefix + key]) for key, value in net.vgg.state_dict().items())
        assert all(torch.equal(value, net.state_dict()[key]) for key, value in others.items())
        assert said == [f"base network loaded from {path}; initialized from scratch: extras, heads"]

    def test_torchvisions_convolutions(self, tmp_path, said):
        """Its classifier is ignored; fc6 and fc7 stay as they were initialized, and that is said."""
        state = base_state("features.", convolutions_only=True)
        path = saved({**state, "classifier.0.weight": torch.zeros(4, 4)}, tmp_path / "features.pth")
        net = make_net()
        fc = {key: value.clone() for key, value in net.vgg.state_dict().items() if int(key.split(".")[0]) > 30}
        load_base(net, str(path), said.append)
        for key, value in net.vgg.state_dict().items():
            assert torch.equal(value, fc[key] if key in fc else state["features." + key]), key
        assert said[0].endswith("initialized from scratch: 31.bias, 31.weight, 33.bias, 33.weight, extras, heads")

    @pytest.mark.parametrize("name", ["vgg16_reducedfc.pth", "weights/vgg16_reducedfc.pth"])
    def test_torchvisions_copy_replaces_a_reduced_one_that_is_not_available(self, name, tmp_path, monkeypatch, said):
        path = saved(base_state("features.", convolutions_only=True), tmp_path / network.FALLBACK_BASE)
        self.offline(monkeypatch, path)
        net = make_net()
        load_base(net, name, said.append)
        assert torch.equal(net.vgg[28].weight, base_state("features.")["features.28.weight"])
        assert "can't be downloaded" in said[0]
        assert network.FALLBACK_BASE in said[0]

    def test_nothing_replaces_a_users_own_file(self, tmp_path, monkeypatch, said):
        self.offline(monkeypatch, saved(base_state("features."), tmp_path / network.FALLBACK_BASE))
        with pytest.raises(InputError, match=r"mine\.pth"):
            load_base(make_net(), "mine.pth", said.append)

    def offline(self, monkeypatch, path):
        """Only one file of the catalogue is there."""

        def resolve(name):
            if path.name == name:
                return path
            raise InputError(f"{name} can't be downloaded; put it into weights/")

        monkeypatch.setattr(network, "resolve", resolve)

    @pytest.mark.parametrize(
        "contents",
        [
            {"layer1.weight": torch.zeros(3)},
            [torch.zeros(3)],
            {"0.weight": 3, "vgg.0.weight": 3},
            {key: value for key, value in base_state().items() if key != "28.bias"},
        ],
    )
    def test_a_file_that_is_not_a_base(self, contents, tmp_path, said):
        path = saved(contents, tmp_path / "foreign.pth")
        net = make_net()
        before = net.vgg[0].weight.clone()
        with pytest.raises(InputError, match=r"foreign\.pth: not a VGG16 base of width 0.05 \(missing keys: "):
            load_base(net, str(path), said.append)
        assert torch.equal(net.vgg[0].weight, before)
        assert said == []


CLASSES = ("a", "b", "c")


def source(kind, path, net, **info):
    """A file of the network, in one of the forms that --finetune takes."""
    state = {"format": "ssd-run-2", "config": asdict(voc), "run": {"width": WIDTH, "classes": list(CLASSES)}}
    if kind == "checkpoint":
        save_checkpoint(path, net, CheckpointInfo(class_names=CLASSES, width=WIDTH, **info))
    elif kind == "plain":
        torch.save(net.state_dict(), path)
    elif kind == "state":
        torch.save({**state, "model": net.state_dict(), "average": None}, path)
    elif kind == "averaged state":
        torch.save({**state, "model": make_net(seed=5).state_dict(), "average": net.state_dict()}, path)
    else:
        average = {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in net.state_dict().items()}}
        torch.save({"format": "ssd-run-1", "model": make_net(seed=5).state_dict(), "average": average}, path)
    return path


class TestFinetune:
    @pytest.mark.parametrize("kind", ["checkpoint", "plain", "state", "averaged state", "state of the first version"])
    def test_every_kind_of_file_loads(self, kind, tmp_path, said):
        trained, net = make_net(seed=3), make_net()
        start = read_start(source(kind, tmp_path / "trained.pth", trained))
        load_fitting(net, start, CLASSES, said.append)
        assert all(torch.equal(value, trained.state_dict()[key]) for key, value in net.state_dict().items())
        assert said == [f"loaded {len(net.state_dict())} tensors of {start.path}; initialized from scratch: none"]
        if kind != "state of the first version":
            assert (start.config.min_dim, start.batch_norm) == (300, False)
            assert start.width == pytest.approx(WIDTH, abs=0.001)

    @pytest.mark.parametrize("kind", ["plain", "state of the first version"])
    def test_heads_of_unknown_classes_are_loaded_if_they_fit(self, kind, tmp_path, said):
        trained, net = make_net(seed=3), make_net(classes=7)
        start = read_start(source(kind, tmp_path / "trained.pth", trained))
        load_fitting(net, start, tuple("uvwxyz"), said.append)
        fresh = sorted(f"conf.{index}.{kind}" for index in range(6) for kind in ("bias", "weight"))
        for key, value in net.state_dict().items():
            assert (key in fresh) or torch.equal(value, trained.state_dict()[key]), key
        assert said[0].endswith(f"initialized from scratch: {', '.join(fresh)}")

    @pytest.mark.parametrize("kind", ["checkpoint", "state"])
    def test_class_heads_are_loaded_by_name(self, kind, tmp_path, said):
        """Of as many classes as before, but others: a background and c are known, x and y are not."""
        trained, net = make_net(seed=3), make_net(seed=4)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        load_fitting(net, read_start(source(kind, tmp_path / "a.pth", trained)), ("c", "x", "y"), said.append)
        assert said[0] == f"classes known to {tmp_path / 'a.pth'}: c"
        for key, value in net.state_dict().items():
            if not key.startswith("conf."):
                assert torch.equal(value, trained.state_dict()[key])
                continue
            tensors = value, trained.state_dict()[key], before[key]
            found, old, fresh = (tensor.unflatten(0, (-1, 4)) for tensor in tensors)
            assert torch.equal(found[:, :2], old[:, [0, 3]])
            assert torch.equal(found[:, 2:], fresh[:, 2:])

    def test_a_checkpoint_brings_its_priors_and_batch_norm(self, tmp_path):
        net = make_net(batch_norm=True, config=coco)
        start = read_start(source("checkpoint", tmp_path / "a.pth", net, config=coco, batch_norm=True))
        assert start.config == coco
        assert start.batch_norm

    def test_a_network_for_bgr_is_trained_in_rgb(self, tmp_path):
        """The first convolution takes the channels in the other order, and computes the same."""
        bgr, rgb = make_net(seed=3), make_net(seed=4)
        start = read_start(source("checkpoint", tmp_path / "bgr.pth", bgr, channel_order="BGR"))
        load_fitting(rgb, start, CLASSES, lambda line: None)
        x = torch.randn(1, 3, 300, 300) * 50
        with torch.no_grad():
            torch.testing.assert_close(rgb.eval().raw(x), bgr.eval().raw(x.flip(1)), rtol=1e-3, atol=1e-3)

    def test_flags_that_contradict_the_file(self, tmp_path):
        start = read_start(source("checkpoint", tmp_path / "a.pth", make_net()))
        start.check(300, WIDTH)
        for size, width in ((512, WIDTH), (300, 0.5)):
            with pytest.raises(InputError, match=r"a\.pth: an SSD300 of width 0\.05"):
                start.check(size, width)

    @pytest.mark.parametrize("contents", [{"format": "ssd-run-2"}, {"format": "ssd-run-2", "model": {}, "config": 3}])
    def test_a_state_without_a_network(self, contents, tmp_path):
        with pytest.raises(InputError, match=r"state_1\.pth: damaged"):
            read_start(saved(contents, tmp_path / "state_1.pth"))


def test_what_is_frozen_stays_and_the_rest_moves():
    """Weights, biases, and BatchNorm's parameters and statistics of conv1 and conv2 (--freeze 10)."""
    net = make_net(batch_norm=True).train()
    freeze_base(net, 10)
    before = deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.01)
    for _ in range(2):
        loc, conf = net.raw(torch.randn(2, 3, 300, 300) * 50)
        ((loc - 1) ** 2).mean().add(conf.logsumexp(-1).mean()).backward()
        optimizer.step()
    still = {key for key, value in net.state_dict().items() if torch.equal(value, before[key])}
    frozen = {key for key in before if key.startswith("vgg.") and int(key.split(".")[1]) < 10}
    assert len(frozen) == 4 * 7
    assert frozen <= still
    assert not ({key for key in before if key.startswith(("vgg.", "L2Norm.", "loc.0.", "conf.1."))} - frozen) & still


def test_a_weight_that_is_not_finite_is_named():
    net = make_net()
    check_finite(net, 7)
    with torch.no_grad():
        net.extras[3].weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(InputError, match=r"extras\.3\.weight is not finite after iteration 7"):
        check_finite(net, 7)
