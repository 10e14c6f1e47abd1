"""Edits of source text keep everything that they do not name."""

from __future__ import annotations

import ast

import pytest

from utils.loading.source_edits import Edit, Places, edited, overlapping

TEXTS = (
    "x = f(1)  # ä\ny = g(2)\n",
    "x = f(1)\r\ny = g(2)\r\n",
    "é = 'ß'; x = f(1)",
    "x = '''a\n\n'''; y = f(1)",
)


@pytest.mark.parametrize("text", TEXTS)
def test_only_the_node_changes(text):
    call = next(node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    assert edited(text, [Places(text).replacing(call, "h(3)")]) == text.replace("f(1)", "h(3)")


def test_lines_are_counted_as_python_counts_them():
    text = "a = 1\x0c\nb = 2\r\nc = 3\rd = f(1)\n"
    call = next(node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    places = Places(text)
    assert places.text(places.begin(call), places.end(call)) == "f(1)"
    assert places.line(9) == len(text)


def test_insertions_keep_their_order_and_overlaps_are_refused():
    assert edited("ab", [Edit(1, 1, "x"), Edit(1, 1, "y"), Edit(0, 1, "A")]) == "Axyb"
    assert not overlapping([Edit(0, 1, ""), Edit(1, 1, "")])
    with pytest.raises(ValueError, match="same bytes"):
        edited("abc", [Edit(0, 2, ""), Edit(1, 3, "")])
