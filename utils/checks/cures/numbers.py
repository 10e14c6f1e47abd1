"""Cures of sizes of values: divisions and roots of 0, scale factors, how weights begin, and normalisation."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from utils.checks.cures.axes import transposed_calls
from utils.checks.cures.code import Code, called, keyword, number, of_self, receiver, root, subject
from utils.checks.cures.cure import Change, cure
from utils.loading.source_edits import Edit

_LARGEST_STD = 0.1
"""A matrix that begins wider than this is wider than GPT-2 (0.02) and Xavier at width 512 (0.044)."""
_NEAR_ONE = (0.5, 2.0)
"""Factors between these are common choices (0.5 of a GELU, 2 of a range); beyond them a factor may be a slip."""
_STD = "0.02"


@cure("numbers kept away from 0", "numerical stability", "gradient flow", "initialisation", "learning", "determinism",
      "padding invariance", "causality")  # fmt: skip
def guards(code: Code) -> Iterator[Change]:
    """A small number below divisions, roots and logarithms; `eps=0` removed."""
    for call in code.calls("sqrt", "rsqrt"):
        owner = subject(call)
        if owner is not None and receiver_root(call) != "math":
            yield Change.of(
                f"a small number inside {called(call)}",
                [
                    code.replace(
                        owner,
                        f"({code.source(owner)} + 1e-6)" if receiver(call) is owner else f"{code.source(owner)} + 1e-6",
                    )
                ],
            )
    for call in code.calls("log", "log2", "log10"):
        owner = subject(call)
        if owner is not None and receiver_root(call) != "math":
            yield Change.of(
                "the logarithm's argument kept above 0", [code.replace(owner, f"{code.operand(owner)}.clamp(min=1e-6)")]
            )
    for operation in code.find(ast.BinOp):
        if isinstance(operation.op, ast.Div) and not _is_constant(operation.right):
            yield Change.of(
                "a small number below the division",
                [code.replace(operation.right, f"({code.source(operation.right)} + 1e-6)")],
            )
        if (
            isinstance(operation.op, ast.Pow)
            and abs(number(operation.right) or 0) == 0.5
            and not _is_constant(operation.left)
        ):
            yield Change.of(
                "a small number inside the root",
                [code.replace(operation.left, f"({code.source(operation.left)} + 1e-6)")],
            )
    yield from _settings(code)


def _settings(code: Code) -> Iterator[Change]:
    """Divisions taken out, and the epsilon of modules left to torch."""
    for operation in code.find(ast.BinOp):
        if isinstance(operation.op, ast.Div) and not _is_constant(operation.right):
            yield Change.of("the division removed", [code.replace(operation, code.source(operation.left))])
    for call in code.find(ast.Call, [*code.constructors, *code.forwards]):
        given = keyword(call, "eps")
        if given is not None and (number(given.value) or 0) < 1e-8 and number(given.value) is not None:
            yield Change.of("eps left to torch", [code.drop_argument(call, given)])


def receiver_root(call: ast.Call) -> str:
    """The name before the function: "math" for math.sqrt."""
    return root(call.func)


def _is_constant(node: ast.expr) -> bool:
    """Whether an expression is no value of the data: numbers, attributes, sizes, and roots of them."""
    if isinstance(node, ast.Call):
        return (
            called(node) in ("sqrt", "float", "int", "len", "size") and all(_is_constant(a) for a in node.args)
        ) or called(node) == "size"
    if isinstance(node, ast.BinOp):
        return _is_constant(node.left) and _is_constant(node.right)
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Attribute) and node.value.attr == "shape"
    return isinstance(node, (ast.Constant, ast.Attribute)) or number(node) is not None


@cure("factor removed", "numerical stability", "gradient flow", "initialisation", "learning", "dead neurons", "causality",
      "position sensitivity", "padding invariance", "gradient accumulation", "robustness")  # fmt: skip
def factors(code: Code) -> Iterator[Change]:
    """`x * 1000.0`, `x * 0.0` and `x / 1e-3` in `forward` → `x`; large sums with a constant likewise."""
    low, high = _NEAR_ONE
    for operation in code.find(ast.BinOp):
        for factor, other in ((operation.right, operation.left), (operation.left, operation.right)):
            size = number(factor)
            if size is None:
                continue
            scales = isinstance(operation.op, (ast.Mult, ast.Div)) and not low <= abs(size) <= high
            shifts = isinstance(operation.op, (ast.Add, ast.Sub)) and abs(size) > high
            if (scales or shifts) and (factor is operation.right or not isinstance(operation.op, ast.Div)):
                yield Change.of(
                    f"the constant {code.source(factor)} removed", [code.replace(operation, code.operand(other))]
                )
    for scaling in code.find(ast.AugAssign):
        size = number(scaling.value)
        if size is not None and isinstance(scaling.op, (ast.Mult, ast.Div)) and not low <= abs(size) <= high:
            yield Change.of(f"the constant {code.source(scaling.value)} removed", code.remove(scaling))
    for call in code.calls("mul", "div", "multiply", "divide"):
        owner = receiver(call)
        if owner is not None and call.args and number(call.args[0]) is not None:
            yield Change.of(f"{called(call)} removed", [code.replace(call, code.source(owner))])


@cure("weights begin small and different", "initialisation", "dead neurons", "gradient flow", "numerical stability", "learning",
      "effective rank", "attention patterns", "position sensitivity", "causality")  # fmt: skip
def initial_weights(code: Code) -> Iterator[Change]:
    """Large, equal or zero first weights → normal with std 0.02; statements that scale weights removed; `max_norm` removed."""
    yield from _deviations(code)
    for call in code.calls("constant_", "zeros_", "ones_", "fill_", "zero_", "uniform_", functions=code.constructors):
        yield from _drawn(code, call)
    yield from _rescaled(code)
    for call in code.calls("Parameter", functions=code.constructors):
        yield from _parameter(code, call)
    for call in code.calls("Embedding", functions=code.constructors):
        given = keyword(call, "max_norm")
        if given is not None:
            yield Change.of("max_norm removed", [code.drop_argument(call, given)])
    yield from _added(code)


def _deviations(code: Code) -> Iterator[Change]:
    """Normal distributions that are too wide."""
    for call in code.calls("normal_", "trunc_normal_", functions=code.constructors):
        place = 1 if receiver(call) is not None else 2
        std = keyword(call, "std")
        value = std.value if std else (call.args[place] if len(call.args) > place else None)
        if value is None:
            yield Change.of(f"std {_STD}", [code.add_argument(call, f"std={_STD}")], fresh=True)
        elif (number(value) or 1.0) > _LARGEST_STD:
            yield Change.of(f"std {_STD}", [code.replace(value, _STD)], fresh=True)


def _rescaled(code: Code) -> Iterator[Change]:
    """Statements that scale weights after they were drawn."""
    for statement in code.find(ast.stmt, code.constructors):
        scaled = statement.value if isinstance(statement, ast.Expr) else None
        in_place = isinstance(scaled, ast.Call) and called(scaled) in ("mul_", "div_", "add_", "fill_", "copy_")
        augmented = isinstance(statement, ast.AugAssign) and not isinstance(statement.target, ast.Name)
        if in_place or augmented:
            yield Change.of(
                "the weights keep the scale in which they were drawn", code.remove(_block(code, statement)), fresh=True
            )


def _parameter(code: Code, call: ast.Call) -> Iterator[Change]:
    """Parameters that begin too wide, or all equal."""
    value = call.args[0] if call.args else None
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mult):
        for side in (value.left, value.right):
            if (number(side) or 0) > _LARGEST_STD:
                yield Change.of(f"std {_STD}", [code.replace(side, _STD)], fresh=True)
    elif isinstance(value, ast.Call) and called(value) in ("randn", "rand"):
        yield Change.of(f"std {_STD}", [code.replace(value, f"{code.source(value)} * {_STD}")], fresh=True)
    elif isinstance(value, ast.Call) and called(value) in ("zeros", "ones", "full", "empty"):
        shape = ", ".join(code.source(a) for a in (value.args[:1] if called(value) == "full" else value.args))
        drawn = code.replace(value, f"torch.randn({shape}) * {_STD}")
        yield Change.of(f"drawn with std {_STD}", [drawn], fresh=True)


def _drawn(code: Code, call: ast.Call) -> Iterator[Change]:
    """First weights that are all equal, or drawn too wide."""
    owner = subject(call)
    if owner is None:
        return
    name = code.source(owner)
    statement = code.statement(call)
    if not isinstance(statement, ast.Expr):
        return
    if "bias" in name.rpartition(".")[2] or name.endswith("bias.data"):
        yield Change.of(f"{name} begins at 0", [code.replace(call, f"nn.init.zeros_({name})")], fresh=True)
        yield Change.of(f"{name} begins as torch draws it", code.remove(statement), fresh=True)
        return
    yield Change.of(
        f"{name} drawn with std {_STD}", [code.replace(call, f"nn.init.normal_({name}, std={_STD})")], fresh=True
    )
    yield Change.of(f"{name} begins as torch draws it", code.remove(_block(code, statement)), fresh=True)


def _block(code: Code, statement: ast.stmt) -> ast.stmt:
    """The `with` or `for` around a statement that holds nothing else, else the statement."""
    parent = code.parent(statement)
    while isinstance(parent, (ast.With, ast.For)) and parent.body == [statement]:
        statement, parent = parent, code.parent(parent)
    return statement


def _added(code: Code) -> Iterator[Change]:
    """Embeddings, then linear layers, drawn with std 0.02 where torch's own scale is too wide for a tied head."""
    for cls in code.classes:
        constructor = code.constructor_of(cls)
        tables = [n for n, v in code.made(cls).items() if isinstance(v, ast.Call) and called(v) == "Embedding"]
        if constructor is not None and tables:
            lines = [f"nn.init.normal_(self.{name}.weight, std={_STD})" for name in tables]
            yield Change.of(f"embeddings drawn with std {_STD}", code.after(constructor.body[-1], *lines), fresh=True)


