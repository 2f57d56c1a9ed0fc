"""Where memory runs out, batches become smaller and the run goes on; it is said in one line."""

import json
import resource
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import LIMIT, PROCESSES, start_server
from media import make_video
from synthetic import make_voc
from tiny import make_network

import eval as eval_script
import Object_Detection
from inference import Detector
from inference.engines.torch_engine import TorchEngine
from inference.memory import WithinMemory, is_out_of_memory
from utils.errors import InputError

ERRORS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "the CPU allocator": RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    "NumPy": MemoryError(),
    "C++": RuntimeError("std::bad_alloc"),
}


@pytest.fixture
def room_for(monkeypatch):
    """(number, error) -> sizes: the network refuses batches of more pictures; the list holds those it was asked for."""

    def room_for(number, error):
        compute, asked = TorchEngine.__call__, []

        def engine(self, pictures):
            asked.append(len(pictures))
            if len(pictures) > number:
                raise error
            return compute(self, pictures)

        monkeypatch.setattr(TorchEngine, "__call__", engine)
        return asked

    return room_for


@pytest.mark.parametrize("kind", ERRORS)
def test_a_detector_halves_its_batch(room_for, capsys, tried, kind):
    asked = room_for(2, ERRORS[kind])
    detector = Detector.of_network(*make_network(), precision="float32")
    frames = [np.full((40 + n, 30, 3), 90, np.uint8) for n in range(7)]
    found = detector(frames)
    assert asked == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert [len(one) for one in found] == [2] * 7
    np.testing.assert_allclose([one.boxes[0][3] for one in found], [0.94 * (40 + n) for n in range(7)], rtol=1e-3)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "note: memory doesn't suffice for 7 frames at a time: going on with 3",
        "note: memory doesn't suffice for 3 frames at a time: going on with 1",
    ]
    detector(frames)
    assert asked[9:] == [1] * 7
    tried(f"no memory for a batch, says {kind}", "smaller batches, and a note")


def test_not_even_one_fits(room_for, tried):
    room_for(0, ERRORS["the CPU allocator"])
    detector = Detector.of_network(*make_network(), precision="float32")
    with pytest.raises(InputError, match="memory doesn't suffice for a single one of the frames") as caught:
        detector([np.zeros((9, 9, 3), np.uint8)] * 4)
    assert "\n" not in str(caught.value)
    tried("no memory for a single frame", "one line")


@pytest.mark.parametrize("error", [RuntimeError("shapes don't fit"), ValueError("nothing"), KeyboardInterrupt()])
def test_other_errors_are_left_alone(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        WithinMemory(lambda items: (_ for _ in ()).throw(error))([1, 2])


def test_threads_that_fail_together_halve_once(capsys):
    together = threading.Barrier(3)

    def refuse(items):
        if len(items) == 8:
            together.wait(20)
            raise MemoryError
        return items

    within = WithinMemory(refuse)
    results = [None] * 3
    threads = [
        threading.Thread(target=lambda n=n: results.__setitem__(n, within(list(range(n, n + 8))))) for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == [list(range(n, n + 8)) for n in range(3)]
    assert within.most == 4
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_failures_memory_is_free_before_the_next_attempt():
    """The exception's traceback holds the frames of the calls, and these their tensors."""
    held_before = []

    def compute(items):
        assert not any(reference() for reference in held_before)
        tensor = torch.zeros(len(items))
        held_before.append(weakref.ref(tensor))
        if len(items) > 1:
            raise MemoryError
        return items

    assert WithinMemory(compute)([1, 2, 3]) == [1, 2, 3]
    assert len(held_before) == 4


def test_detection_and_evaluation_go_on(tmp_path, monkeypatch, room_for, checkpoint, capsys, tried):
    monkeypatch.chdir(tmp_path)
    asked = room_for(1, ERRORS["CUDA"])
    make_video(tmp_path / "in.mp4", frames=6)
    script = Object_Detection.get_args_parser().parse_args
    Object_Detection.main(
        script(f"in.mp4 --batch_size 4 --device cpu --trained_model {checkpoint} --json f.jsonl".split())
    )
    said = capsys.readouterr()
    assert max(asked) == 4
    assert "dog 6" in said.out
    assert said.err.count("note: memory doesn't suffice for 4 frames at a time: going on with 2") == 1
    tried("no memory for a batch, in detection", "smaller batches, and a note")

    pictures = make_voc(tmp_path / "mine", {f"p{n}": [("dog", (5, 5, 60, 60), 0)] for n in range(5)})
    flags = f"--dataset {pictures} --trained_model {checkpoint} --device cpu --batch_size 5 --save_folder report"
    content = eval_script.main(eval_script.get_args_parser().parse_args(flags.split()))
    assert content["voc"]["devkit"]["classes"]["dog"]["detections"] == 5
    assert capsys.readouterr().err.count("note: memory doesn't suffice for 5 frames at a time: going on with 2") == 1
    tried("no memory for a batch, in evaluation", "smaller batches, and a note")


def detect_in_little_memory(checkpoint, room, report):
    """In a process of its own: detect in 64 frames within so many more bytes of address space; note what came out."""
    torch.set_num_threads(1)
    detector = Detector(checkpoint, device="cpu", precision="float32")
    frames = [np.zeros((60, 80, 3), np.uint8)] * 64
    detector(frames[:1])
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room,) * 2)
    found = [one.names for one in detector(frames)]
    report.write_text(json.dumps([found, detector._within_memory.most]))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space as it says")
def test_a_real_limit(tmp_path, checkpoint, tried):
    """The first layer's input and output for 64 pictures alone are more than there is."""
    start_server()
    process = PROCESSES.Process(target=detect_in_little_memory, args=(checkpoint, 140 * 2**20, tmp_path / "report"))
    process.start()
    process.join(LIMIT)
    assert process.exitcode == 0
    found, most = json.loads((tmp_path / "report").read_text())
    assert found == [["dog", "person"]] * 64
    assert 1 <= most < 64
    tried("little address space", "smaller batches")
