"""Names of classes and files that come from data: drawn or escaped, and never a path, a format or a command."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics.notes import note
from metrics.tables import summary, table
from metrics.voc_files import classes_with_files, detection_file, read_detection_files
from synthetic import make_coco, make_voc
from test_train import SMALL
from tiny import make_checkpoint

import eval as eval_script
import export as export_script
import Object_Detection
import train as train_script
from data.coco import COCODetection, read_coco_annotations
from data.voc0712 import VOC_CLASSES, VOCDetection, read_annotation
from inference.drawing import draw_detections
from metrics.evaluation import Scored, evaluate
from metrics.ground_truth import open_evaluation_set
from metrics.report import prepare_folder, write_detections, write_report
from metrics.voc import DetectionArrays
from utils.errors import InputError, exit_on_input_error, name_problem
from utils.images import read_image
from weights.checkpoint import load_network

NASTY = (
    "../../outside", "/tmp/outside", "C:\\outside", "..", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>',
    "{0.__class__}", "{}", "%s%n", "$\\frac{$", "$(touch outside)", "`touch outside`", "; rm -rf x", "-rf",
    "größe 大小 حجم", "CON", "a.txt", "a%2Fb", "a/b",
)  # fmt: skip


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def report(folder, pictures, output):
    """Score a data set's own objects, and find mistakes, and write all that eval.py writes; returns the Evaluation."""
    objects, _ = pictures.ground_truth(pictures.class_names)
    shifted = objects.boxes + 30  # so that there are misses and false positives to show
    detections = DetectionArrays(objects.pictures, objects.labels, np.linspace(1, 0.7, len(objects.labels)), shifted)
    scored = Scored("{net}", pictures.class_names, detections, {}, read_image=read_image)
    output = prepare_folder(output, pictures.folder)
    write_detections(output, pictures, scored)
    evaluation = evaluate(pictures, scored, coco_metrics=True)
    write_report(output, evaluation, {})
    print("\n".join([*table(evaluation), *summary(evaluation), *evaluation.notes]))
    return evaluation


