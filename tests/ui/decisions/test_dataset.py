from __future__ import annotations

import pytest

from tests.ui.hostile_strings import HOSTILE
from utils.errors import DataError
from utils.ui.decisions.dataset import HUB_DOCUMENTS, KINDS, UPLOADS, DatasetForm, safe_name
from utils.ui.decisions.setup import Setup
from utils.ui.work import Ticket

SENTENCES = [f"This is sentence number {n}, and it says something of its own about {n * 7} things." for n in range(60)]
TWO_COLUMNS = "title,body\n" + "".join(f'"{a}","{b}"\n' for a, b in zip(SENTENCES, SENTENCES[::-1]))


@pytest.fixture
def setup(tmp_path):
    return Setup(folder=tmp_path / "wizard")


@pytest.fixture
def table(tmp_path):
    (tmp_path / "table.csv").write_text(TWO_COLUMNS)
    return tmp_path / "table.csv"


def _again(setup):
    return Setup(folder=setup.folder).dataset


def test_nobody_choosing_trains_on_the_bundled_example(setup):
    decision = setup.dataset
    assert decision.form == DatasetForm(kind="example")
    assert "press Read it" in decision.problem()
    assert decision.prepare(Ticket()) == "python-docs"
    assert decision.problem() == ""
    assert decision.quality.passed
    assert {row.status for row in decision.rows} <= {"pass", "warn"}


def test_an_upload_is_copied_read_and_found_again(setup):
    setup.dataset.choose(kind="upload")
    assert "Choose a file" in setup.dataset.problem()
    place = setup.dataset.keep_upload({"my notes.txt": "\n".join(SENTENCES).encode()})
    assert place == setup.folder / UPLOADS / "my_notes.txt"
    assert setup.dataset.load(Ticket()).report.text_bytes == len("\n".join(SENTENCES))
    assert setup.dataset.problem() == ""
    again = _again(setup)
    assert (again.form.kind, again.form.upload) == ("upload", "my_notes.txt")
    assert again.prepare(Ticket()) == str(place)


def test_the_same_name_uploaded_again_is_read_again(setup):
    setup.dataset.keep_upload({"a.txt": "\n".join(SENTENCES).encode()})
    setup.dataset.load(Ticket())
    setup.dataset.keep_upload({"a.txt": "\n".join(SENTENCES[:30]).encode()})
    assert not setup.dataset.is_read
    assert "not been read" in setup.dataset.problem()


def test_no_file_is_no_upload(setup):
    with pytest.raises(DataError, match=r"No file has arrived"):
        setup.dataset.keep_upload({})


def test_the_person_is_asked_which_column_is_the_text(setup, table):
    decision = setup.dataset
    decision.choose(kind="path", path=str(table))
    with pytest.raises(DataError, match=r"title, body\. Choose the one .*Column of the text"):
        decision.load(Ticket())
    assert decision.columns == ("title", "body")
    assert decision.preview[0] == ("title", "body")
    assert decision.preview[1][0][0].startswith("This is sentence number 0")
    assert not decision.is_read
    decision.choose(column="body")
    assert decision.load(Ticket())[0] == SENTENCES[-1]
    assert decision.columns == ("body", "title")
    assert decision.problem() == ""
    assert decision.prepare(Ticket()) is decision.loaded  # the column must not be forgotten
    decision.choose(column="title")
    assert not decision.is_read


def test_another_source_forgets_the_column(setup, table):
    setup.dataset.choose(kind="path", path=str(table), column="body")
    setup.dataset.choose(path="other.csv")
    assert setup.dataset.form.column == ""


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"kind": "path", "path": "nowhere.txt"}, r"There is no file or folder 'nowhere.txt'"),
        ({"kind": "path"}, r"Type the path"),
        ({"kind": "hub"}, r"Type the name of a data set"),
        ({"kind": "hub", "hub": "not a name"}, r"not a name"),
        ({"kind": "upload"}, r"Choose a file"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_half_read(setup, form, message):
    setup.dataset.choose(**form)
    with pytest.raises(DataError, match=message):
        setup.dataset.load(Ticket())
    assert setup.dataset.loaded is None
    assert not setup.dataset.is_read
    assert setup.dataset.problem()


def test_a_failure_leaves_what_was_read_before_out_of_use(setup):
    setup.dataset.load(Ticket())
    setup.dataset.choose(kind="path", path="nowhere.txt")
    with pytest.raises(DataError):
        setup.dataset.load(Ticket())
    setup.dataset.choose(kind="example")
    assert not setup.dataset.is_read


def test_the_hub_is_asked_for_a_part_and_for_all_where_that_is_wanted(setup, monkeypatch):
    asked = []

    def read(name, progress, **options):
        from utils.training.dataset_utilities import DatasetLoader

        asked.append((name, options))
        return DatasetLoader.from_anything(SENTENCES)

    monkeypatch.setattr("utils.training.dataset_utilities.DatasetLoader.from_huggingface", read)
    setup.dataset.choose(kind="hub", hub=" owner/name ")
    setup.dataset.load(Ticket())
    setup.dataset.choose(hub_documents=0, column="text")
    setup.dataset.load(Ticket())
    assert asked == [("owner/name", {"max_documents": HUB_DOCUMENTS}), ("owner/name", {"column": "text"})]
    assert setup.dataset.prepare(Ticket()) is setup.dataset.loaded  # a part of it, which its name alone does not say


def test_what_the_notebook_passed_comes_first(tmp_path):
    setup = Setup(folder=tmp_path, data=SENTENCES)
    assert setup.dataset.form.kind == "given"
    assert list(setup.dataset.kinds) == ["given", *KINDS]
    assert setup.dataset.prepare(Ticket()) is SENTENCES
    assert len(setup.dataset.loaded) == 60
    setup.dataset.choose(kind="example")
    assert Setup(folder=tmp_path, data=SENTENCES).dataset.form.kind == "example"  # a choice is kept
    assert Setup(folder=tmp_path).dataset.form.kind == "example"


def test_what_was_passed_before_a_restart_is_not_asked_for_without_it(tmp_path):
    Setup(folder=tmp_path, data=SENTENCES).dataset.choose(column="text")
    assert Setup(folder=tmp_path).dataset.form.kind == "example"


def test_text_that_cannot_be_trained_on_is_said(setup, tmp_path, monkeypatch):
    setup.dataset.load(Ticket())
    monkeypatch.setattr(type(setup.dataset.quality), "passed", False)
    assert "Training cannot use this text" in setup.dataset.problem()
    with pytest.raises(DataError, match=r"cannot use this text"):
        setup.dataset.prepare(Ticket())


def test_a_file_name_never_leaves_the_folder(tmp_path):
    for name in HOSTILE:
        safe = safe_name(name)
        assert (tmp_path / safe).resolve().parent == tmp_path.resolve()
        assert safe not in ("", ".", "..")
        assert not safe.startswith(".")
        assert len(safe) <= 96


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("notes.TXT", "notes.txt"),
        ("a b (1).csv", "a_b_1_.csv"),
        ("../../etc/passwd", "passwd"),
        ("..\\x.txt", "x.txt"),
        (".hidden", "hidden"),
        ("", "upload.txt"),
        ("日本.txt", "日本.txt"),
    ],
)
def test_a_file_name_stays_readable(name, safe):
    assert safe_name(name) == safe
