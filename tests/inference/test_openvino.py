"""Engines: whatever runs the network, a Detector finds the same."""

import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from inference.engines import choose, packages, quantisation
from inference.engines.cache import kept
from lively import lively_checkpoint, lively_network

from inference import Detector
from inference.video import VideoReader
from utils.errors import InputError
from weights.catalogue import EMBEDDED

ROOT = Path(__file__).resolve().parents[2]


def needs(engine, *modules):
    missing = [name for name in ("onnx", engine, *modules) if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs requirements-engines.txt: {', '.join(missing)}")


OTHERS = [pytest.param(engine, marks=needs(engine)) for engine in ("onnxruntime", "openvino")]
ALL = ["torch", *OTHERS]
needs_openvino, needs_nncf = needs("openvino"), needs("openvino", "nncf")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return lively_checkpoint(tmp_path_factory.mktemp("weights") / "lively.pth")


def random_pictures(count, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (count, 300, 300, 3), np.uint8)


def as_rows(found):
    """Detections as [N, 6]: label (whole thousands), score, and corners in hundreds of pixels."""
    return np.column_stack([found.labels * 1e3, found.scores, found.boxes / 100])


def assert_same(one, other, share=0.99):
    """Each has its like among the others, in any order: close scores may change places, or decide a suppression."""
    for rows, others in ((as_rows(one), as_rows(other)), (as_rows(other), as_rows(one))):
        apart = np.abs(rows[:, None] - others[None]).max(axis=2)
        assert (apart.min(axis=1) < 1e-3).mean() >= share


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("engine", OTHERS)
def test_heads_agree_at_any_batch(engine, order):
    net, info = lively_network(channel_order=order)
    reference = choose("torch", "cpu", "float32").make(net, info)
    run = choose(engine, "cpu", "float32").make(net, info)
    for batch in (1, 3, 1):
        pictures = random_pictures(batch, seed=batch)
        with torch.inference_mode():
            expected = reference(pictures)
        for found, tensor in zip(run(pictures), expected, strict=True):
            assert found.shape == tensor.shape
            assert found.dtype == torch.float32
            assert (found - tensor).abs().max() < 1e-4 * tensor.abs().max()


@pytest.mark.parametrize("engine", OTHERS)
def test_an_answer_stays_as_it_is(engine):
    """The engine's own memory is used again for the next picture."""
    run = choose(engine, "cpu", "float32").make(*lively_network())
    first = run(random_pictures(1, seed=1))
    before = [tensor.clone() for tensor in first]
    run(random_pictures(1, seed=2))
    assert all(torch.equal(one, other) for one, other in zip(first, before, strict=True))


@pytest.mark.parametrize("engine", OTHERS)
def test_the_same_detections_on_the_bundled_clip(engine):
    with VideoReader(quantisation.SAMPLE) as reader:
        frames = list(reader)[10::60]
    settings = {"device": "cpu", "precision": "float32", "threshold": 0.02}
    expected = Detector(EMBEDDED, **settings)(frames)
    assert sum(map(len, expected)) > 50
    for found, reference in zip(Detector(EMBEDDED, **settings, engine=engine)(frames), expected, strict=True):
        assert_same(found, reference, share=0.97)


@pytest.mark.parametrize("engine", ALL)
def test_threads_may_share_a_detector(engine, checkpoint):
    detect = Detector(checkpoint, "cpu", "float32", 0.05, keep_top_k=100, engine=engine)
    batches = [list(random_pictures(1 + seed % 2, seed)) for seed in range(8)]
    expected = [detect(batch) for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(detect, batches))
    for one, other in zip(found, expected, strict=True):
        for mine, reference in zip(one, other, strict=True):
            assert len(reference) > 50
            assert_same(mine, reference, share=0.97)


@pytest.mark.parametrize("engine", OTHERS)
def test_what_a_detector_says_of_itself(engine, checkpoint):
    detect = Detector(checkpoint, precision="float32", engine=engine)
    assert detect.engine == engine
    assert detect.device == torch.device("cpu")  # "auto", too, where there is CUDA
    assert detect.dtype == torch.float32
    assert detect.size == 300
    assert detect.net.num_classes == 21
    assert detect([]) == []
    assert Detector(checkpoint, device="cpu").engine == "torch"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("engine", OTHERS)
def test_it_takes_as_many_threads_as_torch(engine, threads):
    net, info = lively_network()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        run = choose(engine, "cpu", "float32").make(net, info)
    finally:
        torch.set_num_threads(before)
    if engine == "openvino":
        assert run.compiled.get_property("INFERENCE_NUM_THREADS") == threads
    else:
        assert run.session.get_session_options().intra_op_num_threads == threads


# --- int8 and the cache ---------------------------------------------------------------------------------------------


@pytest.fixture
def quick_int8(monkeypatch):
    """Quantisation that takes no time and changes nothing; a list that grows at each."""
    calls = []
    monkeypatch.setattr(quantisation, "COUNT", 2)
    monkeypatch.setattr(quantisation, "quantise", lambda nncf, network, pictures: (calls.append(pictures), network)[1])
    return calls


def int8(checkpoint, **settings):
    return Detector(checkpoint, "cpu", "int8", 0.05, keep_top_k=100, engine="openvino", **settings)


@needs_nncf
@pytest.mark.slow
def test_int8_comes_close(cache):
    """Calibrated with as many pictures as a user's network is."""
    detect = int8(EMBEDDED)
    assert detect.dtype == torch.int8
    with VideoReader(quantisation.SAMPLE) as reader:
        pictures = np.stack([cv2.resize(frame, (300, 300)) for frame in list(reader)[::40]])
    loc, conf = detect._run(pictures)
    with torch.inference_mode():
        true_loc, true_conf = choose("torch", "cpu", "float32").make(detect.net, detect.info)(pictures)
    apart = (conf.softmax(-1) - true_conf.softmax(-1)).abs()
    assert apart.max() > 1e-3  # not float32 in disguise
    assert (apart > 0.05).float().mean() < 1e-3
    assert (loc - true_loc).abs().mean() < 0.1 * true_loc.abs().mean()
    # Offsets count where a prior shows an object; elsewhere they were never trained, and are large and arbitrary.
    shown = true_conf.softmax(-1)[..., 1:].amax(-1) > 0.3
    assert shown.sum() > 20
    assert (loc - true_loc)[shown].abs().mean() < 0.05 * true_loc[shown].abs().mean()
    heads = {f"{head}.{index}" for head in ("loc", "conf") for index in range(2, 6)}
    assert convolutions_in_float(*cache.glob("*.zip")) == {"vgg.0", *heads}


def convolutions_in_float(path):
    """Names of the layers of a kept network whose weights aren't int8."""
    import openvino

    with zipfile.ZipFile(path) as archive:
        xml, weights = (archive.read(name) for name in quantisation.FILES)
    network = openvino.Core().read_model(xml, openvino.Tensor(np.frombuffer(weights, np.uint8)))
    found = set()
    for node in network.get_ops():
        if node.get_type_name() != "Convolution":
            continue
        source = node.input_value(1).get_node()
        while source.get_type_name() != "Constant":  # what turns the numbers that are kept into the weights
            source = source.input_value(0).get_node()
        if source.get_element_type() != openvino.Type.i8:
            found.add(node.get_friendly_name().partition("/")[0])
    return found


@needs_nncf
def test_a_quantised_network_is_kept(checkpoint, quick_int8, cache, tmp_path):
    frames = list(random_pictures(1))
    first = int8(checkpoint)(frames)
    again = int8(checkpoint)(frames)
    assert len(quick_int8) == 1
    assert_same(first[0], again[0], share=1)
    int8(lively_checkpoint(tmp_path / "bgr.pth", channel_order="BGR"))
    assert len(quick_int8) == 2
    assert len(list(cache.glob("*.zip"))) == 2


@needs_nncf
@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "text", "folder"])
def test_a_damaged_file_is_replaced(damage, checkpoint, quick_int8, cache):
    int8(checkpoint)
    (path,) = cache.glob("*.zip")
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        middle = len(whole) // 2
        changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"cut": whole[:middle], "changed": changed, "empty": b"", "text": b"<html>"}[damage])
    assert len(int8(checkpoint)(list(random_pictures(1)))[0]) > 0
    assert len(quick_int8) == 2
    if damage != "folder":  # which nobody but its owner may take away
        int8(checkpoint)
        assert len(quick_int8) == 2


