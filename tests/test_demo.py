"""The notebook runs from its first cell to its last."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

DEMO = Path(__file__).resolve().parents[1] / "demo"


def test_the_notebook_runs():
    notebook = nbformat.read(DEMO / "demo.ipynb", as_version=4)
    stored = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(map(bool, stored)) >= 6  # it can be read without running it
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(DEMO)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    images = [output for output in outputs if "image/jpeg" in output.get("data", {})]
    assert len(images) == 4
