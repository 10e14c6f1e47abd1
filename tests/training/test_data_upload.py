from __future__ import annotations

import datetime
import sys
from types import ModuleType, SimpleNamespace

import pytest

from utils.errors import DataError
from utils.training.data_upload import MAX_WIDGET_BYTES, DatasetUploader, uploads_in
from utils.training.dataset_utilities import DatasetLoader

CONTENT = b"one line\n"
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
META = {"name": "a.txt", "type": "text/plain", "size": 9, "lastModified": 0}
SHAPES = {
    "widget 7": {"a.txt": {"metadata": META, "content": CONTENT}},
    "widget 8": (
        {"name": "a.txt", "type": "text/plain", "size": 9, "content": memoryview(CONTENT), "last_modified": NOW},
    ),
    "widget 8, one": {"name": "a.txt", "content": memoryview(CONTENT)},
    "Colab": {"a.txt": CONTENT},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_an_upload_is_read(shape):
    assert uploads_in(SHAPES[shape]) == {"a.txt": CONTENT}
    assert list(DatasetLoader.from_anything(SHAPES[shape])) == ["one line\n"]
    assert list(DatasetLoader.from_uploaded_file(SHAPES[shape])) == ["one line\n"]


@pytest.mark.parametrize(
    "value", [None, 3, "a.txt", ["a text"], [{"text": "a row"}], {"a.txt": "no bytes"}, {"a": 1}, object()]
)
def test_what_is_no_upload_is_not_taken_for_one(value):
    assert uploads_in(value) is None


@pytest.mark.parametrize("empty", [{}, ()])
def test_nothing_chosen_is_said(empty):
    with pytest.raises(DataError, match="Nothing was uploaded"):
        DatasetLoader.from_uploaded_file(empty)


def test_several_files_of_one_kind_are_one_data_set():
    loaded = DatasetLoader.from_anything({"a.txt": b"one", "b (1).txt": b"two"})
    assert list(loaded) == ["one", "two"] and loaded.name == "2 uploaded files"
    with pytest.raises(DataError, match="several kinds"):
        DatasetLoader.from_anything({"a.txt": b"one", "b.csv": b"text\nx\n"})
    with pytest.raises(DataError, match="rename one of them"):
        uploads_in([SHAPES["widget 8, one"]] * 2)


@pytest.mark.parametrize(
    ("data", "form"), [(b"a", "txt"), ("a", "md"), (bytearray(b"a"), ".TXT"), (memoryview(b"a"), "text")]
)
def test_bytes_need_a_format(data, form):
    assert list(DatasetLoader.from_uploaded_file(data, form)) == ["a"]


def test_an_unknown_format_is_refused():
    with pytest.raises(DataError, match="save the sheet as CSV"):
        DatasetLoader.from_uploaded_file(b"a", "xlsx")
    with pytest.raises(DataError, match=r"Name it: DatasetLoader\.from_uploaded_file"):
        DatasetLoader.from_anything(b"a")


@pytest.fixture
def colab(monkeypatch):
    """`google.colab.files` with an `upload` whose answer the test chooses."""
    files = SimpleNamespace(answer={})
    module = ModuleType("google.colab.files")
    module.upload = lambda: files.answer
    package = ModuleType("google.colab")
    package.files = module
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", package)
    monkeypatch.setitem(sys.modules, "google.colab.files", module)
    return files


def test_colab_asks_at_once(colab, caplog):
    colab.answer = {"notes (1).txt": b"words"}
    uploader = DatasetUploader.upload_from_local()
    assert list(uploader.load()) == ["words"] and "notes (1).txt (5 bytes)" in repr(uploader)
    assert "renamed to 'notes (1).txt'" in caplog.text


def test_a_cancelled_dialog_is_one_sentence(colab):
    with pytest.raises(DataError, match="the dialog was closed"):
        DatasetUploader.upload_from_local()


def test_elsewhere_a_widget_is_shown_and_read_later():
    pytest.importorskip("ipywidgets")
    uploader = DatasetUploader.upload_from_local()
    assert ".parquet" in uploader.widget.accept
    with pytest.raises(DataError, match="No file has arrived yet"):
        uploader.load()
    uploader.widget.value = SHAPES["widget 8"]
    assert list(uploader.load()) == ["one line\n"] and list(DatasetLoader.from_anything(uploader.widget)) == [
        "one line\n"
    ]


def test_the_widget_of_colabs_generation_is_read():
    widget = SimpleNamespace(value=SHAPES["widget 7"], traits=dict)
    assert list(DatasetUploader(widget).load()) == ["one line\n"]


def test_more_than_the_websocket_carries_is_refused_with_the_way_out():
    widget = SimpleNamespace(value={"a.txt": {"content": b"x" * (MAX_WIDGET_BYTES + 1)}}, traits=dict)
    with pytest.raises(DataError, match=r"8,388,609 bytes.*Google Drive.*upload_from_local\(\) in Colab"):
        DatasetUploader(widget).load()
