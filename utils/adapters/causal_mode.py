"""Causal attention for code that computes attention by itself.

A module's class is exchanged for a subclass whose `forward` runs the original under a `TorchFunctionMode`, which adds the
causal mask to `scaled_dot_product_attention`, to `multi_head_attention_forward` and to a softmax over scores. A mode was
chosen over replaced globals and over rewritten source because it reaches every spelling (aliases, helper functions,
closures, methods of tensors, the attention interface of transformers) and needs no source, and because `torch.compile`
traces it without a graph break and `torch.export` leaves only plain operators. Kernels that are no torch function
(flash_attn, xformers, flex_attention) are out of its reach; the proof in `causality` notices.

Parameters, names and the instance's attributes stay; instances pickle by the original class and the rules.

Imports torch alone: exported folders of transformers hold a copy of this file. Which calls need it is for `causal_calls`.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from utils.adapters.attention import hide_future, join_causal, visible_past
from utils.adapters.attention_functions import kind_of, mha_arguments


class CausalRule(NamedTuple):
    """Which calls of one kind are made causal.

    Attributes:
        kind: one of `attention_calls.KINDS`.
        indices: their numbers within one run of the module; None for all.
        query_axis: axis of the queries in the scores of a softmax, counted from the end.
        key_axis: axis of the keys there.
    """

    kind: str
    indices: tuple[int, ...] | None = None
    query_axis: int = -2
    key_axis: int = -1


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`scaled_dot_product_attention` in which position i sees j ≤ i, whatever mask it is given."""
    length = query.shape[-2]
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # True = may see
        past = attn_mask & visible_past(length, query.device)
        itself = torch.eye(length, dtype=torch.bool, device=query.device)
        attn_mask = past | (itself & ~past.any(-1, keepdim=True))
    elif attn_mask is not None:
        attn_mask = hide_future(attn_mask)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, attn_mask is None, scale=scale, enable_gqa=enable_gqa
    )


def causal_multi_head_attention(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`multi_head_attention_forward` in which position i sees j ≤ i, whatever masks it is given."""
    named = mha_arguments(*args, **kwargs)
    query, padding = named["query"], named.get("key_padding_mask")
    mask = join_causal(named.get("attn_mask"), padding, query.shape[0], named["num_heads"], query)
    named.update(attn_mask=mask, key_padding_mask=None, is_causal=False)
    return F.multi_head_attention_forward(**named)


def causal_softmax(scores: torch.Tensor, query_axis: int, key_axis: int, dtype: torch.dtype) -> torch.Tensor:
    """Softmax over the keys of attention scores, computed in `dtype`, in which position i sees j ≤ i."""
    ordered = scores.to(dtype).movedim((query_axis, key_axis), (-2, -1))  # (..., T, T)
    return torch.softmax(hide_future(ordered), -1).movedim((-2, -1), (query_axis, key_axis))


class _CausalMode(TorchFunctionMode):
    """Carries out attention calls causally, as the rules say."""

    def __init__(self, rules: tuple[CausalRule, ...]) -> None:
        super().__init__()
        self.rules = rules
        self.counts = {"sdpa": 0, "mha": 0, "softmax": 0}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        kind = kind_of(function)
        if function is torch.Tensor.unflatten:  # torch 2.13 compiles it under a mode as a method only
            return args[0].unflatten(*args[1:], **named)
        if kind is None:
            return function(*args, **named)
        index = self.counts[kind]
        self.counts[kind] = index + 1
        for rule in self.rules:
            if rule.kind == kind and (rule.indices is None or index in rule.indices):
                if kind == "sdpa":
                    return causal_attention(*args, **named)
                if kind == "mha":
                    return causal_multi_head_attention(*args, **named)
                scores = args[0] if args else named["input"]
                return causal_softmax(scores, rule.query_axis, rule.key_axis, _dtype(args, named, scores))
        return function(*args, **named)


def _dtype(args: tuple[Any, ...], named: dict[str, Any], scores: torch.Tensor) -> torch.dtype:
    """Type that a call of a softmax asks for."""
    asked = named.get("dtype") or next((value for value in args[1:] if isinstance(value, torch.dtype)), None)
    return asked or scores.dtype


@functools.cache
def causal_subclass(cls: Any, rules: tuple[CausalRule, ...]) -> type[nn.Module]:
    """The subclass of `cls`, a class of modules, whose attention follows `rules`; the same object for the same arguments."""

    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _CausalMode(rules):
            return cls.forward(self, *args, **kwargs)

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:
        rebuild, arguments, *rest = reduced = cls.__reduce_ex__(self, protocol)
        if rebuild is copyreg.__newobj__:  # type: ignore[attr-defined]  # what nn.Module does
            return (_new, (cls, rules, *arguments[1:]), *rest)
        return reduced

    names = {
        "forward": forward,
        "__reduce_ex__": __reduce_ex__,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "causal_rules": rules,
    }
    return type(cls.__name__, (cls,), names)


def _new(cls: type[nn.Module], rules: tuple[CausalRule, ...], *arguments: Any) -> nn.Module:
    """An empty instance of the causal subclass, for unpickling."""
    given: Any = cls
    subclass = causal_subclass(given, tuple(CausalRule(*rule) for rule in rules))
    return subclass.__new__(subclass, *arguments)


def use_causal_calls(model: nn.Module, rules: dict[str, tuple[CausalRule, ...]]) -> None:
    """Exchange the class of the named modules of `model` for causal subclasses, in place."""
    modules = dict(model.named_modules())
    for path, module_rules in rules.items():
        module: Any = modules[path]
        given: Any = type(module)
        module.__class__ = causal_subclass(given, module_rules)


def rules_from_json(written: Mapping[str, list[list[Any]]]) -> dict[str, tuple[CausalRule, ...]]:
    """Rules as `use_causal_calls` takes them, of those that were written as lists."""

    def rule(kind: str, indices: list[int] | None, *axes: int) -> CausalRule:
        return CausalRule(kind, None if indices is None else tuple(indices), *axes)

    return {path: tuple(rule(*one) for one in rules) for path, rules in written.items()}
