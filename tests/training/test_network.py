"""What a run starts from: a base, a checkpoint, a state; and what stays frozen."""

from copy import deepcopy
from dataclasses import asdict

import pytest
import torch
from checks import refused

from data.config import coco, voc
from ssd import build_ssd
from training import network
from training.network import check_size, freeze_base, load_base, load_fitting, read_start
from utils.errors import InputError
from weights.checkpoint import CheckpointInfo, save_checkpoint

WIDTH = 0.05
CLASSES = ("a", "b", "c")


def make_net(classes=4, seed=0, batch_norm=False, config=voc):
    torch.manual_seed(seed)
    return build_ssd("train", num_classes=classes, config=config, width=WIDTH, batch_norm=batch_norm)


def base_state(layers=99):
    """The state dict of a trained base's first layers; fc6 and fc7 begin with layer 31."""
    state = make_net(seed=1).vgg.state_dict()
    return {key: value + 0.01 for key, value in state.items() if int(key.partition(".")[0]) < layers}


def saved(contents, path):
    torch.save(contents, path)
    return path


class TestBase:
    @pytest.mark.parametrize("prefix", ["", "vgg.", "features."])
    @pytest.mark.parametrize(("layers", "fresh"), [(99, ""), (31, "31.bias, 31.weight, 33.bias, 33.weight, ")])
    def test_what_a_file_lacks_stays_and_is_said(self, prefix, layers, fresh, tmp_path, capsys):
        """The lineage's reduced base, and torchvision's convolutions, whose classifier is ignored."""
        state, net = base_state(layers=layers), make_net()
        contents = {f"{prefix}{key}": value for key, value in state.items()} | {"classifier.0.weight": torch.zeros(4)}
        path = saved(contents, tmp_path / "base.pth")
        expected = deepcopy(net.state_dict()) | {f"vgg.{key}": value for key, value in state.items()}
        load_base(net, str(path), print)
        assert all(torch.equal(value, expected[key]) for key, value in net.state_dict().items())
        said = f"base network loaded from {path}; initialized from scratch: {fresh}extras, heads\n"
        assert capsys.readouterr().out == said

    def test_torchvisions_copy_replaces_the_reduced_base_but_no_users_file(self, tmp_path, monkeypatch, capsys):
        """Of the catalogue, only torchvision's copy is there."""
        path = saved(base_state(layers=31), tmp_path / network.FALLBACK_BASE)

        def resolve(name):
            if path.name == name:
                return path
            raise InputError(f"{name} can't be downloaded; put it into weights/")

        monkeypatch.setattr(network, "resolve", resolve)
        for name in ("vgg16_reducedfc.pth", "weights/vgg16_reducedfc.pth"):
            load_base(net := make_net(), name, print)
            assert torch.equal(net.vgg[28].weight, base_state()["28.weight"])
            assert f"{name} can't be downloaded; put it into weights/; trying {path.name}" in capsys.readouterr().out
        refused(r"mine\.pth", load_base, make_net(), "mine.pth", print)

    @pytest.mark.parametrize("contents", [
        {"layer1.weight": torch.zeros(3)},
        [torch.zeros(3)],
        {"0.weight": 3, "vgg.0.weight": 3},
        {key: value for key, value in base_state().items() if key != "28.bias"},
    ])  # fmt: skip
    def test_a_file_that_is_not_a_base(self, contents, tmp_path, capsys):
        net = make_net()
        path = str(saved(contents, tmp_path / "foreign.pth"))
        refused(r"foreign\.pth: not a VGG16 base of width 0.05 \(missing keys: ", load_base, net, path, print)
        assert torch.equal(net.vgg[0].weight, make_net().vgg[0].weight)
        assert capsys.readouterr().out == ""


def source(kind, folder, net, **info):
    """A file of the network, in one of the forms that --finetune takes."""
    path, weights, other = folder / "trained.pth", net.state_dict(), make_net(seed=5).state_dict()
    if kind == "checkpoint":
        save_checkpoint(path, net, CheckpointInfo(class_names=CLASSES, width=WIDTH, **info))
        return path
    state = {"format": "ssd-run-2", "config": asdict(voc), "run": {"width": WIDTH, "classes": list(CLASSES)}}
    contents = {
        "plain": weights,
        "state": {**state, "model": weights, "average": None},
        "averaged state": {**state, "model": other, "average": weights},
    }
    return saved(contents[kind], path)


