"""Scoring in the middle of a run: eval.py's figures, an untouched network, the best one kept, and no progress lost."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import make_voc
from tiny import DOG, DOG_BOX, make_network

import eval as eval_script
from data.transforms import resize, to_input
from inference.drawing import class_colour
from train import get_args_parser, main
from training import validation
from training.network import freeze_base
from training.run import save_for_use
from training.validation import TILE, Validation
from utils.errors import InputError
from utils.images import read_image
from weights.checkpoint import load_network, read_file

SIZE = (100, 80)
LARGE = ("dog", (6, 5, 94, 75), 0)  # where the tiny network sees its dog
SMALL = ("dog", (20, 20, 50, 50), 0)
PERSON = ("person", (3, 2, 97, 78), 0)
BESIDE = ("person", (59, 2, 98, 78), 0)
OBJECTS = {"a": [LARGE], "b": [SMALL], "c": [], "d": [LARGE, BESIDE], "e": [SMALL], "f": [LARGE]}
RUN = (
    "--basenet none --width 0.05 --low_resolution 64 --low_resolution_iter 1000 --batch_size 2 --device cpu "
    "--precision float32 --warmup 0 --num_workers 0 --skip_check --train_split train --val_split val"
)


@pytest.fixture(autouse=True)
def outside_is_left_alone(tmp_path, monkeypatch):
    """The user's cache; and denormals, which a run turns off."""
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_voc(tmp_path_factory.mktemp("data") / "mine", OBJECTS, size=SIZE)


@pytest.fixture
def trained(folder):
    """(net, info): in training mode, with BatchNorm; its score of a dog is another for each picture, around 0.7.

    Its person reaches so far beyond the picture's right edge that it would be right only if it were cut there.
    """
    net, info = make_network(batch_norm=True)
    paths = sorted((folder / "JPEGImages").iterdir())
    pictures = torch.from_numpy(np.stack([resize(read_image(path), 300) for path in paths]))
    with torch.no_grad():
        for layer in (*net.vgg, *net.extras):
            if hasattr(layer, "bn"):
                layer.bn.running_mean.normal_(0, 0.2)
                layer.bn.running_var.uniform_(0.5, 1.5)
        features = net.eval().features(to_input(pictures))[-1].flatten(1)  # [pictures, channels], of one cell
        middle = features.mean(dim=0)
        direction = torch.linalg.svd(features - middle, full_matrices=False).Vh[0]
        direction *= 1.5 / ((features - middle) @ direction).std()
        net.conf[-1].weight.view(4, 21, -1, 3, 3)[0, 1 + DOG, :, 1, 1] = direction
        net.loc[-1].bias.view(4, 4)[1, 0] = 6
        net.conf[-1].bias.view(4, 21)[0, 1 + DOG] = 12 + 0.8 - direction @ middle
    return net.train(), info


def snapshot(net):
    """All that scoring could change in a network."""
    tensors = {key: value.clone() for key, value in {**net.state_dict(), "priors": net.priors}.items()}
    modes = [(type(module), module.training) for module in net.modules()]
    return tensors, modes, [(name, p.requires_grad, p.grad is None, p.dtype) for name, p in net.named_parameters()]


