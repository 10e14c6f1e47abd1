"""Runs by name, side by side, cleaned up, and their index on a mirror."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.run_folders import make_run
from tests.training.tiny import TEXT
from utils.errors import TrainingError
from utils.loading.model_loader import load_model
from utils.testing import TINY_SOURCES
from utils.training.engine.mirror_folder import FileSystem
from utils.training.run_cleaning import DELETING, finish_deletions, plan_removal
from utils.training.run_comparison import compare_runs
from utils.training.run_index import RunIndex
from utils.training.run_index_mirror import mirrored_records, send_snapshot
from utils.training.run_lock import FolderLock
from utils.training.runs import load_run, load_runs
from utils.training.training_config import TrainingConfig
from utils.training.training_core import train


# ---- by name --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["first", "fir", "path"])
def test_a_run_is_found_by_name_beginning_or_folder(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path, "first")
    make_run(tmp_path, "second")
    run = load_run(folder if name == "path" else name, tmp_path)
    assert run.folder == folder and run.config.run_name == "first" and run.state == "finished"
    assert run.newest_checkpoint == folder / "checkpoints" / "step-00000002-000002.ckpt"
    assert run.best_checkpoint == folder / "checkpoints" / "step-00000001-000001.ckpt"
    assert [item.step for item in run.checkpoints()] == [2, 1]
    assert "2.000 bits per byte" in run.summary() and "1,234 parameters" in run._repr_html_()


def test_exported_folders_are_found(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a")
    for name in ("export", "torn"):
        (folder / name).mkdir()
    (folder / "export" / "manifest.json").write_text("{}", "utf-8")
    assert load_run("a", tmp_path).bundles == [folder / "export"]


def test_a_folder_elsewhere_is_not_taken_for_one_of_that_name_here(tmp_path: Path) -> None:
    make_run(tmp_path / "here", "a")
    assert load_run(make_run(tmp_path / "there", "a"), tmp_path / "here").folder == tmp_path / "there" / "a"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fisrt-1", "Did you mean 'first-1'"),
        ("first", "Several runs .* begin with 'first': first-2, first-1"),
        ("", "There are: first-2, first-1"),
    ],
)
def test_a_run_that_is_not_there_is_said_with_what_there_is(tmp_path: Path, name: str, words: str) -> None:
    make_run(tmp_path, "first-1")
    make_run(tmp_path, "first-2")
    with pytest.raises(TrainingError, match=words):
        load_run(name, tmp_path)
    with pytest.raises(TrainingError, match="holds no runs"):
        load_run("a", tmp_path / "nowhere")


def test_a_run_gives_its_trained_model_by_name_alone(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(TINY_SOURCES["tensor"]["model.py"].replace("=50", "=300"), "utf-8")
    (tmp_path / "config.json").write_text('{"vocab_size": 300, "d_model": 8, "max_seq_len": 16}', "utf-8")
    texts = [TEXT[i : i + 400] for i in range(0, len(TEXT), 400)]
    settings = TrainingConfig(max_steps=3, run_name="r")
    trained = train(load_model(tmp_path / "model.py"), texts, settings, workspace=tmp_path / "runs", progress=False)
    found = load_run("r", tmp_path / "runs").result()
    theirs = found.model.state_dict()
    assert all(bool((value == theirs[name]).all()) for name, value in trained.model.state_dict().items())


def test_a_model_of_a_program_is_asked_for(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    with pytest.raises(TrainingError, match="made by a program; pass model="):
        load_run("a", tmp_path).result()


# ---- side by side ---------------------------------------------------------------------------------------------------
def test_runs_are_compared_the_best_first(tmp_path: Path) -> None:
    make_run(tmp_path, "worse", (3.0, 2.5), learning_rate=1e-3)
    make_run(tmp_path, "better", (3.0, 1.5), learning_rate=2e-3)
    compared = compare_runs((), tmp_path)
    assert [row[0] for row in compared.rows()] == ["better", "worse"]
    assert compared.differences() == {"learning_rate": [2e-3, 1e-3]} and compared.notes() == []
    assert list(compared.to_dataframe()["bits_per_byte"]) == [1.5, 2.5]
    text = compared.summary()
    assert "the best first" in text and "0.002" in text and "1.500" in text
    validation, training = compared.panels()
    assert [series.label for series in validation.series] == ["better", "worse"]
    assert list(validation.series[0].y) == [3.0, 1.5] and validation.ylabel == "bits per byte"
    assert training.ylabel == "nats per label" and len(training.series[0].y) == 20


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", data="other", finished=False)
    text = compare_runs(["a", "b"], tmp_path).summary()
    assert "different text" in text and "have not finished" in text
    with pytest.raises(TrainingError, match="no runs to compare"):
        compare_runs((), tmp_path / "empty")


def test_a_comparison_is_a_page_and_a_picture(tmp_path: Path) -> None:
    make_run(tmp_path, "a", learning_rate=1e-3).rename(tmp_path / "a<b>&")
    make_run(tmp_path, "c", learning_rate=2e-3)
    compared = compare_runs((), tmp_path)
    page = compared.save_html(tmp_path / "out" / "c.html").read_text("utf-8")
    assert "a&lt;b&gt;&amp;" in page and "a<b>" not in page and "<svg" in page and "learning_rate" in page
    assert compared.save_png(tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


# ---- cleaning -------------------------------------------------------------------------------------------------------
def test_a_plan_deletes_nothing_and_says_what_would_be_lost(tmp_path: Path) -> None:
    make_run(tmp_path, "done")
    make_run(tmp_path, "open", finished=False)
    make_run(tmp_path, "empty", finished=False, checkpoints=0)
    make_run(tmp_path, "mirrored", finished=False, mirror_dir="/mnt/drive")
    words = {removal.run.name: removal.describe() for removal in plan_removal(load_runs((), tmp_path))}
    assert "cannot go on" not in words["done"] + words["empty"]
    assert "last good checkpoint (step 2 of 20) is lost" in words["open"]
    assert "except from the mirror /mnt/drive" in words["mirrored"]
    assert len(load_runs((), tmp_path)) == 4


def test_a_run_is_deleted_and_one_in_training_is_not(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    held = FolderLock.acquire(make_run(tmp_path, "b"))
    assert held is not None
    gone, stays = plan_removal(load_runs(["a", "b"], tmp_path))
    assert gone.perform() and not stays.perform() and "being trained" in stays.describe()
    assert [run.name for run in load_runs((), tmp_path)] == ["b"] and not list(tmp_path.glob(f"{DELETING}*"))
    held.release()
    (tmp_path / f"{DELETING}{0:012x}").mkdir()
    finish_deletions(tmp_path)
    assert not list(tmp_path.glob(f"{DELETING}*"))


def test_the_newest_good_and_the_best_checkpoint_stay(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", checkpoints=4)
    (folder / "checkpoints" / "step-00000004-000004.ckpt").write_bytes(b"damaged")
    (removal,) = plan_removal([load_run("a", tmp_path)], checkpoints_only=True)
    assert removal.perform()
    run = load_run("a", tmp_path)
    assert [item.step for item in run.checkpoints()] == [3, 1]  # the newest that verifies, and the best
    assert run.newest_checkpoint is not None
    listed = json.loads((folder / "manifest.json").read_text("utf-8"))["files"]
    assert sorted(listed) == sorted(f"checkpoints/{path.name}" for path in (folder / "checkpoints").iterdir())
    assert plan_removal([run], checkpoints_only=True) == []


# ---- on a mirror ----------------------------------------------------------------------------------------------------
def test_another_machine_learns_of_the_runs(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    make_run(tmp_path / "one", "a")
    make_run(tmp_path / "two", "b")
    for _ in range(2):  # the second snapshot of a workspace takes the place of the first
        for workspace in ("one", "two"):
            assert send_snapshot(RunIndex(tmp_path / workspace), mirror)
    assert sorted(record.name for record in mirrored_records(mirror)) == ["a", "b"]
    assert len(list(mirror.iterdir())) == 2
    for path in mirror.iterdir():
        path.write_bytes(b"damaged")
    assert mirrored_records(mirror) == [] and mirrored_records(tmp_path / "none") == []


def test_a_mirror_that_fails_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(FileSystem):
        def write(self, path: Path, chunks: object) -> None:
            raise OSError(28, "No space left on device")

    make_run(tmp_path / "one", "a")
    (tmp_path / "mirror").mkdir()
    assert send_snapshot(RunIndex(tmp_path / "one"), tmp_path / "mirror", Full()) is False
    assert "No space left" in caplog.text
    assert send_snapshot(RunIndex(tmp_path / "one"), tmp_path / "vanished") is False
    assert not (tmp_path / "vanished").exists()
