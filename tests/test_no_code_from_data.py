"""The source itself: nothing that a file holds is run, expanded or handed to a shell."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
OTHERS = ("venv", "scratch", "shared")  # folders in the root that are not the project's
SOURCES = [path for path in ROOT.rglob("*.py") if not path.relative_to(ROOT).parts[0].startswith((".", *OTHERS))]
# Each would run or expand what it is given.
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load",
    "marshal.loads", "shelve.open", "joblib.load", "yaml.load", "os.system", "os.popen", "subprocess.getoutput",
    "subprocess.getstatusoutput", "torch.hub.load", "shutil.unpack_archive",
}  # fmt: skip


def faults(source, of_tests=False):
    """Yield a phrase for each call and import in a source that trusts what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom) and not of_tests:
            # The standard library's XML parser expands entities.
            line = ast.unparse(node)
            if re.search(r"\b(xml|lxml)\b", line) and line != "from xml.etree.ElementTree import ParseError":
                yield line
        if isinstance(node, ast.Call):
            name, keywords = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if f".{name}".endswith(".torch.load") and keywords.get("weights_only") != "True":
                yield f"line {node.lineno}: {name} without weights_only=True"
            if name in FORBIDDEN and not of_tests:
                yield f"line {node.lineno}: {name}"
            if {keywords.get("shell"), keywords.get("allow_pickle")} - {None, "False"}:
                yield f"line {node.lineno}: {name} with shell or allow_pickle"
            if name.endswith((".extractall", ".extract")) and "filter" not in keywords:
                yield f"line {node.lineno}: {name} without a filter"


def test_no_call_trusts_what_it_reads():
    assert {"ssd.py", "checkpoint.py", "voc0712.py", "download.py", "state.py"} <= {path.name for path in SOURCES}
    for path in SOURCES:
        found = list(faults(path.read_text(encoding="utf-8"), of_tests="tests" in path.parts))
        assert not found, f"{path}: {found}"


def test_the_search_finds():
    for source in (
        "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)", "eval(text)",
        "pickle.loads(data)", "subprocess.run(command, shell=True)", "np.load(path, allow_pickle=True)",
        "import xml.etree.ElementTree as ET", "from lxml import etree", "tarfile.open(path).extractall(folder)",
    ):  # fmt: skip
        assert len(list(faults(source))) == 1, source
