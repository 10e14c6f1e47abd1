from __future__ import annotations

import codecs
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import DataError
from utils.loading import text as text_module
from utils.loading.text import decoded, find_encoding

MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=60)


@pytest.mark.parametrize("encoding", MARKS)
@given(text=TEXTS, chunk=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_text_with_a_mark_comes_back_however_it_is_cut(encoding, text, chunk):
    file = io.BytesIO(MARKS[encoding] + text.encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_CHUNK", chunk)
        found = find_encoding(file, "a.txt", DataError)
        assert found.name == encoding and not found.fallback
        assert "".join(decoded(file, found)) == text


@given(text=TEXTS.filter(lambda text: not text.startswith("\ufeff")), chunk=st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_plain_utf_8_is_recognised_without_a_note(text, chunk):
    file = io.BytesIO(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_CHUNK", chunk)
        found = find_encoding(file, "a.txt", DataError)
        assert (found.name, found.note) == ("utf-8", "") and "".join(decoded(file, found)) == text


@given(content=st.binary(max_size=40), chunk=st.integers(1, 9))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_decoded_or_refused_in_our_words(content, chunk):
    file = io.BytesIO(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_CHUNK", chunk)
        try:
            found = find_encoding(file, "a.txt", DataError)
        except DataError as error:
            found, said = None, str(error)
        if found is None:
            assert said.startswith("a.txt ")
        else:
            assert "\0" not in "".join(decoded(file, found))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"abcdefg\xff" + b"x" * 50, 7),
        ("ääää".encode() + b"\xc3" + b"x" * 50, 8),
        (b"x" * 50 + "ä".encode()[:1], 50),
        ("€".encode()[:2] + b"x" * 50, 0),
    ],
)
def test_the_offset_is_that_of_the_byte_in_the_file(content, offset, chunk, monkeypatch):
    monkeypatch.setattr(text_module, "_CHUNK", chunk)
    assert f"byte {offset} " in find_encoding(io.BytesIO(content), "a.txt", DataError).note


@pytest.mark.parametrize(("share", "taken"), [(0.29, True), (0.31, False)])
def test_the_fallback_ends_where_too_many_bytes_are_no_ascii(share, taken):
    high = round(share * 1000)
    file = io.BytesIO(b"\xe9" * high + b"e" * (1000 - high))
    if taken:
        assert find_encoding(file, "a.txt", DataError).name == "cp1252"
    else:
        with pytest.raises(DataError, match="31% of its bytes"):
            find_encoding(file, "a.txt", DataError)


def test_a_byte_without_meaning_in_the_fallback_is_refused():
    with pytest.raises(DataError, match="no Windows-1252 either"):
        find_encoding(io.BytesIO(b"some text with \x81 inside"), "a.txt", DataError)


def test_binary_content_without_nul_is_refused():
    with pytest.raises(DataError, match="control characters as binary files"):
        find_encoding(io.BytesIO(b"some text \x01\x02\x03\xff"), "a.txt", DataError)
