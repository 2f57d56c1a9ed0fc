"""eval.py as its users run it: on finished detections, and with a small network on a few pictures."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import make_coco, make_voc, write_annotation, write_image

import eval as eval_script
from data.config import voc
from inference import Detector
from metrics.detect import detect_pictures
from ssd import build_ssd
from utils.errors import InputError
from utils.images import read_image
from weights.checkpoint import CheckpointInfo, save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("cat", "dog", "<sofa>")
CAT, DOG = ("cat", (11, 11, 50, 50), False), ("dog", (21, 31, 90, 70), False)


def run(*flags):
    return eval_script.main(eval_script.get_args_parser().parse_args([str(flag) for flag in flags]))


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A narrow SSD300 with random weights, and class scores spread enough for detections of every class."""
    torch.manual_seed(0)
    net = build_ssd("test", 300, 1 + len(NAMES), width=0.0625)
    with torch.no_grad():
        for head in net.conf:
            head.weight.mul_(20)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    save_checkpoint(path, net, CheckpointInfo(config=voc, class_names=NAMES, width=0.0625, trained_with="nothing"))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five pictures of different sizes in VOC format."""
    path = tmp_path_factory.mktemp("data") / "mine"
    objects = {"a": [CAT], "b": [CAT, DOG], "c": [], "d": [DOG], "e": [CAT, ("<sofa>", (1, 1, 60, 60), True)]}
    make_voc(path, objects, size=(120, 80))
    write_image(path / "JPEGImages" / "b.jpg", (333, 500), seed=9)
    write_image(path / "JPEGImages" / "d.jpg", (64, 333), seed=10)
    return path


@pytest.fixture
def devkit(tmp_path):
    """A VOCdevkit with two annotated pictures and detections of them: cat right, dog a near miss and a duplicate."""
    make_voc(tmp_path / "devkit" / "VOC2007", {"000001": [CAT], "000002": [CAT, DOG]}, split="test", pictures=False)
    results = tmp_path / "results"
    results.mkdir()
    (results / "det_test_cat.txt").write_text("000001 0.9 12 12 51 51\n000002 0.8 12 12 51 51\n")
    (results / "det_test_dog.txt").write_text("000002 0.9 71 31 140 70\n000002 0.8 21 31 90 70\n")
    return tmp_path / "devkit", results


def test_finished_detections_are_scored_and_reported(devkit, tmp_path, capsys):
    root, results = devkit
    content = run("--voc_root", root, "--detections", results, "--save_folder", tmp_path / "eval")
    out, err = capsys.readouterr()
    assert content["voc"]["devkit"]["classes"]["cat"]["AP_11_points"] == pytest.approx(1)
    assert content["voc"]["devkit"]["classes"]["dog"]["AP_area"] == pytest.approx(0.5)
    assert content["voc"]["devkit"]["mAP_area"] == pytest.approx(0.75)
    assert "mAP 0.7500  devkit rule, area" in out
    assert "mistakes.html" in err
    assert "18 of the classes have no det_test_<class>.txt" in err
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == ["pr_curves.png", "results.json"]
    assert json.loads((tmp_path / "eval" / "results.json").read_text()) == content
    assert content["configuration"]["rule"] == "both"
    assert content["seconds"] >= 0


def test_cleanup_leaves_detections_alone_that_were_given(devkit, tmp_path):
    root, results = devkit
    run("--voc_root", root, "--detections", results, "--save_folder", results, "--cleanup", "True")
    assert (results / "det_test_cat.txt").is_file()


def test_network_is_scored_and_reported(checkpoint, folder, tmp_path, capsys):
    before = snapshot(folder)
    flags = ("--dataset", folder, "--trained_model", checkpoint, "--device", "cpu", "--precision", "float32")
    content = run(*flags, "--save_folder", tmp_path)
    out = capsys.readouterr().out
    assert "network: tiny.pth, SSD300-VOC, 3 classes, on cpu in float32" in out
    assert "pictures/s" in out
    assert content["scored"]["classes"] == list(NAMES)
    assert len(content["scored"]["sha256"]) == 64
    assert content["dataset"]["pictures"] == 5
    assert all(figures["detections"] > 0 for figures in content["voc"]["reference"]["classes"].values())
    assert content["voc"]["reference"]["left_out_without_ground_truth"] == ["<sofa>"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "det_val_cat.txt",
        "det_val_dog.txt",
        "det_val_%3Csofa%3E.txt",
        "results.json",
        "pr_curves.png",
        "mistakes.html",
    }
    assert "<sofa>" not in (tmp_path / "mistakes.html").read_text()
    assert snapshot(folder) == before

    files = run("--dataset", folder, "--detections", tmp_path, "--save_folder", tmp_path / "again")
    assert files["voc"] == content["voc"]


def test_repeated_run_gives_identical_files(checkpoint, folder, tmp_path):
    flags = ("--dataset", folder, "--trained_model", checkpoint, "--cuda", "False", "--precision", "float32")
    first = run(*flags, "--save_folder", tmp_path / "1", "--num_workers", 3)
    second = run(*flags, "--save_folder", tmp_path / "2", "--num_workers", 0)
    assert first["voc"] == second["voc"]
    for path in (tmp_path / "1").glob("det_*.txt"):
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()
    assert (tmp_path / "1" / "mistakes.html").read_bytes() == (tmp_path / "2" / "mistakes.html").read_bytes()


def test_batches_equal_single_pictures_and_the_detector_itself(checkpoint, folder):
    detector = Detector(checkpoint, "cpu", "float32", threshold=0.01)
    paths = sorted((folder / "JPEGImages").iterdir())
    batched, _ = detect_pictures(detector, paths, read_image, batch_size=4)
    single, _ = detect_pictures(detector, paths, read_image, batch_size=1, num_workers=0)
    assert len(batched) == len(single) > 100
    assert np.array_equal(batched.pictures, single.pictures)
    assert np.array_equal(batched.labels, single.labels)
    assert np.allclose(batched.scores, single.scores, atol=1e-5)
    assert np.allclose(batched.boxes, single.boxes, atol=1e-5 * 500)  # of the largest picture's side
    for index, path in enumerate(paths):
        (expected,) = detector([read_image(path)])
        rows = single.take(single.pictures == index)
        assert np.array_equal(rows.labels, expected.labels)
        assert np.allclose(rows.scores, expected.scores, atol=1e-6)
        assert np.allclose(rows.boxes - 1, expected.boxes, atol=1e-3)


def test_threshold_and_top_ks_do_what_they_say(checkpoint, folder, tmp_path):
    flags = ("--dataset", folder, "--trained_model", checkpoint, "--device", "cpu", "--save_folder", tmp_path)

    def scores(*more):
        run(*flags, *more)
        rows = [line.split() for path in tmp_path.glob("det_*.txt") for line in path.read_text().splitlines()]
        counts = {}
        for row in rows:
            counts[row[0]] = counts.get(row[0], 0) + 1
        return counts, min(float(row[1]) for row in rows)

    every, least = scores()
    assert least > 0.01
    assert max(every.values()) > 60
    few, _ = scores("--top_k", 10)
    assert max(few.values()) <= 30
    kept, _ = scores("--keep_top_k", 20)
    assert set(kept.values()) == {20}
    _, least = scores("--confidence_threshold", "0.3")
    assert least > 0.3


def test_cleanup_removes_the_detection_files_of_the_run(checkpoint, folder, tmp_path):
    (tmp_path / "det_val_other.txt").write_text("kept")
    flags = ("--dataset", folder, "--trained_model", checkpoint, "--device", "cpu", "--save_folder", tmp_path)
    run(*flags, "--cleanup")
    assert [path.name for path in tmp_path.glob("det_*")] == ["det_val_other.txt"]
    assert (tmp_path / "mistakes.html").is_file()


def test_coco_set_is_scored(checkpoint, tmp_path, capsys):
    root = make_coco(
        tmp_path / "coco",
        {5: [(3, (10, 10, 40, 40), 0)], 8: [(9, (0, 0, 70, 70), 0), (4, (5, 5, 9, 9), 0)]},
        {3: "cat", 4: "kite", 9: "dog"},
    )
    flags = ("--dataset", "COCO", "--dataset_root", root, "--device", "cpu", "--save_folder", tmp_path / "eval")
    content = run(*flags, "--trained_model", checkpoint)
    out, err = capsys.readouterr()
    assert "COCO" in out
    assert "kite (1)" in err
    assert err.count("<sofa>") == 1
    assert set(content["coco"]["classes"]) == {"cat", "dog"}
    assert (tmp_path / "eval" / "mistakes.html").is_file()
    results = tmp_path / "eval" / "detections.json"
    assert {row["category_id"] for row in json.loads(results.read_text())} == {3, 9}


def test_an_unreadable_picture_is_named(checkpoint, folder, tmp_path):
    copy = make_voc(tmp_path / "copy", {"a": [CAT], "b": [CAT]})
    (copy / "JPEGImages" / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"b\.jpg"):
        run("--dataset", copy, "--trained_model", checkpoint, "--device", "cpu", "--save_folder", tmp_path / "eval")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--batch_size", "0"), "--batch_size 0"),
        (("--top_k", "0"), "--top_k 0"),
        (("--keep_top_k", "-1"), "--keep_top_k -1"),
        (("--num_workers", "-1"), "--num_workers -1"),
        (("--confidence_threshold", "1"), "--confidence_threshold 1"),
        (("--confidence_threshold", "nan"), "--confidence_threshold nan"),
    ],
)
def test_senseless_numbers_are_refused(flags, words):
    with pytest.raises(InputError, match=words):
        run(*flags)


def test_flags_of_the_lineage_keep_their_names_and_defaults():
    args = eval_script.get_args_parser().parse_args([])
    assert (args.confidence_threshold, args.top_k, args.cuda, args.cleanup) == (0.01, 200, True, False)
    assert Path(args.save_folder) == Path("eval")
    line = (
        "--trained_model w.pth --save_folder e/ --confidence_threshold 0.5 --top_k 5 --cuda False --voc_root d "
        "--cleanup True"
    )
    args = eval_script.get_args_parser().parse_args(line.split())
    assert (args.trained_model, args.save_folder, args.voc_root) == ("w.pth", "e/", "d")
    assert (args.cuda, args.cleanup, args.top_k) == (False, True, 5)


def script(*flags, cwd=ROOT):
    command = [sys.executable, str(ROOT / "eval.py"), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_users_mistakes_end_in_one_line_and_exit_code_2(devkit, tmp_path):
    root, results = devkit
    write_annotation(root / "VOC2007", "000002", [("cat", ("x", 1, 2, 3), False)])
    done = script("--voc_root", root, "--detections", results, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "000002.xml" in done.stderr
    assert done.stdout == ""


def test_help_answers_without_importing_torch():
    program = (
        "import runpy, sys\nsys.argv = ['eval.py', '--help']\n"
        "try:\n    runpy.run_path('eval.py', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'cv2', 'numpy', 'data', 'metrics'} & set(sys.modules), 'heavy imports'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--trained_model" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_while_the_report_is_written_leaves_none_of_it(devkit, tmp_path, monkeypatch, capsys, number):
    """And a second one doesn't stop the cleaning up."""
    root, results = devkit
    clean_up = tempfile.TemporaryDirectory.cleanup

    def interrupted(path, *_):
        path.write_text("half a picture")
        signal.raise_signal(number)

    def interrupted_again(folder):
        signal.raise_signal(number)
        clean_up(folder)

    def before(*_):
        """Whoever listened to signals before."""

    monkeypatch.setattr("metrics.report.write_curves", interrupted)
    monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", interrupted_again)
    kept = signal.signal(number, before)
    try:
        with pytest.raises(SystemExit) as ended:
            run("--voc_root", root, "--detections", results, "--save_folder", tmp_path / "report")
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, kept)
    assert ended.value.code == 128 + number
    assert list((tmp_path / "report").iterdir()) == []
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if not line.startswith("note:")] == [f"interrupted by {number.name}"]


