from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import pytest
import torch

from utils.errors import CheckpointError
from utils.training.engine.checkpoint import CheckpointMetadata, CheckpointStore


def save(store: CheckpointStore, step: int, val_loss: float | None = None):
    path = store.next_path(step)
    store.write({"step": step, "weights": torch.arange(2000.0) + step}, path)
    return store.commit(path, step, val_loss)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path, "run", keep=2)


def metadata(**changes):
    fields = {"file": "step-00000002-000009.ckpt", "sha256": "", "size": 1, "run_id": "run", "step": 2, "sequence": 9}
    return CheckpointMetadata(**{**fields, **changes})


def names(store):
    return sorted(path.name for path in store.folder.iterdir())


def test_what_was_saved_is_loaded_and_the_manifest_tells_its_hash(store):
    metadata = save(store, 5, 1.5)
    path = store.folder / metadata.file
    assert metadata.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and metadata.size == path.stat().st_size
    assert store.load(path)["weights"].equal(torch.arange(2000.0) + 5)
    assert (metadata.step, metadata.sequence, metadata.run_id, metadata.val_loss) == (5, 1, "run", 1.5)
    assert {"python", "torch", "threads"} <= set(metadata.versions)
    assert store.newest() == metadata


def test_the_newest_two_and_the_best_are_kept(store):
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5)]:
        save(store, step, loss)
    assert [item.step for item in store.generations()] == [5, 4, 2]
    assert store.best().step == 2
    assert len(names(store)) == 6


def test_order_is_by_sequence_and_not_by_file_time(store):
    import os

    save(store, 7)
    second = save(store, 3)
    os.utime(store.folder / second.file, (0, 0))
    assert store.newest() == second


@pytest.mark.parametrize("kind", ["flip", "cut", "empty", "zero page", "gone"])
@pytest.mark.parametrize("seed", range(3))
def test_damage_is_found_and_the_generation_before_is_used(store, kind, seed, caplog):
    first, second = save(store, 1), save(store, 2)
    path = store.folder / second.file
    raw = bytearray(path.read_bytes())
    at = random.Random(seed).randrange(len(raw) - 64)
    if kind == "flip":
        raw[at] ^= 1 << seed
    elif kind == "zero page":
        raw[at : at + 64] = bytes(64) if any(raw[at : at + 64]) else b"\xff" * 64
    else:
        del raw[{"cut": at, "empty": 0, "gone": 0}[kind] :]
    path.write_bytes(raw)
    if kind == "gone":
        path.unlink()
    assert store.newest() == first
    assert second.file in caplog.text
    with pytest.raises(CheckpointError, match=r"damaged|missing"):
        store.load(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"file": 3}',
        '{"seal": 3}',
        metadata(file="../x.ckpt").to_text(),
        metadata(step="1").to_text(),
        metadata().to_text().replace('"step": 2', '"step": 3'),
    ],
)
def test_an_unreadable_manifest_is_left_aside(store, text):
    good = save(store, 1)
    (store.folder / "step-00000002-000009.json").write_text(text)
    assert store.generations() == [good]


def test_generations_of_another_run_or_a_newer_format_are_not_used(store):
    good = save(store, 1)
    bad = save(store, 2)
    manifest = (store.folder / bad.file).with_suffix(".json")
    for change in ({"run_id": "other"}, {"format_version": 99}):
        manifest.write_text(replace(bad, **change).to_text())
        assert store.newest() == good


def test_what_a_killed_save_leaves_is_removed_and_nothing_else(tmp_path):
    store = CheckpointStore(tmp_path, "run")
    save(store, 1)
    kept = set(names(store)) | {"notes.txt", "mine.ckpt"}
    for name in (
        "notes.txt",
        "mine.ckpt",
        "step-00000002-000002.ckpt",
        ".step-00000002-000002.ckpt.4711.tmp",
        ".step-00000002-000002.json.a1b2",
    ):
        (tmp_path / name).write_bytes(b"x")
    CheckpointStore(tmp_path, "run")
    assert set(names(store)) == kept


def test_a_failed_write_leaves_no_trace(store, monkeypatch):
    good = save(store, 1)
    monkeypatch.setattr("torch.save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save(store, 2)
    assert store.generations() == [good] and len(names(store)) == 2


class Evil:
    def __reduce__(self):
        return (open, ("canary", "w"))


def test_code_in_a_file_is_refused_even_with_a_matching_hash(store, monkeypatch):
    monkeypatch.chdir(store.folder)
    path = store.next_path(1)
    store.write({"evil": Evil()}, path)
    store.commit(path, 1)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        store.load(path)
    assert not (store.folder / "canary").exists()


def test_the_variable_that_turns_safe_loading_off_is_refused(store, monkeypatch):
    metadata = save(store, 1)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        store.load(store.folder / metadata.file)


@pytest.mark.parametrize("name", ["../step-00000001-000001.ckpt", "/etc/passwd", "other.ckpt", "step-1.ckpt"])
def test_paths_outside_or_of_other_names_are_refused(store, name):
    for use in (store.load, lambda path: store.write({}, path)):
        with pytest.raises(CheckpointError, match="is no checkpoint of the folder"):
            use(store.folder / name)


def test_a_file_without_manifest_is_foreign(store):
    torch.save({}, store.folder / "step-00000009-000009.ckpt")
    with pytest.raises(CheckpointError, match="no manifest of this run"):
        store.load(store.folder / "step-00000009-000009.ckpt")
