"""The closing summary, and the lines of JSON."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from inference.records import JsonLines, Tally

from inference import Detections
from utils.errors import InputError


def found(*names):
    return Detections(np.zeros((len(names), 4)), np.ones(len(names)), np.zeros(len(names), int), list(names))


def test_the_summary_of_stages_that_take_turns():
    tally = Tally("read", "network")
    for names in (["dog", "cat"], ["dog"], [], []):
        tally.add(found(*names))
    tally.seconds.update(read=0.1, network=0.3)
    assert tally.lines(2.0, "picture") == [
        "4 pictures in 2.0 s (2.0 a second)",
        "objects: dog 2, cat 1",
        "milliseconds a picture: read 25.0, network 75.0",
    ]


def test_the_summary_of_stages_at_the_same_time():
    """A stage with several threads waits less for its sum of time: the slowest is who keeps its threads busiest."""
    tally = Tally("decode", "network", "draw", "encode")
    tally.add(found())
    tally.seconds.update(decode=0.02, network=0.06, draw=0.001, encode=0.04)
    tally.threads = {"decode": 1, "network": 2, "draw": 2, "encode": 1}
    _, objects, times = tally.lines(0.05)
    assert objects == "objects: none"
    assert times.startswith("milliseconds a frame: decode 20.0, network 60.0, draw 1.0, encode 40.0; they overlap ")
    assert times.endswith(" (network and draw on 2 threads), the slowest is encode")
    tally.seconds["network"] = 0.09
    assert tally.slowest == "network"
    tally.threads = dict.fromkeys(tally.threads, 1)
    assert tally.lines(0.05)[2].endswith("; they overlap, the slowest is network")


def test_times_of_several_threads_add_up():
    tally = Tally("network")

    def work(_):
        with tally.timing("network"):
            time.sleep(0.002)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(40)))
    assert tally.seconds["network"] >= 40 * 0.002


def test_time_counts_where_the_stage_fails():
    tally = Tally("network")
    with pytest.raises(ZeroDivisionError), tally.timing("network"):
        time.sleep(0.002)
        raise ZeroDivisionError
    assert tally.seconds["network"] >= 0.002


def test_lines_that_vanish_under_the_run_are_named(tmp_path):
    """As by a disk that was pulled out, or one that knows no permissions."""
    lines = JsonLines(tmp_path / "found.jsonl")
    lines._partial.unlink()
    with pytest.raises(InputError, match=r"found\.jsonl can't be written: No such file"), lines:
        lines.write(found("dog"), frame=0)
    assert list(tmp_path.iterdir()) == []
