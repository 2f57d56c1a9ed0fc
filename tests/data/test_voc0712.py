"""VOC's folders: valid ones are read, and faults are named."""

import re
import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pytest
import torch
from checks import refused
from synthetic import make_voc, write_annotation, write_image

from data import VOC_CLASSES, BaseTransform, VOCAnnotationTransform, VOCDetection
from data.voc0712 import Annotation, read_annotation

DOG, PERSON = VOC_CLASSES.index("dog"), VOC_CLASSES.index("person")
OBJECTS = {
    "a": [("dog", (11, 21, 61, 71), 0), ("person", (1, 1, 101, 81), 1), ("person", (51, 41, 81, 61), None)],
    "b": [],
    "c": [("cat", (1, 1, 51, 41), 0)],
}
ROWS = [[0.1, 0.25, 0.6, 0.875, DOG], [0.5, 0.5, 0.8, 0.75, PERSON]]  # of "a", without the difficult one


def make_folder(root, **changes):
    """Make a VOC folder with image "a"; `changes` replaces elements of its annotation, such as name="<name/>"."""
    folder = make_voc(root, {"a": OBJECTS["a"]}, split="train")
    path = folder / "Annotations" / "a.xml"
    text = path.read_text()
    for tag, new in changes.items():
        text = re.sub(f"<{tag}>.*?</{tag}>", new, text, count=1, flags=re.DOTALL)
    path.write_text(text)
    return folder


def open_train(folder, **kwargs):
    return VOCDetection(folder, [("", "train")], **kwargs)


class TestAnnotations:
    def test_everything_is_read_but_the_parts_of_a_person(self, tmp_path):
        """VOC's layout annotations contain <part> elements with a name and a box."""
        part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
        annotation = read_annotation(make_folder(tmp_path, difficult=part) / "Annotations" / "a.xml")
        assert annotation.boxes.dtype == np.float32
        assert annotation.boxes.tolist() == [[11, 21, 61, 71], [1, 1, 101, 81], [51, 41, 81, 61]]
        assert annotation.names == ("dog", "person", "person")
        assert annotation.difficult.tolist() == [False, True, False]  # the XML tells it of the second one alone

    def test_fractional_degenerate_and_outside_boxes_are_kept(self, tmp_path):
        boxes = [(1.5, 2.25, 30.75, 40), (50, 50, 50, 60), (60, 10, 40, 20), (-20, -5, 500, 400)]
        write_annotation(tmp_path, "a", [("dog", box, 0) for box in boxes])
        assert read_annotation(tmp_path / "Annotations" / "a.xml").boxes.tolist() == [list(box) for box in boxes]

    @pytest.mark.parametrize(("changes", "words"), [
        ({"name": ""}, "the name of object 1 is invalid, it is empty"), ({"bndbox": ""}, "xmin"),
        ({"name": "<name>a&#x202e;b</name>"}, "control characters"),
        *(({"ymax": f"<ymax>{text}</ymax>"}, f"<ymax> is '{text[:9]}") for text in ("tall", "nan", "inf", "9" * 9999)),
        ({"difficult": "<difficult>maybe</difficult>"}, "'maybe'"),
        ({"object": "<object>"}, "not a readable VOC annotation"),
    ], ids=lambda value: str(value)[:40])  # fmt: skip
    def test_faults_name_the_file(self, tmp_path, changes, words):
        """However the annotation is read."""
        folder = make_folder(tmp_path, **changes)
        path = folder / "Annotations" / "a.xml"
        for read in (lambda: read_annotation(path), lambda: open_train(folder)[0]):
            text = refused(words, read)
            assert text.startswith(str(path))
            assert len(text) < 300 + len(str(path))

    @pytest.mark.parametrize("name", ["Annotations/a.xml", "JPEGImages/a.jpg"])
    @pytest.mark.parametrize("content", [None, b"", b"text", b"<annotation>", b"\xff\xfe\0<annotation/>", bytes(50)])
    def test_a_missing_or_damaged_file_is_named(self, tmp_path, name, content):
        path = make_folder(tmp_path) / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert refused("", lambda: open_train(tmp_path)[0]).startswith(f"{path}: ")


