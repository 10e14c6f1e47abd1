from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from adapters import sequence_mixers as s
from torch import nn

from utils.adapters.attention_functions import sdpa_arguments
from utils.adapters.causality import make_causal, sees_future
from utils.adapters.fused_attention import FlashAttentionWrapper, FusedMultiheadAttention
from utils.adapters.fused_kernels import chosen_kernel, why_not_fused

IDS = torch.randint(2, s.V, (2, 9), generator=torch.Generator().manual_seed(0))


class Wasteful(s.Attention):
    """Has the weights formed and throws them away."""

    def mix(self, x):
        y, _ = self.mixer(x, x, x)
        return y


class WastefulByName(s.Attention):
    def mix(self, x):
        return self.mixer(query=x, key=x, value=x, need_weights=True)[0]


class Reads(s.Attention):
    def mix(self, x):
        y, weights = self.mixer(x, x, x)
        return y * weights.mean()


class Keeps(s.Attention):
    def mix(self, x):
        y, self.last_weights = self.mixer(x, x, x)
        return y


class Returns(s.Attention):
    def forward(self, input_ids):
        x = self.emb(input_ids) + self.pos(torch.arange(input_ids.shape[1]))
        y, weights = self.mixer(x, x, x)
        return {"logits": self.head(x + y), "attentions": weights}


class ReadsInTraining(s.Attention):
    def mix(self, x):
        y, weights = self.mixer(x, x, x)
        return y * (1 + weights.mean()) if self.training else y


@pytest.mark.parametrize("kind", [Wasteful, WastefulByName])
def test_weights_that_nobody_reads_are_switched_off(kind: type[nn.Module]) -> None:
    model = s.adapted(kind)
    wrapper = FlashAttentionWrapper(model)
    assert wrapper.enabled == ["model.mixer"] and type(wrapper.adapted.model.mixer) is FusedMultiheadAttention
    (layer,) = wrapper.report().layers
    assert layer.fused and layer.inference == "flash" and "never read" in layer.why
    torch.testing.assert_close(wrapper(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5)
    assert list(wrapper.model.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(wrapper.model.parameters(), model.parameters()))
    assert type(model.model.mixer) is nn.MultiheadAttention  # the given model stays


@pytest.mark.parametrize("kind", [Reads, Keeps, Returns, ReadsInTraining])
def test_weights_that_somebody_reads_stay(kind: type[nn.Module]) -> None:
    wrapper = FlashAttentionWrapper(s.adapted(kind))
    (layer,) = wrapper.report().layers
    assert wrapper.enabled == [] and not layer.fused and "need_weights=True" in layer.why


@pytest.mark.parametrize(
    ("kind", "fused", "attention", "words"),
    [
        (s.Heads, True, "scaled_dot_product_attention", ""),
        (s.ByHelper, True, "scaled_dot_product_attention", ""),
        (s.CausalAttention, True, "MultiheadAttention", ""),
        (s.ByHand, False, "softmax by hand", "call torch.nn.functional.scaled_dot_product_attention instead"),
        (s.BySoftmaxModule, False, "softmax by hand", "by hand"),
        (s.Fused, False, "scaled_dot_product_attention", "query has 3 axes"),
    ],
)
def test_report_tells_each_layer(kind: type[nn.Module], fused: bool, attention: str, words: str) -> None:
    report = FlashAttentionWrapper(s.adapted(kind)).report()
    (layer,) = report.layers
    assert (layer.fused, layer.attention) == (fused, attention) and words in layer.why
    assert layer.name == ("model" if kind is s.Fused else "model.mixer") and "cpu (float32)" in report.verdict
    assert f"{int(fused)} of 1 attention layers" in report.summary() and layer.name in report.summary()
    assert "<table" in report._repr_html_() and layer.why[:12] in report._repr_html_()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"dropout_p": 0.1}, "dropout 0.1"),
        ({"attn_mask": torch.zeros(5, 5, requires_grad=True)}, "requires a gradient"),
        ({"attn_mask": torch.zeros(2, 5, 5)}, "a mask (2, 5, 5) of float32"),
        ({"value": torch.zeros(2, 2, 5, 4)}, "values are 4 wide, keys 8"),
        ({"query": torch.zeros(2, 2, 8, 5).mT}, "not contiguous"),
    ],
)
def test_reason_is_the_change_that_helps(changes: dict[str, object], words: str) -> None:
    arguments = sdpa_arguments(*(torch.zeros(2, 2, 5, 8) for _ in range(3)))
    arguments.update(changes)
    assert (chosen_kernel(arguments) == "flash") is (words == "")
    assert words in why_not_fused(arguments) and bool(why_not_fused(arguments)) is bool(words)


def test_training_with_dropout_is_told_apart_from_inference() -> None:
    class Dropping(s.Heads):
        def weigh(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)

    (layer,) = FlashAttentionWrapper(s.adapted(Dropping)).report().layers
    assert (layer.inference, layer.training) == ("flash", "math") and "in training: dropout 0.1" in layer.why


def test_eager_transformers_are_switched_to_sdpa() -> None:
    model = s.hugging_face("bert", "MaskedLM", "eager")
    wrapper = FlashAttentionWrapper(model.model)
    assert len(wrapper.enabled) == 2 and isinstance(wrapper.model, type(model.model))
    assert model.model.config._attn_implementation == "eager" and all(layer.fused for layer in wrapper.report().layers)
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    with torch.no_grad():
        one, other = wrapper(IDS, attention_mask=mask).logits, model.model.eval()(IDS, attention_mask=mask).logits
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_setting_that_changes_nothing_is_not_called_switched_on() -> None:
    model = s.hugging_face("falcon", "CausalLM", "eager")
    wrapper = FlashAttentionWrapper(model.model)
    report = wrapper.report()
    assert wrapper.enabled == [] and not any(layer.fused for layer in report.layers)
    assert (
        "changes nothing, since the code attends by hand" in report.summary() and "switched on" not in report.summary()
    )


def test_what_changes_the_outputs_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: nn.Module, *args: torch.Tensor, **kwargs: object) -> tuple[torch.Tensor, None]:
        return args[0] * 2, None

    monkeypatch.setattr(FusedMultiheadAttention, "forward", wrong)
    wrapper = FlashAttentionWrapper(s.adapted(Wasteful))
    assert wrapper.enabled == [] and "the outputs differ by" in wrapper.report().summary()
    assert type(wrapper.adapted.model.mixer) is nn.MultiheadAttention


def test_causal_and_fused_go_together() -> None:
    causal = make_causal(s.adapted(Wasteful))
    fused = FlashAttentionWrapper(causal)
    assert (
        fused.enabled and sees_future(fused.model).causal and sees_future(fused.model).made_causal == ("model.mixer",)
    )
    again = make_causal(FlashAttentionWrapper(s.adapted(Wasteful)).model)
    torch.testing.assert_close(again(IDS).logits, causal(IDS).logits, atol=1e-5, rtol=1e-5)


def test_models_without_attention_and_reports_only() -> None:
    report = FlashAttentionWrapper(s.adapted(s.Recurrent)).report()
    assert report.layers == () and "nothing to fuse" in report.summary() and "nothing to fuse" in report._repr_html_()
    assert FlashAttentionWrapper(s.adapted(Wasteful), enable=False).enabled == []


def test_examining_leaves_the_model_as_it_was() -> None:
    model = s.adapted(Wasteful).train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    FlashAttentionWrapper(model).report()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert torch.equal(random, torch.get_rng_state())
    assert all(m.training and not m._forward_hooks for m in model.modules()) and all(
        p.grad is None for p in model.parameters()
    )