@needs_nncf
def test_calibration_with_own_pictures(checkpoint, quick_int8, tmp_path, capsys):
    for name, (picture,) in {"a.png": random_pictures(1), "b.png": random_pictures(1, seed=2)}.items():
        cv2.imwrite(str(tmp_path / name), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    int8(checkpoint, calibration=tmp_path)
    assert str(tmp_path) in capsys.readouterr().err
    np.testing.assert_array_equal(quick_int8[0], [random_pictures(1)[0], random_pictures(1, seed=2)[0]])
    int8(checkpoint)
    int8(checkpoint, calibration=tmp_path)
    assert len(quick_int8) == 2
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    int8(checkpoint, calibration=tmp_path)
    assert len(quick_int8) == 3


@needs_nncf
def test_calibration_pictures_that_cannot_be_used(checkpoint, tmp_path):
    with pytest.raises(InputError, match="holds no picture"):
        int8(checkpoint, calibration=tmp_path)
    with pytest.raises(InputError, match="--calibration .*none: no such folder"):
        int8(checkpoint, calibration=tmp_path / "none")
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"a\.jpg"):
        int8(checkpoint, calibration=tmp_path)


def test_calibration_pictures_of_the_clip(monkeypatch):
    monkeypatch.setattr(quantisation, "COUNT", 12)
    one, other = (np.stack(list(quantisation.sample_pictures(300))) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert one.shape == (12, 300, 300, 3)
    assert one.dtype == np.uint8
    assert one.std(axis=0).mean() > 30  # different ones


def test_where_nothing_can_be_kept(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "file"))
    assert kept("name", lambda: {"a": b"1"}) == {"a": b"1"}
    assert "not kept for the next time" in capsys.readouterr().err


