"""Names in Python source, in the order of evaluation: what is read, bound, changed in place, and used of `self`.

Knows syntax trees only; `statements` asks it about one statement at a time.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

_ALL_CHILDREN = ("_modules", "children", "named_children", "modules", "named_modules", "get_submodule")


class NameVisitor(ast.NodeVisitor):
    """Collect names: values before targets, so that `x = f(x)` reads and writes x.

    Attributes:
        reads: names that are needed before.
        writes: names that are bound, and those of `changes`.
        changes: names whose objects are changed in place: `h["a"] = …`, `rows.append(…)`, `x.add_(…)`.
        calls: attributes of `self` that are used; a pattern with `*` where only the run knows which.
        transposed: those of which only the transposed weight is used, as a tied head does.
    """

    def __init__(self) -> None:
        self.reads: set[str] = set()
        self.writes: set[str] = set()
        self.changes: set[str] = set()
        self.calls: set[str] = set()
        self.transposed: set[str] = set()
        self._inner: list[set[str]] = []

    def visit_Name(self, node: ast.Name) -> None:
        if any(node.id in names for names in self._inner):
            return
        if isinstance(node.ctx, ast.Load):
            self._read(node.id)
        else:
            self.writes.add(node.id)

    def _read(self, name: str) -> None:
        if name not in self.writes:
            self.reads.add(name)

    def _change(self, node: ast.expr) -> None:
        """Note that the object behind an expression such as `h["a"].b` is changed."""
        while isinstance(node, (ast.Subscript, ast.Attribute, ast.Starred)):
            node = node.value
        if isinstance(node, ast.Name) and node.id != "self" and not any(node.id in names for names in self._inner):
            self._read(node.id)
            self.changes.add(node.id)
            self.writes.add(node.id)

    def _visit_all(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    # ---- expressions ------------------------------------------------------------------------------------------------

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            self.calls.add("*" if node.attr in _ALL_CHILDREN else node.attr)
        if node.attr in ("T", "mT"):
            self.transposed |= _weight_of(node.value)
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            self._change(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            self._change(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr") and len(node.args) > 1:
            self.calls.add(_as_pattern(node.args[1]))
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("t", "transpose"):
            self.transposed |= _weight_of(node.func.value)
        if getattr(node.func, "attr", getattr(node.func, "id", None)) == "linear" and len(node.args) > 1:
            self.transposed |= _weight_of(node.args[1])
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr.endswith("_") and node.func.attr[:1] != "_":
            self._change(node.func.value)  # torch's way to name what works in place

    def visit_Expr(self, node: ast.Expr) -> None:
        self.visit(node.value)
        if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
            self._change(node.value.func.value)  # a call whose result nobody takes is made for what it changes

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_defaults(node.args)
        self._inner.append(_names_of(node.args))
        self.visit(node.body)
        self._inner.pop()

    def _visit_comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        bound: set[str] = set()
        for generator in node.generators:
            self._inner.append(set(bound))
            self.visit(generator.iter)
            self._inner.pop()
            bound |= {n.id for n in ast.walk(generator.target) if isinstance(n, ast.Name)}
        self._inner.append(bound)
        for generator in node.generators:
            self._visit_all(generator.ifs)
        self._visit_all((node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,))
        self._inner.pop()

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _visit_comprehension

    # ---- statements -------------------------------------------------------------------------------------------------

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        self._visit_all(node.targets)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        if isinstance(node.target, ast.Name):
            self._read(node.target.id)
        self.visit(node.target)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self.visit(node.target)
        self._visit_branches([[*node.body, *node.orelse], []])

    def visit_While(self, node: ast.While) -> None:
        self.visit(node.test)
        self._visit_branches([[*node.body, *node.orelse], []])

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._visit_branches([node.body, node.orelse])

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        self._visit_branches([[case.pattern, *filter(None, [case.guard]), *case.body] for case in node.cases])

    def _visit_branches(self, branches: Sequence[Sequence[ast.AST]]) -> None:
        """What only one branch writes may still be needed from before in another."""
        before, after = set(self.writes), set(self.writes)
        for branch in branches:
            self.writes = set(before)
            self._visit_all(branch)
            after |= self.writes
        self.writes = after

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        if node.name:
            self.writes.add(node.name)
        self.generic_visit(node)

    visit_MatchStar = visit_MatchAs

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.generic_visit(node)
        if node.rest:
            self.writes.add(node.rest)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._visit_all(node.decorator_list)
        self._visit_defaults(node.args)
        self.writes.add(node.name)
        inner = NameVisitor()
        inner.writes = _names_of(node.args)
        inner._visit_all(node.body)
        self.reads |= inner.reads - self.writes - {name for names in self._inner for name in names}
        self.calls |= inner.calls

    visit_AsyncFunctionDef = visit_FunctionDef

    def _visit_defaults(self, arguments: ast.arguments) -> None:
        self._visit_all([*arguments.defaults, *(default for default in arguments.kw_defaults if default is not None)])

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.writes |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}

    visit_ImportFrom = visit_Import

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.writes.add(node.name)
        self.generic_visit(node)


def _as_pattern(name: ast.expr) -> str:
    """`layernorm_*` for f"layernorm_{i}", `*` for a name that only the run knows."""
    if isinstance(name, ast.Constant):
        return str(name.value)
    parts = name.values if isinstance(name, ast.JoinedStr) else []
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts) or "*"


def _weight_of(node: ast.expr) -> set[str]:
    """{"head"} for `self.head.weight`."""
    owner = node.value if isinstance(node, ast.Attribute) and node.attr == "weight" else None
    plain = isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "self"
    return {owner.attr} if plain and isinstance(owner, ast.Attribute) else set()


def _names_of(arguments: ast.arguments) -> set[str]:
    """Names that a function's arguments bind inside it."""
    plain = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return {a.arg for a in [*plain, *(star for star in (arguments.vararg, arguments.kwarg) if star)]}
