"""utils._tables: one table in text and in HTML; what comes from outside stays text in both."""

from __future__ import annotations

import pytest

from utils._tables import html_table, text_table

HOSTILE = "<b onclick=x>&\"' [red]markup[/red]"


def test_columns_are_aligned() -> None:
    assert text_table(("name", "bytes"), [("a", 1), ("model.onnx", 23)]).splitlines() == [
        "name        bytes",
        "a           1",
        "model.onnx  23",
    ]


@pytest.mark.parametrize("title", ["Exported to /a/very/long/path/" + "x" * 120, "short [bold]title[/bold]"])
def test_the_title_is_one_line_however_narrow_the_table(title: str) -> None:
    assert text_table(("a", "b"), [(1, 2)], title=title).splitlines() == [title, "a  b", "1  2"]


def test_long_cells_are_folded_within_the_width() -> None:
    lines = text_table(("name", "text"), [("x", "word " * 60)], width=60).splitlines()
    assert len(lines) > 3 and max(map(len, lines)) <= 60
    assert " ".join(lines).count("word") == 60


def test_markup_is_shown_as_it_is() -> None:
    assert HOSTILE in text_table(("what",), [(HOSTILE,)])
    assert "[link=x]" in text_table(("[link=x]",), [("y",)])


def test_a_table_without_rows_is_its_head() -> None:
    assert text_table(("a", "b"), []).split() == ["a", "b"]
    assert html_table(("a",), []).count("<tr") == 1


def test_html_escapes_heads_cells_and_classes() -> None:
    shown = html_table((HOSTILE,), [(HOSTILE,), (3,)], classes=[HOSTILE, ""])
    assert "<b" not in shown and "onclick=x&gt;" in shown
    assert 'class="&lt;b onclick=x&gt;&amp;&quot;' in shown
    assert shown.endswith("<tr><td>3</td></tr></tbody></table>")


def test_fewer_classes_than_rows_leave_the_rest_plain() -> None:
    assert html_table(("a",), [(1,), (2,)], classes=["failed"]).count("class=") == 2  # the table's own and one row's