def test_two_processes_make_it_once(tmp_path):
    """Both ask at once; one waits for what the other makes."""
    program = """
import sys, time
from pathlib import Path
from inference.engines.cache import kept

def make():
    with open("made", "a") as file:
        file.write("made\\n")
    time.sleep(0.5)
    return {"a": bytes(10**6)}

Path(f"ready{sys.argv[1]}").touch()
while len(list(Path().glob("ready*"))) < 2:
    time.sleep(0.01)
assert kept("name", make) == {"a": bytes(10**6)}
"""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"]
    running = [subprocess.Popen([*command, number], cwd=tmp_path) for number in "12"]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    assert (tmp_path / "made").read_text() == "made\n"
    (path,) = (tmp_path / "cache" / "engines").glob("*.zip")
    assert zipfile.ZipFile(path).namelist() == ["a"]


# --- what can't be had ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "precision", "lacking"),
    [
        ("onnxruntime", "auto", "onnx"),
        ("onnxruntime", "auto", "onnxruntime"),
        ("openvino", "auto", "openvino"),
        pytest.param("openvino", "int8", "nncf", marks=needs_openvino),
    ],
)
def test_a_missing_package(engine, precision, lacking, monkeypatch, tmp_path):
    if lacking == "onnxruntime":
        monkeypatch.setitem(sys.modules, "onnx", sys)
    if lacking == "openvino":
        monkeypatch.setitem(sys.modules, "onnx", sys)
    monkeypatch.setitem(sys.modules, lacking, None)
    with pytest.raises(InputError, match=f"{lacking} isn't installed: pip install -r requirements-engines.txt"):
        Detector(tmp_path / "none.pth", engine=engine, precision=precision)  # said before the weights are looked for


def test_a_broken_package(monkeypatch, tmp_path):
    (tmp_path / "broken_one.py").write_text("raise ImportError('libtbb.so.12: cannot open\\nshared object file')")
    (tmp_path / "lacking_one.py").write_text("import surely_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"broken_one is installed but can't be imported \(libtbb"):
        packages.require("broken_one")
    with pytest.raises(InputError, match=r"lacking_one is installed but.*surely_not_there"):
        packages.require("lacking_one")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "tensorrt"}, "--engine tensorrt: unknown; take torch, onnxruntime, openvino"),
        ({"precision": "int8"}, "--precision int8.*--engine openvino"),
        ({"engine": "onnxruntime", "precision": "int8"}, "--precision int8.*--engine openvino"),
        ({"engine": "onnxruntime", "precision": "bfloat16"}, "--precision bfloat16"),
        ({"calibration": "here"}, "--calibration here"),
        pytest.param({"engine": "openvino", "precision": "float16"}, "--precision float16", marks=needs_openvino),
        pytest.param({"engine": "openvino", "calibration": "here"}, "--calibration here", marks=needs_openvino),
        ({"engine": "onnxruntime", "device": "gpu"}, "--device gpu"),
    ],
)
def test_what_does_not_go_together(settings, message):
    with pytest.raises(InputError, match=message):
        Detector(EMBEDDED, **settings)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_cuda_is_for_torch(engine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=f"--engine {engine}: runs on the CPU only.*--engine torch"):
        Detector(EMBEDDED, device="cuda", engine=engine)


@needs_openvino
@pytest.mark.parametrize(("capable", "auto"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_keeps_the_accuracy(capable, auto, monkeypatch):
    import openvino

    class Core:
        def get_property(self, *_):
            return ["FP32", "INT8", *["BF16"] * capable]

    monkeypatch.setattr(openvino, "Core", Core)
    assert choose("openvino").dtype == auto
    assert choose("openvino", precision="float32").dtype == torch.float32
    if capable:
        assert choose("openvino", precision="bfloat16").dtype == torch.bfloat16
    else:
        with pytest.raises(InputError, match="--precision bfloat16: this CPU"):
            choose("openvino", precision="bfloat16")