@pytest.mark.parametrize("kind", ["VOC", "COCO"])
def test_a_report_on_classes_of_any_name(tmp_path, kind, capsys):
    data, output = tmp_path / "my {data} $x_{$", tmp_path / "out {0}"
    boxes = {number: (1 + number, 1, 40 + number, 60) for number in range(len(NASTY))}
    if kind == "VOC":
        make_voc(data, {"<b>1": [(name, boxes[number], 0) for number, name in enumerate(NASTY)], "{x}": []})
        pictures = open_evaluation_set(str(data), split="val")
    else:
        categories = dict(enumerate(NASTY, start=1))
        make_coco(data, {1: [(key, (*boxes[key - 1][:2], 30, 30), 0) for key in categories]}, categories)
        pictures = open_evaluation_set("COCO", data)
    before = files_below(tmp_path)
    report(tmp_path, pictures, output)
    written = files_below(tmp_path) - before
    assert all(name.startswith("out {0}/") and name.count("/") == 1 for name in written)
    assert {"out {0}/results.json", "out {0}/pr_curves.png", "out {0}/mistakes.html"} <= written
    assert not Path("/tmp/outside").exists()
    page = (output / "mistakes.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page
    assert "größe 大小 حجم" in page
    assert "größe 大小 حجم" in capsys.readouterr().out
    if kind == "VOC":
        assert "&lt;b&gt;1" in page
        assert set(classes_with_files(output, "val")) == set(NASTY)


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(
    lambda name: not name_problem(name)
)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(name=names, folder=st.sampled_from(["results", "/tmp/results", "."]))
def test_a_detection_file_lies_in_its_folder_and_knows_its_class(name, folder):
    path = detection_file(folder, "val", name)
    assert path.parent == Path(folder)
    assert not set(path.name) & set('/\\:*?"<>|\0')


@settings(deadline=None, max_examples=60, derandomize=True)
@given(name=names)
def test_a_class_of_any_name_comes_back_from_its_file(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    path = detection_file(folder, "val", name)
    if len(path.name.encode()) > 255:
        return
    path.write_text("1 0.5 1 1 2 2\n")
    assert classes_with_files(folder, "val") == [name]
    assert len(read_detection_files(folder, "val", ["1"], [name])[0]) == 1


@pytest.mark.parametrize("name", ["\x1b[2J", "a\x00b", "\ud800", "a\nb", "\x9b2J", "", "  ", "a" * 201, None, 7, ["a"]])
def test_class_names_that_no_table_could_show_are_refused(tmp_path, name):
    assert name_problem(name)
    path = make_coco(tmp_path, {1: [(1, (1, 1, 5, 5), 0)]}, {1: name}) / "annotations" / "instances_val2017.json"
    with pytest.raises(InputError, match="instances_val2017.json is no COCO instances JSON") as caught:
        read_coco_annotations(path)
    assert len(str(caught.value)) < 500 + len(str(path))
    checkpoint = make_checkpoint(tmp_path / "a.pth")
    contents = torch.load(checkpoint, weights_only=True)
    torch.save({**contents, "class_names": [name, *VOC_CLASSES[1:]]}, checkpoint)
    with pytest.raises(InputError, match="a.pth: its description can't be used"):
        load_network(checkpoint)


@pytest.mark.parametrize("name", NASTY)
def test_class_names_in_a_checkpoint_are_drawn(tmp_path, name):
    checkpoint = make_checkpoint(tmp_path / "a.pth", class_names=(name, *VOC_CLASSES[1:]))
    assert load_network(checkpoint)[1].class_names[0] == name
    from inference import Detections

    frame = np.zeros((80, 120, 3), np.uint8)
    box, score = np.array([[10, 30, 90, 70]], np.float32), np.array([0.9], np.float32)
    draw_detections(frame, Detections(box, score, np.array([0]), [name]))
    assert frame.any()


def test_an_annotation_s_name_is_one_line(tmp_path):
    folder = make_voc(tmp_path, {"1": [("traffic\n\t light ", (1, 1, 5, 5), 0)]})
    assert read_annotation(folder / "Annotations" / "1.xml").names == ("traffic light",)
    make_voc(tmp_path, {"1": [("a\x9b2J", (1, 1, 5, 5), 0)]})
    with pytest.raises(InputError, match=r"1\.xml: the name of object 1 can't be used"):
        read_annotation(folder / "Annotations" / "1.xml")


@pytest.mark.parametrize("field", ["xmin", "ymax", "width"])
def test_numbers_beyond_any_picture_are_refused(tmp_path, field):
    path = make_voc(tmp_path, {"1": [("cat", (1, 2, 5, 6), 0)]}, size=(7, 8)) / "Annotations" / "1.xml"
    number = {"xmin": 1, "ymax": 6, "width": 7}[field]
    path.write_text(path.read_text().replace(f"<{field}>{number}<", f"<{field}>1e300<"))
    with pytest.raises(InputError, match=f"1.xml: <{field}> is '1e300'"):
        read_annotation(path)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_split_of_impossible_names_is_refused(tmp_path, name):
    folder = make_voc(tmp_path, {"1": []})
    (folder / "ImageSets" / "Main" / "val.txt").write_text(f"1\n{name}\n")
    with pytest.raises(InputError, match=r"val\.txt: entry 2 is no picture's name"):
        VOCDetection(folder, [("", "val")])


@pytest.mark.parametrize("name", ["a\0b.jpg", "\ud800.jpg", 7, None, "", "x" * 2000])
def test_coco_pictures_of_impossible_names_are_refused(tmp_path, name):
    root = make_coco(tmp_path, {1: [(1, (1, 1, 5, 5), 0)]}, {1: "cat"})
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="the file_name of picture 1 can't be used"):
        COCODetection(root, "val2017")


def test_a_split_s_name_too_long_for_the_disk_is_a_picture_that_is_missing(tmp_path):
    """200 letters are a name, and may be 400 bytes, which are none."""
    folder = make_voc(tmp_path, {"1": []})
    (folder / "ImageSets" / "Main" / "val.txt").write_text("ö" * 200, encoding="utf-8")
    with pytest.raises(InputError, match=r"ö\.jpg: can't read the picture"):
        VOCDetection(folder, [("", "val")]).pull_image(0)


def test_a_name_too_long_for_the_disk_is_a_picture_that_is_missing(tmp_path):
    root = make_coco(tmp_path, {1: [(1, (1, 1, 5, 5), 0)]}, {1: "cat"})
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text().replace("000000000001.jpg", "x" * 400 + ".jpg"))
    with pytest.raises(InputError, match="names no picture that can be scored"):
        open_evaluation_set("COCO", root)
    with pytest.raises(InputError, match="can't read the picture"):
        COCODetection(root, "val2017").pull_image(0)