@cure("LayerNorm instead of statistics over the batch", "causality", "row independence", "gradient accumulation", "determinism",
      "learning", "save and load", "padding invariance", "shape robustness")  # fmt: skip
def batch_norm(code: Code) -> Iterator[Change]:
    """`nn.BatchNorm1d(C)` → `nn.LayerNorm(C)`, called without transposing."""
    for cls in code.classes:
        for name, value in code.made(cls).items():
            if (
                not isinstance(value, ast.Call)
                or not called(value).startswith(("BatchNorm", "InstanceNorm", "SyncBatchNorm"))
                or not value.args
            ):
                continue
            made = code.replace(value, f"nn.LayerNorm({code.source(value.args[0])})")
            calls = [code.replace(outer, f"self.{name}({code.source(owner)})") for outer, inner in transposed_calls(code)
                     if isinstance(inner.func, ast.Attribute) and inner.func.attr == name
                     and isinstance(argument := inner.args[0], ast.Call) and (owner := receiver(argument)) is not None]  # fmt: skip
            yield Change.of("LayerNorm instead of BatchNorm", [made, *calls])
            if not calls:
                yield from _flattened(code, cls, name, made)


def _flattened(code: Code, cls: ast.ClassDef, name: str, made: Edit) -> Iterator[Change]:
    """`self.norm(x.reshape(-1, C)).view(…)` needs no change of its call; `.mT` does."""
    for outer in code.find(ast.Attribute):
        inner = outer.value
        if outer.attr in ("mT", "T") and isinstance(inner, ast.Call) and of_self(inner.func) and inner.args:
            argument = inner.args[0]
            if isinstance(argument, ast.Attribute) and argument.attr == outer.attr:
                edit = code.replace(outer, f"self.{name}({code.source(argument.value)})")
                yield Change.of("LayerNorm instead of BatchNorm", [made, edit])


