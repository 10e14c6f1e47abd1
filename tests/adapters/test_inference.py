"""Contracts of models with every kind of argument and answer, each against the model called properly by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils.adapters.contract import CallContract, shifted_right
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.adapters.model_outputs import next_token_loss
from utils.errors import CallContractError, TokenIdError

V, D, T = 23, 16, 12
IDS = torch.tensor([[3, 3, 7, 1, 9, 20], [8, 8, 2, 5, 5, 11]])
PADDED = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.pos = nn.Embedding(V, D), nn.Embedding(T, D)
        self.att, self.head = nn.MultiheadAttention(D, 2, batch_first=True), nn.Linear(D, V)

    def embed(self, ids):
        return self.emb(ids) + self.pos(torch.arange(ids.shape[1]))

    def scores(self, hidden):
        return hidden @ hidden.transpose(1, 2) / 64


class PaddingDropped(Base):
    def forward(self, tokens, padding_mask=None):
        x = self.embed(tokens)
        return self.head(x + self.att(x, x, x, key_padding_mask=padding_mask)[0])


class KeepInt3D(Base):
    def forward(self, x, mask):
        h = self.embed(x)
        return self.head(h + self.scores(h).masked_fill(mask == 0, -1e9).softmax(-1) @ h)


class CausalAdditive(Base):
    def forward(self, x, attn_mask):
        h = self.embed(x)
        return self.head(h + self.att(h, h, h, attn_mask=attn_mask)[0])


class Drop3D(Base):
    def forward(self, x, mask):
        h = self.embed(x)
        return self.head(h + self.scores(h).masked_fill(mask, float("-inf")).softmax(-1) @ h)


class Keep4D(Base):
    def forward(self, src, src_mask=None):
        h = self.embed(src)
        w = self.scores(h)[:, None]
        w = w if src_mask is None else w.masked_fill(src_mask == 0, -1e9)
        return self.head(h + w.softmax(-1)[:, 0] @ h)


def causal(length: int) -> torch.Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    ("kind", "proper"),
    [
        (PaddingDropped, lambda m, ids, real: m(ids, padding_mask=~real.bool())),
        (KeepInt3D, lambda m, ids, real: m(ids, causal(6) & real[:, None].bool())),
        (Drop3D, lambda m, ids, real: m(ids, ~(causal(6) & real[:, None].bool()))),
        (CausalAdditive, lambda m, ids, real: m(ids, torch.zeros(6, 6).masked_fill(~causal(6), float("-inf")))),
        (Keep4D, lambda m, ids, real: m(ids, (real[:, None, None].bool()).int())),
    ],
)
def test_mask_reaches_the_model_as_it_wants_it(kind: type[Base], proper) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    adapted = adapt(model)
    torch.testing.assert_close(adapted(IDS, PADDED).logits, proper(model, IDS, PADDED))
    whole = torch.ones_like(PADDED)
    torch.testing.assert_close(adapted(IDS).logits, proper(model, IDS, whole))
    assert CallContract.from_json(adapted.contract.to_json()) == adapted.contract


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.rnn, self.head = nn.Embedding(V, D), nn.GRU(D, D), nn.Linear(D, V)

    def forward(self, x):
        return self.head(self.rnn(self.emb(x))[0])


def test_time_first_model_is_turned() -> None:
    model = TimeFirst()
    adapted = adapt(model)
    assert adapted.contract.time_first and adapted.contract.causal
    torch.testing.assert_close(adapted(IDS).logits, model(IDS.t()).transpose(0, 1))


class Positions(Base):
    def forward(self, input_ids, position_ids, token_type_ids):
        return self.head(self.emb(input_ids) + self.pos(position_ids)) + token_type_ids[..., None]


def test_required_positions_and_segments_are_built() -> None:
    model = Positions()
    positions = torch.arange(6).expand(2, -1)
    torch.testing.assert_close(adapt(model)(IDS).logits, model(IDS, positions, torch.zeros_like(IDS)))


class Experts(Base):
    def forward(self, input_ids):
        h = self.embed(input_ids)
        return self.head(h), (h**2).mean()


def test_auxiliary_loss_is_added_once() -> None:
    model = Experts()
    adapted = adapt(model)
    logits, auxiliary = model(IDS)
    torch.testing.assert_close(adapted(IDS, labels=IDS).loss, next_token_loss(logits, IDS) + auxiliary)


class OwnLoss(Base):
    shift = True

    def forward(self, input_ids, labels=None):
        logits = self.head(
            self.embed(input_ids).cumsum(1)
            if self.shift
            else self.embed(input_ids) + self.embed(input_ids).mean(1, True)
        )
        if labels is None:
            return None, logits
        if self.shift:
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), logits
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits


class OwnPlainLoss(OwnLoss):
    shift = False


@pytest.mark.parametrize(("kind", "task"), [(OwnLoss, "lm"), (OwnPlainLoss, "masked")])
def test_loss_equals_the_models_own(kind: type[OwnLoss], task: str) -> None:
    model = kind()
    adapted = adapt(model)
    assert adapted.contract.task == task
    torch.testing.assert_close(adapted(IDS, labels=IDS).loss, model(IDS, labels=IDS)[0])


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        self.body = nn.Transformer(D, 2, 1, 1, 32, 0.0, batch_first=True)

    def forward(self, src, tgt):
        return self.head(self.body(self.emb(src), self.emb(tgt)))


def test_sequence_to_sequence() -> None:
    model = EncoderDecoder().eval()
    adapted = adapt(model, {"bos_token_id": 2})
    labels = torch.tensor([[4, 5, 6], [7, 8, -100]])
    out = adapted(IDS, labels=labels)
    expected = model(IDS, torch.tensor([[2, 4, 5], [2, 7, 8]]))
    assert adapted.contract.task == "seq2seq"
    torch.testing.assert_close(out.logits, expected)
    torch.testing.assert_close(out.loss, F.cross_entropy(expected.flatten(0, 1), labels.flatten(), ignore_index=-100))
    torch.testing.assert_close(adapted(IDS, decoder_input_ids=IDS[:, :2]).logits, model(IDS, IDS[:, :2]))
    assert shifted_right(torch.tensor([[5, -100, 7]]), 1).tolist() == [[1, 5, 0]]


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, x):
        return self.body(x)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, pixel_values):
        return {"logits": self.head(self.conv(pixel_values).mean((2, 3)))}


@pytest.mark.parametrize(("kind", "shape", "flat"), [(Digits, (1, 8, 8), True), (Convolution, (3, 32, 32), False)])
def test_images(kind: type[nn.Module], shape: tuple[int, int, int], flat: bool) -> None:
    model = kind()
    adapted = adapt(model)
    pixels, labels = torch.rand(2, *shape), torch.tensor([1, 3])
    expected = model(pixels.flatten(1)) if flat else model(pixels)["logits"]
    assert adapted.contract.task == "vision" and adapted.contract.image_shape == shape
    torch.testing.assert_close(adapted(pixels, labels=labels).logits, expected)
    torch.testing.assert_close(adapted(pixel_values=pixels, labels=labels).loss, F.cross_entropy(expected, labels))
    adapted.check_inputs(pixels)
    with pytest.raises(TokenIdError, match="Images must be floating-point of shape"):
        adapted.check_inputs(torch.rand(2, 7, 7, 7))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_images_come_in_the_type_of_the_weights(kind: torch.dtype) -> None:
    adapted = adapt(Convolution().to(kind))
    assert adapted(torch.rand(2, 3, 32, 32)).logits.dtype == kind


class Classifier(Base):
    def forward(self, input_ids):
        return self.head(self.embed(input_ids).mean(1))[:, :4]


def test_classification() -> None:
    model = Classifier()
    out = adapt(model)(IDS, labels=torch.tensor([0, 3]))
    torch.testing.assert_close(out.loss, F.cross_entropy(model(IDS), torch.tensor([0, 3])))


def test_call_without_input_is_refused() -> None:
    adapted = AdaptedModel(Classifier(), {"vocab_size": V})
    with pytest.raises(CallContractError, match="needs input_ids"):
        adapted()


class Hidden(Base):
    def forward(self, input_ids):
        return self.embed(input_ids)


def test_model_without_a_head_has_no_loss() -> None:
    adapted = adapt(Hidden())
    assert adapted(IDS).logits.shape == (2, 6, D)
    with pytest.raises(CallContractError, match="hidden states 16 wide and no scores for its 23 tokens"):
        adapted(IDS, labels=IDS)


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(CallContractError, match=r"labels must have the shape \(2, 6\)"):
        adapt(PaddingDropped())(IDS, labels=IDS[:, :3])


def test_config_that_contradicts_the_model_is_said() -> None:
    contract = adapt(PaddingDropped(), {"vocab_size": 10}).contract
    assert contract.vocab_size == V and "the config says 10" in contract.summary()


def test_models_without_weights_are_refused() -> None:
    with torch.device("meta"):
        model = PaddingDropped()
    with pytest.raises(CallContractError, match="is on the meta device"):
        adapt(model)
    lazy = nn.Sequential(nn.Embedding(V, D), nn.LazyLinear(V))
    with pytest.raises(CallContractError, match="lazy parameters"):
        adapt(lazy)


def test_attributes_that_forward_writes_are_put_back() -> None:
    class Remembering(Base):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.seen, self.facts = 0, [], {}

        def forward(self, input_ids):
            self.calls += 1
            self.last = input_ids
            self.seen.append(input_ids)
            self.facts["ids"] = input_ids
            return self.head(self.embed(input_ids))

    model = Remembering()
    seen, facts = model.seen, model.facts
    adapt(model)
    assert model.calls == 0 and not hasattr(model, "last")
    assert model.seen is seen and seen == [] and model.facts is facts and facts == {}


def test_summary_shows_what_matters() -> None:
    text = adapt(KeepInt3D()).contract.summary()
    assert "mask: mask: bool (B, T, T), 1 = visible, causal" in text and "causal: yes" in text
    assert "auxiliary loss: 1 × 1" in adapt(Experts()).contract.summary()


class TwoTexts(Base):
    def forward(self, x1, x2):
        return self.head(self.embed(x1) + self.embed(x2))


class Discriminator(Base):
    """One number for each token: neither a class nor a token is scored."""

    def forward(self, input_ids):
        return self.head(self.embed(input_ids))[..., 0]


class OnlyItsLoss(Base):
    def forward(self, input_ids, labels):
        return F.cross_entropy(self.head(self.embed(input_ids)).flatten(0, 1), labels.flatten())


class Diffusion(Base):
    def forward(self, x, t):
        return self.head(self.embed(x)) + t.view(-1, 1, 1)


class HalfAsLong(Base):
    def forward(self, x):
        return self.head(self.embed(x)[:, ::2])


class Table(nn.Module):
    """Twelve features are no picture of 2 × 2."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("kind", [TwoTexts, Discriminator, OnlyItsLoss, Diffusion, HalfAsLong, Table])
def test_what_cannot_be_settled_is_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(CallContractError, match=r"could not be settled.*Tried:"):
        adapt(kind())


def test_mask_of_one_row_is_not_taken_for_one_of_heads() -> None:
    """(B, 1, T) broadcasts against (B, heads, T, T) where there are as many heads as texts in the probe."""

    class Heads(Base):
        def forward(self, input_ids, extended_attention_mask):
            h = self.embed(input_ids)
            scores = self.scores(h)[:, None].expand(-1, 2, -1, -1) + extended_attention_mask
            return self.head(h + scores.softmax(-1).mean(1) @ h)

    model = Heads()
    adapted = adapt(model)
    drop = torch.zeros(PADDED.shape).masked_fill(PADDED == 0, float("-inf"))[:, None, None]
    torch.testing.assert_close(adapted(IDS, PADDED).logits, model(IDS, drop))
    assert adapted(IDS.repeat(2, 1)[:3], PADDED.repeat(2, 1)[:3]).logits.shape == (3, 6, V)
