"""Copies on a mirror: verified, never torn, honest about what is safe, and never in the way of the training."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
import types
from pathlib import Path

import pytest

from tests.training.engine.faults import ERRNOS, FaultyFileSystem, Run, is_content, raising, slow, until
from utils.errors import ConfigError, TrainingError
from utils.training.engine.checkpoint import CheckpointStore
from utils.training.engine.mirror import flush_drive, mirroring
from utils.training.engine.mirror_folder import FileSystem, MirrorFolder
from utils.training.run_mirror import mirrored_runs, restore_run


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "local")


@pytest.fixture
def drive(tmp_path):
    return tmp_path / "drive"


def restored(drive: Path, workspace: Path):
    """Step of the newest generation that a new machine gets, or None."""
    runs = mirrored_runs(drive, pause=0)
    path = restore_run(runs[0], workspace, pause=0) if runs else None
    if path is None:
        return None
    store = CheckpointStore(path / "checkpoints", "0123456789abcdef")
    state = store.load(store.folder / store.newest().file)
    assert is_content(state)
    return state["step"]


def orphans(drive: Path) -> list[str]:
    """Objects on the mirror that no commit names."""
    (folder,) = drive.iterdir()
    named = {item.object for commit in MirrorFolder(folder, FileSystem()).read_commits() for item in commit.files}
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".bin" and path.name not in named)


def test_a_new_machine_gets_the_newest_generation_and_all_that_belongs_to_it(tmp_path, run, drive):
    (run.path / "tokenizer").mkdir()
    (run.path / "tokenizer" / "tokenizer.json").write_text("{}")
    (run.path / ".left.json").write_text("{}")
    mirror = run.mirror(drive)
    for step in (1, 2, 3):
        run.save(step)
    status = mirror.close(10)
    assert (status.safe_step, status.newest_step, status.problem, status.state) == (3, 3, None, "closed")
    assert status.summary() == "safe on the mirror up to step 3"
    assert restored(drive, tmp_path / "new") == 3
    names = {path.relative_to(tmp_path / "new" / "r").as_posix() for path in (tmp_path / "new" / "r").rglob("*")}
    assert {"run.json", "config.json", "tokenizer/tokenizer.json"} <= names and ".left.json" not in names
    assert not orphans(drive)


def test_nothing_is_renamed_overwritten_or_appended_there(run, drive, monkeypatch):
    renamed, written, removed = [], [], []
    for name in ("rename", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda a, b, real=real, **rest: (renamed.append(str(b)), real(a, b, **rest))[1])
    real_truncate = os.truncate
    monkeypatch.setattr(os, "truncate", lambda path, size: (removed.append(path.name), real_truncate(path, size))[1])
    files = FaultyFileSystem(lambda operation, path: written.append(path.name) if operation == "write" else None)
    mirror = run.mirror(drive, files)
    for step in (1, 2, 3, 4):
        run.save(step)
        until(lambda step=step: mirror.status.safe_step == step)
    mirror.close(10)
    assert renamed and not [name for name in renamed if name.startswith(str(drive))]
    assert len(written) == len(set(written))
    assert removed and set(removed) <= set(written)  # emptied before it is deleted
    (folder,) = drive.iterdir()
    with pytest.raises(FileExistsError):
        files.write(next(folder.iterdir()), [b"x"])


def test_the_newest_two_commits_stay_and_their_objects(run, drive):
    mirror = run.mirror(drive)
    for step in range(1, 6):
        run.save(step, 1.0 if step == 2 else 2.0)
        assert until(lambda step=step: mirror.status.safe_step == step)
    mirror.close(10)
    (folder,) = drive.iterdir()
    commits = MirrorFolder(folder, FileSystem()).read_commits()
    assert [commit.step for commit in commits] == [5, 4] and not orphans(drive)
    names = {Path(item.name).name for item in commits[0].files}
    assert {"step-00000005-000005.ckpt", "step-00000002-000002.ckpt"} <= names  # the best one, too


def test_only_the_newest_waits_while_a_slow_mirror_copies(run, drive):
    mirror = run.mirror(drive, FaultyFileSystem(slow(0.3)))
    began = time.monotonic()
    for step in range(1, 20):
        run.save(step)
    assert time.monotonic() - began < 5
    status = mirror.close(20)
    assert status.safe_step == 19 and status.skipped >= 10
    assert not orphans(drive)


OPERATIONS = ("make", "names", "free", "write", "chunk", "written", "read", "remove")


@pytest.mark.parametrize(
    ("number", "operation"),
    [*((number, None) for number in ERRNOS.values()), *((errno.EIO, operation) for operation in OPERATIONS)],
)
def test_an_error_is_overcome_and_told_once(run, drive, number, operation, caplog):
    mirror = run.mirror(drive, FaultyFileSystem(raising(number, (operation,) if operation else (), times=3)))
    for step in (1, 2, 3, 4):
        run.save(step)
        until(lambda step=step: mirror.status.safe_step == step, 5)
    status = mirror.close(10)
    assert (status.safe_step, status.problem) == (4, None), status
    if operation != "remove" or status.failures:
        assert caplog.text.count("training goes on") == 1
    assert not orphans(drive)


@pytest.mark.parametrize("number", ERRNOS.values(), ids=ERRNOS.keys())
def test_a_mirror_that_always_fails_is_never_called_safe(tmp_path, run, drive, number, caplog):
    mirror = run.mirror(drive, FaultyFileSystem(raising(number)))
    for step in (1, 2):
        run.save(step)
    assert until(lambda: mirror.status.failures > 3)
    assert mirror.status.state == "retrying" and mirror.status.safe_step is None
    status = mirror.close(10)
    assert status.safe_step is None and os.strerror(number) in status.problem
    assert "nothing is on the mirror yet of 2" in status.summary()
    assert caplog.text.count("training goes on") == 1
    assert restored(drive, tmp_path / "new") is None
    assert run.store.newest().step == 2


@pytest.mark.parametrize("lie", [lambda chunk: chunk[:-1], lambda chunk: bytes(len(chunk)), lambda chunk: b""])
def test_a_mirror_that_lies_is_never_called_safe(tmp_path, run, drive, lie):
    files = FaultyFileSystem(lie=lie)
    mirror = run.mirror(drive, files)
    run.save(1)
    assert until(lambda: mirror.status.failures > 1)
    assert mirror.status.safe_step is None and "read back" in mirror.status.problem
    files.lie = None  # it comes to its senses
    assert until(lambda: mirror.status.safe_step == 1)
    mirror.close(10)
    assert restored(drive, tmp_path / "new") == 1 and not orphans(drive)


def test_a_mirror_that_vanishes_is_not_made_anew_on_the_disk_below(tmp_path, run, drive):
    mirror = run.mirror(drive)
    run.save(1)
    assert until(lambda: mirror.status.safe_step == 1)
    drive.rename(tmp_path / "elsewhere")
    run.save(2)
    assert until(lambda: mirror.status.failures > 1)
    assert not drive.exists() and mirror.status.safe_step == 1
    assert "safe on the mirror up to step 1 of 2; retrying" in mirror.status.summary()
    (tmp_path / "elsewhere").rename(drive)
    assert until(lambda: mirror.status.safe_step == 2)
    assert mirror.close(10).problem is None and restored(drive, tmp_path / "new") == 2


def test_room_is_made_before_it_is_needed_and_never_by_the_newest(tmp_path, run, drive):
    files = FaultyFileSystem()
    mirror = run.mirror(drive, files)
    for step in (1, 2):
        run.save(step)
        assert until(lambda step=step: mirror.status.safe_step == step)
    files.room = 1000
    run.save(3)
    assert until(lambda: mirror.status.failures > 0)
    status = mirror.close(5)
    assert status.safe_step == 2 and "ENOSPC" in status.problem and "bytes are free" in status.problem
    assert restored(drive, tmp_path / "new") == 2
    (folder,) = drive.iterdir()
    assert [commit.step for commit in MirrorFolder(folder, FileSystem()).read_commits()] == [2]


def test_an_unmounted_drive_is_refused_and_nothing_is_made(run, tmp_path):
    files = FileSystem()
    files.drive_mount = tmp_path / "content" / "drive"
    with pytest.raises(ConfigError, match=r"not mounted.*drive\.mount"):
        run.mirror(tmp_path / "content" / "drive" / "MyDrive" / "runs", files)
    with pytest.raises(ConfigError, match="not mounted"):
        mirrored_runs(tmp_path / "content" / "drive" / "MyDrive", files)
    with pytest.raises(ConfigError, match="not mounted"):
        flush_drive(tmp_path / "content" / "drive" / "MyDrive", files)
    assert not (tmp_path / "content").exists()


def test_a_drive_that_is_unmounted_later_gets_nothing(run, tmp_path):
    mount = tmp_path / "content" / "drive"
    files = FaultyFileSystem()
    files.drive_mount, files.is_mount = mount, lambda folder: mounted
    mounted = True
    mirror = run.mirror(mount / "MyDrive", files)
    run.save(1)
    assert until(lambda: mirror.status.safe_step == 1)
    mounted = False
    run.save(2)
    assert until(lambda: mirror.status.failures > 0)
    assert "not mounted" in mirror.status.problem and mirror.close(5).safe_step == 1


def test_drive_is_flushed_only_where_it_is_mounted(tmp_path, monkeypatch):
    called = []
    drive = types.SimpleNamespace(flush_and_unmount=lambda: called.append(1))
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(drive=drive))
    files = FileSystem()
    assert not flush_drive(tmp_path, files)
    files.is_mount = lambda folder: True
    assert flush_drive(tmp_path, files) and called == [1]


def test_what_a_killed_copy_left_is_removed_and_nothing_else(tmp_path, run, drive):
    mirror = run.mirror(drive)
    run.save(1)
    mirror.close(10)
    (folder,) = drive.iterdir()
    for name in ("object-0123456789abcdef-0123456789ab.bin", "commit-000009-000001-01234567.json", "notes.txt"):
        (folder / name).write_bytes(b"torn")
    assert restored(drive, tmp_path / "new") == 1
    mirror = run.mirror(drive)
    run.save(2)
    mirror.close(10)
    assert not orphans(drive) and (folder / "notes.txt").exists()
    assert not (folder / "commit-000009-000001-01234567.json").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "commit"])
def test_an_older_state_is_taken_where_the_newest_is_damaged(tmp_path, run, drive, damage):
    mirror = run.mirror(drive)
    for step in (1, 2):
        run.save(step)
        assert until(lambda step=step: mirror.status.safe_step == step)
    mirror.close(10)
    (folder,) = drive.iterdir()
    newest = MirrorFolder(folder, FileSystem()).read_commits()[0]
    target = folder / newest.entry("checkpoints/step-00000002-000002.ckpt").object
    if damage == "commit":
        target = folder / newest.file
    raw = bytearray(target.read_bytes())
    raw[len(raw) // 2] ^= 1
    if damage == "gone":
        target.unlink()
    else:
        target.write_bytes(raw[:-9] if damage == "cut" else raw)
    assert restored(drive, tmp_path / "new") == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r"]


@pytest.mark.parametrize(
    "name",
    ["../escaped", "/etc/escaped", "a/../../escaped", "..\\escaped", "checkpoints/./x", "a\0b", "C:\\escaped", ""],
)
def test_a_commit_that_leaves_its_folder_is_not_used(tmp_path, run, drive, name):
    from dataclasses import replace

    mirror = run.mirror(drive)
    run.save(1)
    mirror.close(10)
    (folder,) = drive.iterdir()
    commit = MirrorFolder(folder, FileSystem()).read_commits()[0]
    evil = replace(commit, number=9, files=(*commit.files, replace(commit.files[0], name=name)))
    (folder / "commit-000009-000009-01234567.json").write_text(evil.to_text())
    assert restored(drive, tmp_path / "new") == 1
    assert not list(tmp_path.rglob("*escaped*"))


def test_a_mirror_that_cannot_be_read_is_an_error_and_no_new_run(drive):
    with pytest.raises(TrainingError, match=r"cannot be read.*resume='never'"):
        mirrored_runs(drive, FaultyFileSystem(raising(errno.EIO)), pause=0)
    assert mirrored_runs(drive, FaultyFileSystem(raising(errno.EIO, times=2)), pause=0) == []


def test_a_hanging_mirror_does_not_hold_the_end_up(run, drive, caplog):
    caplog.set_level(logging.WARNING)
    mirror = run.mirror(drive, FaultyFileSystem(slow(3.0)))
    run.save(1)
    began = time.monotonic()
    status = mirror.close(0.3)
    assert time.monotonic() - began < 2
    assert status.safe_step is None and "did not finish" in status.problem


def test_what_is_written_after_the_last_checkpoint_is_copied_at_the_end(tmp_path, run, drive):
    run.save(1)
    seen = []
    with mirroring(run.store, run.path, drive, lambda *report: seen.append(report)) as mirror:
        assert until(lambda: mirror.status.safe_step == 1)
        (run.path / "manifest.json").write_text("{}")
    assert restored(drive, tmp_path / "new") == 1
    assert (tmp_path / "new" / "r" / "manifest.json").exists() and mirrored_runs(drive)[0].finished
    assert seen and "safe on the mirror" in seen[-1][2]


def test_a_second_process_reuses_what_it_has_read_back(run, drive):
    for _ in range(2):
        mirror = run.mirror(drive)
        if run.store.newest() is None:
            run.save(1)
        mirror.offer(run.store.newest())
        assert mirror.close(10).safe_step == 1
    (folder,) = drive.iterdir()
    assert len(MirrorFolder(folder, FileSystem()).read_commits()) == 1 and not orphans(drive)
