"""training.ipynb, run from top to bottom on the bundled example with everything installed that it asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from notebook_runner import code_cells, copy_repository, execute, outputs, read


@pytest.mark.slow
def test_trains_samples_and_exports(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path / "checkout")
    environ = {"TRANSFORMER_BUILDER_CACHE": str(tmp_path / "cache")}
    cells = code_cells(execute(read("training.ipynb"), folder, environ=environ))
    assert "nothing was changed" in outputs(cells[1])
    assert "bundled example" in outputs(cells[2])
    assert "val/bits_per_byte" in outputs(cells[4])
    assert outputs(cells[5]).startswith("The ")
    assert "onnx" in outputs(cells[6])
    assert list((folder / "exports" / "run").glob("**/*.onnx"))
