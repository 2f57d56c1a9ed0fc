"""Long runs take no more memory and no more files than short ones.

600 frames and 60 steps, or 20,000 frames and 2,000 steps with `--long`; each run is a process of its own.
"""

import gc
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from faulty_runs import run_script, start_server
from media import make_video
from synthetic import make_voc
from test_train import OBJECTS, SMALL
from training.run import Run

from inference.encoding import VideoWriter
from inference.planar import PlanarFrame

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory a process takes"),
]


def measure_every(calls, number, kind, report):
    """Patch a method, given as (class, name): at every `number`-th call, note what the process takes.

    kind: class whose living objects are counted. report: file that gets [memory in bytes, files, objects] a line.
    """
    owner, name = calls
    method, count = getattr(owner, name), 0

    def measured(*arguments, **named):
        nonlocal count
        count += 1
        if count % number == 0:
            gc.collect()
            memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            objects = sum(issubclass(type(one), kind) for one in gc.get_objects())
            with report.open("a") as file:
                file.write(json.dumps([memory, len(os.listdir("/proc/self/fd")), objects]) + "\n")  # noqa: PTH208
        return method(*arguments, **named)

    setattr(owner, name, measured)


def assert_flat(report, growth):
    """From the second measurement on, memory (by so many bytes), files and objects don't grow. Returns words on it."""
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert len(rows) >= 6
    memory, files, objects = zip(*rows[1:], strict=True)
    assert max(memory[1:]) - memory[0] < growth, rows
    assert max(files) <= files[0] + 2, rows
    assert max(objects) <= objects[0] + 40, rows
    return f"flat: {max(memory[1:]) / 2**20 - memory[0] / 2**20:+.0f} MB, files {max(files) - files[0]:+d}"


@pytest.fixture(scope="module", autouse=True)
def server():
    start_server()


def test_frames(tmp_path, request, checkpoint, tried):
    """A frame is 115 kB: were each kept, 450 of them would be 50 MB."""
    count = 20_000 if request.config.getoption("--long") else 600
    (tmp_path / "run").mkdir()
    make_video(tmp_path / "in.mp4", "320x240", frames=count)
    flags = f"{tmp_path / 'in.mp4'} --json found.jsonl --trained_model {checkpoint} --device cpu"
    measure = ((VideoWriter, "write"), count // 8, PlanarFrame, tmp_path / "report")
    ended = run_script("Object_Detection.py", flags, tmp_path / "run", prepare=(measure_every, measure))
    assert ended.code == 0, ended.err
    assert f"{count} frames" in ended.out
    ending = assert_flat(tmp_path / "report", 25 * 2**20)
    tried(f"{count} frames", ending)


def test_steps(tmp_path, request, tried):
    count = 2000 if request.config.getoption("--long") else 60
    pictures = make_voc(tmp_path / "pictures", OBJECTS, split="train")
    (tmp_path / "run").mkdir()
    flags = f"--dataset {pictures} --save_folder saved {SMALL} --max_iter {count} --print_every 5 --save_every 20"
    flags += f" --low_resolution_iter {count}"
    measure = ((Run, "step"), count // 8, torch.Tensor, tmp_path / "report")
    ended = run_script("train.py", flags, tmp_path / "run", prepare=(measure_every, measure))
    assert ended.code == 0, ended.err
    ending = assert_flat(tmp_path / "report", 25 * 2**20)
    tried(f"{count} steps of training", ending)