class TestDetection:
    def test_transform_of_an_annotation_and_of_an_xml_element_as_in_the_lineage(self, tmp_path):
        path = make_folder(tmp_path) / "Annotations" / "a.xml"
        for target in (read_annotation(path), ET.parse(path).getroot()):
            rows = VOCAnnotationTransform()(target, 100, 80)
            assert [type(rows), *(type(row[4]) for row in rows)] == [list, int, int]
            assert np.allclose(rows, ROWS)
            rows = VOCAnnotationTransform(keep_difficult=True)(target, 100, 80)
            assert np.allclose(rows, [ROWS[0], [0, 0, 1, 1, PERSON], ROWS[1]])

    def test_own_classes(self, tmp_path):
        folder = make_folder(tmp_path)
        dataset = open_train(folder, target_transform=VOCAnnotationTransform({"person": 1, "dog": 0}))
        assert [row[4] for row in dataset.pull_target(0, 100, 80)] == [0, 1]
        assert dataset.class_names == ("dog", "person")
        assert open_train(folder).class_names == VOC_CLASSES
        dataset.target_transform = VOCAnnotationTransform({"person": 0})
        path = folder / "Annotations" / "a.xml"
        assert refused("class 'dog' is not in the class list", dataset.pull_anno, 0).startswith(f"{path}: ")

    def test_several_years_in_order(self, tmp_path):
        make_voc(tmp_path / "VOC2007", {"a": OBJECTS["a"]}, split="trainval")
        make_voc(tmp_path / "VOC2012", {"b": [], "c": OBJECTS["c"]}, split="trainval")
        root = f"{tmp_path}/"
        dataset = VOCDetection(root)
        assert (len(dataset), dataset.root) == (3, root)
        years = (("2007", "a"), ("2012", "b"), ("2012", "c"))
        assert dataset.ids == [(str(tmp_path / f"VOC{year}"), name) for year, name in years]
        other_way = VOCDetection(root, [("2012", "trainval"), ("2007", "trainval")])
        assert [name for _, name in other_way.ids] == ["b", "c", "a"]

    def test_an_item(self, tmp_path):
        folder = make_folder(tmp_path)
        dataset = open_train(folder, transform=BaseTransform(300, (104, 117, 123)))
        image, target, height, width = dataset.pull_item(0)
        expected = BaseTransform(300, (104, 117, 123))(cv2.imread(str(folder / "JPEGImages" / "a.jpg")))[0]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected[:, :, ::-1])  # RGB
        assert (image.dtype, target.dtype, height, width) == (torch.float32, np.float32, 80, 100)
        assert np.allclose(target, ROWS)
        assert torch.equal(dataset[0][0], image)

    def test_the_lineages_accessors_and_items_without_a_transform(self, tmp_path):
        dataset = open_train(make_folder(tmp_path))
        image = cv2.imread(dataset._imgpath % dataset.ids[0])
        assert np.array_equal(dataset.pull_image(0), image)
        item, target, height, width = dataset.pull_item(0)
        assert (item.dtype, type(target), height, width) == (torch.uint8, list, 80, 100)
        assert np.array_equal(item.permute(1, 2, 0).numpy(), image)  # BGR
        assert np.allclose(target, ROWS)
        tensor = dataset.pull_tensor(0)
        assert tensor.dtype == torch.float32
        assert np.array_equal(tensor.numpy(), image[None])
        assert dataset.pull_anno(0) == ("a", [[10, 20, 60, 70, DOG], [50, 40, 80, 60, PERSON]])
        assert ET.parse(dataset._annopath % dataset.ids[0]).getroot().findtext("filename") == "a.jpg"

    def test_a_foreign_target_transform_gets_the_xml_element(self, tmp_path):
        def whole_image(target, width, height):
            return [[0, 0, 1, 1, len(target.findall("object")), width, height]]

        dataset = open_train(make_folder(tmp_path), target_transform=whole_image)
        assert dataset.pull_item(0)[1] == [[0, 0, 1, 1, 3, 100, 80]]
        dataset.transform = BaseTransform(300, (104, 117, 123))
        assert dataset[0][1].tolist() == [[0, 0, 1, 1, 3]]

    @pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".JPEG", ".png", ".PNG", ".bmp"])
    def test_other_suffixes_and_names_with_dots(self, tmp_path, suffix):
        folder = make_voc(tmp_path, {"IMG.0001.v2": OBJECTS["c"]}, split="train", images=False)
        write_image(folder / "JPEGImages" / f"IMG.0001.v2{suffix}", (30, 20))
        assert open_train(folder)[0][0].shape == (3, 20, 30)

    def test_byte_order_mark_empty_lines_and_spaces_in_a_split(self, tmp_path):
        folder = make_voc(tmp_path / "фото", {"犬": OBJECTS["a"], "c": [], "IMG 1": []}, split="train")
        text = "\ufeff犬\r\n\r\nc  1\r\nc -1\r\nIMG 1 \r\n"
        (folder / "ImageSets" / "Main" / "train.txt").write_bytes(text.encode())
        assert [name for _, name in open_train(folder).ids] == ["犬", "c", "c", "IMG 1"]
        assert len(open_train(folder)[0][1]) == 2

    def test_names_in_capitals(self):
        annotation = Annotation(np.array([[1, 1, 5, 5]] * 2), ("Dog", "CAT"), np.zeros(2, bool))
        assert [row[4] for row in VOCAnnotationTransform()(annotation, 10, 10)] == [11, 7]
        assert VOCAnnotationTransform({"Dog": 0, "dog": 1, "cat": 2})(annotation, 10, 10)[0][4] == 0

    def test_a_missing_empty_or_damaged_split(self, tmp_path):
        path = make_folder(tmp_path) / "ImageSets" / "Main" / "train.txt"
        for content in (b"", b"\n \n", b"\xff\xd8\xff\xe0", b"a\nb\x07\n"):
            path.write_bytes(content)
            assert refused("", open_train, tmp_path).startswith(f"{path}: ")
        path.unlink()
        assert refused("", open_train, tmp_path) == f"{path}: no such split; choose another one (found: none)"
        words = r"no such split; name the VOCdevkit .*--dataset_root, .*scripts/VOC2012\.sh \(2\.0 GB\)"
        refused(words, VOCDetection, tmp_path, [("2012", "trainval")])
