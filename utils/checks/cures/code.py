"""A model's source as cures see it: the classes of its modules, their statements, and edits that keep the layout."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TypeVar

from utils.adapters.statements import dedented
from utils.loading.source_edits import Edit, Places

Node = TypeVar("Node", bound=ast.AST)
Function = ast.FunctionDef
_ATOMS = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant, ast.Tuple, ast.List)
_CONSTRUCTION = ("__init__", "__post_init__", "reset_parameters")


class Code:
    """Source text with its syntax tree.

    Args:
        text: valid Python.
        class_names: the classes that may be changed; None: all of the text. Functions that stand beside them may be, too.

    Example:
        >>> code = Code("class M(nn.Module):  forward = lambda self, x: F.softmax(x, 1)")
        >>> [code.source(call) for call in code.calls("softmax", functions=code.classes)]
        ['F.softmax(x, 1)']
    """

    def __init__(self, text: str, class_names: Iterable[str] | None = None) -> None:
        self.text = text
        self.tree = ast.parse(text)
        self.places = Places(text)
        self._parents = {child: parent for parent in ast.walk(self.tree) for child in ast.iter_child_nodes(parent)}
        self._wanted = None if class_names is None else set(class_names)
        self.classes = [node for node in self.definitions if isinstance(node, ast.ClassDef)]

    # ---- what there is ----------------------------------------------------------------------------------------------
    @cached_property
    def definitions(self) -> list[ast.ClassDef | Function]:
        """The wanted classes and every class and function beside them that they name, in the order of the text."""
        every = [node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)]
        wanted = [node for node in every if self._wanted is None or node.name in self._wanted]
        scopes = {self._parents[node] for node in wanted}
        beside = {node.name: node for scope in scopes for node in getattr(scope, "body", ())
                  if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not isinstance(scope, ast.ClassDef)}  # fmt: skip
        found: dict[str, ast.ClassDef | Function] = {n.name: n for n in wanted if beside.get(n.name) is n}
        waiting = list(found.values())
        while waiting:
            named = names_in(waiting.pop())
            new = [beside[name] for name in named if name in beside and name not in found]
            found.update({node.name: node for node in new})
            waiting += new
        return sorted(found.values(), key=lambda node: node.lineno)

    def construction(self) -> str:
        """Everything that runs while a module is made, in a form that two texts can be compared by."""
        parts: list[ast.AST] = [*self.constructors]
        heads = [ast.ClassDef(c.name, c.bases, c.keywords, self._fields(c), c.decorator_list) for c in self.classes]
        helpers = {name for constructor in self.constructors for name in names_in(constructor)}
        parts += [node for node in self.definitions if isinstance(node, ast.FunctionDef) and node.name in helpers]
        return "\n".join(ast.dump(part) for part in [*heads, *parts])

    @staticmethod
    def _fields(cls: ast.ClassDef) -> list[ast.stmt]:
        return [node for node in cls.body if not isinstance(node, ast.FunctionDef)]

    @cached_property
    def constructors(self) -> list[Function]:
        """Methods that run while a module is made: `__init__`, what it calls, and what is named like one that sets weights."""
        return [method for cls in self.classes for method in _methods(cls) if method.name in self._constructing(cls)]

    def _constructing(self, cls: ast.ClassDef) -> set[str]:
        named = [method for method in _methods(cls) if _constructs(method.name)]
        return {method.name for method in named} | {n for m in named for n in attributes_in(m)} - {"forward"}

    @cached_property
    def forwards(self) -> list[Function]:
        """Methods that run when the model is called, and the functions of the file that they may use."""
        beside = [node for node in self.definitions if isinstance(node, ast.FunctionDef)]
        made = set(self.constructors)
        return [method for cls in self.classes for method in _methods(cls) if method not in made] + beside

    def constructor_of(self, cls: ast.ClassDef) -> Function | None:
        """The `__init__` of a class."""
        return next((n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)

    def forward_of(self, cls: ast.ClassDef) -> Function | None:
        """The `forward` of a class."""
        return next((n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "forward"), None)

    def find(
        self, kind: type[Node] | tuple[type[Node], ...], functions: Iterable[ast.AST] | None = None
    ) -> Iterator[Node]:
        """Nodes of a kind in functions (in `forwards` where none are given), in the order of the text."""
        seen: set[ast.AST] = set()
        for function in self.forwards if functions is None else functions:
            nodes = [node for node in ast.walk(function) if isinstance(node, kind) and node not in seen]
            seen.update(nodes)
            yield from sorted(nodes, key=lambda node: (getattr(node, "lineno", 0), getattr(node, "col_offset", 0)))

    def calls(self, *names: str, functions: Iterable[ast.AST] | None = None) -> Iterator[ast.Call]:
        """Calls of functions or methods by their last name: "softmax" finds F.softmax(x), x.softmax() and softmax(x)."""
        return (call for call in self.find(ast.Call, functions) if called(call) in names)

    def parent(self, node: ast.AST) -> ast.AST | None:
        """The node that holds a node."""
        return self._parents.get(node)

    def enclosing(self, node: ast.AST, kind: type[Node]) -> Node | None:
        """The innermost node of a kind around a node."""
        parent = self._parents.get(node)
        while parent is not None and not isinstance(parent, kind):
            parent = self._parents.get(parent)
        return parent

    def statement(self, node: ast.AST) -> ast.stmt:
        """The statement that holds an expression."""
        while not isinstance(node, ast.stmt):
            node = self._parents[node]
        return node

    def function(self, node: ast.AST) -> Function | None:
        """The function around a node."""
        return self.enclosing(node, ast.FunctionDef)

    def made(self, cls: ast.ClassDef) -> dict[str, ast.expr]:
        """Attributes that a class's `__init__` sets: name → the expression, the last where there are several."""
        constructor = self.constructor_of(cls)
        found: dict[str, ast.expr] = {}
        for node in [] if constructor is None else self.find(ast.Assign, [constructor]):
            targets, values = [node.targets[0]], [node.value]
            if isinstance(targets[0], ast.Tuple) and isinstance(values[0], ast.Tuple):
                targets, values = targets[0].elts, values[0].elts
            found.update({t.attr: v for t, v in zip(targets, values) if isinstance(t, ast.Attribute) and of_self(t)})
        return found

    # ---- text -------------------------------------------------------------------------------------------------------
    def source(self, node: ast.expr | ast.stmt) -> str:
        """A node as it is written."""
        return self.places.text(self.places.begin(node), self.places.end(node))

    def operand(self, node: ast.expr) -> str:
        """An expression as it is written, in brackets where a dot or an operator behind it would bind otherwise."""
        return self.source(node) if isinstance(node, _ATOMS) else f"({self.source(node)})"

    @cached_property
    def line_end(self) -> str:
        """How lines of this text end."""
        return "\r\n" if "\r\n" in self.text else "\n"

    def margin(self, statement: ast.stmt) -> str:
        """The indentation of a statement."""
        start = self.places.line(statement.lineno)
        return self.places.text(start, start + statement.col_offset) if self.begins_line(statement) else ""

    def begins_line(self, statement: ast.stmt) -> bool:
        """Whether only blanks stand before a statement on its line."""
        start = self.places.line(statement.lineno)
        return not self.places.text(start, start + statement.col_offset).strip()

    # ---- edits ------------------------------------------------------------------------------------------------------
    def replace(self, node: ast.expr | ast.stmt | ast.arg | ast.keyword, new: str) -> Edit:
        """Write something else for a node."""
        return self.places.replacing(node, new)

    def before(self, statement: ast.stmt, *lines: str) -> list[Edit]:
        """Lines above a statement, with its indentation; nothing for a statement that shares its line with another."""
        if not self.begins_line(statement):
            return []
        place = self.places.line(statement.lineno)
        return [Edit(place, place, "".join(f"{self.margin(statement)}{line}{self.line_end}" for line in lines))]

    def after(self, statement: ast.stmt, *lines: str) -> list[Edit]:
        """Lines below a statement, with its indentation."""
        if not self.begins_line(statement) or statement.end_lineno is None:
            return []
        place = self.places.line(statement.end_lineno + 1)
        text = "".join(f"{self.margin(statement)}{line}{self.line_end}" for line in lines)
        if place == len(self.places.data) and not self.text.endswith(("\n", "\r")):
            text = self.line_end + text.removesuffix(self.line_end)
        return [Edit(place, place, text)]

    def remove(self, statement: ast.stmt) -> list[Edit]:
        """Take a statement out; `pass` stands in where its block would be empty."""
        siblings = next(
            (block for block in self._blocks(self._parents[statement]) if statement in block), [statement, statement]
        )
        if len(siblings) == 1 or not self.begins_line(statement) or statement.end_lineno is None:
            return [self.replace(statement, "pass")]
        return [Edit(self.places.line(statement.lineno), self.places.line(statement.end_lineno + 1), "")]

    def unwrap(self, block: ast.With) -> list[Edit]:
        """Let the statements of a `with` stand in its place."""
        first, last = block.body[0], block.body[-1]
        if not self.begins_line(block) or first.lineno == block.lineno or last.end_lineno is None:
            return []
        begin, end = self.places.line(block.lineno), self.places.line(last.end_lineno + 1)
        inner = self.places.text(self.places.line(first.lineno), end)
        lines = dedented(inner).splitlines()
        text = "".join(f"{self.margin(block)}{line}{self.line_end}" if line else self.line_end for line in lines)
        return [Edit(begin, end, text)]

    def argument(self, call: ast.Call, name: str, value: str) -> Edit:
        """Pass `name=value` to a call: in place of what it passes under that name, else as the last argument."""
        given = keyword(call, name)
        if given is not None:
            return self.replace(given, f"{name}={value}")
        return self.add_argument(call, f"{name}={value}")

    def add_argument(self, call: ast.Call, text: str) -> Edit:
        """Write a last argument into a call."""
        given: list[ast.expr | ast.keyword] = [*call.args, *call.keywords]
        if not given:
            place = self.places.end(call) - 1
            return Edit(place, place, text)
        place = max(self.places.end(one) for one in given)
        return Edit(place, place, f", {text}")

    def drop_argument(self, call: ast.Call, argument: ast.expr | ast.keyword) -> Edit:
        """Take an argument out of a call, with its comma."""
        given: list[ast.expr | ast.keyword] = sorted([*call.args, *call.keywords], key=self.places.begin)
        index = given.index(argument)
        if index:
            return Edit(self.places.end(given[index - 1]), self.places.end(argument), "")
        end = self.places.begin(given[1]) if len(given) > 1 else self.places.end(argument)
        return Edit(self.places.begin(argument), end, "")

    @staticmethod
    def _blocks(node: ast.AST) -> list[list[ast.stmt]]:
        return [
            block for name in ("body", "orelse", "finalbody") if isinstance(block := getattr(node, name, None), list)
        ]


