"""Bytes to text, once and strictly: whole in memory, or in a stream with an encoding that is decided beforehand."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from utils.errors import TransformerBuilderError

_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CHUNK = 1 << 20
_HIGH = bytes(range(0x80, 0x100))
_CONTROLS = bytes(sorted({*range(0x20)} - {0x08, 0x09, 0x0A, 0x0C, 0x0D, 0x1B}))
_CONTROL_SHARE = 0.001
"""More control characters than this: a binary file. Terminal logs hold escapes and backspaces, which are not counted."""
WESTERN_SHARE = 0.3
"""Largest share of bytes above 0x7f in text that is taken for Windows-1252. French and German stay below a tenth; Cyrillic,
Greek, Chinese and Japanese encodings lie above a half."""


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


@dataclass(frozen=True)
class Encoding:
    """How the bytes of one file are read; decided once, over the whole file.

    Attributes:
        name: Python's name of the encoding.
        mark: bytes of the byte-order mark, which are skipped.
        note: why it is not plain UTF-8, for people; empty for UTF-8.
        fallback: whether the bytes are no Unicode at all, so that characters may be wrong.
    """

    name: str
    mark: int = 0
    note: str = ""
    fallback: bool = False


def find_encoding(
    file: BinaryIO, name: str, error_class: type[TransformerBuilderError], given: str | None = None
) -> Encoding:
    """Read a file once in chunks and say how it is decoded: by its mark, else strict UTF-8, else the named fallback.

    The fallback is Windows-1252 (which holds Latin-1's letters). It is taken only where every byte has a meaning in it and
    at most `WESTERN_SHARE` of the bytes lie above 0x7f: text in Western European languages stays below, while Cyrillic,
    Greek, Chinese or Japanese encodings, and binary files, lie above. Those are refused, with the way to name the encoding.

    Args:
        file: opened for reading bytes, seekable.
        name: what messages call the file.
        error_class: what is raised.
        given: the encoding that the person named; nothing is guessed then.

    Raises:
        TransformerBuilderError: (as `error_class`) bytes that fit no encoding, with their offset, or a NUL character.
    """
    mark, marked = _mark(file)
    if given is not None:
        codec = _known_codec(given, name, error_class)
        encoding = Encoding(codec, mark if marked and codecs.lookup(marked).name == codec else 0)
        _refuse(_first_fault(file, encoding), encoding, name, error_class)
        return encoding
    encoding = Encoding(
        marked or "utf-8", mark, f"decoded as {marked.upper()}, by its byte-order mark" if marked else ""
    )
    fault = _first_fault(file, encoding)
    if fault is None:
        return encoding if encoding.name != "utf-8" else Encoding("utf-8", mark)
    if marked or fault.is_nul:
        _refuse(fault, encoding, name, error_class, _hint_of_wide_text(file))
    return _western(file, fault, name, error_class)


def decoded(file: BinaryIO, encoding: Encoding) -> Iterator[str]:
    """The text of a file in pieces of about a megabyte, in an encoding that `find_encoding` found."""
    file.seek(encoding.mark)
    decoder = codecs.getincrementaldecoder(encoding.name)()
    while chunk := file.read(_CHUNK):
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


@dataclass(frozen=True)
class _Fault:
    offset: int
    byte: int
    is_nul: bool


def _mark(file: BinaryIO) -> tuple[int, str]:
    file.seek(0)
    head = file.read(4)
    return next(((len(mark), encoding) for mark, encoding in _MARKS if head.startswith(mark)), (0, ""))


def _known_codec(given: str, name: str, error_class: type[TransformerBuilderError]) -> str:
    try:
        "".encode(given)  # refuses codecs that are no text encodings, such as "zlib"
        return codecs.lookup(given).name
    except (LookupError, ValueError) as error:
        raise error_class(
            f"encoding={given!r} for {name} is no text encoding that Python knows; examples: 'utf-16-le', 'cp1251', "
            "'shift_jis', 'gb18030'."
        ) from error


def _first_fault(file: BinaryIO, encoding: Encoding) -> _Fault | None:
    """The first byte that cannot be decoded, or the first NUL character; None where there is neither."""
    file.seek(encoding.mark)
    decoder = codecs.getincrementaldecoder(encoding.name)()
    position = encoding.mark
    while True:
        chunk = file.read(_CHUNK)
        pending = decoder.getstate()[0]
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            return _Fault(position - len(pending) + error.start, error.object[error.start], False)
        if "\0" in text:
            before = len(text[: text.index("\0")].encode(encoding.name, "surrogatepass"))
            return _Fault(position - len(pending) + before, 0, True)
        if not chunk:
            return None
        position += len(chunk)


def _refuse(
    fault: _Fault | None,
    encoding: Encoding,
    name: str,
    error_class: type[TransformerBuilderError],
    hint: str = "it is no text file",
) -> None:
    if fault is None:
        return
    if fault.is_nul:
        raise error_class(f"{name} holds a NUL character at byte {fault.offset:,}: {hint}.")
    raise error_class(
        f"{name} is no {encoding.name.upper()} text: byte {fault.offset:,} is 0x{fault.byte:02x}. Save it as UTF-8, or name "
        "its encoding: encoding='...'."
    )


def _hint_of_wide_text(file: BinaryIO) -> str:
    """What NUL bytes mean: in UTF-16 without a mark, text of Western letters has one in every second place."""
    file.seek(0)
    head = file.read(4096)
    half = max(len(head) // 2, 4)  # fewer bytes prove nothing
    if head[1::2].count(0) > 0.4 * half and head[::2].count(0) < 0.1 * half:
        return "it looks like UTF-16 without a mark. Pass encoding='utf-16-le', or save it as UTF-8"
    if head[::2].count(0) > 0.4 * half and head[1::2].count(0) < 0.1 * half:
        return "it looks like UTF-16 without a mark. Pass encoding='utf-16-be', or save it as UTF-8"
    return "it is no text file"


def _western(file: BinaryIO, fault: _Fault, name: str, error_class: type[TransformerBuilderError]) -> Encoding:
    western = Encoding(
        "cp1252",
        note=f"byte {fault.offset:,} (0x{fault.byte:02x}) is no UTF-8, so the file was decoded as Windows-1252; if letters look "
        "wrong, name the encoding: encoding='...'",
        fallback=True,
    )
    share, controls = _shares(file)
    if share <= WESTERN_SHARE and controls <= _CONTROL_SHARE and _first_fault(file, western) is None:
        return western
    why = (
        f"{share:.0%} of its bytes lie above 0x7f, too many for Western text"
        if share > WESTERN_SHARE
        else "it holds control characters as binary files do"
        if controls > _CONTROL_SHARE
        else "and it is no Windows-1252 either"
    )
    raise error_class(
        f"{name} is not UTF-8 (byte {fault.offset:,} is 0x{fault.byte:02x}), and {why}. Save it as UTF-8, or name its encoding, "
        "e.g. encoding='cp1251' (Cyrillic), 'shift_jis', 'gb18030', 'utf-16-le'."
    )


def _shares(file: BinaryIO) -> tuple[float, float]:
    """Share of bytes above 0x7f, and of control characters that text does not hold."""
    file.seek(0)
    size = high = controls = 0
    while chunk := file.read(_CHUNK):
        size += len(chunk)
        high += len(chunk) - len(chunk.translate(None, _HIGH))
        controls += len(chunk) - len(chunk.translate(None, _CONTROLS))
    return high / max(size, 1), controls / max(size, 1)
