"""Statements that stand for a value without computing it: `residual_0_output = None`, guards for it, `del`."""

from __future__ import annotations

import ast
from collections.abc import Collection

from utils.adapters.canvas import Canvas, numbered_node_of, role_of
from utils.adapters.completion import Completion
from utils.adapters.signature import is_intermediate_name
from utils.adapters.statements import Statement


def without_placeholders(
    statements: list[Statement], canvas: Canvas, intermediates: Collection[str]
) -> tuple[list[Statement], list[Completion]]:
    """(statements that compute something, what is said about the others).

    A name that other statements compute keeps its placeholder: it may be the start of a loop.
    """
    kept: list[Statement] = []
    dropped: list[Completion] = []
    for statement in statements:
        names = _held_place_of(statement)
        others = {n for s in statements if s is not statement and not _held_place_of(s) for n in s.writes}
        if isinstance(statement.node, ast.Delete) and all(isinstance(t, ast.Name) for t in statement.node.targets):
            dropped.append(Completion(statement.label, "left out", 3, "completed statements may need the value later"))
        elif names and not names & others and all(_is_of_a_node(name, canvas, intermediates) for name in names):
            guard = isinstance(statement.node, ast.If)
            reason = "what stands in for it where it is None" if guard else "a placeholder"
            reason += " is no computation"
            dropped += [Completion(name, "no placeholder", 3, reason) for name in sorted(names)]
        elif isinstance(statement.node, ast.Return) and _is_none(statement.node.value):
            continue  # nothing is returned
        else:
            kept.append(statement)
    return kept, dropped


def _held_place_of(statement: Statement) -> set[str]:
    """Names for which a statement only stands in: bound to None, or given something only where they are None."""
    node = statement.node
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and _is_none(node.value) and node.value is not None:
        return set(statement.targets)
    if isinstance(node, ast.If) and not node.orelse and isinstance(node.test, ast.Compare):
        test = node.test
        asked = test.left.id if isinstance(test.left, ast.Name) else ""
        is_none = isinstance(test.ops[0], ast.Is) and _is_none(test.comparators[0]) and not statement.calls
        return {asked} if is_none and set(statement.targets) == {asked} and not statement.returns else set()
    return set()


def _is_none(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


def _is_of_a_node(name: str, canvas: Canvas, intermediates: Collection[str]) -> bool:
    """Whether a name is that of a node's output, which the completed forward computes."""
    node = numbered_node_of(name)
    known = name in intermediates or canvas.node_of(name) is not None
    return known or (is_intermediate_name(name) and node is not None and role_of(node.rsplit("_", 1)[0]) == "residual")
