"""Changes of source text at places of its syntax tree. What is not named stays byte for byte: layout, comments, line ends."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_LINE_END = re.compile(rb"\r\n|\r|\n")  # what ends a line for Python; a form feed does not


@dataclass(frozen=True, order=True)
class Edit:
    """Bytes of the UTF-8 text that are replaced.

    Attributes:
        begin: first byte.
        end: byte after the last; equal to `begin` for an insertion.
        new: what stands there afterwards.
    """

    begin: int
    end: int
    new: str


class Places:
    """Where the nodes of a syntax tree lie in their text, in bytes.

    Example:
        >>> text = "x = f(1)"
        >>> call = ast.parse(text).body[0].value
        >>> edited(text, [Places(text).replacing(call, "g(2)")])
        'x = g(2)'
    """

    def __init__(self, text: str) -> None:
        self.data = text.encode("utf-8")
        self._starts = [0, *(match.end() for match in _LINE_END.finditer(self.data))]

    def begin(self, node: ast.expr | ast.stmt | ast.arg | ast.keyword) -> int:
        """First byte of a node."""
        return self._starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr | ast.stmt | ast.arg | ast.keyword) -> int:
        """Byte after the last of a node."""
        if node.end_lineno is None or node.end_col_offset is None:
            raise ValueError(f"{type(node).__name__} has no place: it was made, not parsed.")
        return self._starts[node.end_lineno - 1] + node.end_col_offset

    def line(self, number: int) -> int:
        """First byte of a line; lines count from 1, and the one after the last is the end of the text."""
        return self._starts[number - 1] if number <= len(self._starts) else len(self.data)

    def text(self, begin: int, end: int) -> str:
        """What stands between two bytes."""
        return self.data[begin:end].decode("utf-8")

    def replacing(self, node: ast.expr | ast.stmt | ast.arg | ast.keyword, new: str) -> Edit:
        """The change of a whole node."""
        return Edit(self.begin(node), self.end(node), new)


def edited(text: str, edits: Iterable[Edit]) -> str:
    """`text` with the edits made.

    Raises:
        ValueError: two edits overlap.
    """
    data = text.encode("utf-8")
    ordered = sorted(edits, key=lambda edit: (edit.begin, edit.end))
    if overlapping(ordered):
        raise ValueError("Two edits change the same bytes.")
    parts, place = [], 0
    for edit in ordered:
        parts += [data[place : edit.begin], edit.new.encode("utf-8")]
        place = edit.end
    return b"".join([*parts, data[place:]]).decode("utf-8")


def overlapping(edits: Sequence[Edit]) -> bool:
    """Whether two edits change the same bytes; insertions at one place do not overlap, and keep their order."""
    ordered = sorted(edits, key=lambda edit: (edit.begin, edit.end))
    return any(one.end > other.begin for one, other in pairwise(ordered))
