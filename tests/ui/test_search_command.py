"""`python -m utils search`: its flags, errors before anything is fetched, and a search from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch  # noqa: F401 - imported in a test first, it would be broken by the guard that puts modules back

from tests.training.wandb_files import offline_runs, run_of
from utils.__main__ import main
from utils.testing import TINY_SOURCES
from utils.training.training_config import TrainingConfig, setting_docs
from utils.ui.train_command import flag

TEXT = "".join(f"{n} green bottles hang on wall number {n % 7}, and one falls down.\n" for n in range(160))
MODEL = TINY_SOURCES["tensor"]["model.py"].replace("vocab_size=50", "vocab_size=300")


def test_the_help_names_every_setting_and_what_is_searched(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["search", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0 and "learning_rate, weight_decay, warmup_ratio" in shown
    for name in (*map(flag, setting_docs()), "--space", "--trials", "--seconds", "--name", "--no-pruning", "--html"):
        assert f"{name} " in shown.replace(",", " ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--space", "lr=1e-5..1e-2"], "did you mean 'learning_rate'"),
        (["--space", "learning_rate"], "expected NAME=LOW..HIGH"),
        (["--resume", "never"], "Take another --name"),
        (["--learning-rate", "100"], "learning_rate=100"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_fetched(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "no such model", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_number_of_trials_is_a_whole_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["search", "x", "--trials", "0"])
    assert "expected a whole number of 1 or more" in capsys.readouterr().err


def test_a_search_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.py").write_text(MODEL, "utf-8")
    (tmp_path / "notes.txt").write_text(TEXT, "utf-8")
    words = [
        "search",
        str(tmp_path / "model.py"),
        "--data",
        str(tmp_path / "notes.txt"),
        "--workspace",
        str(tmp_path / "runs"),
    ]
    words += ["--space", "learning_rate=1e-3..1e-2", "--trials", "1", "--no-range-test", "--max-steps", "4", "--html"]
    assert main([*words, "--wandb-project", "p"]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "runs" / "searches" / "search"
    assert "Trial 0 is the best" in printed and f"Page: {folder / 'report.html'}" in printed
    assert TrainingConfig.load(folder / "best_config.json").max_steps == 4
    (tracked,) = {path for run in (folder / "trials").glob("trial-*") for path in offline_runs(run)}
    assert run_of(tracked).run_group == "search" and run_of(tracked).project == "p"
