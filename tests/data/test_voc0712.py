"""VOC's folders: what is read from sound ones, and how faults are named."""

import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from synthetic import make_voc, write_annotation, write_image, write_split

from data import VOC_CLASSES, BaseTransform, SSDAugmentation, VOCAnnotationTransform, VOCDetection, detection_collate
from data.voc0712 import read_annotation
from utils.errors import InputError
from utils.images import read_bgr

DOG, PERSON = VOC_CLASSES.index("dog"), VOC_CLASSES.index("person")
OBJECTS = {
    "a": [("dog", (11, 21, 61, 71), 0), ("person", (1, 1, 101, 81), 1), ("person", (51, 41, 81, 61), None)],
    "b": [],
    "c": [("cat", (1, 1, 51, 41), 0)],
}


def folder_of(root, **changes):
    """A VOC folder with picture "a" alone; its annotation's text may be changed."""
    folder = make_voc(root, {"a": OBJECTS["a"]}, split="train")
    path = folder / "Annotations" / "a.xml"
    text = path.read_text()
    for old, new in changes.items():
        assert f"<{old}>" in text
        start, end = text.index(f"<{old}>"), text.index(f"</{old}>") + len(f"</{old}>")
        text = text[:start] + new + text[end:]
    path.write_text(text)
    return folder


def first_of(folder, **kwargs):
    return VOCDetection(folder, [("", "train")], **kwargs)


