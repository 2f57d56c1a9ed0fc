"""eval.py as its users run it: on finished detections, and with a small network on a few images."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from checks import refused
from synthetic import make_coco, make_voc, write_annotation, write_image
from tiny import lively_checkpoint

import eval as eval_script
from data.voc0712 import VOC_CLASSES
from inference import Detector
from metrics.evaluation import detect_images
from utils.images import read_image

ROOT = Path(__file__).resolve().parents[1]
CAT, DOG = ("cat", (11, 11, 50, 50), False), ("dog", (21, 31, 90, 70), False)


def run(*flags):
    return eval_script.main(eval_script.get_args_parser().parse_args([str(flag) for flag in flags]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return lively_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.pth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images of different sizes in VOC format."""
    path = tmp_path_factory.mktemp("data") / "mine"
    objects = {"a": [CAT], "b": [CAT, DOG], "c": [], "d": [DOG], "e": [CAT, ("sofa", (1, 1, 60, 60), True)]}
    make_voc(path, objects, size=(120, 80))
    write_image(path / "JPEGImages" / "b.jpg", (333, 500), seed=9)
    write_image(path / "JPEGImages" / "d.jpg", (64, 333), seed=10)
    return path


@pytest.fixture
def network(checkpoint, folder, tmp_path):
    """Flags that score the network on the folder."""
    flags = ("--dataset", folder, "--trained_model", checkpoint, "--device", "cpu", "--precision", "float32")
    return (*flags, "--save_folder", tmp_path / "eval")


@pytest.fixture
def finished(tmp_path):
    """Flags that score detections on two annotated images: cat right, dog a near miss and a duplicate."""
    make_voc(tmp_path / "devkit" / "VOC2007", {"000001": [CAT], "000002": [CAT, DOG]}, split="test", images=False)
    results = tmp_path / "results"
    results.mkdir()
    (results / "det_test_cat.txt").write_text("000001 0.9 12 12 51 51\n000002 0.8 12 12 51 51\n")
    (results / "det_test_dog.txt").write_text("000002 0.9 71 31 140 70\n000002 0.8 21 31 90 70\n")
    return ("--voc_root", tmp_path / "devkit", "--detections", results, "--save_folder", tmp_path / "eval")


def test_finished_detections_are_scored_and_reported(finished, tmp_path, capsys):
    content = run(*finished)
    lines = capsys.readouterr().out.splitlines()
    assert content["voc"]["devkit"]["classes"]["cat"]["AP_11_points"] == pytest.approx(1)
    assert content["voc"]["devkit"]["classes"]["dog"]["AP_area"] == pytest.approx(0.5)
    assert content["voc"]["devkit"]["mAP_area"] == pytest.approx(0.75)
    # Both classes keep all detections below 0.8: F1 is 1 and 2 / 3. Thresholds 0.00 to 0.79 are equally good.
    assert lines[-3:-1] == ["mAP 0.7500  devkit rule, area", "best mean F1 0.833 at threshold 0.40"]
    assert content["best_mean_F1"] == {"mean_F1": pytest.approx(5 / 6), "threshold": 0.4}
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == ["pr_curves.png", "results.json"]
    assert json.loads((tmp_path / "eval" / "results.json").read_text()) == content


def test_network_is_scored_and_reported(network, folder, tmp_path, capsys):
    content = run(*network)
    out = capsys.readouterr().out
    assert "network: tiny.pth, SSD300-VOC, 20 classes, on cpu in float32" in out
    assert "images/s, including reading" in out
    assert out.endswith("eval: 20 detection files, pr_curves.png, mistakes.html, results.json\n")
    assert content["scored"]["classes"] == list(VOC_CLASSES)
    assert content["dataset"]["images"] == 5
    assert all(figures["detections"] > 0 for figures in content["voc"]["reference"]["classes"].values())
    assert set(content["voc"]["reference"]["left_out_without_ground_truth"]) == {*VOC_CLASSES} - {"cat", "dog"}
    assert {path.name for path in (tmp_path / "eval").glob("det_*")} == {f"det_val_{name}.txt" for name in VOC_CLASSES}

    files = run("--dataset", folder, "--detections", tmp_path / "eval", "--save_folder", tmp_path / "again")
    for rule in ("reference", "devkit"):
        assert files["voc"][rule]["classes"] == content["voc"][rule]["classes"]
    assert files["best_mean_F1"] == content["best_mean_F1"]


def test_any_number_of_workers_and_of_processes_gives_the_same_files(network, tmp_path):
    flags = (*map(str, network[:-1]), tmp_path / "processes", "--batch_size", "2")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "eval.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("network: ") == done.stdout.count("report in ") == 1
    one, _ = (run(*network[:-1], tmp_path / workers, "--batch_size", 2, "--num_workers", workers) for workers in "13")
    for other in ("processes", "3"):
        assert json.loads((tmp_path / other / "results.json").read_text())["voc"] == one["voc"]
        for path in (tmp_path / "1").iterdir():
            if path.name != "results.json":  # which contains times
                assert path.read_bytes() == (tmp_path / other / path.name).read_bytes()


def test_batches_equal_the_detector(checkpoint, folder):
    detector = Detector(checkpoint, "cpu", "float32", threshold=0.01, clip=False)
    paths = sorted((folder / "JPEGImages").iterdir())
    found, _ = detect_images(detector, paths, batch_size=4)
    images = [read_image(path) for path in paths]
    for index, expected in enumerate(detector(images[:4]) + detector(images[4:])):
        rows = found.take(found.images == index)
        assert len(rows) > 100
        np.testing.assert_array_equal(rows.labels, expected.labels)
        np.testing.assert_array_equal(rows.scores, expected.scores)
        np.testing.assert_array_equal(rows.boxes, expected.boxes + 1)  # pixels count from 1


