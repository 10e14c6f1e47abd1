"""The command `link`: what it prints and writes, and its errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.__main__ import main
from utils.colab_links import open_in_colab
from utils.ui.link_command import REPOSITORY

GIST, REVISION = "0123456789abcdef0123456789abcdef", "b" * 40


@pytest.mark.parametrize(
    ("arguments", "revision"),
    [
        (["--gist", GIST], None),
        (["--gist", f"https://gist.github.com/somebody/{GIST}"], None),
        (["--gist", f"https://gist.github.com/somebody/{GIST}/{REVISION}"], REVISION),
        (["--gist", GIST, "--revision", REVISION], REVISION),
    ],
)
def test_one_link_for_each_notebook(
    arguments: list[str], revision: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["link", *arguments]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{name}  {open_in_colab(REPOSITORY, name, GIST, revision)}" for name in ("template.ipynb", "training.ipynb")
    ]


def test_badges_and_stamped_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["link", "--gist", GIST, "--badge", "--stamp", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("[![Open in Colab](") == 2
    for name in ("template.ipynb", "training.ipynb"):
        assert f"Stamped: {tmp_path / name}" in printed
        assert f'GIST_ID = \\"{GIST}\\"' in (tmp_path / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gist", "no such id!"], "neither a gist id nor a gist URL"),
        (["--gist", GIST, "--revision", "main"], "Expected 40 hex digits"),
        (["--gist", GIST, "--repository", "https://gitlab.com/a/b"], "no repository on github.com"),
        (["--gist", GIST, "--repository", "https://github.com/a"], "Expected https://github.com/<owner>/<name>"),
        (["--gist", GIST, "--repository", "javascript:alert(1)"], "no repository on github.com"),
        (["--gist", GIST, "--stamp", "one.ipynb"], "Name a folder for both copies"),
        (["--gist", GIST, "--stamp", "out", "--notebooks", "odd"], "is no notebook"),
        (["--gist", GIST, "--stamp", "out", "--notebooks", "nowhere"], "There is no notebook nowhere/template.ipynb"),
    ],
)
def test_errors_say_what_was_expected(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "template.ipynb").write_text('{"cells": [1]}')
    assert main(["link", *arguments]) == 2
    assert message in capsys.readouterr().err
