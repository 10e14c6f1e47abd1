from __future__ import annotations

import pytest
import torch
from torch import nn

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import padding


class Masked(m.Healthy):
    """Takes a mask and hides its zeros from every query; one flag, one planted fault."""

    causal, ignores, inverts, last_layer_only, infinite = True, False, False, False, False

    def __init__(self, **more) -> None:
        super().__init__(**more)
        for block in self.blocks:
            block.attention.dropout = 0.0

    def scores(self, input_ids, attention_mask):
        length = input_ids.shape[1]
        hidden = torch.zeros_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            hidden = (attention_mask != 0) if self.inverts else (attention_mask == 0)
        future = torch.ones(length, length, dtype=torch.bool).triu(1) if self.causal else None
        blocked = -torch.inf if self.infinite else -1e9
        x = self.token_embedding(input_ids) + self.position_embedding(torch.arange(length))
        for number, block in enumerate(self.blocks):
            used = not self.ignores and (number == 1 or not self.last_layer_only)
            bias = torch.zeros(input_ids.shape[0], length, length)
            bias = bias.masked_fill(hidden[:, None, :], blocked) if used else bias
            bias = bias.masked_fill(future, blocked) if future is not None else bias
            h = block.norm_1(x)
            query, key, value = block.attention.in_proj_weight.chunk(3)
            weights = ((h @ query.T) @ (h @ key.T).transpose(1, 2) / m.WIDTH**0.5 + bias).softmax(-1)
            x = x + weights @ (h @ value.T)
            x = x + block.mlp(block.norm_2(x))
        return self.norm(x)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(self.scores(input_ids, attention_mask))


class MaskedLM(Masked):
    """Reads in both directions."""

    causal = False


class Ignores(MaskedLM):
    ignores = True


class Inverts(MaskedLM):
    """HF-like name and meaning outside, the opposite inside; required, so that its meaning cannot be left out."""

    inverts = True

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            raise TypeError("whole numbers, please")
        return super().forward(input_ids, attention_mask)


class LastLayerOnly(MaskedLM):
    last_layer_only = True


class CausalIgnores(Masked):
    ignores = True


class CausalNaN(Masked):
    infinite = True


class Classifier(MaskedLM):
    """Classes from the mean over the real tokens."""

    weighs = True

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(m.WIDTH, 3)
        del self.head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.scores(input_ids, attention_mask)
        keep = torch.ones_like(input_ids) if attention_mask is None or not self.weighs else attention_mask
        weight = keep[..., None].float()
        return self.classifier((x * weight).sum(1) / weight.sum(1))


class MeanOverPadding(Classifier):
    weighs = False


class NoMaskClassifier(m.Healthy):
    def __init__(self) -> None:
        super().__init__(causal=False)
        self.head = nn.Linear(m.WIDTH, 3)

    def forward(self, input_ids):
        return self.head(self.body(input_ids).mean(1))


class Swallows(MaskedLM):
    """Takes whatever is given, and never names a mask."""

    ignores = True

    def forward(self, input_ids: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        return self.head(self.scores(input_ids, None))


class PadsById(MaskedLM):
    """No mask at all: hides its padding id by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding.padding_idx = 7

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.scores(input_ids, (input_ids != 7).long()))


class RelativeOnly(Masked):
    """No positions: the causal mask is all there is, so padding before a text moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.position_embedding.weight)


class Convolves(MaskedLM):
    """A convolution reads its neighbours past the mask, as ConvBERT's."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Conv1d(m.WIDTH, m.WIDTH, 3, padding=1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.scores(input_ids, attention_mask)
        return self.head(x + self.local(x.transpose(1, 2)).transpose(1, 2))


def _run(build):
    torch.manual_seed(0)
    return padding.check(adapt(build()))


@pytest.mark.parametrize(
    ("build", "status", "words"),
    [
        (Ignores, "fail", ["takes attention_mask and does not use it", "key_padding_mask"]),
        (LastLayerOnly, "fail", ["a part of LastLayerOnly only"]),
        (MeanOverPadding, "fail", ["mean", "number of real tokens"]),
        (CausalIgnores, "warn", ["Padding before a text is read", "does not use it"]),
        (CausalNaN, "warn", ["NaN", "-inf"]),
        (NoMaskClassifier, "warn", ["takes no mask", "attention_mask (B, T)"]),
    ],
)
def test_padding_that_is_read_is_found(build, status, words):
    result = _run(build)
    assert result.status == status, result.summary()
    assert [word for word in words if word not in result.summary()] == [], result.summary()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (m.Healthy, "although the model takes no mask"),
        (lambda: m.Healthy(limit=2), "although the model takes no mask"),
        (Masked, "shifts the positions by design"),
        (RelativeOnly, "Padding before it as well"),
        (MaskedLM, "behind the attention mask"),
        (Classifier, "behind the attention mask"),
        (Swallows, "packed into full blocks"),
        (PadsById, "by its id 7: pad with no other"),
        (Convolves, "by design"),
        (lambda: m.Healthy(causal=False), "packed into full blocks"),
    ],
)
def test_padding_that_does_no_harm_is_described(build, words):
    result = _run(build)
    assert result.status == "pass", result.summary()
    assert words in result.headline


def test_an_inverted_mask_is_named_where_the_contract_cannot_turn_it():
    torch.manual_seed(0)
    adapted = adapt(MaskedLM())  # the contract knows 1 = visible
    adapted.model.inverts = True
    result = padding.check(adapted)
    assert result.status == "fail"
    assert "wrong way round" in result.cause and "~attention_mask" in result.fix


def test_the_contract_turns_an_inverted_mask_by_itself():
    assert _run(Inverts).status == "pass"


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: m.Healthy(limit=1), "two lengths"),
        (lambda: m.Healthy(vocabulary=2), "three token ids"),
        (m.NaNModule, "not finite"),
    ],
)
def test_what_cannot_be_compared_is_skipped(build, words):
    result = _run(build)
    assert (result.status, words in result.headline) == ("skip", True), result.summary()


@pytest.mark.parametrize(("name", "build"), list(m.hugging_face()))
def test_hugging_face_models_are_fine(name, build):
    result = _run(build)
    assert result.status == "pass", f"{name}\n{result.summary()}"
    assert result.measured["right"] < padding.TOLERANCE / 10
    if name == "GPT-2":
        assert "shifts the positions by design" in result.headline
