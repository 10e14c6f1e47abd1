from __future__ import annotations

import pickle
from collections import namedtuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import DataError
from utils.tokenization.documents import text_fingerprint
from utils.training import data_store
from utils.training.data_store import DocumentStore

pytest.importorskip("pyarrow")
TEXTS = st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), min_size=1, max_size=40)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch, tmp_path):
    monkeypatch.setattr(data_store, "BATCH_BYTES", 64)
    monkeypatch.setenv("TRANSFORMER_BUILDER_CACHE", str(tmp_path))


def stored(texts, memory=100, columns=("text",)):
    with DocumentStore(columns, memory_bytes=memory) as store:
        for text in texts:
            store.add(*(text if isinstance(text, tuple) else (text,)))
        return store.finish()


@given(texts=TEXTS)
@settings(max_examples=60, deadline=None)
def test_documents_on_disk_are_those_in_memory(texts):
    (memory,), in_memory = stored(texts, memory=1 << 20)
    (disk,), on_disk = stored(texts, memory=1)
    assert list(disk) == list(memory) == texts and list(disk) == texts
    assert in_memory == on_disk == text_fingerprint(texts)
    assert [disk[i] for i in range(-len(texts), len(texts))] == texts + texts
    assert list(disk[1:-1]) == texts[1:-1] and list(disk[::-2]) == texts[::-2]


def test_a_column_on_disk_can_be_pickled_and_keeps_its_bounds():
    (texts,), _ = stored([f"document {i}" for i in range(50)])
    assert not isinstance(texts, tuple)
    assert list(pickle.loads(pickle.dumps(texts))) == list(texts)
    for index in (50, -51):
        with pytest.raises(IndexError):
            texts[index]


def test_pairs_lie_in_two_columns():
    pairs = [(f"source {i}", f"target {i}") for i in range(30)]
    (sources, targets), _ = stored(pairs, columns=("text", "target"))
    assert list(zip(sources, targets)) == pairs


def test_a_fault_leaves_no_file(tmp_path):
    with DocumentStore(memory_bytes=1) as store:
        store.add("text")
        assert list(tmp_path.rglob("*.tmp"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_full_disk_is_said_before_it_is_full(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(data_store.shutil, "disk_usage", lambda path: usage(10, 9, 1000))
    with pytest.raises(DataError, match=r"too little for the text.*max_documents="):
        stored(["text"] * 100, memory=1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_that_vanished_is_named(tmp_path):
    (texts,), _ = stored(["text"] * 100)
    texts.path.unlink()
    with pytest.raises(DataError, match="gone or damaged"):
        list(texts)


def test_equal_text_is_one_file(tmp_path):
    stored(["text"] * 100)
    stored(["text"] * 100)
    assert len(list(tmp_path.rglob("*.arrow"))) == 1
