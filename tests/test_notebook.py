"""The notebook that the course asks for: it imports the package, runs the model, and shows its outputs."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "assignment.ipynb"
PICTURES = ("learning_curves", "augmentations", "confusion", "misclassified", "gradcam")
SMALL = """
RECIPE = "shapes.demo"
DATA_DIR = None
RATES = {"peak_lr": 0.05, "min_lr": 0.001}
SETTINGS = dict(train=200, test=60, width=2, batch_size=50, epochs=2, precision="fp32", **RATES)
"""


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def shown(notebook: Any, picture: str) -> list[bytes]:
    """Return the PNG images below the cell that draws a picture."""
    (cell,) = (cell for cell in notebook.cells if cell.source.startswith(f"run.{picture}()"))
    images = (output.get("data", {}).get("image/png") for output in cell.outputs)
    return [base64.b64decode(image) for image in images if image]


# The kernel's own sockets and event loop are not ours to keep tidy.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_the_notebook_runs_from_top_to_bottom_and_shows_its_pictures(tmp_path: Path) -> None:
    notebook = read()
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    assert 'RECIPE = "shapes.demo"' in parameters.source and '"cifar10.assignment"' in parameters.source
    parameters.source = SMALL
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for picture in PICTURES:
        assert shown(notebook, picture), picture
    assert (tmp_path / "runs" / "shapes.demo" / "report.html").is_file()


def test_the_first_cell_installs_in_colab_only_and_pins_the_torch_that_is_there() -> None:
    first = next(cell.source for cell in read().cells if cell.cell_type == "code")
    guard, install = first.index('find_spec("google.colab")'), first.index("%pip install")
    assert guard < install and '"torch=={torch_there}"' in first
    assert all(line.startswith("    ") for line in first[guard:].splitlines()[1:])


def test_the_notebook_is_committed_with_its_outputs() -> None:
    notebook = read()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for picture in (*PICTURES, "lr_finder"):
        assert shown(notebook, picture), picture
    assert NOTEBOOK.stat().st_size < 2_000_000
    assert str(Path.home()) not in NOTEBOOK.read_text(encoding="utf-8")
