"""train.py: a run that is interrupted ends as one that isn't, and mistakes end in one line with nothing overwritten."""

import csv
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from checks import refused
from clip_images import make_clip_images
from synthetic import make_voc, write_split
from torch.utils._pytree import tree_flatten

from metrics.ground_truth import open_evaluation_set
from train import get_args_parser, main
from training import engine
from weights.catalogue import EMBEDDED
from weights.checkpoint import load_network, read_file

OBJECTS = {f"p{i}": [("dog", (5 + i, 5, 60 + i, 70), 0), ("cat", (40, 30, 95, 75), 0)][: 1 + i % 2] for i in range(5)}
BASE = "--device cpu --precision float32 --num_workers 0"
SMALL = f"{BASE} --basenet none --width 0.05 --batch_size 2 --warmup 4 --lr 0.01"
FINAL = "ssd300_w005_final.pth"


@pytest.fixture
def images(tmp_path):
    """A folder in VOC format, with a validation split of two images."""
    folder = make_voc(tmp_path / "images", OBJECTS, split="train")
    write_split(folder, "val", ["p0", "p1"])
    return folder


def train(images, folder, more="", base=SMALL):
    """Run train.py on a folder in VOC format."""
    arguments = ["--dataset", str(images), "--save_folder", str(folder), *base.split(), *more.split()]
    try:
        main(get_args_parser().parse_args(arguments))
    finally:
        torch.set_flush_denormal(False)  # a run turns denormals off, which other tests shouldn't notice


