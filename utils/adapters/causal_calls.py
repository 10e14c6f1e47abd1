"""Which attention calls of a model must become causal: self-attention over the sequence, told by two runs.

Carrying them out causally is for `causal_mode`.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType

from torch import nn

from utils.adapters.attention_calls import AttentionCall
from utils.adapters.causal_mode import CausalRule


def rules_for(
    first: list[AttentionCall],
    second: list[AttentionCall],
    lengths: tuple[int, int],
    kinds: tuple[str, ...],
    windows: bool = False,
) -> dict[str, tuple[CausalRule, ...]]:
    """Rules for the self-attention over the sequence, module by module.

    Args:
        first: the calls of a run.
        second: the calls of a run at another length; attention whose numbers of queries and keys follow the length is
            attention over the sequence. Cross-attention and attention over heads or channels do not.
        lengths: the two lengths.
        kinds: kinds to make causal.
        windows: take attention over pieces of a fixed length too.
    """
    again = {call.place: call for call in second}
    wanted: dict[tuple[str, str], dict[int, bool]] = {}
    axes: dict[tuple[str, str], tuple[int, int]] = {}
    for call in first:
        other, where = again.get(call.place), (call.path, call.kind)
        found = self_axes(call, other, lengths, windows) if other is not None and call.kind in kinds else None
        seen = wanted.setdefault(where, {})
        seen[call.index] = found is not None and seen.get(call.index, True) and axes.get(where, found) == found
        if found is not None:
            axes.setdefault(where, found)
    rules: dict[str, tuple[CausalRule, ...]] = {}
    for (path, kind), chosen in wanted.items():
        indices = tuple(sorted(index for index, causal in chosen.items() if causal))
        if indices:
            every = _all_calls(first, path, kind) == len(indices)
            rule = CausalRule(kind, None if every else indices, *axes[path, kind])
            rules[path] = (*rules.get(path, ()), rule)
    return rules


def _all_calls(calls: list[AttentionCall], path: str, kind: str) -> int:
    """How many different calls of a kind happen while a module runs, those of the modules below it included."""
    below = path + "." if path else ""
    inside = (call for call in calls if call.kind == kind and (call.path + ".").startswith(below))
    return len({(call.path, call.index) for call in inside})


def self_axes(
    call: AttentionCall, other: AttentionCall, lengths: tuple[int, int], windows: bool
) -> tuple[int, int] | None:
    """(axis of the queries, axis of the keys) of self-attention over the sequence, or over windows of it; else None."""
    sizes = call.lengths(), other.lengths()
    if windows and all(queries == keys for queries, keys in sizes):
        key = call.key_axis if call.kind == "softmax" else -1
        return (-1 if key == -2 else -2, key)
    if call.kind != "softmax":
        return (-2, -1) if sizes == ((lengths[0],) * 2, (lengths[1],) * 2) else None
    shapes = call.arguments["input"].shape, other.arguments["input"].shape
    if len(shapes[0]) != len(shapes[1]) or call.key_axis != other.key_axis:
        return None
    follow = [axis for axis in range(-len(shapes[0]), 0) if (shapes[0][axis], shapes[1][axis]) == lengths]
    queries = [axis for axis in follow if axis != call.key_axis]
    return (queries[-1], call.key_axis) if call.key_axis in follow and queries else None


def recomputes(module: nn.Module) -> bool:
    """Whether the module's own code runs `checkpoint`, whose second pass would happen outside of the mode."""
    functions = [
        value
        for cls in type(module).__mro__
        if not cls.__module__.startswith("torch.") and cls is not object
        for value in vars(cls).values()
    ]
    codes = (getattr(function, "__code__", None) for function in functions)
    return any("checkpoint" in code.co_names for outer in codes if outer for code in _nested(outer))


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
