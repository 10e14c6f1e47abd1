"""Cures of logits and labels that stand at the wrong position, and of results that are not returned."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from utils.checks.cures.code import Code, called, keyword, number, receiver, subject
from utils.checks.cures.cure import Change, cure


@cure("labels shifted once", "learning", "gradient accumulation", asked="shift")
def loss_shift(code: Code) -> Iterator[Change]:
    """Shifts of two made by one, or a shift added to the loss of `forward`."""
    yield from _shift_of_one(code)
    for call in code.calls("cross_entropy", "nll_loss"):
        yield from _shifted_loss(code, call)


def _shift_of_one(code: Code) -> Iterator[Change]:
    """`logits[:, :-2]` and `labels[:, 2:]` → by one, all of a function together."""
    for function in code.forwards:
        found = []
        for part in code.find(ast.Slice, [function]):
            for end in (part.lower, part.upper):
                size = number(end)
                if end is not None and size is not None and abs(size) >= 2:
                    found.append(code.replace(end, "1" if size > 0 else "-1"))
        if found:
            yield Change.of("shifted by one token", found)


@cure("logits at their own position", "learning", "causality", "shape robustness", "position sensitivity")
def shift(code: Code) -> Iterator[Change]:
    """Shifts in `forward` removed."""
    for call in code.calls("roll"):
        owner = subject(call)
        if owner is not None:
            yield Change.of("roll removed", [code.replace(call, code.source(owner))])
    yield from _slices(code)
    yield from _both_removed(code)
    for call in code.calls("pad"):
        owner = subject(call)
        if owner is not None:
            yield Change.of("the padding removed", [code.replace(call, code.source(owner))])
    for call in code.calls("cat", "concat"):
        parts = call.args[0].elts if call.args and isinstance(call.args[0], (ast.List, ast.Tuple)) else []
        for part in parts:
            inner = part.value if isinstance(part, ast.Subscript) else None
            if inner is not None:
                yield Change.of("the shift removed", [code.replace(call, code.source(inner))])


def _slices(code: Code) -> Iterator[Change]:
    """Slices that leave out the first or last position, one at a time."""
    for index in code.find(ast.Subscript):
        parts = index.slice.elts if isinstance(index.slice, ast.Tuple) else [index.slice]
        for part in parts:
            if not isinstance(part, ast.Slice):
                continue
            if any(number(end) in (1, -1) for end in (part.lower, part.upper)):
                yield Change.of("the shift removed", [code.replace(index, code.source(index.value))])


def _both_removed(code: Code) -> Iterator[Change]:
    """All slices that shift by one, of one function, removed together."""
    for function in code.forwards:
        found = []
        for index in code.find(ast.Subscript, [function]):
            parts = index.slice.elts if isinstance(index.slice, ast.Tuple) else [index.slice]
            ends = [number(end) for part in parts if isinstance(part, ast.Slice) for end in (part.lower, part.upper)]
            if any(end in (1, -1) for end in ends):
                found.append(code.replace(index, code.source(index.value)))
        if len(found) > 1:
            yield Change.of("the shifts removed", found)


def _shifted_loss(code: Code, call: ast.Call) -> Iterator[Change]:
    """`cross_entropy(logits.view(-1, V), labels.view(-1))` → each position scores the next token."""
    if len(call.args) < 2:
        return
    logits, labels = call.args[:2]
    if isinstance(logits, ast.Call) and isinstance(labels, ast.Call):
        one, two = (_unshifted(receiver(side)) for side in (logits, labels))
        if isinstance(one, ast.Name) and isinstance(two, ast.Name):
            width = f"{one.id}.shape[-1]"
            new = [
                code.replace(logits, f"{one.id}[:, :-1].reshape(-1, {width})"),
                code.replace(labels, f"{two.id}[:, 1:].reshape(-1)"),
            ]
            yield Change.of("each position scores the next token", new)


def _unshifted(node: ast.expr | None) -> ast.expr | None:
    return node.value if isinstance(node, ast.Subscript) else node


@cure("padding does not count in the loss", "gradient accumulation", "padding invariance", "learning")
def ignored(code: Code) -> Iterator[Change]:
    """`ignore_index` left to torch: -100."""
    for call in code.calls(
        "cross_entropy", "nll_loss", "CrossEntropyLoss", functions=[*code.forwards, *code.constructors]
    ):
        given = keyword(call, "ignore_index")
        if given is not None and number(given.value) != -100:
            yield Change.of("labels of -100 do not count", [code.drop_argument(call, given)])
        reduction = keyword(call, "reduction")
        if reduction is not None and called(call) != "nll_loss":
            yield Change.of("the mean over tokens", [code.drop_argument(call, reduction)])


@cure("scores in place of probabilities", "learning", asked="softmax")
def scores(code: Code) -> Iterator[Change]:
    """A softmax at the end of `forward`, or before a loss that applies its own, removed; the last one of a function first."""
    for function in code.forwards:
        for call in sorted(code.calls("softmax", functions=[function]), key=lambda call: -call.lineno):
            owner = subject(call)
            if owner is not None:
                yield Change.of("the scores themselves", [code.replace(call, code.source(owner))])


@cure("loss that trains towards its labels", "learning", asked="own loss")
def direction(code: Code) -> Iterator[Change]:
    """A loss that is negated or detached, as it is."""
    for negation in code.find(ast.UnaryOp):
        if isinstance(negation.op, ast.USub) and _is_loss(negation.operand):
            yield Change.of("the loss not negated", [code.replace(negation, code.source(negation.operand))])
    for call in code.calls("detach", "item"):
        owner = receiver(call)
        if owner is not None and _is_loss(owner):
            yield Change.of("the loss keeps its gradient", [code.replace(call, code.source(owner))])


def _is_loss(node: ast.expr) -> bool:
    """Whether an expression is a loss, by its name or by what it calls."""
    if isinstance(node, ast.Call):
        return called(node) in ("cross_entropy", "nll_loss", "criterion", "loss_fn")
    return isinstance(node, ast.Name) and "loss" in node.id.lower()


CURES = (loss_shift, shift, ignored, scores, direction)
