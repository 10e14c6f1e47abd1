"""What a `forward` that runs really does: which modules it applies, to what, and what is missing by that evidence alone.

A source that runs is somebody's working model. It is changed only where the canvas draws something and the run shows that it
is missing; whatever stays in doubt is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utils.adapters.canvas import Node
from utils.adapters.probing import left_as_it_was
from utils.adapters.refusals import REFUSED, unless_refused

if TYPE_CHECKING:
    from utils.adapters.graph_values import ForwardCompleter

Seen = tuple[torch.Tensor, int]
"""A tensor and its version: work in place makes another value of the same tensor."""


@dataclass
class Observation:
    """One run of a forward.

    Attributes:
        read: child module → tensors that it was applied to.
        gave: child module → tensors that it returned, those of its last call last.
        result: what the forward returned.
    """

    read: dict[str, list[Seen]] = field(default_factory=dict)
    gave: dict[str, list[Seen]] = field(default_factory=dict)
    result: Any = None

    def ran(self, node: Node) -> bool:
        """Whether a module of the node was applied."""
        return any(part in self.gave for part in node.modules)

    def passes_on(self, source: Node, reader: Node) -> bool:
        """Whether `reader` was applied to exactly what `source` gave."""
        given = [seen for part in source.modules for seen in self.gave.get(part, ())]
        read = [seen for part in reader.modules for seen in self.read.get(part, ())]
        return any(one is other and a == b for one, a in given for other, b in read)

    def returns(self, source: Node) -> bool:
        """Whether the result is exactly what `source` gave."""
        results = [tensor for tensor, _ in _tensors(self.result)]
        given = [tensor for part in source.modules for tensor, _ in self.gave.get(part, ())]
        return any(one is other for one in results for other in given)


def observe(model: nn.Module, ids: torch.Tensor, extras: Mapping[str, Any]) -> Observation | None:
    """Run `model(ids)` once and note what its children read and give; None where it cannot be called so.

    The model is left as it was.
    """
    seen = Observation()
    hooks = []
    for name, child in model.named_children():

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            seen.read.setdefault(name, []).extend(_tensors([args, kwargs]))
            seen.gave.setdefault(name, []).extend(_tensors(output))

        hooks.append(child.register_forward_hook(note, with_kwargs=True))

    def run() -> Any:
        with left_as_it_was(model):
            return model(ids, **extras)

    try:
        seen.result = unless_refused(run, REFUSED)
    finally:
        for hook in hooks:
            hook.remove()
    return None if seen.result is REFUSED else seen


def _tensors(value: Any) -> Iterator[Seen]:
    if isinstance(value, torch.Tensor):
        yield value, value._version
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))


def missing_nodes(forward: ForwardCompleter, seen: Observation) -> set[str]:
    """Drawn nodes that a run shows to be missing: norms and the like never applied, and additions that nobody makes."""
    missing = set()
    for node in forward.canvas.nodes:
        if not node.drawn or node.role in ("input", "output", "dropout") or forward.writer.head.is_candidate(node):
            continue
        before, after = _neighbours(forward, node, seen)
        if node.role == "add_norm" and before is not None and seen.passes_on(before, node):
            missing.add(node.name)  # it normalises the branch alone
        if before is None or seen.ran(node) or not (node.modules or node.role == "residual"):
            continue
        skipped = seen.returns(before) if after is None else seen.passes_on(before, after)
        behind_a_sum = bool(node.modules) and not before.modules and after is not None and seen.ran(after)
        if skipped or behind_a_sum:
            missing.add(node.name)
    return missing


def _neighbours(forward: ForwardCompleter, node: Node, seen: Observation) -> tuple[Node | None, Node | None]:
    """(the node that feeds this one as its branch or only input, the nearest one behind that ran)."""
    given = [one for one in forward.writer.given_inputs(node) if one.role != "input"]
    before = given[::-1] or [one for one in forward.canvas.before(node) if one.modules or one.role == "residual"]
    behind = [one for one in forward.canvas.after(node) if seen.ran(one)]
    drawn = [one for one in behind if node.name in one.inputs]
    return next(iter(before), None), next(iter(drawn or behind), None)
