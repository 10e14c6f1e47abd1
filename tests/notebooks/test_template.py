"""template.ipynb, run from top to bottom: in a checkout, as in Colab, and with what people get wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import pytest
from colab_runtime import colab_python, not_in_colab
from nbformat.v4 import new_code_cell, new_notebook
from notebook_runner import code_cells, copy_repository, execute, git_clone_source, outputs, read, set_form

import utils.examples
from utils.testing import GistServer, rate_limited
from utils.tier2_advanced_analysis import TIER2

ID = "0123456789abcdef0123456789abcdef"
LIMITED = "a" * 32
NO_MODEL = "b" * 32
RISKY = "c" * 32
REPOSITORY = "https://github.com/transformer-builder/transformer-builder-colab"
PIP = re.compile(r"\bpip3?\b|ensurepip|\buv\b")
ABSENT = "pytorch_lightning,lightning,torchmetrics,onnx,onnxruntime,onnxscript,optuna,captum,accelerate"
"""What Colab does not ship, or people have removed: the notebook must not need it, whatever the versions of the rest.

The long tests run it with Colab's exact versions instead, and hide all that its snapshot does not list."""

VERDICT = re.compile(r"Tier 1 verdict:.*\d+ checks? (passed|failed)")


@pytest.fixture
def gists() -> Iterator[GistServer]:
    example = {file.name: file.read_text(encoding="utf-8") for file in utils.examples.path().glob("*.*")}
    risky = {**example, "model.py": example["model.py"] + '\nimport os\nos.system("touch it_ran")\n'}
    with GistServer({ID: example, LIMITED: example, NO_MODEL: {"notes.md": "no code"}, RISKY: risky}) as server:
        server.misbehave(LIMITED, rate_limited(time.time() + 1800))
        yield server


@pytest.fixture
def environ(gists: GistServer, tmp_path: Path) -> dict[str, str]:
    return {
        "BLOCKED_PACKAGES": ABSENT,
        "GITHUB_API_URL": gists.url,
        "TRANSFORMER_BUILDER_CACHE": str(tmp_path / "cache"),
        "GITHUB_TOKEN": "",
    }


@pytest.fixture
def colab(environ: dict[str, str]) -> dict[str, Any]:
    """What `execute` needs for Colab's versions; torch stays the project's own."""
    return {"python": colab_python(), "environ": {**environ, "BLOCKED_PACKAGES": not_in_colab()}}


def started_commands(folder: Path) -> str:
    record = folder / "commands.txt"
    return record.read_text(encoding="utf-8") if record.exists() else ""


@pytest.mark.slow
def test_in_a_checkout_with_nothing_given(tmp_path: Path, colab: dict[str, Any], gists: GistServer) -> None:
    folder = copy_repository(tmp_path / "checkout")
    notebook = execute(read("template.ipynb"), folder, **colab)
    cells = code_cells(notebook)
    assert "bundled example" in outputs(cells[1])
    assert "class PostNormTransformer" in outputs(cells[2])
    assert "ONNX was not tried: onnx is not installed" in outputs(cells[5]) and "data:image/png" in outputs(cells[5])
    assert "nn.init.normal_(self.embedding_0_token.weight, std=0.02)" in outputs(cells[6])
    assert "model_mended.py" in outputs(cells[6]) and (folder / "model_mended.py").exists()
    assert "Tick LOOK_INSIDE" in outputs(cells[7])
    assert VERDICT.search(outputs(cells[-1]))
    assert 'href="training.ipynb"' in outputs(cells[-1])
    assert not gists.requests, "the bundled example needs nobody"
    assert not PIP.search(started_commands(folder)), "the notebook installs nothing"
    assert "git" not in started_commands(folder), "a checkout is not cloned"


