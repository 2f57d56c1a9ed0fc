"""Small synthetic data sets in VOC, COCO and ILSVRC format, written into a test's tmp_path."""

import json
from xml.sax.saxutils import escape

import cv2
import numpy as np

ANNOTATION = """<annotation><filename>{name}.jpg</filename>
<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{name}</name>{difficult}<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>
<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def write(path, content):
    """Write text or bytes into a folder that need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_image(path, size=(100, 80), seed=0):
    """Write a smooth random image of size (width, height); a .JPEG is a JPEG, too."""
    coarse = np.random.RandomState(seed).randint(0, 256, (6, 8, 3), dtype=np.uint8)
    _, data = cv2.imencode(path.suffix.lower(), cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC))
    write(path, data.tobytes())


def write_annotation(folder, image_id, objects, size=(100, 80)):
    """Write folder/Annotations/<image_id>.xml.

    objects: (class name, (xmin, ymin, xmax, ymax), difficult); difficult None for an XML without that element.
    """
    text = ""
    for name, box, difficult in objects:
        element = "" if difficult is None else f"<difficult>{int(difficult)}</difficult>"
        text += OBJECT.format(name=escape(name), box=box, difficult=element)
    text = ANNOTATION.format(name=escape(image_id), width=size[0], height=size[1], objects=text)
    write(folder / "Annotations" / f"{image_id}.xml", text)


def write_split(folder, split, ids):
    write(folder / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{image_id}\n" for image_id in ids))


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
    files = {image_id: f"{image_id:012d}.jpg" for image_id in objects}
    content = {
        "images": [{"id": key, "file_name": file, "width": size[0], "height": size[1]} for key, file in files.items()],
        "annotations": [{"id": number, **row} for number, row in enumerate(annotations, start=1)],
        "categories": [{"id": category, "name": name} for category, name in categories.items()],
    }
    write(root / "annotations" / f"instances_{split}.json", json.dumps(content))
    for image_id, file in files.items() if images else ():
        write_image(root / "images" / split / file, size, image_id)
    return root


def make_ilsvrc(root, objects, split="train", size=(100, 80)):
    """Make the folders of the ILSVRC DET devkit, or add a split to them.

    objects: {image id: list as for write_annotation, with WordNet ids as names}; of train, the ids contain a folder.
    """
    folder = "val" if split.startswith("val") else split
    for seed, (image_id, entries) in enumerate(objects.items()):
        write_annotation(root, f"DET/{folder}/{image_id}", entries, size)
        write_image(root / "Data" / "DET" / folder / f"{image_id}.JPEG", size, seed)
    lines = [f"{image_id} {number}\n" for number, image_id in enumerate(objects, start=1)]
    write(root / "ImageSets" / "DET" / f"{split}.txt", "".join(lines))
    return root