def contents(folder):
    """{name: bytes} of the files of a run."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def states_of(folder):
    return sorted(int(path.stem.removeprefix("state_")) for path in folder.glob("state_*.pth"))


def log_of(folder):
    """The rows of log.csv without the time column."""
    with (folder / "log.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def assert_same(a, b):
    """Bitwise equality of nested containers."""
    (leaves, structure), (others, other_structure) = tree_flatten(a), tree_flatten(b)
    assert structure == other_structure
    for leaf, other in zip(leaves, others, strict=True):
        assert torch.equal(leaf, other) if isinstance(leaf, torch.Tensor) else leaf == other


class TestResume:
    def test_the_seed_decides(self, images, tmp_path):
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            train(images, tmp_path / name, f"--max_iter 1 --seed {seed}")
        a, b, c = (read_file(tmp_path / name / "state_1.pth")["model"] for name in "abc")
        assert_same(a, b)
        assert not torch.equal(a["vgg.0.weight"], c["vgg.0.weight"])

    def test_resuming_skips_the_check_and_may_change_length_rate_workers_and_logging(self, tmp_path, capsys):
        folder = make_voc(tmp_path / "many", {f"p{i:02}": [("dog", (5, 5, 60, 60), 0)] for i in range(21)}, "train")
        (folder / "JPEGImages" / "p03.jpg").write_bytes(b"no image")
        train(folder, tmp_path / "run", "--max_iter 1")
        capsys.readouterr()
        changes = "--max_iter 12 --save_every 2 --keep 2 --lr 0.02 --num_workers 1 --print_every 1"
        train(folder, tmp_path / "run", f"{changes} --resume auto")  # more than an epoch
        assert "training on" not in capsys.readouterr().out
        assert states_of(tmp_path / "run") == [10, 12]
        assert read_file(tmp_path / "run" / "state_12.pth")["usable"] == [i for i in range(21) if i != 3]

    def test_there_is_nothing_to_resume_or_to_do(self, images, tmp_path, capsys):
        train(images, tmp_path / "run", "--max_iter 2 --resume auto")
        assert "no usable state in" in capsys.readouterr().out
        before = contents(tmp_path / "run")
        for length in (1, 2):
            train(images, tmp_path / "run", f"--max_iter {length} --resume auto")
            assert f"nothing to do: the run is at iteration 2, and --max_iter is {length}" in capsys.readouterr().out
        assert contents(tmp_path / "run") == before

    def test_a_longer_run_replaces_the_shorter_ones_result(self, images, tmp_path, monkeypatch):
        """Also if it dies after its last state."""
        train(images, tmp_path / "run", "--max_iter 1")
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr("training.log.draw_curves", lambda folder: 1 / 0)
            train(images, tmp_path / "run", "--max_iter 2 --resume auto")
        train(images, tmp_path / "run", "--max_iter 2 --resume auto")
        state = read_file(tmp_path / "run" / "state_2.pth")["model"]
        assert torch.equal(load_network(tmp_path / "run" / FINAL)[0].loc[0].weight, state["loc.0.weight"])

    def test_only_weights_are_resumed_and_that_is_said(self, images, tmp_path, capsys):
        train(images, tmp_path / "run", "--max_iter 1")
        state = load_network(tmp_path / "run" / FINAL)[0].state_dict()
        torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "plain.pth")
        train(images, tmp_path / "other", f"--max_iter 4 --start_iter 3 --lr 1e-9 --resume {tmp_path / 'plain.pth'}")
        assert "contains only weights" in capsys.readouterr().out
        assert states_of(tmp_path / "other") == [4]
        torch.testing.assert_close(load_network(tmp_path / "other" / FINAL)[0].state_dict(), state)


class TestIdentity:
    def test_another_run_is_not_overwritten(self, images, tmp_path):
        run, resume = tmp_path / "run", "--max_iter 3 --resume auto"
        train(images, run, "--max_iter 2")
        before = contents(run)
        words = r"already holds a run \(state_2\.pth\); resume it with --resume auto"
        refused(words, train, images, run, "--max_iter 1")
        (tmp_path / "moved").mkdir()
        shutil.copy(run / FINAL, tmp_path / "moved")
        for flags in ("--max_iter 1", resume):
            refused(rf"already holds a run \({FINAL}\); choose another", train, images, tmp_path / "moved", flags)
        refused("start from --basenet none", train, images, tmp_path / "new", "--width 0.5 --max_iter 1", BASE)
        for change in ("--optimizer adamw", "--seed 1", "--batch_size 3", "--classes dog cat"):
            refused(r"run\.json: made by a run with other settings", train, images, run, f"{resume} {change}")
        for change in ("--width 0.1", "--size 512"):
            refused("leave out --size and --width", train, images, run, f"{resume} {change}")
        write_split(images, "train", ["p0", "p1"])
        refused("images: found", train, images, run, resume)
        assert contents(run) == before


class TestLength:
    def test_states_and_rates_of_a_short_run(self, images, tmp_path):
        """Defaults fit the length. Of 48 iterations every second one is saved, and the rate falls after 32 and 40."""
        base = SMALL.replace("--warmup 4 ", "")
        train(images, tmp_path / "run", "--max_iter 48 --print_every 1 --keep 100", base)
        assert states_of(tmp_path / "run") == list(range(2, 49, 2))
        rates = [float(row["lr"]) for row in log_of(tmp_path / "run")]
        assert rates == pytest.approx([0.01] * 32 + [0.001] * 8 + [0.0001] * 8)

    def test_the_best_network_is_kept_with_its_threshold(self, images, tmp_path, monkeypatch):
        scores = [(SimpleNamespace(mean_ap_11=score, classes=()), 0.45) for score in (0.25, 0.5, 0.4, 0.3, 0.35)]
        monkeypatch.setattr(engine, "validate", lambda *_: scores.pop(0))
        train(images, tmp_path / "run", "--max_iter 6 --save_every 2 --val_split val --print_every 6")
        net, info = load_network(tmp_path / "run" / "best.pth")
        assert (info.mAP, info.mAP_on, info.threshold) == (0.5, "images val", 0.45)
        assert load_network(tmp_path / "run" / FINAL)[1].mAP == 0.4
        assert [(row["iteration"], row["mAP"]) for row in log_of(tmp_path / "run")] == [
            ("2", "0.250000"), ("4", "0.500000"), ("6", ""), ("6", "0.400000"),
        ]  # fmt: skip
        state = tmp_path / "run" / "state_6.pth"
        train(images, tmp_path / "other", f"--max_iter 8 --save_every 1 --val_split val --resume {state}")
        assert load_network(tmp_path / "other" / "best.pth")[1].mAP == 0.35  # the best of this folder


class TestLearning:
    def test_width_size_and_batch_norm_come_from_the_file(self, images, tmp_path, capsys):
        train(images, tmp_path / "first", "--max_iter 1")
        start = tmp_path / "first" / FINAL
        flags = f"--finetune {start} --batch_size 2 --max_iter 1"
        train(images, tmp_path / "second", flags, BASE)
        assert "initialized from scratch: none" in capsys.readouterr().out
        state = read_file(tmp_path / "second" / "state_1.pth")
        assert (state["run"]["width"], state["run"]["batch_norm"]) == (0.05, False)
        said = refused("an SSD300 of width 0.05", train, images, tmp_path / "third", f"{flags} --width 0.1", BASE)
        assert said.startswith(f"{start}: ")
        refused("--finetune contains a base network", train, images, tmp_path / "third", flags)

    @pytest.mark.slow
    def test_finetuning_the_embedded_network_improves_it(self, tmp_path):
        """On cuts of the bundled clip, by README's command at a small scale; half of the classes are new."""
        folder = make_clip_images(tmp_path / "clip", rename={"person": "human"})
        flags = f"--finetune {EMBEDDED} --val_split train --batch_size 4 --max_iter 24 --eval_every 12"
        base = "--optimizer adamw --lr 0.0002 --schedule cosine --no-augment --device cpu --num_workers 0"
        train(folder, tmp_path / "run", flags, base)
        scores = [float(row["mAP"]) for row in log_of(tmp_path / "run") if row["mAP"]]
        start, info = load_network(EMBEDDED)
        images = open_evaluation_set(str(folder), None, "train")
        before, _ = engine.validate(start, info, images, torch.device("cpu"))
        assert scores[-1] > sum(item.ap_11 for item in before.classes if item.name == "cat") / 2 + 0.1

    @pytest.mark.slow
    def test_eight_images_are_learned_by_heart_from_scratch(self, tmp_path):
        """A network that can't do so has a fault somewhere between image and loss."""
        folder = make_clip_images(tmp_path / "eight")
        flags = "--basenet none --width 0.125 --no-augment --batch_size 8 --optimizer adamw --lr 0.003"
        train(folder, tmp_path / "run", f"{flags} --schedule cosine --warmup 6 --max_iter 60", BASE)
        net, info = load_network(tmp_path / "run" / "ssd300_w012_final.pth")
        assert info.class_names == ("cat", "person")
        images = open_evaluation_set(str(folder), None, "train")
        result, threshold = engine.validate(net, info, images, torch.device("cpu"))
        assert result.mean_ap_11 >= 0.95
        assert 0.1 < threshold < 1


