"""The Python examples of README.md and docs/api.md run, and the flags in docs/api.md are those of the script."""

import re
from pathlib import Path

import pytest
from clip_images import CLIP
from media import X264, ffmpeg

import Object_Detection
from utils.images import read_image

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
        assert names["rows"].shape == (1, 21, 200, 5)


def test_the_table_of_flags_is_complete():
    page = (ROOT / "docs" / "api.md").read_text()
    flags = {flag for action in Object_Detection.get_args_parser()._actions for flag in action.option_strings}
    assert flags - {"-h", "--help"} == set(re.findall(r"`(--\w+)", page.partition("| flag |")[2]))
