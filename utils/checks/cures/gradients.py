"""Cures of cut, overwritten and frozen gradients, and of stacks through which they do not pass."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from utils.checks.cures.code import Code, called, keyword, names_in, of_self, receiver, subject
from utils.checks.cures.cure import Change, cure
from utils.loading.source_edits import Edit

_FLOW = ("gradient flow", "learning", "gradient accumulation", "dead neurons", "initialisation", "numerical stability")


@cure("path to the loss no longer cut", *_FLOW)
def cut(code: Code) -> Iterator[Change]:
    """Remove `detach()`, `.data`, `no_grad`, `inference_mode` and `item()` from what runs in `forward`."""
    for call in code.calls("detach", "detach_", "clone_detached", "item", "numpy"):
        owner = receiver(call)
        if owner is not None and not call.args:
            yield Change.of(f"{called(call)}() removed", [code.replace(call, code.source(owner))])
    for attribute in code.find(ast.Attribute):
        if attribute.attr == "data" and isinstance(attribute.ctx, ast.Load):
            yield Change.of(".data removed", [code.replace(attribute, code.source(attribute.value))])
    yield from _blocks_without_gradient(code)
    for call in code.calls("round", "floor", "ceil", "sign"):
        owner = subject(call)
        if owner is not None:
            x = code.operand(owner)
            new = f"({x} + ({code.source(call)} - {x}).detach())"
            yield Change.of(f"{called(call)} passes its gradient straight through", [code.replace(call, new)])
            yield Change.of(f"{called(call)} removed", [code.replace(call, x)])


def _blocks_without_gradient(code: Code) -> Iterator[Change]:
    """`with torch.no_grad():` and its kin, also as decorators."""
    for block in code.find(ast.With):
        names = [called(item.context_expr) for item in block.items if isinstance(item.context_expr, ast.Call)]
        if len(block.items) == 1 and names and names[0] in ("no_grad", "inference_mode", "set_grad_enabled"):
            yield Change.of(f"{names[0]} removed", code.unwrap(block))
    for function in code.forwards:
        for decorator in function.decorator_list:
            node = decorator.func if isinstance(decorator, ast.Call) else decorator
            if isinstance(node, ast.Attribute) and node.attr in ("no_grad", "inference_mode"):
                begin, end = code.places.line(decorator.lineno), code.places.line((decorator.end_lineno or 0) + 1)
                yield Change.of(f"the decorator {node.attr} removed", [Edit(begin, end, "")])


@cure("weights no longer frozen", *_FLOW)
def frozen(code: Code) -> Iterator[Change]:
    """Remove `requires_grad_(False)`, `requires_grad = False` and `requires_grad=False`; one, or all together."""
    found = list(_freezing(code))
    yield from (Change.of("the weights may learn", edits) for edits in found)
    if len(found) > 1:
        yield Change.of("the weights may learn", [edit for edits in found for edit in edits])


def _freezing(code: Code) -> Iterator[list[Edit]]:
    """The edits that undo each place that freezes weights."""
    everywhere = [*code.constructors, *code.forwards]
    for call in code.calls("requires_grad_", functions=everywhere):
        if _is_false(call.args[0] if call.args else None) or any(_is_false(k.value) for k in call.keywords):
            statement = code.statement(call)
            owner = receiver(call)
            if isinstance(statement, ast.Expr):
                yield code.remove(_whole(code, statement))
            elif owner is not None:
                yield [code.replace(call, code.source(owner))]
    for assignment in code.find(ast.Assign, everywhere):
        target = assignment.targets[0]
        if isinstance(target, ast.Attribute) and target.attr == "requires_grad" and _is_false(assignment.value):
            yield code.remove(_whole(code, assignment))
    for call in code.find(ast.Call, everywhere):
        given = keyword(call, "requires_grad")
        if given is not None and _is_false(given.value) and called(call) == "Parameter":
            yield [code.drop_argument(call, given)]
        elif called(call) == "from_pretrained" and keyword(call, "freeze") is None:
            yield [code.add_argument(call, "freeze=False")]


def _whole(code: Code, statement: ast.stmt) -> ast.stmt:
    """The loop around a statement that is all that the loop does, else the statement."""
    parent = code.parent(statement)
    return parent if isinstance(parent, ast.For) and parent.body == [statement] else statement


def _is_false(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


_FRESH_NAMES = ("zeros", "ones", "empty", "zeros_like", "ones_like", "empty_like", "full", "new_zeros", "new_ones")


@cure("values computed anew instead of in place", *_FLOW, "determinism", "row independence", "export dry run",
      "shape robustness", "save and load")  # fmt: skip
def in_place(code: Code) -> Iterator[Change]:
    """`x += y` → `x = x + y`, `x.relu_()` → `x = x.relu()`, `inplace=True` removed, a clone before `x[…] = …`."""
    every: list[Edit] = []
    for function in code.forwards:
        edits = [
            *_augmented(code, function),
            *_underscored(code, function),
            *_inplace_arguments(code, [function]),
            *_items(code, function),
        ]
        if edits:
            yield Change.of(f"{function.name} computes anew instead of in place", edits)
            every += edits
    made = list(_inplace_arguments(code, code.constructors))
    if made:
        yield Change.of("inplace=True removed", made)
    if every and made:
        yield Change.of("values computed anew instead of in place", [*every, *made])


_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.MatMult: "@"}


def _augmented(code: Code, function: ast.FunctionDef) -> Iterator[Edit]:
    for node in code.find(ast.AugAssign, [function]):
        sign = _OPERATORS.get(type(node.op))
        counts = isinstance(node.value, ast.Constant) and isinstance(node.value.value, int)
        if sign is None or counts:
            continue
        target = code.source(node.target)
        plain = isinstance(node.value, (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant))
        value = code.source(node.value) if plain or sign == "+" else f"({code.source(node.value)})"
        yield code.replace(node, f"{target} = {target} {sign} {value}")


def _underscored(code: Code, function: ast.FunctionDef) -> Iterator[Edit]:
    for call in code.find(ast.Call, [function]):
        name, owner = called(call), receiver(call)
        plain = name.rstrip("_")
        if (
            not name.endswith("_")
            or name.endswith("__")
            or not plain
            or plain == "requires_grad"
            or not isinstance(call.func, ast.Attribute)
        ):
            continue
        text = code.source(call)
        head = code.source(call.func)
        new = head.removesuffix(name) + plain + text[len(head) :]
        target = owner if owner is not None else (call.args[0] if call.args else None)
        if isinstance(code.parent(call), ast.Expr) and isinstance(target, (ast.Name, ast.Attribute)):
            new = f"{code.source(target)} = {new}"
        yield code.replace(call, new)


def _inplace_arguments(code: Code, functions: list[ast.FunctionDef]) -> Iterator[Edit]:
    for call in code.find(ast.Call, functions):
        given = keyword(call, "inplace")
        if given is not None and not _is_false(given.value):
            yield code.drop_argument(call, given)


def _items(code: Code, function: ast.FunctionDef) -> Iterator[Edit]:
    """A clone before the first `x[…] = …` of a tensor that was not made for it."""
    done: set[str] = set()
    for node in code.find(ast.Assign, [function]):
        target = node.targets[0]
        if not isinstance(target, ast.Subscript) or not isinstance(target.value, ast.Name):
            continue
        name = target.value.id
        made = [a for a in code.find(ast.Assign, [function]) if isinstance(a.targets[0], ast.Name) and a.targets[0].id == name
                and isinstance(a.value, ast.Call) and called(a.value) in (*_FRESH_NAMES, "clone")]  # fmt: skip
        if name not in done and not made:
            done.add(name)
            yield from code.before(node, f"{name} = {name}.clone()")


@cure("residual connection added", "gradient flow", "learning", "effective rank", "layer similarity", "initialisation")
def residual(code: Code) -> Iterator[Change]:
    """`x = self.attention(self.norm(x))` → `x = x + …`, in one function at a time, one statement or all of them."""
    for function in code.forwards:
        every = []
        for statement in code.find(ast.Assign, [function]):
            name = statement.targets[0].id if isinstance(statement.targets[0], ast.Name) else ""
            if name and isinstance(statement.value, ast.Call | ast.Subscript) and _transforms(statement.value, name):
                edit = code.replace(statement.value, f"{name} + {code.source(statement.value)}")
                every.append(edit)
        for returned in code.find(ast.Return, [function]):
            value = returned.value
            inputs = [argument.arg for argument in function.args.args[1:2]]
            if isinstance(value, ast.Call) and inputs and _transforms(value, inputs[0]) and function.name == "forward":
                every.append(code.replace(value, f"{inputs[0]} + {code.source(value)}"))
        yield from (Change.of("a residual connection", [edit]) for edit in every)
        if len(every) > 1:
            yield Change.of("residual connections", every)


def _transforms(value: ast.expr, name: str) -> bool:
    """Whether a module, or a function of one, is applied to a value."""
    call = value.value if isinstance(value, ast.Subscript) else value
    return isinstance(call, ast.Call) and name in names_in(call) and (of_self(call.func) or isinstance(call.func, ast.Name) or any(
        isinstance(inner, ast.Call) and (of_self(inner.func) or isinstance(inner.func, ast.Name)) for inner in ast.walk(call)))  # fmt: skip


@cure("activation that does not saturate", "gradient flow", "learning", "dead neurons")
def activation(code: Code) -> Iterator[Change]:
    """Sigmoid and tanh between layers → GELU."""
    for call in code.calls("sigmoid", "tanh", "hardtanh"):
        owner = subject(call)
        if owner is not None:
            yield Change.of(
                "GELU instead of a saturating activation", [code.replace(call, f"{_gelu(code)}({code.source(owner)})")]
            )
    for call in code.calls("Sigmoid", "Tanh", "Hardtanh", functions=code.constructors):
        yield Change.of("GELU instead of a saturating activation", [code.replace(call.func, "nn.GELU")])


def _gelu(code: Code) -> str:
    imported = any(isinstance(n, ast.Import) and any(a.asname == "F" for a in n.names) for n in ast.walk(code.tree))
    return "F.gelu" if imported else "torch.nn.functional.gelu"


CURES = (cut, frozen, in_place, residual, activation)