class TestFinetune:
    @pytest.mark.parametrize("kind", ["checkpoint", "plain", "state", "averaged state"])
    def test_every_kind_of_file_loads(self, kind, tmp_path, capsys):
        trained, net = make_net(seed=3), make_net()
        weights, start = read_start(source(kind, tmp_path, trained))
        load_fitting(net, weights, start, CLASSES, print)
        assert all(torch.equal(value, trained.state_dict()[key]) for key, value in net.state_dict().items())
        said = f"loaded {len(net.state_dict())} tensors of {start.path}; initialized from scratch: none\n"
        assert capsys.readouterr().out == said
        assert not start.batch_norm
        check_size(start, 300, WIDTH)
        for width in (WIDTH + 0.01, float("nan")):
            refused("leave out --size and --width", check_size, start, 300, width)

    def test_heads_of_unknown_classes_are_loaded_if_they_fit(self, tmp_path, capsys):
        trained, net = make_net(seed=3), make_net(classes=7)
        load_fitting(net, *read_start(source("plain", tmp_path, trained)), tuple("uvwxyz"), print)
        fresh = sorted(key for key in net.state_dict() if key.startswith("conf."))
        for key, value in net.state_dict().items():
            assert (key in fresh) or torch.equal(value, trained.state_dict()[key]), key
        assert capsys.readouterr().out.endswith(f"initialized from scratch: {', '.join(fresh)}\n")

    @pytest.mark.parametrize(("kind", "batch_norm"), [("checkpoint", False), ("state", False), ("state", True)])
    def test_class_heads_are_loaded_by_name(self, kind, batch_norm, tmp_path, capsys):
        """Of as many classes as before, but others: a background and c are known, x and y are not."""
        net, fresh = (make_net(seed=4, batch_norm=batch_norm) for _ in range(2))
        trained, start = read_start(source(kind, tmp_path, make_net(seed=3, batch_norm=batch_norm)))
        fresh = fresh.state_dict()
        load_fitting(net, trained, start, ("C", "x", "y"), print)
        assert capsys.readouterr().out.startswith(f"classes known to {start.path}: C\n")
        for key, value in net.state_dict().items():
            if not key.startswith("conf."):
                assert torch.equal(value, trained[key])
                continue
            found, old, new = (tensor.unflatten(0, (-1, 4)) for tensor in (value, trained[key], fresh[key]))
            assert torch.equal(found[:, :2], old[:, [0, 3]])
            assert torch.equal(found[:, 2:], new[:, 2:])

    def test_class_heads_of_another_width_stay(self, tmp_path):
        net, fresh = make_net(seed=4), make_net(seed=4).state_dict()
        weights, start = read_start(source("checkpoint", tmp_path, make_net(seed=3)))
        weights["conf.0.weight"] = weights["conf.0.weight"][:, 1:]
        load_fitting(net, weights, start, ("c", "x", "y"), print)
        assert torch.equal(net.conf[0].weight, fresh["conf.0.weight"])

    def test_a_checkpoint_brings_its_priors_and_batch_norm_and_is_trained_in_rgb(self, tmp_path):
        """The first convolution of a network for BGR takes the channels in the other order, and computes the same."""
        bgr, rgb = (make_net(seed=seed, batch_norm=True, config=coco) for seed in (3, 4))
        weights, start = read_start(
            source("checkpoint", tmp_path, bgr, config=coco, batch_norm=True, channel_order="BGR")
        )
        assert (start.config, start.batch_norm) == (coco, True)
        load_fitting(rgb, weights, start, CLASSES, print)
        x = torch.randn(1, 3, 300, 300) * 50
        with torch.no_grad():
            torch.testing.assert_close(rgb.eval().raw(x), bgr.eval().raw(x.flip(1)), rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("contents", [{"format": "ssd-run-2"}, {"format": "ssd-run-2", "model": {}, "config": 3}])
    def test_a_state_without_a_network(self, contents, tmp_path):
        refused(r"state_1\.pth: damaged", read_start, saved(contents, tmp_path / "state_1.pth"))


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