@cure("normalisation in its place", "initialisation", "gradient flow", "numerical stability", "learning", "layer similarity",
      "effective rank")  # fmt: skip
def norm_place(code: Code) -> Iterator[Change]:
    """`self.norm(self.f(x))` → `self.f(self.norm(x))`; a normalisation before the head where there is none."""
    for cls in code.classes:
        made = code.made(cls)
        forward = code.forward_of(cls)
        if forward is None:
            continue
        norms = {n for n, v in made.items() if isinstance(v, ast.Call) and "Norm" in called(v)}
        for outer in code.find(ast.Call, [forward]):
            inner = outer.args[0] if outer.args else None
            attribute = outer.func.attr if isinstance(outer.func, ast.Attribute) and of_self(outer.func) else ""
            if (
                attribute in norms
                and isinstance(inner, ast.Call)
                and of_self(inner.func)
                and len(inner.args) == 1
                and not inner.keywords
            ):
                x = code.source(inner.args[0])
                new = f"{code.source(inner.func)}({code.source(outer.func)}({x}))"
                yield Change.of(f"{attribute} before {code.source(inner.func)}", [code.replace(outer, new)])
        for returned in code.find(ast.Return, [forward]):
            for call in code.find(ast.Call, [returned]):
                if of_self(call.func) and len(call.args) == 1 and isinstance(call.args[0], ast.Name):
                    x = call.args[0].id
                    norm = f"torch.nn.functional.layer_norm({x}, {x}.shape[-1:])"
                    yield Change.of("a normalisation before the head", [code.replace(call.args[0], norm)])


CURES = (guards, factors, batch_norm, initial_weights, norm_place)
