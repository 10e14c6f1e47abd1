from __future__ import annotations

import datasets
import numpy as np
import pandas
import pytest

from utils.errors import ConfigError, DataError
from utils.training.data_store import DocumentStore
from utils.training.dataset_utilities import (
    DatasetLoader,
    python_docs,
    resolve_data,
    split_text,
    text_fingerprint,
)


@pytest.mark.parametrize(
    "text", ["one\ntwo\nthree\nfour\n" * 10, "no line breaks at all", "ab", "line\n" + "x" * 100, "x" * 100 + "\n"]
)
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_both_parts_together_are_the_text(text, fraction):
    train, validation = split_text(text, fraction)
    assert train + validation == text
    assert train and validation


def test_validation_begins_at_a_line_and_is_about_the_share():
    text = "".join(f"line {i}\n" for i in range(1000))
    train, validation = split_text(text, 0.1)
    assert train.endswith("\n") and validation.startswith("line ")
    assert abs(len(validation) / len(text) - 0.1) < 0.002


@pytest.mark.parametrize(("text", "fraction"), [("", 0.1), ("a", 0.1), ("abc", 0), ("abc", 1)])
def test_what_cannot_be_split_is_refused(text, fraction):
    with pytest.raises(DataError, match=r"too few|between 0 and 1"):
        split_text(text, fraction)


def test_the_bundled_example_is_large_english_and_stable():
    text = python_docs()
    assert 300_000 < len(text) < 2_000_000 and text == python_docs()
    assert "lambda" in text and resolve_data("python-docs").name == "python-docs"


def test_a_text_file_is_read(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes("\ufeffLine one\r\nZeile zwei äöü\r\nthree\r\n".encode())
    data = resolve_data(path)
    assert "".join(data.train + data.validation) == "Line one\nZeile zwei äöü\nthree\n"
    assert resolve_data(str(path)).fingerprint == data.fingerprint


def test_lists_frames_and_data_sets_are_read():
    datasets, pd = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    columns = {"id": [1, 2, 3], "text": ["a", "b", "c"], "label": [1, 0, 1]}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    dataset = datasets.Dataset.from_dict(columns)
    for data in (rows, pd.DataFrame(columns), dataset, dataset.with_format("torch"), dataset.to_iterable_dataset()):
        loaded = DatasetLoader.from_anything(data, label_column="label")
        assert (list(loaded), list(loaded.labels), loaded.label_names) == (["a", "b", "c"], [1, 0, 1], ("0", "1"))
        found = resolve_data(data, 0.3)
        assert len(found.validation) == 1 and sorted([*found.train, *found.validation]) == ["a", "b", "c"]
        assert "1 of 3 documents" in found.how
    assert loaded.to_dataset().to_dict() == {"text": ["a", "b", "c"], "label": [1, 0, 1]}


def test_a_data_set_of_several_parts_keeps_its_validation():
    datasets = pytest.importorskip("datasets")
    parts = {
        name: datasets.Dataset.from_dict({"text": [f"{name} {i}" for i in range(3)]})
        for name in ("train", "validation", "test")
    }
    data = resolve_data(datasets.DatasetDict(parts))
    assert data.train == ("train 0", "train 1", "train 2") and data.validation[0] == "validation 0"
    assert list(DatasetLoader.from_anything(datasets.DatasetDict(parts), split="test")) == [
        "test 0",
        "test 1",
        "test 2",
    ]
    parts.pop("train")
    with pytest.raises(DataError, match=r"several parts \('validation', 'test'\). Say which one: split='validation'"):
        DatasetLoader.from_anything(datasets.DatasetDict(parts))


def test_missing_values_of_a_frame_are_rejected_by_number():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"text": ["a", None, float("nan"), pd.NA, "b"]})
    loaded = DatasetLoader.from_anything(frame)
    assert list(loaded) == ["a", "b"] and [row.number for row in loaded.report.rejected] == [2, 3, 4]


