"""Small synthetic data sets in VOC, COCO and ILSVRC format, written into a test's tmp_path."""

import json
from xml.sax.saxutils import escape

import cv2
import numpy as np

ANNOTATION = """<annotation><filename>{name}.jpg</filename>
<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{name}</name>{difficult}<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>
<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def write_image(path, size=(100, 80), seed=0):
    """Write a smooth random image of size (width, height); a .JPEG is a JPEG, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.RandomState(seed).randint(0, 256, (6, 8, 3), dtype=np.uint8)
    _, data = cv2.imencode(path.suffix.lower(), cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC))
    path.write_bytes(data.tobytes())


def write_annotation(folder, image_id, objects, size=(100, 80)):
    """Write folder/Annotations/<image_id>.xml.

    objects: (class name, (xmin, ymin, xmax, ymax), difficult); difficult None for an XML without that element.
    """
    path = folder / "Annotations" / f"{image_id}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(
        OBJECT.format(
            name=escape(name),
            box=box,
            difficult="" if difficult is None else f"<difficult>{int(difficult)}</difficult>",
        )
        for name, box, difficult in objects
    )
    path.write_text(ANNOTATION.format(name=escape(image_id), width=size[0], height=size[1], objects=text))


def write_split(folder, split, ids):
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{image_id}\n" for image_id in ids))


def make_voc(folder, objects, split="val", size=(100, 80), images=True):
    """Make a folder in VOC format; objects: {image id: list as for write_annotation}."""
    for seed, (image_id, entries) in enumerate(objects.items()):
        write_annotation(folder, image_id, entries, size)
        if images:
            write_image(folder / "JPEGImages" / f"{image_id}.jpg", size, seed)
    write_split(folder, split, objects)
    return folder


def make_coco(root, objects, categories, *, split="val2017", size=(100, 80), images=True):
    """Make a folder in COCO format.

    objects: {image id: [(category id, (x, y, width, height), iscrowd)]}; categories: {category id: name}.
    """
    annotations = [
        {"image_id": image_id, "category_id": category, "bbox": list(box), "area": box[2] * box[3], "iscrowd": crowd}
        for image_id, entries in objects.items()
        for category, box, crowd in entries
    ]
    content = {
        "images": [
            {"id": image_id, "file_name": f"{image_id:012d}.jpg", "width": size[0], "height": size[1]}
            for image_id in objects
        ],
        "annotations": [{"id": number, **row} for number, row in enumerate(annotations, start=1)],
        "categories": [{"id": category, "name": name} for category, name in categories.items()],
    }
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    if images:
        for image_id in objects:
            write_image(root / "images" / split / f"{image_id:012d}.jpg", size, image_id)
    return root


def make_ilsvrc(root, objects, split="train", size=(100, 80)):
    """Make the folders of the ILSVRC DET devkit, or add a split to them.

    objects: {image id: list as for write_annotation, with WordNet ids as names}; of train, the ids contain a folder.
    """
    folder = "val" if split.startswith("val") else split
    for seed, (image_id, entries) in enumerate(objects.items()):
        write_annotation(root, f"DET/{folder}/{image_id}", entries, size)
        write_image(root / "Data" / "DET" / folder / f"{image_id}.JPEG", size, seed)
    path = root / "ImageSets" / "DET" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{image_id} {number}\n" for number, image_id in enumerate(objects, start=1)))
    return root
