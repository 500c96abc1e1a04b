"""The notebooks run from top to bottom, with less training than they are written for, and are stored without outputs."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def parameters(small_config, tmp_path):
    """The code that takes the place of the cell of parameters, by the name of the notebook."""
    network = {"backbone": small_config.backbone, "weights": small_config.weights}
    common = {"dataset": small_config.dataset, "image_size": 16, "cache_dir": str(tmp_path / "cache")}
    short = {"frozen": {"epochs": 2}, "fine_tune": {"epochs": 1}}
    variants = {"pretrained": network, "scratch": {"backbone": "small_cnn", "weights": "none"}}
    return {
        "1_explore_a_dataset": f"OPTIONS = {common | network!r}",
        "2_train_and_read_a_run": f"OPTIONS, RUN = {common | network | short!r}, {str(tmp_path / 'run')!r}",
        "3_pretrained_or_scratch": f"COMMON = {common | {'epochs': 1, 'frozen': {'epochs': 0}, 'inference_file': False}!r}\n"
        f"VARIANTS, RUNS = {variants!r}, {str(tmp_path / 'runs')!r}",
    }


LONG = "3_pretrained_or_scratch"  # its engine is that of `compare`


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.long] if path.stem == LONG else []) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs(path, parameters):
    notebook = nbformat.read(path, as_version=4)
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source = parameters[path.stem]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}}).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_stored_without_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert sum(len(cell.source.splitlines()) for cell in cells) < 60
    assert not any(word in cell.source for cell in cells for word in ("def ", "class ", "!pip", "parse("))
