"""Run a notebook headless, as plain Jupyter or as Colab would: own kernelspec, no network, forms filled as a person would.

Leaves to the tests: what should come out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import nbclient
import nbformat
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COLAB_ENVIRONMENT = {
    "COLAB_RELEASE_TAG": "release-colab-external-images_20260817",
    "COLAB_NOTEBOOK_ID": "fileId=https%3A%2F%2Fgithub.com%2Fsomebody%2Fa-repository%2Fblob%2Fmain%2Ftemplate.ipynb",
}


def read(name: str) -> NotebookNode:
    """A notebook of the repository."""
    return nbformat.read(ROOT / name, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Its code cells in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def set_form(notebook: NotebookNode, **values: object) -> NotebookNode:
    """Fill form fields (`NAME = …  #@param`) as a person would; each must be there exactly once."""
    for name, value in values.items():
        pattern = re.compile(rf"(?m)^({name}\s*=\s*).*?(\s*#\s*@param.*)$")
        hits = 0
        for cell in code_cells(notebook):
            cell.source, count = pattern.subn(lambda match, value=value: f"{match[1]}{value!r}{match[2]}", cell.source)
            hits += count
        assert hits == 1, f"form field {name}: found {hits} times"
    return notebook


def outputs(cells: NotebookNode | Iterable[NotebookNode]) -> str:
    """All text that the cells' outputs show."""
    cells = [cells] if isinstance(cells, NotebookNode) else cells
    parts = []
    for cell in cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            parts += [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
            parts += output.get("traceback", [])
    return "\n".join(part for part in parts if part)


def execute(
    notebook: NotebookNode,
    folder: Path,
    *,
    colab: bool = False,
    environ: dict[str, str] | None = None,
    stop_at_error: bool = True,
    seconds: int = 240,
    python: str = os.environ.get("NOTEBOOK_PYTHON", sys.executable),
) -> NotebookNode:
    """Run all cells in `folder` and return the notebook with its outputs.

    A cell may take `seconds`. Set NOTEBOOK_PYTHON to run the kernel in another environment, for example one with Colab's package versions.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed and `stop_at_error` is set.
    """
    kernels = folder / ".jupyter"
    _write_kernelspec(kernels, python, colab, {"RECORD_COMMANDS": str(folder / "commands.txt"), **(environ or {})})
    client = nbclient.NotebookClient(
        notebook, timeout=seconds, kernel_name="under-test", resources={"metadata": {"path": str(folder)}}
    )
    client.allow_errors = not stop_at_error
    client.create_kernel_manager()
    client.km.kernel_spec_manager.kernel_dirs.insert(0, str(kernels / "kernels"))
    client.execute()
    return notebook


def _write_kernelspec(root: Path, python: str, colab: bool, environ: dict[str, str]) -> None:
    paths = [HERE / "offline"] + ([HERE / "fakecolab"] if colab else [])
    environ = {
        "PATH": f"{Path(python).parent}:{os.environ['PATH']}",  # commands of the notebook are the kernel's own
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "GIST_ID": "",
        **(COLAB_ENVIRONMENT if colab else {}),
        **environ,
    }
    command = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--HistoryManager.enabled=False"]
    command += ["--IPKernelApp.kernel_class=google.colab._kernel.Kernel"] if colab else []
    folder = root / "kernels" / "under-test"
    folder.mkdir(parents=True, exist_ok=True)
    spec = {"argv": command, "display_name": "under test", "language": "python", "env": environ}
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")


def copy_repository(folder: Path) -> Path:
    """A copy of what the notebooks need from the working tree, without caches."""
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / "utils", folder / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    for pattern in ("*.ipynb", "requirements*.txt", "pyproject.toml"):
        for file in ROOT.glob(pattern):
            shutil.copy(file, folder / file.name)
    return folder


def git_clone_source(folder: Path, repository: str) -> dict[str, str]:
    """Make a git copy of the working tree and return the environment under which `git clone repository` takes it."""
    owner, name = repository.rsplit("/", 1)
    copy = copy_repository(folder / name)
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "a copy"]):
        subprocess.run(["git", "-C", str(copy), *identity, *command], check=True, capture_output=True)
    return {
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": f"url.file://{folder}/.insteadOf",
        "GIT_CONFIG_VALUE_0": f"{owner}/",
        "GIT_CONFIG_KEY_1": "safe.directory",
        "GIT_CONFIG_VALUE_1": "*",
        "GIT_TERMINAL_PROMPT": "0",
    }
