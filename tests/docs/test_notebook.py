"""The notebook runs from its first cell to its last, at a reduced size, and is kept without outputs."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "quickstart.ipynb"


def cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_kept_without_outputs() -> None:
    for cell in cells(nbformat.read(NOTEBOOK, as_version=4)):
        assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
def test_all_its_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEAMCLIP_NOTEBOOK_QUICK", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in cells(notebook) for output in cell.outputs if "text" in output
    )
    assert "student: top-1" in printed
    assert [path.name for path in tmp_path.glob("runs/notebook-*/student/model")] == ["model"]
