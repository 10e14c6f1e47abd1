"""Bytes to text, once and strictly. Knows no files."""

from __future__ import annotations

import codecs

from utils.errors import TransformerBuilderError

_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode_text(data: bytes, name: str, error_class: type[TransformerBuilderError]) -> str:
    """Decode by byte-order mark, else as strict UTF-8; the mark is dropped.

    Args:
        data: the bytes.
        name: what messages call the file.
        error_class: what is raised.

    Raises:
        TransformerBuilderError: (as `error_class`) undecodable bytes, with their offset, or a NUL character.
    """
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        place = error.start + len(mark)
        raise error_class(
            f"{name} is no {encoding.upper()} text: byte {place} is 0x{data[place]:02x}. Save it as UTF-8."
        ) from error
    if "\0" in text:
        raise error_class(f"{name} holds a NUL character (at position {text.index(chr(0))}): it is no text file.")
    return text
