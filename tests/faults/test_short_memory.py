"""Memory that runs out ends in one line that says to use a smaller batch, and a smaller batch fits."""

import sys

import pytest
from processes import limit_memory
from synthetic import make_voc
from test_train import SMALL

ROOM = 500 * 2**20  # the input and the output of the first layer alone are more for 256 images
SETTINGS = {
    "Object_Detection.py": "images/JPEGImages --output out --precision float32 --trained_model {checkpoint}",
    "eval.py": "--dataset images --save_folder report --precision float32 --trained_model {checkpoint}",
    "train.py": f"--dataset images --train_split val --save_folder run --max_iter 1 {SMALL}",
}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space as it says")
@pytest.mark.parametrize("script", SETTINGS)
def test_a_batch_that_does_not_fit(tmp_path, start, checkpoint, script):
    make_voc(tmp_path / "run" / "images", {f"p{n:03}": [("dog", (1, 1, 20, 20), 0)] for n in range(256)}, size=(24, 24))
    flags = f"{SETTINGS[script].format(checkpoint=checkpoint)} --device cpu --batch_size"
    limit = limit_memory, (ROOM,)
    large = start(script, f"{flags} 256", tmp_path / "run", prepare=limit, quick=False)
    large.assert_refused("out of memory", "--batch_size")
    small = start(script, f"{flags} 2", tmp_path / "run", prepare=limit).wait()
    assert small.code == 0, small.err
