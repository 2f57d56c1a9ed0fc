"""Checkpoints: what is written comes back, and what isn't one is refused in one line that names it."""

import json
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.coco import COCO_CLASSES
from data.config import coco, coco512, voc, voc512
from data.voc0712 import VOC_CLASSES
from ssd import build_ssd
from utils.errors import InputError
from weights import checkpoint
from weights.checkpoint import (
    CheckpointInfo,
    load_network,
    read_checkpoint,
    read_file,
    save_atomically,
    save_checkpoint,
)

WIDTH = 0.05
INFO = CheckpointInfo(
    config=replace(voc, clip=False),
    class_names=("left shoe", "right shoe"),
    width=WIDTH,
    channel_order="BGR",
    mAP=0.25,
    mAP_on="my photographs",
    trained_with="train.py --width 0.05",
)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return INFO.build("train").eval()


@pytest.fixture(scope="module")
def bytes_of_checkpoint(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "net.pth"
    save_checkpoint(path, net, INFO)
    return path.read_bytes()


def lineage_state(num_classes=21, size=300, width=WIDTH, config=None, batch_norm=False):
    return build_ssd("train", size, num_classes, config=config, width=width, batch_norm=batch_norm).state_dict()


def assert_same(state, other):
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)


def refused(path):
    """The message with which load_network refuses a file: one line that names it."""
    with pytest.raises(InputError) as caught:
        load_network(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    return message


class TestRoundTrip:
    def test_everything_comes_back(self, net, tmp_path):
        path = tmp_path / "net.pth"
        save_checkpoint(path, net, INFO)
        loaded, info = load_network(path)
        assert info == replace(INFO, path=path)
        assert (loaded.phase, loaded.training) == ("test", False)
        assert_same(loaded.state_dict(), net.state_dict())
        assert torch.equal(loaded.priors, net.priors)

    def test_train_phase(self, net, tmp_path):
        save_checkpoint(tmp_path / "net.pth", net, INFO)
        assert load_network(tmp_path / "net.pth", "train")[0].phase == "train"

    def test_half_is_half_the_size_and_loads_as_float32(self, net, tmp_path):
        whole, half = tmp_path / "whole.pth", tmp_path / "half.pth"
        save_checkpoint(whole, net, INFO)
        save_checkpoint(half, net, INFO, half=True)
        assert half.stat().st_size < 0.62 * whole.stat().st_size
        assert read_checkpoint(half)[0]["vgg.0.weight"].dtype == torch.float16
        loaded = load_network(half)[0].state_dict()
        for key, tensor in net.state_dict().items():
            assert loaded[key].dtype == torch.float32
            assert torch.equal(loaded[key], tensor.half().float())

    def test_saving_leaves_the_network_alone(self, net, tmp_path):
        before = {key: value.clone() for key, value in net.state_dict().items()}
        save_checkpoint(tmp_path / "net.pth", net, INFO, half=True)
        assert_same(net.state_dict(), before)

    def test_batch_norm_is_folded_on_loading(self, tmp_path):
        torch.manual_seed(1)
        info = replace(INFO, batch_norm=True)
        net = info.build("train").eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.running_var, 0.5, 4)
                nn.init.uniform_(module.running_mean, -1, 1)
        save_checkpoint(tmp_path / "net.pth", net, info)
        loaded, loaded_info = load_network(tmp_path / "net.pth", "train")
        assert not loaded_info.batch_norm
        assert loaded.state_dict().keys() == INFO.build().state_dict().keys()
        x = torch.randn(1, 3, 300, 300) * 60
        with torch.no_grad():
            for a, b in zip(net.raw(x), loaded.raw(x), strict=True):
                assert (a - b).abs().max() <= 1e-4 * a.abs().max()
        save_checkpoint(tmp_path / "plain.pth", loaded, loaded_info)
        assert_same(load_network(tmp_path / "plain.pth")[0].state_dict(), loaded.state_dict())

    def test_no_file_is_left_beside_it(self, net, tmp_path):
        save_checkpoint(tmp_path / "net.pth", net, INFO)
        save_checkpoint(tmp_path / "net.pth", net, INFO)
        assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]

    @pytest.mark.parametrize("config", [coco, voc512, coco512], ids=lambda config: config.name)
    def test_other_configs(self, config, tmp_path):
        info = CheckpointInfo(config, ("one",), WIDTH)
        save_checkpoint(tmp_path / "net.pth", info.build("train"), info)
        loaded, loaded_info = load_network(tmp_path / "net.pth")
        assert loaded_info.config == config
        assert len(loaded.priors) == config.num_priors


