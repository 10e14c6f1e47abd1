"""Which statements compute which nodes: by the names that they bind, the modules that they apply, and sums.

Reads source and canvas, runs nothing; placing statements is left to `graph_values`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from utils.adapters.canvas import Canvas, Node
from utils.adapters.signature import is_output_of
from utils.adapters.statements import Statement

_RESHAPES = ("transpose", "permute", "contiguous", "view", "reshape", "unflatten", "flatten", "squeeze", "unsqueeze")
_SCOPES = (ast.FunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)


@dataclass(frozen=True)
class Place:
    """Where a statement computes a node inside a larger expression.

    Attributes:
        expression: the part whose value is the node's output; a sum, or a call with what reshapes or unpacks it.
        names: the variables that it reads itself, as they stand.
        nodes: nodes that are computed inside it.
    """

    expression: ast.expr
    names: tuple[ast.Name, ...]
    nodes: tuple[str, ...]


class StatementOwners:
    """Which statement belongs to which node.

    Attributes:
        producers: node → the statements that bind its output.
        inside: node → the statement that computes it on the way to something else.
    """

    def __init__(self, canvas: Canvas, statements: list[Statement]) -> None:
        self.canvas = canvas
        self.statements = statements
        self.producers: dict[str, list[Statement]] = {}
        self.inside: dict[str, Statement] = {}
        self._sums = [node for node in canvas.nodes if node.role == "residual" and not node.modules]
        self._bindings: dict[str, list[tuple[int, Node | None]]] = {}  # variable → (index of statement, node)
        self._find_producers()
        self._find_inside()

    # ---- whole statements -------------------------------------------------------------------------------------------

    def owner(self, statement: Statement) -> Node | None:
        """The node whose output, or a step towards it, a statement binds."""
        named = [node for name in statement.writes if (node := self.canvas.node_of(name)) is not None]
        if named:
            return max(named, key=self.canvas.nodes.index)
        if statement.returns:
            return None
        called = [node for node in self.canvas.nodes if set(node.modules) & statement.applies]
        return self._residual_of(statement, called) or max(called, key=self.canvas.nodes.index, default=None)

    def owner_of_variable(self, variable: str, reader: Statement | None = None) -> Node | None:
        """The node that a variable belongs to where `reader` reads it: that of its latest binding above, else of the first."""
        named = self.canvas.node_of(variable)
        if named is not None:
            return named
        bindings = self._bindings.get(variable, [])
        above = [b for b in bindings if reader is not None and reader.origin is not None and b[0] < reader.origin]
        return above[-1][1] if above else (bindings[0][1] if bindings else None)

    def made_of(self, variable: str) -> set[str]:
        """Nodes that went into a variable which belongs to none of them, such as `x = embedding_0_output + embedding_1_output`."""
        found: set[str] = set()
        open_names, seen = [variable], {variable}
        while open_names:
            name = open_names.pop()
            for statement in self.statements:
                if name not in statement.writes or statement.returns:
                    continue
                found |= {node.name for node in self.canvas.nodes if set(node.modules) & statement.applies}
                for read in sorted(statement.reads - seen):
                    seen.add(read)
                    owner = self.owner_of_variable(read, statement)
                    if owner is None:
                        open_names.append(read)
                    elif owner.role != "input":
                        found.add(owner.name)
        return found

    def _find_producers(self) -> None:
        for index, statement in enumerate(self.statements):
            owner = None if statement.returns else self.owner(statement)
            if owner is not None:
                self.producers.setdefault(owner.name, []).append(statement)
            else:  # `h = mhsa_0_output * 2` hands on what it reads
                read = [self.owner_of_variable(name, statement) for name in sorted(statement.reads)]
                owners = {one.name: one for one in read if one is not None and one.role != "input"}
                owner = next(iter(owners.values())) if len(owners) == 1 else None
            at = statement.origin if statement.origin is not None else index
            for name in statement.writes:
                self._bindings.setdefault(name, []).append((at, owner))
        for node in self.canvas.nodes:
            if node.name in self.producers:
                self.producers[node.name] = self._leading_to_its_name(node)
                if not self._computes(node):
                    del self.producers[node.name]

    def _leading_to_its_name(self, node: Node) -> list[Statement]:
        """The statements of a node without those that apply it once more, to something else and under another name."""
        statements = self.producers[node.name]
        needed = {
            name for s in statements if any(self.canvas.node_of(n) == node for n in s.writes) for name in s.writes
        }
        if not needed:
            return statements
        needed -= {"_"}
        for _ in statements:
            needed |= {name for s in statements if s.writes & needed for name in s.reads}
        return [s for s in statements if s.writes & needed]

    def _computes(self, node: Node) -> bool:
        """Whether the statements of a node with modules apply one of them, or bind its output outright."""
        applied = {name for statement in self.producers[node.name] for name in statement.calls}
        bound = {name for statement in self.producers[node.name] for name in statement.targets}
        return not node.modules or bool(applied & set(node.modules)) or any(is_output_of(n, node.name) for n in bound)

    def _residual_of(self, statement: Statement, called: list[Node]) -> Node | None:
        """The residual behind the nodes that a sum adds, where no statement binds it by name."""
        terms = _terms(statement)
        owners = [self._nodes_in(term, called, statement) for term in terms]
        if sum(bool(nodes) for nodes in owners) < 2 or len({node.name for nodes in owners for node in nodes}) < 2:
            return None
        latest = max((node for nodes in owners for node in nodes), key=self.canvas.nodes.index)
        following = next((node for node in self.canvas.after(latest) if node.role != "dropout"), None)
        if following is None or following.role != "residual" or following.modules:
            return None
        bound = {name for other in self.statements for name in other.writes}
        return None if any(self.canvas.node_of(name) == following for name in bound) else following

    def _nodes_in(self, expression: ast.expr, called: list[Node], reader: Statement) -> list[Node]:
        """Nodes whose variables or modules an expression uses."""
        names = {n.id for n in ast.walk(expression) if isinstance(n, ast.Name)}
        attributes = set(_self_attributes(expression))
        owners = [self.owner_of_variable(name, reader) for name in sorted(names)]
        found = [node for node in owners if node is not None and node.role != "input"]
        return found + [node for node in called if set(node.modules) & attributes]

    # ---- parts of statements ----------------------------------------------------------------------------------------

    def _find_inside(self) -> None:
        for node in self.canvas.nodes:
            if node.name in self.producers:
                continue
            for statement in self.statements:
                if self.place(statement, node) is not None:
                    self.inside[node.name] = statement
                    break

    def place(self, statement: Statement, node: Node) -> Place | None:
        """Where a statement computes a node on the way to something else; None where it does not."""
        tree = statement.node
        if tree is None:
            return None
        expression = self._sum_of(statement, tree, node) if node.role == "residual" else self._call_of(tree, node)
        if expression is None:
            return None
        names, nodes = self._own_reads(statement, expression, node)
        return Place(expression, tuple(names), tuple(nodes))

    def _call_of(self, tree: ast.AST, node: Node) -> ast.expr | None:
        """The last call of the node's modules, with the reshaping and unpacking around it."""
        parents = {child: parent for parent in _walk(tree) for child in ast.iter_child_nodes(parent)}
        calls = [one for one in _walk(tree) if isinstance(one, ast.Call) and module_called(one) in node.modules]
        outermost = [call for call in calls if not any(call in _inner(other) for other in calls)]
        if len(outermost) != 1:
            return None
        expression: ast.expr = outermost[0]
        while True:
            parent = parents.get(expression)
            above = parents.get(parent) if isinstance(parent, ast.Attribute) else None
            if isinstance(parent, ast.Subscript) and parent.value is expression:
                expression = parent
            elif isinstance(parent, ast.Attribute) and isinstance(above, ast.Call) and parent.attr in _RESHAPES:
                expression = above
            else:
                return expression

    def _sum_of(self, statement: Statement, tree: ast.AST, node: Node) -> ast.expr | None:
        """The sum that stands for a residual: it adds the branch that precedes it to something else."""
        inputs = [one for name in node.inputs if (one := self.canvas.node_of(name)) is not None]
        behind = [one for one in self.canvas.before(node) if one.role != "input"]
        branches = inputs or behind[:1]
        for found in _walk(tree):
            if not (isinstance(found, ast.BinOp) and isinstance(found.op, ast.Add)):
                continue
            added = {n.name for term in summands(found) for n in self._outermost_nodes(term, statement)}
            known = {branch.name for branch in branches}
            if known and known <= added and len(added) > 1 and node.name not in added:
                return found
        return None

    def _outermost_nodes(self, expression: ast.expr, reader: Statement) -> list[Node]:
        """Nodes whose output an expression is, not those that went into it."""
        if isinstance(expression, ast.Name):
            owner = self.owner_of_variable(expression.id, reader)
            return [owner] if owner is not None and owner.role != "input" else []
        if isinstance(expression, ast.Subscript):
            return self._outermost_nodes(expression.value, reader)
        if isinstance(expression, ast.Call):
            module = module_called(expression)
            return [node for node in self.canvas.nodes if module in node.modules]
        return []

    def reads_of(self, statement: Statement, node: Node) -> tuple[list[ast.Name], list[str]]:
        """(variables, nodes computed in the same statement) that go into a node, as far as one statement shows."""
        place = self.place(statement, node) if node.name in self.inside else None
        if place is not None:
            return list(place.names), list(place.nodes)
        tree = statement.node
        return self._own_reads(statement, tree, node) if tree is not None else ([], [])

    def _own_reads(self, statement: Statement, tree: ast.AST, node: Node) -> tuple[list[ast.Name], list[str]]:
        names: list[ast.Name] = []
        nodes: list[str] = []
        stack: list[ast.AST] = [tree]
        while stack:
            one = stack.pop(0)
            module = module_called(one) if isinstance(one, ast.Call) else None
            other = next((n for n in self.canvas.nodes if module in n.modules and n != node), None)
            if other is None and isinstance(one, ast.BinOp):
                other = next((n for n in self._sums if n != node and self._sum_of(statement, one, n) is one), None)
            if other is not None:
                nodes.append(other.name)
                if other.drawn or not self.canvas.drawn:  # what the canvas does not show stands in no edge's way
                    continue
            if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load):
                names.append(one)
            stack = [*ast.iter_child_nodes(one), *stack]
        return names, nodes