def test_results_json_gets_to_its_place_last(tmp_path, monkeypatch):
    """Where it stands, the others do too, in whatever order a disk lists them."""
    moved, listed, replace = [], Path.iterdir, Path.replace
    monkeypatch.setattr(Path, "iterdir", lambda path: sorted(listed(path), key=lambda found: "json" not in found.name))
    monkeypatch.setattr(Path, "replace", lambda path, to: moved.append(to.name) or replace(path, to))
    with eval_script.whole_files(tmp_path) as folder:
        for name in ("mistakes.html", "results.json", "pr_curves.png"):
            (folder / name).write_text("whole")
    assert moved[-1] == "results.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(moved)
    assert len(moved) == 3


def test_a_signal_while_the_rest_is_removed_leaves_nothing(tmp_path, monkeypatch):
    calls, rmtree = [], shutil.rmtree

    def struck(path, **how):
        calls.append(path)
        if len(calls) == 1:
            raise SystemExit(143)
        rmtree(path, **how)

    monkeypatch.setattr(shutil, "rmtree", struck)
    with pytest.raises(SystemExit), eval_script.whole_files(tmp_path) as folder:
        (folder / "results.json").write_text("whole")
        (folder / "more").mkdir()
        raise ValueError("in the middle")
    assert list(tmp_path.iterdir()) == []


def test_detection_files_are_written_whole_or_not_at_all(folder, tmp_path, checkpoint, monkeypatch):
    def half(target, *_):
        (target / "det_val_cat.txt").write_text("half a li")
        raise InputError(f"{target} can't be written")

    monkeypatch.setattr("metrics.report.write_detections", half)
    report = tmp_path / "report"
    with pytest.raises(InputError, match="report can't be written"):
        run("--dataset", folder, "--trained_model", checkpoint, "--save_folder", report, "--device", "cpu")
    assert list(report.iterdir()) == []