class TestFaults:
    @pytest.mark.parametrize("settings", ["--print_every 1", "--print_every 100 --save_every 1"])
    def test_a_loss_that_is_not_finite(self, images, tmp_path, settings):
        """Nothing of it is saved."""
        diverging = "--warmup 0 --lr 1000 --momentum 0.99 --max_iter 6"
        refused("not finite", train, images, tmp_path / "run", f"{diverging} {settings}")
        assert not (tmp_path / "run" / FINAL).exists()
        for iteration in states_of(tmp_path / "run"):
            weights = read_file(tmp_path / "run" / f"state_{iteration}.pth")["model"]
            assert all(value.isfinite().all() for value in weights.values())

    def test_weights_that_are_not_finite_after_the_last_step(self, images, tmp_path, monkeypatch):
        step = engine.Trainer.step

        def break_a_weight(self, *arguments):
            values = step(self, *arguments)
            self.net.conf[2].bias.data[3] = float("nan")
            return values

        monkeypatch.setattr(engine.Trainer, "step", break_a_weight)
        words = r"conf\.2\.bias is not finite, or overflows float16, after iteration 1"
        refused(words, train, images, tmp_path / "run", "--max_iter 1")
        assert not list((tmp_path / "run").glob("*.pth"))

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_image_that_cannot_be_read_any_more(self, images, tmp_path, workers):
        broken = images / "JPEGImages" / "p3.jpg"
        broken.write_bytes(b"gone")
        words = "; put a readable file in its place; then continue with --resume auto$"
        flags = f"--max_iter 6 --skip_check --num_workers {workers}"
        assert str(broken) in refused(words, train, images, tmp_path / "run", flags)

    def test_the_validation_images_are_read_before_the_run(self, images, tmp_path, capsys):
        write_split(images, "val", ["p0", "p8", "p9"])
        shutil.copy(images / "Annotations" / "p0.xml", images / "Annotations" / "p9.xml")
        (images / "JPEGImages" / "p9.jpg").write_bytes(b"no image")
        refused(r"p9\.jpg: not a readable image", train, images, tmp_path / "run", "--max_iter 1 --val_split val")
        assert "note: validation: left out 1 image of split val without annotation: p8" in capsys.readouterr().out
        assert contents(tmp_path / "run") == {}

    @pytest.mark.parametrize("flag", [
        "--max_iter 0", "--lr 1e300", "--lr inf", "--lr 0", "--ema 1.5", "--width nan", "--max_expand inf",
        "--seed -1", "--momentum 5", "--channel_shuffle 7", "--gamma nan", "--batch_size x", "--min_crop 0",
        f"--max_iter 1{400 * '0'}", "--val_split", "--low_resolution 96", "--unknown 3",
    ])  # fmt: skip
    def test_flags_that_make_no_sense(self, flag, capsys):
        with pytest.raises(SystemExit) as caught:
            get_args_parser().parse_args(flag.split())
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert flag.split()[0] in said


def test_help_shows_a_default_of_0():
    assert re.search(r"--seed SEED .*\(default: 0\)", " ".join(get_args_parser().format_help().split()))


def test_the_lineages_flags_and_defaults():
    args = get_args_parser().parse_args([])
    expected = {
        "dataset": "VOC", "batch_size": 32, "resume": None, "num_workers": 4, "cuda": True, "lr": 1e-3,
        "momentum": 0.9, "weight_decay": 5e-4, "gamma": 0.1, "save_folder": "weights/", "start_iter": None,
    }  # fmt: skip
    assert {key: getattr(args, key) for key in expected} == expected
    old = "--dataset_root data --cuda False --start_iter 5 --visdom true --learning-rate 0.1"
    args = get_args_parser().parse_args(old.split())
    assert (args.dataset_root, args.cuda, args.start_iter, args.visdom, args.lr) == ("data", False, 5, True, 0.1)
