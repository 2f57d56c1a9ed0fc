"""The source itself: nothing that a file holds is run, expanded or handed to a shell."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OTHERS = ("venv", "scratch", "shared", "tests")  # folders in the root whose files aren't the product's
SOURCES = [path for path in ROOT.rglob("*.py") if not path.relative_to(ROOT).parts[0].startswith((".", *OTHERS))]
# exec, extractall, pickle, shelve, marshal, eval, the standard library's XML parsers, YAML, shells.
RULES = "S102,S202,S30,S31,S506,S602,S604,S605"
# For these, ruff has no rules.
TRUSTING = re.compile(
    r"\btorch\.load\((?![^()]*weights_only=True)|allow_pickle=(?!False)|\.extract\(|unpack_archive|__import__|joblib"
    r"|lxml|(?<![.\w])compile\(|torch\.hub\.load\((?!.*source=\"local\")"
)


def faults(paths):
    """Return a line for each place in Python files that trusts what it reads."""
    flags = ["--isolated", "--no-cache", "--ignore-noqa", "--exit-zero", "--quiet", "--output-format=concise"]
    command = [sys.executable, "-m", "ruff", "check", "--select", RULES, *flags, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    others = [f"{path}: {found[0]}" for path, text in texts.items() for found in TRUSTING.finditer(text)]
    return done.stdout.splitlines() + others


def test_no_call_trusts_what_it_reads():
    assert {"ssd.py", "checkpoint.py", "voc0712.py", "download.py", "state.py"} <= {path.name for path in SOURCES}
    assert faults(SOURCES) == []


def test_the_search_finds(tmp_path):
    lines = (
        "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)", "eval(text)",
        "pickle.loads(data)", "subprocess.run(command, shell=True)", "np.load(path, allow_pickle=True)",
        "ElementTree.parse(path)", "from lxml import etree", "tarfile.open(path).extractall(folder)",
    )  # fmt: skip
    imports = "import pickle, subprocess, tarfile\nfrom xml.etree import ElementTree\n"
    (tmp_path / "a.py").write_text(imports + "\n".join(lines))
    assert len(faults([tmp_path / "a.py"])) == len(lines)
