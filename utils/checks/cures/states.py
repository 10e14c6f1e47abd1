"""Cures of answers that depend on more than the input: dropout, random numbers, and state kept between calls."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from utils.checks.cures.code import Code, attributes_in, called, keyword, of_self, receiver
from utils.checks.cures.cure import Change, cure
from utils.loading.source_edits import Edit

_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout", "dropout_")
_RANDOM = ("rand", "randn", "rand_like", "randn_like", "normal", "bernoulli", "randint", "randperm", "multinomial", "random",
           "uniform", "gauss", "exponential_", "normal_", "uniform_")  # fmt: skip


@cure("dropout in training only", "determinism", "numerical stability", "row independence", "causality", "padding invariance",
      "save and load", "gradient accumulation", "position sensitivity", "gradient flow", "learning")  # fmt: skip
def dropout(code: Code) -> Iterator[Change]:
    """`F.dropout(x, p)` → `training=self.training`; `dropout_p=` of torch's attention; calls of `.train()` and `.eval()`."""
    every = [*_functional(code), *_switches(code)]
    for test in [*(node.test for node in code.find(ast.If)), *(node.test for node in code.find(ast.IfExp))]:
        is_not = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
        if is_not and isinstance(test, ast.UnaryOp) and code.source(test.operand) == "self.training":
            yield Change.of("the branch of training taken in training", [code.replace(test, "self.training")])
    if every:
        yield Change.of("dropout in training only", every)
    yield from _switched_for_good(code)


def _functional(code: Code) -> Iterator[Edit]:
    """Functions that drop values follow the mode of the module."""
    for call in code.calls(*_DROPOUTS):
        if receiver(call) is not None or not isinstance(code.enclosing(call, ast.ClassDef), ast.ClassDef):
            continue
        given = keyword(call, "training")
        place = given.value if given else (call.args[2] if len(call.args) > 2 else None)
        if place is None:
            yield code.add_argument(call, "training=self.training")
        elif code.source(place) != "self.training":
            yield code.replace(place, "self.training")
    for call in code.calls("scaled_dot_product_attention"):
        given = keyword(call, "dropout_p")
        if given is not None and "training" not in code.source(given.value):
            yield code.replace(given.value, f"{code.source(given.value)} if self.training else 0.0")


def _switches(code: Code) -> Iterator[Edit]:
    """Statements such as `self.dropout.train()` in what runs in a call."""
    for call in code.calls("train", "eval"):
        statement = code.statement(call)
        if isinstance(statement, ast.Expr):
            yield from code.remove(statement)


def _switched_for_good(code: Code) -> Iterator[Change]:
    """`nn.Dropout(0.1).eval()` in `__init__`, and a method `train` or `eval` of the class's own."""
    for call in code.calls("train", "eval", functions=code.constructors):
        owner = receiver(call)
        if owner is not None and not isinstance(code.statement(call), ast.Expr):
            yield Change.of(f".{called(call)}() removed", [code.replace(call, code.source(owner))])
        elif isinstance(code.statement(call), ast.Expr):
            yield Change.of(f".{called(call)}() removed", code.remove(code.statement(call)))
    for cls in code.classes:
        for method in cls.body:
            if isinstance(method, ast.FunctionDef) and method.name in ("train", "eval"):
                yield Change.of(f"the method {method.name} left to nn.Module", code.remove(method))


@cure("random numbers in training only", "determinism", "numerical stability", "row independence", "causality",
      "position sensitivity", "save and load", "padding invariance", "gradient accumulation")  # fmt: skip
def noise(code: Code) -> Iterator[Change]:
    """Noise that `forward` adds or multiplies, kept to training mode."""
    for call in code.calls(*_RANDOM):
        for outer in _operations_around(code, call):
            other = outer.left if _holds(outer.right, call) else outer.right
            new = f"({code.source(outer)} if self.training else {code.source(other)})"
            yield Change.of("random numbers in training only", [code.replace(outer, new)])
        if called(call) in ("randn_like", "rand_like", "randn", "rand"):
            yield Change.of(
                "noise in training only", [code.replace(call, f"{code.source(call)} * float(self.training)")]
            )
        index = code.enclosing(call, ast.Subscript)
        if index is not None and _holds(index.slice, call):
            yield Change.of("the order kept", [code.replace(index, code.source(index.value))])
        statement = code.statement(call)
        if isinstance(statement, ast.If) and _holds(statement.test, call):
            yield Change.of(
                "random numbers in training only",
                [code.replace(statement.test, f"self.training and {code.operand(statement.test)}")],
            )
    for name in {n.id for f in code.forwards for n in ast.walk(f) if isinstance(n, ast.Name)}:
        bound = [a for a in code.find(ast.Assign) if isinstance(a.targets[0], ast.Name) and a.targets[0].id == name
                 and any(isinstance(n, ast.Call) and called(n) in _RANDOM for n in ast.walk(a.value))]  # fmt: skip
        for operation in code.find(ast.BinOp) if bound else ():
            for side, other in ((operation.right, operation.left), (operation.left, operation.right)):
                if isinstance(side, ast.Name) and side.id == name:
                    new = f"({code.source(operation)} if self.training else {code.source(other)})"
                    yield Change.of("random numbers in training only", [code.replace(operation, new)])


