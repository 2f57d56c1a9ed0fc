"""VOC's folders: valid ones are read, and faults are named."""

import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pytest
import torch
from synthetic import make_voc, write_annotation, write_image, write_split

from data import VOC_CLASSES, BaseTransform, SSDAugmentation, VOCAnnotationTransform, VOCDetection, detection_collate
from data.voc0712 import read_annotation, read_split
from utils.errors import InputError

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
        start, end = text.index(f"<{tag}>"), text.index(f"</{tag}>") + len(f"</{tag}>")
        text = text[:start] + new + text[end:]
    path.write_text(text)
    return folder


def open_train(folder, **kwargs):
    return VOCDetection(folder, [("", "train")], **kwargs)


def message(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestAnnotations:
    def test_everything_is_read(self, tmp_path):
        annotation = read_annotation(make_folder(tmp_path) / "Annotations" / "a.xml")
        assert annotation.boxes.dtype == np.float32
        assert annotation.boxes.tolist() == [[11, 21, 61, 71], [1, 1, 101, 81], [51, 41, 81, 61]]
        assert annotation.names == ("dog", "person", "person")
        assert annotation.difficult.tolist() == [False, True, False]  # the last one's XML doesn't tell

    def test_parts_of_a_person_are_not_objects(self, tmp_path):
        """VOC's layout annotations contain <part> elements with a name and a box."""
        part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
        annotation = read_annotation(make_folder(tmp_path, difficult=part) / "Annotations" / "a.xml")
        assert annotation.names == ("dog", "person", "person")
        assert annotation.boxes[0].tolist() == [11, 21, 61, 71]

    def test_fractional_degenerate_and_outside_boxes_are_kept(self, tmp_path):
        boxes = [(1.5, 2.25, 30.75, 40), (50, 50, 50, 60), (60, 10, 40, 20), (-20, -5, 500, 400)]
        write_annotation(tmp_path, "a", [("dog", box, 0) for box in boxes])
        assert read_annotation(tmp_path / "Annotations" / "a.xml").boxes.tolist() == [list(box) for box in boxes]

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"name": ""}, "the name of object 1 is invalid, it is empty"),
            ({"name": "<name>a&#x202e;b</name>"}, "control characters"),
            ({"bndbox": ""}, "xmin"),
            ({"ymax": "<ymax>tall</ymax>"}, "'tall'"),
            ({"ymax": "<ymax>nan</ymax>"}, "'nan'"),
            ({"ymax": "<ymax>inf</ymax>"}, "'inf'"),
            ({"ymax": f"<ymax>{'9' * 9999}</ymax>"}, "<ymax> is '999"),
            ({"difficult": "<difficult>maybe</difficult>"}, "'maybe'"),
            ({"object": "<object>"}, "not a readable VOC annotation"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_faults_name_the_file(self, tmp_path, changes, words):
        """However the annotation is read."""
        folder = make_folder(tmp_path, **changes)
        path = folder / "Annotations" / "a.xml"
        for read in (lambda: read_annotation(path), lambda: open_train(folder)[0]):
            text = message(read)
            assert text.startswith(str(path))
            assert words in text
            assert len(text) < 300 + len(str(path))

    @pytest.mark.parametrize(
        "content", [None, b"", b"plain text", b"<annotation>", b"\xff\xfe\x00<annotation/>", b"\x00" * 50]
    )
    def test_missing_or_not_xml(self, tmp_path, content):
        path = tmp_path / "a.xml"
        if content is not None:
            path.write_bytes(content)
        assert str(path) in message(lambda: read_annotation(path))

    @pytest.mark.parametrize("kind", ["billion laughs", "external", "long name"])
    def test_entities_are_refused(self, tmp_path, kind):
        """Ten entities, each ten times the previous one, would expand to 10 GB; an external one would read a file."""
        path, secret = tmp_path / "a.xml", tmp_path / "secret"
        secret.write_text("hush")
        laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
        entities, name = {
            "billion laughs": (f'<!ENTITY l0 "lolololol">{laughs}', "l9"),
            "external": (f'<!ENTITY s SYSTEM "{secret.as_uri()}">', "s"),
            "long name": (f"<!ENTITY {'x' * 9999} 'x'>", "x" * 9999),
        }[kind]
        path.write_text(f"<!DOCTYPE a [{entities}]><annotation><object><name>&{name};</name></object></annotation>")
        text = message(lambda: read_annotation(path))
        assert str(path) in text
        assert "hush" not in text
        assert len(text) < 400 + len(str(path))


class TestTransform:
    def test_of_an_annotation_and_of_an_xml_element_as_in_the_lineage(self, tmp_path):
        path = make_folder(tmp_path) / "Annotations" / "a.xml"
        for target in (read_annotation(path), ET.parse(path).getroot()):
            rows = VOCAnnotationTransform()(target, 100, 80)
            assert isinstance(rows, list)
            assert np.allclose(rows, ROWS)
            assert [type(row[4]) for row in rows] == [int, int]
            rows = VOCAnnotationTransform(keep_difficult=True)(target, 100, 80)
            assert np.allclose(rows[1], [0, 0, 1, 1, PERSON])
            assert len(rows) == 3

    def test_own_classes(self, tmp_path):
        folder = make_folder(tmp_path)
        dataset = open_train(folder, target_transform=VOCAnnotationTransform({"person": 1, "dog": 0}))
        assert [row[4] for row in dataset.pull_target(0, 100, 80)] == [0, 1]
        assert dataset.class_names == ("dog", "person")
        assert open_train(folder).class_names == VOC_CLASSES
        dataset.target_transform = VOCAnnotationTransform({"person": 0})
        text = message(lambda: dataset.pull_anno(0))
        assert text.startswith(f"{folder / 'Annotations' / 'a.xml'}: class 'dog' is not in the class list")


class TestDetection:
    def test_several_years_in_order(self, tmp_path):
        make_voc(tmp_path / "VOC2007", {"a": OBJECTS["a"]}, split="trainval")
        make_voc(tmp_path / "VOC2012", {"b": [], "c": OBJECTS["c"]}, split="trainval")
        root = f"{tmp_path}/"
        dataset = VOCDetection(root)
        assert len(dataset) == 3
        assert dataset.root == root
        assert dataset.ids == [
            (str(tmp_path / f"VOC{year}"), name) for year, name in (("2007", "a"), ("2012", "b"), ("2012", "c"))
        ]
        assert dataset.ids[1:] == read_split(root, "2012", "trainval")
        other_way = VOCDetection(root, [("2012", "trainval"), ("2007", "trainval")])
        assert [name for _, name in other_way.ids] == ["b", "c", "a"]

    def test_an_item(self, tmp_path):
        folder = make_folder(tmp_path)
        dataset = open_train(folder, transform=BaseTransform(300, (104, 117, 123)))
        image, target, height, width = dataset.pull_item(0)
        expected = BaseTransform(300, (104, 117, 123))(cv2.imread(str(folder / "JPEGImages" / "a.jpg")))[0]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected[:, :, ::-1])  # RGB
        assert (image.dtype, target.dtype) == (torch.float32, np.float32)
        assert np.allclose(target, ROWS)
        assert (height, width) == (80, 100)
        assert torch.equal(dataset[0][0], image)

    def test_without_a_transform_as_in_the_lineage(self, tmp_path):
        """uint8, BGR, and the list of rows."""
        dataset = open_train(make_folder(tmp_path))
        image, target, height, width = dataset.pull_item(0)
        assert image.dtype == torch.uint8
        assert np.array_equal(image.permute(1, 2, 0).numpy(), dataset.pull_image(0))
        assert isinstance(target, list)
        assert np.allclose(target, ROWS)
        assert (height, width) == (80, 100)

    def test_the_lineages_other_accessors(self, tmp_path):
        folder = make_folder(tmp_path)
        dataset = open_train(folder)
        image = cv2.imread(dataset._imgpath % dataset.ids[0])
        assert np.array_equal(dataset.pull_image(0), image)
        tensor = dataset.pull_tensor(0)
        assert tensor.dtype == torch.float32
        assert np.array_equal(tensor.numpy(), image[None])
        name, rows = dataset.pull_anno(0)
        assert name == "a"
        assert rows == [[10, 20, 60, 70, DOG], [50, 40, 80, 60, PERSON]]
        assert all(type(row[4]) is int for row in rows)
        assert ET.parse(dataset._annopath % dataset.ids[0]).getroot().findtext("filename") == "a.jpg"

    def test_a_foreign_target_transform_gets_the_xml_element(self, tmp_path):
        def whole_image(target, width, height):
            return [[0, 0, 1, 1, len(target.findall("object")), width, height]]

        dataset = open_train(make_folder(tmp_path), target_transform=whole_image)
        assert dataset.pull_item(0)[1] == [[0, 0, 1, 1, 3, 100, 80]]
        dataset.transform = BaseTransform(300, (104, 117, 123))
        assert dataset[0][1].tolist() == [[0, 0, 1, 1, 3]]

    def test_images_without_objects(self, tmp_path):
        make_voc(tmp_path, {"b": [], "c": OBJECTS["c"]}, split="train")
        for transform in (None, BaseTransform(300, (104, 117, 123)), SSDAugmentation()):
            dataset = open_train(tmp_path, transform=transform)
            images, targets = detection_collate([dataset[0], dataset[1]])
            assert [tuple(target.shape) for target in targets] == [(0, 5), (1, 5)]
            assert images.shape[0] == 2

    @pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".JPEG", ".png", ".PNG", ".bmp"])
    def test_other_suffixes_and_names_with_dots(self, tmp_path, suffix):
        folder = make_voc(tmp_path, {"IMG.0001.v2": OBJECTS["c"]}, split="train")
        (folder / "JPEGImages" / "IMG.0001.v2.jpg").unlink()
        write_image(folder / "JPEGImages" / f"IMG.0001.v2{suffix}", (30, 20))
        assert open_train(folder)[0][0].shape == (3, 20, 30)

    def test_byte_order_mark_and_empty_lines_in_a_split(self, tmp_path):
        folder = make_voc(tmp_path / "фото", {"犬": OBJECTS["a"], "c": []}, split="train")
        (folder / "ImageSets" / "Main" / "train.txt").write_bytes("\ufeff犬\r\n\r\nc  1\r\n".encode())
        assert [name for _, name in open_train(folder).ids] == ["犬", "c"]
        assert len(open_train(folder)[0][1]) == 2

    @pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xd8\xff\xe0", b"a\nb\x07\n"])
    def test_a_missing_empty_or_damaged_split(self, tmp_path, content):
        path = tmp_path / "ImageSets" / "Main" / "train.txt"
        if content is not None:
            write_split(tmp_path, "train", [])
            path.write_bytes(content)
        text = message(lambda: open_train(tmp_path))
        assert text.startswith(f"{path}: ")
        assert ("data/scripts" in text) == (content is None)

    @pytest.mark.parametrize("content", [None, b"not an image"])
    def test_a_missing_or_unreadable_image(self, tmp_path, content):
        folder = make_folder(tmp_path)
        path = folder / "JPEGImages" / "a.jpg"
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert str(path) in message(lambda: open_train(folder)[0])
