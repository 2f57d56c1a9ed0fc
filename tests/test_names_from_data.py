"""Names of classes, images and files that come from data are drawn or escaped: never a path, a format or a command."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from checks import refused
from synthetic import make_coco, make_voc
from tiny import lively_checkpoint, make_checkpoint

import eval as eval_script
import export as export_script
import Object_Detection
import train as train_script
from data.coco import read_coco_annotations
from data.voc0712 import VOC_CLASSES
from metrics.detection_files import classes_with_files
from training.distributed import Ranks
from training.state import open_folder
from utils.errors import InputError, name_problem
from weights.checkpoint import load_network

NASTY = (
    "../../outside", "/tmp/outside", "C:\\outside", "..", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>',
    "{0.__class__}", "a" * 200, "%s%n", "$\\frac{$", "$(touch outside)", "`touch outside`", "; rm -rf * ? | x", "-rf",
    "größe 大小 خط\u200cعابر", "CON", "a.txt", "a%2Fb", "a/b", "&amp;",  # Persian has zero-width non-joiners
)  # fmt: skip
UNUSABLE = ("\x1b[2J", "a\0b", "\ud800", "a\nb", "\x9b2J", "a\u202eb", "a\u2066b", "", "  ", "a" * 201, None, 7, ["a"])
FINETUNING = "--batch_size 2 --device cpu --precision float32 --warmup 4 --num_workers 0"
ODD = os.fsdecode(b"a\xff \x1b[31m \xe2\x80\xae")  # not Unicode, an escape sequence and a bidirectional override
SHOWN = "a\\udcff \\x1b[31m \\u202e"


def run(script, *arguments):
    script.main(script.get_args_parser().parse_args([str(argument) for argument in (*arguments, "--device", "cpu")]))


@pytest.mark.parametrize("kind", ["VOC", "COCO"])
def test_detection_and_evaluation_with_classes_of_any_name(tmp_path, monkeypatch, kind, capsys):
    """Names of the network's classes, the data set's classes, its images and folders."""
    monkeypatch.chdir(tmp_path)
    data, network = Path("my {data} $x_{$"), make_checkpoint(tmp_path / "{net}.pth", class_names=NASTY)
    if kind == "VOC":
        make_voc(data, {"<b>1": [(name, (1 + n, 1, 40 + n, 60), 0) for n, name in enumerate(NASTY)], "{x}": []})
        flags, image = ["--dataset", data], data / "JPEGImages" / "<b>1.jpg"
    else:
        objects = {1: [(key, (key, 1, 30, 30), 0) for key in range(1, 21)]}
        make_coco(data, objects, dict(enumerate(NASTY, start=1)))
        flags, image = ["--dataset", "COCO", "--dataset_root", data], data / "images" / "val2017" / f"{1:012}.jpg"
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    run(Object_Detection, image, "--trained_model", network, "--output", "found.png", "--json", "found.jsonl")
    run(Object_Detection, image, "--trained_model", network, "--no_video", "--crops", "crops")
    assert sum(path.suffix == ".jpg" for path in Path("crops").rglob("*")) == 2
    found = json.loads(Path("found.jsonl").read_text())["detections"]
    assert {each["label"] for each in found} == {NASTY[11], NASTY[14]}
    run(eval_script, *flags, "--trained_model", network, "--save_folder", "out {0}")
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    places = {path.parent.relative_to(tmp_path) for path in written}
    assert {place for place in places if "crops" not in place.parts} == {Path(), Path("out {0}")}
    assert {"found.png", "found.jsonl", "results.json", "pr_curves.png"} < {path.name for path in written}
    assert not any(set(path.name) & set('\\:<>"*?|') for path in written)
    assert not Path("/tmp/outside").exists()
    page = Path("out {0}/mistakes.html").read_text(encoding="utf-8")
    assert not re.search("<script|<img src=x", page)
    assert [text in page for text in ("&lt;script&gt;", "&amp;amp;", "&lt;b&gt;1")] == [True, True, kind == "VOC"]
    said = capsys.readouterr().out
    assert all(name in said for name in NASTY)
    if kind == "VOC":
        assert set(classes_with_files("out {0}", "val")) == set(NASTY)


@pytest.mark.parametrize("name", UNUSABLE, ids=ascii)
def test_names_that_no_table_could_show_are_refused(tmp_path, name):
    """In a line that names the file and doesn't repeat what is wrong at length."""
    assert name_problem(name)
    root = make_coco(tmp_path, {1: [(1, (1, 1, 5, 5), 0)]}, {1: name})
    checkpoint = make_checkpoint(tmp_path / "a.pth")
    contents = torch.load(checkpoint, weights_only=True)
    torch.save({**contents, "class_names": [name, *VOC_CLASSES[1:]]}, checkpoint)
    annotations = root / "annotations" / "instances_val2017.json"
    for read, path in ((read_coco_annotations, annotations), (load_network, checkpoint)):
        message = refused("", read, path)
        assert str(path) in message
        assert len(message) < 500 + len(str(path))


@pytest.mark.skipif(os.name != "posix", reason="elsewhere names of files are Unicode")
@pytest.mark.parametrize(("script", "flags", "says", "written"), [
    (eval_script, "--dataset {odd} --device cpu --save_folder {odd}!", "report in .*{shown}!", "{odd}!/mistakes.html"),
    (export_script, "--output {odd}.onnx", "{shown}.onnx", "{odd}.onnx"),
    (train_script, f"--dataset {{odd}} --train_split val --max_iter 1 --save_folder \x1b[31m {FINETUNING}",
     "the network is \\\\x1b\\[31m", "\x1b[31m/curves.png"),
], ids=["evaluation", "export", "training"])  # fmt: skip
def test_files_of_odd_names_are_taken_and_printed_escaped(tmp_path, monkeypatch, capsys, script, flags, says, written):
    """Nothing that is printed steers the terminal, or can't be encoded. For detection see test_object_detection.py."""
    monkeypatch.chdir(tmp_path)
    lively_checkpoint(tmp_path / f"{ODD}.pth")
    make_voc(tmp_path / ODD, {"1": [("dog", (5, 5, 60, 50), 0)]}, split="val")
    network = ["--finetune" if script is train_script else "--trained_model", f"{ODD}.pth"]
    script.main(script.get_args_parser().parse_args([word.format(odd=ODD) for word in flags.split()] + network))
    said = capsys.readouterr()
    assert not re.search("[\x1b\u202e\ud800-\udfff]", said.out + said.err)
    assert re.search(says.format(shown=re.escape(SHOWN)), said.out), said.out
    assert Path(written.format(odd=ODD)).exists()


@pytest.mark.skipif(os.name != "posix", reason="elsewhere names of files are Unicode")
def test_a_run_needs_a_folder_that_tensorboard_can_name(tmp_path):
    with pytest.raises(InputError, match="not valid Unicode"), open_folder(tmp_path / ODD, Ranks()):
        pass
    assert not (tmp_path / ODD).exists()
