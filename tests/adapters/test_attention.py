from __future__ import annotations

import pytest
import torch
from adapters import sequence_mixers as s
from torch import nn

from utils.adapters.attention import (
    CAUSAL_CLASSES,
    CausalMultiheadAttention,
    causal_twins,
    hide_future,
    join_causal,
    use_causal_twins,
)
from utils.adapters.attention_calls import attention_calls, runs_of, shared_copy
from utils.adapters.causal_mode import CausalRule, causal_attention, causal_softmax, causal_subclass

D = 16


def explicit(length: int) -> torch.Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu(1)


@pytest.mark.parametrize("cls", [nn.MultiheadAttention, CausalMultiheadAttention])
def test_cross_attention_keeps_seeing_everything(cls: type[nn.Module]) -> None:
    attention = nn.MultiheadAttention(D, 2, batch_first=True)
    query, memory = torch.randn(1, 3, D), torch.randn(1, 5, D)
    expected = attention(query, memory, memory)[0]
    attention.__class__ = cls
    torch.testing.assert_close(attention(query, memory, memory)[0], expected)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masks", ["none", "padding", "additive", "per head", "both"])
def test_masks_of_the_caller_join_the_causal_one(batch_first: bool, need_weights: bool, masks: str) -> None:
    attention = nn.MultiheadAttention(D, 2, batch_first=batch_first).eval()
    x = torch.randn(3, 4, D)
    padding = torch.tensor([[False, False, False, True], [False] * 4, [False] * 4])
    bias = torch.randn(4, 4) if masks != "per head" else torch.randn(6, 4, 4)
    padding_mask = padding if masks in ("padding", "both") else None
    mask = bias if masks in ("additive", "per head", "both") else None
    joined = (torch.zeros(4, 4) if mask is None else mask).masked_fill(explicit(4), float("-inf"))
    given = x if batch_first else x.transpose(0, 1)
    added = None if padding_mask is None else torch.zeros(3, 4).masked_fill(padding, float("-inf"))
    expected = attention(given, given, given, key_padding_mask=added, attn_mask=joined)[0]
    use_causal_twins(attention, [""])
    result, weights = attention(
        given, given, given, key_padding_mask=padding_mask, attn_mask=mask, need_weights=need_weights
    )
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)
    assert (weights is None) is not need_weights


def test_padding_at_the_beginning_gives_no_nan() -> None:
    attention = CausalMultiheadAttention(D, 2, batch_first=True)
    x = torch.randn(1, 4, D)
    hidden = torch.tensor([[True, True, False, False]])
    result = attention(x, x, x, key_padding_mask=hidden)[0]
    assert torch.isfinite(result).all()
    real = x[:, 2:]
    torch.testing.assert_close(result[:, 2:], attention(real, real, real)[0], atol=1e-6, rtol=1e-5)


def test_hidden_future_leaves_every_position_itself() -> None:
    scores = torch.zeros(3, 3)
    scores[:, :2] = float("-inf")
    assert torch.equal(hide_future(scores).isfinite(), torch.eye(3, dtype=torch.bool))
    assert join_causal(None, None, 3, 2, scores).isinf().sum() == 3


@pytest.mark.parametrize("mask", [None, torch.rand(5, 5) > 0.5, torch.randn(5, 5), torch.randn(2, 1, 1, 5)])
def test_causal_attention_equals_a_masked_softmax(mask: torch.Tensor | None) -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind(0)
    scores = q @ k.mT / 8**0.5
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = mask | torch.eye(5, dtype=torch.bool)
        scores = scores.masked_fill(~mask, -1e30) if mask.dtype == torch.bool else scores + mask
    expected = torch.softmax(scores.masked_fill(explicit(5), -1e30), -1) @ v
    torch.testing.assert_close(causal_attention(q, k, v, mask), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(causal_attention(q, k, v, mask, is_causal=mask is None), expected, atol=1e-5, rtol=1e-5)


def test_causal_softmax_knows_its_axes() -> None:
    scores = torch.randn(2, 5, 3, 5)  # (B, queries, heads, keys)
    weights = causal_softmax(scores, -3, -1, torch.float32)
    expected = torch.softmax(scores.movedim(1, 2).masked_fill(explicit(5), -1e30), -1).movedim(2, 1)
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (s.Attention, ["model.mixer"]),
        (s.Encoder, ["model.mixer", "model.mixer.layers.0", "model.mixer.layers.1"]),
        (s.OwnLayerEncoder, ["model.mixer"]),
        (s.Heads, []),
    ],
)
def test_twins_are_found(kind: type[nn.Module], names: list[str]) -> None:
    model = s.adapted(kind)
    assert causal_twins(model) == names
    copied = shared_copy(model)
    use_causal_twins(copied, names)
    assert all(type(copied.get_submodule(name)) in CAUSAL_CLASSES.values() for name in names)
    assert causal_twins(model) == names  # the given model stays


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (s.Attention, {("model.mixer", "mha", 0)}),
        (s.Encoder, {("model.mixer.layers.0", "mha", 0), ("model.mixer.layers.1", "mha", 0)}),
        (s.ByHelper, {("model.mixer", "sdpa", 0)}),
        (s.BySoftmaxModule, {("model.mixer", "softmax", 0)}),
        (s.BesideCross, {("model.mixer", "sdpa", 0), ("model.mixer", "sdpa", 1)}),
        (s.Recurrent, set()),
    ],
)
def test_calls_belong_to_the_code_that_makes_them(kind: type[nn.Module], found: set[tuple[str, str, int]]) -> None:
    model = s.adapted(kind)
    with attention_calls(model) as calls:
        model(torch.zeros(2, 5, dtype=torch.long))
    assert {(call.path, call.kind, call.index) for call in calls} == found
    (first, second), runs = runs_of(model)
    assert first != second and [call.place for call in runs[0]] == [call.place for call in runs[1]]


def test_watching_survives_an_error_and_leaves_no_hook() -> None:
    from torch.nn.modules import module as nn_module

    class Caught(s.Heads):
        def forward(self, x):
            try:
                self.out(torch.zeros(1))
            except RuntimeError:
                return super().forward(x)

    model = s.adapted(s.Net)
    model.model.mixer = Caught()
    with attention_calls(model) as calls:
        model(torch.zeros(2, 5, dtype=torch.long))
    assert [call.path for call in calls] == ["model.mixer"]
    with pytest.raises(RuntimeError), attention_calls(model):
        raise RuntimeError("stop")
    assert not nn_module._global_forward_pre_hooks and not nn_module._global_forward_hooks


def test_causal_subclass_is_one_class_and_keeps_the_signature() -> None:
    import inspect

    rules = (CausalRule("sdpa"),)
    subclass = causal_subclass(s.Heads, rules)
    assert subclass is causal_subclass(s.Heads, rules) and issubclass(subclass, s.Heads)
    assert subclass.__name__ == "Heads" and inspect.signature(subclass.forward) == inspect.signature(s.Heads.forward)