def assert_same(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for key, value in before[0].items():
        assert torch.equal(value, after[0][key]), key


class TestScore:
    def test_it_is_evals(self, trained, folder, tmp_path):
        net, info = trained
        result = Validation(str(folder), None, "val", info, torch.device("cpu"), batch_size=4).score(net)
        path = tmp_path / "net.pth"
        save_for_use(path, net, info)
        flags = ["--dataset", folder, "--trained_model", path, "--split", "val", "--save_folder", tmp_path / "eval"]
        content = eval_script.main(eval_script.get_args_parser().parse_args([*map(str, flags), "--batch_size", "4"]))
        figures = content["voc"]["reference"]
        assert (result.mean_ap_11, result.mean_ap_area) == (figures["mAP_11_points"], figures["mAP_area"])
        assert 0.1 < result.mean_ap_11 < 0.4
        dogs = next(of_class for of_class in result.classes if of_class.name == "dog")
        assert len(np.unique(dogs.scores)) == len(OBJECTS)
        lines = (tmp_path / "eval" / "det_val_dog.txt").read_text().splitlines()
        assert dogs.scores.tolist() == pytest.approx(sorted((float(line.split()[1]) for line in lines), reverse=True))
        for of_class in result.classes:
            assert of_class.detections == figures["classes"][of_class.name]["detections"]
            if of_class.objects:
                assert of_class.ap_area == figures["classes"][of_class.name]["AP_area"]

    def test_the_network_is_left_as_it_was(self, trained, folder):
        net, info = trained
        freeze_base(net, 10)
        before = snapshot(net)
        scorer = Validation(str(folder), None, "val", info, torch.device("cpu"))
        scorer.score(net)
        scorer.grid(net)
        assert_same(before, snapshot(net))
        assert net.training
        assert not net.vgg[0].bn.training
        assert not net.vgg[0].weight.requires_grad

    def test_a_missing_or_empty_split(self, trained, folder):
        for split in ("nothing", "none"):
            (folder / "ImageSets" / "Main" / "none.txt").write_text("")
            with pytest.raises(InputError, match=f"{split}.txt"):
                Validation(str(folder), None, split, trained[1], torch.device("cpu"))


class TestGrid:
    @pytest.mark.parametrize("rows, columns", [(2, 4), (1, 2), (3, 3)])  # nine: more than there are pictures
    def test_shape(self, folder, rows, columns):
        net, info = make_network()
        grid = Validation(str(folder), None, "val", info, torch.device("cpu")).grid(net, rows=rows, columns=columns)
        assert grid.shape == (rows * TILE, columns * TILE, 3)
        assert grid.dtype == np.uint8

    def test_it_shows_the_boxes_on_the_pictures(self, folder):
        net, info = make_network()
        scorer = Validation(str(folder), None, "val", info, torch.device("cpu"))
        plain, boxed = scorer.grid(net, threshold=0.99), scorer.grid(net, threshold=0.9)
        # The plain one is the first and the last picture, and those between, resized.
        first, last = (validation.cv2.resize(read_image(scorer.pictures.paths[i]), (TILE, TILE)) for i in (0, -1))
        assert np.array_equal(plain[:TILE, :TILE], first)
        assert np.array_equal(plain[-TILE:, -TILE:], last)
        left, bottom = round(DOG_BOX[0] * TILE), round(DOG_BOX[3] * TILE)
        for row in range(2):
            for column in range(4):
                tile = boxed[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
                for y, x in ((TILE // 2, left), (bottom, TILE // 2)):
                    around = tile[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3)
                    assert (around == class_colour(DOG)).all(axis=1).any()
        assert (boxed != plain).any(axis=2).mean() < 0.1


def run(folder, save_folder, more):
    """train.py on its split train, validated on val."""
    arguments = ["--dataset", str(folder), "--save_folder", str(save_folder), *RUN.split(), *more.split()]
    main(get_args_parser().parse_args(arguments))


@pytest.fixture
def data(tmp_path):
    """Pictures to train on, and others to validate on."""
    path = make_voc(tmp_path / "mine", {f"v{i}": [LARGE, PERSON] for i in range(3)}, size=SIZE)
    return make_voc(path, {f"t{i}": [LARGE, PERSON] for i in range(4)}, split="train", size=SIZE)


@pytest.fixture
def scripted(monkeypatch):
    """Validation.score gives the mAPs of this list, one after the other."""
    figures, score = [], Validation.score

    def scores(self, net):
        return replace(score(self, net), mean_ap_11=figures.pop(0))

    monkeypatch.setattr(Validation, "score", scores)
    return figures


class TestBest:
    def test_it_is_kept_when_the_map_rises(self, data, tmp_path, scripted):
        scripted[:] = [0.3, 0.5, 0.4]
        run(data, tmp_path / "run", "--max_iter 3 --eval_every 1 --save_every 1 --keep 9")
        net, info = load_network(tmp_path / "run" / "best.pth")
        assert (info.mAP, info.mAP_on) == (0.5, "mine val")
        assert info.class_names == ("dog", "person")
        state = read_file(tmp_path / "run" / "state_2.pth")
        assert torch.equal(net.conf[0].weight, state["model"]["conf.0.weight"])
        assert [read_file(tmp_path / "run" / f"state_{i}.pth")["best"] for i in (1, 2, 3)] == [0.3, 0.5, 0.5]
        assert scripted == []

    def test_a_resumed_run_remembers_it(self, data, tmp_path, scripted):
        best = tmp_path / "run" / "best.pth"
        scripted[:] = [0.5]
        run(data, tmp_path / "run", "--max_iter 1")
        before = best.read_bytes()
        scripted[:] = [0.4]
        run(data, tmp_path / "run", "--max_iter 2 --resume auto")
        assert best.read_bytes() == before
        scripted[:] = [0.6]
        run(data, tmp_path / "run", "--max_iter 3 --resume auto")
        assert load_network(best)[1].mAP == 0.6

    def test_the_figures_are_logged(self, data, tmp_path, scripted):
        scripted[:] = [0.25, 0.5]
        run(data, tmp_path / "run", "--max_iter 4 --eval_every 2 --print_every 4")
        rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
        assert [row.split(",")[::5] for row in rows[1:]] == [["2", "0.250000"], ["4", ""], ["4", "0.500000"]]


@pytest.mark.parametrize("settings", ["--eval_every 2 --save_every 2", "--eval_every 2 --save_every 4"])
def test_an_unreadable_picture_loses_no_progress(data, tmp_path, settings):
    """Whether the run ends with a line or goes on: the training up to the validation can be resumed."""
    broken = data / "JPEGImages" / "v1.jpg"
    broken.write_bytes(b"gone")
    with suppress(InputError):
        run(data, tmp_path / "run", f"--max_iter 4 {settings}")
    states = [read_file(path)["iteration"] for path in (tmp_path / "run").glob("state_*.pth")]
    assert max(states, default=0) >= 2


def test_an_unreadable_picture_is_named(data, tmp_path):
    broken = data / "JPEGImages" / "v1.jpg"
    broken.write_bytes(b"gone")
    with pytest.raises(InputError) as caught:
        run(data, tmp_path / "run", "--max_iter 1")
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["score", "grid"])
def test_death_within_a_validation_loses_and_doubles_nothing(data, tmp_path, scripted, monkeypatch, place):
    """Before the score is logged, and after it: the resumed run ends with the log and state of a whole one."""
    settings = "--max_iter 4 --eval_every 2 --save_every 3 --print_every 2"
    scripted[:] = [0.25, 0.5]
    run(data, tmp_path / "whole", settings)

    class Death(BaseException):
        pass

    def die(*_):
        raise Death

    scripted[:] = [0.25]
    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(validation.Validation, place, die)
        run(data, tmp_path / "killed", settings)
    assert [path.name for path in (tmp_path / "killed").glob("state_*.pth")] == ["state_2.pth"]
    scripted[:] = [0.25, 0.5]
    run(data, tmp_path / "killed", f"{settings} --resume auto")
    logs = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("whole", "killed")]
    whole, killed = ([row.rpartition(",")[0] for row in log] for log in logs)  # without the seconds
    assert whole == killed
    assert sum(row.startswith("2,,") for row in killed) == 1
    states = [read_file(tmp_path / name / "state_4.pth") for name in ("whole", "killed")]
    assert states[0]["log"] == states[1]["log"]
    assert states[0]["best"] == states[1]["best"] == 0.5
