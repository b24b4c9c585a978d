from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import cookbook

NOTEBOOK = Path(cookbook.__file__).parent / "quickstart.ipynb"


def test_the_quickstart_notebook_runs(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TINKERLITE_QUICKSTART_MODEL", str(tiny_folder))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    root = Path(cookbook.__file__).parent.parent
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(root)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "reverse KL before:" in printed
    assert "reverse KL after one step:" in printed


def test_the_notebook_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
