"""benchmarks/run.py as a user runs it, in one stage."""

import json
import math
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def test_the_layers_are_measured_against_their_peers(tmp_path):
    flags = ["--device", "cpu", "--threads", "1", "--quick", "--only", "layers", "--output", tmp_path / "results.json"]
    command = [sys.executable, ROOT / "benchmarks" / "run.py", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["machine"]["threads"] == 1 and report["machine"]["torch"] == torch.__version__
    assert report["product_gflops"]["float32"] > 0
    rows = report["results"]
    names = [row["name"].partition(" (")[0].partition(", forward")[0] for row in rows]
    assert names == ["Detect, ordinary", "Detect, crowded"]
    for row in rows:
        assert row["stage"] == "layers" and row["name"] in done.stdout and row["peer"] in done.stdout
        assert math.isclose(row["ratio"], row["peer_ms"] / row["ours_ms"])
