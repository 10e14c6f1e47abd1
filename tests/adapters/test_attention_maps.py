from __future__ import annotations

import copy

import pytest
import torch
from adapters import sequence_mixers as s
from torch import nn

from utils.adapters.attention_maps import attention_maps
from utils.adapters.causality import make_causal

IDS = torch.randint(2, s.V, (2, 9), generator=torch.Generator().manual_seed(0))


def heads_of(mixer: s.Heads, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(y.view(*x.shape[:2], 2, -1).permute(0, 2, 1, 3) for y in mixer.qkv(x).chunk(3, -1))


def embedded(model: nn.Module) -> torch.Tensor:
    return model.emb(IDS) + model.pos(torch.arange(IDS.shape[1]))


def softmax_of(scores: torch.Tensor) -> torch.Tensor:
    powers = torch.exp(scores - scores.amax(-1, keepdim=True))
    return powers / powers.sum(-1, keepdim=True)


def distances() -> torch.Tensor:
    return torch.arange(9)[:, None] - torch.arange(9)


EXPECTED = {  # class → scores of (q, k), written independently
    s.Heads: lambda q, k: torch.einsum("bhid,bhjd->bhij", q, k) / 8**0.5,
    s.ByImport: lambda q, k: torch.einsum("bhid,bhjd->bhij", q, k) * 0.3,
    s.ByFullName: lambda q, k: torch.einsum("bhid,bhjd->bhij", q, k) / 8**0.5,
    s.ByHelper: lambda q, k: torch.einsum("bhid,bhjd->bhij", q, k) / 8**0.5,
    s.WithBias: lambda q, k: torch.einsum("bhid,bhjd->bhij", q, k) / 8**0.5 - distances().abs() * 0.1,
    s.WithBoolMask: lambda q, k: (torch.einsum("bhid,bhjd->bhij", q, k) / 8**0.5).masked_fill(
        distances() % 3 == 1, -1e30
    ),
    s.Grouped: lambda q, k: torch.einsum("bhid,bjd->bhij", q, k[:, 0]) / 8**0.5,
    s.ByHand: lambda q, k: torch.einsum("bhid,bhjd->bhij", q, k) / 8**0.5,
    s.ByMethod: lambda q, k: torch.einsum("bhid,bhjd->bhij", q, k),
    s.BySoftmaxModule: lambda q, k: torch.einsum("bhid,bhjd->bhij", q, k),
    s.KeysFirst: lambda q, k: torch.einsum("bhid,bhjd->bhij", q, k),
    s.HeadsLast: lambda q, k: torch.einsum("bhid,bhjd->bhij", q, k),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", EXPECTED)
def test_maps_of_own_attention(kind: type[s.Heads], causal: bool) -> None:
    adapted = make_causal(s.adapted(kind)) if causal else s.adapted(kind)
    maps = attention_maps(adapted, IDS)
    assert list(maps) == ["model.mixer"] and maps["model.mixer"].shape == (2, 2, 9, 9)
    q, k, _ = heads_of(adapted.model.mixer, embedded(adapted.model))
    scores = EXPECTED[kind](q, k)
    expected = softmax_of(scores.masked_fill(distances() < 0, -1e30) if causal else scores)
    torch.testing.assert_close(maps["model.mixer"], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(maps["model.mixer"].sum(-1), torch.ones(2, 2, 9))


@pytest.mark.parametrize("kind", [s.Attention, s.CausalAttention, s.TimeFirst, s.OffByOne, s.ProjectedFirst])
def test_maps_of_multi_head_attention(kind: type[nn.Module]) -> None:
    adapted = s.adapted(kind)
    mixer, x = adapted.model.mixer, embedded(adapted.model)
    (weights,) = attention_maps(adapted, IDS).values()
    q, k = ((x @ w.T + b).view(2, 9, 2, 8).transpose(1, 2) for w, b in
            zip(mixer.in_proj_weight.chunk(3)[:2], mixer.in_proj_bias.chunk(3)[:2]))  # fmt: skip
    scores = q @ k.mT / 8**0.5
    ahead = {s.CausalAttention: 1, s.OffByOne: 2}.get(kind, 99)
    torch.testing.assert_close(
        weights, softmax_of(scores.masked_fill(-distances() >= ahead, -1e30)), atol=1e-6, rtol=1e-5
    )


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize("kind", [s.Encoder, s.PreNormEncoder, s.TimeFirstEncoder, s.OwnLayerEncoder])
def test_maps_of_an_encoder(kind: type[nn.Module]) -> None:
    adapted = s.adapted(kind)
    maps = attention_maps(adapted, IDS)
    assert list(maps) == ["model.mixer.layers.0", "model.mixer.layers.1"]
    first = adapted.model.mixer.layers[0]
    x = embedded(adapted.model) if not first.norm_first else first.norm1(embedded(adapted.model))
    x = x if first.self_attn.batch_first else x.transpose(0, 1)
    expected = first.self_attn(x, x, x, average_attn_weights=False)[1]
    torch.testing.assert_close(maps["model.mixer.layers.0"], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("family", "head"), [("gpt2", "CausalLM"), ("llama", "CausalLM"), ("bert", "MaskedLM")])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_maps_of_transformers_equal_their_own(family: str, head: str, attention: str) -> None:
    adapted, eager = s.hugging_face(family, head, attention), s.hugging_face(family, head, "eager")
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    maps = list(attention_maps(adapted, IDS, mask).values())
    with torch.no_grad():
        expected = eager.model(IDS, attention_mask=mask, output_attentions=True).attentions
    assert len(maps) == len(expected) == 2
    for one, other in zip(maps, expected):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_padding_gets_no_weight_and_blind_rows_are_zero() -> None:
    adapted = s.hugging_face("gpt2", "CausalLM")
    mask = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    for weights in attention_maps(adapted, IDS, mask).values():
        assert float(weights[1, :, 3:, :3].abs().max()) == 0 and torch.isfinite(weights).all()
        torch.testing.assert_close(weights[:, :, 3:].sum(-1), torch.ones(2, weights.shape[1], 6))


def test_a_model_without_attention_has_no_maps() -> None:
    assert attention_maps(s.adapted(s.Recurrent), IDS) == {}


def test_a_softmax_that_is_no_attention_is_left_out() -> None:
    class Gated(s.ByHand):
        def forward(self, x):
            return super().forward(x) * x.softmax(-1)  # (B, T, D) with D = 16 = T below

    adapted = s.adapted(s.Net)
    adapted.model.mixer = Gated()
    ids = torch.randint(s.V, (2, 16))
    maps = attention_maps(adapted, ids)
    assert [tuple(weights.shape) for weights in maps.values()] == [(2, 2, 16, 16)]


def test_several_calls_are_numbered_and_cross_attention_is_given() -> None:
    maps = attention_maps(s.adapted(s.BesideCross), IDS)
    assert {name: tuple(weights.shape) for name, weights in maps.items()} == {
        "model.mixer[0]": (2, 2, 9, 9), "model.mixer[1]": (2, 2, 9, 7),
    }  # fmt: skip


@pytest.mark.parametrize("kind", [s.Attention, s.Encoder, s.Heads, s.BatchNormed])
def test_the_model_is_left_as_it_was(kind: type[nn.Module]) -> None:
    adapted = s.adapted(kind).train()
    before, random = copy.deepcopy(adapted.state_dict()), torch.get_rng_state()
    classes = [type(module) for module in adapted.modules()]
    attention_maps(adapted, IDS)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), adapted.state_dict().values()))
    assert torch.equal(random, torch.get_rng_state()) and [type(module) for module in adapted.modules()] == classes
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in adapted.modules())
    assert all(p.grad is None for p in adapted.parameters())
