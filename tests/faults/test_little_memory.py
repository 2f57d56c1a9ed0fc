"""If memory runs out, detection and evaluation end in one line that names --batch_size."""

import json
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import LIMIT, PROCESSES, start_server
from media import make_video
from synthetic import make_voc

import eval as eval_script
import Object_Detection
from inference import Detector
from utils.errors import InputError


def test_detection_and_evaluation_name_the_flag(tmp_path, monkeypatch, checkpoint, tried):
    def refuse(detector, images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Detector, "outputs", refuse)
    make_video(tmp_path / "in.mp4", frames=6)
    flags = f"in.mp4 --batch_size 4 --device cpu --trained_model {checkpoint}"
    with pytest.raises(InputError, match="out of memory with batch size 4; lower --batch_size"):
        Object_Detection.main(Object_Detection.get_args_parser().parse_args(flags.split()))
    tried("no memory for a batch, in detection", "one line")

    images = make_voc(tmp_path / "mine", {f"p{n}": [("dog", (5, 5, 60, 60), 0)] for n in range(5)})
    flags = f"--dataset {images} --trained_model {checkpoint} --device cpu --batch_size 5 --save_folder report"
    with pytest.raises(InputError, match="out of memory with batch size 5; lower --batch_size"):
        eval_script.main(eval_script.get_args_parser().parse_args(flags.split()))
    tried("no memory for a batch, in evaluation", "one line")


def detect_in_little_memory(checkpoint, room, report):
    """In a process of its own: detect in 64 images with `room` more bytes of address space, then in one."""
    torch.set_num_threads(1)
    detector = Detector(checkpoint, device="cpu", precision="float32")
    images = [np.zeros((60, 80, 3), np.uint8)] * 64
    detector(images[:1])
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room,) * 2)
    try:
        detector(images)
        message = None
    except InputError as error:
        message = str(error)
    report.write_text(json.dumps([message, detector(images[:1])[0].names]))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_a_real_limit(tmp_path, checkpoint, tried):
    """The first layer's input and output for 64 images exceed the limit; a single image still fits afterwards."""
    start_server()
    process = PROCESSES.Process(target=detect_in_little_memory, args=(checkpoint, 140 * 2**20, tmp_path / "report"))
    process.start()
    process.join(LIMIT)
    assert process.exitcode == 0
    message, names = json.loads((tmp_path / "report").read_text())
    assert message.startswith("out of memory with batch size 64; lower --batch_size")
    assert names == ["dog", "person"]
    tried("little address space", "one line")
