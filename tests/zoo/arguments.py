"""Every way in which a model takes its token ids, positions, scalars and labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.blocks import Decoder
from tests.zoo.entry import LIMIT, D, Entry, V, padded_text, seeded, text


class Plain(Decoder):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.scores(input_ids)


class PositionalOnly(Decoder):
    def forward(self, ids: torch.Tensor, /) -> torch.Tensor:
        return self.scores(ids)


class KeywordOnly(Decoder):
    def forward(self, *, input_ids: torch.Tensor) -> torch.Tensor:
        return self.scores(input_ids)


class Variadic(Decoder):
    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.scores(args[0])


class Keywords(Decoder):
    def forward(self, **kwargs: Any) -> torch.Tensor:
        return self.scores(kwargs["input_ids"])


class NamedX(Decoder):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(x)


class NamedIdx(Decoder):
    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.scores(idx)


class NamedTokens(Decoder):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.scores(tokens)


class NamedSrc(Decoder):
    def forward(self, src: torch.Tensor) -> torch.Tensor:
        return self.scores(src)


class NamedByCanvas(Decoder):
    def forward(self, input_0_tokens: torch.Tensor) -> torch.Tensor:
        return self.scores(input_0_tokens)


class NamedOddly(Decoder):
    def forward(self, sentence: torch.Tensor) -> torch.Tensor:
        return self.scores(sentence)


class MaskFirst(Decoder):
    """The ids are not the first argument."""

    def forward(
        self, attention_mask: torch.Tensor | None = None, input_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert input_ids is not None
        return self.scores(input_ids)


class NanoGPT(Decoder):
    """Scores for the last position only, unless targets are given; the targets are shifted by the caller."""

    def forward(
        self, idx: torch.Tensor, targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        x = self.hidden(idx)
        if targets is None:
            return self.head(x[:, [-1], :]), None
        logits = self.head(x)
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)


class Bigram(nn.Module):
    """Flat scores (B · T, V) when targets are given."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding_table = nn.Embedding(V, V)

    def forward(
        self, idx: torch.Tensor, targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits = self.token_embedding_table(idx)
        if targets is None:
            return logits, None
        batch, length, width = logits.shape
        logits = logits.view(batch * length, width)
        return logits, F.cross_entropy(logits, targets.view(batch * length))


class OwnShift(Decoder):
    """Shifts labels by itself and gives (loss, logits)."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        logits = self.scores(input_ids)
        if labels is None:
            return (logits,)
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1), ignore_index=-100)
        return loss, logits


class RequiredLabels(Decoder):
    """Cannot be called without labels."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.scores(input_ids)
        return F.cross_entropy(logits[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1)), logits


class Positions(Decoder):
    """Wants positions (B, T) or (T,)."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return self.scores(input_ids, positions=position_ids)


class PositionsOnly1D(Decoder):
    """Wants positions (T,) and no others."""

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        assert positions.dim() == 1, "positions (T,)"
        return self.scores(tokens, positions=positions)


class TokenTypes(Decoder):
    """Wants segments (B, T), as BERT does, without a default."""

    def __init__(self) -> None:
        super().__init__()
        self.segment_embedding = nn.Embedding(2, D)

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding(input_ids) + self.segment_embedding(token_type_ids)
        return self.head(self.norm(self.block(x)))


class HeadsFromConfig(nn.Module):
    """A number of heads that only the caller knows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix, self.out = nn.Embedding(V, D), nn.Linear(D, D), nn.Linear(D, V)

    def forward(self, input_ids: torch.Tensor, num_heads: int, dropout: float) -> torch.Tensor:
        x = F.dropout(self.embedding(input_ids), dropout, self.training)
        heads = self.mix(x).view(*x.shape[:2], num_heads, -1).softmax(2)
        return self.out(heads.flatten(2))


class StartPosition(Decoder):
    """Where generation stands, as in Llama's reference code."""

    def forward(self, tokens: torch.Tensor, start_pos: int) -> torch.Tensor:
        positions = torch.arange(start_pos, start_pos + tokens.shape[1], device=tokens.device)
        return self.scores(tokens, positions=positions)


class RequiredState(nn.Module):
    """A hidden state that has no default; None stands for the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.out = nn.Embedding(V, D), nn.GRU(D, D, batch_first=True), nn.Linear(D, V)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        y, hidden = self.rnn(self.embedding(x), hidden)
        return self.out(y), hidden


class Lengths(nn.Module):
    """Real lengths (B,) in place of a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.out = nn.Embedding(V, D), nn.LSTM(D, D, batch_first=True), nn.Linear(D, V)

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        real = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]
        y, _ = self.rnn(self.embedding(input_ids) * real[..., None])
        return self.out(y)


class OffsetPositions(nn.Module):
    """The first two rows of the position table are never used."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(V, D), nn.Embedding(LIMIT, D)
        self.mix, self.head = nn.Linear(D, D), nn.Linear(D, V)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(2, input_ids.shape[1] + 2, device=input_ids.device)
        return self.head(torch.tanh(self.mix(self.embedding(input_ids) + self.places(places))))


class ParameterPositions(nn.Module):
    """Positions in a bare parameter (1, limit, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(V, D), nn.Parameter(torch.randn(1, LIMIT, D))
        self.mix, self.head = nn.Linear(D, D), nn.Linear(D, V)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mix(self.tok_emb(idx) + self.pos_emb[:, : idx.shape[1], :])))


