"""The notebooks run from top to bottom, on less than they are written for, and are stored without outputs."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


BUDGETS = {
    "2_train_and_read_a_run": ["--frozen.epochs", "2", "--fine-tune.epochs", "1"],
    "3_pretrained_or_scratch": ["--seeds", "1", "--epochs", "1"],
}


@pytest.fixture
def flags(small_config, tmp_path):
    return [
        "--dataset",
        small_config.dataset,
        "--backbone",
        small_config.backbone,
        "--weights",
        small_config.weights,
        "--image-size",
        "16",
        "--cache-dir",
        str(tmp_path / "cache"),
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, flags, tmp_path):
    smaller = f"FLAGS, BUDGET, RUN = {flags!r}, {BUDGETS.get(path.stem, [])!r}, {str(tmp_path / 'run')!r}"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = smaller
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}}).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_stored_without_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert sum(len(cell.source.splitlines()) for cell in cells) < 60
    assert not any(word in cell.source for cell in cells for word in ("def ", "class ", "!pip"))