def test_threshold_and_top_ks_do_what_they_say(network, tmp_path):
    def scores(*more):
        run(*network, *more)
        files = (tmp_path / "eval").glob("det_*.txt")
        rows = [line.split() for path in files for line in path.read_text().splitlines()]
        return Counter(row[0] for row in rows), min(float(row[1]) for row in rows)

    every, least = scores()
    assert least > 0.01
    assert max(every.values()) > 60
    assert max(scores("--top_k", 1)[0].values()) <= 20
    assert set(scores("--keep_top_k", 20)[0].values()) == {20}
    assert scores("--confidence_threshold", "0.3")[1] > 0.3


def test_cleanup_removes_the_detection_files_of_the_run_alone(network, finished, tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "det_val_other.txt").write_text("kept")
    for name in ("old", "dog"):  # the first is of a class that this network lacks
        (tmp_path / "eval" / f"det_val_{name}.txt").write_text("of an earlier run")
    (tmp_path / "eval" / "results.json").write_text('{"detection_files": ["det_val_old.txt", "../a"]}')
    run(*network, "--cleanup")
    assert [path.name for path in (tmp_path / "eval").glob("det_*")] == ["det_val_other.txt"]
    assert (tmp_path / "eval" / "mistakes.html").is_file()
    run(*finished[:-1], tmp_path / "results", "--cleanup", "True")
    assert (tmp_path / "results" / "det_test_cat.txt").is_file()


def test_coco_set_is_scored(checkpoint, tmp_path, capsys):
    objects = {5: [(3, (10, 10, 40, 40), 0)], 8: [(9, (0, 0, 70, 70), 0), (4, (5, 5, 9, 9), 0)]}
    root = make_coco(tmp_path / "coco", objects, {3: "cat", 4: "kite", 9: "dog"})
    flags = ("--dataset", "COCO", "--dataset_root", root, "--device", "cpu", "--save_folder", tmp_path / "eval")
    content = run(*flags, "--trained_model", checkpoint)
    out, err = capsys.readouterr()
    assert "eval: 1 detection file, pr_curves.png" in out
    assert err == "note: left out the objects of 1 class name outside the class list: kite (1)\n"
    assert set(content["coco"]["classes"]) == {"cat", "dog"}
    assert set(content["voc"]["plain"]["left_out_without_ground_truth"]) == {*VOC_CLASSES} - {"cat", "dog"}
    results = json.loads((tmp_path / "eval" / "detections.json").read_text())
    assert {row["category_id"] for row in results} == {3, 9}


def test_a_data_set_of_other_classes_ends_in_one_line_before_the_work(network, tmp_path):
    other = make_voc(tmp_path / "other", {"a": [("zebra", (1, 1, 9, 9), False)]})
    (other / "JPEGImages" / "a.jpg").write_bytes(b"not read")
    refused("^other val: no objects of aeroplane, .*; annotated: zebra$", run, *network, "--dataset", other)
    write_annotation(other, "a", [CAT])
    refused(r"a\.jpg: not a readable image", run, *network, "--dataset", other)


def script(name, *flags):
    """Run a script in a process of its own, which tells whether torch was imported."""
    program = f"import runpy, sys\ntry:\n    runpy.run_path('{name}', run_name='__main__')\n"
    program += "finally:\n    print('heavy' if {'torch', 'cv2', 'numpy'} & set(sys.modules) else 'light')"
    command = [sys.executable, "-c", program, *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_invalid_flags_are_refused_in_one_line(capsys):
    numbers = "batch_size=0 top_k=0 keep_top_k=-1 num_workers=-1 confidence_threshold=1 confidence_threshold=nan"
    for flag in f"{numbers} cuda=perhaps engine=onnxruntime precision=int4".split():
        with pytest.raises(SystemExit) as ended:
            eval_script.get_args_parser().parse_args([f"--{flag}"])
        assert ended.value.code == 2
        assert re.fullmatch(f"error: argument --{flag.partition('=')[0]}: .*\n", capsys.readouterr().err)


def test_flags_of_the_lineage_keep_their_names_and_defaults():
    def values(line):
        args = eval_script.get_args_parser().parse_args(line.split())
        return args.trained_model, args.save_folder, args.confidence_threshold, args.top_k, args.cuda, args.cleanup

    assert values("") == (None, "eval", 0.01, 200, True, False)
    flags = "--trained_model w.pth --save_folder e/ --confidence_threshold 0.5 --top_k 5 --cuda False --cleanup True"
    assert values(f"{flags} --voc_root d") == ("w.pth", "e/", 0.5, 5, False, True)


def test_users_mistakes_end_in_one_line_and_exit_code_2(finished, tmp_path):
    """A mistyped flag does so without importing torch, and so does --help answer."""
    for name in ("eval.py", "export.py", "weights/download.py"):
        code, out, err = script(name, "--help")
        assert (code, out.splitlines()[-1], err) == (0, "light", "")
    code, out, err = script("eval.py", "--batch_size", "many")
    assert (code, out, err.count("\n")) == (2, "light\n", 1)
    write_annotation(tmp_path / "devkit" / "VOC2007", "000002", [("cat", ("x", 1, 2, 3), False)])
    code, out, err = script("eval.py", *finished)
    assert (code, out) == (2, "heavy\n")
    assert re.fullmatch("error: .*000002.xml.*\n", err)
