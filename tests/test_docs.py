"""What the documentation shows: the examples of README.md and docs/api.md, the flags, torch.hub, the notebook."""

import re
from pathlib import Path

import nbformat
import pytest
import torch
from checks import refused
from clip_images import CLIP
from media import X264, ffmpeg
from nbclient import NotebookClient

import Object_Detection
from utils.images import read_image
from weights import EMBEDDED

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_examples_run(page, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    assert blocks
    for path in (*ROOT.glob("*.py"), ROOT / "weights"):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    ffmpeg("-i", CLIP, "-frames:v", 3, *X264, "clip.mp4")
    ffmpeg("-i", CLIP, "-frames:v", 1, "photo.jpg")
    names = {"image": read_image("photo.jpg")}
    exec("\n".join(blocks), names)
    if page == "docs/api.md":
        assert "cat" in names["detections"].names
        assert (read_image("found.jpg") != names["image"]).any()
        assert (names["net"].training, names["rows"].shape) == (False, (1, 21, 200, 5))


def test_the_table_of_flags_is_complete():
    page = (ROOT / "docs" / "api.md").read_text()
    flags = {flag for action in Object_Detection.get_args_parser()._actions for flag in action.option_strings}
    assert flags - {"-h", "--help"} == set(re.findall(r"`(--\w+)", page.partition("| flag |")[2]))


def test_the_other_entry_points_of_torch_hub():
    def load(name, **settings):
        return torch.hub.load(str(ROOT), name, source="local", **settings)

    outputs = load("ssd512", phase="train", num_classes=4)(torch.zeros(1, 3, 512, 512))
    assert [output.shape for output in outputs] == [(1, 24564, 4), (1, 24564, 4), (24564, 4)]
    (found,) = load("detector", device="cpu", threshold=0.5)([torch.zeros(3, 40, 60, dtype=torch.uint8)])
    assert found.boxes.shape == (len(found), 4)
    refused("load it as ssd300", load, "ssd512", weights=str(EMBEDDED))


def test_the_notebook_runs():
    """From its first cell to its last. It can also be read without running it."""
    notebook = nbformat.read(ROOT / "demo" / "demo.ipynb", as_version=4)
    assert sum(bool(cell.get("outputs")) for cell in notebook.cells) >= 6
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "demo")}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 4
