"""Cures of values that meet along the wrong axis: softmax, norms and means, heads, batch and time."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from utils.checks.cures.code import Code, called, keyword, number, of_self, receiver, subject
from utils.checks.cures.cure import Change, cure
from utils.loading.source_edits import Edit

_REDUCTIONS = ("mean", "var", "std", "sum", "norm", "amax", "amin", "var_mean", "std_mean")
_AXIS = ("dim", "axis")


@cure("softmax over the keys", "causality", "numerical stability", "row independence", "padding invariance",
      "gradient flow", "attention patterns", "initialisation", "learning", "gradient accumulation")  # fmt: skip
def softmax_axis(code: Code) -> Iterator[Change]:
    """`softmax(scores, dim=1)` → `dim=-1`, as a function, a method or an `nn.Softmax`."""
    for call in code.calls("softmax", "log_softmax"):
        yield from _last_axis(code, call, positional=0 if receiver(call) is not None else 1)
    for call in code.calls("Softmax", "LogSoftmax", functions=code.constructors):
        yield from _last_axis(code, call, positional=0)


def _last_axis(code: Code, call: ast.Call, positional: int) -> Iterator[Change]:
    given = keyword(call, *_AXIS)
    value = given.value if given else (call.args[positional] if len(call.args) > positional else None)
    if value is None:
        yield Change.of(f"{called(call)} over the last axis", [code.add_argument(call, "dim=-1")])
    elif number(value) != -1:
        yield Change.of(f"{called(call)} over the last axis", [code.replace(value, "-1")])


@cure("statistics over the width", "causality", "row independence", "padding invariance", "shape robustness",
      "gradient accumulation", "export dry run", "learning", "initialisation")  # fmt: skip
def statistics_axis(code: Code) -> Iterator[Change]:
    """Means, variances and norms that keep their axis, and `layer_norm` over more than the width → the last axis."""
    for function in code.forwards:
        edits = [code.replace(value, "-1") for call in code.calls(*_REDUCTIONS, functions=[function])
                 if keyword(call, "keepdim") and (value := _axis_of(call)) is not None and number(value) != -1]  # fmt: skip
        if edits:
            yield Change.of("statistics over the last axis (the width)", edits)
    for call in code.calls("layer_norm", "rms_norm"):
        owner = subject(call)
        if owner is not None and len(call.args) > 1:
            shape = f"{code.operand(owner)}.shape[-1:]"
            if code.source(call.args[1]) != shape:
                yield Change.of(f"{called(call)} over the width alone", [code.replace(call.args[1], shape)])
    for call in code.calls("normalize"):
        given = keyword(call, *_AXIS)
        if given is not None and number(given.value) != -1:
            yield Change.of("normalize over the last axis", [code.replace(given.value, "-1")])
        elif given is None:
            yield Change.of("normalize over the last axis", [code.add_argument(call, "dim=-1")])


def _axis_of(call: ast.Call) -> ast.expr | None:
    given = keyword(call, *_AXIS)
    if given is not None:
        return given.value
    place = 0 if receiver(call) is not None else 1
    return call.args[place] if len(call.args) > place else None


@cure("normalisation without transposing", "causality", "padding invariance", "shape robustness", "learning")
def untransposed(code: Code) -> Iterator[Change]:
    """`self.norm(x.transpose(1, 2)).transpose(1, 2)` → `self.norm(x)`: a LayerNorm reads the width last."""
    for outer, inner in transposed_calls(code):
        argument = inner.args[0]
        assert isinstance(argument, ast.Call)
        owner = receiver(argument)
        if owner is not None:
            yield Change.of(
                f"{code.source(inner.func)} over the width",
                [code.replace(outer, f"{code.source(inner.func)}({code.source(owner)})")],
            )


def transposed_calls(code: Code) -> Iterator[tuple[ast.Call, ast.Call]]:
    """(whole, inner call) of every `self.f(x.transpose(…)).transpose(…)`."""
    for outer in code.calls("transpose", "permute", "swapaxes"):
        inner = receiver(outer)
        if isinstance(inner, ast.Call) and of_self(inner.func) and len(inner.args) == 1:
            argument = inner.args[0]
            if isinstance(argument, ast.Call) and called(argument) in ("transpose", "permute", "swapaxes"):
                yield outer, inner


@cure("heads split and joined along the width", "causality", "row independence", "padding invariance", "shape robustness",
      "learning", "position sensitivity", "numerical stability")  # fmt: skip
def heads(code: Code) -> Iterator[Change]:
    """`view(B, H, T, D)` → `view(B, T, H, D).transpose(1, 2)`; the transpose that is missing before or after attention."""
    for function in code.forwards:
        shaped = list(code.calls("view", "reshape", functions=[function]))
        split = [call for call in shaped if receiver(call) is not None and len(call.args) == 4]
        bare = [call for call in split if not _is_transposed(code, call)]
        if bare:
            yield Change.of("heads split along the width, then transposed", [e for c in bare for e in _split(code, c)])
            yield Change.of("heads transposed before attention", [_behind(code, c, ".transpose(1, 2)") for c in bare])
        for call in shaped:
            owner = receiver(call)
            if owner is None or len(call.args) not in (2, 3):
                continue
            if isinstance(owner, ast.Call) and called(owner) in ("transpose", "permute", "contiguous", "swapaxes"):
                continue
            new = f"{code.operand(owner)}.transpose(1, 2).reshape({', '.join(map(code.source, call.args))})"
            yield Change.of("heads transposed back before they are joined", [code.replace(call, new)])
    yield from _orders(code)


def _orders(code: Code) -> Iterator[Change]:
    """Axes exchanged as attention wants them: heads with the length."""
    for call in code.calls("permute"):
        if receiver(call) is not None and len(call.args) == 4 and [number(a) for a in call.args] != [0, 2, 1, 3]:
            order = [code.replace(argument, str(axis)) for argument, axis in zip(call.args, (0, 2, 1, 3))]
            yield Change.of("heads and length exchanged, nothing else", order)
    for call in code.calls("transpose", "swapaxes"):
        axes = [number(one) for one in call.args[-2:]]
        if receiver(call) is not None and sorted(a for a in axes if a is not None) not in ([1, 2], [-2, -1]):
            first, second = call.args[-2:] if len(call.args) >= 2 else (None, None)
            if first is not None and second is not None:
                yield Change.of("axes 1 and 2 exchanged", [code.replace(first, "1"), code.replace(second, "2")])


def _is_transposed(code: Code, call: ast.Call) -> bool:
    """Whether axes are exchanged behind a call, there or where the name that holds it is used."""
    parent = code.parent(call)
    if isinstance(parent, ast.Attribute):
        return parent.attr in ("transpose", "permute", "swapaxes", "contiguous")
    statement = code.statement(call)
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        function = code.function(call)
        name = statement.targets[0].id
        moved = [] if function is None else code.calls("transpose", "permute", "swapaxes", functions=[function])
        uses = [c for c in moved if isinstance(owner := receiver(c), ast.Name) and owner.id == name]
        return any(any(number(a) == 2 for a in use.args) and any(number(a) == 1 for a in use.args) for use in uses)
    return False


def _split(code: Code, call: ast.Call) -> list[Edit]:
    one, two = call.args[1:3]
    return [
        code.replace(one, code.source(two)),
        code.replace(two, code.source(one)),
        _behind(code, call, ".transpose(1, 2)"),
    ]


def _behind(code: Code, node: ast.expr, text: str) -> Edit:
    place = code.places.end(node)
    return Edit(place, place, text)


@cure("batch and time kept apart", "row independence", "causality", "shape robustness", "position sensitivity",
      "padding invariance", "gradient accumulation", "learning")  # fmt: skip
def batch_and_time(code: Code) -> Iterator[Change]:
    """batch_first, axis 0 of means, sums and norms, and `view(T, B, …)` in place of a transpose."""
    kinds = (
        "MultiheadAttention",
        "TransformerEncoderLayer",
        "TransformerDecoderLayer",
        "Transformer",
        "LSTM",
        "GRU",
        "RNN",
    )
    for call in code.calls(*kinds, functions=code.constructors):
        given = keyword(call, "batch_first")
        if given is None or (isinstance(given.value, ast.Constant) and not given.value.value):
            yield Change.of(f"batch_first=True for nn.{called(call)}", [code.argument(call, "batch_first", "True")])
    for call in code.calls(*_REDUCTIONS, "cumsum", "cumprod", "flip", "roll", "sort"):
        axis = _axis_of(call)
        if axis is not None and number(axis) == 0:
            yield Change.of(f"{called(call)} over the width instead of the batch", [code.replace(axis, "-1")])
            yield Change.of(f"{called(call)} over time instead of the batch", [code.replace(axis, "1")])
    for call in code.calls("view", "reshape"):
        owner = receiver(call)
        if owner is not None and len(call.args) in (3, 4):
            one, two = call.args[:2]
            yield Change.of(
                "batch and time in their order",
                [code.replace(one, code.source(two)), code.replace(two, code.source(one))],
            )
            if len(call.args) == 3:
                yield Change.of(
                    "batch and time transposed", [code.replace(call, f"{code.operand(owner)}.transpose(0, 1)")]
                )
    for call in code.calls("softmax", "mean"):
        axis = _axis_of(call)
        if axis is not None and number(axis) == 1 and not keyword(call, "keepdim"):
            yield Change.of(f"{called(call)} over the last axis", [code.replace(axis, "-1")])


CURES = (softmax_axis, statistics_axis, untransposed, heads, batch_and_time)