@pytest.mark.slow  # the whole notebook once more
def test_as_in_colab_with_a_gist_in_the_form(tmp_path: Path, colab: dict[str, Any], gists: GistServer) -> None:
    colab["environ"] |= git_clone_source(tmp_path / "github", REPOSITORY)
    folder = tmp_path / "content"
    folder.mkdir()
    notebook = set_form(read("template.ipynb"), GIST_ID=f"https://gist.github.com/somebody/{ID}")
    cells = code_cells(execute(notebook, folder, colab=True, **colab))
    assert (folder / "transformer-builder" / "utils" / "notebook.py").exists()
    assert "the form field GIST_ID" in outputs(cells[1])
    assert f"gist {ID}@{gists.revision(ID)}" in outputs(cells[2])
    assert "residual_0_output" in outputs(cells[4])
    assert VERDICT.search(outputs(cells[-1]))
    link = "https://colab.research.google.com/github/transformer-builder/transformer-builder-colab/blob/main/training.ipynb"
    assert f'href="{link}#gist_id={ID}&amp;revision={gists.revision(ID)}"' in outputs(cells[-1])
    commands = started_commands(folder)
    assert "clone" in commands
    assert not PIP.search(commands), "the notebook installs nothing"


@pytest.mark.parametrize(
    ("gist_id", "message"),
    [
        ("f" * 32, "GistNotFoundError: "),
        (LIMITED, "GistRateLimitError: "),
        (NO_MODEL, "GistContentError: .*no model.py"),
        ("no such id!", "GistIdError: .*neither a gist id nor a gist URL"),
        (RISKY, "UntrustedCodeError: .*trust=True"),
    ],
)
def test_what_goes_wrong_is_one_message(tmp_path: Path, environ: dict[str, str], gist_id: str, message: str) -> None:
    folder = copy_repository(tmp_path / "checkout")
    notebook = read("template.ipynb")
    with pytest.raises(nbclient.exceptions.CellExecutionError) as failure:
        execute(notebook, folder, environ={**environ, "GIST_ID": gist_id})
    assert re.search(message, str(failure.value), re.DOTALL)
    failed = next(cell for cell in code_cells(notebook) if any(o.output_type == "error" for o in cell.outputs))
    (error,) = (o for o in failed.outputs if o.output_type == "error")
    assert "Traceback" not in "\n".join(error.traceback)
    assert len(error.traceback) == 1
    assert not (folder / "it_ran").exists()
    assert "class PostNormTransformer" in outputs(code_cells(notebook)[2]) or gist_id != RISKY, "risky code is shown"


@pytest.mark.parametrize("name", ["template.ipynb", "training.ipynb"])
def test_tools_that_cannot_be_fetched_are_one_line(tmp_path: Path, environ: dict[str, str], name: str) -> None:
    (tmp_path / "transformer-builder").mkdir()
    (tmp_path / "transformer-builder" / "stale").write_text("left by a clone that was stopped")
    notebook = read(name)
    notebook.cells = notebook.cells[:3]
    cell = code_cells(execute(notebook, tmp_path, colab=True, environ=environ, stop_at_error=False))[0]
    (error,) = (output for output in cell.outputs if output.output_type == "error")
    assert error.ename == "SystemExit"
    assert error.evalue.startswith(f"The tools could not be fetched from {REPOSITORY}: ")
    assert "already exists" in error.evalue and "\n" not in error.evalue
    assert "Traceback" not in outputs(cell)


@pytest.mark.slow  # both tiers, with the search for patches between them
def test_a_look_inside_shows_pictures(tmp_path: Path, colab: dict[str, Any]) -> None:
    folder = copy_repository(tmp_path / "checkout")
    notebook = set_form(read("template.ipynb"), LOOK_INSIDE=True)
    execute(notebook, folder, **colab)
    inside = outputs(code_cells(notebook)[7])
    assert all(check.name in inside for check in TIER2) and inside.count("data:image/png") >= 5


@pytest.mark.slow  # the whole notebook once more
def test_a_ticked_box_runs_risky_code(tmp_path: Path, environ: dict[str, str]) -> None:
    folder = copy_repository(tmp_path / "checkout")
    notebook = set_form(read("template.ipynb"), GIST_ID=RISKY, I_HAVE_READ_IT_AND_TRUST_ITS_AUTHOR=True)
    execute(notebook, folder, environ=environ)
    assert VERDICT.search(outputs(code_cells(notebook)[-1]))


def test_the_runner_has_no_network(tmp_path: Path) -> None:
    call = "import urllib.request; urllib.request.urlopen('http://example.org', timeout=5)"
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="this test allows no network"):
        execute(new_notebook(cells=[new_code_cell(call)]), tmp_path)


def test_the_runner_notices_pip(tmp_path: Path) -> None:
    call = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'pip', '--version'])"
    execute(new_notebook(cells=[new_code_cell(call)]), tmp_path)
    assert PIP.search(started_commands(tmp_path))
