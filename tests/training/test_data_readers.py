from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import DataError
from utils.training import data_readers
from utils.training.data_readers import READERS
from utils.training.data_sources import file_in_memory
from utils.training.dataset_utilities import DatasetLoader
from utils.training.loaded_dataset import ReadOptions, ReadReport

CELLS = st.text(st.characters(exclude_characters="\0\r", exclude_categories=("Cs",)), max_size=20)
ROWS = st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8)


def read(name: str, content: bytes, **options) -> list[dict]:
    file = file_in_memory(name, content)
    reader = READERS[file.kind](file, ReadOptions(**options), ReadReport(name))
    return [row for _, row in reader.rows(lambda *row: pytest.fail(f"rejected: {row}"))]


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t"), ("csv", ";")])
@given(rows=ROWS)
@settings(max_examples=60, deadline=None)
def test_what_the_csv_module_writes_is_read_back(suffix, delimiter, rows):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    found = read(f"x.{suffix}", out.getvalue().encode())
    assert [(row["a"], row["b"]) for row in found] == rows


@given(
    rows=st.lists(st.dictionaries(CELLS, CELLS | st.integers() | st.none() | st.lists(CELLS), max_size=4), min_size=1)
)
@settings(max_examples=60, deadline=None)
def test_what_json_writes_is_read_back(rows):
    for ascii_only in (True, False):
        lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
        assert read("x.jsonl", lines.encode()) == rows
        assert read("x.json", json.dumps(rows, ensure_ascii=ascii_only).encode()) == rows


@given(text=st.text(st.sampled_from("ab \n"), max_size=300), piece=st.integers(2, 40))
@settings(max_examples=200, deadline=None)
def test_the_pieces_of_a_large_text_are_the_text(text, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_readers, "LARGE_TEXT_BYTES", 10)
        patch.setattr(data_readers, "PIECE_CHARACTERS", piece)
        pieces = [row["text"] for row in read("x.txt", b"." + text.encode())]
    assert "".join(pieces) == "." + text
    if len(text) >= 10:
        assert all(0 < len(part) <= piece for part in pieces)


def test_a_large_text_is_cut_at_blank_lines(monkeypatch):
    monkeypatch.setattr(data_readers, "LARGE_TEXT_BYTES", 100)
    monkeypatch.setattr(data_readers, "PIECE_CHARACTERS", 50)
    loaded = DatasetLoader.from_uploaded_file(b"some words of a text\n\n" * 40, "txt")
    assert all(part.endswith("\n\n") for part in loaded) and len(loaded) == 20
    assert "in pieces" in loaded.summary()


def test_two_csv_files_can_be_read_at_once():
    """The length limit of fields belongs to the process; a reader must not hold it while it waits."""
    before = 100_000
    csv.field_size_limit(before)
    content = b"text\n" + b"a\n" * 1000
    sources = [file_in_memory(f"{i}.csv", content) for i in range(2)]
    one, two = (READERS["csv"](file, ReadOptions(), ReadReport("x")).rows(print) for file in sources)
    assert sum(1 for _ in zip(one, two)) == 1000
    assert csv.field_size_limit() == before


def test_the_claimed_size_of_a_row_group_is_limited(monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["x" * 1000] * 1000}), sink)
    monkeypatch.setattr(data_readers, "MAX_GROUP_BYTES", 100)
    with pytest.raises(DataError, match="row group 0 claims"):
        read("x.parquet", sink.getvalue())


def test_only_the_wanted_columns_of_a_table_are_decoded():
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"], "image": [b"bytes"]}), sink)
    file = file_in_memory("x.parquet", sink.getvalue())
    rows = READERS["parquet"](file, ReadOptions(), ReadReport("x")).rows(print, ["text"])
    assert [row for _, row in rows] == [{"text": "a"}]


def test_class_names_come_from_the_schema(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features).to_parquet(
        tmp_path / "x.parquet"
    )
    loaded = DatasetLoader.from_file(tmp_path / "x.parquet", label_column="label")
    assert (list(loaded.labels), loaded.label_names, list(loaded)) == ([1, 0], ("no", "yes"), ["a", "b"])
    assert "none of the classes (-1)" in loaded.summary()
