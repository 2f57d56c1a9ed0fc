"""train.py: a run that is interrupted ends as one that isn't, and faults end in one line."""

import csv
import math
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import golden_inputs
import numpy as np
import pytest
import slow_formulas as slow
import torch
import torch.nn.functional as F
from synthetic import make_voc

from data.config import voc
from layers.box_utils import jaccard, point_form
from layers.modules import MultiBoxLoss
from ssd import build_ssd
from train import get_args_parser, main
from training.network import build_optimizer
from utils.errors import InputError
from weights.checkpoint import CheckpointInfo, load_network, read_file, save_checkpoint

OBJECTS = {f"p{i}": [("dog", (5 + i, 5, 60 + i, 70), 0), ("cat", (40, 30, 95, 75), 0)][: 1 + i % 2] for i in range(5)}
SMALL = (
    "--basenet none --width 0.05 --low_resolution 64 --low_resolution_iter 1000 --batch_size 2 --device cpu "
    "--precision float32 --warmup 4 --lr 0.01 --num_workers 0"
)


@pytest.fixture(autouse=True)
def caches_in_tmp(tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def denormals_stay():
    """A run turns denormals off, which other tests shouldn't notice."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def pictures(tmp_path):
    return make_voc(tmp_path / "pictures", OBJECTS, split="train")


def train(pictures, folder, more=""):
    """Run train.py on a folder in VOC format."""
    arguments = ["--dataset", str(pictures), "--save_folder", str(folder), *SMALL.split(), *more.split()]
    main(get_args_parser().parse_args(arguments))


@pytest.mark.parametrize("width", [0.25, 0.5])
def test_finetuning_starts_where_the_checkpoint_ended(pictures, tmp_path, width):
    """Saved networks have their BatchNorm folded away; put back, or widened on top, it must not change what they do."""
    start = tmp_path / "start.pth"
    torch.manual_seed(1)
    trained = build_ssd("test", 300, 3, width=0.25)
    for module in trained.vgg:  # as folding leaves them
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.bias)
    save_checkpoint(start, trained, CheckpointInfo(voc, ("cat", "dog"), 0.25))
    more = f"--width {width} --finetune {start} --max_iter 1 --low_resolution_iter 0 --lr 1e-9"
    train(pictures, tmp_path / "run", more)
    net, info = load_network(tmp_path / "run" / f"ssd300_w{round(width * 100):03d}_final.pth")
    assert info.width == width
    x = torch.from_numpy(np.random.RandomState(0).uniform(-120, 130, (2, 3, 300, 300))).float()
    with torch.no_grad():
        for expected, found in zip(trained.eval().raw(x), net.raw(x), strict=True):
            # One step moves the running statistics by a tenth of their distance to one batch's.
            assert float((found - expected).abs().mean() / expected.abs().mean()) < 0.05


def refused(pictures, folder, more=""):
    with pytest.raises(InputError) as caught:
        train(pictures, folder, more)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def log_of(folder):
    """The rows of log.csv without the time column."""
    with (folder / "log.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def assert_same(a, b):
    """Bitwise equality of nested containers."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    else:
        assert a == b


class TestResume:
    @pytest.mark.parametrize("settings", ["--optimizer sgd", "--optimizer adamw --ema 0.9 --schedule cosine"])
    def test_an_interrupted_run_ends_bitwise_as_a_whole_one(self, pictures, tmp_path, settings):
        """Interrupted inside the warm-up, in the second epoch, between two rows of the log; a worker more after it."""
        whole, resumed = tmp_path / "whole", tmp_path / "resumed"
        settings += " --max_iter 6 --save_every 3 --print_every 2"
        train(pictures, whole, settings)
        resumed.mkdir()
        shutil.copy(whole / "state_3.pth", resumed)
        shutil.copy(whole / "log.csv", resumed)  # with rows that the interruption undid
        train(pictures, resumed, settings + " --resume auto --num_workers 1")
        states = [read_file(folder / "state_6.pth") for folder in (whole, resumed)]
        for state in states:
            assert state["iteration"] == 6
            del state["rng"]  # torch draws from it for each loader that is opened, but no step does
        assert_same(*states)
        assert log_of(whole) == log_of(resumed)
        assert [row["iteration"] for row in log_of(whole) if row["loss_l"]] == ["2", "4", "6"]
        assert_same(*(read_file(f / "ssd300_w005_final.pth")["state_dict"] for f in (whole, resumed)))

    def test_weights_change_at_all(self, pictures, tmp_path):
        train(pictures, tmp_path / "run", "--max_iter 2 --save_every 1")
        first, second = (read_file(tmp_path / "run" / f"state_{i}.pth")["model"] for i in (1, 2))
        assert not torch.equal(first["vgg.0.weight"], second["vgg.0.weight"])

    def test_the_seed_decides(self, pictures, tmp_path):
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            train(pictures, tmp_path / name, f"--max_iter 1 --seed {seed}")
        a, b, c = (read_file(tmp_path / name / "state_1.pth")["model"] for name in "abc")
        assert_same(a, b)
        assert not torch.equal(a["vgg.0.weight"], c["vgg.0.weight"])

    def test_a_broken_newest_state_is_passed_over(self, pictures, tmp_path, capsys):
        train(pictures, tmp_path / "run", "--max_iter 2 --save_every 1")
        broken = tmp_path / "run" / "state_2.pth"
        broken.write_bytes(broken.read_bytes()[:1000])
        train(pictures, tmp_path / "run", "--max_iter 2 --save_every 1 --resume auto")
        said = capsys.readouterr().out
        assert str(broken) in said
        assert "iteration 1" in said
        assert read_file(broken)["iteration"] == 2

    def test_only_the_last_states_are_kept(self, pictures, tmp_path):
        train(pictures, tmp_path / "run", "--max_iter 5 --save_every 1 --keep 2")
        assert sorted(path.name for path in (tmp_path / "run").glob("state_*")) == ["state_4.pth", "state_5.pth"]

    def test_a_state_of_another_network(self, pictures, tmp_path):
        train(pictures, tmp_path / "run", "--max_iter 1")
        said = refused(pictures, tmp_path / "run", "--max_iter 2 --width 0.1 --resume auto")
        assert "state_1.pth" in said

    def test_what_comes_out_can_be_used(self, pictures, tmp_path):
        train(pictures, tmp_path / "run", "--max_iter 2")
        net, info = load_network(tmp_path / "run" / "ssd300_w005_final.pth")
        assert info.class_names == ("cat", "dog")
        assert (info.width, info.batch_norm, info.channel_order) == (0.05, False, "RGB")
        assert net(torch.zeros(1, 3, 300, 300)).shape == (1, 3, 200, 5)
        assert (tmp_path / "run" / "curves.png").stat().st_size > 1000


class TestFaults:
    @pytest.mark.parametrize("settings", ["--print_every 1", "--print_every 100 --save_every 1"])
    def test_a_loss_that_is_not_finite(self, pictures, tmp_path, settings):
        """Named with its iteration and its pictures, and no state of it is kept."""
        said = refused(pictures, tmp_path / "run", f"--max_iter 6 --lr 1e30 --warmup 0 {settings}")
        assert "not finite at iteration 1" in said or "not finite at iteration 2" in said
        assert sum(f"p{i}.jpg" in said for i in range(5)) in (1, 2)
        for path in (tmp_path / "run").glob("state_*.pth"):
            model = read_file(path)["model"]
            assert int(path.stem.split("_")[1]) <= 2
            assert torch.isfinite(model["conf.0.bias"]).all()

    def test_pictures_without_objects(self, tmp_path):
        """No positives in any batch: the loss is 0 and nothing breaks."""
        objects = {"a": [("dog", (5, 5, 60, 60), 0)], "b": [], "c": []}
        pictures = make_voc(tmp_path / "pictures", objects, split="train")
        (pictures / "ImageSets" / "Main" / "train.txt").write_text("b\nc\n")
        train(pictures, tmp_path / "run", "--classes dog --max_iter 2 --print_every 1 --skip_check")
        assert [(float(row["loss_l"]), float(row["loss_c"])) for row in log_of(tmp_path / "run")] == [(0, 0)] * 2

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_picture_that_cannot_be_read_any_more(self, pictures, tmp_path, workers):
        broken = pictures / "JPEGImages" / "p3.jpg"
        broken.write_bytes(b"gone")
        said = refused(pictures, tmp_path / "run", f"--max_iter 6 --skip_check --num_workers {workers}")
        assert str(broken) in said

    def test_a_class_that_is_not_in_the_list(self, pictures, tmp_path):
        assert "'cat'" in refused(pictures, tmp_path / "run", "--classes dog --max_iter 1")

    def test_an_empty_or_missing_split(self, pictures, tmp_path):
        assert "nothing.txt" in refused(pictures, tmp_path / "run", "--train_split nothing --max_iter 1")
        (pictures / "ImageSets" / "Main" / "nothing.txt").write_text("")
        assert "nothing.txt" in refused(pictures, tmp_path / "run", "--train_split nothing --max_iter 1")

    def test_a_disk_that_fills_up(self, pictures, tmp_path, monkeypatch):
        """The states saved before stay."""
        train(pictures, tmp_path / "run", "--max_iter 1 --save_every 1")
        before = (tmp_path / "run" / "state_1.pth").read_bytes()

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("weights.checkpoint.os.fsync", full)
        said = refused(pictures, tmp_path / "run", "--max_iter 2 --save_every 1 --keep 1 --resume auto")
        assert "No space left on device" in said
        assert [path.name for path in (tmp_path / "run").glob("*state_*")] == ["state_1.pth"]
        assert (tmp_path / "run" / "state_1.pth").read_bytes() == before

    @pytest.mark.parametrize(
        "flag",
        [
            "--batch_size 0",
            "--lr 0",
            "--width -1",
            "--keep 0",
            "--max_expand 0.5",
            "--min_crop 0",
            "--frame_aspect 0",
        ],
    )
    def test_settings_that_make_no_sense(self, pictures, tmp_path, flag):
        assert flag.split()[0] in refused(pictures, tmp_path / "run", flag)

    def test_a_folder_that_is_none(self, tmp_path):
        assert "nowhere" in refused(tmp_path / "nowhere", tmp_path / "run")


def test_the_lineages_flags_and_defaults():
    args = get_args_parser().parse_args([])
    expected = {
        "dataset": "VOC", "basenet": "vgg16_reducedfc.pth", "batch_size": 32, "resume": None, "num_workers": 4,
        "cuda": True, "lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4, "gamma": 0.1, "save_folder": "weights/",
    }  # fmt: skip
    assert {key: getattr(args, key) for key in expected} == expected
    old = "--dataset COCO --dataset_root /data --cuda False --start_iter 5 --visdom true --learning-rate 0.1"
    args = get_args_parser().parse_args(old.split())
    assert (args.cuda, args.visdom, args.start_iter, args.lr, Path(args.dataset_root)) == (
        False,
        True,
        5,
        0.1,
        Path("/data"),
    )


@pytest.mark.slow
def test_one_sgd_step_from_golden_weights_equals_the_formula(golden_net):
    """w - rate * (gradient + decay * w), the gradient from a loss that is written out; full width, one picture."""
    picture, (_, _, targets) = golden_inputs.images()[:1], golden_inputs.loss()
    target = targets[0]
    net = deepcopy(golden_net).train()
    args = SimpleNamespace(weight_decay=5e-4, caffe_bias=False, optimizer="sgd", lr=1e-3, momentum=0.9)
    optimizer = build_optimizer(net, args, torch.device("cpu"))
    loss_l, loss_c = MultiBoxLoss(21)(net(picture), [target])
    (loss_l + loss_c).backward()
    optimizer.step()

    loc, conf, priors = golden_net(picture)
    matched = slow.match(jaccard(target[:, :4], point_form(priors)).numpy(), 0.5)
    positive = [prior for prior, truth in enumerate(matched) if truth >= 0]
    classes = torch.tensor([0 if truth < 0 else int(target[truth, 4]) + 1 for truth in matched])
    cost = F.cross_entropy(conf[0], classes, reduction="none")
    negative = sorted(set(range(8732)) - set(positive), key=lambda prior: -cost[prior].item())[: 3 * len(positive)]
    offsets = torch.tensor([slow.encode(target[matched[p], :4].tolist(), priors[p].tolist()) for p in positive])
    away = (loc[0, positive] - offsets).abs()
    loss = (torch.where(away < 1, 0.5 * away**2, away - 0.5).sum() + cost[positive + negative].sum()) / len(positive)
    assert math.isclose(loss.item(), (loss_l + loss_c).item(), rel_tol=1e-5)
    gradients = torch.autograd.grad(loss, list(golden_net.parameters()))
    for (name, before), gradient, after in zip(golden_net.named_parameters(), gradients, net.parameters(), strict=True):
        step = 1e-3 * (gradient + 5e-4 * before.detach())
        difference = (before.detach() - after.detach()) - step
        # The step is small beside the weights: what their rounding leaves of it is exact to about 1e-7 of a weight.
        assert difference.abs().max() <= 1e-4 * step.abs().max() + 2e-7 * before.detach().abs().max(), name
