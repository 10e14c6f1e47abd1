"""What a model is made of: its parts in the order in which they run, as rows and as a picture. Asks the model, guesses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils._pages import render
from utils.adapters.attention_calls import example_inputs
from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.probing import left_as_it_was

TEMPLATE = Path(__file__).with_name("templates") / "architecture.svg.html"
LEAST_PARTS = 3
"""A model with fewer parts is shown by the parts of its largest part."""

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)
_HEIGHT, _GAP = 54, 22
_PROBE = 8


@dataclass(frozen=True)
class Part:
    """One part, or several equal ones that follow each other.

    Attributes:
        name: attribute path, such as "h.0"; of several, "h.0 … h.11".
        kind: name of its class.
        parameters: of all of them together; shared ones count once within a part.
        settings: what the module says about itself, such as "16, 32, bias=True".
        output: shape that it gives for 2 examples, where it gave a tensor; empty otherwise.
        count: how many.
        runs: whether the model called it.
    """

    name: str
    kind: str
    parameters: int
    settings: str = ""
    output: str = ""
    count: int = 1
    runs: bool = True


def parts_of(adapted: AdaptedModel) -> list[Part]:
    """The parts in the order in which a call runs them; those that it does not call as modules come last."""
    modules = _candidates(adapted.model)
    order, outputs = _order(adapted, modules)
    ranked = sorted(modules, key=lambda name: order.get(name, len(modules)))
    parts = [
        Part(
            name,
            type(modules[name]).__name__,
            sum(parameter.numel() for parameter in modules[name].parameters()),
            modules[name].extra_repr() if not list(modules[name].children()) else "",
            outputs.get(name, ""),
            runs=name in order,
        )
        for name in ranked
    ]
    return _joined(parts)


def architecture_svg(parts: Sequence[Part], title: str) -> str:
    """The parts as boxes from the top down, readable on light and dark pages. All text is escaped."""
    return render(TEMPLATE, parts=parts, title=title, box=_HEIGHT, step=_HEIGHT + _GAP, gap=_GAP)


def heads_of(adapted: AdaptedModel) -> int | None:
    """Attention heads, from the config or from modules that all say the same; None where nothing says it."""
    if adapted.config.num_heads is not None:
        return adapted.config.num_heads
    names = ("num_heads", "n_head", "n_heads", "num_attention_heads")
    found = {value for m in adapted.model.modules() for n in names if isinstance(value := getattr(m, n, None), int)}
    return found.pop() if len(found) == 1 else None


def _candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that count as parts: children, those of lists in their place, and of the largest where there are too few."""
    found = _children(model, "")
    while len(found) < LEAST_PARTS:
        inner = {name: module for name, module in found.items() if list(module.children())}
        if not inner:
            break
        largest = max(inner, key=lambda name: sum(p.numel() for p in inner[name].parameters()))
        opened = _children(inner[largest], largest)
        found = {
            n: m for name, module in found.items() for n, m in (opened if name == largest else {name: module}).items()
        }
    return found


def _children(module: nn.Module, path: str) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        place = f"{path}.{name}".lstrip(".")
        found.update(_children(child, place) if isinstance(child, _CONTAINERS) else {place: child})
    return found


def _order(adapted: AdaptedModel, modules: dict[str, nn.Module]) -> tuple[dict[str, int], dict[str, str]]:
    """(name → place among the calls, name → shape of the output) of one call with made-up inputs."""
    order: dict[str, int] = {}
    outputs: dict[str, str] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            order.setdefault(name, len(order))
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(first, torch.Tensor):
                outputs.setdefault(name, " × ".join(map(str, first.shape)))

        return hook

    contract = adapted.contract
    length = min(_PROBE, contract.max_length or _PROBE)
    length = max(contract.min_length, length // contract.multiple_of * contract.multiple_of)
    handles = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        with left_as_it_was(adapted):
            adapted(example_inputs(adapted, length))
    finally:
        for handle in handles:
            handle.remove()
    return order, outputs


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Neighbours of one list, class and size as one part."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is not None and _alike(last, part):
            first = last.name.split(" … ")[0]
            joined[-1] = Part(
                f"{first} … {part.name}",
                part.kind,
                last.parameters + part.parameters,
                part.settings,
                part.output,
                last.count + 1,
                part.runs,
            )
        else:
            joined.append(part)
    return joined


def _alike(last: Part, part: Part) -> bool:
    listed = part.name.rpartition(".")[0]
    same = (last.kind, last.settings, last.runs) == (part.kind, part.settings, part.runs)
    in_one_list = bool(listed) and last.name.split(" … ")[0].rpartition(".")[0] == listed
    return same and in_one_list and last.parameters == part.parameters * last.count
