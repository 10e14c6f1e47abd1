"""training.ipynb, run from top to bottom on the bundled example with everything installed that it asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from notebook_runner import code_cells, copy_repository, execute, outputs, read, set_form

import utils.examples
from utils.testing import GistServer

ID = "0123456789abcdef0123456789abcdef"


def test_the_code_that_was_checked_is_read_and_built(tmp_path: Path) -> None:
    """The gist has moved on since template.ipynb checked it; the link that it gave still means what was checked."""
    example = {file.name: file.read_text(encoding="utf-8") for file in utils.examples.path().glob("*.*")}
    folder = copy_repository(tmp_path / "checkout")
    with GistServer({ID: example}) as server:
        environ = {"GITHUB_API_URL": server.url, "TRANSFORMER_BUILDER_CACHE": str(tmp_path / "cache")}
        environ |= {"GITHUB_TOKEN": ""}
        revision = server.revision(ID)
        notebook = set_form(read("training.ipynb"), GIST_ID=f"https://gist.github.com/{ID}/{revision}")
        notebook.cells = [c for c in notebook.cells if "install_requirements" not in c.source][:10]
        cells = code_cells(execute(notebook, folder, environ=environ))
    assert f"gist {ID}@{revision}" in outputs(cells[2]) and "class PostNormTransformer" in outputs(cells[2])
    assert "residual_0_output" in outputs(cells[3])


@pytest.mark.slow
def test_trains_samples_and_exports(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path / "checkout")
    environ = {"TRANSFORMER_BUILDER_CACHE": str(tmp_path / "cache")}
    cells = code_cells(execute(read("training.ipynb"), folder, environ=environ))
    assert "nothing was changed" in outputs(cells[1])
    assert "bundled example" in outputs(cells[2])
    assert "class PostNormTransformer" in outputs(cells[3])
    assert "bits per byte" in outputs(cells[6])
    assert "gradient_norm" in outputs(cells[7]) and "not recorded" not in outputs(cells[7])
    assert outputs(cells[8]).startswith("The ")
    assert "onnx" in outputs(cells[9])
    assert "run.zip" in outputs(cells[10]) and "holds everything" in outputs(cells[10])
    assert "Nothing was mirrored" in outputs(cells[11])
    assert {path.name for path in (folder / "exports" / "run").glob("*.onnx")} == {"model.onnx", "model_int8.onnx"}
    assert (folder / "exports" / "run" / "selftest.py").is_file()
