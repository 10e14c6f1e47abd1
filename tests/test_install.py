"""utils.install: what is missing, and that nothing which was there may change. pip itself is stood in for."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from utils import install
from utils.errors import MissingPackageError

HAVE = {"numpy": "2.1.3", "torch": "2.11.0+cpu", "ml-dtypes": "0.6.0"}


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    path = tmp_path / "requirements-training.txt"
    path.write_text(
        "# comment\nnumpy>=2  # reason\nonnx>=1.21,<1.22\nML_dtypes>=0.5\nold; python_version < '3'\n", "utf-8"
    )
    return path


class Pip:
    """Stands in for `subprocess.run` and for what is installed afterwards."""

    def __init__(self, after: dict[str, str], code: int = 0, stderr: str = "") -> None:
        self.versions, self.after = dict(HAVE), after
        self.code, self.stderr = code, stderr
        self.commands: list[list[str]] = []
        self.constraints = ""

    def run(self, command: list[str], **_: object) -> SimpleNamespace:
        self.commands.append(command)
        self.constraints = Path(command[command.index("--constraint") + 1]).read_text("utf-8")
        self.versions = self.after
        return SimpleNamespace(returncode=self.code, stdout="", stderr=self.stderr)

    def use(self, monkeypatch: pytest.MonkeyPatch) -> Pip:
        monkeypatch.setattr(subprocess, "run", self.run)
        monkeypatch.setattr(install, "installed_versions", lambda: self.versions)
        return self


def test_only_what_is_missing_or_outside_its_range_counts(requirements: Path) -> None:
    assert install.unsatisfied(requirements, HAVE) == ["onnx<1.22,>=1.21"]
    assert install.unsatisfied(requirements, {**HAVE, "onnx": "1.22.0"}) == ["onnx<1.22,>=1.21"]
    assert install.unsatisfied(requirements, {**HAVE, "onnx": "1.21.0"}) == []


def test_a_second_run_does_nothing(requirements: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip({}).use(monkeypatch)
    pip.versions["onnx"] = "1.21.0"
    done = install.install_requirements(requirements)
    assert not pip.commands
    assert "nothing was changed" in done.summary()


def test_what_is_there_is_held_and_what_was_added_is_listed(
    requirements: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip({**HAVE, "onnx": "1.21.0"}).use(monkeypatch)
    done = install.install_requirements(requirements)
    assert pip.constraints == "ml-dtypes==0.6.0\nnumpy==2.1.3\ntorch==2.11.0+cpu\n"
    assert (done.added, done.changed) == ({"onnx": "1.21.0"}, {})
    assert "Added 1 packages; changed 0" in done.summary()
    assert "onnx" in done._repr_html_()


@pytest.mark.parametrize(
    ("pip", "words"),
    [
        (Pip({**HAVE, "onnx": "1.21.0", "numpy": "2.2.0"}), "numpy 2.1.3 → 2.2.0.*Restart"),
        (Pip({k: v for k, v in HAVE.items() if k != "numpy"}), "numpy 2.1.3 → removed"),
        (Pip(HAVE, 1, "ERROR: No matching distribution found for onnx"), "(?s)beside what is there.*No matching"),
    ],
)
def test_changes_and_failures_are_errors(
    requirements: Path, monkeypatch: pytest.MonkeyPatch, pip: Pip, words: str
) -> None:
    pip.use(monkeypatch)
    with pytest.raises(MissingPackageError, match=words):
        install.install_requirements(requirements)


def test_installed_versions_are_normalised() -> None:
    versions = install.installed_versions()
    assert versions["packaging"]
    assert not [name for name in versions if name != install.normalised(name)]
