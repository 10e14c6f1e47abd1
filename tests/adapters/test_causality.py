from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import utils.examples
from utils.adapters.attention import CausalMultiheadAttention, causal_twins
from utils.adapters.causality import make_causal, sees_future
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.errors import CallContractError
from utils.loading.model_loader import load_model

V, D, T = 23, 16, 16


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.pos, self.head = nn.Embedding(V, D), nn.Embedding(T, D), nn.Linear(D, V)
        self.mixer = self.make()

    def make(self) -> nn.Module:
        return nn.Identity()

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixer(x)

    def forward(self, input_ids):
        x = self.emb(input_ids) + self.pos(torch.arange(input_ids.shape[1]))
        return self.head(x + self.mix(x))


class Attention(Net):
    causal = False

    def make(self):
        return nn.MultiheadAttention(D, 2, batch_first=True)

    def mix(self, x):
        mask = torch.full((x.shape[1],) * 2, float("-inf")).triu(1) if self.causal else None
        return self.mixer(x, x, x, attn_mask=mask, need_weights=False)[0]


class CausalAttention(Attention):
    causal = True


class TimeFirst(Net):
    def make(self):
        return nn.MultiheadAttention(D, 2)

    def mix(self, x):
        y = x.transpose(0, 1)
        return self.mixer(y, y, y)[0].transpose(0, 1)


class Encoder(Net):
    def make(self):
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(D, 2, 32, 0.0, batch_first=True), 2)


class Convolution(Net):
    def make(self):
        return nn.Conv1d(D, D, 3, padding=1)

    def mix(self, x):
        return self.mixer(x.transpose(1, 2)).transpose(1, 2)


class CausalConvolution(Convolution):
    def make(self):
        return nn.Conv1d(D, D, 3)

    def mix(self, x):
        return self.mixer(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)


class Recurrent(Net):
    def make(self):
        return nn.GRU(D, D, batch_first=True)

    def mix(self, x):
        return self.mixer(x)[0]


class Bidirectional(Recurrent):
    def make(self):
        return nn.GRU(D, D // 2, batch_first=True, bidirectional=True)


class Mean(Net):
    def mix(self, x):
        return x.mean(1, keepdim=True)


class Flipped(Net):
    def mix(self, x):
        return x.flip(1)


class NextEmbedding(Net):
    """Leaks exactly one position ahead."""

    def mix(self, x):
        return torch.cat([x[:, 1:], x[:, -1:]], 1)


class LastOnly(Net):
    """Only the last token leaks, into every earlier position."""

    def mix(self, x):
        return 1e-2 * x[:, -1:].expand_as(x)


class Fused(Net):
    is_causal = False

    def mix(self, x):
        return F.scaled_dot_product_attention(x, x, x, is_causal=self.is_causal)


class CausalFused(Fused):
    is_causal = True


LEAKING = [Attention, TimeFirst, Encoder, Convolution, Bidirectional, Mean, Flipped, NextEmbedding, LastOnly, Fused]
CLEAN = [Net, CausalAttention, CausalConvolution, Recurrent, CausalFused]


def adapted(kind: type[Net]) -> AdaptedModel:
    torch.manual_seed(0)
    return adapt(kind(), {"vocab_size": V, "max_seq_len": T})


@pytest.mark.parametrize("kind", LEAKING)
def test_leak_is_found(kind: type[Net]) -> None:
    report = sees_future(adapted(kind))
    assert not report.causal and report.leak > 0 and report.changed_at is not None
    assert f"position {report.changed_at}" in report.evidence


@pytest.mark.parametrize("kind", CLEAN)
def test_clean_model_is_not_blamed(kind: type[Net]) -> None:
    report = sees_future(adapted(kind))
    assert report.causal and report.leak == 0 and "moved no earlier logit" in report.evidence


@pytest.mark.parametrize("kind", [Attention, TimeFirst, Encoder])
def test_made_causal_is_proven_and_keeps_the_weights(kind: type[Net]) -> None:
    before = adapted(kind)
    after = make_causal(before)
    assert sees_future(after).causal and not sees_future(before).causal
    assert list(after.state_dict()) == list(before.state_dict())
    assert all(a is b for a, b in zip(before.parameters(), after.parameters()))
    ids = torch.randint(V, (2, 7))
    with torch.no_grad():
        whole, alone = after.eval()(ids).logits, before.eval()(ids[:, :1]).logits
        # one token has no future: position 0 is what the original gives for that token alone
        torch.testing.assert_close(whole[:, :1], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(after.train()(ids).logits, whole, atol=1e-5, rtol=1e-5)


def test_causal_attention_equals_an_explicit_mask() -> None:
    leaking = adapted(Attention)
    explicit = CausalAttention()
    explicit.load_state_dict(leaking.model.state_dict())
    ids = torch.randint(V, (3, 9))
    torch.testing.assert_close(make_causal(leaking)(ids).logits, explicit(ids))


def test_causal_model_is_returned_as_it_is() -> None:
    model = adapted(CausalAttention)
    assert make_causal(model) is model


@pytest.mark.parametrize(("kind", "words"), [(Mean, "cannot be made causal from outside"), (Fused, "is_causal=True")])
def test_what_cannot_be_made_causal_says_so(kind: type[Net], words: str) -> None:
    with pytest.raises(CallContractError, match=words):
        make_causal(adapted(kind))


def test_leak_beside_the_attention_is_still_found_afterwards() -> None:
    class Both(Attention):
        def mix(self, x):
            return super().mix(x) + x.mean(1, keepdim=True)

    with pytest.raises(CallContractError, match=r"still sees later tokens after its attention \(model.mixer\)"):
        make_causal(adapted(Both))


def test_bundled_export_sees_the_future_until_it_is_made_causal() -> None:
    export = adapt(load_model(utils.examples.path()))
    assert not sees_future(export).causal
    assert causal_twins(export) == ["model.mhsa_0", "model.mhsa_1"]
    assert sees_future(make_causal(export)).causal


def test_asking_leaves_the_model_as_it_was() -> None:
    model = adapted(Attention).train()
    state = torch.get_rng_state()
    sees_future(model)
    assert model.training and model.model.mixer.training and torch.equal(torch.get_rng_state(), state)


def test_cross_attention_keeps_seeing_everything() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(D, 2, batch_first=True)
    query, memory = torch.randn(1, 3, D), torch.randn(1, 5, D)
    expected = attention(query, memory, memory)[0]
    attention.__class__ = CausalMultiheadAttention
    torch.testing.assert_close(attention(query, memory, memory)[0], expected)


def test_padding_masks_join_the_causal_one() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(D, 2, batch_first=True)
    x, hidden = torch.randn(2, 4, D), torch.tensor([[False, False, False, True], [False] * 4])
    causal = torch.ones(4, 4, dtype=torch.bool).triu(1)
    expected = attention(x, x, x, key_padding_mask=hidden, attn_mask=causal)[0]
    attention.__class__ = CausalMultiheadAttention
    torch.testing.assert_close(attention(x, x, x, key_padding_mask=hidden)[0], expected)


def test_classification_has_no_future() -> None:
    class Classifier(Net):
        def forward(self, input_ids):
            return super().forward(input_ids).mean(1)[:, :3]

    with pytest.raises(CallContractError, match="one row of scores per sequence"):
        sees_future(adapted(Classifier))
