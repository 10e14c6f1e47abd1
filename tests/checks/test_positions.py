from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import positions


class NoPositions(m.Healthy):
    """Order arrives through the causal mask alone, from the second layer on."""

    def __init__(self, **more):
        super().__init__(**more)
        del self.position_embedding

    def body(self, input_ids):
        x = self.token_embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class TableNeverUsed(m.Healthy):
    def body(self, input_ids):
        x = self.token_embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class SamePosition(m.Healthy):
    """Counts along the batch axis."""

    def body(self, input_ids):
        x = self.token_embedding(input_ids) + self.position_embedding(torch.zeros_like(input_ids))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class ParameterTable(m.Healthy):
    """Healthy: a table that starts at zero, as in minGPT."""

    used = True

    def __init__(self):
        super().__init__()
        del self.position_embedding
        self.pos_emb = nn.Parameter(torch.zeros(1, m.LIMIT, m.WIDTH))

    def body(self, input_ids):
        table = self.pos_emb[:, : input_ids.shape[1]]
        x = self.token_embedding(input_ids) + (table if self.used else 0)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class ParameterTableNeverUsed(ParameterTable):
    used = False


class Bag(nn.Module):
    """Mean of the tokens so far, or of all."""

    def __init__(self, outputs=m.VOCABULARY, pooled=False):
        super().__init__()
        self.embedding, self.head, self.pooled = (
            nn.Embedding(m.VOCABULARY, m.WIDTH),
            nn.Linear(m.WIDTH, outputs),
            pooled,
        )

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        if self.pooled:
            return self.head(x.mean(1))
        return self.head(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])


class Bigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(m.VOCABULARY, m.WIDTH), nn.Linear(m.WIDTH, m.VOCABULARY)

    def forward(self, input_ids):
        return self.head(self.embedding(input_ids))


