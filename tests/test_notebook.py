"""The notebook that the course asks for imports the package and just runs the model."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "assignment.ipynb"
SMALL = """
RATES = {"peak_lr": 0.05, "min_lr": 0.001}
RECIPE = "shapes.demo"
DATA_DIR = None
SETTINGS = dict(train=200, test=60, width=2, batch_size=50, epochs=2, precision="fp32", **RATES)
"""


# The kernel's own sockets and event loop are not ours to keep tidy.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_the_notebook_runs_from_top_to_bottom_and_shows_its_pictures(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(parameters) == 1 and '"cifar10.assignment"' in parameters[0].source
    parameters[0].source = SMALL
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {
        cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code" and cell.outputs
    }
    for picture in ("learning_curves", "augmentations", "confusion", "misclassified", "gradcam"):
        shown = outputs[f"run.{picture}()"]
        assert any("image/png" in output.get("data", {}) for output in shown), picture
    assert (tmp_path / "runs" / "shapes.demo" / "report.html").is_file()


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
