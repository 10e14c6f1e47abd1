"""One file that defines some classes with all that they need, gathered from the files or cells where they lie.

Follows names through the user's own code and stops at installed packages, whose imports are kept. Runs nothing.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
import symtable
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from utils.adapters.forward_source import is_installed_file
from utils.errors import ExportError

_FUTURE = "from __future__ import annotations\n"


def slice_of(classes: Iterable[type], texts: Mapping[type, str] | None = None) -> str:
    """The text of one file that defines `classes` and everything of the user's own that they name.

    Args:
        classes: classes that no installed package holds.
        texts: text of the file of a class, where Python does not know it (a completed export).

    Raises:
        ExportError: something that is named has no source, or two things have one name.
    """
    gathering = _Gathering(dict(texts or {}))
    for cls in classes:
        gathering.take(cls.__name__, cls)
    return gathering.text()


def is_installed(thing: Any) -> bool:
    """Whether a class, function or module belongs to an installed package or to Python."""
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
    module = sys.modules.get(name or "")
    file = getattr(module, "__file__", None)
    if name == "__main__":
        return False
    return file is None or is_installed_file(Path(file))


@dataclass(frozen=True)
class _Scope:
    """Where names are looked up: the statements of a text, and the values that they gave.

    Attributes:
        statements: name → the last top-level statement that binds it.
        text: of the file or cell.
        values: the globals of what lies there.
    """

    statements: Mapping[str, ast.stmt]
    text: str
    values: Mapping[str, Any]

    @classmethod
    def of(cls, text: str, values: Mapping[str, Any]) -> _Scope:
        statements: dict[str, ast.stmt] = {}
        for node in _top_level(ast.parse(text).body):
            statements.update(dict.fromkeys(_bound(node), node))
        return cls(statements, text, values)

    def source(self, node: ast.stmt) -> str:
        """Text of a statement with its decorators."""
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        lines = self.text.splitlines()[first - 1 : node.end_lineno]
        return inspect.cleandoc("\n".join(lines)) if node.col_offset else "\n".join(lines)


@dataclass
class _Gathering:
    """What was gathered so far, each thing after what it needs."""

    texts: dict[type, str]
    imports: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    things: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The file."""
        head = "\n".join(dict.fromkeys(self.imports.values()))
        return f"{_FUTURE}\n{head}\n\n\n" + "\n\n\n".join(self.parts.values()) + "\n"

    def take(self, name: str, thing: Any) -> None:
        """Add a class or function of the user's own."""
        if name in self.things:
            if self.things[name] is not thing:
                raise ExportError(
                    f"Two different things are called {name} in the files of the model; rename one of them."
                )
            return
        self.things[name] = thing
        scope = self._scope_of(thing)
        node = scope.statements.get(thing.__name__)
        if node is None or "<locals>" in thing.__qualname__:
            raise ExportError(
                f"The source of {thing.__name__} cannot be had: it is defined inside a function, or was typed at a prompt. Put it "
                "at the top of a file or cell."
            )
        self._statement(name, scope.source(node), scope)
        if thing.__name__ != name:
            self.parts[f"{name} ="] = f"{name} = {thing.__name__}"

    def _statement(self, name: str, text: str, scope: _Scope) -> None:
        for needed in _names_in(text):
            if needed != name and not hasattr(builtins, needed):
                self._need(needed, scope)
        self.parts[name] = text

    def _need(self, name: str, scope: _Scope) -> None:
        if name in self.imports or (name not in scope.statements and name not in scope.values):
            return
        value, node = scope.values.get(name), scope.statements.get(name)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not _is_own(value, node):
            self.imports[name] = _import_of(name, node)
        elif isinstance(value, ModuleType):
            self._module(name, value)
        elif isinstance(value, type) or inspect.isfunction(value):
            self._import_or_take(name, value)
        elif name in self.things:
            return
        else:
            self._constant(name, value, node, scope)

    def _module(self, name: str, value: ModuleType) -> None:
        if not is_installed(value):
            raise ExportError(
                f"The model's code uses its own module {value.__name__} as a whole; import what it needs by name "
                f"(from {value.__name__} import …)."
            )
        self.imports[name] = f"import {value.__name__} as {name}" if value.__name__ != name else f"import {name}"

    def _import_or_take(self, name: str, value: Any) -> None:
        if is_installed(value):
            alias = "" if value.__name__ == name else f" as {name}"
            self.imports[name] = f"from {value.__module__} import {value.__name__}{alias}"
        else:
            self.take(name, value)

    def _constant(self, name: str, value: Any, node: ast.stmt | None, scope: _Scope) -> None:
        self.things[name] = value
        if node is not None and not isinstance(node, (ast.Import, ast.ImportFrom)):
            self._statement(name, scope.source(node), scope)
            return
        home = _home_of_constant(name, value, node)
        if home is not None:
            self._statement(name, home.source(home.statements[name]), home)
        elif isinstance(value, (bool, int, float, str, type(None))):
            self.parts[name] = f"{name} = {value!r}"
        else:
            raise ExportError(
                f"The model's code reads {name} ({type(value).__name__}), whose definition cannot be found."
            )

    def _scope_of(self, thing: Any) -> _Scope:
        if isinstance(thing, type) and thing in self.texts:
            return _Scope.of(self.texts[thing], _globals_of(thing))
        module = sys.modules.get(thing.__module__)
        file = getattr(module, "__file__", None)
        if module is not None and file is not None and thing.__module__ != "__main__":
            return _Scope.of("".join(linecache.getlines(file)), vars(module))
        code = _code_of(thing)
        text = "".join(linecache.getlines(code.co_filename)) if code is not None else ""
        return _Scope.of(text, _globals_of(thing))


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those below its conditions included."""
    for node in body:
        if isinstance(node, (ast.If, ast.Try)):
            yield from _top_level([*node.body, *node.orelse])
        else:
            yield node


def _bound(node: ast.stmt) -> list[str]:
    """Names that a statement binds."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.Assign):
        return [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        return [node.target.id]
    return []


def _import_of(name: str, node: ast.Import | ast.ImportFrom) -> str:
    """An import statement for this name alone."""
    alias = next(a for a in node.names if (a.asname or a.name.split(".")[0]) == name)
    words = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
    return f"import {words}" if isinstance(node, ast.Import) else f"from {node.module} import {words}"


def _is_own(value: Any, node: ast.Import | ast.ImportFrom) -> bool:
    """Whether an import reaches the user's own code."""
    if isinstance(node, ast.ImportFrom) and node.level:
        return True
    top = (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
    module = sys.modules.get(top) or sys.modules.get(top.split(".")[0])
    return module is not None and not is_installed(module)


def _home_of_constant(name: str, value: Any, node: ast.stmt | None) -> _Scope | None:
    """The file that an own constant was imported from."""
    module = sys.modules.get(node.module or "") if isinstance(node, ast.ImportFrom) else None
    file = getattr(module, "__file__", None)
    if module is None or file is None or getattr(module, name, None) is not value:
        return None
    scope = _Scope.of("".join(linecache.getlines(file)), vars(module))
    return scope if name in scope.statements else None


def _names_in(text: str) -> list[str]:
    """Names that a statement reads from its module."""
    tables = [symtable.symtable(_FUTURE + text, "<source>", "exec")]
    found: dict[str, None] = {}
    while tables:
        table = tables.pop()
        tables += table.get_children()
        top = table.get_type() == "module"
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or top):
                found[symbol.get_name()] = None
    return list(found)


def _code_of(thing: Any) -> Any:
    functions = [thing, *vars(thing).values()] if isinstance(thing, type) else [thing]
    unwrapped = (inspect.unwrap(function) for function in functions if inspect.isfunction(function))
    return next((function.__code__ for function in unwrapped), None)


def _globals_of(thing: Any) -> Mapping[str, Any]:
    functions = [thing, *vars(thing).values()] if isinstance(thing, type) else [thing]
    return next((inspect.unwrap(f).__globals__ for f in functions if inspect.isfunction(f)), {})
