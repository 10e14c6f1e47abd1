"""The ways in which a model's attention can be made causal from outside. Proving that one worked is for `causality`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from utils.adapters.attention import CAUSAL_CLASSES, causal_twins, use_causal_twins
from utils.adapters.attention_calls import AttentionCall, runs_of
from utils.adapters.causal_calls import recomputes, rules_for
from utils.adapters.causal_mode import CausalRule, use_causal_calls
from utils.adapters.model_adapter import AdaptedModel

SWITCHES: dict[str, bool] = {
    "is_causal": True,
    "causal": True,
    "use_causal": True,
    "use_causal_mask": True,
    "causal_mask": True,
    "causal_attention": True,
    "autoregressive": True,
    "unidirectional": True,
    "is_decoder": True,
    "bidirectional": False,
}
"""Attributes by which models say whether they may see the future → the value that forbids it. Only a plain bool counts."""


@dataclass(frozen=True)
class Route:
    """One way.

    Attributes:
        name: in words.
        apply: changes a copy of the model in place and returns the names of what it changed.
    """

    name: str
    apply: Callable[[AdaptedModel], list[str]]


def routes_of(adapted: AdaptedModel) -> list[Route]:
    """The ways that are open for this model, the least invasive first."""
    routes = [Route("its own switches", _flip)] if _switches(adapted) else []
    lengths, runs = runs_of(adapted)
    twins = [name for name in causal_twins(adapted) if not _only_crosses(name, runs[0])]
    modules = dict(adapted.named_modules())
    seen: list[tuple[list[str], dict[str, tuple[CausalRule, ...]]]] = []
    for name, kinds, windows in (
        ("a causal mask in its attention", ("sdpa", "mha"), False),
        ("a causal mask in its attention and before its softmax", ("sdpa", "mha", "softmax"), False),
        ("a causal mask in its attention over windows", ("sdpa", "mha", "softmax"), True),
    ):
        found = rules_for(*runs, lengths, kinds, windows)
        found = {path: own for path, own in found.items() if not recomputes(modules[path])}
        rest = {path: own for path, own in found.items() if not _has_twin(path, twins)}
        for exchanged, rules in ((twins, rest), ([], found)):  # without twins: query and key are different tensors
            if (exchanged or rules) and (exchanged, rules) not in seen:
                seen.append((exchanged, rules))
                routes.append(Route(name, _exchange(exchanged, rules)))
    return routes


def causal_modules(model: nn.Module) -> list[str]:
    """Names of the modules that have been made causal by exchanging their class."""
    ours = tuple(CAUSAL_CLASSES.values())
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, ours) or hasattr(type(module), "causal_rules")
    ]


def _exchange(twins: list[str], rules: dict[str, tuple[CausalRule, ...]]) -> Callable[[AdaptedModel], list[str]]:
    def apply(causal: AdaptedModel) -> list[str]:
        use_causal_twins(causal, twins)
        use_causal_calls(causal, rules)
        return [*twins, *rules]

    return apply


def _only_crosses(path: str, calls: list[AttentionCall]) -> bool:
    """Whether every attention that `path` was seen to compute has keys of another length than its queries."""
    own = [call.lengths() for call in calls if call.path == path]
    return bool(own) and all(queries != keys for queries, keys in own)


def _has_twin(path: str, twins: list[str]) -> bool:
    """Whether attention at `path` is that of a module of `torch.nn` which is exchanged as a whole."""
    return any(path == twin or path.startswith(twin + ".") for twin in twins)


def _switches(adapted: AdaptedModel) -> list[tuple[str, Any, str]]:
    """(name, owner, attribute) of every switch that allows to see the future, in modules and their configs."""
    found: dict[tuple[int, str], tuple[str, Any, str]] = {}
    for path, module in adapted.model.named_modules():
        if type(module).__module__.startswith("torch."):  # `nn.GRU.bidirectional` says what its weights are
            continue
        owners = [
            (path, module),
            *((f"{path}.{name}".lstrip("."), getattr(module, name, None)) for name in ("config", "cfg")),
        ]
        for place, owner in owners:
            for attribute, wanted in SWITCHES.items():
                if owner is not None and getattr(owner, attribute, None) is (not wanted):
                    found.setdefault((id(owner), attribute), (f"{place}.{attribute}".lstrip("."), owner, attribute))
    return list(found.values())


def _flip(causal: AdaptedModel) -> list[str]:
    """Turn every switch, in modules and configs; a switch that cannot be set stays."""
    turned = []
    for name, owner, attribute in _switches(causal):
        try:
            setattr(owner, attribute, SWITCHES[attribute])
        except AttributeError:  # a property, or a frozen dataclass
            continue
        if attribute == "is_decoder" and getattr(owner, "use_cache", None) is True:
            owner.use_cache = False  # a decoder of transformers keeps its keys otherwise
        turned.append(name)
    return turned
