"""The text in which a model's class is defined: where it lies, its `forward` statement by statement, and how to replace it.

Knows Python source only; what a missing name means is for `graph_executor` to say.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import linecache
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from utils.adapters.names import NameVisitor
from utils.adapters.statements import Statement, dedented, indented


@dataclass(frozen=True)
class ClassSource:
    """The text in which a model's class is defined.

    Attributes:
        text: the whole file, or the notebook cell that holds the class.
        class_node: the class in `text`.
        forward: its `forward`.
        whole_file: whether `text` can be imported on its own.
        file_name: shown in diffs.
    """

    text: str
    class_node: ast.ClassDef
    forward: ast.FunctionDef
    whole_file: bool
    file_name: str

    @property
    def class_text(self) -> str:
        """Lines of the class, from its `class` line."""
        return "\n".join(self.lines[self.class_node.lineno - 1 : self.class_node.end_lineno]) + "\n"

    @property
    def self_name(self) -> str:
        """What `forward` calls its instance; completed source calls it self."""
        arguments = [*self.forward.args.posonlyargs, *self.forward.args.args]
        return arguments[0].arg if arguments else "self"

    @property
    def docstring(self) -> str | None:
        """The docstring of `forward` with its quotes, as it stands."""
        if ast.get_docstring(self.forward, clean=False) is None:
            return None
        return ast.get_source_segment(self.text, self.forward.body[0])

    def statements(self, known_globals: frozenset[str]) -> list[Statement]:
        """The top-level statements of `forward`, each with the comments above it; the docstring is left out."""
        body = self.forward.body[1:] if ast.get_docstring(self.forward) is not None else self.forward.body
        previous_end = self._header_end() if body is self.forward.body else self.forward.body[0].end_lineno or 0
        found = []
        for index, node in enumerate(body):
            text, gap = self._text_of(node, previous_end, body[index + 1] if index + 1 < len(body) else None)
            statement = Statement.parse(text, known_globals, index)
            if self.self_name != "self" and self.self_name in statement.reads:  # `def forward(s, …)`
                renamed = statement.renamed(self.self_name, "self").text
                statement = Statement.parse(renamed, known_globals, index)
            found.append(replace(statement, gap=gap))
            previous_end = node.end_lineno or previous_end
        return _with_hidden_calls(found, self._calls_of_methods())

    def _text_of(self, node: ast.stmt, previous_end: int, following: ast.stmt | None) -> tuple[str, int]:
        """(dedented text of a statement with the comments directly above it, blank lines above)."""
        lines = self.lines
        start = node.lineno
        if node.lineno <= previous_end or (following is not None and following.lineno == node.end_lineno):
            text = ast.get_source_segment(self.text, node) or ""  # several statements on one line
            return text, 0
        while start - 1 > previous_end and (not (above := lines[start - 2].strip()) or above.startswith("#")):
            start -= 1
        first = start
        while not lines[first - 1].strip():
            first += 1
        return dedented("\n".join(lines[first - 1 : node.end_lineno])), first - start

    def _calls_of_methods(self) -> dict[str, frozenset[str]]:
        """Method → attributes of `self` that it uses, also through other methods."""
        direct: dict[str, frozenset[str]] = {}
        for node in self.class_node.body:
            if isinstance(node, ast.FunctionDef) and node.name not in ("__init__", "forward") and node.args.args:
                visitor = NameVisitor()
                visitor.visit(node)
                direct[node.name] = frozenset(visitor.calls)
        return {name: _through(calls, direct) for name, calls in direct.items()}

    def _header_end(self) -> int:
        """Last line of the signature."""
        arguments = self.forward.args
        parts: list[ast.AST | None] = [*ast.walk(arguments), self.forward.returns]
        return max([self.forward.lineno, *(getattr(part, "end_lineno", 0) for part in parts if part is not None)])

    @property
    def lines(self) -> list[str]:
        """Lines of the text as Python counts them: a form feed ends none."""
        return self.text.replace("\r\n", "\n").replace("\r", "\n").split("\n")

    def with_forward(self, forward_text: str, imports: Sequence[str] = ()) -> str:
        """The whole text with `forward` replaced by `forward_text` (dedented source of a function), and `imports` on top."""
        lines = self.lines
        first = self.forward.lineno - 1  # decorators stand above it, and stay
        margin = lines[self.forward.lineno - 1][: self.forward.col_offset]
        new = indented(forward_text, margin)
        if "\t" in margin:  # Python wants one kind of indentation in a block
            new = indented(forward_text.replace("\n    ", "\n\t"), margin)
        top = self._first_import()
        above = [*lines[:top], *dict.fromkeys(imports), *lines[top:first]]
        return "\n".join([*above, new, *lines[self.forward.end_lineno :]]).rstrip("\n") + "\n"

    def _first_import(self) -> int:
        """Index of the line of the first import that names no future feature; of the class where nothing is imported."""
        body = ast.parse(self.text).body
        imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
        plain = [node for node in imports if getattr(node, "module", None) != "__future__"]
        if plain:
            return plain[0].lineno - 1
        return (
            (imports[-1].end_lineno or 0)
            if imports
            else self.class_node.lineno - 1 - len(self.class_node.decorator_list)
        )


def _through(calls: frozenset[str], methods: dict[str, frozenset[str]]) -> frozenset[str]:
    """`calls`, with the calls of every method among them."""
    seen, open_names = set(calls), list(calls)
    while open_names:
        new = methods.get(open_names.pop(), frozenset()) - seen
        seen |= new
        open_names += new
    return frozenset(seen)


def _with_hidden_calls(statements: list[Statement], methods: dict[str, frozenset[str]]) -> list[Statement]:
    """Calls through methods count for the caller, and calls inside local functions for the statements that use these."""
    functions: dict[str, frozenset[str]] = {}
    for statement in statements:
        name = _function_name(statement)
        if name is not None:
            functions[name] = _through(statement.calls, methods)
    found = []
    for statement in statements:
        if _function_name(statement) is not None:
            found.append(statement.reading(frozenset()))
            continue
        used = [functions[name] for name in statement.reads if name in functions]
        found.append(statement.reading(_through(statement.calls.union(*used), methods)))
    return found


def _function_name(statement: Statement) -> str | None:
    """Name of the function that a statement defines, or under which it keeps a module: `norm = self.layernorm_0`."""
    node = statement.node
    if isinstance(node, ast.FunctionDef):
        return node.name
    targets = statement.targets
    plain = isinstance(statement.value, (ast.Lambda, ast.Attribute)) and isinstance(node, ast.Assign)
    return targets[0] if plain and len(targets) == 1 else None


def read_class(model: nn.Module, source: str | None = None, file_name: str | None = None) -> ClassSource | None:
    """Find the source of a model's class.

    Args:
        model: the instance.
        source: text or path of the file; where None, Python is asked for it.
        file_name: name of the file where `source` is a text.

    Returns:
        None where no source can be had, where the class belongs to an installed package, or where it does not define
        `forward` itself.
    """
    home = next((cls for cls in type(model).__mro__ if "forward" in cls.__dict__), type(model))
    if home is nn.Module:
        return None
    if source is not None:
        file = _existing_file(source)
        text = file.read_text(encoding="utf-8") if file else source
        file_name, whole = (file.name if file else file_name or "model.py"), True
    else:
        found = _text_of(home)
        if found is None:
            return None
        text, file_name, whole = found
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == home.__name__]
    for class_node in classes[-1:]:  # a later definition replaces an earlier one
        for node in class_node.body[::-1]:
            if isinstance(node, ast.FunctionDef) and node.name == "forward":
                return ClassSource(text, class_node, node, whole, file_name)
    return None


def _existing_file(source: str) -> Path | None:
    if "\n" in source or len(source) > 4096:
        return None
    path = Path(source)
    path = path / "model.py" if path.is_dir() else path
    return path if path.is_file() else None


def _text_of(cls: type) -> tuple[str, str, bool] | None:
    """Source of a class: its file where the module is one, else the text that its `forward` was compiled from (a cell)."""
    try:
        file = inspect.getsourcefile(cls)
    except (TypeError, OSError):  # built in, or typed at a prompt
        file = None
    module = sys.modules.get(cls.__module__)
    if file and is_installed_file(Path(file)):
        return None
    if file and module is not None and getattr(module, "__file__", None) and cls.__module__ != "__main__":
        lines = linecache.getlines(file, module.__dict__)
        if lines:
            return "".join(lines), Path(file).name, True
    code = getattr(inspect.unwrap(cls.forward), "__code__", None)  # type: ignore[attr-defined]
    lines = linecache.getlines(code.co_filename) if code is not None else []
    return ("".join(lines), f"{cls.__name__}.py", False) if lines else None


def is_installed_file(file: Path) -> bool:
    """Whether a file belongs to an installed package or to Python: such code is no export, and runs as it is."""
    folders = [Path(sysconfig.get_paths()[key]) for key in ("purelib", "platlib", "stdlib")]
    return any(folder.resolve() in file.resolve().parents for folder in folders)


def unified_diff(before: str, after: str, file_name: str) -> str:
    """Unified diff of two texts; empty where they are equal."""
    return "".join(
        difflib.unified_diff(
            before.splitlines(True), after.splitlines(True), f"exported/{file_name}", f"completed/{file_name}"
        )
    )
