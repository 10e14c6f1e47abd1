from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import DataError
from utils.tokenization import documents as room
from utils.tokenization.documents import ColumnView, Documents, Selection, as_documents, slices, text_fingerprint

datasets = pytest.importorskip("datasets")
ROWS = [f"row {n} " * (n % 7) for n in range(300)]


@pytest.fixture
def dataset(tmp_path):
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": ROWS, "number": list(range(300))}).save_to_disk(str(tmp_path / "d"))
    return datasets.load_from_disk(str(tmp_path / "d"))  # memory-mapped


def test_a_column_is_read_in_slices_and_again(dataset, monkeypatch):
    monkeypatch.setattr(room, "SLICE_CHARACTERS", 200)
    view = as_documents(dataset)
    assert isinstance(view, ColumnView) and isinstance(view, Documents) and len(view) == 300
    assert list(view) == list(view) == ROWS
    assert all(len(part) <= 64 for part in view.slices()) and sum(1 for _ in view.slices()) > 10
    assert view[5] == ROWS[5] and view[-1] == ROWS[-1] and view[2:5] == ROWS[2:5]
    with pytest.raises(IndexError):
        view[300]


@pytest.mark.parametrize(
    "change", [lambda d: d.shuffle(seed=1), lambda d: d.select([7, 3]), lambda d: d.with_format("torch")]
)
def test_rows_that_were_chosen_anew_are_read_in_their_order(dataset, change):
    changed = change(dataset)
    assert list(as_documents(changed)) == [ROWS[int(number)] for number in changed.with_format(None)["number"]]


@pytest.mark.parametrize(
    ("columns", "asked", "found"),
    [
        ({"text": ["a"], "label": [1]}, None, ["a"]),
        ({"content": ["a"], "other": ["b"]}, None, ["a"]),
        ({"anything": ["a"]}, None, ["a"]),
        ({"text": ["a"], "other": ["b"]}, "other", ["b"]),
    ],
)
def test_the_column_of_the_text_is_found(columns, asked, found):
    assert list(as_documents(datasets.Dataset.from_dict(columns), asked)) == found


@pytest.mark.parametrize(
    ("data", "column", "message"),
    [
        (datasets.Dataset.from_dict({"a": ["x"], "b": ["y"]}), None, "columns 'a', 'b' and none named 'text'.*column="),
        (datasets.Dataset.from_dict({"text": ["x"]}), "body", "none named 'body'"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["x"]})}), None, r"dataset\['train'\]"),
        (datasets.Dataset.from_dict({"text": ["x"]}).to_iterable_dataset(), None, "IterableDataset has no length"),
        (iter(["a"]), None, "only once"),
        (5, None, "got int"),
        (b"raw", None, "got bytes"),
        (["a", None], None, "Item 1 of the documents is of type NoneType"),
    ],
)
def test_what_is_no_documents_is_refused(data, column, message):
    with pytest.raises(DataError, match=message):
        as_documents(data, column)


def test_a_row_without_text_is_named(dataset):
    view = as_documents(datasets.Dataset.from_dict({"text": ["a", None]}))
    with pytest.raises(DataError, match="Row 1 of column 'text' holds nothing"):
        list(view)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=30), st.integers(1, 60))
def test_slices_hold_every_document_once_and_are_bounded(documents, size):
    before, room.SLICE_CHARACTERS = room.SLICE_CHARACTERS, size
    try:
        parts = list(slices(tuple(documents)))
    finally:
        room.SLICE_CHARACTERS = before
    assert [text for part in parts for text in part] == documents
    assert all(part and (len(part) == 1 or sum(map(len, part)) <= size + 30) for part in parts)


def test_a_selection_gives_its_documents_in_order_again_and_again():
    chosen = Selection(("a", "b", "c"), np.array([True, False, True]))
    assert list(chosen) == list(chosen) == ["a", "c"] and len(chosen) == 2


def test_the_fingerprint_tells_other_cuts_apart_and_takes_any_text():
    found = {text_fingerprint(x) for x in (["ab"], ["a", "b"], ["b", "a"], [""], [], ["\ud800"])}
    assert len(found) == 6
    assert text_fingerprint(iter(["a", "b"])) == text_fingerprint(("a", "b"))


def test_pages_of_arrow_files_are_let_go(dataset, monkeypatch):
    let_go = []
    monkeypatch.setattr(room, "_page_out", lambda rows: let_go.append(len(rows.cache_files)))
    list(as_documents(dataset))
    assert let_go and set(let_go) == {1}