def _methods(cls: ast.ClassDef) -> list[Function]:
    return [node for node in cls.body if isinstance(node, ast.FunctionDef)]


def _constructs(name: str) -> bool:
    return name in _CONSTRUCTION or "init" in name


def called(call: ast.Call) -> str:
    """The last name of what is called; empty for a call of something without a name."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def receiver(call: ast.Call) -> ast.expr | None:
    """What a method is called on; None for a function, also one of torch, F, nn, math or numpy."""
    if not isinstance(call.func, ast.Attribute):
        return None
    owner = call.func.value
    return None if root(owner) in ("torch", "F", "nn", "math", "np", "numpy", "functional") else owner


def subject(call: ast.Call) -> ast.expr | None:
    """The tensor that a call works on: what a method is called on, else the first argument."""
    owner = receiver(call)
    return owner if owner is not None else (call.args[0] if call.args else None)


def root(node: ast.expr) -> str:
    """The name with which a chain of dots begins: "torch" for torch.nn.functional; empty for what is no such chain."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def of_self(node: ast.AST | None) -> bool:
    """Whether a node is `self.name`."""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def number(node: ast.AST | None) -> float | None:
    """The value of a number as it is written, also a negative one; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = number(node.operand)
        return None if inner is None else -inner
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return node.value
    return None


def keyword(call: ast.Call, *names: str) -> ast.keyword | None:
    """The argument that a call passes under one of these names."""
    return next((one for one in call.keywords if one.arg in names), None)


def parameters(function: Function) -> list[str]:
    """Names that a function is given, without self."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [one.arg for one in arguments if one.arg != "self"]


def names_in(node: ast.AST) -> set[str]:
    """Names that an expression reads."""
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def attributes_in(node: ast.AST) -> set[str]:
    """Attributes of self that are used below a node."""
    return {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute) and of_self(one)}