@pytest.mark.parametrize("ids", [[1, "2"], [1, None], [True, 2], [[1], 2]])
def test_coco_ids_of_several_kinds_are_refused(tmp_path, ids):
    root = make_coco(tmp_path, {1: [(1, (1, 1, 5, 5), 0)]}, {1: "cat", 2: "dog"})
    path = root / "annotations" / "instances_val2017.json"
    for place in ("images", "categories"):
        content = json.loads(path.read_text())
        content[place] = [{**content[place][0], "id": entry} for entry in ids]
        (tmp_path / "b.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"b\.json is no COCO"):
            read_coco_annotations(tmp_path / "b.json")


def test_coco_annotations_without_what_only_segmentation_needs_are_scored(tmp_path):
    """No id, area and iscrowd, which pycocotools takes for granted; and an id of 0, which it takes for none."""
    root = make_coco(tmp_path / "data", {1: [(1, (1, 1, 50, 50), 0)], 2: [(1, (1, 1, 50, 50), 0)]}, {1: "cat"})
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    bare = [{key: row[key] for key in ("image_id", "category_id", "bbox")} for row in content["annotations"]]
    for annotations in (bare, [{**row, "id": number} for number, row in enumerate(bare)]):
        path.write_text(json.dumps({**content, "annotations": annotations}))
        pictures = open_evaluation_set("COCO", root)
        objects, _ = pictures.ground_truth(pictures.class_names)
        found = DetectionArrays(objects.pictures, objects.labels, np.array([0.9, 0.8]), objects.boxes)
        figures = evaluate(pictures, Scored("itself", pictures.class_names, found, {})).coco_result.figures
        assert figures["AP"] == pytest.approx(1)
        assert figures["AR_100"] == pytest.approx(1)


def test_notes_can_be_printed_whatever_they_name():
    assert note(["\ud800", "a\x1b[2J", 7], "{} pictures") == ["3 pictures: \\ud800, a\\x1b[2J, 7"]


def test_notes_cut_long_names_short():
    assert note(["x" * 9999], "{} pictures") == [f"1 pictures: {'x' * 100}"]


def test_notes_take_braces_as_they_are():
    assert note(["a"], "{} classes in {folder} and {0.__class__}") == ["1 classes in {folder} and {0.__class__}: a"]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere names of files are text")
def test_a_detection_file_whose_name_is_no_text_is_refused(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/det_val_\xff.txt")).write_text("")
    with pytest.raises(InputError, match="is of no class"):
        classes_with_files(tmp_path, "val")


def test_a_message_can_not_steer_the_terminal(capsys):
    with pytest.raises(SystemExit) as ended, exit_on_input_error():
        raise InputError("a\n\x1b[2J\x9b2J\0 größe: remove it")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: a \\x1b[2J\\x9b2J\\x00 größe: remove it\n"


def test_ctrl_c_ends_a_script_with_one_line(capsys):
    with pytest.raises(SystemExit) as ended, exit_on_input_error():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="elsewhere names of files are text")
class TestFilesOfOddNames:
    """Each script takes files of any name, and prints nothing that steers the terminal or can't be printed."""

    ODD = os.fsdecode(b"a\xff \x1b[31m")
    SHOWN = "a\\udcff \\x1b[31m"

    @pytest.fixture
    def odd(self, tmp_path, monkeypatch):
        """A folder with everything that is asked for, all of it oddly named."""
        monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
        make_checkpoint(tmp_path / f"{self.ODD}.pth")
        make_voc(tmp_path / self.ODD, {"1": [("dog", (5, 5, 60, 50), 0)]}, split="val")
        return tmp_path / self.ODD

    def run(self, script, *arguments):
        script.main(script.get_args_parser().parse_args([str(argument) for argument in arguments]))

    def test_detection(self, odd, capsys):
        picture = odd / "JPEGImages" / "1.jpg"
        self.run(Object_Detection, picture, "--trained_model", f"{odd}.pth", "--output", f"{odd}.jpg",
                 "--json", f"{odd}.jsonl")  # fmt: skip
        assert Path(f"{odd}.jpg").exists()
        assert Path(f"{odd}.jsonl").exists()
        self.check(capsys, network=f"{self.SHOWN}.pth", output=f"{self.SHOWN}.jpg")

    def test_evaluation(self, odd, capsys):
        self.run(eval_script, "--dataset", odd, "--trained_model", f"{odd}.pth", "--save_folder", f"{odd} eval")
        assert {"results.json", "pr_curves.png", "mistakes.html"} <= files_below(Path(f"{odd} eval"))
        self.check(capsys, network=f"{self.SHOWN}.pth", report=f"{self.SHOWN} eval")

    def test_export(self, odd, capsys):
        pytest.importorskip("onnxruntime")
        self.run(export_script, "--trained_model", f"{odd}.pth", "--output", f"{odd}.onnx")
        assert Path(f"{odd}.onnx").exists()
        self.check(capsys, output=f"{self.SHOWN}.onnx")

    def test_training(self, odd, capsys):
        (odd / "ImageSets" / "Main" / "train.txt").write_text("1\n")
        folder = odd.with_name("run \x1b[31m")
        arguments = "--dataset", odd, *SMALL.split(), "--max_iter", 1, "--finetune", f"{odd}.pth", "--save_folder"
        self.run(train_script, *arguments, folder)
        assert "curves.png" in files_below(folder)
        self.check(capsys, loaded=f"{self.SHOWN}.pth", trained="run \\x1b[31m")
        with pytest.raises(InputError, match="TensorBoard can't write to it, as it isn't Unicode"):
            self.run(train_script, *arguments, f"{odd} run")
        assert not Path(f"{odd} run").exists()

    def check(self, capsys, **named):
        """Each of the lines that begin with these words shows the name that goes with it."""
        said = capsys.readouterr().out
        said.encode()
        assert "\x1b" not in said
        for word, name in named.items():
            assert any(line.startswith(word) and name in line for line in said.splitlines()), said


@pytest.mark.parametrize(
    ("name", "value"),
    [("name", 3), ("name", "\x1b"), ("min_dim", torch.tensor(300)), ("min_sizes", [float("nan")] * 6),
     ("max_sizes", [float("nan")] * 6), ("steps", [float("nan")] * 6), ("variance", [0.1, {}]), ("lr_steps", [b"1"])],
)  # fmt: skip
def test_configs_in_checkpoints_hold_plain_values_and_finite_priors(tmp_path, name, value):
    path = make_checkpoint(tmp_path / "a.pth")
    contents = torch.load(path, weights_only=True)
    torch.save({**contents, "config": {**contents["config"], name: value}}, path)
    with pytest.raises(InputError, match=r"a\.pth: its description can't be used"):
        load_network(path)


@pytest.mark.parametrize("what", ["sparse", "meta", "complex", "quantized"])
def test_weights_that_are_no_plain_tensors_are_refused(tmp_path, what):
    path = make_checkpoint(tmp_path / "a.pth")
    contents = torch.load(path, weights_only=True)
    bias = contents["state_dict"]["vgg.0.bias"]
    contents["state_dict"]["vgg.0.bias"] = {
        "sparse": bias.to_sparse,
        "meta": lambda: bias.to("meta"),
        "complex": lambda: bias.to(torch.complex64),
        "quantized": lambda: torch.quantize_per_tensor(bias, 0.1, 0, torch.qint8),
    }[what]()
    torch.save(contents, path)
    with pytest.raises(InputError, match=r"a\.pth: holds no state dict"):
        load_network(path)


def test_the_embedded_names_are_fine():
    assert [name_problem(name) for name in VOC_CLASSES] == [None] * 20
    assert name_problem("خط\u200cعابر") is None  # a zero-width non-joiner belongs to Persian spelling