def message(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestAnnotations:
    def test_everything_is_read(self, tmp_path):
        annotation = read_annotation(folder_of(tmp_path) / "Annotations" / "a.xml")
        assert annotation.boxes.dtype == np.float32
        assert annotation.boxes.tolist() == [[11, 21, 61, 71], [1, 1, 101, 81], [51, 41, 81, 61]]
        assert annotation.names == ("dog", "person", "person")
        assert annotation.difficult.tolist() == [False, True, False]  # the last one's XML doesn't say
        assert (annotation.width, annotation.height) == (100, 80)

    def test_a_picture_without_objects(self, tmp_path):
        write_annotation(tmp_path, "none", [])
        annotation = read_annotation(tmp_path / "Annotations" / "none.xml")
        assert annotation.boxes.shape == (0, 4)
        assert annotation.difficult.shape == (0,)
        assert annotation.names == ()

    def test_parts_of_a_person_are_no_objects(self, tmp_path):
        """VOC's layout annotations nest <part> with a name and a box of its own."""
        part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
        folder = folder_of(tmp_path, difficult=part)
        annotation = read_annotation(folder / "Annotations" / "a.xml")
        assert annotation.names == ("dog", "person", "person")
        assert annotation.boxes[0].tolist() == [11, 21, 61, 71]

    def test_fractions_degenerate_and_outside_boxes_come_as_they_stand(self, tmp_path):
        boxes = [(1.5, 2.25, 30.75, 40), (50, 50, 50, 60), (60, 10, 40, 20), (-20, -5, 500, 400)]
        write_annotation(tmp_path, "a", [("dog", box, 0) for box in boxes])
        assert read_annotation(tmp_path / "Annotations" / "a.xml").boxes.tolist() == [list(box) for box in boxes]

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"name": ""}, "no name"),
            ({"name": "<name>  </name>"}, "no name"),
            ({"bndbox": ""}, "xmin"),
            ({"xmin": ""}, "xmin"),
            ({"ymax": "<ymax>tall</ymax>"}, "'tall'"),
            ({"ymax": "<ymax>nan</ymax>"}, "'nan'"),
            ({"ymax": "<ymax>inf</ymax>"}, "'inf'"),
            ({"ymax": f"<ymax>{'9' * 9999}</ymax>"}, "<ymax> is '999"),
            ({"difficult": "<difficult>maybe</difficult>"}, "'maybe'"),
            ({"width": "<width>wide</width>"}, "'wide'"),
            ({"object": "<object>"}, "not a readable VOC annotation"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_faults_name_the_file(self, tmp_path, changes, said):
        path = folder_of(tmp_path, **changes) / "Annotations" / "a.xml"
        text = message(lambda: read_annotation(path))
        assert str(path) in text
        assert said in text
        assert len(text) < 300 + len(str(path))

    @pytest.mark.parametrize(
        "content", [b"", b"plain text", b"<annotation>", b"\xff\xfe\x00<annotation/>", b"\x00" * 50]
    )
    def test_no_xml(self, tmp_path, content):
        path = tmp_path / "a.xml"
        path.write_bytes(content)
        assert str(path) in message(lambda: read_annotation(path))

    def test_an_entity_of_a_long_name(self, tmp_path):
        path, name = tmp_path / "a.xml", "x" * 9999
        path.write_text(f"<!DOCTYPE a [<!ENTITY {name} 'x'>]><annotation>&{name};</annotation>")
        assert len(message(lambda: read_annotation(path))) < 400 + len(str(path))

    def test_missing(self, tmp_path):
        assert str(tmp_path / "a.xml") in message(lambda: read_annotation(tmp_path / "a.xml"))

    def test_a_billion_laughs(self, tmp_path):
        """Ten entities, each ten times the one before: 10 GB if they were expanded."""
        entities = '<!ENTITY l0 "lolololol">'
        entities += "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
        path = tmp_path / "a.xml"
        path.write_text(f"<!DOCTYPE a [{entities}]><annotation><object><name>&l9;</name></object></annotation>")
        assert str(path) in message(lambda: read_annotation(path))

    def test_files_of_the_machine_are_not_read(self, tmp_path):
        path, secret = tmp_path / "a.xml", tmp_path / "secret"
        secret.write_text("hush")
        path.write_text(
            f'<!DOCTYPE a [<!ENTITY s SYSTEM "{secret.as_uri()}">]>'
            "<annotation><object><name>&s;</name></object></annotation>"
        )
        assert "hush" not in message(lambda: read_annotation(path))


class TestTransform:
    def test_fractions_from_0_and_classes(self, tmp_path):
        annotation = read_annotation(folder_of(tmp_path) / "Annotations" / "a.xml")
        rows = VOCAnnotationTransform()(annotation, 100, 80)
        assert np.allclose(rows, [[0.1, 0.25, 0.6, 0.875, DOG], [0.5, 0.5, 0.8, 0.75, PERSON]])
        assert isinstance(rows, list)

    def test_difficult_objects_on_request(self, tmp_path):
        annotation = read_annotation(folder_of(tmp_path) / "Annotations" / "a.xml")
        rows = VOCAnnotationTransform(keep_difficult=True)(annotation, 100, 80)
        assert np.allclose(rows[1], [0, 0, 1, 1, PERSON])
        assert len(rows) == 3

    def test_an_xml_element_as_in_the_lineage(self, tmp_path):
        path = folder_of(tmp_path) / "Annotations" / "a.xml"
        own = VOCAnnotationTransform()(read_annotation(path), 100, 80)
        assert VOCAnnotationTransform()(ET.parse(path).getroot(), 100, 80) == own

    def test_own_classes(self, tmp_path):
        annotation = read_annotation(folder_of(tmp_path) / "Annotations" / "a.xml")
        rows = VOCAnnotationTransform({"person": 0, "dog": 1})(annotation, 100, 80)
        assert [row[4] for row in rows] == [1, 0]

    def test_no_objects(self, tmp_path):
        write_annotation(tmp_path, "a", [])
        assert VOCAnnotationTransform()(read_annotation(tmp_path / "Annotations" / "a.xml"), 100, 80) == []


class TestDetection:
    def test_several_years_one_after_the_other(self, tmp_path):
        make_voc(tmp_path / "VOC2007", {"a": OBJECTS["a"]}, split="trainval")
        make_voc(tmp_path / "VOC2012", {"b": [], "c": OBJECTS["c"]}, split="trainval")
        dataset = VOCDetection(tmp_path)
        assert len(dataset) == 3
        assert dataset.ids == [
            (str(tmp_path / f"VOC{year}"), name) for year, name in (("2007", "a"), ("2012", "b"), ("2012", "c"))
        ]
        other_way = VOCDetection(tmp_path, [("2012", "trainval"), ("2007", "trainval")])
        assert [name for _, name in other_way.ids] == ["b", "c", "a"]

    def test_an_item(self, tmp_path):
        folder = folder_of(tmp_path)
        dataset = first_of(folder, transform=BaseTransform(300, (104, 117, 123)))
        image, target = dataset[0]
        expected = BaseTransform(300, (104, 117, 123))(cv2.imread(str(folder / "JPEGImages" / "a.jpg")))[0]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected[:, :, ::-1])  # RGB
        assert image.dtype == torch.float32
        assert np.allclose(target, [[0.1, 0.25, 0.6, 0.875, DOG], [0.5, 0.5, 0.8, 0.75, PERSON]])
        assert target.dtype == np.float32

    def test_the_lineages_other_ways_in(self, tmp_path):
        folder = folder_of(tmp_path)
        dataset = first_of(folder)
        assert np.array_equal(dataset.pull_image(0), cv2.imread(str(folder / "JPEGImages" / "a.jpg")))
        assert dataset.pull_tensor(0).shape == (1, 3, 80, 100)
        name, rows = dataset.pull_anno(0)
        assert name == "a"
        assert rows == [[10, 20, 60, 70, DOG], [50, 40, 80, 60, PERSON]]
        assert dataset.pull_item(0)[2:] == (80, 100)

    def test_pictures_without_objects(self, tmp_path):
        make_voc(tmp_path, {"b": [], "c": OBJECTS["c"]}, split="train")
        for transform in (None, BaseTransform(300, (104, 117, 123)), SSDAugmentation()):
            dataset = first_of(tmp_path, transform=transform)
            image, target = dataset[0]
            assert target.shape == (0, 5)
            images, targets = detection_collate([dataset[0], dataset[1]])
            assert [tuple(target.shape) for target in targets] == [(0, 5), (1, 5)]
            assert images.shape[0] == 2

    @pytest.mark.parametrize("ending", [".JPG", ".jpeg", ".JPEG", ".png", ".PNG", ".bmp"])
    def test_other_endings(self, tmp_path, ending):
        folder = folder_of(tmp_path)
        (folder / "JPEGImages" / "a.jpg").unlink()
        write_image(folder / "JPEGImages" / f"a{ending}", (30, 20))
        assert first_of(folder).pull_image(0).shape == (20, 30, 3)

    def test_picture_ids_with_dots(self, tmp_path):
        make_voc(tmp_path, {"IMG.0001.v2": OBJECTS["c"]}, split="train")
        assert first_of(tmp_path)[0][1].shape == (1, 5)
        (tmp_path / "JPEGImages" / "IMG.0001.v2.jpg").unlink()
        write_image(tmp_path / "JPEGImages" / "IMG.0001.v2.PNG", (30, 20))
        assert first_of(tmp_path).pull_image(0).shape == (20, 30, 3)

    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [((20, 30), np.uint8), ((20, 30, 4), np.uint8), ((20, 30), np.uint16), ((20, 30, 3), np.uint16)],
    )
    def test_grey_alpha_and_16_bit_pictures(self, tmp_path, shape, dtype):
        highest = np.iinfo(dtype).max
        pixels = (np.random.RandomState(0).rand(*shape) * highest).astype(dtype)
        path = tmp_path / "a.png"
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        image = read_bgr(path)
        assert (image.shape, image.dtype) == ((20, 30, 3), np.uint8)
        in_8_bits = pixels / highest * 255
        expected = in_8_bits[..., :3] if len(shape) == 3 else np.repeat(in_8_bits[..., None], 3, axis=2)
        assert abs(image - expected).max() <= 1

    def test_the_byte_order_mark_and_empty_lines_of_a_split(self, tmp_path):
        folder = make_voc(tmp_path, OBJECTS, split="train")
        split = folder / "ImageSets" / "Main" / "train.txt"
        split.write_bytes("\ufeffa\r\n\r\nc  1\r\n".encode())
        assert [name for _, name in first_of(folder).ids] == ["a", "c"]

    def test_names_beyond_latin(self, tmp_path):
        folder = make_voc(tmp_path / "фото", {"犬": OBJECTS["a"]}, split="train")
        assert first_of(folder)[0][1].shape == (2, 5)

    def test_default_root_is_the_lineages(self):
        from data import VOC_ROOT

        assert Path.home() / "data" / "VOCdevkit" == Path(VOC_ROOT)


