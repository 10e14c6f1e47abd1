"""One statement of a `forward`: what it reads, writes and calls, and how its text is moved, renamed and cut.

Knows Python source only. Which statement computes which node is for `graph_values` to say.
"""

from __future__ import annotations

import ast
import builtins
import fnmatch
import io
import textwrap
import tokenize
from dataclasses import dataclass, replace

from utils.adapters.names import NameVisitor
from utils.loading.source_edits import Places, edited

_BUILTINS = frozenset(dir(builtins))
RETURNED = "__returned__"
"""Name under which a probe finds what a statement returned."""


@dataclass(frozen=True)
class Statement:
    """One top-level statement of a `forward`.

    Attributes:
        text: its source, dedented, with the comments that stand directly above it.
        reads: local or undefined names that it needs.
        writes: names that it binds, or whose objects it changes.
        calls: attributes of `self` that it uses.
        returns: whether it is, or contains, a `return`.
        origin: index in the original body; None for a statement that was written here.
        gap: number of blank lines above it in the original.
        transposed: those of `calls` of which only the transposed weight is used, as a tied head does.
    """

    text: str
    reads: frozenset[str]
    writes: frozenset[str]
    calls: frozenset[str]
    returns: bool = False
    origin: int | None = None
    gap: int = 0
    transposed: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str, known_globals: frozenset[str] = frozenset(), origin: int | None = None) -> Statement:
        """Read one statement. Names in `known_globals` and builtins are no local values unless it binds them."""
        text = text.strip("\n")
        body = ast.parse(text).body
        visitor = NameVisitor()
        for node in body:
            visitor.visit(node)
        foreign = (known_globals | _BUILTINS) - {"self"}
        return cls(
            text,
            frozenset(name for name in visitor.reads - foreign if name != "self"),
            frozenset(visitor.writes - (visitor.changes & foreign)),
            frozenset(visitor.calls),
            bool(_returns_of(body)),
            origin,
            transposed=frozenset(visitor.transposed),
        )

    @property
    def applies(self) -> frozenset[str]:
        """Attributes of `self` that it applies to something."""
        return self.calls - self.transposed

    @property
    def node(self) -> ast.stmt | None:
        """Its syntax tree; None for a comment."""
        body = ast.parse(self.text).body
        return body[-1] if body else None

    @property
    def value(self) -> ast.expr | None:
        """What it assigns, returns or evaluates; None for statements of other kinds."""
        value = getattr(self.node, "value", None)
        return value if isinstance(value, ast.expr) else None

    @property
    def label(self) -> str:
        """Its first line of code, for messages."""
        first = self.node.lineno - 1 if self.node is not None else 0
        line = self.text.splitlines()[first].strip() if self.text else ""
        return line if self.node is None or self.node.end_lineno == first + 1 else f"{line} …"

    def with_patterns(self, attributes: list[str]) -> Statement:
        """The same statement, with patterns such as `layernorm_*` replaced by the attributes that fit them."""
        fitting = {name for pattern in self.calls if pattern.strip("*") for name in fnmatch.filter(attributes, pattern)}
        return replace(self, calls=self.calls | fitting)

    def reading(self, calls: frozenset[str]) -> Statement:
        """The same statement, known to use these attributes of `self`."""
        return replace(self, calls=calls)

    def renamed(self, old: str, new: str) -> Statement:
        """The same statement, reading `new` where it read `old`. Only names that are read change."""
        spots: list[tuple[ast.expr, str]] = [
            (node, new)
            for node in ast.walk(ast.parse(self.text))
            if isinstance(node, ast.Name) and node.id == old and isinstance(node.ctx, ast.Load)
        ]
        return replace(self, text=replaced(self.text, spots), reads=self.reads - {old} | {new})

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

    def changes_in_place(self, name: str) -> bool:
        """Whether it changes the object behind a name instead of binding another."""
        stored = [n for n in ast.walk(ast.parse(self.text)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        added = [n for n in ast.walk(ast.parse(self.text)) if isinstance(n, ast.AugAssign)]
        return all(n.id != name for n in stored) or any(getattr(n.target, "id", "") == name for n in added)

    def takes_apart(self, name: str) -> bool:
        """Whether it reads a name as a collection: an entry of it, its attributes or length, or its parts one by one."""
        tree = ast.parse(self.text)
        parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load):
                parent = parents[node]
                in_parts = isinstance(parent, (ast.Subscript, ast.Starred, ast.Return, ast.Tuple, ast.List, ast.Dict))
                unpacked = isinstance(parent, ast.Assign) and any(isinstance(t, ast.Tuple) for t in parent.targets)
                built_in = isinstance(parent, ast.Call) and getattr(parent.func, "id", "") in _BUILTINS
                if in_parts or unpacked or built_in or isinstance(parent, (ast.For, ast.comprehension)):
                    return True
        return False

    @property
    def is_plain_return(self) -> bool:
        """Whether it is a `return` that every call reaches."""
        return isinstance(self.node, ast.Return)

    def returned(self) -> list[ast.expr | None]:
        """The expressions of its `return`s, in the order in which they stand."""
        return [node.value for node in _returns_of(ast.parse(self.text).body)]


def _returns_of(body: list[ast.stmt]) -> list[ast.Return]:
    """Returns of these statements themselves, not those of functions that they define."""
    found: list[ast.Return] = []
    stack: list[ast.AST] = list(reversed(body))
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Return):
            found.append(node)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            stack.extend(reversed(list(ast.iter_child_nodes(node))))
    return found


