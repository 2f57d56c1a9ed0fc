"""Object_Detection.py with several inputs at once, from everywhere, and with every kind of results."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from clip_images import CLIP
from fileserver import serve
from media import FFMPEG, X264, decode, ffmpeg, names
from tiny import DOG_BOX, DOG_SCORE, make_checkpoint

import Object_Detection
from inference.pipeline import Pipeline
from utils.errors import InputError
from utils.images import read_image, write_image

SCRIPT = Path(Object_Detection.__file__)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """v.mp4 of three frames, 000139.png, and tiny.pth, which finds a dog in each image."""
    folder = tmp_path_factory.mktemp("files")
    ffmpeg("-i", CLIP, "-frames:v", 3, "-vf", "scale=160:90", *X264, folder / "v.mp4")
    write_image(folder / "000139.png", np.full((30, 40, 3), 90, np.uint8))
    make_checkpoint(folder / "tiny.pth", threshold=0.8)
    return folder


def copies(source, *targets):
    for target in map(Path, targets):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def test_thirty_inputs_of_which_two_fail(run):
    copies("v.mp4", "a.mp4", "b/v.mp4")
    copies("000139.png", *(f"photos/{n}.png" for n in range(24)), "more/1.png")
    Path("broken.jpg").write_bytes(b"\xff\xd8 no image")
    inputs = ["v.mp4", "photos/*.png", "missing.mp4", "a.mp4", "broken.jpg", "b/v.mp4", "more"]
    code, out, err = run(*inputs, "--output", "out", "--json", "found.jsonl")
    assert code == 1
    assert [line[:19] for line in err.splitlines()] == ["error: missing.mp4:", "error: broken.jpg: "]
    expected = ["1_2.png", *(f"{n}.png" for n in range(24)), "a.mp4", "v.mp4", "v_2.mp4"]
    assert names("out") == sorted(expected)
    lines = [json.loads(line) for line in Path("found.jsonl").read_text().splitlines()]
    files = ["v.mp4"] * 3 + [f"photos/{n}.png" for n in sorted(range(24), key=str)]
    assert [line["file"] for line in lines] == [*files, *["a.mp4"] * 3, *["b/v.mp4"] * 3, "more/1.png"]
    assert "24 images; dog 24\n" in out
    assert out.endswith("output: out, found.jsonl\n")


def test_results_lie_beside_their_inputs_and_only_those_are_overwritten(run):
    copies("v.mp4", "b/w.avi")
    inputs = ["v.mp4", "b/w.avi", "000139.png"]
    for _ in range(2):
        assert run(*inputs)[0] == 0
        assert run("v.mp4", "--json", "found.jsonl")[0] == 0
    assert {"v_detections.mp4", "000139_detections.png", "output.mp4", "found.jsonl"} < set(names())
    assert names("b") == ["w.avi", "w.avi_detections.mp4"]
    for _ in range(2):  # the second time, a shell's pattern names the results of the first, too
        assert run(*(f"b/{name}" for name in names("b")))[0] == 0
    assert names("b") == ["w.avi", "w.avi_detections.mp4"]
    Path("output.mp4").write_bytes(b"mine")
    assert run("v.mp4")[0] == 2
    assert Path("output.mp4").read_bytes() == b"mine"
    assert run("v.mp4", "--overwrite")[0] == 0
    assert len(decode("output.mp4", (160, 90))) == 3


def test_one_of_several_names_and_a_name_without_suffix(run):
    """A missing file does not make the other one the only input; two files of one name have two results."""
    assert run("v.mp4", "missing.mp4")[0] == run("v.mp4", "missing.mp4", "--output", "a")[0] == 1
    assert run("v.mp4", "--output", "b")[0] == run("v.mp4", "v.mp4")[0] == 0
    assert run("v.mp4", "--no_video", "--output", "c")[0] == 0
    assert names("a") == names("b") == ["v.mp4"]
    assert {"v_detections.mp4", "v_2_detections.mp4", "a", "b"} <= set(names())
    assert not {"output.mp4", "c"} & set(names())


def test_a_result_that_cannot_be_written_does_not_end_the_run(run):
    copies("000139.png", "a/1.png", "a/2.png", "a/3.png")
    Path("a/2_detections.png").mkdir()
    copies("000139.png", f"b/{'長' * 82}.png")
    assert run("b", "--no_video")[0] == 0  # a result's name would be too long
    code, out, err = run("a", "b", "--json", "found.jsonl")
    assert (code, err.count("\n")) == (1, 2)
    assert "a/2_detections.png: not a regular file" in err
    assert out.startswith("network: ") and "\n2 images in " in out
    lines = [json.loads(line) for line in Path("found.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["a/1.png", "a/3.png"]


def test_a_folder_that_cannot_be_written_is_named_before_the_work(run, monkeypatch):
    copies("000139.png", "a/1.png")
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != "a")
    assert run("a")[::2] == (2, "error: a: this folder can't be written; choose another --output\n")


def test_what_a_failed_run_wrote_may_be_overwritten(run, monkeypatch):
    copies("000139.png", "in/a.png", "in/b.png")
    images = Pipeline.images

    def fail(self, sources, targets):
        images(self, sources[:1], targets[:1])
        raise InputError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "images", fail)
        assert run("in", "--output", "out")[0] == 2
    assert names("out") == ["a.png"]
    assert run("in", "--output", "out")[0] == 0


def test_recursive_keeps_the_folders(run):
    copies("000139.png", "in/a.png", "in/sub/a.png", "in/.hidden/a.png")
    copies("v.mp4", "in/sub/deep/v.mp4")
    (Path("in") / "notes.txt").write_text("no image")
    assert run("in", "--recursive", "--output", "out")[0] == 0
    found = {str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file()}
    assert found == {"a.png", "sub/a.png", "sub/deep/v.mp4"}
    for _ in range(2):  # what the first run wrote is no input of the second
        assert run("in", "--recursive", "--output", "in/out", "--crops", "in/crops")[0] == 0
    assert names("in/out") == ["a.png", "sub"]
    assert len(names("in/crops/dog")) == 5
    for _ in range(2):
        assert run("in/**/*.png", "--output", "in/out")[0] == 0
    assert names("in/out") == ["a.png", "a_2.png", "sub"]
    assert "2 images" not in run("in", "--output", "flat")[1]  # without the flag, the folder alone


def test_csv_coco_and_crops(run):
    copies("000139.png", "p/000139.png", "p/name.png")
    assert run("p", "--csv", "a.csv", "--coco", "a.json", "--crops", "crops", "--no_video")[0] == 0
    assert names("p") == ["000139.png", "name.png"]
    x1, y1, x2, y2 = box = np.multiply(DOG_BOX, [40, 30] * 2)
    header, *rows = csv.reader(io.StringIO(Path("a.csv").read_text()))
    assert header == ["file", "frame", "time", "label", "score", "x1", "y1", "x2", "y2"]
    assert [row[:4] for row in rows] == [["p/000139.png", "0", "", "dog"], ["p/name.png", "1", "", "dog"]]
    np.testing.assert_allclose([float(value) for value in rows[0][5:]], box, atol=0.3)
    first, second = json.loads(Path("a.json").read_text())
    assert (first["image_id"], second["image_id"], first["category_id"]) == (139, "name", 18)
    assert first["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.5)
    assert first["score"] == pytest.approx(DOG_SCORE, abs=0.01)
    assert names("crops") == [".crops", "dog"]
    assert names("crops/dog") == ["p_000139.png_0.jpg", "p_name.png_0.jpg"]
    copies("000139.png", "q/COCO_val2014_000000000042.png", "q/a b.png", "q/a_b.png")
    copies("000139.png", "q/a_b.png_2", "q/a~b.png", "q/a;b.png")
    assert run("q", "--coco", "b.json", "--crops", "crops2", "--no_video")[0] == 0
    ids = [one["image_id"] for one in json.loads(Path("b.json").read_text())]
    assert ids == [42, "a b", "a;b", "a_b", "a_b", "a~b"]
    assert len(names("crops2/dog")) == 6
    assert read_image("crops/dog/p_name.png_0.jpg").shape == (round(y2) - round(y1), round(x2) - round(x1), 3)
    assert run("v.mp4", "--crops", "crops", "--no_video")[0] == 0  # once more into the same folder
    assert "v.mp4_000002_0.jpg" in names("crops/dog")


def test_drawing_flags_and_quiet(run):
    sizes = {}
    for flags in ("--line_width 1", "--line_width 6", "--hide_labels", "--hide_scores"):
        code, out, _ = run("000139.png", "--quiet", *flags.split())
        assert (code, out) == (0, "")
        sizes[flags] = (read_image("000139_detections.png") != 90).any(axis=-1).sum()
    assert sizes["--line_width 1"] < sizes["--line_width 6"]
    assert sizes["--hide_labels"] < sizes["--hide_scores"]


def test_files_of_the_web(run):
    with serve(Path("v.mp4").read_bytes()) as video, serve(Path("000139.png").read_bytes(), "good", 404) as images:
        hosts = [f"127.0.0.1:{server.server_port}" for server in (video, images, images)]
        inputs = [f"http://{host}/{name}" for host, name in zip(hosts, ("v.mp4?key=1", "1.png", "no.jpg"), strict=True)]
        code, _, err = run(*inputs, "--json", "a.jsonl", "--crops", "crops")
    assert code == 1
    assert re.match(r"error: no\.jpg: can't be downloaded \(.*404", err.splitlines()[-1])
    assert {"v_detections.mp4", "1_detections.png"} < set(names())
    files = [json.loads(line)["file"] for line in Path("a.jsonl").read_text().splitlines()]
    assert files == [inputs[0]] * 3 + [inputs[1]]
    crops = [f"{hosts[1]}_1.png_0.jpg", *(f"{hosts[0]}_v.mp4_key_1_00000{frame}_0.jpg" for frame in range(3))]
    assert names("crops/dog") == sorted(f"http_{name.replace(':', '_')}" for name in crops)


def test_stdin(run):
    for name, result in (("v.mp4", "output.mp4"), ("000139.png", "stdin_detections.jpg")):
        with Path(name).open("rb") as file:
            flags = ["--device", "cpu", "--trained_model", "tiny.pth"]
            done = subprocess.run([sys.executable, SCRIPT, "-", *flags], stdin=file, capture_output=True, check=True)
        assert f"output: {result}" in done.stdout.decode()
        assert Path(result).is_file()


def test_a_stream_ends_cleanly_when_its_server_goes_away(run):
    port = 18000 + hash(Path.cwd().parent.name) % 2000
    url = f"http://127.0.0.1:{port}/live"
    source = ["-re", "-stream_loop", "-1", "-i", CLIP, "-an", "-vf", "scale=160:90", *X264, "-g", "5", "-f", "mpegts"]
    server = subprocess.Popen([FFMPEG, "-v", "quiet", *map(str, source), "-listen", "1", url])
    threading.Timer(8, server.kill).start()
    code, out, err = run(url, "--json", "a.jsonl")
    server.wait()
    lines = Path("a.jsonl").read_text().splitlines()
    assert (code, json.loads(lines[0])["file"]) == (0, url)
    assert f"{url} gives no more frames after {len(lines)} frames" in err
    assert len(decode("output.mp4", (160, 90))) >= len(lines) > 5


def test_two_processes_share_the_images_of_a_folder(run):
    """In unequal shares: an image that can't be read, and a video. The report covers both processes."""
    images = [f"{n}.png" for n in sorted(range(1, 50), key=str)]
    copies("000139.png", *(f"p/{name}" for name in images))
    Path("p/0.png").write_bytes(b"no image")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", SCRIPT, "p"]
    flags = ["v.mp4", "--output", "out", "--json", "a.jsonl", "--device", "cpu", "--trained_model", "tiny.pth"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("network: ")) == (1, 1)
    assert names("out") == [*images, "v.mp4"]
    lines = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [*(f"p/{name}" for name in images), *["v.mp4"] * 3]
    assert [line["frame"] for line in lines] == [*range(49), *range(3)]
    assert sum(map(int, re.findall(r"; dog (\d+)", done.stdout))) == 52
