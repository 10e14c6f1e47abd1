"""`python -m utils runs`: what it prints, asks and deletes, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.run_folders import make_run
from utils.__main__ import main
from utils.training.run_index import RunIndex
from utils.training.run_index_mirror import send_snapshot


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs"), "good", (3.0, 1.5), learning_rate=1e-3)
    make_run(Path("runs"), "open", finished=False, begun="2020-01-01T00:00:00+00:00", checkpoints=3)
    return tmp_path / "runs"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["runs", *arguments]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_list(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "list").splitlines()
    assert lines[1].split()[0] == "good" and lines[2].split()[0] == "open" and "interrupted" in lines[2]
    rows = json.loads(printed(capsys, "list", "--json"))
    assert (rows[0]["name"], rows[0]["state"], rows[0]["bits_per_byte"]) == ("good", "finished", 1.5)
    assert "holds no runs" in printed(capsys, "list", "--workspace", "nowhere")


def test_list_of_a_mirror(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("elsewhere"), "far")
    Path("mirror").mkdir()
    assert send_snapshot(RunIndex("elsewhere"), "mirror")
    assert "mirrored" in printed(capsys, "list", "--mirror", "mirror") and "far" not in printed(capsys, "list")


def test_show_and_compare(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "1.500 bits per byte" in printed(capsys, "show", "go", "--html", "s.html", "--png", "s.png")
    text = printed(capsys, "compare", "--html", "c.html", "--png", "c.png")
    assert text.index("good") < text.index("open") and "learning_rate" in text
    assert all(Path(name).is_file() for name in ("s.html", "s.png", "c.html", "c.png"))
    assert "error: There is no run 'goood'" in printed(capsys, "show", "goood", code=2)


@pytest.mark.parametrize(
    ("arguments", "code", "left", "words"),
    [
        (["good", "--yes"], 0, ["open"], "are free again"),
        (["--unfinished", "--yes"], 0, ["good"], "last good checkpoint (step 3 of 20) is lost"),
        (["--older-than", "365", "--yes"], 0, ["good"], "the run open"),
        (["good", "--older-than", "36500", "--yes"], 0, ["good", "open"], "Nothing is to be deleted"),
        (["--checkpoints", "--yes"], 0, ["good", "open"], "1 checkpoint of open"),
        (["good"], 2, ["good", "open"], "Pass --yes"),
        (["--older-than", "1e300", "--yes"], 0, ["good", "open"], "Nothing is to be deleted"),
        ([], 2, ["good", "open"], "needs to know which runs"),
        (["gone", "--yes"], 2, ["good", "open"], "There is no run 'gone'"),
    ],
)
def test_clean(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, left: list[str], words: str
) -> None:
    assert words in printed(capsys, "clean", *arguments, code=code)
    assert sorted(record.name for record in RunIndex(here).refresh()) == left


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, ["open"]), ("", 1, ["good", "open"])])
def test_clean_asks(here: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, left: list[str]) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert main(["runs", "clean", "good"]) == code
    assert sorted(record.name for record in RunIndex(here).refresh()) == left


def test_clean_takes_the_end_of_the_input_for_a_no(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(question: str) -> str:
        raise EOFError

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ended)
    assert main(["runs", "clean", "good"]) == 1 and (here / "good").is_dir()


def test_clean_leaves_what_lies_elsewhere_and_what_is_no_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "good").rename(here.parent / "elsewhere")
    (here / "good").symlink_to("../elsewhere")
    (here / ".deleting-soon").mkdir()
    (here / f".deleting-{'0' * 12}").mkdir()
    before = sorted((here.parent / "elsewhere").rglob("*"))
    assert "stays: the run good (it is a link to" in printed(capsys, "clean", "good", "open", "--yes", code=1)
    printed(capsys, "clean", "good", "--checkpoints", "--yes", code=1)
    assert sorted((here.parent / "elsewhere").rglob("*")) == before
    assert sorted(path.name for path in here.iterdir() if path.is_dir()) == [".deleting-soon", "good"]


def test_without_a_verb_it_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["runs"])
    assert left.value.code == 2 and "arguments are required: verb" in capsys.readouterr().err