class TestDetectionFaults:
    def test_missing_split(self, tmp_path):
        folder = folder_of(tmp_path)
        text = message(lambda: VOCDetection(folder, [("", "val")]))
        assert str(folder / "ImageSets" / "Main" / "val.txt") in text
        assert "data/scripts" in text

    def test_missing_root(self, tmp_path):
        assert str(tmp_path / "gone") in message(lambda: VOCDetection(tmp_path / "gone"))

    @pytest.mark.parametrize("content", ["", "\n \n"])
    def test_empty_split(self, tmp_path, content):
        folder = folder_of(tmp_path)
        (folder / "ImageSets" / "Main" / "val.txt").write_text(content)
        assert "val.txt" in message(lambda: VOCDetection(folder, [("", "val")]))

    def test_a_split_that_is_no_text(self, tmp_path):
        folder = folder_of(tmp_path)
        (folder / "ImageSets" / "Main" / "val.txt").write_bytes(b"\xff\xd8\xff\xe0")
        assert "val.txt" in message(lambda: VOCDetection(folder, [("", "val")]))

    def test_missing_picture(self, tmp_path):
        folder = folder_of(tmp_path)
        picture = folder / "JPEGImages" / "a.jpg"
        picture.unlink()
        assert str(picture) in message(lambda: first_of(folder)[0])

    @pytest.mark.parametrize(
        "content", [b"", b"no picture", b"\xff\xd8\xff\xe0\x00\x10JFIF", b"\x89PNG\r\n\x1a\n" + b"\x00" * 40]
    )
    def test_unreadable_picture(self, tmp_path, content):
        folder = folder_of(tmp_path)
        picture = folder / "JPEGImages" / "a.jpg"
        picture.write_bytes(content)
        assert str(picture) in message(lambda: first_of(folder)[0])

    def test_missing_annotation(self, tmp_path):
        folder = folder_of(tmp_path)
        write_split(folder, "train", ["a", "z"])
        write_image(folder / "JPEGImages" / "z.jpg")
        assert str(folder / "Annotations" / "z.xml") in message(lambda: first_of(folder)[1])

    @pytest.mark.parametrize(
        "way", [lambda dataset: dataset[0], lambda dataset: dataset.pull_anno(0)], ids=["item", "anno"]
    )
    def test_unknown_class(self, tmp_path, way):
        """Whichever way the annotation is asked for, the message names class and file."""
        folder = make_voc(tmp_path, {"a": [("unicorn", (1, 1, 50, 50), 0)]}, split="train")
        text = message(lambda: way(first_of(folder)))
        assert "'unicorn'" in text
        assert str(folder / "Annotations" / "a.xml") in text