def test_pairs_are_read_for_sequence_to_sequence():
    rows = [{"translation": {"en": "yes", "de": "ja"}}, {"translation": {"en": "no", "de": None}}]
    loaded = DatasetLoader.from_anything(rows, column="translation.en", target_column="translation.de")
    assert (list(loaded), list(loaded.targets), loaded.task) == (["yes"], ["ja"], "seq2seq")
    assert "row 2: has no text" in loaded.summary()


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([10, 2, 10], ("2", "10"), [1, 0, 1]),
        (["pos", "neg", " pos"], ("neg", "pos"), [1, 0, 1]),
        ([True, False, True], ("0", "1"), [1, 0, 1]),
        (["1", "0", "1"], ("0", "1"), [1, 0, 1]),
    ],
)
def test_labels_become_numbers_in_a_fixed_order(labels, names, numbers):
    loaded = DatasetLoader.from_anything([{"text": f"t{i}", "y": y} for i, y in enumerate(labels)], label_column="y")
    assert (loaded.label_names, list(loaded.labels)) == (names, numbers)


def test_what_is_no_label_is_rejected_or_refused():
    rows = [{"text": "a", "y": 0}, {"text": "b", "y": None}, {"text": "c", "y": 0.5}]
    loaded = DatasetLoader.from_anything(rows, label_column="y")
    assert list(loaded) == ["a"] and loaded.report.rejected_count == 2
    with pytest.raises(DataError, match="2,000 different values in 2,000 rows: these are no classes"):
        DatasetLoader.from_anything([{"text": "a", "y": i} for i in range(2000)], label_column="y")


def test_reading_can_stop_early():
    loaded = DatasetLoader.from_anything(["a", "b", "c"], max_documents=2)
    assert list(loaded) == ["a", "b"] and "max_documents=2" in loaded.summary()


def test_blocks_are_prepared_for_training(tokenizer):
    blocks = DatasetLoader.prepare_for_training(["some words to pack " * 40] * 3, tokenizer, max_length=32)
    assert blocks[0]["input_ids"].shape == (32,)


def test_progress_is_told_in_bytes(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 1000)
    told = []
    DatasetLoader.from_file(tmp_path / "a.txt", progress=lambda *state: told.append(state))
    assert told[-1] == (1000, 1000, "a.txt")


def test_text_of_any_size_is_read_from_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORMER_BUILDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(DocumentStore.__init__, "__defaults__", (("text",), 1000))
    documents = [f"document {i} " * 20 for i in range(100)]
    loaded = DatasetLoader.from_anything(documents)
    assert not isinstance(loaded.documents, tuple) and list(loaded) == documents
    assert loaded.fingerprint == text_fingerprint(documents)
    assert loaded.to_dataset()["text"][:] == documents


def test_what_a_display_shows_is_escaped():
    page = DatasetLoader.from_anything([{"text": "<script>x</script>", "<b>": 1}])._repr_html_()
    assert "<script>x" not in page and "&lt;script&gt;" in page and "<b>" not in page