class TestLineage:
    """Bare state dicts: everything else is read off their shapes, and the name of the two published files."""

    @pytest.mark.parametrize("prefix", ["", "module."])
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_a_state_dict(self, tmp_path, prefix, wrapped):
        state = {prefix + key: value for key, value in lineage_state().items()}
        torch.save({"state_dict": state, "epoch": 7} if wrapped else state, tmp_path / "a.pth")
        net, info = load_network(tmp_path / "a.pth")
        assert (info.config, info.class_names, info.channel_order) == (voc, VOC_CLASSES, "RGB")
        assert (info.mAP, info.batch_norm, info.path) == (None, False, tmp_path / "a.pth")
        assert_same(net.state_dict(), {key.removeprefix("module."): value for key, value in state.items()})

    def test_the_golden_keys_at_full_width(self, golden_weights, tmp_path):
        torch.save(golden_weights, tmp_path / "a.pth")
        net, info = load_network(tmp_path / "a.pth")
        assert (info.width, info.num_classes) == (1.0, 21)
        assert_same(net.state_dict(), golden_weights)

    @pytest.mark.parametrize(
        ("size", "num_classes", "config", "names"),
        [
            (300, 81, coco, tuple(COCO_CLASSES)),
            (512, 21, voc512, VOC_CLASSES),
            (512, 81, coco512, tuple(COCO_CLASSES)),
            (300, 3, voc, ("class 1", "class 2")),
        ],
    )
    def test_config_and_names_by_shape(self, tmp_path, size, num_classes, config, names):
        torch.save(lineage_state(num_classes, size), tmp_path / "a.pth")
        info = load_network(tmp_path / "a.pth")[1]
        assert (info.config, info.class_names) == (config, names)

    @pytest.mark.parametrize("width", [0.05, 0.1, 0.25, 0.3, 0.5, 0.7, 0.75])
    def test_width_by_shape(self, tmp_path, width):
        with torch.device("meta"):
            state = {key: torch.zeros(1).expand(value.shape) for key, value in lineage_state(width=width).items()}
        state = {key: torch.zeros(1).expand(value.shape) for key, value in state.items()}
        assert checkpoint._lineage_info(state, "a.pth").width == pytest.approx(width, abs=1e-3)
        with torch.device("meta"):
            built = checkpoint._lineage_info(state, "a.pth").build().state_dict()
        assert {key: value.shape for key, value in built.items()} == {key: value.shape for key, value in state.items()}

    def test_batch_norm_by_shape(self, tmp_path):
        state = lineage_state(batch_norm=True)
        torch.save(state, tmp_path / "a.pth")
        net, info = load_network(tmp_path / "a.pth")
        assert not info.batch_norm
        assert net.state_dict().keys() == lineage_state().keys()

    def test_the_file_converted_from_caffe(self, tmp_path):
        """It wants BGR, and priors that aren't clipped."""
        path = tmp_path / "ssd_300_VOC0712.pth"
        torch.save(lineage_state(), path)
        net, info = load_network(path)
        assert (info.channel_order, info.config.clip, info.mAP) == ("BGR", False, 0.7726)
        assert net.priors.max() > 1

    def test_the_file_of_77_43(self, tmp_path):
        path = tmp_path / "ssd300_mAP_77.43_v2.pth"
        torch.save(lineage_state(), path)
        net, info = load_network(path)
        assert (info.channel_order, info.config, info.mAP) == ("RGB", voc, 0.7743)
        assert net.priors.max() <= 1

    def test_the_old_format_of_torch_save(self, tmp_path):
        """The published files are of 2017: pickles, not zip files."""
        torch.save(lineage_state(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
        assert load_network(tmp_path / "a.pth")[1].num_classes == 21


class TestRefused:
    def test_missing(self, tmp_path):
        assert "no such checkpoint" in refused(tmp_path / "gone.pth")

    def test_a_folder(self, tmp_path):
        refused(tmp_path)

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
    def test_truncated(self, bytes_of_checkpoint, tmp_path, share):
        path = tmp_path / "cut.pth"
        path.write_bytes(bytes_of_checkpoint[: int(share * len(bytes_of_checkpoint))])
        refused(path)

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
    def test_truncated_in_the_old_format(self, tmp_path, share):
        path = tmp_path / "cut.pth"
        torch.save(lineage_state(), path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        refused(path)

    def test_damaged_at_random(self, bytes_of_checkpoint, tmp_path):
        """Whatever is wrong in the description's bytes: it loads, or it is an InputError."""
        r = np.random.RandomState(0)
        path = tmp_path / "damaged.pth"
        first = bytes_of_checkpoint.index(b"data.pkl")
        last = bytes_of_checkpoint.index(b"trained_with") + 50
        outcomes = []
        for _ in range(60):
            damaged = bytearray(bytes_of_checkpoint)
            for place in r.randint(first, last, 3):
                damaged[place] = r.randint(256)
            path.write_bytes(damaged)
            try:
                read_checkpoint(path)
                outcomes.append("loaded")
            except InputError:
                outcomes.append("refused")
        assert outcomes.count("refused") > 20

    @pytest.mark.parametrize(
        "text", ["", "hello\n", "version https://git-lfs.github.com/spec/v1\noid sha256:3d14\n", "<html>"]
    )
    def test_text(self, tmp_path, text):
        path = tmp_path / "text.pth"
        path.write_text(text)
        refused(path)

    @pytest.mark.parametrize("how", [torch.save, lambda contents, path: path.write_bytes(pickle.dumps(contents))])
    def test_code_is_not_run(self, tmp_path, how):
        class Trap:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "sprung"),)

        path = tmp_path / "code.pth"
        how({"state_dict": Trap()}, path)
        assert "code" in refused(path)
        assert not (tmp_path / "sprung").exists()

    def test_a_whole_module(self, net, tmp_path):
        """torch.save(net) holds references to classes."""
        torch.save(net, tmp_path / "module.pth")
        assert "get a plain state dict" in refused(tmp_path / "module.pth")

    @pytest.mark.parametrize(
        "contents",
        [
            [],
            torch.zeros(3),
            {},
            {"state_dict": 3},
            {"state_dict": {}},
            {"weights": [1, 2]},
            {1: torch.zeros(2)},
            {"state_dict": {"vgg.0.weight": "text"}},
        ],
        ids=str,
    )
    def test_something_else(self, tmp_path, contents):
        torch.save(contents, tmp_path / "else.pth")
        refused(tmp_path / "else.pth")

    def test_another_architecture(self, tmp_path):
        torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg.pth")
        assert "not an SSD300 or SSD512" in refused(tmp_path / "vgg.pth")
        state = lineage_state()
        torch.save({**state, "vgg.40.weight": torch.zeros(3)}, tmp_path / "more.pth")
        assert "vgg.40.weight" in refused(tmp_path / "more.pth")
        del state["vgg.14.bias"]
        torch.save(state, tmp_path / "less.pth")
        assert "vgg.14.bias" in refused(tmp_path / "less.pth")

    def test_another_shape(self, tmp_path):
        state = lineage_state()
        state["conf.2.weight"] = state["conf.2.weight"][:-1]
        torch.save(state, tmp_path / "a.pth")
        assert "conf.2.weight" in refused(tmp_path / "a.pth")

    @pytest.mark.parametrize("num_classes", [0, 1])
    def test_too_few_classes(self, tmp_path, num_classes):
        state = lineage_state(2)
        for key in state:
            if key.startswith("conf."):
                state[key] = state[key][: len(state[key]) // 2 * num_classes]
        torch.save(state, tmp_path / "a.pth")
        refused(tmp_path / "a.pth")

    def test_another_class_count_than_described(self, net, tmp_path):
        save_checkpoint(tmp_path / "a.pth", net, replace(INFO, class_names=("just one",)))
        assert "2 classes" in refused(tmp_path / "a.pth")

    @pytest.mark.parametrize(
        "changes",
        [
            {"config": None},
            {"config": {}},
            {"config": {"name": "mine", "extra": 1}},
            {"class_names": 3},
            {"class_names": "ab"},
            {"class_names": ("a", 2)},
            {"class_names": ()},
            {"width": "wide"},
            {"width": -1.0},
            {"width": float("nan")},
            {"width": 1e300},
            {"channel_order": "GRB"},
            {"channel_order": None},
            {"mAP": "high"},
            {"trained_with": [1]},
        ],
        ids=str,
    )
    def test_a_description_with_nonsense(self, net, tmp_path, changes):
        self.save_described(net, tmp_path / "a.pth", changes)
        assert "description" in refused(tmp_path / "a.pth")

    @pytest.mark.parametrize(
        "changes",
        [
            {"min_dim": 320},
            {"min_dim": "300"},
            {"variance": (0.1, 0.0)},
            {"variance": (0.1,)},
            {"steps": (8, 16)},
            {"min_sizes": (-30, 60, 111, 162, 213, 264)},
            {"feature_maps": (40, 19, 10, 5, 3, 1)},
            {"feature_maps": (0, 0, 0, 0, 0, 0)},
            {"aspect_ratios": ((0,), (2, 3), (2, 3), (2, 3), (2,), (2,))},
        ],
        ids=str,
    )
    def test_a_config_with_nonsense(self, net, tmp_path, changes):
        """Also one whose priors don't fit the network's maps: their number isn't in the state dict."""
        path = tmp_path / "a.pth"
        save_checkpoint(path, net, INFO)
        contents = torch.load(path, weights_only=True)
        contents["config"] = {**contents["config"], **changes}
        torch.save(contents, path)
        refused(path)

    def test_missing_parts(self, net, tmp_path):
        for part in ("config", "class_names", "state_dict"):
            path = tmp_path / "a.pth"
            save_checkpoint(path, net, INFO)
            contents = torch.load(path, weights_only=True)
            del contents[part]
            torch.save(contents, path)
            refused(path)

    @staticmethod
    def save_described(net, path, changes):
        save_checkpoint(path, net, INFO)
        torch.save({**torch.load(path, weights_only=True), **changes}, path)


class TestInterruptedWrite:
    def test_an_error_leaves_the_old_file(self, net, tmp_path, monkeypatch):
        path = tmp_path / "net.pth"
        path.write_text("old")

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoint.os, "fsync", full)
        with pytest.raises(InputError, match="No space left on device") as caught:
            save_checkpoint(path, net, INFO)
        assert str(path) in str(caught.value)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_ctrl_c_leaves_the_old_file(self, net, tmp_path, monkeypatch):
        path = tmp_path / "net.pth"
        path.write_text("old")

        def interrupt(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(checkpoint.os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, net, INFO)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_the_old_file_stays_until_the_new_one_is_on_the_disk(self, net, tmp_path, monkeypatch):
        path, seen = tmp_path / "net.pth", []
        path.write_text("old")

        def fsync(descriptor):
            seen.append((path.read_bytes(), os.fstat(descriptor).st_size))

        monkeypatch.setattr(checkpoint.os, "fsync", fsync)
        save_checkpoint(path, net, INFO)
        assert seen[0] == (b"old", path.stat().st_size)

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows syncs no folders")
    def test_the_new_name_reaches_the_disk_as_well(self, net, tmp_path, monkeypatch):
        path, seen = tmp_path / "net.pth", []

        def fsync(descriptor):
            seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), [found.name for found in tmp_path.iterdir()]))
            if len(seen) == 2:
                raise OSError(22, "Invalid argument")  # as drives answer that can't

        monkeypatch.setattr(checkpoint.os, "fsync", fsync)
        before = len(list(Path("/dev/fd").iterdir()))
        save_checkpoint(path, net, INFO)
        assert [is_folder for is_folder, _ in seen] == [False, True]
        assert seen[1][1] == ["net.pth"]
        assert len(list(Path("/dev/fd").iterdir())) == before

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a file's size to simulate a full disk")
    def test_a_full_disk(self, tmp_path):
        """Simulated by a limit on the size of files: torch.save fails in the middle of the weights."""
        path = tmp_path / "net.pth"
        path.write_text("old")
        program = f"""
import resource, torch
from utils.errors import exit_on_input_error
from weights.checkpoint import save_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
with exit_on_input_error():
    save_atomically({{"weights": torch.zeros(100_000)}}, {str(path)!r})
"""
        root = Path(checkpoint.__file__).parent.parent
        done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert str(path) in done.stderr
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_folder_that_is_missing(self, tmp_path):
        with pytest.raises(InputError, match="gone"):
            save_atomically({}, tmp_path / "gone" / "net.pth")


def test_what_is_stored_needs_no_code(net, tmp_path):
    """Plain values and tensors only, also readable by weights_only=True without this project."""
    path = tmp_path / "net.pth"
    save_checkpoint(path, net, INFO)
    contents = read_file(path)
    state = contents.pop("state_dict")
    assert all(type(value) is torch.Tensor for value in state.values())
    assert json.loads(json.dumps(contents))["class_names"] == ["left shoe", "right shoe"]
    assert zipfile.is_zipfile(path)
