"""All tests, in processes of their own: `python -m tests`, with pytest's options after it.

In two halves side by side, as on two cores they take little more than half the time so; and those of the engines by
themselves, since a process in which OpenVINO and NNCF ran after hundreds of other tests has ended without a word.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile

HERE = Path(__file__).parent
HALF = [HERE / name for name in ("data", "inference", "layers", "metrics", "fuzz", "faults")]
ENGINES = HERE / "inference" / "test_engines.py"


def pytest(options, paths, leave_out=(), **streams):
    """Start pytest."""
    command = [sys.executable, "-m", "pytest", *options, *paths, *(f"--ignore={path}" for path in leave_out)]
    return subprocess.Popen(command, cwd=HERE.parent, **streams)


def main(options):
    """Run all; returns 0 where all passed, as pytest does."""
    with TemporaryFile("w+") as said:
        beside = pytest(options, HALF, [ENGINES], stdout=said, stderr=subprocess.STDOUT)
        statuses = [pytest(options, [HERE], HALF).wait(), pytest(options, [ENGINES]).wait(), beside.wait()]
        said.seek(0)
        shutil.copyfileobj(said, sys.stdout)
    return next((status for status in statuses if status), 0)  # negative: the signal that ended a process


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
