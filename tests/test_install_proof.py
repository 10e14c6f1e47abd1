"""Installing `requirements-training.txt` changes nothing that Colab ships: pip's own resolver against Colab's snapshots.

A snapshot is played by an environment that holds the metadata of its packages and none of their files; pip takes them
for installed, resolves, and reports what it would do. Needs an index, and downloads no package.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import packaging
import pytest
from notebook_runner import code_cells, read

from tests.colab_snapshots import Snapshot, newest, snapshots
from utils.install import normalised

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ROOT / "requirements-training.txt"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@functools.cache
def why_no_index() -> str:
    """Why pip cannot resolve here at all; empty where it can."""
    done = subprocess.run([*PIP, "index", "versions", "pytorch-lightning"], capture_output=True, text=True, timeout=120)
    return "" if done.returncode == 0 else (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]


@pytest.fixture
def index() -> None:
    if why_no_index():
        pytest.skip(f"no package index can be reached: {why_no_index()}")


def play(snapshot: Snapshot, folder: Path, with_pip: bool = False) -> Path:
    """An environment in which pip finds the snapshot's packages; returns its Python."""
    command = [snapshot.interpreter, "-m", "venv", *([] if with_pip else ["--without-pip"]), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    python = folder / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([str(python), "-c", ask], check=True, capture_output=True, text=True).stdout.strip())
    for name, version in snapshot.packages.items():
        if not any(packages.glob(f"{name.replace('-', '_')}-*.dist-info")):  # pip itself lies there already
            _write_metadata(packages / f"{name.replace('-', '_')}-{version}.dist-info", name, version)
    return python


def _write_metadata(folder: Path, name: str, version: str) -> None:
    folder.mkdir()
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    for file, content in (("METADATA", text), ("INSTALLER", "pip\n"), ("RECORD", "")):
        (folder / file).write_text(content, encoding="utf-8")


def planned(report: Path) -> dict[str, str]:
    """Name → version of what a pip report would install."""
    items = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {normalised(item["metadata"]["name"]): item["metadata"]["version"] for item in items}


def test_the_table_holds_twelve_whole_snapshots() -> None:
    table = {snapshot.name: snapshot for snapshot in snapshots()}
    assert len(table) == 12 and min(table) == "2025-10-13 cpu" and max(table) == "2026-08-19 gpu"
    assert all(len(snapshot.packages) > 600 for snapshot in table.values())
    newest = table["2026-08-19 cpu"]
    assert (newest.python, newest.packages["torch"], newest.packages["ipywidgets"]) == ("3.13", "2.11.0+cpu", "7.7.1")
    assert table["2026-07-14 gpu"].python == "3.12" and "absolufy-imports" not in newest.packages


@pytest.mark.slow  # asks an index for the metadata of about ten packages, twelve times
@pytest.mark.parametrize("snapshot", snapshots(), ids=lambda snapshot: snapshot.name.replace(" ", "-"))
def test_nothing_that_colab_ships_is_changed(snapshot: Snapshot, tmp_path: Path, index: None) -> None:
    python, report = play(snapshot, tmp_path / "colab"), tmp_path / "report.json"
    command = [*PIP, "--python", str(python), "install", "--dry-run", "--quiet", "--only-binary", ":all:"]
    command += ["--report", str(report), "-r", str(TRAINING)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    plan = planned(report)
    changed = {name: (snapshot.packages[name], plan[name]) for name in plan.keys() & snapshot.packages.keys()}
    assert not changed, f"changed preinstalled: {len(changed)}: {changed}"
    assert {"pytorch-lightning", "torchmetrics", "onnx", "onnxruntime", "onnxscript"} <= plan.keys()


@pytest.mark.slow  # makes an environment with pip, and resolves once
def test_the_install_cell_only_adds(tmp_path: Path, index: None) -> None:
    """The cell as it stands in the notebook, as a dry run in an environment with the newest snapshot's packages."""
    snapshot = newest()
    python = play(snapshot, tmp_path / "colab", with_pip=True)
    site = next((tmp_path / "colab" / "lib").glob("python*/site-packages"))
    shutil.copytree(Path(packaging.__file__).parent, site / "packaging")  # what the cell imports of Colab's packages
    cell = next(cell.source for cell in code_cells(read("training.ipynb")) if "install_requirements" in cell.source)
    program = (
        f"import os\nfolder = {str(ROOT)!r}\n{cell.rsplit(chr(10), 1)[0]}\nprint("
        + cell.rsplit("\n", 1)[1]
        + ".verdict)"
    )
    dry = {
        "PIP_DRY_RUN": "1",
        "PIP_ONLY_BINARY": ":all:",
        "PIP_REPORT": str(tmp_path / "report.json"),
        "PYTHONPATH": str(ROOT),
    }
    environ = {**os.environ, **dry}
    done = subprocess.run([str(python), "-c", program], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nothing was changed" in done.stdout
    plan = planned(tmp_path / "report.json")
    assert "onnx" in plan and not plan.keys() & snapshot.packages.keys()