class BufferPositions(nn.Module):
    """Sines and cosines in a buffer (1, limit, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        angle = torch.arange(LIMIT)[:, None] / 10000 ** (torch.arange(0, D, 2) / D)
        self.register_buffer("pe", torch.cat([angle.sin(), angle.cos()], 1)[None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(x) * D**0.5 + self.pe[:, : x.size(1)])


class CausalBuffer(nn.Module):
    """The limit lies in a causal mask that was made once."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(V, D), nn.Linear(D, D), nn.Linear(D, V)
        self.register_buffer("tril", torch.tril(torch.ones(LIMIT, LIMIT)))

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        length = idx.shape[1]
        x = self.embedding(idx)
        scores = self.mix(x) @ x.transpose(1, 2)
        scores = scores.masked_fill(self.tril[:length, :length] == 0, float("-inf"))
        return self.head(scores.softmax(-1) @ x)


class AssertedLimit(Plain):
    """Says its limit in an assertion."""

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        assert idx.shape[1] <= LIMIT, f"at most {LIMIT} tokens"
        return self.scores(idx)


class TwoPlaces(Decoder):
    """Two tokens at most: too short for most questions."""

    def __init__(self) -> None:
        super().__init__(limit=2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.scores(input_ids)


class Tied(Decoder):
    """Head and embedding share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = self.token_embedding.weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.scores(input_ids)


class WiderThanVocabulary(Decoder):
    """More scores than embedding rows, as where the head is padded."""

    def __init__(self) -> None:
        super().__init__(outputs=64)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.scores(input_ids)


def _first(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(batch["input_ids"])


def _lm(name: str, build: Any, reference: Any = _first, shows: str = "", **more: Any) -> Entry:
    return Entry(name, "lm", seeded(build), reference, more.pop("batch", text()), shows, rows=V, **more)


def _positions(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.arange(batch["input_ids"].shape[1])


ENTRIES = [
    _lm("input_ids", Plain, shows="one tensor in, one out", limit=LIMIT),
    _lm("positional only", PositionalOnly, shows="forward(ids, /)", limit=LIMIT),
    _lm("keyword only", KeywordOnly, lambda m, b: m(input_ids=b["input_ids"]), "forward(*, input_ids)", limit=LIMIT),
    _lm("*args, **kwargs", Variadic, shows="ids are args[0]", limit=LIMIT),
    _lm("**kwargs", Keywords, lambda m, b: m(input_ids=b["input_ids"]), "ids under a name in kwargs", limit=LIMIT),
    _lm("x", NamedX, shows="name", limit=LIMIT),
    _lm("idx", NamedIdx, shows="name", limit=LIMIT),
    _lm("tokens", NamedTokens, shows="name", limit=LIMIT),
    _lm("src", NamedSrc, shows="name", limit=LIMIT),
    _lm("input_0_tokens", NamedByCanvas, shows="name of a canvas node", limit=LIMIT),
    _lm("sentence", NamedOddly, shows="a name that nobody expects", limit=LIMIT),
    _lm("ids second", MaskFirst, lambda m, b: m(input_ids=b["input_ids"]), "mask before the ids", limit=LIMIT),
    _lm(
        "nanoGPT",
        NanoGPT,
        lambda m, b: m(b["input_ids"], b["input_ids"])[0],
        "last position only without targets; own unshifted loss",
        limit=LIMIT,
    ),
    _lm("bigram", Bigram, lambda m, b: m(b["input_ids"])[0], "flat scores when targets are given"),
    _lm("own shifted loss", OwnShift, lambda m, b: m(b["input_ids"])[0], "labels are shifted once", limit=LIMIT),
    _lm(
        "required labels",
        RequiredLabels,
        lambda m, b: m(b["input_ids"], b["input_ids"])[1],
        "labels have no default",
        limit=LIMIT,
    ),
    _lm("required position_ids", Positions, lambda m, b: m(b["input_ids"], _positions(b)[None]), "(B, T)", limit=LIMIT),
    _lm("required positions 1-D", PositionsOnly1D, lambda m, b: m(b["input_ids"], _positions(b)), "(T,)", limit=LIMIT),
    _lm(
        "required token_type_ids",
        TokenTypes,
        lambda m, b: m(b["input_ids"], torch.zeros_like(b["input_ids"])),
        "segments are 0",
    ),
    _lm(
        "required scalars",
        HeadsFromConfig,
        lambda m, b: m(b["input_ids"], 4, 0.1),
        "num_heads and dropout from the config",
        config={"vocab_size": V, "num_heads": 4, "dropout": 0.1},
        limit=None,
    ),
    _lm("start_pos", StartPosition, lambda m, b: m(b["input_ids"], 0), "generation begins at 0", limit=LIMIT),
    _lm(
        "required state", RequiredState, lambda m, b: m(b["input_ids"], None)[0], "hidden is None at first", limit=None
    ),
    _lm(
        "required lengths",
        Lengths,
        lambda m, b: m(b["input_ids"], b["attention_mask"].sum(1)),
        "lengths (B,) from the mask",
        batch=padded_text(),
        limit=None,
    ),
    _lm("offset positions", OffsetPositions, shows="limit = rows - 2", limit=LIMIT - 2),
    _lm("positions in a parameter", ParameterPositions, shows="limit from a parameter", limit=LIMIT),
    _lm("positions in a buffer", BufferPositions, shows="limit from a buffer", limit=LIMIT),
    _lm("causal buffer", CausalBuffer, shows="limit from a mask", limit=LIMIT),
    _lm("asserted limit", AssertedLimit, shows="limit from table and assertion", limit=LIMIT),
    _lm("two places", TwoPlaces, shows="a limit below the probe's length", batch=text(length=2), limit=2),
    _lm("tied weights", Tied, shows="shared weight stays shared", limit=LIMIT),
    _lm("64 scores for 61 rows", WiderThanVocabulary, shows="head wider than the embedding", limit=LIMIT),
]
