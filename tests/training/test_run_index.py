"""The index of runs: what it says, who may write it, and that it is never more than a memory."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.run_folders import make_run
from tests.training.tiny import TEXT, make_tiny
from utils.training.run_index import INDEX_FILE, RunIndex, read_snapshot
from utils.training.run_lock import FolderLock
from utils.training.run_record import RunRecord
from utils.training.training_config import TrainingConfig
from utils.training.training_core import train


def names(workspace: Path) -> list[str]:
    return [record.name for record in RunIndex(workspace, patience=0.2).refresh()]


def test_a_row_says_what_the_folder_says(tmp_path: Path) -> None:
    make_run(tmp_path, "a", (3.0, 2.0, 2.5), notes="why")
    (record,) = RunIndex(tmp_path).refresh()
    assert (record.name, record.model, record.parameters, record.data) == ("a", "Tiny", 1234, "python-docs")
    assert (record.steps, record.total_steps, record.finished, record.notes) == (30, 30, True, "why")
    assert (record.bits_per_byte, record.best_step, record.val_loss) == (2.0, 20, 4.0)
    assert record.train_loss == pytest.approx(3.7) and record.checkpoints == 2
    assert record.tokens_per_second == pytest.approx((1 * 100 + 3 * 200) / 4)  # each speed by its own seconds
    assert (record.seconds, record.memory_bytes) == (4.0, 3_000_000) and record.bytes > 1000


def test_runs_come_newest_first_and_folders_are_followed(tmp_path: Path) -> None:
    make_run(tmp_path, "old", begun="2026-01-01T00:00:00+00:00")
    make_run(tmp_path, "new", begun="2026-02-01T00:00:00+00:00")
    assert names(tmp_path) == ["new", "old"]
    shutil.copytree(make_run(tmp_path / "elsewhere", "brought"), tmp_path / "brought")
    shutil.rmtree(tmp_path / "old")
    (tmp_path / "new").rename(tmp_path / "renamed")
    (tmp_path / "no-run").mkdir()
    shutil.copytree(tmp_path / "brought", tmp_path / ".restoring-1")
    assert names(tmp_path) == ["brought", "renamed"]


def test_only_changed_folders_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = make_run(tmp_path, "a"), make_run(tmp_path, "b")
    RunIndex(tmp_path).refresh()
    read, of_folder = [], RunRecord.of_folder.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        RunRecord, "of_folder", classmethod(lambda cls, folder: read.append(folder.name) or of_folder(cls, folder))
    )
    (first / "metrics.csv").write_text("step,val/bits_per_byte\n10,1.5\n", "utf-8")
    assert {record.name: record.bits_per_byte for record in RunIndex(tmp_path).refresh()} == {"a": 1.5, "b": 2.0}
    assert read == ["a"]


@pytest.mark.parametrize("damage", ["torn", "no database", "other release", "a folder", "gone", "flipped"])
def test_a_lost_or_damaged_index_costs_nothing(tmp_path: Path, damage: str) -> None:
    for name in ("a", "b", "c"):
        make_run(tmp_path, name)
    assert len(names(tmp_path)) == 3
    path, content = tmp_path / INDEX_FILE, (tmp_path / INDEX_FILE).read_bytes()
    if damage == "other release":
        with sqlite3.connect(path) as connection:
            connection.execute("DROP TABLE runs")
            connection.execute("CREATE TABLE runs (name TEXT, surprise TEXT)")
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.unlink()
        middle = len(content) // 2
        written = {"torn": content[:middle], "no database": b"x" * 5000, "flipped": b"\xff" * 100 + content[100:]}
        if damage in written:
            path.write_bytes(written[damage])
    index = RunIndex(tmp_path)
    assert index.record(tmp_path / "b") is (damage != "a folder")  # never raises
    assert sorted(record.name for record in index.refresh()) == ["a", "b", "c"]
    assert sorted(names(tmp_path)) == ["a", "b", "c"]
    if damage != "a folder":
        with sqlite3.connect(path) as connection:
            assert connection.execute("SELECT count(*) FROM runs").fetchone() == (3,)


def test_a_locked_index_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_run(tmp_path, "a")
    index = RunIndex(tmp_path, patience=0.1)
    index.refresh()
    make_run(tmp_path, "b")
    other = sqlite3.connect(index.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert index.record(tmp_path / "b") is False and "the next look at the runs adds it" in caplog.text
    assert sorted(record.name for record in index.refresh()) == ["a", "b"]
    other.close()
    assert index.record(tmp_path / "b") is True


def test_a_folder_that_cannot_be_read_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_run(tmp_path, "good")
    (make_run(tmp_path, "torn") / "run.json").write_text("{", "utf-8")
    (make_run(tmp_path, "odd") / "metrics.csv").write_bytes(b"\xff\xfe\x00")
    assert names(tmp_path) == ["good"]
    assert "torn" in caplog.text and "odd" in caplog.text


WRITER = """
import sys
from pathlib import Path
from tests.training.run_folders import make_run
from utils.training.run_index import RunIndex
workspace, own = Path(sys.argv[1]), sys.argv[2]
for number in range(5):
    folder = make_run(workspace, f"{own}-{number}")
    assert RunIndex(workspace, patience=60).record(folder)
    RunIndex(workspace, patience=60).refresh()
"""


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), own], cwd=root, stderr=subprocess.PIPE, text=True
        )
        for own in "ab"
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "damaged" not in errors and "cannot be used" not in errors
    with sqlite3.connect(tmp_path / INDEX_FILE) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (10,)


def test_a_snapshot_holds_the_rows(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    index = RunIndex(tmp_path)
    assert read_snapshot(index.snapshot()) == index.refresh()


def test_every_training_is_in_the_index(tmp_path: Path) -> None:
    texts = [TEXT[i : i + 400] for i in range(0, len(TEXT), 400)]
    train(make_tiny(), texts, TrainingConfig(max_steps=3, run_name="r"), workspace=tmp_path, progress=False)
    with sqlite3.connect(tmp_path / INDEX_FILE) as connection:
        row = connection.execute("SELECT name, finished, steps, total_steps, parameters FROM runs").fetchone()
    assert row == ("r", 1, 3, 3, make_tiny().num_parameters())


def test_a_training_that_fails_is_in_it_and_a_broken_index_harms_none(tmp_path: Path) -> None:
    (tmp_path / INDEX_FILE).write_bytes(b"no database" * 400)
    texts = [TEXT[i : i + 400] for i in range(0, len(TEXT), 400)]

    def stop(done: int, total: int | None, note: str = "") -> None:
        if done >= 1:
            assert FolderLock.is_held(tmp_path / "r")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_tiny(), texts, TrainingConfig(max_steps=9, run_name="r"), workspace=tmp_path, progress=stop)
    with sqlite3.connect(tmp_path / INDEX_FILE) as connection:
        assert connection.execute("SELECT name, finished, total_steps FROM runs").fetchone() == ("r", 0, 9)
    assert not FolderLock.is_held(tmp_path / "r")
