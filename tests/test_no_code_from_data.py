"""The source itself: nothing that a file holds is run, expanded or handed to a shell."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not any(part.startswith(".") or part in ("venv", "tests", "scratch") for part in path.relative_to(ROOT).parts)
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
RUN_CODE = {"eval", "exec", "compile", "__import__"}
# Each would run or expand what it is given: module.function.
FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load",
    "yaml.load", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "torch.hub.load",
    "xml.etree.ElementTree.parse", "ElementTree.parse", "ET.parse", "minidom.parse", "shutil.unpack_archive",
}  # fmt: skip


def calls(path):
    """Yields (dotted name, ast.Call) of the calls in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def faults(path):
    """Yields a line for each call in a file that trusts what it reads."""
    for name, call in calls(path):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        where = f"{path.relative_to(ROOT)}:{call.lineno}: {name}"
        if name.endswith("torch.load") and keywords.get("weights_only") != "True":
            yield f"{where} without weights_only=True"
        if name in RUN_CODE or name in FORBIDDEN:
            yield where
        if keywords.get("shell", "False") != "False" or keywords.get("allow_pickle", "False") != "False":
            yield f"{where} with shell or allow_pickle"
        if name.endswith((".extractall", ".extract")) and "tar" in ast.unparse(call.func) and "filter" not in keywords:
            yield f"{where} without a filter"


def imports_of_xml(path):
    """Names that a file takes from the standard library's XML, which expands entities."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] in ("xml", "lxml"))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("xml", "lxml"):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_the_sources_are_found():
    assert {"ssd.py", "checkpoint.py", "voc0712.py", "download.py", "run_state.py"} <= {path.name for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_trusts_what_it_reads(path):
    assert list(faults(path)) == []
    assert set(imports_of_xml(path)) <= {"xml.etree.ElementTree.ParseError"}


def test_tests_load_weights_only():
    assert [line for path in TESTS for line in faults(path) if "weights_only" in line] == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "eval(text)",
        "pickle.loads(data)",
        "subprocess.run(command, shell=True)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_search_finds(tmp_path, monkeypatch, source):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "a.py").write_text(f"{source}\n")
    assert len(list(faults(tmp_path / "a.py"))) == 1