class TestFolder:
    def test_text_files_are_documents_in_the_order_of_their_names(self, tmp_path):
        for name, content in {
            "b.txt": b"two",
            "a.md": b"one",
            "sub/c.txt": b"three",
            ".hidden.txt": b"no",
            "x.py": b"no",
        }.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
        loaded = DatasetLoader.from_anything(tmp_path)
        assert list(loaded) == ["one", "two", "three"] and "'x.py'" in loaded.summary()
        assert list(DatasetLoader.from_folder(tmp_path, pattern="sub/*")) == ["three"]

    def test_a_text_file_that_cannot_be_read_is_named_and_the_others_stay(self, tmp_path):
        for name, content in {"a.txt": b"one", "b.txt": b"nul \0", "c.txt": b"", "d.txt": b"two"}.items():
            (tmp_path / name).write_bytes(content)
        loaded = DatasetLoader.from_folder(tmp_path)
        assert list(loaded) == ["one", "two"]
        assert "b.txt, row 1: is a file that cannot be read (b.txt holds a NUL" in loaded.summary()
        assert "c.txt is empty" in loaded.summary()

    def test_tables_belong_together(self, tmp_path):
        (tmp_path / "a.csv").write_text("text,n\na,1\n")
        (tmp_path / "b.csv").write_text("text,n\nb,2\n")
        (tmp_path / "README.md").write_text("about")
        loaded = DatasetLoader.from_folder(tmp_path)
        assert list(loaded) == ["a", "b"] and "README.md" in loaded.summary()
        (tmp_path / "c.csv").write_text("other,n\nb,2\n")
        with pytest.raises(DataError, match=r"c.csv has no column 'text'"):
            DatasetLoader.from_folder(tmp_path)

    def test_parts_are_told_by_their_names(self, tmp_path):
        for part in ("train", "valid", "test"):
            (tmp_path / f"{part}.jsonl").write_text(f'{{"text": "{part}"}}\n')
        loaded = DatasetLoader.from_folder(tmp_path)
        assert (list(loaded), list(loaded.validation)) == (["train"], ["valid"])

    def test_parts_of_plain_text_are_kept_apart(self, tmp_path):
        for part in ("train", "validation"):
            (tmp_path / f"{part}.txt").write_text(f"the {part} text\n")
        loaded = DatasetLoader.from_folder(tmp_path)
        assert (list(loaded), list(loaded.validation)) == (["the train text\n"], ["the validation text\n"])

    def test_several_kinds_and_none_are_refused(self, tmp_path):
        with pytest.raises(DataError, match="holds no file that is read"):
            DatasetLoader.from_anything(tmp_path)
        (tmp_path / "a.csv").write_text("text\na\n")
        (tmp_path / "a.jsonl").write_text('"a"\n')
        with pytest.raises(DataError, match=r"several kinds of data \(1 × csv, 1 × jsonl\)"):
            DatasetLoader.from_folder(tmp_path)

    def test_links_never_lead_round_in_circles(self, tmp_path):
        (tmp_path / "a.txt").write_text("a")
        (tmp_path / "loop").symlink_to(tmp_path)
        loaded = DatasetLoader.from_folder(tmp_path)
        assert list(loaded) == ["a"] and "1 links to folders were not followed" in loaded.summary()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("python-doc", "Did you mean 'python-docs'"),
        ("this is the text I would like to train on", r"put it into a list: data=\[text\]"),
        ("missing.txt", "neither a bundled example nor an existing file"),
        ("folder/missing.txt", "neither a bundled example nor an existing file"),
        ("owner/name", "owner/name cannot be read: offline mode"),
        ("a\0b", "neither"),
        ("x" * 5000, "neither"),
        ([], "list of texts is empty"),
        (["a", 1], "Item 1 of the list is of type int"),
        (["", " "], "empty or blank"),
        (["a\ud800"], "half a surrogate pair"),
        (42, "type int is not text"),
        (None, "type NoneType is not text"),
        (b"bytes", "type bytes is not text"),
        (datasets.DatasetDict(), "DatasetDict is empty"),
        (np.zeros((2, 2)), "type ndarray is not text"),
    ],
)
def test_other_data_is_refused_with_what_works(data, message):
    with pytest.raises(DataError, match=message):
        resolve_data(data)


@pytest.mark.parametrize("holder", [pandas.Series, np.array])
def test_a_column_of_texts_is_a_list_of_texts(holder):
    assert list(DatasetLoader.from_anything(holder(["one", "two"]))) == ["one", "two"]


def test_names_of_files_are_never_taken_for_texts(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(DataError, match="holds the names of files"):
        resolve_data([str(tmp_path / "a.txt")] * 2)
    assert len(DatasetLoader.from_anything([str(tmp_path / "gone.txt"), "text"])) == 2


def test_a_mistyped_file_is_answered_with_its_neighbour(tmp_path):
    (tmp_path / "notes.txt").write_text("a")
    with pytest.raises(DataError, match=r"Did you mean '.*notes.txt'"):
        resolve_data(str(tmp_path / "note.txt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columm": "text"}, "'columm' is no option for reading data. Did you mean 'column'"),
        ({"split_on": "words"}, "split_on='words' is unknown"),
        ({"max_documents": 0}, "max_documents=0 must be"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DatasetLoader.from_anything(["a"], **options)


def test_lists_by_the_names_of_their_parts_keep_these_parts():
    data = resolve_data({"train": ["a text", "another"], "validation": ["a third"]})
    assert list(data.train) == ["a text", "another"] and list(data.validation) == ["a third"]
    with pytest.raises(DataError, match="of type dict is not text"):
        resolve_data({"train": "no list"})
