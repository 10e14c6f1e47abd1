"""training.ipynb, run from top to bottom on the bundled example with what it asks for; the long tests with Colab's versions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbclient
import pytest
from colab_runtime import colab_python, not_in_colab, training_requirements
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from notebook_runner import code_cells, copy_repository, execute, outputs, read, set_form

import utils.examples
from tests.browser.tiny_export import write_tiny_export
from utils.testing import GistServer
from utils.ui.decisions.training import TrainingForm
from utils.ui.state import WizardState

ID = "0123456789abcdef0123456789abcdef"
STEPS = 60
KILLED_WHEN_SAVED = """
import glob, os, signal, threading, time
def watch():
    while not glob.glob("wizard/runs/*/checkpoints/*.json"): time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
"""
"""The machine goes away just after the first checkpoint; nobody gets to tidy up."""


def settle(folder: Path, **changes: Any) -> None:
    """What a person chose in step 4 of the wizard and left at that."""
    WizardState(folder / "wizard").keep("training", TrainingForm(changes=changes))


def as_colab(tmp_path: Path) -> dict[str, Any]:
    """What `execute` needs for Colab's versions, and for what the install cell adds to them."""
    environ = {
        "TRANSFORMER_BUILDER_CACHE": str(tmp_path / "cache"),
        "BLOCKED_PACKAGES": not_in_colab(training_requirements()),
    }
    return {"python": colab_python(), "environ": environ, "seconds": 900}


def cell_of(notebook: NotebookNode, title: str) -> NotebookNode:
    """The code cell whose form has that title."""
    (found,) = (cell for cell in code_cells(notebook) if cell.source.startswith(f"#@title {title} {{"))
    return found


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


@pytest.mark.slow  # trains, samples and exports
def test_with_nobody_clicking_it_trains_samples_and_exports(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path / "checkout")
    settle(folder, max_steps=STEPS)
    notebook = execute(read("training.ipynb"), folder, **as_colab(tmp_path))
    shown = {cell.source.split(" {")[0].removeprefix("#@title "): outputs(cell) for cell in code_cells(notebook)}
    assert "nothing was changed" in shown["Install what training needs"]
    assert "bundled example" in shown["Choose the model"]
    assert "class PostNormTransformer" in shown["Read the code"]
    assert "bits per byte" in shown["Train"]
    assert "gradient_norm" in shown["See how it went"] and "not recorded" not in shown["See how it went"]
    assert shown["Sample"].startswith("The ")
    assert "466,273" in shown["By hand: text and tokenizer"] or "python-docs" in shown["By hand: text and tokenizer"]
    assert "learning_rate" in shown["By hand: configure"]
    assert shown["By hand: train"] == shown["Train"].split("VBox")[-1] or "bits per byte" in shown["By hand: train"]
    assert "onnx" in shown["Export"]
    assert "run.zip" in shown["Take it home"] and "holds everything" in shown["Take it home"]
    assert "Nothing was mirrored" in shown["Put Drive away"]
    assert {path.name for path in (folder / "exports" / "run").glob("*.onnx")} == {"model.onnx", "model_int8.onnx"}
    assert (folder / "exports" / "run" / "selftest.py").is_file()


def until_trained(extra: str = "") -> NotebookNode:
    """The notebook up to the cell that trains a tiny model, and then the final loss to its last digit."""
    notebook = set_form(read("training.ipynb"), GIST_ID="tiny/model.py")
    last = notebook.cells.index(cell_of(notebook, "Train"))
    notebook.cells = notebook.cells[: last + 1]
    if extra:
        notebook.cells.insert(last, new_code_cell(extra))
    notebook.cells.append(new_code_cell("print('final loss', repr(result['final_loss']), len(result['loss_history']))"))
    return notebook


@pytest.mark.slow  # three notebooks, each with a training
def test_killed_in_mid_training_the_next_run_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Run all, kill -9 once something is saved, Run all: the same final loss, to the last digit."""
    losses = {}
    for name in ("undisturbed", "killed"):
        folder = copy_repository(tmp_path / name)
        write_tiny_export(folder / "tiny")
        settle(folder, max_steps=100, save_every_n_steps=10)
        if name == "killed":
            with pytest.raises(nbclient.exceptions.DeadKernelError):
                execute(until_trained(KILLED_WHEN_SAVED), folder, **as_colab(tmp_path))
            (run,) = (folder / "wizard" / "runs").glob("run_*")
            assert not (run / "manifest.json").exists(), "it was finished before it could be killed"
        notebook = execute(until_trained(), folder, **as_colab(tmp_path))
        losses[name] = re.findall(r"final loss (\S+)", outputs(notebook.cells[-1]))
    assert len(list((tmp_path / "killed" / "wizard" / "runs").glob("run_*"))) == 1, "it goes on in the same run"
    assert losses["killed"] == losses["undisturbed"]