def _terms(statement: Statement) -> list[ast.expr]:
    """What a statement that binds one name to a sum adds; empty for other statements."""
    tree = statement.node
    if isinstance(tree, ast.AugAssign) and isinstance(tree.op, ast.Add) and isinstance(tree.target, ast.Name):
        return [ast.Name(tree.target.id, ast.Load()), *summands(tree.value)]
    if isinstance(tree, (ast.Assign, ast.AnnAssign)) and len(statement.targets) == 1 and tree.value is not None:
        terms = summands(tree.value)
        return terms if len(terms) > 1 else []
    return []


def summands(value: ast.expr) -> list[ast.expr]:
    """The terms of a sum; an expression that is none is its own only term."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return [*summands(value.left), *summands(value.right)]
    return [value]


def module_called(call: ast.Call) -> str | None:
    """`ffn_0` for `self.ffn_0(x)`."""
    function = call.func
    plain = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
    return function.attr if plain and isinstance(function, ast.Attribute) and _is_self(function.value) else None


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _self_attributes(expression: ast.expr) -> Iterator[str]:
    for node in ast.walk(expression):
        if isinstance(node, ast.Attribute) and _is_self(node.value):
            yield node.attr


def _walk(tree: ast.AST) -> Iterable[ast.AST]:
    """Nodes of a tree that are evaluated once, where they stand: bodies of functions, loops and branches are left out."""
    compound = (ast.For, ast.While, ast.If, ast.With, ast.Try, ast.Match, *_SCOPES)
    if isinstance(tree, compound):
        return
    yield tree
    for child in ast.iter_child_nodes(tree):
        yield from _walk(child)


def _inner(call: ast.Call) -> set[ast.AST]:
    return set(ast.walk(call)) - {call}
