from __future__ import annotations

import pytest

from utils.errors import ColumnChoiceError, DataError
from utils.training.data_columns import choose_columns
from utils.training.loaded_dataset import ReadOptions

LONG = "a sentence of running text that goes on for a while"
TABLE = {  # rows → text column, words of the reason
    "only one": ([{"id": 1, "review": "nice"}], "review", "only column with text"),
    "called text": ([{"title": "a", "text": "b", "summary": "c"}], "text", "called 'text'"),
    "called content": ([{"title": "a", "content": "b"}], "content", "called 'content'"),
    "running text": ([{"id": "a1", "url": "http://x", "review": LONG}], "review", "running text: 51 characters"),
    "numbers as text": ([{"id": "17", "review": "nice"}], "review", "only column"),
    "nested": ([{"doc": {"body": "x"}, "n": 1}], "doc.body", "only column"),
    "a stray number": ([{"text": "a", "x": "b"}, {"text": "c"}, {"text": 5}], "text", "called 'text'"),
    "gaps": ([{"a": None, "b": "x"}, {"a": None, "b": None}], "b", "only column"),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_obvious_column_is_taken_with_its_reason(case):
    rows, column, reason = TABLE[case]
    choice = choose_columns(rows, ReadOptions(), "data")
    assert choice.text == column and reason in choice.reason


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"question": "who", "answer": "me"}], {}, r"'question', 'answer'. Say which one: column='question'"),
        ([{"a": LONG, "b": LONG}], {}, "several columns with text"),
        ([{"n": 1}], {}, "no column with text.*'n'"),
        ([{"text": "a"}], {"column": "txt"}, "no column 'txt'. Did you mean 'text'"),
        ([{"text": "a", "y": 1}], {"label_column": "z"}, "no column 'z'"),
        ([{"text": LONG}], {"label_column": "auto"}, "none that looks like one"),
        (
            [{"text": LONG, "c": 1, "d": 0}, {"text": LONG, "c": 1, "d": 0}],
            {"label_column": "auto"},
            "several that could be: 'c', 'd'",
        ),
        ([{"text": "a"}], {"column": "text", "target_column": "text"}, "text and target at once"),
    ],
)
def test_what_is_not_clear_is_asked_with_a_preview(rows, options, message):
    with pytest.raises(DataError, match=rf"(?s){message}") as caught:
        choose_columns(rows, ReadOptions(**options), "data")
    assert "First rows:" in str(caught.value) or "at once" in message


def test_labels_and_alternatives_are_listed():
    rows = [{"text": LONG, "title": f"t {i}", "label": i % 2, "stars": str(i % 3), "id": i} for i in range(20)]
    choice = choose_columns(rows, ReadOptions(label_column="auto"), "data")
    assert (choice.text, choice.label, choice.alternatives) == ("text", "label", ("title",))
    assert choice.label_candidates == ("label", "stars")


def test_the_question_carries_what_can_be_answered():
    long = "a sentence that goes on for quite some time, so that it is running text"
    rows = [{"id": n, "title": long, "body": long} for n in range(3)]
    with pytest.raises(ColumnChoiceError) as asked:
        choose_columns(rows, ReadOptions(), "t.csv")
    assert asked.value.candidates == ("title", "body")
    assert asked.value.columns == ("id", "title", "body")
    assert [row[0] for row in asked.value.rows] == ["0", "1", "2"]
