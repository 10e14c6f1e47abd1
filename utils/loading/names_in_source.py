"""What a name in source text stands for, found without running it: aliases, getattr, `__import__`, joined strings.

Over-approximates: a name that is bound in several ways stands for all of them, wherever in the file that happens.
"""

from __future__ import annotations

import ast
import builtins
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from utils.loading.risk_rules import POWERFUL_MODULES, canonical, rule_for

_BUILTINS = frozenset(dir(builtins)) | {"__builtins__", "get_ipython", "exit", "quit"}
_IMPORTERS = frozenset({"__import__", "importlib.import_module", "importlib.__import__"})
_ATTRIBUTE_READERS = frozenset({"getattr", "operator.attrgetter"})
_MODULE_DICTS = frozenset({"sys.modules"})
_BINDING = (ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.arguments)
_ROUNDS = 4
_LIMIT = 16


class Names:
    """Dotted names that the expressions of one file can stand for."""

    def __init__(self, tree: ast.Module, handed_on: Mapping[str, frozenset[str]] | None = None) -> None:
        self.bound: dict[str, set[str]] = defaultdict(set)
        self.handed_on = handed_on or {}
        self.in_classes: dict[str, set[str]] = defaultdict(set)
        nodes = list(ast.walk(tree))
        self.assigned = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
        self.parameters = {node.arg for node in nodes if isinstance(node, ast.arg)}
        self.star_imports: list[str] = []
        for node in nodes:
            self._bind_import(node)
        for cls in (node for node in nodes if isinstance(node, ast.ClassDef)):
            for name in {name for node in cls.body for name in _imported_by(node)}:
                self.in_classes[name] |= self.bound[name]
        binding = [node for node in nodes if isinstance(node, _BINDING)]
        for _ in range(_ROUNDS):  # aliases of aliases
            before = sum(map(len, self.bound.values()))
            for node in binding:
                self._bind_assignment(node)
            if sum(map(len, self.bound.values())) == before:
                break

    def _bind_import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                target = alias.asname or alias.name.split(".")[0]
                self.bound[target].add(canonical(alias.name if alias.asname else target))
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                self._bind_from_sibling(node, alias)
                if alias.name == "*" and node.module and not node.level:
                    self.star_imports.append(node.module)
                elif alias.name != "*":  # a sibling is no library, but what it imported can be had through it
                    name = f"{node.module or ''}.{alias.name}"
                    if not node.level or canonical(name) != name:
                        self.bound[alias.asname or alias.name].add(canonical(name))

    def _bind_from_sibling(self, node: ast.ImportFrom, alias: ast.alias) -> None:
        """Names that a file beside this one hands on."""
        sibling = f"{(node.module or '').rpartition('.')[2]}."
        if alias.name == "*":
            for full, meanings in self.handed_on.items():
                if full.startswith(sibling):
                    self.bound[full.removeprefix(sibling)] |= meanings
            return
        self.bound[alias.asname or alias.name] |= self.handed_on.get(sibling + alias.name, frozenset())
        if any(full.startswith(f"{alias.name}.") for full in self.handed_on):  # `from . import blocks`
            self.bound[alias.asname or alias.name].add(alias.name)

    def _bind_assignment(self, node: ast.AST) -> None:
        pairs: Iterable[tuple[ast.expr, ast.expr]] = ()
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            pairs = [(node.target, node.value)]
        elif isinstance(node, ast.arguments):
            named = [*node.posonlyargs, *node.args]
            pairs = [
                (ast.Name(argument.arg, ast.Store()), default)
                for argument, default in [
                    *zip(named[len(named) - len(node.defaults) :], node.defaults, strict=True),
                    *((a, d) for a, d in zip(node.kwonlyargs, node.kw_defaults, strict=True) if d is not None),
                ]
            ]
        for target, value in pairs:
            self._bind_target(target, value)

    def _bind_target(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple | ast.List) and isinstance(value, ast.Tuple | ast.List):
            for inner_target, inner_value in zip(target.elts, value.elts, strict=False):
                self._bind_target(inner_target, inner_value)
        elif isinstance(target, ast.Name) and len(self.bound[target.id]) < _LIMIT:
            self.bound[target.id] |= {name for name in self.of(value) if name != target.id}

    def of(self, node: ast.expr) -> set[str]:
        """Every dotted name that `node` can stand for; empty where it is no name that can be followed."""
        if isinstance(node, ast.Name):
            return self._of_name(node.id)
        if isinstance(node, ast.Attribute):
            return self._below(self.of(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self._of_call(node)
        if isinstance(node, ast.Subscript):
            return self._of_item(node)
        if isinstance(node, ast.IfExp):
            return self.of(node.body) | self.of(node.orelse)
        if isinstance(node, ast.BoolOp):
            return set().union(*(self.of(value) for value in node.values))
        return self.of(node.value) if isinstance(node, ast.NamedExpr) else set()

    def _of_name(self, name: str) -> set[str]:
        known = set(self.bound.get(name, ()))
        if name in _BUILTINS:
            known.add(name)
        elif not known:
            own = name in self.assigned or name in self.parameters
            known = {f"{module}.{name}" for module in self.star_imports}
            known = {canonical(full) for full in known if not own or canonical(full) == full}
        return known

    def _below(self, owners: set[str], attribute: str) -> set[str]:
        found = set()
        for owner in owners:
            if attribute == "__dict__":
                found.add(owner)
            else:
                inside = owner in ("builtins", "__builtins__")
                found.add(attribute if inside else canonical(f"{owner}.{attribute}"))
                found |= self.handed_on.get(f"{owner.rpartition('.')[2]}.{attribute}", frozenset())
        return found | self.in_classes.get(attribute, set())

    def _of_call(self, node: ast.Call) -> set[str]:
        functions = self.of(node.func)
        if functions & _IMPORTERS and node.args:
            module = constant_text(node.args[0])
            if module is None:
                return set()
            from_list = len(node.args) > 3 or any(keyword.arg == "fromlist" for keyword in node.keywords)
            return {module.split(".")[0] if "__import__" in functions and not from_list else module}
        if functions & _ATTRIBUTE_READERS and len(node.args) >= 2:
            attribute = constant_text(node.args[1])
            return self._below(self.of(node.args[0]), attribute) if attribute else set()
        if "vars" in functions and node.args:
            return self.of(node.args[0])
        if functions & {"globals", "locals"}:
            return {"<globals>"}
        if "functools.partial" in functions and node.args:
            return self.of(node.args[0])
        return set()

    def _of_item(self, node: ast.Subscript) -> set[str]:
        key = constant_text(node.slice)
        if key is None:
            return set()
        found = set()
        for owner in self.of(node.value):
            if owner in _MODULE_DICTS:
                found.add(key)
            elif owner == "<globals>":
                found |= self._of_name(key)
            elif owner in ("builtins", "__builtins__"):
                found.add(key)
            elif isinstance(node.value, ast.Attribute | ast.Call):
                found.add(f"{owner}.{key}")
        return found


def _imported_by(node: ast.AST) -> Iterator[str]:
    """Names that an import statement binds."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.split(".")[0] for alias in node.names if alias.name != "*")


def names_handed_on(trees: Mapping[str, ast.Module]) -> dict[str, frozenset[str]]:
    """What names of these files stand for, for the files beside them: "blocks.o" → {"os"}.

    Files are told apart by the last part of their name alone, and a name that several hand on has passed on to each.

    Args:
        trees: relative path → syntax tree.
    """
    found: dict[str, frozenset[str]] = {}
    for _ in range(_ROUNDS if len(trees) > 1 else 0):  # through several files
        again: dict[str, set[str]] = defaultdict(set)
        for path, tree in trees.items():
            parts = path.removesuffix(".py").split("/")
            module = parts[-2] if parts[-1] == "__init__" and len(parts) > 1 else parts[-1]
            for name, meanings in Names(tree, found).bound.items():
                again[f"{module}.{name}"] |= {
                    meaning for meaning in meanings if rule_for(meaning) or canonical(meaning) in POWERFUL_MODULES
                }
        settled = {name: frozenset(meanings) for name, meanings in again.items() if meanings}
        if settled == found:
            break
        found = settled
    return found


def constant_text(node: ast.expr) -> str | None:
    """The text that an expression is sure to give: literals, joined literals, `"".join`, reversed slices, f-strings."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = constant_text(node.left), constant_text(node.right)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.JoinedStr):
        parts = [constant_text(part.value if isinstance(part, ast.FormattedValue) else part) for part in node.values]
        return None if None in parts else "".join(part for part in parts if part is not None)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        text = constant_text(node.value)
        reverse = isinstance(node.slice.step, ast.UnaryOp) and ast.unparse(node.slice) == "::-1"
        return text[::-1] if text is not None and reverse else None
    return None
