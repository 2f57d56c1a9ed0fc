"""VOC annotations, splits, COCO's JSON and detection files: trained on and scored, or refused by name."""

import json
from contextlib import suppress
from functools import partial
from xml.sax.saxutils import escape

import numpy as np
import pytest
from mutation import mutate_bytes, mutate_value
from synthetic import make_coco, make_voc

from metrics.evaluation import Scored, evaluate, read_detections
from metrics.ground_truth import open_evaluation_set
from metrics.report import summary, table
from metrics.voc import DetectionArrays
from training.check import check_images
from training.distributed import Ranks
from training.samples import open_images
from utils.errors import InputError

NUMBERS = b"1e999|-1|NaN|inf|1e38|1e39|99999999999999999999|0x10|1_0|\xc2\xb2||-0|.".split(b"|")
NUMBERS += [b"1" * 400, b"1" * 5000]
XML = b'<object> </object> <name> <bndbox> &amp; &#0; &#xD800; &x; <!-- <![CDATA[ <!DOCTYPE <?xml encoding="utf-16"?>'
JSON = b'null true [ ] { } " \\u0000 \\ud800 , "id": \xff'
BOX = {"xmin": 10, "ymin": 10, "xmax": 50, "ymax": 60}
CAT, DOG = {"name": "cat", "difficult": 0, "bndbox": BOX}, {"name": "dog", "difficult": 1, "bndbox": BOX}
ANNOTATION = {"size": {"width": 100, "height": 80}, "object": [CAT, DOG]}
RESULTS = [{"image_id": 1, "category_id": 3, "bbox": [11.5, 9.5, 40, 41], "score": 0.9}]
RESULTS += [{"image_id": 2, "category_id": 7, "bbox": [0, 0, 50, 50], "score": 0.25}]
ROWS = [b"000001 0.9 10 10 50 50\n000001 0.8 11.5 9 50 50\n000002 0.125 1e1 1 100 80\n", b"000001 1 1 1 2 2\n"]


@pytest.fixture
def voc(tmp_path):
    objects = {"000001": [("cat", (10, 10, 50, 50), 0)], "000002": [("person on a horse", (1, 1, 100, 80), None)]}
    return make_voc(tmp_path / "voc", objects)


@pytest.fixture
def coco(tmp_path):
    objects = {1: [(3, (10, 10, 40, 40), 0), (7, (5, 5, 60, 60), 1)], 2: [(3, (0, 0, 100, 80), 0)]}
    return make_coco(tmp_path / "coco", objects, {3: "cat", 7: "dog"})


def xml(value, tag="annotation"):
    """Write a tree of dicts and lists as XML."""
    if isinstance(value, list):
        return "".join(xml(item, tag) for item in value)
    inner = "".join(xml(item, key) for key, item in value.items()) if isinstance(value, dict) else escape(str(value))
    return f"<{tag}>{inner}</{tag}>"


def score(images, scored):
    evaluation = evaluate(images, scored, coco_metrics=True)
    "\n".join([table(evaluation), *summary(evaluation), *evaluation.notes]).encode()


def use(dataset, root=None):
    """Do what train.py and eval.py do with a data set, whose own objects are the detections."""
    with suppress(InputError):  # eval.py's, below, names the file
        check_images(*open_images(dataset, root, ["val2017" if root else "val"]), Ranks(), 1)
    images = open_evaluation_set(dataset, root)
    objects, _ = images.ground_truth(images.class_names)
    found = DetectionArrays(objects.images, objects.labels, np.linspace(1, 0.1, len(objects)), objects.boxes)
    score(images, Scored("itself", images.class_names, found, {}))


def test_annotations(voc, attack):
    folder = voc / "Annotations"
    seeds, tokens = [path.read_bytes() for path in folder.iterdir()], [*NUMBERS, *XML.split(), b"\xff\xfe", b"\0"]

    def make(rng):
        if rng.random() < 0.5:
            return mutate_bytes(rng, seeds, tokens)
        return xml(mutate_value(rng, ANNOTATION)).encode(errors="surrogatepass")

    attack("VOC annotation", folder / "000001.xml", make, lambda _: use(voc))


def test_splits(voc, attack):
    seeds = [b"000001\n000002\n", b"000001  1\n000002 -1\n", "\ufeff000001\r\n".encode()]
    tokens = [b"../../x", b"/etc/passwd", b"\0", b"\n", b"\xff", b" ", b"a" * 5000, "größe".encode(), b"000001", b"."]
    make = partial(mutate_bytes, seeds=seeds, tokens=tokens)
    attack("split", voc / "ImageSets" / "Main" / "val.txt", make, lambda _: use(voc), named=("val",))


def damaged_json(rng, value):
    if rng.random() < 0.5:
        return mutate_bytes(rng, [json.dumps(value).encode()], [*NUMBERS, *JSON.split()])
    return json.dumps(mutate_value(rng, value)).encode()


def test_coco_annotations(coco, attack):
    path = coco / "annotations" / "instances_val2017.json"
    make = partial(damaged_json, value=json.loads(path.read_text()))
    attack("COCO annotations", path, make, lambda _: use("COCO", coco), named=("val2017",))


def test_coco_results(coco, tmp_path, attack):
    images, make = open_evaluation_set("COCO", coco), partial(damaged_json, value=RESULTS)
    attack("COCO results", tmp_path / "results.json", make, lambda path: score(images, read_detections(path, images)))


def test_detection_files(voc, tmp_path, attack):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "det_val_dog.txt").write_text("000002 0.5 1 1 50 50\n")
    tokens = [*NUMBERS, b" ", b"\n", b"\t", b"\r", b"\x0c", b"\xff", b"000002", "\u2028".encode(), b"\0"]
    images = open_evaluation_set(str(voc), split="val", images=False)

    make = partial(mutate_bytes, seeds=ROWS, tokens=tokens)
    path, named = folder / "det_val_cat.txt", ("results",)
    attack("detection file", path, make, lambda _: score(images, read_detections(folder, images)), named)