def _operations_around(code: Code, call: ast.Call) -> list[ast.BinOp]:
    """Sums, then products, in which a call stands, the outermost first."""
    found: list[ast.BinOp] = []
    node = code.parent(call)
    while node is not None and not isinstance(node, ast.stmt):
        if isinstance(node, ast.BinOp):
            found.insert(0, node)
        node = code.parent(node)
    return sorted(found, key=lambda operation: not isinstance(operation.op, (ast.Add, ast.Sub)))


def _holds(node: ast.AST, inner: ast.AST) -> bool:
    return any(one is inner for one in ast.walk(node))


@cure("nothing kept between calls", "determinism", "numerical stability", "row independence", "causality", "shape robustness",
      "gradient flow", "gradient accumulation", "learning", "memory", "padding invariance", "save and load", "export dry run",
      "position sensitivity")  # fmt: skip
def state(code: Code) -> Iterator[Change]:
    """Attributes that `forward` changes: begun anew at the top of each call, or no longer kept."""
    for cls in code.classes:
        constructor, forward = code.constructor_of(cls), code.forward_of(cls)
        if constructor is None or forward is None:
            continue
        changed = dict.fromkeys(_changed(code, cls, forward))
        made = code.made(cls)
        body = forward.body[1:] if ast.get_docstring(forward) is not None and len(forward.body) > 1 else forward.body
        for name in changed:
            value = made.get(name)
            if value is not None and _begins_plainly(value):
                line = f"self.{name} = {code.source(value)}"
                yield Change.of(f"{name} begins anew in each call", code.before(body[0], line))
            if name in _buffers(code, constructor):
                zero = f"self.{name} = torch.zeros_like(self.{name})"
                yield Change.of(f"{name} begins anew in each call", code.before(body[0], zero))
        for statement in code.find(ast.stmt, [forward]):
            if _keeps(statement, set(changed)):
                yield Change.of("nothing is kept", code.remove(statement))


def _begins_plainly(value: ast.expr) -> bool:
    """Whether an attribute begins as a constant, a container or a tensor of constants, which may be written again."""
    if isinstance(value, ast.Call):
        return called(value) in ("list", "dict", "set", "deque", "zeros", "ones", "tensor")
    return isinstance(value, (ast.Constant, ast.List, ast.Dict, ast.Set, ast.Tuple))


def _keeps(statement: ast.stmt, changed: set[str]) -> bool:
    """Whether a statement does nothing but change an attribute of self."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call) and bool(attributes_in(statement.value.func) & changed)
    if isinstance(statement, ast.Assign):
        return of_self(statement.targets[0])
    return isinstance(statement, ast.AugAssign) and of_self(statement.target)


def _changed(code: Code, cls: ast.ClassDef, forward: ast.FunctionDef) -> Iterator[str]:
    """Names of attributes that a call assigns to, or changes by a method such as append."""
    methods = [
        m for m in cls.body if isinstance(m, ast.FunctionDef) and (m is forward or m.name in attributes_in(forward))
    ]
    for method in methods:
        for node in ast.walk(method):
            if isinstance(node, ast.Attribute) and of_self(node) and isinstance(node.ctx, ast.Store):
                yield node.attr
            if isinstance(node, ast.Call) and called(node) in (
                "append",
                "extend",
                "update",
                "add",
                "add_",
                "copy_",
                "mul_",
                "insert",
            ):
                yield from attributes_in(node.func)
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                yield from attributes_in(node.value)


def _buffers(code: Code, constructor: ast.FunctionDef) -> set[str]:
    calls = code.calls("register_buffer", functions=[constructor])
    return {str(call.args[0].value) for call in calls if call.args and isinstance(call.args[0], ast.Constant)}


CURES = (dropout, noise, state)