class _ReturnToName(ast.NodeTransformer):
    def visit_Return(self, node: ast.Return) -> ast.stmt:
        value = node.value if node.value is not None else ast.Constant(None)
        return ast.copy_location(ast.Assign([ast.Name(RETURNED, ast.Store())], value), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt:
        return node  # its returns are its own

    visit_Lambda = visit_FunctionDef  # type: ignore[assignment]


# ---- text ------------------------------------------------------------------------------------------------------------


def replaced(text: str, spots: list[tuple[ast.expr, str]]) -> str:
    """`text` with each expression of its syntax tree replaced; expressions must not lie inside one another."""
    places = Places(text)
    return edited(text, [places.replacing(node, new) for node, new in spots])


def lines_in_strings(text: str) -> set[int]:
    """Numbers of the lines (from 1) that begin inside a string: their leading blanks belong to a value."""
    inside: set[int] = set()
    starts: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "STRING":
            inside.update(range(token.start[0] + 1, token.end[0] + 1))
        elif kind in ("FSTRING_START", "TSTRING_START"):
            starts.append(token.start[0])
        elif kind in ("FSTRING_END", "TSTRING_END"):
            inside.update(range(starts.pop() + 1, token.end[0] + 1))
    return inside


def indented(text: str, indent: str) -> str:
    """`text` moved right; the inside of strings and blank lines stay."""
    kept = lines_in_strings(text)
    lines = enumerate(text.splitlines(), start=1)
    return "\n".join(line if number in kept or not line.strip() else indent + line for number, line in lines)


def dedented(text: str) -> str:
    """`text` moved left by the indentation of its first line of code; the inside of strings stays."""
    lines = text.splitlines()
    first = next((line for line in lines if line.strip() and not line.lstrip().startswith("#")), "")
    columns = len(first) - len(first.lstrip())
    if not columns:
        return text
    kept = lines_in_strings("if True:\n" + text) if first[0].isspace() else set()
    moved = [
        line if number + 1 in kept else (line[columns:] if not line[:columns].strip() else line.lstrip())
        for number, line in enumerate(lines, start=1)
    ]
    return "\n".join(moved)


def assignment(name: str, expression: str, note: str = "", width: int = 112) -> str:
    """`name = expression` with a note behind it, wrapped where a line would be longer than `width`."""
    line = f"{name} = {expression}"
    if note and len(line) + len(note) + 4 <= width:
        return f"{line}  # {note}"
    above = [f"# {part}" for part in textwrap.wrap(note, width - 2)] if note else []
    return "\n".join([*above, *_wrapped(line, width)])


def _wrapped(line: str, width: int) -> list[str]:
    """A line broken at its outermost bracket, or in brackets around the right side of an assignment, until it fits."""
    if len(line) <= width:
        return [line]
    name, _, right = line.partition(" = ")
    value = ast.parse(right.strip(), mode="eval").body if right and name.isidentifier() else None
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        terms = [ast.get_source_segment(right, term) or "" for term in _summands(value)]
        return [f"{name} = (", f"    {terms[0]}", *(f"    + {term}" for term in terms[1:]), ")"]
    start, end = _longest_bracket(line)
    if end <= start + 1:
        return [line]
    inner = line[start + 1 : end]
    parts = [inner] if len(inner) + 4 <= width else [f"{part}," for part in _at_commas(inner)]
    return [line[: start + 1], *(f"    {one}" for part in parts for one in _wrapped(part, width - 4)), line[end:]]


def _summands(value: ast.expr) -> list[ast.expr]:
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return [*_summands(value.left), value.right]
    return [value]


def _outermost(line: str) -> list[tuple[int, int]]:
    """Where the outermost brackets of a line open and close."""
    found, depth, start = [], 0, 0
    for index, sign in enumerate(line):
        if sign in "([{":
            start = index if depth == 0 else start
            depth += 1
        elif sign in ")]}":
            depth -= 1
            if depth == 0:
                found.append((start, index))
    return found


def _longest_bracket(line: str) -> tuple[int, int]:
    """The longest of the outermost round brackets of a line; (0, 0) where there is none."""
    groups = [(start, end) for start, end in _outermost(line) if line[start] == "("]
    return max(groups, key=lambda group: group[1] - group[0], default=(0, 0))


def _at_commas(arguments: str) -> list[str]:
    """The arguments of a call, one by one."""
    inside = [range(start, end) for start, end in _outermost(arguments)]
    cuts = [i for i, sign in enumerate(arguments) if sign == "," and not any(i in group for group in inside)]
    starts = [0, *(cut + 1 for cut in cuts)]
    return [arguments[start:end].strip() for start, end in zip(starts, [*cuts, len(arguments)])]
