"""Checkpoints: what is saved comes back, and anything else is refused in one line that names the file."""

from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from checks import refused

from data.coco import COCO_CLASSES
from data.config import coco, coco512, voc, voc512
from data.voc0712 import VOC_CLASSES
from ssd import build_ssd
from weights.checkpoint import CheckpointInfo, load_network, read_checkpoint, read_file, save_checkpoint

assert_same = partial(torch.testing.assert_close, rtol=0, atol=0)
WIDTH = 0.05
INFO = CheckpointInfo(
    config=replace(voc, clip=False), class_names=("left shoe", "right shoe"), width=WIDTH, channel_order="BGR",
    mAP=0.25, threshold=0.4, trained_with="train.py --width 0.05",
)  # fmt: skip


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return INFO.build("train").eval()


@pytest.fixture
def path(net, tmp_path):
    """A checkpoint of `net`."""
    save_checkpoint(tmp_path / "net.pth", net, INFO)
    return tmp_path / "net.pth"


def change(path, **changes):
    """Change what a checkpoint holds; a change to None removes the part."""
    contents = {**torch.load(path, weights_only=True), **changes}
    torch.save({key: value for key, value in contents.items() if value is not None or key == "mAP"}, path)


def lineage_state(num_classes=21, size=300, width=WIDTH, batch_norm=False):
    return build_ssd("train", size, num_classes, width=width, batch_norm=batch_norm).state_dict()


class TestRoundTrip:
    def test_everything_comes_back(self, net, path):
        loaded, info = load_network(path)
        assert info == replace(INFO, path=path)
        assert (loaded.phase, loaded.training, load_network(path, "train")[0].phase) == ("test", False, "train")
        assert_same(loaded.state_dict(), net.state_dict())
        assert torch.equal(loaded.priors, net.priors)
        assert list(path.parent.iterdir()) == [path]
        assert all(type(value) is torch.Tensor for value in read_file(path)["state_dict"].values())  # no Parameter
        change(path, threshold=None)  # a checkpoint from before it was stored
        assert load_network(path)[1] == replace(INFO, threshold=None, path=path)

    def test_half_is_half_the_size_and_loads_as_float32(self, net, path):
        half = path.with_name("half.pth")
        save_checkpoint(half, net, INFO, half=True)
        assert half.stat().st_size < 0.62 * path.stat().st_size
        assert read_checkpoint(half)[0]["vgg.0.weight"].dtype == torch.float16
        loaded = load_network(half)[0].state_dict()
        assert_same(loaded, {key: tensor.half().float() for key, tensor in net.state_dict().items()})
        assert all(tensor.dtype == torch.float32 for tensor in (*loaded.values(), *net.state_dict().values()))

    def test_batch_norm_is_folded_on_loading(self, tmp_path):
        """Its statistics may be too large for float16, but then can't be stored in it."""
        info = replace(INFO, batch_norm=True)
        net = info.build("train").eval()
        net.vgg[0].bn.running_var.fill_(1e5)
        net.vgg[0].bn.num_batches_tracked += 120_000
        save_checkpoint(tmp_path / "net.pth", net, info)
        refused("running_var is not finite", save_checkpoint, tmp_path / "half.pth", net, info, half=True)
        loaded, loaded_info = load_network(tmp_path / "net.pth", "train")
        assert not loaded_info.batch_norm
        assert_same(loaded.state_dict(), net.fuse().state_dict())


