"""The text of a `forward`, statement by statement: what each one reads, writes and calls, and how to write it anew.

Knows Python source only; what a missing name means is for `graph_executor` to say.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import inspect
import linecache
import sys
import sysconfig
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

_BUILTINS = frozenset(dir(builtins))
RETURNED = "__returned__"
"""Name under which a probe finds what a statement returned."""


@dataclass(frozen=True)
class Statement:
    """One top-level statement of a `forward`.

    Attributes:
        text: its source, dedented, with the comments that stand directly above it.
        reads: local or undefined names that it needs.
        writes: names that it binds.
        calls: attributes of `self` that it uses.
        returns: whether it is, or contains, a `return`.
        origin: index in the original body; None for a statement that was written here.
    """

    text: str
    reads: frozenset[str]
    writes: frozenset[str]
    calls: frozenset[str]
    returns: bool = False
    origin: int | None = None

    @classmethod
    def parse(cls, text: str, known_globals: frozenset[str] = frozenset(), origin: int | None = None) -> Statement:
        """Read one statement. Names in `known_globals` and builtins are no local values unless it binds them."""
        body = ast.parse(textwrap.dedent(text)).body
        visitor = _NameVisitor()
        for node in body:
            visitor.visit(node)
        reads = {name for name in visitor.reads if name == "self" or name not in known_globals | _BUILTINS}
        returns = any(isinstance(node, ast.Return) for top in body for node in ast.walk(top))
        return cls(
            textwrap.dedent(text).strip("\n"),
            frozenset(reads - {"self"}),
            frozenset(visitor.writes),
            frozenset(visitor.calls),
            returns,
            origin,
        )

    def renamed(self, old: str, new: str) -> Statement:
        """The same statement, reading `new` where it read `old`. Only names that are read change."""
        spots = [
            (node.lineno, node.col_offset)
            for node in ast.walk(ast.parse(self.text))
            if isinstance(node, ast.Name) and node.id == old and isinstance(node.ctx, ast.Load)
        ]
        lines = self.text.splitlines()
        for row, column in sorted(spots, reverse=True):
            encoded = lines[row - 1].encode()
            lines[row - 1] = (encoded[:column] + new.encode() + encoded[column + len(old.encode()) :]).decode()
        return replace(self, text="\n".join(lines), reads=self.reads - {old} | {new})

    def program(self, name: str = "<completed forward>") -> object:
        """Code object that runs the statement with its names in a dict; a `return` binds `RETURNED`."""
        tree = _ReturnToName().visit(ast.parse(self.text))
        return compile(ast.fix_missing_locations(tree), name, "exec")

    @property
    def targets(self) -> tuple[str, ...]:
        """Names that the statement binds, in the order in which they stand."""
        stored = [n for n in ast.walk(ast.parse(self.text)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        stored.sort(key=lambda n: (n.lineno, n.col_offset))
        return tuple(dict.fromkeys(n.id for n in stored if n.id in self.writes and n.id != "_"))

    def ordered_reads(self) -> tuple[str, ...]:
        """Names that it needs, in the order in which they stand."""
        loaded = [n for n in ast.walk(ast.parse(self.text)) if isinstance(n, ast.Name) and n.id in self.reads]
        loaded.sort(key=lambda n: (n.lineno, n.col_offset))
        return tuple(dict.fromkeys(n.id for n in loaded))


class _ReturnToName(ast.NodeTransformer):
    def visit_Return(self, node: ast.Return) -> ast.stmt:
        value = node.value if node.value is not None else ast.Constant(None)
        return ast.copy_location(ast.Assign([ast.Name(RETURNED, ast.Store())], value), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt:
        return node  # its returns are its own

    visit_Lambda = visit_FunctionDef  # type: ignore[assignment]


class _NameVisitor(ast.NodeVisitor):
    """Collect names in the order of evaluation: values before targets, so that `x = f(x)` reads and writes x."""

    def __init__(self) -> None:
        self.reads: set[str] = set()
        self.writes: set[str] = set()
        self.calls: set[str] = set()
        self._inner: list[set[str]] = []

    def visit_Name(self, node: ast.Name) -> None:
        if any(node.id in names for names in self._inner):
            return
        if isinstance(node.ctx, ast.Load):
            if node.id not in self.writes:
                self.reads.add(node.id)
        else:
            self.writes.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            self.calls.add(node.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr") and len(node.args) > 1:
            attribute = node.args[1]
            if isinstance(attribute, ast.Constant) and isinstance(attribute.value, str):
                self.calls.add(attribute.value)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        if isinstance(node.target, ast.Name):
            self.reads |= {node.target.id} - self.writes
        self.visit(node.target)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self.visit(node.target)
        for statement in [*node.body, *node.orelse]:
            self.visit(statement)

    def _visit_branches(self, branches: list[list[ast.stmt]]) -> None:
        """What only one branch writes may still be needed from before in another."""
        before, after = set(self.writes), set(self.writes)
        for branch in branches:
            self.writes = set(before)
            for statement in branch:
                self.visit(statement)
            after |= self.writes
        self.writes = after

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._visit_branches([node.body, node.orelse])

    def _visit_comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        bound: set[str] = set()
        for generator in node.generators:
            self.visit(generator.iter)
            bound |= {n.id for n in ast.walk(generator.target) if isinstance(n, ast.Name)}
        self._inner.append(bound)
        for generator in node.generators:
            for condition in generator.ifs:
                self.visit(condition)
        for part in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.visit(part)
        self._inner.pop()

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _visit_comprehension

    def visit_Lambda(self, node: ast.Lambda) -> None:
        names = {argument.arg for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]}
        names |= {argument.arg for argument in (node.args.vararg, node.args.kwarg) if argument}
        self._inner.append(names)
        self.visit(node.body)
        self._inner.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        inner = _NameVisitor()
        inner.writes = {argument.arg for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]}
        for statement in node.body:
            inner.visit(statement)
        self.reads |= inner.reads - self.writes
        self.calls |= inner.calls
        self.writes.add(node.name)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.writes |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}

    visit_ImportFrom = visit_Import

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.writes.add(node.name)
        self.generic_visit(node)


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
        return "\n".join(self.text.splitlines()[self.class_node.lineno - 1 : self.class_node.end_lineno]) + "\n"

    @property
    def self_name(self) -> str:
        """What `forward` calls its instance; completed source calls it self."""
        arguments = [*self.forward.args.posonlyargs, *self.forward.args.args]
        return arguments[0].arg if arguments else "self"

    def statements(self, known_globals: frozenset[str]) -> list[Statement]:
        """The top-level statements of `forward`, each with the comments above it; the docstring is left out."""
        lines = self.text.splitlines()
        body = self.forward.body[1:] if ast.get_docstring(self.forward) is not None else self.forward.body
        previous_end = self._header_end() if body is self.forward.body else self.forward.body[0].end_lineno or 0
        found = []
        for index, node in enumerate(body):
            start = node.lineno
            while start - 1 > previous_end and lines[start - 2].lstrip().startswith("#"):
                start -= 1
            text = "\n".join(lines[start - 1 : node.end_lineno])
            if node.lineno <= previous_end:  # several statements on one line
                text = ast.get_source_segment(self.text, node) or text
            statement = Statement.parse(_dedented(text, node.col_offset), known_globals, index)
            if self.self_name != "self" and self.self_name in statement.reads:  # `def forward(s, …)`
                renamed = statement.renamed(self.self_name, "self").text
                statement = Statement.parse(renamed, known_globals, index)
            found.append(statement)
            previous_end = node.end_lineno or previous_end
        return found

    def _header_end(self) -> int:
        """Last line of the signature."""
        arguments = self.forward.args
        parts: list[ast.AST | None] = [*ast.walk(arguments), self.forward.returns]
        return max([self.forward.lineno, *(getattr(part, "end_lineno", 0) for part in parts if part is not None)])

    def with_forward(self, forward_text: str) -> str:
        """The whole text with `forward` replaced by `forward_text` (dedented source of a function)."""
        lines = self.text.splitlines()
        indent = " " * self.forward.col_offset
        new = [indent + line if line.strip() else "" for line in forward_text.splitlines()]
        first = min([self.forward.lineno, *(d.lineno for d in self.forward.decorator_list)]) - 1
        return "\n".join(lines[:first] + new + lines[self.forward.end_lineno :]) + "\n"


def _dedented(text: str, columns: int) -> str:
    lines = text.splitlines()
    return "\n".join(line[columns:] if line[:columns].strip() == "" else line.lstrip() for line in lines)


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
    name = type(model).__name__
    if source is not None:
        file = _existing_file(source)
        text = file.read_text(encoding="utf-8") if file else source
        file_name, whole = (file.name if file else file_name or "model.py"), True
    else:
        found = _text_of(type(model))
        if found is None:
            return None
        text, file_name, whole = found
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name]
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
    if file and _is_installed(Path(file)):
        return None
    if file and module is not None and getattr(module, "__file__", None) and cls.__module__ != "__main__":
        lines = linecache.getlines(file, module.__dict__)
        if lines:
            return "".join(lines), Path(file).name, True
    code = getattr(inspect.unwrap(cls.forward), "__code__", None)  # type: ignore[attr-defined]
    lines = linecache.getlines(code.co_filename) if code is not None else []
    return ("".join(lines), f"{cls.__name__}.py", False) if lines else None


def _is_installed(file: Path) -> bool:
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
