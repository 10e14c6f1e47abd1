"""Every convention in which a model wants its mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.zoo.blocks import BLOCKED, Decoder, bias_of, future
from tests.zoo.entry import LIMIT, Batch, D, Entry, V, masked_text, padded_text, seeded, text


class OptionalMask(Decoder):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.scores(input_ids, None if attention_mask is None else bias_of(attention_mask.bool()))


class RequiredMask(Decoder):
    """Whole numbers, 1 = real, as Hugging Face has it, but without a default."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.scores(input_ids, (1.0 - attention_mask[:, None, None, :].float()) * BLOCKED)


class BoolKeep(Decoder):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.scores(x, bias_of(mask))


class BoolDrop(Decoder):
    def forward(self, tokens: torch.Tensor, padding_mask: torch.Tensor) -> torch.Tensor:
        return self.scores(tokens, bias_of(~padding_mask))


class FloatKeep(Decoder):
    """1.0 for real tokens: keys are weighed by it."""

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.scores(input_ids, (1.0 - mask)[:, None, None, :] * BLOCKED) * mask[..., None]


class Additive2D(Decoder):
    """0 for real tokens, a large negative number for padding, (B, T)."""

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.scores(input_ids, mask[:, None, None, :])


class Additive4D(Decoder):
    """The same as (B, 1, 1, T): BERT's extended mask."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        assert attention_mask.dim() == 4, "attention_mask (B, 1, 1, T)"
        return self.scores(input_ids, attention_mask)


class Keep3D(Decoder):
    """(B, T, T): which position may read which; the model itself is not causal."""

    def __init__(self) -> None:
        super().__init__(causal=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, rows, columns = mask.shape
        return self.scores(x, torch.zeros(batch, 1, rows, columns).masked_fill(mask[:, None] == 0, BLOCKED))


class Keep4D(Decoder):
    """(B, 1, T, T), 0 = may not be read, as in the annotated Transformer."""

    def __init__(self) -> None:
        super().__init__(causal=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, one, rows, columns = mask.shape
        assert one == 1
        return self.scores(x, torch.zeros(batch, 1, rows, columns).masked_fill(mask == 0, BLOCKED))


class CausalAdditive(nn.Module):
    """(T, T) additive, handed to `nn.TransformerEncoder`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(V, D), nn.Embedding(LIMIT, D)
        layer = nn.TransformerEncoderLayer(D, 2, 2 * D, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(D, V)

    def forward(self, src: torch.Tensor, src_mask: torch.Tensor) -> torch.Tensor:
        x = self.embedding(src) + self.positions(torch.arange(src.shape[1], device=src.device))
        return self.head(self.encoder(x, mask=src_mask))


class CausalBoolDrop(nn.Module):
    """(T, T) bool, true = may not be read, handed to `nn.MultiheadAttention`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(V, D), nn.Embedding(LIMIT, D)
        self.attention, self.head = nn.MultiheadAttention(D, 2, batch_first=True), nn.Linear(D, V)

    def forward(self, input_ids: torch.Tensor, attn_mask: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        attended, _ = self.attention(x, x, x, attn_mask=attn_mask, need_weights=False)
        return self.head(x + attended)


class CausalKeep(Decoder):
    """(T, T) lower triangle of ones."""

    def __init__(self) -> None:
        super().__init__(causal=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows, columns = mask.shape
        return self.scores(x, torch.zeros(rows, columns).masked_fill(mask == 0, BLOCKED))


class TimeFirstTutorial(nn.Module):
    """(T, B) ids, a (T, T) additive mask and (T, B, V) scores, as the language model of PyTorch's tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Embedding(V, D), nn.Linear(D, V)
        layer = nn.TransformerEncoderLayer(D, 2, 2 * D, dropout=0.0)
        self.transformer_encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.register_buffer("pe", torch.randn(LIMIT, 1, D) * 0.1)

    def forward(self, src: torch.Tensor, src_mask: torch.Tensor) -> torch.Tensor:
        x = self.encoder(src) * D**0.5 + self.pe[: src.size(0)]
        return self.decoder(self.transformer_encoder(x, src_mask))


class EncoderPadding(nn.Module):
    """A bidirectional encoder with `src_key_padding_mask` (bool, true = padding)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(V, D), nn.Embedding(LIMIT, D)
        layer = nn.TransformerEncoderLayer(D, 2, 2 * D, dropout=0.1, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(D, V)

    def forward(self, src: torch.Tensor, src_key_padding_mask: torch.Tensor) -> torch.Tensor:
        x = self.embedding(src) + self.positions(torch.arange(src.shape[1], device=src.device))
        return self.head(self.encoder(x, src_key_padding_mask=src_key_padding_mask))


class BothMasks(nn.Module):
    """A causal (T, T) mask and a padding mask (B, T), both required."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(V, D), nn.Embedding(LIMIT, D)
        layer = nn.TransformerEncoderLayer(D, 2, 2 * D, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(D, V)

    def forward(self, src: torch.Tensor, src_mask: torch.Tensor, src_key_padding_mask: torch.Tensor) -> torch.Tensor:
        x = self.embedding(src) + self.positions(torch.arange(src.shape[1], device=src.device))
        return self.head(self.encoder(x, mask=src_mask, src_key_padding_mask=src_key_padding_mask))


def _keep(batch: Batch) -> torch.Tensor:
    return batch["attention_mask"].bool()


def _may_read(batch: Batch) -> torch.Tensor:
    """(B, T, T): real, and not later."""
    length = batch["input_ids"].shape[1]
    return _keep(batch)[:, None, :] & torch.ones(length, length, dtype=torch.bool).tril()


def _no_future(batch: Batch) -> torch.Tensor:
    return nn.Transformer.generate_square_subsequent_mask(batch["input_ids"].shape[1])


def _time_first(model: Any, batch: Batch) -> torch.Tensor:
    return model(batch["input_ids"].t(), _no_future(batch)).transpose(0, 1)


def _lm(name: str, build: Any, reference: Any, shows: str, batch: Any = None, **more: Any) -> Entry:
    return Entry(name, "lm", seeded(build), reference, batch or padded_text(), shows, rows=V, limit=LIMIT, **more)


ENTRIES = [
    _lm("optional mask", OptionalMask, lambda m, b: m(b["input_ids"], b["attention_mask"]), "(B, T), 1 = real"),
    _lm("required mask", RequiredMask, lambda m, b: m(b["input_ids"], b["attention_mask"]), "(B, T), 1 = real"),
    _lm("bool keep mask", BoolKeep, lambda m, b: m(b["input_ids"], _keep(b)), "(B, T), true = real"),
    _lm("bool drop mask", BoolDrop, lambda m, b: m(b["input_ids"], ~_keep(b)), "(B, T), true = padding"),
    _lm("float keep mask", FloatKeep, lambda m, b: m(b["input_ids"], _keep(b).float()), "(B, T), 1.0 = real"),
    _lm(
        "additive mask 2-D",
        Additive2D,
        lambda m, b: m(b["input_ids"], bias_of(_keep(b))[:, 0, 0]),
        "(B, T), 0 = real, large negative = padding",
    ),
    _lm("additive mask 4-D", Additive4D, lambda m, b: m(b["input_ids"], bias_of(_keep(b))), "(B, 1, 1, T)"),
    _lm("keep mask 3-D", Keep3D, lambda m, b: m(b["input_ids"], _may_read(b)), "(B, T, T)"),
    _lm("keep mask 4-D", Keep4D, lambda m, b: m(b["input_ids"], _may_read(b)[:, None]), "(B, 1, T, T)"),
    _lm("causal additive", CausalAdditive, lambda m, b: m(b["input_ids"], _no_future(b)), "(T, T)", text()),
    _lm(
        "causal bool drop",
        CausalBoolDrop,
        lambda m, b: m(b["input_ids"], _no_future(b) < 0),
        "(T, T), true = later",
        text(),
    ),
    _lm("causal keep", CausalKeep, lambda m, b: m(b["input_ids"], future(6) == 0), "(T, T), lower triangle", text()),
    _lm("time first, causal additive", TimeFirstTutorial, _time_first, "(T, B) → (T, B, V)", text()),
    _lm(
        "causal and padding mask",
        BothMasks,
        lambda m, b: m(b["input_ids"], _no_future(b) < 0, ~_keep(b)),
        "(T, T) and (B, T)",
    ),
    Entry(
        "encoder with padding mask",
        "masked",
        seeded(EncoderPadding),
        lambda m, b: m(b["input_ids"], ~_keep(b)),
        masked_text(),
        "src_key_padding_mask, not causal",
        contract_task="lm",
        rows=V,
        limit=LIMIT,
    ),
]