class TestLineage:
    """State dicts: everything else comes from their shapes, and from the names of the two published files."""

    @pytest.mark.parametrize("prefix", ["", "module."])
    @pytest.mark.parametrize("wrapped", [False, True])
    @pytest.mark.parametrize("zipped", [False, True])  # the published files are of 2017: pickles, not zip files
    def test_a_state_dict(self, tmp_path, prefix, wrapped, zipped):
        state = {prefix + key: value for key, value in lineage_state().items()}
        contents = {"state_dict": state, "epoch": 7} if wrapped else state
        torch.save(contents, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        net, info = load_network(tmp_path / "a.pth")
        assert info == replace(CheckpointInfo(path=tmp_path / "a.pth"), width=info.width)
        assert info.width == pytest.approx(WIDTH, abs=1e-3)
        assert_same(net.state_dict(), {key.removeprefix("module."): value for key, value in state.items()})

    @pytest.mark.parametrize(("name", "size", "num_classes", "config", "order", "mAP"), [
        ("a.pth", 300, 81, coco, "RGB", None), ("a.pth", 512, 21, voc512, "RGB", None),
        ("a.pth", 512, 81, coco512, "RGB", None), ("a.pth", 300, 3, coco, "RGB", None),
        ("ssd_300_VOC0712.pth", 300, 21, replace(voc, clip=False), "BGR", 0.7726),
        ("ssd300_mAP_77.43_v2.pth", 300, 21, voc, "RGB", 0.7743),
    ])  # fmt: skip
    def test_what_shapes_and_published_names_tell(self, tmp_path, name, size, num_classes, config, order, mAP):
        """The lineage's rule: VOC's priors for 21 classes, COCO's for any other number. The published file that was
        converted from Caffe expects BGR, and priors that are not clipped."""
        torch.save(lineage_state(num_classes, size), tmp_path / name)
        net, info = load_network(tmp_path / name)
        names = {21: VOC_CLASSES, 81: tuple(COCO_CLASSES), 3: ("class 1", "class 2")}
        assert (info.config, info.class_names) == (config, names[num_classes])
        assert (info.channel_order, info.mAP) == (order, mAP)
        assert torch.equal(net.priors, build_ssd("test", size, num_classes, config=config, width=WIDTH).priors)

    @pytest.mark.parametrize("width", [0.1, 0.25, 0.3, 0.7])
    def test_other_widths_and_batch_norm(self, tmp_path, width):
        torch.save(lineage_state(width=width, batch_norm=True), tmp_path / "a.pth")
        net, info = load_network(tmp_path / "a.pth")
        assert (info.width, info.batch_norm) == (pytest.approx(width, abs=1e-3), False)
        assert net.state_dict().keys() == lineage_state().keys()


def named(words, path):
    """Check that load_network refuses a file in a short line with these words that names it."""
    message = refused("", load_network, path)
    assert words in message
    assert str(path) in message
    assert len(message) < 400 + len(str(path))


class TestRefused:
    def test_no_checkpoint(self, tmp_path):
        named("no such file", tmp_path / "gone.pth")
        named("folder", tmp_path)

    @pytest.mark.parametrize("zipped", [False, True])
    @pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
    def test_truncated(self, path, share, zipped):
        torch.save(lineage_state(), path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        named("", path)

    @pytest.mark.parametrize(("contents", "words"), [
        ([], ""), (torch.zeros(3), ""), ({}, ""), ({"state_dict": {}}, ""), ({1: torch.zeros(2)}, ""),
        ({"state_dict": {"vgg.0.weight": "text"}}, "vgg.0.weight"),
        ({"features.0.weight": torch.zeros(64, 3, 3, 3)}, "not an SSD300 or SSD512"),
    ], ids=str)  # fmt: skip
    def test_something_else(self, tmp_path, contents, words):
        torch.save(contents, tmp_path / "else.pth")
        named(words, tmp_path / "else.pth")
        (tmp_path / "else.pth").write_bytes(b"\xff\xd8")
        refused(r"else\.pth: truncated, damaged or unsafe", load_network, tmp_path / "else.pth")  # not "contains code"

    @pytest.mark.parametrize(("name", "size"), [("vgg.40.weight", 3), ("vgg.14.bias", None), ("conf.2.weight", 3)])
    def test_a_layer_too_many_or_missing_or_of_another_shape(self, tmp_path, name, size):
        state = lineage_state()
        state.pop(name, None)
        torch.save(state if size is None else {**state, name: torch.zeros(size)}, tmp_path / "a.pth")
        named(name, tmp_path / "a.pth")

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), 70_000.0])
    def test_weights_that_are_not_finite_or_overflow_float16(self, net, path, bad):
        state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
        state["extras.3.weight"][0, 0, 0, 0] = bad
        change(path, state_dict=state)
        named("extras.3.weight is not finite, or overflows float16", path)
        broken = INFO.build()
        broken.load_state_dict(state)
        for half in (False, True):
            new = path.with_name("new.pth")
            refused(r"new\.pth: not saved, extras\.3\.weight", save_checkpoint, new, broken, INFO, half)
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize(("changes", "words"), [
        ({"class_names": ["just one"]}, "2 classes"),
        ({"class_names": ["dog", "cat", "dog"]}, "the class name 'dog' occurs twice"),
        *((changes, "invalid description") for changes in (
            {"config": None}, {"config": {"name": "mine", "extra": 1}}, {"class_names": ("a", 2)}, {"width": "wide"},
            {"width": float("nan")}, {"channel_order": "GRB"}, {"threshold": 1.5}, {"trained_with": [1]},
            *({"config": {**asdict(voc), **wrong}} for wrong in (
                {"min_dim": 320}, {"variance": (0.1,)}, {"min_sizes": (-30, 60, 111, 162, 213, 264)},
                {"feature_maps": (40, 19, 10, 5, 3, 1)}, {"aspect_ratios": ((0,), (2, 3), (2, 3), (2, 3), (2,), (2,))},
            )),
        )),
    ], ids=str)  # fmt: skip
    def test_a_nonsensical_description(self, path, changes, words):
        """Also a config whose priors don't fit the network's maps: their number isn't in the state dict."""
        change(path, **changes)
        named(words, path)
