from __future__ import annotations

import pytest

from utils.errors import DataError
from utils.training.dataset_utilities import python_docs, resolve_data, split_documents, split_text


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


def test_documents_are_split_whole_and_duplicates_kept_once():
    train, validation = split_documents(["a", "b", "a", "c", " ", "d", "b"], 0.25)
    assert (train, validation) == (("a", "b", "c"), ("d",))


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


def test_a_dataset_with_a_text_column_is_read():
    datasets = pytest.importorskip("datasets")
    data = resolve_data(datasets.Dataset.from_dict({"id": [1, 2, 3], "text": ["a", "b", "c"]}), 0.3)
    assert (data.train, data.validation) == (("a", "b"), ("c",))


class Columns:
    def __init__(self, names):
        self.column_names = names

    def __getitem__(self, name):
        return ["x"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"\xff\xfeh\x00i\x00", "a.txt", "not UTF-8.*offset 0"),
        (b"fine so far \xe9", "a.txt", "0xe9 at offset 12"),
        (b"a\x00b", "a.txt", "NUL byte at offset 1"),
        (b"  \n", "a.md", "holds no text"),
        (b"a,b\n", "a.csv", "'.csv'.*What|'.csv'"),
    ],
)
def test_files_that_are_no_text_are_refused(tmp_path, content, name, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        resolve_data(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("python-doc", "did you mean 'python-docs'|Did you mean 'python-docs'"),
        ("this is the text I would like to train on", r"put it into a list: data=\[text\]"),
        ("missing.txt", "neither a bundled example nor an existing file"),
        ("a\0b", "neither"),
        ("x" * 5000, "neither"),
        ([], "list of texts is empty"),
        (["a", 1], "Item 1 of the list is of type int"),
        (["", " "], "empty or blank"),
        (42, "type int is not text"),
        (b"bytes", "type bytes is not text"),
        (Columns(["label", "body"]), "'label', 'body' and none named 'text'"),
        (Columns({"train": ["text"]}), r"dataset\['train'\]"),
    ],
)
def test_other_data_is_refused_with_what_works(data, message):
    with pytest.raises(DataError, match=message):
        resolve_data(data)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        resolve_data(tmp_path)