class Recurrent(nn.Module):
    """Healthy without any position: a recurrence reads the order."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(m.VOCABULARY, m.WIDTH), nn.Linear(m.WIDTH, m.VOCABULARY)
        self.rnn = nn.GRU(m.WIDTH, m.WIDTH, batch_first=True)

    def forward(self, input_ids):
        return self.head(self.rnn(self.embedding(input_ids))[0])


class Attention(nn.Module):
    """One head of causal attention with relative positions of one kind, or with none."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.query, self.key, self.value = (nn.Linear(m.WIDTH, m.WIDTH) for _ in range(3))

    def forward(self, x):
        batch, length, width = x.shape
        query, key = self.query(x), self.key(x)
        if self.kind == "rotary":
            query, key = self.turned(query, torch.arange(length)), self.turned(key, torch.arange(length))
        if self.kind == "rotary along the batch":
            query, key = (
                self.turned(part, torch.arange(batch)[:, None].expand(batch, length)) for part in (query, key)
            )
        scores = query @ key.transpose(1, 2) / width**0.5
        if self.kind == "alibi":
            scores = scores - 0.5 * (torch.arange(length)[:, None] - torch.arange(length)).abs()
        return F.softmax(scores + torch.full((length, length), -1e9).triu(1), -1) @ self.value(x)

    @staticmethod
    def turned(x, places):
        angles = places[..., None] * 10000.0 ** (-torch.arange(m.WIDTH // 2) / (m.WIDTH // 2))
        a, b = x.chunk(2, -1)
        return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


class Relative(nn.Module):
    def __init__(self, kind, layers=2):
        super().__init__()
        self.embedding, self.head = nn.Embedding(m.VOCABULARY, m.WIDTH), nn.Linear(m.WIDTH, m.VOCABULARY)
        self.layers = nn.ModuleList(Attention(kind) for _ in range(layers))

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = x + layer(F.layer_norm(x, (m.WIDTH,)))
        return self.head(x)


class Pair(nn.Module):
    """An encoder-decoder; the encoder has positions, or not."""

    def __init__(self, placed):
        super().__init__()
        self.embedding, self.head = nn.Embedding(m.VOCABULARY, m.WIDTH), nn.Linear(m.WIDTH, m.VOCABULARY)
        self.places = nn.Embedding(m.LIMIT, m.WIDTH) if placed else None
        self.body = nn.Transformer(m.WIDTH, 2, 1, 1, 2 * m.WIDTH, dropout=0.0, batch_first=True)

    def forward(self, src: torch.Tensor, tgt: torch.Tensor) -> torch.Tensor:
        source = self.embedding(src)
        if self.places is not None:
            source = source + self.places(torch.arange(src.shape[1]))
        future = nn.Transformer.generate_square_subsequent_mask(tgt.shape[1])
        return self.head(self.body(source, self.embedding(tgt), tgt_mask=future))


def _run(build, config=None):
    torch.manual_seed(0)
    return positions.check(adapt(build(), config))


@pytest.mark.parametrize(
    ("build", "status", "words"),
    [
        (TableNeverUsed, "fail", ["moves no logit: position_embedding.weight", "self.position_embedding(torch.arange"]),
        (SamePosition, "fail", ["11 tokens get the same row", "batch axis", "torch.arange(ids.shape[1]"]),
        (ParameterTableNeverUsed, "fail", ["moves no logit: pos_emb"]),
        (Bag, "fail", ["bag of words", "positions"]),
        (lambda: NoPositions(layers=1), "fail", ["bag of words"]),
        (lambda: NoPositions(causal=False), "fail", ["bag of words"]),
        (lambda: Bag(3, pooled=True), "warn", ["bag of words"]),
        (lambda: Pair(placed=False), "fail", ["bag of words"]),
        (NoPositions, "warn", ["blocks.0.attention sees earlier tokens without their order", "NoPE"]),
        (lambda: Relative("none"), "warn", ["layers.0 sees earlier tokens without their order"]),
        (lambda: Relative("rotary along the batch"), "warn", ["layers.0", "not along heads or batch"]),
        (Bigram, "warn", ["depends on the last token alone"]),
    ],
)
def test_order_that_is_not_read_is_found(build, status, words):
    result = _run(build)
    assert result.status == status, result.summary()
    assert [word for word in words if word not in result.summary()] == [], result.summary()


@pytest.mark.parametrize(
    "build",
    [
        m.Healthy,
        lambda: m.Healthy(causal=False),
        lambda: m.Healthy(layers=1),
        lambda: m.Healthy(vocabulary=3),
        lambda: m.Healthy(limit=4),
        m.BufferLimit,
        m.ZeroHead,
        ParameterTable,
        Recurrent,
        lambda: Relative("rotary"),
        lambda: Relative("alibi"),
        lambda: Relative("alibi", layers=1),
        lambda: Pair(placed=True),
    ],
)
def test_order_that_is_read_passes(build):
    result = _run(build)
    assert result.status == "pass", result.summary()
    assert result.measured["moved_by_order"] > 1e-3 * result.measured["moved_by_other_tokens"]


@pytest.mark.parametrize("vocabulary", [2, 3])
@pytest.mark.parametrize(("build", "status"), [(m.Healthy, "pass"), (NoPositions, "warn")])
def test_few_tokens_are_enough_to_see_the_order(vocabulary, build, status):
    torch.manual_seed(0)
    config = {"vocab_size": vocabulary, "max_seq_len": m.LIMIT}
    result = positions.check(adapt(build(vocabulary=vocabulary), config))
    assert result.status == status, result.summary()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: m.Healthy(limit=1), "no order"),
        (lambda: m.Healthy(vocabulary=1), "no order"),
        (m.NaNModule, "not finite"),
    ],
)
def test_what_has_no_order_is_skipped(build, words):
    result = _run(build)
    assert (result.status, words in result.headline) == ("skip", True), result.summary()


@pytest.mark.parametrize(("name", "build"), list(m.hugging_face()))
def test_hugging_face_models_are_fine(name, build):
    result = _run(build)
    assert result.status == "pass", f"{name}\n{result.summary()}"
