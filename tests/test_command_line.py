"""Exit codes and messages of `python -m utils demo` and `validate`: 0 sound, 1 not passed, 2 an error, 130 interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import utils.__main__ as command_line
from utils.errors import ConfigError
from utils.ui import demo

pytestmark = pytest.mark.usefixtures("no_onnx_dry_run")
SOUND = """
import torch
from torch import nn

class Sound(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(32, 8)
        self.head = nn.Linear(8, 32)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.05)

    def forward(self, input_ids):
        return self.head(self.embedding(input_ids))
"""
UNSOUND = SOUND.replace("return self.head(", "return self.head(0 / 0 * ").replace("0 / 0", "float('nan')")
CONFIG = '{"vocab_size": 32, "max_seq_len": 16}'


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(SOUND, "utf-8")
    (tmp_path / "config.json").write_text(CONFIG, "utf-8")
    return tmp_path / "model.py"


def test_a_sound_model_is_0_and_its_page_is_written(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = model.parent / "new" / "report.html"
    assert command_line.main(["validate", str(model), "--html", str(page)]) == 0
    assert f"Report: {page}" in capsys.readouterr().out
    assert "gradient flow" in page.read_text("utf-8")


@pytest.mark.slow
def test_the_report_is_written_as_json_and_checks_run_in_a_process_of_their_own(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = model.parent / "report.json"
    arguments = ["validate", str(model), "--json", str(written), "--isolated", "--seconds-per-check", "90"]
    assert command_line.main(arguments) == 0
    assert f"JSON: {written}" in capsys.readouterr().out
    content = json.loads(written.read_text("utf-8"))
    assert content["passed"] is True and {check["status"] for check in content["checks"]} <= {"pass", "warn", "skip"}


def test_a_check_that_takes_too_long_is_1(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = "import time; time.sleep(2 * self.training * (input_ids.shape[0] == 4)); return self.head("
    model.write_text(SOUND.replace("return self.head(", slow), "utf-8")
    assert command_line.main(["validate", str(model), "--seconds-per-check", "1"]) == 1
    assert "did not end within 1 s" in capsys.readouterr().out


def test_a_model_that_does_not_pass_is_1(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.write_text(UNSOUND, "utf-8")
    assert command_line.main(["validate", str(model)]) == 1
    assert "checks failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no such id!", "neither a gist id nor a gist URL"),
        ("missing/model.py", "There is no file or folder"),
    ],
)
def test_a_source_that_cannot_be_had_is_2(source: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["validate", source]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_a_page_that_cannot_be_written_is_one_line_and_2(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["validate", str(model), "--html", str(model / "report.html")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(model) in errors[0]


def test_a_workspace_that_is_a_file_is_one_line_and_2(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["demo", "--workspace", str(model)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(model) in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: command"),
        (["dmeo"], "invalid choice: 'dmeo'"),
        (["validate"], "arguments are required: source"),
        (["validate", "m", "--seconds-per-check", "0"], "expected a positive number, such as 60; got '0'"),
        (["validate", "m", "--memory-limit-gb", "much"], "expected a positive number, such as 60; got 'much'"),
        (["demo", "--seconds", "abc"], "expected a positive number, such as 60; got 'abc'"),
        (["demo", "--seconds", "-1"], "expected a positive number, such as 60; got '-1'"),
        (["demo", "--seconds", "nan"], "expected a positive number, such as 60; got 'nan'"),
        (["demo", "--seconds", "inf"], "got 'inf'"),
    ],
)
def test_wrong_use_is_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command_line.main(arguments)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (None, 0, ""),
        (ConfigError("the text is too short"), 2, "error: the text is too short\n"),
        (OSError(28, "No space left on device", "runs/x"), 2, "error: [Errno 28] No space left on device: 'runs/x'\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_the_demo_ends_with(
    raised: BaseException | None,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[object] = []

    def walk(workspace: str, *, seconds: float, seed: int) -> SimpleNamespace:
        asked.extend([workspace, seconds, seed])
        if raised is not None:
            raise raised
        return SimpleNamespace()

    monkeypatch.setattr(demo, "run_demo", walk)
    assert command_line.main(["demo", "--workspace", "w", "--seconds", "1.5", "--seed", "3"]) == code
    assert asked == ["w", 1.5, 3]
    assert capsys.readouterr().err == message


def test_a_fault_of_our_own_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(demo, "run_demo", broken)
    with pytest.raises(ZeroDivisionError):
        command_line.main(["demo"])


def test_it_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "utils", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout and "validate" in done.stdout
