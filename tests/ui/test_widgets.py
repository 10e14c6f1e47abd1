from __future__ import annotations

import datetime
import html
import re

import ipywidgets
import pytest

from tests.ui.hostile_strings import HOSTILE, OWNED
from utils.errors import DataError
from utils.ui import widgets

TAG = re.compile(r"<[^>]*>")


def _file(name, content):
    when = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    return {
        "name": name,
        "type": "text/plain",
        "size": len(content),
        "content": memoryview(content),
        "last_modified": when,
    }


def test_text_stays_text():
    for text in HOSTILE:
        for shown in (widgets.plain_html(text), widgets.text_html("message.html", text=text, tone="bad")):
            assert html.unescape(TAG.sub("", shown)).strip() == text.strip()
            assert OWNED not in "".join(TAG.findall(shown))


def test_what_is_hidden_keeps_its_value():
    field = widgets.text_field("Name", "tb-name", value="x")
    widgets.show(field, False)
    assert field.layout.display == "none"
    widgets.show(field, True)
    assert (field.layout.display, field.value) == ("", "x")


def test_only_what_a_person_changes_is_told():
    listed, heard = widgets.choice("Kind", options=["a", "b"]), []
    widgets.on_change(listed, heard.append)
    widgets.fill_options(listed, ["c", "d", "e"], "e")
    widgets.set_value(listed, "d")
    assert (listed.value, heard) == ("d", [])
    listed.value = "c"  # as the page does
    assert heard == ["c"]
    widgets.fill_options(listed, ["c", "d", "e"], "c")
    assert heard == ["c"]


def test_an_upload_is_read_and_forgotten():
    upload = widgets.file_upload("Choose", "tb-upload")
    assert widgets.uploaded(upload) == {}
    upload.value = (_file("a.txt", b"hello"),)
    assert widgets.uploaded(upload) == {"a.txt": b"hello"}
    widgets.clear_upload(upload)
    assert widgets.uploaded(upload) == {}


def test_an_upload_beyond_eight_megabytes_is_refused_with_the_way_out():
    upload = widgets.file_upload("Choose")
    upload.value = (_file("a.txt", b"x" * (8 << 20)), _file("b.txt", b"x"))
    with pytest.raises(DataError, match=r"Google Drive.*upload_from_local"):
        widgets.uploaded(upload)


def test_clicks_arrive_and_classes_are_there():
    clicked = []
    button = widgets.button("Go", "tb-go", "tb-other", click=lambda: clicked.append(1), style="primary", icon="play")
    button.click()
    assert clicked == [1]
    assert set(button._dom_classes) >= {"tb-go", "tb-other"}


@pytest.mark.parametrize(("value", "kind"), [(3, ipywidgets.BoundedIntText), (3.0, ipywidgets.BoundedFloatText)])
def test_numbers_are_whole_where_their_value_is(value, kind):
    field = widgets.number("N", value=value, least=1, most=9)
    assert type(field) is kind
    field.value = 99
    assert field.value == 9
