"""Places in a syntax tree where a module may stand without leaving the review's sight. Knows no names and no rules."""

from __future__ import annotations

import ast
from collections.abc import Iterator

_READERS = frozenset({"getattr", "setattr", "delattr", "hasattr"})


def followed_values(tree: ast.Module) -> frozenset[int]:
    """Ids of the expressions whose value `names_in_source` follows: owners of attributes, and what a plain name is set to."""
    nodes = list(ast.walk(tree))
    inside_classes = {id(node) for cls in nodes if isinstance(cls, ast.ClassDef) for node in cls.body}
    return frozenset(id(value) for node in nodes if id(node) not in inside_classes for value in _followed_by(node))


def answered_questions(tree: ast.Module) -> frozenset[int]:
    """Ids of the expressions that are only compared or asked for their truth: `"x" in sys.modules`, `if pickle:`."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            found |= {id(value) for value in (node.left, *node.comparators)}
        elif isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
            found.add(id(node.test))
    return frozenset(found)


def _followed_by(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Attribute):
        yield node.value
    elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in _READERS:
            yield from node.args[:1]
    elif isinstance(node, ast.Assign):
        for target in node.targets if len(node.targets) == 1 else ():
            yield from _pairs(target, node.value)
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
        yield from _pairs(node.target, node.value)


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[ast.expr]:
    """The parts of `value` that become a plain name."""
    if isinstance(target, ast.Name):
        yield value
    elif isinstance(target, ast.Tuple | ast.List) and isinstance(value, ast.Tuple | ast.List):
        for inner_target, inner_value in zip(target.elts, value.elts, strict=False):
            yield from _pairs(inner_target, inner_value)
