"""Cures of lengths, batch sizes, devices and types that are written into the code, and of positions."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from utils.checks.cures.code import (
    Code,
    Function,
    called,
    keyword,
    number,
    of_self,
    parameters,
    receiver,
)
from utils.checks.cures.cure import Change, cure
from utils.loading.source_edits import Edit

_SHAPING = ("view", "reshape", "expand", "arange", "zeros", "ones", "full", "empty", "randn", "triu", "tril", "new_zeros",
            "new_ones", "repeat", "unflatten", "split")  # fmt: skip
_CREATING = ("arange", "zeros", "ones", "full", "empty", "tensor", "linspace", "eye", "as_tensor")
_NAMES = 4
"""So many names of values are tried as the one whose type a new tensor should have."""
_DEVICES = ("cuda", "cpu", "mps", "xpu")


def first_input(function: Function) -> str | None:
    """The name of what a method reads."""
    names = parameters(function)
    return names[0] if names else None


@cure(
    "sizes taken from the input",
    "shape robustness",
    "export dry run",
    "row independence",
    "causality",
    "padding invariance",
)
def sizes(code: Code) -> Iterator[Change]:
    """Numbers and settings in `view`, `arange`, `zeros`, … → batch and length of the input; tables cut to the length."""
    for function in code.forwards:
        x = first_input(function)
        if x is None:
            continue
        yield from _fixed_slices(code, function, x)
        for call in code.calls(*_SHAPING, functions=[function]):
            for place, argument in enumerate(_flat(call)):
                if not _is_size(argument):
                    continue
                axes = (1,) if called(call) == "arange" else ((0, 1) if place == 0 else (1,))
                for axis in axes:
                    what = ("batch size", "length")[axis]
                    yield Change.of(f"the {what} taken from {x}", [code.replace(argument, f"{x}.shape[{axis}]")])
        yield from _cut_tables(code, function, x)
        for call in code.calls("squeeze", functions=[function]):
            owner = receiver(call)
            if owner is not None:
                yield Change.of("no axis dropped", [code.replace(call, code.source(owner))])
        for check in code.find(ast.Assert, [function]):
            yield Change.of("the assertion removed", code.remove(check))


def _fixed_slices(code: Code, function: Function, x: str) -> Iterator[Change]:
    """`self.mask[:8, :8]` → the length of the input in place of every number of one index."""
    for index in code.find(ast.Subscript, [function]):
        parts = index.slice.elts if isinstance(index.slice, ast.Tuple) else [index.slice]
        ends = [
            part.upper
            for part in parts
            if isinstance(part, ast.Slice) and part.upper is not None and _is_size(part.upper)
        ]
        if ends:
            yield Change.of(f"the length taken from {x}", [code.replace(end, f"{x}.shape[1]") for end in ends])


def _flat(call: ast.Call) -> list[ast.expr]:
    found: list[ast.expr] = []
    for argument in call.args:
        found += argument.elts if isinstance(argument, (ast.Tuple, ast.List)) else [argument]
    return found


def _is_size(node: ast.expr) -> bool:
    """A number above 1, or a setting: a name in capitals, an attribute of self or of its config."""
    value = number(node)
    if value is not None:
        return value > 1 and value == int(value)
    if isinstance(node, ast.Name):
        return node.id.isupper()
    return isinstance(node, ast.Attribute) and node.attr not in ("shape", "device", "dtype")


def _cut_tables(code: Code, function: Function, x: str) -> Iterator[Change]:
    """`x + self.table` → `x + self.table[:, : x.shape[1]]`; masks of the longest length cut to that of the scores."""
    cls = code.enclosing(function, ast.ClassDef)
    if cls is None:
        return
    for node in code.find(ast.Attribute, [function]):
        parent = code.parent(node)
        if not of_self(node) or not isinstance(parent, (ast.BinOp, ast.Compare, ast.UnaryOp, ast.Call, ast.keyword)):
            continue
        if isinstance(parent, ast.Call) and parent.func is node:
            continue
        table = code.source(node)
        outer = next((c for c in _calls_around(code, node) if called(c) in ("masked_fill", "masked_fill_")), None)
        owner = None if outer is None else receiver(outer)
        if owner is not None:
            s = code.source(owner)
            cuts = [f"{table}[..., : {s}.shape[-2], : {s}.shape[-1]]"]
        elif isinstance(parent, (ast.BinOp, ast.keyword)):
            cuts = [f"{table}[:, : {x}.shape[1]]", f"{table}[: {x}.shape[1]]", f"{table}[: {x}.shape[1], : {x}.shape[1]]",
                    f"{table}[..., : {x}.shape[1], : {x}.shape[1]]"]  # fmt: skip
        else:
            continue
        yield from (Change.of(f"{table} cut to the length", [code.replace(node, cut)]) for cut in cuts)


def _calls_around(code: Code, node: ast.AST) -> Iterator[ast.Call]:
    parent = code.parent(node)
    while parent is not None and not isinstance(parent, ast.stmt):
        if isinstance(parent, ast.Call):
            yield parent
        parent = code.parent(parent)


@cure(
    "device of the input", "shape robustness", "numerical stability", "save and load", "export dry run", "determinism"
)
def devices(code: Code) -> Iterator[Change]:
    """`device="cuda"`, `.cuda()`, `.to("cpu")` and tensors made without a device → the device of the input."""
    every: list[Edit] = []
    for function in code.forwards:
        x = first_input(function)
        if x is None:
            continue
        for call in code.find(ast.Call, [function]):
            given = keyword(call, "device")
            if given is not None and _is_device(given.value):
                every.append(code.replace(given.value, f"{x}.device"))
            elif called(call) in ("cuda", "cpu") and receiver(call) is not None:
                every.append(code.replace(call, f"{code.operand(receiver(call))}.to({x}.device)"))  # type: ignore[arg-type]
            elif called(call) == "to" and call.args and _is_device(call.args[0]):
                every.append(code.replace(call.args[0], f"{x}.device"))
            elif called(call) in _CREATING and given is None and receiver(call) is None:
                every.append(code.add_argument(call, f"device={x}.device"))
    if every:
        yield Change.of("tensors made on the device of the input", every)


def _is_device(node: ast.expr) -> bool:
    if isinstance(node, ast.Call) and called(node) == "device" and node.args:
        return _is_device(node.args[0])
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.split(":")[0] in _DEVICES


@cure("type of the values around", "numerical stability", "export dry run", "gradient flow", "save and load", "learning",
      "shape robustness", "memory", "initialisation", "determinism", "causality")  # fmt: skip
def types(code: Code) -> Iterator[Change]:
    """`.half()`, `.to(torch.float16)`, `dtype=…` and `.int()` in `forward` removed; made tensors follow their neighbours."""
    for call in code.calls("half", "bfloat16", "double", "float"):
        owner = receiver(call)
        if owner is not None and not call.args:
            yield Change.of(f".{called(call)}() removed", [code.replace(call, code.source(owner))])
    for call in code.calls("to", "type"):
        owner = receiver(call)
        narrow = call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "dtype"), None)
        if owner is not None and narrow is not None and _is_type(narrow):
            yield Change.of(f"the cast to {code.source(narrow)} removed", [code.replace(call, code.source(owner))])
    yield from _made_types(code)
    for call in code.calls("int", "short", "byte"):
        owner = receiver(call)
        if owner is not None and not call.args:
            long = code.replace(call, f"{code.operand(owner)}.long()")
            yield Change.of(f".{called(call)}() replaced by .long()", [long])


def _made_types(code: Code) -> Iterator[Change]:
    """Types of tensors that are made in `forward`."""
    for call in code.find(ast.Call):
        given = keyword(call, "dtype")
        if given is not None and _is_type(given.value):
            yield Change.of(f"dtype={code.source(given.value)} removed", [code.drop_argument(call, given)])
        elif given is None and called(call) in _CREATING and call.args:
            like = next(
                (n.value for n in ast.walk(call.args[0]) if isinstance(n, ast.Attribute) and n.attr == "shape"), None
            )
            for name in [code.operand(like)] if like is not None else _values_before(code, call):
                made = f"dtype={name}.dtype" + ("" if keyword(call, "device") else f", device={name}.device")
                yield Change.of(f"the type of {name}", [code.add_argument(call, made)])


def _values_before(code: Code, call: ast.Call) -> list[str]:
    """Names that a function bound last before a call."""
    function = code.function(call)
    stored = [] if function is None else code.find(ast.Name, [function])
    names = [n.id for n in stored if isinstance(n.ctx, ast.Store) and n.lineno < call.lineno]
    return list(dict.fromkeys(names[::-1]))[:_NAMES]


def _is_type(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in (
        "float16", "half", "bfloat16", "float64", "double", "float32", "float", "int8", "int16", "int32", "uint8")  # fmt: skip


@cure("positions from 0 along the length", "position sensitivity", "shape robustness", "row independence",
      "padding invariance", "causality", "learning", "export dry run", "gradient flow")  # fmt: skip
def positions(code: Code) -> Iterator[Change]:
    """`arange(1, T + 1)` → `arange(T)`, the batch axis → the length, one position for all → `arange`."""
    for function in code.forwards:
        for call in code.calls("arange", functions=[function]):
            yield from _counted(code, call, function)
        for call in code.calls("zeros_like", "ones_like", "zeros", "full_like", functions=[function]):
            x = first_input(function)
            if x is not None:
                yield Change.of(
                    "one position per token", [code.replace(call, f"torch.arange({x}.shape[1], device={x}.device)")]
                )
        for part in code.find(ast.Slice, [function]):
            yield from _slices(code, part, function)
        for assignment in code.find(ast.Assign, [function]):
            target, shape = assignment.targets[0], code.source(assignment.value).endswith((".shape", ".size()"))
            if shape and isinstance(target, ast.Tuple) and len(target.elts) >= 2:
                one, two = target.elts[:2]
                exchanged = [code.replace(one, code.source(two)), code.replace(two, code.source(one))]
                yield Change.of("batch and length in their order", exchanged)
    yield from _tables(code)


def _counted(code: Code, call: ast.Call, function: Function) -> Iterator[Change]:
    """An `arange` that begins at 1, or runs along the batch."""
    if len(call.args) >= 2 and number(call.args[0]) == 1:
        last = call.args[1]
        one_more = isinstance(last, ast.BinOp) and isinstance(last.op, ast.Add) and number(last.right) == 1
        end = code.source(last.left) if one_more and isinstance(last, ast.BinOp) else code.source(last)
        yield Change.of("positions begin at 0", [code.replace(call.args[0], "0"), code.replace(last, end)])
    parent = code.parent(call)
    moved = isinstance(parent, ast.BinOp) and isinstance(parent.op, (ast.Add, ast.Sub))
    if moved and isinstance(parent, ast.BinOp) and number(parent.right) is not None:
        yield Change.of("positions begin at 0", [code.replace(parent, code.source(call))])
    for argument in call.args:
        other = _other_axis(code, argument, function)
        if other is not None:
            yield Change.of("positions along the length", [code.replace(argument, other)])


def _other_axis(code: Code, node: ast.expr, function: Function) -> str | None:
    """`x.shape[0]` → `x.shape[1]`, `x.size(0)` → `x.size(1)`, `B` → `T` of `B, T = x.shape`."""
    if isinstance(node, ast.Subscript) and number(node.slice) == 0 and isinstance(node.value, ast.Attribute):
        return f"{code.source(node.value)}[1]"
    if isinstance(node, ast.Call) and called(node) == "size" and node.args and number(node.args[0]) == 0:
        return f"{code.source(node.func)}(1)"
    if isinstance(node, ast.Call) and called(node) == "len" and node.args:
        return f"{code.operand(node.args[0])}.shape[1]"
    for assignment in code.find(ast.Assign, [function]):
        target = assignment.targets[0]
        if isinstance(target, ast.Tuple) and len(target.elts) >= 2 and isinstance(node, ast.Name):
            one, two = target.elts[:2]
            if isinstance(one, ast.Name) and one.id == node.id and "shape" in code.source(assignment.value):
                return code.source(two)
    return None


def _slices(code: Code, part: ast.Slice, function: Function) -> Iterator[Change]:
    """`table[1 : T + 1]` → `table[:T]`; `table[: x.shape[0]]` → the length."""
    if part.upper is None:
        return
    if part.lower is not None and number(part.lower) == 1 and isinstance(part.upper, ast.BinOp):
        edits = [code.replace(part.lower, "0"), code.replace(part.upper, code.source(part.upper.left))]
        yield Change.of("the table read from its first row", edits)
    other = _other_axis(code, part.upper, function)
    if other is not None:
        yield Change.of("the table read along the length", [code.replace(part.upper, other)])


def _tables(code: Code) -> Iterator[Change]:
    """`nn.Embedding(limit - 1, …)` and `nn.Linear(…, vocabulary - 10)` → the whole size."""
    every: dict[str, list[Edit]] = {}
    for call in code.calls("Embedding", "Linear", *_CREATING, "randn", "rand", functions=code.constructors):
        for argument in call.args:
            if not isinstance(argument, ast.BinOp) or not isinstance(argument.op, (ast.Add, ast.Sub)):
                continue  # `4 * width` is a size of its own, no table cut short
            if number(argument.right) is not None:
                every.setdefault(code.source(argument), []).append(code.replace(argument, code.source(argument.left)))
    for written, edits in every.items():
        yield from (Change.of(f"{edit.new} in place of {written}", [edit]) for edit in edits)
        if len(edits) > 1:
            yield Change.of(f"{edits[0].new} in place of {written}", edits)


CURES = (positions, sizes, devices, types)
