"""The command line: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import utils.examples
from utils.__main__ import main
from utils.testing import GIST_ID, TINY_SOURCES, GistServer

pytestmark = pytest.mark.usefixtures("no_onnx_dry_run")

FOLDER = str(utils.examples.path())


def test_inspect_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, data = tmp_path / "made" / "inspection.html", tmp_path / "inspection.json"
    assert main(["inspect", FOLDER, "--html", str(page), "--json", str(data)]) == 0
    printed = capsys.readouterr().out
    assert "PostNormTransformer" in printed and "How it is called" in printed and str(page) in printed
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert json.loads(data.read_text("utf-8"))["contract"]["max_length"] == 128


def test_inspect_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "anything.py"
    file.write_text(TINY_SOURCES["tensor"]["model.py"], "utf-8")
    assert main(["inspect", str(file)]) == 0
    assert "TinyModel" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [file], "nothing is written that nobody asked for"


@pytest.mark.parametrize("form", ["{id}", "https://gist.github.com/somebody/{id}"])
def test_inspect_a_gist(form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with GistServer({GIST_ID: TINY_SOURCES["two_files"]}) as server:
        monkeypatch.setenv("GITHUB_API_URL", server.url)
        assert main(["inspect", form.format(id=GIST_ID)]) == 0
        revision = server.revision(GIST_ID)
    printed = capsys.readouterr().out
    assert f"gist {GIST_ID}@{revision}" in printed and "block.weight" in printed


@pytest.mark.parametrize(
    ("source", "words"),
    [("dangerous", "os.system"), ("syntax_error", "model.py"), ("raises", "division by zero")],
)
def test_clear_errors_end_with_2(source: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in TINY_SOURCES[source].items():
        (tmp_path / name).write_text(text, "utf-8")
    assert main(["inspect", str(tmp_path), "--html", str(tmp_path / "page.html")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and words in captured.err and captured.out == ""
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("source", ["nowhere", "0" * 32])
def test_unknown_sources_end_with_2(
    source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with GistServer() as server:
        monkeypatch.setenv("GITHUB_API_URL", server.url)
        assert main(["inspect", source]) == 2
    assert "error: " in capsys.readouterr().err


def test_strict_refuses_conventions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", FOLDER, "--strict"]) == 2
    assert "residual" in capsys.readouterr().err


def test_trust_runs_what_the_review_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = TINY_SOURCES["tensor"]["model.py"].replace(
        "import torch\n", "import os\nimport torch\n\nos.system('true')\n", 1
    )
    (tmp_path / "model.py").write_text(text, "utf-8")
    assert main(["inspect", str(tmp_path)]) == 2
    assert main(["inspect", str(tmp_path), "--trust"]) == 0
    assert "os.system" in capsys.readouterr().out, "the finding is shown all the same"


def test_page_that_cannot_be_written_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    assert main(["inspect", FOLDER, "--html", str(tmp_path / "file" / "page.html")]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["inspect"], ["inspekt", "x"], ["inspect", "x", "--jsn", "y"]])
def test_wrong_use_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "usage" in capsys.readouterr().err
